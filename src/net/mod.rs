//! Sockets: who listens where, and one driver between a socket and the WebSocket codec.
//!
//! In: addresses, and the bytes of peers. Out: accepted sockets, and the events of [`ws_io`].
//! Attacker controls: what peers send and how fast they read. Bounds: `ws::Limits`.
//! Errors: [`BindError`], [`WsIoError`].

pub mod bind;
pub mod port_owner;
pub mod ws_io;

pub use bind::BindError;
pub use ws_io::{WsIo, WsIoError};
