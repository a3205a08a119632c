//! The agent's front: accepts messages, gives each session one turn at a time, and remembers how runs ended.
//!
//! One lock guards the tables; it is held while a message is written to the transcript, so that the order of the
//! queue is the order of the transcript and an acknowledged message is a written one.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ring::digest;
use tokio::sync::watch;

use crate::base::limits;

use super::event::{AbortReason, Entrance, ErrorKind, Event, EventKind, EventSink, RunFacts};
use super::providers::{Builtin, Provider};
use super::session_key::SessionKey;
use super::tools::{Requester, Tools};
use super::transcript::{Body, Entry, Transcript, TranscriptError};
use super::turn::{Outcome, Status, Task, Turn};

/// What an agent is made of.
pub struct Settings {
    pub tools: Arc<dyn Tools>,
    pub transcript: Arc<dyn Transcript>,
    pub sink: Arc<EventSink>,
    /// The model that answers what is no command; none yet.
    pub model: Option<Arc<dyn Provider>>,
    /// The longest that one turn may take.
    pub turn_timeout: Duration,
    /// The longest that one command may run.
    pub exec_timeout: Duration,
    /// The node of commands that name none, by id, beginning of the id, or name.
    pub exec_node: Option<String>,
    /// Wall time in unix milliseconds.
    pub now_ms: fn() -> u64,
}

/// A message for a session.
#[derive(Clone, Debug)]
pub struct TurnRequest {
    pub session_key: SessionKey,
    pub message: String,
    /// The run's id, too: the wire's `runId` is the client's idempotency key.
    pub idempotency_key: String,
    pub requester: Requester,
    /// The requester typed the message; false for one that is relayed from elsewhere (`systemInputProvenance`).
    pub typed: bool,
    /// False when the client asks that a leading `/` be read as text (`suppressCommandInterpretation`).
    pub commands: bool,
    pub entrance: Entrance,
    /// A shorter limit than the agent's own.
    pub timeout: Option<Duration>,
}

/// A message that was accepted, now or before.
#[derive(Debug)]
pub struct Accepted {
    pub run_id: String,
    pub state: RunState,
    pub accepted_at_ms: u64,
    /// The message's place in the transcript; absent when it was accepted before.
    pub message_seq: Option<u64>,
    /// Resolves when the run ends.
    pub finish: Finish,
}

/// What a run is doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RunState {
    /// Its turn begins now, or waits for the turns before it.
    Started,
    /// The same message under the same key is being worked on.
    InFlight,
    /// The same message under the same key was worked on, and this came of it.
    Finished(Outcome),
}

/// Waits for the end of a run.
#[derive(Clone, Debug)]
pub struct Finish(watch::Receiver<Option<Outcome>>);

impl Finish {
    /// The run's outcome; `None` if the agent went away first.
    pub async fn wait(mut self) -> Option<Outcome> {
        let outcome = self.0.wait_for(Option::is_some).await.ok()?;
        outcome.clone()
    }
}

/// Why a message was not accepted. Nothing of it was kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SendRefusal {
    EmptyMessage,
    MessageTooLong {
        got: usize,
        limit: usize,
    },
    RunId {
        limit: usize,
    },
    /// The key was used for another message of this session.
    KeyReused,
    /// The message was accepted before the Gateway restarted, or so long ago that its end is forgotten. It is not
    /// run a second time; the session's history shows what came of it.
    AcceptedBefore,
    QueueFull {
        waiting: usize,
        limit: usize,
    },
    TooManySessions {
        active: usize,
        limit: usize,
    },
    NotRecorded,
    Stopping,
}

/// The run that a session is working on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InFlight {
    pub run_id: String,
    /// What it has said so far.
    pub text: String,
    pub accepted_at_ms: u64,
}

/// The agent. Cloning gives another handle on the same one.
#[derive(Clone)]
pub struct Agent(Arc<Inner>);

/// What a turn needs.
pub(super) struct Parts {
    pub(super) tools: Arc<dyn Tools>,
    pub(super) transcript: Arc<dyn Transcript>,
    pub(super) sink: Arc<EventSink>,
    pub(super) builtin: Arc<dyn Provider>,
    pub(super) model: Option<Arc<dyn Provider>>,
    pub(super) turn_timeout: Duration,
    pub(super) exec_timeout: Duration,
    pub(super) exec_node: Mutex<Option<String>>,
    pub(super) now_ms: fn() -> u64,
    texts: Mutex<HashMap<SessionKey, String>>,
}

struct Inner {
    parts: Arc<Parts>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sessions: HashMap<SessionKey, Lane>,
    /// Every run that is known, by session and key.
    runs: HashMap<RunKey, Run>,
    /// Finished runs, oldest first.
    finished: VecDeque<RunKey>,
    stopping: bool,
}

type RunKey = (SessionKey, String);

/// One session's queue.
#[derive(Default)]
struct Lane {
    running: Option<String>,
    waiting: VecDeque<Task>,
}

struct Run {
    message_digest: digest::Digest,
    accepted_at_ms: u64,
    abort: watch::Sender<Option<AbortReason>>,
    finish: watch::Sender<Option<Outcome>>,
}

impl Agent {
    /// Where commands run that name no node, from the next one on.
    pub fn set_exec_node(&self, node: Option<String>) {
        let held = self.0.parts.exec_node.lock();
        *held.unwrap_or_else(PoisonError::into_inner) = node;
    }

    pub fn new(settings: Settings) -> Self {
        let parts = Parts {
            tools: settings.tools,
            transcript: settings.transcript,
            sink: settings.sink,
            builtin: Arc::new(Builtin),
            model: settings.model,
            turn_timeout: settings.turn_timeout,
            exec_timeout: settings.exec_timeout,
            exec_node: Mutex::new(settings.exec_node),
            now_ms: settings.now_ms,
            texts: Mutex::default(),
        };
        Self(Arc::new(Inner {
            parts: Arc::new(parts),
            state: Mutex::default(),
        }))
    }

    /// Accepts a message: writes it down, then queues its turn. Must be called within the runtime.
    pub fn send(&self, request: TurnRequest) -> Result<Accepted, SendRefusal> {
        check(&request)?;
        let digest = digest::digest(&digest::SHA256, request.message.as_bytes());
        let key = (request.session_key.clone(), request.idempotency_key.clone());
        let mut state = self.0.state();
        if let Some(run) = state.runs.get(&key) {
            return accepted_before(&key.1, run, &digest);
        }
        state.check_room(&request.session_key)?;

        let now_ms = (self.0.parts.now_ms)();
        let (session_id, message_seq) = self.write_down(&request, now_ms)?;
        let (finish, finished) = watch::channel(None);
        let run = Run {
            message_digest: digest,
            accepted_at_ms: now_ms,
            abort: watch::channel(None).0,
            finish,
        };
        state.runs.insert(key, run);
        let run_id = request.idempotency_key.clone();
        let session_key = request.session_key.clone();
        // A session's worker lives exactly as long as its lane: `State::next` removes both at once.
        let starts_worker = !state.sessions.contains_key(&session_key);
        let lane = state.sessions.entry(session_key.clone()).or_default();
        lane.waiting.push_back(self.task(request, session_id));
        drop(state);
        if starts_worker {
            tokio::spawn(work(Arc::clone(&self.0), session_key));
        }
        Ok(Accepted {
            run_id,
            state: RunState::Started,
            accepted_at_ms: now_ms,
            message_seq: Some(message_seq),
            finish: Finish(finished),
        })
    }

    /// Stops a run, or all runs of a session; returns the ids of those that were stopped.
    pub fn abort(&self, session_key: &SessionKey, run_id: Option<&str>) -> Vec<String> {
        self.stop(session_key, run_id, AbortReason::Requested)
    }

    /// Stops everything and accepts nothing more.
    pub fn shut_down(&self) {
        let mut state = self.0.state();
        state.stopping = true;
        let sessions: Vec<SessionKey> = state.sessions.keys().cloned().collect();
        drop(state);
        for session_key in sessions {
            self.stop(&session_key, None, AbortReason::Stopping);
        }
    }

    /// A run by its id: under way, or remembered. With `session_key`, only that session's.
    pub fn find(&self, run_id: &str, session_key: Option<&SessionKey>) -> Option<Finish> {
        let state = self.0.state();
        let newest = state
            .runs
            .iter()
            .filter(|((session, id), _)| {
                id == run_id && session_key.is_none_or(|key| key == session)
            })
            .max_by_key(|(_, run)| run.accepted_at_ms);
        newest.map(|(_, run)| Finish(run.finish.subscribe()))
    }

    /// What a session is working on.
    pub fn in_flight(&self, session_key: &SessionKey) -> Option<InFlight> {
        let state = self.0.state();
        let run_id = state.sessions.get(session_key)?.running.clone()?;
        let run = state.runs.get(&(session_key.clone(), run_id.clone()))?;
        let text = self
            .0
            .parts
            .texts()
            .get(session_key)
            .cloned()
            .unwrap_or_default();
        Some(InFlight {
            run_id,
            text,
            accepted_at_ms: run.accepted_at_ms,
        })
    }

    /// Whether words that are no command will be answered.
    pub fn has_model(&self) -> bool {
        self.0.parts.model.is_some()
    }

    pub fn transcript(&self) -> &dyn Transcript {
        &*self.0.parts.transcript
    }

    fn write_down(&self, request: &TurnRequest, now_ms: u64) -> Result<(String, u64), SendRefusal> {
        let entry = Entry {
            run_id: request.idempotency_key.clone(),
            timestamp_ms: now_ms,
            body: Body::User {
                text: request.message.clone(),
                idempotency_key: request.idempotency_key.clone(),
            },
        };
        let transcript = &self.0.parts.transcript;
        match transcript.has_message(&request.session_key, &request.idempotency_key) {
            Ok(false) => {}
            Ok(true) => return Err(SendRefusal::AcceptedBefore),
            Err(error) => return Err(not_recorded(request, &error)),
        }
        let written = transcript
            .open(&request.session_key, now_ms)
            .and_then(|session| {
                Ok((
                    session.session_id,
                    transcript.append(&request.session_key, &entry)?.seq,
                ))
            });
        written.map_err(|error| not_recorded(request, &error))
    }

    fn task(&self, request: TurnRequest, session_id: String) -> Task {
        let own = self.0.parts.turn_timeout;
        Task {
            facts: Arc::new(RunFacts {
                run_id: request.idempotency_key,
                session_key: request.session_key,
                session_id,
                entry: request.entrance,
            }),
            message: request.message,
            requester: request.requester,
            typed: request.typed,
            commands: request.commands,
            timeout: request
                .timeout
                .filter(|timeout| !timeout.is_zero())
                .map_or(own, |timeout| timeout.min(own)),
        }
    }

    fn stop(
        &self,
        session_key: &SessionKey,
        run_id: Option<&str>,
        reason: AbortReason,
    ) -> Vec<String> {
        let state = self.0.state();
        let Some(lane) = state.sessions.get(session_key) else {
            return Vec::new();
        };
        // The running turn stops itself; those that wait are ended by the session's worker, in their order.
        let ids = lane
            .running
            .iter()
            .chain(lane.waiting.iter().map(|task| &task.facts.run_id));
        ids.filter(|id| run_id.is_none_or(|wanted| wanted == *id))
            .filter(|id| {
                let run = state.runs.get(&(session_key.clone(), (*id).clone()));
                run.is_some_and(|run| run.abort.send_replace(Some(reason)).is_none())
            })
            .cloned()
            .collect()
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Agent(..)")
    }
}

impl Parts {
    /// Remembers what a run has said so far, for those who come later.
    pub(super) fn progress(&self, facts: &RunFacts, text: &str) {
        self.texts()
            .insert(facts.session_key.clone(), text.to_owned());
    }

    pub(super) fn exec_node(&self) -> Option<String> {
        let node = self.exec_node.lock();
        node.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn texts(&self) -> MutexGuard<'_, HashMap<SessionKey, String>> {
        self.texts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check_room(&self, session_key: &SessionKey) -> Result<(), SendRefusal> {
        if self.stopping {
            return Err(SendRefusal::Stopping);
        }
        match self.sessions.get(session_key) {
            Some(lane) if lane.waiting.len() >= limits::SESSION_QUEUE_MAX => {
                Err(SendRefusal::QueueFull {
                    waiting: lane.waiting.len(),
                    limit: limits::SESSION_QUEUE_MAX,
                })
            }
            None if self.sessions.len() >= limits::ACTIVE_SESSIONS_MAX => {
                Err(SendRefusal::TooManySessions {
                    active: self.sessions.len(),
                    limit: limits::ACTIVE_SESSIONS_MAX,
                })
            }
            _ => Ok(()),
        }
    }

    /// The next turn of a session; the session is forgotten when there is none.
    fn next(
        &mut self,
        session_key: &SessionKey,
    ) -> Option<(Task, watch::Receiver<Option<AbortReason>>)> {
        let lane = self.sessions.get_mut(session_key)?;
        lane.running = None;
        while let Some(task) = lane.waiting.pop_front() {
            let run_id = task.facts.run_id.clone();
            if let Some(run) = self.runs.get(&(session_key.clone(), run_id.clone())) {
                lane.running = Some(run_id);
                return Some((task, run.abort.subscribe()));
            }
        }
        self.sessions.remove(session_key);
        None
    }

    /// Tells those who wait, and remembers the end without a text that is too long.
    fn finished(&mut self, key: RunKey, mut outcome: Outcome) {
        let Some(run) = self.runs.get(&key) else {
            return;
        };
        if outcome.text.len() > limits::FINISHED_TEXT_BYTES_MAX && run.finish.receiver_count() == 0
        {
            outcome.text = String::new();
        }
        run.finish.send_replace(Some(outcome));
        if let Some(lane) = self.sessions.get_mut(&key.0) {
            lane.running = None;
        }
        self.finished.push_back(key);
        while self.finished.len() > limits::FINISHED_RUNS_MAX {
            if let Some(oldest) = self.finished.pop_front() {
                self.runs.remove(&oldest);
            }
        }
    }
}

/// Works off one session's queue, one turn after the other.
async fn work(inner: Arc<Inner>, session_key: SessionKey) {
    loop {
        let Some((task, abort)) = inner.state().next(&session_key) else {
            return;
        };
        let facts = Arc::clone(&task.facts);
        let started_at_ms = (inner.parts.now_ms)();
        let turn = Turn::new(Arc::clone(&inner.parts), task);
        let reason = *abort.borrow();
        // In a task of its own, so that a panic in a provider or a tool ends this turn and not the session.
        let ended = match reason {
            Some(reason) => Ok(turn.never_ran(reason)),
            None => tokio::spawn(turn.run(abort)).await,
        };
        let outcome = ended.unwrap_or_else(|_| broken(&inner.parts, &facts, started_at_ms));
        inner.parts.texts().remove(&session_key);
        inner
            .state()
            .finished((session_key.clone(), facts.run_id.clone()), outcome);
    }
}

/// The end of a turn whose task panicked.
fn broken(parts: &Parts, facts: &Arc<RunFacts>, started_at_ms: u64) -> Outcome {
    tracing::error!(run = %facts.run_id, "turn panicked");
    let message = "the turn failed inside the Gateway; its log says where".to_owned();
    let ended_at_ms = (parts.now_ms)();
    (parts.sink)(Event {
        run: Arc::clone(facts),
        // The turn's own count is lost with it; a terminal event is taken whatever its number.
        seq: u64::from(u32::MAX),
        at_ms: ended_at_ms,
        kind: EventKind::Error {
            message: message.clone(),
            kind: ErrorKind::Unknown,
            started_at_ms,
        },
    });
    Outcome {
        status: Status::Error,
        text: String::new(),
        error: Some(message),
        tools_used: Vec::new(),
        refused: None,
        started_at_ms,
        ended_at_ms,
    }
}

fn check(request: &TurnRequest) -> Result<(), SendRefusal> {
    if request.message.trim().is_empty() {
        return Err(SendRefusal::EmptyMessage);
    }
    if request.message.len() > limits::CHAT_MESSAGE_BYTES_MAX {
        return Err(SendRefusal::MessageTooLong {
            got: request.message.len(),
            limit: limits::CHAT_MESSAGE_BYTES_MAX,
        });
    }
    let key = &request.idempotency_key;
    let well_formed = !key.trim().is_empty()
        && key.len() <= limits::RUN_ID_BYTES_MAX
        && !key.chars().any(char::is_control);
    if well_formed {
        Ok(())
    } else {
        Err(SendRefusal::RunId {
            limit: limits::RUN_ID_BYTES_MAX,
        })
    }
}

fn not_recorded(request: &TurnRequest, error: &TranscriptError) -> SendRefusal {
    tracing::error!(run = %request.idempotency_key, detail = %error.detail, "message not recorded");
    SendRefusal::NotRecorded
}

fn accepted_before(
    run_id: &str,
    run: &Run,
    digest: &digest::Digest,
) -> Result<Accepted, SendRefusal> {
    if run.message_digest.as_ref() != digest.as_ref() {
        return Err(SendRefusal::KeyReused);
    }
    let finish = run.finish.subscribe();
    let state = match &*finish.borrow() {
        Some(outcome) => RunState::Finished(outcome.clone()),
        None => RunState::InFlight,
    };
    Ok(Accepted {
        run_id: run_id.to_owned(),
        state,
        accepted_at_ms: run.accepted_at_ms,
        message_seq: None,
        finish: Finish(finish),
    })
}

impl SendRefusal {
    /// The wire's `error.code`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::EmptyMessage
            | Self::MessageTooLong { .. }
            | Self::RunId { .. }
            | Self::KeyReused
            | Self::AcceptedBefore => "INVALID_REQUEST",
            Self::QueueFull { .. }
            | Self::TooManySessions { .. }
            | Self::NotRecorded
            | Self::Stopping => "UNAVAILABLE",
        }
    }

    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        self.code() == "UNAVAILABLE"
    }
}

impl fmt::Display for SendRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyMessage => f.write_str("the message is empty"),
            Self::MessageTooLong { got, limit } => {
                write!(f, "the message has {got} bytes, at most {limit}")
            }
            Self::RunId { limit } => {
                write!(
                    f,
                    "idempotencyKey must have 1 to {limit} bytes and no control character"
                )
            }
            Self::KeyReused => {
                f.write_str("idempotencyKey was used for another message of this session")
            }
            Self::AcceptedBefore => f.write_str(
                "this message was accepted before and is not run again; the session's history shows what came of it",
            ),
            Self::QueueFull { waiting, limit } => {
                write!(
                    f,
                    "{waiting} messages wait in this session, at most {limit}"
                )
            }
            Self::TooManySessions { active, limit } => {
                write!(f, "{active} sessions are at work, at most {limit}")
            }
            Self::NotRecorded => {
                f.write_str("the message could not be written down and was not accepted")
            }
            Self::Stopping => f.write_str("the Gateway is stopping"),
        }
    }
}
