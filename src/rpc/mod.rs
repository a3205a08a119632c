//! The Gateway protocol's frames: JSON text to typed messages and back (protocol versions 3 and 4).
//!
//! In: the text of one WebSocket message. Out: a `Frame` that borrows from it, and parameters decoded into the types
//! of one method; for the way back, one `String` per frame.
//! Attacker controls: every byte. Bounds: nesting <= `limits::JSON_DEPTH_MAX`, keys of one object <=
//! `limits::JSON_KEYS_MAX`, ids and method names <= `limits::RPC_ID_BYTES_MAX` and `limits::RPC_METHOD_BYTES_MAX`;
//! the caller has bounded the text itself. Relayed payloads stay raw JSON and are never rebuilt as a tree.
//! Errors: `EnvelopeError` for a frame, `ParamsError` for a method's parameters; the caller answers and closes.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::arithmetic_side_effects
    )
)]

pub mod encode;
pub mod envelope;
pub mod error;
pub mod method;
pub mod params;
pub mod scan;
pub mod types;

pub use envelope::{EnvelopeError, EventFrame, Frame, FrameFault, Request, Response, decode};
pub use error::ErrorShape;
pub use method::Method;
pub use params::{ParamsError, decode_params};
pub use scan::{ScanError, scan};

#[cfg(test)]
mod tests;
