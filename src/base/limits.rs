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
/// What may wait in an outbox, in bytes, before frames that may be missing (the progress of an invoke) are dropped.
pub const OUTBOX_OFFERED_BYTES_MAX: usize = MIB;
/// Up to where relayed parameters and results may fill an outbox, in bytes. Two whole messages do not fit, so that one
/// caller's cannot end a session; what is left is for all that is not asked whether it fits.
pub const OUTBOX_RELAYED_BYTES_MAX: usize = 48 * MIB;
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

/// From the accepted socket to the end of the TLS handshake, from there to a whole request head, and from the upgrade to
/// `connect`.
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
/// How old the list of this host's own addresses may be: a spoof guard, so seconds; a request a reading would be a toll.
pub const OWN_ADDRESSES_AGE: Duration = Duration::from_secs(2);

/// Between two looks at the shared secret though nobody asks for it, so that sessions of an old one end soon.
pub const SECRET_WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Between two runs of an exec provider for the shared secret (decision 18).
pub const SECRET_EXEC_INTERVAL: Duration = Duration::from_secs(60);

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
/// The body of an HTTP request, in bytes; the reference's default for `/tools/invoke`.
pub const HTTP_BODY_BYTES_MAX: usize = 2 * MIB;
/// For the whole body to arrive.
pub const HTTP_BODY_TIMEOUT: Duration = Duration::from_secs(15);
/// From the accepted socket to the last byte of the one answer that it gets: head, body, a late refusal, a slow reader.
pub const HTTP_EXCHANGE_TIMEOUT: Duration = Duration::from_secs(60);
/// What is still read of a refused request so that its answer arrives, in bytes: a body that is a little too large.
pub const HTTP_DRAIN_BYTES_MAX: usize = 4 * MIB;
/// For how long that is read.
pub const HTTP_LINGER: Duration = Duration::from_secs(2);
/// What a request says of itself in a log line, in bytes before escaping.
pub const HTTP_LOGGED_BYTES_MAX: usize = 200;
/// Lines that the log gets within a second for refusals of one kind; more are counted. People read tens, not thousands.
pub const REFUSALS_LOGGED_PER_SECOND: u32 = 10;

// Nodes.

/// Invocations under way in the whole Gateway.
pub const INVOKES_MAX: usize = 4096;
/// Invocations that ended without a result and whose late result is still recognised: all that a stop ends at once.
pub const INVOKES_FINISHED_MAX: usize = INVOKES_MAX;
/// How long a node may take when the caller names no time, in milliseconds.
pub const INVOKE_TIMEOUT_MS_DEFAULT: u64 = 30_000;
/// The longest time a caller may name, in milliseconds (a day).
pub const INVOKE_TIMEOUT_MS_MAX: u64 = 86_400_000;
/// Callers that wait for one request under one idempotency key.
pub const INVOKE_WAITERS_MAX: usize = 64;
/// An idempotency key, and the command under it, in bytes: both are kept for a day.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 256;

// Who may come in.

/// Entries of one forwarded chain. Two proxies in a row are unusual; more than this is an attack or a loop.
pub const FORWARDED_HOPS_MAX: usize = 16;
/// One client, origin or identity header that we read, in bytes.
pub const INGRESS_HEADER_BYTES_MAX: usize = 4 * KIB;
/// The scheme of a web origin, in bytes: the log shows it whole. `safari-web-extension` has 20.
pub const ORIGIN_SCHEME_BYTES_MAX: usize = 40;

// The local Tailscale daemon.

/// One question to it, from the wait for a place to the last byte. It answers from memory, in milliseconds.
pub const TAILNET_TIMEOUT: Duration = Duration::from_secs(3);
/// Questions to it at once; more wait.
pub const TAILNET_QUESTIONS_MAX: usize = 8;
/// One answer, in bytes. A node with many capabilities has a few thousand.
pub const TAILNET_ANSWER_BYTES_MAX: u64 = 256 * 1024;
/// How long a login that it named is believed without asking again: a page that reconnects does not burden it, and who has
/// left the tailnet is not admitted longer than this.
pub const TAILNET_ANSWER_AGE: Duration = Duration::from_secs(5);
/// Addresses whose answers are remembered; whoever can reach the listener names them.
pub const TAILNET_ANSWERS_MAX: usize = 256;
/// How often it is asked for this host's name, which changes when somebody renames the machine.
pub const TAILNET_NAME_INTERVAL: Duration = Duration::from_secs(300);
/// How often while it does not answer: it may be started after the Gateway.
pub const TAILNET_NAME_RETRY: Duration = Duration::from_secs(10);

// Callers.

/// Calls without the right role or scope before the session is ended.
pub const UNAUTHORIZED_CALLS_MAX: u32 = 20;

// Pairing.

/// Devices that may be paired.
pub const DEVICES_MAX: usize = 4096;
/// Ids of removed and rejected devices that are remembered, so that no address lets them in again; the oldest is forgotten.
pub const TURNED_AWAY_MAX: usize = 4096;
/// Device requests that may wait for an operator; the oldest gives way.
pub const PAIRING_REQUESTS_MAX: usize = 64;
/// How long a device request waits, in milliseconds (an hour).
pub const PAIRING_REQUEST_TTL_MS: u64 = 3_600_000;
/// Characters of a name that an operator gives to a device or node.
pub const NAME_CHARS_MAX: usize = 64;
/// Clients whose failed attempts are remembered, per process. The oldest is forgotten first.
pub const LIMITER_ENTRIES_MAX: usize = 4096;
/// Wrong secrets of one client that wait for their late answer. More than one client's pre-auth sockets.
pub const LATE_ANSWERS_PER_CLIENT_MAX: u32 = 64;
/// Wrong secrets of one class that wait for their late answer, from which on no stranger's is compared. Paired devices and
/// programs of this host each have the bound above.
pub const LATE_ANSWERS_MAX: u32 = 1024;
/// Failed attempts of all clients within one window from which on everybody unpaired is slowed down.
pub const GLOBAL_FAILURES_SLOW: u32 = 300;

/// A display name, version or other word that a device says about itself, in characters; the rest is cut.
pub const DEVICE_TEXT_CHARS_MAX: usize = 128;
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
/// Nodes that have gone and are still shown in the presence list.
pub const PRESENCE_GONE_MAX: usize = 64;
/// Single-use sign-in links that may be open at once.
pub const SIGN_IN_LINKS_MAX: usize = 16;
/// Capabilities that a node may declare.
pub const NODE_CAPS_MAX: usize = 64;
/// Commands that a node may declare.
pub const NODE_COMMANDS_MAX: usize = 256;
/// The payload of an event that a node reports by itself, in bytes.
pub const NODE_EVENT_BYTES_MAX: usize = 256 * KIB;
/// Events and pieces of progress that one session of a node may report within `NODE_EVENTS_WINDOW`. The official node
/// reports two for each command; ours, of a command that prints all the time, soon no more than one a second.
pub const NODE_EVENTS_MAX: u32 = 1200;
/// The same in bytes.
pub const NODE_EVENTS_BYTES_MAX: usize = 16 * MIB;
pub const NODE_EVENTS_WINDOW: Duration = Duration::from_secs(60);
/// One piece of progress, in bytes, as the reference has it.
pub const NODE_PROGRESS_BYTES_MAX: usize = 16 * KIB;

// Execution.

/// What one command may say on stdout and stderr together, in bytes; the rest is read and dropped.
pub const EXEC_OUTPUT_BYTES_MAX: usize = 200_000;
/// Commands of one node that run at once.
pub const EXEC_RUNS_MAX: usize = 16;
/// How long output is still read once the command itself has ended: a process that left its group may hold the pipe.
pub const EXEC_DRAIN_GRACE: Duration = Duration::from_secs(1);
/// Arguments of one command.
pub const EXEC_ARGS_MAX: usize = 4096;
/// All arguments of one command, in bytes. Linux itself takes about twice this.
pub const EXEC_ARGV_BYTES_MAX: usize = MIB;
/// Environment variables that one request may set.
pub const EXEC_ENV_OVERRIDES_MAX: usize = 64;
/// Names and values of those variables together, in bytes.
pub const EXEC_ENV_BYTES_MAX: usize = 32 * KIB;
/// Names that one `system.which` may ask for.
pub const EXEC_WHICH_NAMES_MAX: usize = 64;
/// Files among an interpreter's arguments whose content an approval can be bound to. They
/// are hashed twice, and a command line that people can judge names fewer.
pub const EXEC_OPERANDS_MAX: usize = 64;
/// Names in a command that are looked up as files, each once, for whoever may ask for a plan. A script on a command line
/// has some hundred words.
pub const EXEC_OPERAND_NAMES_MAX: usize = 1024;
/// Files that one pattern in a shell's text may stand for and still be bound; a pattern for more is only warned about.
pub const EXEC_GLOB_FILES_MAX: usize = 32;
/// Directory entries that are held against the patterns of one command.
pub const EXEC_GLOB_ENTRIES_MAX: usize = 4096;
/// Texts within texts (`sh -c "sh -c '...'"`) whose words are looked at.
pub const EXEC_TEXTS_MAX: usize = 4;
/// The most content of programs and scripts that an approval can be bound to, in bytes.
pub const EXEC_OPERAND_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// One answer of a browser's DevTools endpoint, in bytes. A screenshot has a few MiB as text; what the Gateway takes from a
/// node (`MESSAGE_BYTES_MAX`) still holds it as text within text.
pub const BROWSER_ANSWER_BYTES_MAX: usize = 8 * MIB;
/// How long a browser may take when the caller names no time, in milliseconds; the reference's default.
pub const BROWSER_TIMEOUT_MS_DEFAULT: u64 = 20_000;
/// A node's `exec-approvals.json`, in bytes. It is read for each command.
pub const EXEC_POLICY_BYTES_MAX: usize = 256 * KIB;
/// Rules of all allowlists in that file.
pub const EXEC_RULES_MAX: usize = 1024;
/// A rule's pattern, and a path that it is held against, in bytes (Linux's longest path).
pub const EXEC_RULE_BYTES_MAX: usize = 4 * KIB;
/// Approvals that are kept, whether they wait, are decided or are over. What is over gives way first.
pub const APPROVALS_MAX: usize = 256;
/// Their plans and variables together, in bytes as they came. A node or a client chooses how long each is.
pub const APPROVALS_BYTES_MAX: usize = 64 * MIB;
/// How long a request for an approval waits when the caller names no time, in milliseconds (five minutes).
pub const APPROVAL_TTL_MS_DEFAULT: u64 = 300_000;
/// The longest that it may wait, in milliseconds (half an hour, the reference's default).
pub const APPROVAL_TTL_MS_MAX: u64 = 1_800_000;
/// How long to wait before accepting again when a socket could not be had.
pub const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How long a sign-in link works (B1).
pub const SIGN_IN_LINK_TTL: Duration = Duration::from_secs(600);
