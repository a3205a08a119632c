//! One socket's task around the WebSocket codec and the RPC codec.
//!
//! In: an upgraded socket and whose it is. Out: frames, in the order in which effects happened.
//! Attacker controls: every frame and its timing. Bounds: `limits::HANDSHAKE_TIMEOUT`,
//! `limits::PREAUTH_MESSAGE_BYTES_MAX`, `limits::CALLS_PER_CONNECTION_MAX`, `limits::SILENCE_TIMEOUT`.
//! Errors: each ends the session with a close code that says why (RFC 6455 §7.4).

mod conn;
mod decision;
mod door;
mod handshake;
mod preauth;
#[cfg(test)]
mod tests;

pub use conn::run;
pub(crate) use decision::Decision;
pub use door::{Door, Rules, SecretSource, WhoisSource};
pub(crate) use door::{address, path_of};
pub use preauth::{Eviction, PreauthGate, PreauthPermit};
