//! Sockets: who listens where, and one driver between a socket and the WebSocket codec.

pub mod bind;
pub mod port_owner;

pub use bind::BindError;
