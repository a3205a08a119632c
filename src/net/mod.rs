//! Sockets: who listens where, TLS on them, one driver between a socket and the WebSocket codec, and the local Tailscale
//! daemon.
//!
//! In: addresses, certificates, and the bytes of peers. Out: accepted sockets, and the events of [`ws_io`].
//! Attacker controls: what peers send and how fast they read. Bounds: `ws::Limits`, `limits::HANDSHAKE_TIMEOUT`.
//! Errors: [`BindError`], [`TlsError`](tls::TlsError), [`WsIoError`], [`TailnetError`].

pub mod bind;
pub mod fingerprint;
pub mod port_owner;
pub mod tailnet;
#[cfg(feature = "tls")]
pub mod tls;
#[cfg(not(feature = "tls"))]
#[path = "tls_absent.rs"]
pub mod tls;
pub mod ws_io;

pub use bind::{Bind, BindError, Doors, ProxyDoor};
pub use fingerprint::Fingerprint;
pub use tailnet::{Tailnet, TailnetError, http_answer};
pub use ws_io::{WsIo, WsIoError};
