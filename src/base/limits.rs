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

// Who may come in.

/// Entries of one forwarded chain. Two proxies in a row are unusual; more than this is an attack or a loop.
pub const FORWARDED_HOPS_MAX: usize = 16;
/// One client, origin or identity header that we read, in bytes.
pub const INGRESS_HEADER_BYTES_MAX: usize = 4 * KIB;
/// Clients whose failed attempts are remembered, per process. The oldest is forgotten first.
pub const LIMITER_ENTRIES_MAX: usize = 4096;
/// Wrong secrets of one client that wait for their late answer. More than one client's pre-auth sockets.
pub const LATE_ANSWERS_PER_CLIENT_MAX: u32 = 64;
/// Wrong secrets that wait for their late answer, in all.
pub const LATE_ANSWERS_MAX: u32 = 1024;
/// Failed attempts of all clients within one window from which on everybody unpaired is slowed down.
pub const GLOBAL_FAILURES_SLOW: u32 = 300;

// Pairing.

/// Paired devices. Only holders of the shared secret, and operators, add to them.
pub const PAIRED_DEVICES_MAX: usize = 4096;
/// Devices that wait for an operator's approval.
pub const PAIRING_REQUESTS_MAX: usize = 64;
/// How long a device's pairing request waits. A node's surface request waits until it is decided.
pub const PAIRING_REQUEST_TTL: Duration = Duration::from_secs(300);
/// Capabilities, and commands, that a node may declare.
pub const NODE_SURFACE_NAMES_MAX: usize = 256;
/// One capability's or command's name, in bytes.
pub const NODE_SURFACE_NAME_BYTES_MAX: usize = 128;
/// An operator's label for a device, in characters.
pub const DEVICE_LABEL_CHARS_MAX: usize = 64;
/// A display name, version or other word that a device says about itself, in characters; the rest is cut.
pub const DEVICE_TEXT_CHARS_MAX: usize = 128;
/// How long a sign-in link works (B1).
pub const SIGN_IN_LINK_TTL: Duration = Duration::from_secs(600);
/// Calls in a row that a session's role or scopes forbid, before it is closed (R7).
pub const UNAUTHORIZED_CALLS_MAX: u32 = 20;
