//! Sockets: what turns the network's bytes into streams and the protocol's frames into bytes on them.
//!
//! Each submodule says what it takes, what an attacker controls and what bounds it.

pub mod ws_io;

pub use ws_io::{WsIo, WsIoError};
