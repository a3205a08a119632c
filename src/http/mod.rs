//! The front door: HTTP heads within bounds, a route, or an upgrade.
//!
//! In: accepted sockets with their listener. Out: answers, or sessions. Attacker controls: every byte of a request.
//! Bounds: `limits::{HTTP_HEAD_BYTES_MAX, HTTP_HEADERS_MAX, HANDSHAKE_TIMEOUT, PREAUTH_*}`.
//! Errors: refusals with their own status; `ingress` decides before any route does.

mod respond;
mod route;
mod serve;
pub mod upgrade;

pub use serve::{Arrival, Front, Listener, accept, serve};
