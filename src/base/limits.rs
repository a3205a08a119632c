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

// Agent.

/// A session key, in bytes; the reference's schema allows 512 characters.
pub const SESSION_KEY_BYTES_MAX: usize = 512;
/// One chat message, in bytes. It is kept in the transcript and in the queue.
pub const CHAT_MESSAGE_BYTES_MAX: usize = 64 * KIB;
/// A run id (the client's idempotency key), in bytes; the reference's schema allows 256 characters.
pub const RUN_ID_BYTES_MAX: usize = 256;
/// Messages that wait behind the running turn of one session.
pub const SESSION_QUEUE_MAX: usize = 16;
/// Sessions whose turn is running or waiting at once, in all.
pub const ACTIVE_SESSIONS_MAX: usize = 64;
/// Finished runs that are remembered for their idempotency keys.
pub const FINISHED_RUNS_MAX: usize = 1024;
/// The text of a finished run that is remembered with it, in bytes; the transcript holds the whole.
pub const FINISHED_TEXT_BYTES_MAX: usize = 4 * KIB;
/// What one turn may say, in bytes. Each delta repeats the text so far, so this bounds the square.
pub const TURN_TEXT_BYTES_MAX: usize = 128 * KIB;
/// Rounds of tool calls in one turn.
pub const TURN_STEPS_MAX: usize = 32;
/// Tool calls that a provider may ask for in one step.
pub const STEP_TOOL_CALLS_MAX: usize = 16;
/// What the chat shows of one output stream of a command, in bytes: its head and its tail.
pub const TOOL_TEXT_BYTES_MAX: usize = 16 * KIB;
/// What one tool call may stream while it runs, in bytes; the rest comes with the result.
pub const TOOL_UPDATES_BYTES_MAX: usize = 64 * KIB;
/// Programs that one `which` may ask for.
pub const WHICH_BINS_MAX: usize = 16;
/// Messages that one history answer may hold.
pub const HISTORY_MESSAGES_MAX: usize = 1000;
