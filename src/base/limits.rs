//! Every bound on what an outsider can make grow: its unit and its reason.

use std::time::Duration;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

// Frames and messages.

/// A message before authentication, in bytes. A `connect` request fits several times over.
pub const PREAUTH_MESSAGE_BYTES_MAX: usize = 64 * KIB;
/// A message after authentication, in bytes; told to the client as `policy.maxPayload`.
pub const MESSAGE_BYTES_MAX: usize = 25 * MIB;
/// What one connection's outbox may hold, in bytes; told to the client as `policy.maxBufferedBytes`.
/// A peer that reads slower than this is cut off.
pub const OUTBOX_BYTES_MAX: usize = 50 * MIB;
/// Frames of one WebSocket message; 64 bytes a frame still carry 8 MiB.
pub const FRAGMENTS_MAX: u32 = 128 * 1024;
/// Frames of one WebSocket message that carry nothing: they cost us time and never fill the message's size.
pub const FRAGMENTS_EMPTY_MAX: u32 = 64;
/// Nesting of a JSON frame. The deepest recorded frame has 12 levels.
pub const JSON_DEPTH_MAX: usize = 64;
/// Keys of one JSON object that are checked for duplicates.
pub const JSON_KEYS_MAX: usize = 4096;
/// A request's id, in bytes. It is echoed, so it is not for free; recorded ones have about 40.
pub const RPC_ID_BYTES_MAX: usize = 256;
/// A method's or event's name, in bytes. The longest of the reference has about 50.
pub const RPC_METHOD_BYTES_MAX: usize = 128;

// Time.

/// From the accepted socket to a whole request head, and from the upgrade to `connect`.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// Between two ticks; told to the client as `policy.tickIntervalMs`.
pub const TICK_INTERVAL: Duration = Duration::from_secs(30);
/// Between two server-side pings.
pub const PING_INTERVAL: Duration = Duration::from_secs(25);
/// A peer that has sent nothing, not even a pong, for this long is gone (two ticks).
pub const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// From our close frame to the peer's.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How far a device's signature may be from our clock, either way.
pub const SIGNATURE_SKEW: Duration = Duration::from_secs(120);

// Connections and requests.

/// Connections that have not authenticated, in all.
pub const PREAUTH_CONNECTIONS_MAX: usize = 512;
/// Connections that have not authenticated, per client address.
pub const PREAUTH_CONNECTIONS_PER_CLIENT_MAX: usize = 32;
/// Requests of one connection that are under way at once.
pub const CALLS_PER_CONNECTION_MAX: usize = 256;
/// The head of an HTTP request, in bytes.
pub const HTTP_HEAD_BYTES_MAX: usize = 16 * KIB;
/// Header lines of an HTTP request.
pub const HTTP_HEADERS_MAX: usize = 64;
