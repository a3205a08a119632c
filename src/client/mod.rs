//! The Gateway's client, as the command line and the node host use it.
//!
//! In: an endpoint, what to declare, credentials, calls. Out: answers and events. Attacker controls: every byte that
//! the peer sends; an impostor on loopback must not learn more than the credential that the operator sent it.
//! Bounds: message sizes, calls under way, queued events (by count and bytes), every wait.
//! Errors: [`DialError`], [`ConnectError`], [`CallError`].

pub mod call;
pub mod connect;
pub mod credentials;
pub mod dial;
pub mod identity;
#[cfg(feature = "tls")]
mod tls;

#[cfg(test)]
pub(crate) mod stand_in;
#[cfg(test)]
mod tests;

pub use call::{CallError, Client, Ended, Event, Events};
pub use connect::{ConnectError, ConnectOptions, Hello, Sent};
pub use dial::{DialError, Endpoint, WsUrl};
pub use identity::{Identity, IdentityError};
