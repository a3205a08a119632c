//! The front door: HTTP heads within bounds, a route, or an upgrade.
//!
//! In: accepted sockets with their listener. Out: one answer, or a session. Attacker controls: every byte of a request.
//! Bounds: `limits::{HTTP_*, HANDSHAKE_TIMEOUT, PREAUTH_*}`. A connection carries one request, so nothing that follows it
//! can be read as another.
//! Errors: refusals with their own status, in this order: `form`, `ingress` (host, attribution, origin), then `auth` by
//! what the route's row in `route` asks for. What stands in no row is for authenticated callers to learn.

mod body;
mod form;
mod respond;
mod route;
mod serve;
#[cfg(test)]
mod tests;
pub mod upgrade;

pub use serve::{Arrival, Front, Listener, accept, serve};
