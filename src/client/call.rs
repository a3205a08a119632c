//! Calls and events over one connection, which a task of its own drives.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::connect::{self, ConnectError, ConnectOptions, Hello};
use super::dial::{Endpoint, Stream};
use crate::base::limits;
use crate::net::WsIo;
use crate::rpc::{self, ErrorShape, Frame};
use crate::ws;

/// Events that wait for their reader, by count and by bytes.
const EVENTS_QUEUED_MAX: usize = 1024;
const EVENTS_QUEUED_BYTES_MAX: usize = limits::OUTBOX_BYTES_MAX;
/// Close code of our own: the server has been silent for two ticks. The reference's clients use it too.
const CLOSE_SILENT: u16 = 4000;
const CLOSE_NORMAL: u16 = 1000;
const CLOSE_OVERLOADED: u16 = 1008;
/// Characters of the peer's sentences that we repeat.
const SHOWN_CHARS_MAX: usize = 400;

/// How a connection ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The server's close frame.
    Closed { code: Option<u16>, reason: String },
    /// No close frame.
    Lost(String),
    /// The server sent nothing for two ticks.
    Silent { after: Duration },
    /// Events came faster than they were read.
    Overrun,
    /// We closed it.
    ByUs,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { code, reason } => write_closed(f, *code, reason),
            Self::Lost(why) => write!(f, "the connection was lost: {why}"),
            Self::Silent { after } => {
                write!(f, "the gateway was silent for {} s", after.as_secs())
            }
            Self::Overrun => f.write_str("events came faster than they were read"),
            Self::ByUs => f.write_str("the connection was closed"),
        }
    }
}

/// Why a call has no result.
#[derive(Clone, PartialEq, Debug)]
pub enum CallError {
    /// The Gateway said no, and why.
    Refused(Box<ErrorShape>),
    /// The connection ended first. Whether the call took effect is not known.
    Ended(Ended),
    Timeout {
        after: Duration,
    },
    /// Too many calls under way.
    Busy {
        limit: usize,
    },
    /// The request is larger than the Gateway takes.
    TooLarge {
        got: usize,
        limit: usize,
    },
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(error) => f.write_str(&shown(&error.message)),
            Self::Ended(ended) => write!(f, "{ended}"),
            Self::Timeout { after } => {
                write!(f, "no answer within {} s", after.as_secs_f32())
            }
            Self::Busy { limit } => write!(f, "{limit} calls are under way already"),
            Self::TooLarge { got, limit } => {
                write!(f, "the request has {got} bytes, the gateway takes {limit}")
            }
        }
    }
}

impl std::error::Error for CallError {}

/// A peer's sentence, for a terminal: escaped and cut.
pub(crate) fn shown(text: &str) -> String {
    text.chars()
        .take(SHOWN_CHARS_MAX)
        .flat_map(|c| {
            let escaped = is_obeyed(c).then(|| c.escape_unicode());
            let plain = escaped.is_none().then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

/// Whether a terminal does something else with a character than to show it.
pub(crate) fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

pub(super) fn write_closed(
    f: &mut fmt::Formatter<'_>,
    code: Option<u16>,
    reason: &str,
) -> fmt::Result {
    match code {
        Some(code) => write!(f, "the gateway closed the connection with {code}")?,
        None => f.write_str("the gateway closed the connection")?,
    }
    if reason.is_empty() {
        return Ok(());
    }
    write!(f, ": {}", shown(reason))
}

/// An event from the Gateway.
pub struct Event {
    pub name: String,
    pub payload: Option<Box<RawValue>>,
    _held: Held,
}

/// Bytes of the queue's budget, which gets them back when this is dropped.
struct Held {
    bytes: usize,
    budget: Arc<AtomicUsize>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Event {
    /// The payload as a type, if it is one.
    pub fn decode<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_str(self.payload.as_deref()?.get()).ok()
    }
}

/// The events of one connection, in order.
pub struct Events {
    queue: mpsc::Receiver<Event>,
    ended: Arc<OnceLock<Ended>>,
}

impl Events {
    /// The next event, or how the connection ended. Cancel-safe.
    pub async fn next(&mut self) -> Result<Event, Ended> {
        match self.queue.recv().await {
            Some(event) => Ok(event),
            None => Err(how_ended(&self.ended)),
        }
    }
}

fn how_ended(ended: &OnceLock<Ended>) -> Ended {
    ended.get().cloned().unwrap_or(Ended::ByUs)
}

type Reply = oneshot::Sender<Result<Box<RawValue>, CallError>>;

struct Outgoing {
    id: u64,
    text: String,
    waiting: Waiting,
}

struct Waiting {
    reply: Reply,
    /// An `accepted` is not the answer yet: a second one follows under the same id.
    to_end: bool,
}

/// One connection. Clones share it; it closes when the last is dropped.
#[derive(Clone)]
pub struct Client {
    hello: Arc<Hello>,
    outgoing: mpsc::Sender<Outgoing>,
    next_id: Arc<AtomicU64>,
    ended: Arc<OnceLock<Ended>>,
    payload_max: usize,
}

impl Client {
    /// Connects; must be called within a tokio runtime, on which the connection's task then runs.
    pub async fn connect(
        endpoint: &Endpoint,
        options: &ConnectOptions,
    ) -> Result<(Self, Events), ConnectError> {
        let (io, hello) = connect::connect(endpoint, options).await?;
        let (outgoing, requests) = mpsc::channel(limits::CALLS_PER_CONNECTION_MAX);
        let (events, queue) = mpsc::channel(EVENTS_QUEUED_MAX);
        let ended = Arc::new(OnceLock::new());
        let task = Task {
            io,
            requests,
            pending: HashMap::new(),
            events,
            queued_bytes: Arc::default(),
            silence_max: hello.silence_max(),
        };
        let slot = Arc::clone(&ended);
        tokio::spawn(Box::pin(task.run(slot)));
        let payload_max = hello
            .policy
            .max_payload
            .unwrap_or(limits::MESSAGE_BYTES_MAX);
        let client = Self {
            hello: Arc::new(hello),
            outgoing,
            next_id: Arc::new(AtomicU64::new(1)),
            ended: Arc::clone(&ended),
            payload_max,
        };
        Ok((client, Events { queue, ended }))
    }

    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Calls a method and waits for its answer. Dropping the future does not take the call back.
    pub async fn call(
        &self,
        method: &str,
        params: &impl Serialize,
        timeout: Duration,
    ) -> Result<Box<RawValue>, CallError> {
        self.exchange(method, params, timeout, false).await
    }

    /// As `call`, for methods that answer twice: `accepted` at once, and the outcome when it is there.
    pub async fn call_to_end(
        &self,
        method: &str,
        params: &impl Serialize,
        timeout: Duration,
    ) -> Result<Box<RawValue>, CallError> {
        self.exchange(method, params, timeout, true).await
    }

    async fn exchange(
        &self,
        method: &str,
        params: &impl Serialize,
        timeout: Duration,
        to_end: bool,
    ) -> Result<Box<RawValue>, CallError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let text = rpc::encode::request(&id.to_string(), method, params);
        let (got, limit) = (text.len(), self.payload_max);
        if got > limit {
            return Err(CallError::TooLarge { got, limit });
        }
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            self.outgoing
                .send(Outgoing {
                    id,
                    text,
                    waiting: Waiting { reply, to_end },
                })
                .await
                .map_err(|_| CallError::Ended(how_ended(&self.ended)))?;
            answer
                .await
                .unwrap_or_else(|_| Err(CallError::Ended(how_ended(&self.ended))))
        };
        tokio::time::timeout(timeout, exchange)
            .await
            .unwrap_or(Err(CallError::Timeout { after: timeout }))
    }
}

struct Task {
    io: WsIo<Stream>,
    requests: mpsc::Receiver<Outgoing>,
    pending: HashMap<u64, Waiting>,
    events: mpsc::Sender<Event>,
    queued_bytes: Arc<AtomicUsize>,
    silence_max: Duration,
}

impl Task {
    async fn run(mut self, slot: Arc<OnceLock<Ended>>) {
        let ended = self.drive().await;
        // Set before the channels close, so that whoever waits on them finds the reason.
        let ended = slot.get_or_init(|| ended).clone();
        for (_, waiting) in self.pending.drain() {
            let _ = waiting.reply.send(Err(CallError::Ended(ended.clone())));
        }
        self.requests.close();
        while let Ok(late) = self.requests.try_recv() {
            let _ = late
                .waiting
                .reply
                .send(Err(CallError::Ended(ended.clone())));
        }
    }

    async fn drive(&mut self) -> Ended {
        loop {
            let deadline = self.io.heard_at() + self.silence_max;
            tokio::select! {
                received = self.io.receive() => match received {
                    Ok(event) => {
                        if let Some(ended) = self.take(event) {
                            return self.close_if_ours(ended).await;
                        }
                    }
                    Err(error) => return Ended::Lost(error.to_string()),
                },
                request = self.requests.recv() => match request {
                    Some(request) => self.send(request),
                    None => return self.close_if_ours(Ended::ByUs).await,
                },
                () = tokio::time::sleep_until(deadline) => {
                    // Part of a long message may have come meanwhile.
                    if self.io.heard_at() + self.silence_max <= Instant::now() {
                        let ended = Ended::Silent { after: self.silence_max };
                        return self.close_if_ours(ended).await;
                    }
                }
            }
        }
    }

    fn send(&mut self, request: Outgoing) {
        if self.pending.len() >= limits::CALLS_PER_CONNECTION_MAX {
            // Callers that gave up waiting still hold a place.
            self.pending.retain(|_, waiting| !waiting.reply.is_closed());
        }
        if self.pending.len() >= limits::CALLS_PER_CONNECTION_MAX {
            let limit = limits::CALLS_PER_CONNECTION_MAX;
            let _ = request.waiting.reply.send(Err(CallError::Busy { limit }));
            return;
        }
        self.pending.insert(request.id, request.waiting);
        self.io.queue_text_owned(request.text);
    }

    /// Takes one event of the connection in; `Some` ends it.
    fn take(&mut self, event: ws::Event) -> Option<Ended> {
        let text = match event {
            ws::Event::Text(text) => text,
            ws::Event::Binary(_) | ws::Event::Ping(_) | ws::Event::Pong(_) => return None,
            ws::Event::Close { code, reason } => return Some(Ended::Closed { code, reason }),
        };
        match rpc::decode(&text) {
            Ok(Frame::Response(response)) => {
                self.settle(&response);
                None
            }
            Ok(Frame::Event(event)) => self.enqueue(&event),
            Ok(Frame::Request(_)) => None,
            Err(_) => Some(Ended::Lost("the gateway sent a malformed frame".to_owned())),
        }
    }

    fn settle(&mut self, response: &rpc::Response<'_>) {
        let Ok(id) = response.id.parse::<u64>() else {
            return;
        };
        let is_interim = |waiting: &Waiting| waiting.to_end && is_accepted(response);
        if self.pending.get(&id).is_some_and(is_interim) {
            return;
        }
        if let Some(waiting) = self.pending.remove(&id) {
            let _ = waiting.reply.send(answer(response));
        }
    }

    fn enqueue(&mut self, event: &rpc::EventFrame<'_>) -> Option<Ended> {
        let bytes = event.payload.map_or(0, |payload| payload.get().len());
        let queued = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let event = Event {
            name: event.event.to_string(),
            payload: event.payload.map(ToOwned::to_owned),
            _held: Held {
                bytes,
                budget: Arc::clone(&self.queued_bytes),
            },
        };
        if queued.saturating_add(bytes) > EVENTS_QUEUED_BYTES_MAX {
            return Some(Ended::Overrun);
        }
        match self.events.try_send(event) {
            // Nobody listens to events: a command that only calls.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => None,
            Err(mpsc::error::TrySendError::Full(_)) => Some(Ended::Overrun),
        }
    }

    /// Says goodbye where the end is ours; `receive` is bounded by the close timeout.
    async fn close_if_ours(&mut self, ended: Ended) -> Ended {
        let (code, reason) = match &ended {
            Ended::Closed { .. } | Ended::Lost(_) => return ended,
            Ended::ByUs => (CLOSE_NORMAL, ""),
            Ended::Silent { .. } => (CLOSE_SILENT, "tick timeout"),
            Ended::Overrun => (CLOSE_OVERLOADED, "events not read"),
        };
        self.io.close(code, reason);
        while !matches!(
            self.io.receive().await,
            Err(_) | Ok(ws::Event::Close { .. })
        ) {}
        ended
    }
}

fn is_accepted(response: &rpc::Response<'_>) -> bool {
    #[derive(serde::Deserialize)]
    struct Status<'a> {
        #[serde(borrow, default)]
        status: std::borrow::Cow<'a, str>,
    }
    response.ok
        && response
            .payload
            .and_then(|payload| serde_json::from_str::<Status<'_>>(payload.get()).ok())
            .is_some_and(|status| status.status == "accepted")
}

fn answer(response: &rpc::Response<'_>) -> Result<Box<RawValue>, CallError> {
    if response.ok {
        let payload = response.payload.unwrap_or(RawValue::NULL);
        return Ok(payload.to_owned());
    }
    let error = response
        .error
        .clone()
        .unwrap_or_else(|| ErrorShape::unavailable("refused without a reason"));
    Err(CallError::Refused(Box::new(error)))
}
