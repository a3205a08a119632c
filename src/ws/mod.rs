//! WebSocket (RFC 6455) as a sans-IO codec, both roles.
//!
//! In: the peer's bytes, in any split, and what we want to say. Out: [`Event`]s, and bytes to be written.
//! Attacker controls: every byte received. Bounds: [`Limits`], all of them applied before anything is stored:
//! a message's size is judged from its frames' headers. No extension and no subprotocol is offered or accepted.
//! Errors: [`Error`]; each knows the code of the close frame that answers it (§7.1.7). After one the connection
//! takes no more input.
//!
//! Masking keys are arguments, since randomness belongs to `net`.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::arithmetic_side_effects,
        clippy::panic
    )
)]

pub mod close;
pub mod conn;
mod error;
pub mod frame;
pub mod handshake;
pub mod mask;
mod utf8;

pub use conn::{Connection, Event, Limits, Progress};
pub use error::Error;

/// Which end of the connection we are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    Server,
    Client,
}
