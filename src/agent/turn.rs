//! One turn: a message, the provider's steps, the tool calls between them, and one end.
//!
//! The turn runs in its own task and is the only one that emits its run's events, so their order is the order in
//! which things happened. Whatever ends it early (an abort, its time limit) drops the future of the step under way,
//! which cancels the tool call in it.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::base::limits;
use crate::nodes::{Category, Dispatched};

use super::command;
use super::event::{AbortReason, ErrorKind, Event, EventKind, RunFacts};
use super::providers::{Provider, Say, Step, StepInput, TurnItem};
use super::render;
use super::run::Parts;
use super::tools::{
    self, CallContext, CallOrigin, ExecCall, ExecOutcome, Node, Requester, ToolRefusal, Updates,
    WhichCall, WhichOutcome,
};
use super::transcript::{Body, Entry, Stored, ToolCall, ToolResult};

/// Between two deltas, or two pieces of a command's output: what comes sooner is sent together.
const PAUSE: Duration = Duration::from_millis(50);
/// Deltas that a provider may be ahead of the turn.
const DELTAS_AHEAD_MAX: usize = 64;

/// What a turn is about.
pub(super) struct Task {
    pub(super) facts: Arc<RunFacts>,
    pub(super) message: String,
    pub(super) requester: Requester,
    pub(super) typed: bool,
    pub(super) commands: bool,
    pub(super) timeout: Duration,
}

/// How a run ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    pub status: Status,
    /// What was said, in full for those who waited from the start; empty for one remembered run with a long text.
    pub text: String,
    /// Why it failed or was stopped: a public sentence.
    pub error: Option<String>,
    /// The tools whose calls succeeded.
    pub tools_used: Vec<String>,
    /// The latest tool call, if it was refused or failed: the details of its result.
    pub refused: Option<Value>,
    pub started_at_ms: u64,
    pub ended_at_ms: u64,
}

/// How a run ended, in a word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    Ok,
    Error,
    TimedOut,
    Aborted,
}

/// Why a turn stops.
enum End {
    Done,
    Failed { message: String, kind: ErrorKind },
    Aborted(AbortReason),
}

pub(super) struct Turn {
    parts: Arc<Parts>,
    task: Task,
    provider: Arc<dyn Provider>,
    origin: CallOrigin,
    seq: u64,
    started_at_ms: u64,
    text: String,
    items: Vec<TurnItem>,
    /// The call under way, so that an abort can close it.
    open_call: Option<ToolCall>,
    tools_used: Vec<String>,
    refused: Option<Value>,
}

impl Turn {
    /// Only what the built-in agent takes from a message that the requester typed counts as typed: a model's tool
    /// call never does, whatever the message said.
    pub(super) fn new(parts: Arc<Parts>, task: Task) -> Self {
        let is_command =
            task.commands && !matches!(command::parse(&task.message), Ok(command::Command::Text));
        let (provider, built_in) = match &parts.model {
            Some(model) if !is_command => (Arc::clone(model), false),
            _ => (Arc::clone(&parts.builtin), true),
        };
        let origin = if built_in && task.typed {
            CallOrigin::Typed
        } else {
            CallOrigin::Derived
        };
        Self {
            started_at_ms: (parts.now_ms)(),
            parts,
            task,
            provider,
            origin,
            seq: 0,
            text: String::new(),
            items: Vec::new(),
            open_call: None,
            tools_used: Vec::new(),
            refused: None,
        }
    }

    /// Runs the turn to its one end.
    pub(super) async fn run(mut self, mut abort: watch::Receiver<Option<AbortReason>>) -> Outcome {
        self.emit(EventKind::Started);
        let timeout = self.task.timeout;
        let end = tokio::select! {
            biased;
            reason = aborted(&mut abort) => End::Aborted(reason),
            () = tokio::time::sleep(timeout) => End::Failed {
                message: format!(
                    "the turn took longer than {} s and was stopped; a command that it had started may still have had effects",
                    timeout.as_secs()
                ),
                kind: ErrorKind::Timeout,
            },
            end = self.drive() => end,
        };
        self.finish(end)
    }

    /// The end of a message that never had its turn.
    pub(super) fn never_ran(mut self, reason: AbortReason) -> Outcome {
        self.emit(EventKind::Started);
        self.finish(End::Aborted(reason))
    }

    async fn drive(&mut self) -> End {
        let (provider, model) = self.names();
        self.emit(EventKind::Model { provider, model });
        let wanted = self.provider.history_entries_max();
        let history = match self.history(wanted) {
            Ok(history) => history,
            Err(end) => return end,
        };
        let nodes = self.parts.tools.nodes(&self.task.requester).await;
        for _ in 0..limits::TURN_STEPS_MAX {
            let step = match self.step(&history, &nodes).await {
                Ok(step) => step,
                Err(end) => return end,
            };
            if step.tool_calls.is_empty() {
                return End::Done;
            }
            if step.tool_calls.len() > limits::STEP_TOOL_CALLS_MAX {
                return failed(format!(
                    "the model asked for {} tool calls at once, at most {} are carried out",
                    step.tool_calls.len(),
                    limits::STEP_TOOL_CALLS_MAX
                ));
            }
            for call in step.tool_calls {
                if let Err(end) = self.call(call).await {
                    return end;
                }
            }
        }
        failed(format!(
            "the turn reached its limit of {} rounds of tool calls",
            limits::TURN_STEPS_MAX
        ))
    }

    fn history(&self, wanted: usize) -> Result<Vec<Stored>, End> {
        if wanted == 0 {
            return Ok(Vec::new());
        }
        // The newest entries are this turn's own message and, perhaps, messages that wait behind it.
        let page = self
            .parts
            .transcript
            .page(&self.task.facts.session_key, wanted, 0);
        let mut entries = page.map_err(|error| self.unreadable(&error))?.entries;
        let own = entries
            .iter()
            .rposition(|stored| stored.entry.run_id == self.task.facts.run_id);
        entries.truncate(own.unwrap_or(entries.len()));
        Ok(entries)
    }

    /// One step of the provider; its words become deltas as they come.
    async fn step(
        &mut self,
        history: &[Stored],
        nodes: &Result<Vec<Node>, ToolRefusal>,
    ) -> Result<Step, End> {
        let provider = Arc::clone(&self.provider);
        let facts = Arc::clone(&self.task.facts);
        let message = self.task.message.clone();
        let items = self.items.clone();
        let input = StepInput {
            session_key: &facts.session_key,
            run_id: &facts.run_id,
            message: &message,
            commands: self.task.commands,
            history,
            turn: &items,
            tools: tools::SPECS,
            nodes: nodes.as_deref(),
        };
        let (sender, mut deltas) = mpsc::channel(DELTAS_AHEAD_MAX);
        let mut step = pin!(provider.step(input, Say(sender)));
        let mut said = String::new();
        let mut quiet_until = Instant::now();
        let result = loop {
            let next = async {
                tokio::time::sleep_until(quiet_until).await;
                deltas.recv().await
            };
            tokio::select! {
                biased;
                result = &mut step => break result,
                Some(delta) = next => {
                    let delta = with_waiting(delta, &mut deltas);
                    self.say(&delta, &mut said)?;
                    quiet_until = Instant::now() + PAUSE;
                }
            }
        };
        let rest = with_waiting(String::new(), &mut deltas);
        self.say(&rest, &mut said)?;
        if !said.is_empty() {
            self.items.push(TurnItem::Said(said));
        }
        result.map_err(|error| failed(error.public))
    }

    fn say(&mut self, delta: &str, said: &mut String) -> Result<(), End> {
        if delta.is_empty() {
            return Ok(());
        }
        // What is said after a tool call begins a new paragraph.
        let gap = if said.is_empty() && !self.text.is_empty() {
            "\n\n"
        } else {
            ""
        };
        if self.text.len() + gap.len() + delta.len() > limits::TURN_TEXT_BYTES_MAX {
            return Err(failed(format!(
                "the answer grew past {} bytes and was stopped",
                limits::TURN_TEXT_BYTES_MAX
            )));
        }
        let delta_shown = format!("{gap}{delta}");
        self.text.push_str(&delta_shown);
        said.push_str(delta);
        let text = self.text.clone();
        self.parts.progress(&self.task.facts, &text);
        self.emit(EventKind::TextDelta {
            delta: delta_shown,
            text,
        });
        Ok(())
    }

    /// Carries out one tool call. It ends the turn only when it cannot be recorded.
    async fn call(&mut self, call: ToolCall) -> Result<(), End> {
        self.record(Body::ToolCall(call.clone()))?;
        self.items.push(TurnItem::Called(call.clone()));
        self.emit(EventKind::ToolStarted(call.clone()));
        self.open_call = Some(call.clone());
        let answer = match self.carry_out(&call).await {
            Ok(answer) => answer,
            Err(refusal) => Answer::refused(&refusal),
        };
        self.open_call = None;
        self.close_call(call, answer)
    }

    fn close_call(&mut self, call: ToolCall, answer: Answer) -> Result<(), End> {
        if !answer.is_error {
            self.tools_used.push(call.name.clone());
        }
        self.refused = answer.is_refused.then(|| answer.details.clone());
        let result = ToolResult {
            tool_call_id: call.tool_call_id,
            name: call.name,
            text: answer.text,
            is_error: answer.is_error,
            details: answer.details,
        };
        self.items.push(TurnItem::Result(result.clone()));
        let recorded = self.record(Body::ToolResult(result.clone()));
        self.emit(EventKind::ToolFinished(result));
        recorded
    }

    async fn carry_out(&mut self, call: &ToolCall) -> Result<Answer, ToolRefusal> {
        match call.name.as_str() {
            "nodes" => {
                let nodes = self.parts.tools.nodes(&self.task.requester).await?;
                Ok(Answer::nodes(&nodes))
            }
            "exec" => self.exec(call).await,
            "which" => self.which(call).await,
            _ => Err(
                ToolRefusal::new("INVALID_REQUEST", "there is no tool of that name")
                    .with_remedy("The tools are nodes, exec and which."),
            ),
        }
    }

    async fn exec(&mut self, call: &ToolCall) -> Result<Answer, ToolRefusal> {
        let arguments: ExecArguments = read_arguments(call)?;
        // A tenth of the turn's time is kept back, so that a command's own limit ends it first, with its output.
        let limit = self.parts.exec_timeout.min(self.task.timeout * 9 / 10);
        let exec = ExecCall {
            context: self.context(),
            node: Some(self.resolve(arguments.node.as_deref()).await?),
            command: arguments.command,
            cwd: arguments.cwd,
            timeout: arguments
                .timeout_ms
                .map_or(limit, |ms| Duration::from_millis(ms).min(limit)),
        };
        let parts = Arc::clone(&self.parts);
        let requester = self.task.requester.clone();
        let updates = Updates::default();
        let mut running = pin!(parts.tools.exec(&requester, exec, updates.clone()));
        let mut output = String::new();
        let mut quiet_until = Instant::now();
        loop {
            let next = async {
                tokio::time::sleep_until(quiet_until).await;
                updates.next().await
            };
            tokio::select! {
                biased;
                result = &mut running => return result.map(|outcome| Answer::exec(&outcome)),
                chunk = next => {
                    output.push_str(&chunk);
                    self.emit(EventKind::ToolOutput {
                        tool_call_id: call.tool_call_id.clone(),
                        name: call.name.clone(),
                        output: render::printable(render::tail(&output, limits::TOOL_TEXT_BYTES_MAX)),
                    });
                    quiet_until = Instant::now() + PAUSE;
                }
            }
        }
    }

    async fn which(&mut self, call: &ToolCall) -> Result<Answer, ToolRefusal> {
        let arguments: WhichArguments = read_arguments(call)?;
        let bins: Vec<&str> = arguments.bins.iter().map(String::as_str).collect();
        command::check_bins(&bins)
            .map_err(|refusal| ToolRefusal::new("INVALID_REQUEST", refusal.to_string()))?;
        let which = WhichCall {
            context: self.context(),
            node: Some(self.resolve(arguments.node.as_deref()).await?),
            bins: arguments.bins,
        };
        let outcome = self.parts.tools.which(&self.task.requester, which).await?;
        Ok(Answer::which(&outcome))
    }

    /// The full id of the node that is named, or meant.
    async fn resolve(&self, name: Option<&str>) -> Result<String, ToolRefusal> {
        let nodes = self.parts.tools.nodes(&self.task.requester).await?;
        let bound = match name {
            Some(_) => None,
            None => self.parts.exec_node(),
        };
        let bound = bound.as_deref();
        let found = command::find_node(&nodes, name.or(bound)).map_err(|refusal| {
            let refusal = ToolRefusal::from(refusal);
            match bound {
                Some(_) => {
                    refusal.with_remedy("tools.exec.node names it; `/nodes` lists the nodes.")
                }
                None => refusal,
            }
        })?;
        Ok(found.node_id.clone())
    }

    fn context(&self) -> CallContext {
        CallContext {
            session_key: self.task.facts.session_key.clone(),
            run_id: self.task.facts.run_id.clone(),
            origin: self.origin,
        }
    }

    fn finish(mut self, end: End) -> Outcome {
        let mut end = end;
        if let Some(call) = self.open_call.take() {
            let refusal = ToolRefusal::new(
                "ABORTED",
                "the turn was stopped before an answer came; the command may have run",
            )
            .told(Dispatched::Unknown, Category::Execution);
            if let Err(failure) = self.close_call(call, Answer::refused(&refusal)) {
                end = failure;
            }
        }
        if let Err(failure) = self.record_end(&end) {
            end = failure;
        }
        let started_at_ms = self.started_at_ms;
        let text = self.text.clone();
        let (status, error, kind) = match end {
            End::Done => {
                let (provider, model) = self.names();
                let tools_used = self.tools_used.clone();
                let kind = EventKind::Final {
                    text,
                    started_at_ms,
                    tools_used,
                    provider,
                    model,
                };
                (Status::Ok, None, kind)
            }
            End::Failed { message, kind } => {
                let status = match kind {
                    ErrorKind::Timeout => Status::TimedOut,
                    ErrorKind::Unknown => Status::Error,
                };
                (
                    status,
                    Some(message.clone()),
                    EventKind::Error {
                        message,
                        kind,
                        started_at_ms,
                    },
                )
            }
            End::Aborted(reason) => {
                let kind = EventKind::Aborted {
                    text,
                    reason,
                    started_at_ms,
                };
                (Status::Aborted, Some(stopped_by(reason).to_owned()), kind)
            }
        };
        let ended_at_ms = self.emit(kind);
        Outcome {
            status,
            text: self.text,
            error,
            tools_used: self.tools_used,
            refused: self.refused,
            started_at_ms,
            ended_at_ms,
        }
    }

    /// Writes the turn's end before anyone is told of it.
    fn record_end(&self, end: &End) -> Result<(), End> {
        let (provider, model) = self.names();
        if !self.text.is_empty() {
            let stop_reason = match end {
                End::Done => "stop",
                End::Failed { .. } => "error",
                End::Aborted(_) => "aborted",
            };
            let text = self.text.clone();
            self.record(Body::Assistant {
                text,
                provider,
                model,
                stop_reason: stop_reason.to_owned(),
            })?;
        }
        match end {
            End::Done => Ok(()),
            End::Failed { message, .. } => self.record(Body::Note {
                text: format!("This turn failed: {message}."),
            }),
            End::Aborted(reason) => self.record(Body::Note {
                text: format!("This turn was {}.", stopped_by(*reason)),
            }),
        }
    }

    fn record(&self, body: Body) -> Result<(), End> {
        let entry = Entry {
            run_id: self.task.facts.run_id.clone(),
            timestamp_ms: (self.parts.now_ms)(),
            body,
        };
        match self
            .parts
            .transcript
            .append(&self.task.facts.session_key, &entry)
        {
            Ok(_) => Ok(()),
            Err(error) => Err(self.unreadable(&error)),
        }
    }

    fn unreadable(&self, error: &super::transcript::TranscriptError) -> End {
        tracing::error!(run = %self.task.facts.run_id, detail = %error.detail, "transcript failed");
        failed(
            "the session's transcript cannot be read or written; the Gateway's log says why"
                .to_owned(),
        )
    }

    fn names(&self) -> (String, String) {
        let (provider, model) = self.provider.names();
        (provider.to_owned(), model.to_owned())
    }

    fn emit(&mut self, kind: EventKind) -> u64 {
        self.seq += 1;
        let at_ms = (self.parts.now_ms)();
        (self.parts.sink)(Event {
            run: Arc::clone(&self.task.facts),
            seq: self.seq,
            at_ms,
            kind,
        });
        at_ms
    }
}

/// What a tool call came to, for the model, the chat and the wire.
struct Answer {
    text: String,
    is_error: bool,
    /// There is no result.
    is_refused: bool,
    details: Value,
}

impl Answer {
    fn refused(refusal: &ToolRefusal) -> Self {
        Self {
            text: render::refusal(refusal),
            is_error: true,
            is_refused: true,
            details: json!({
                "status": if refusal.dispatched == Dispatched::No { "refused" } else { "failed" },
                "code": refusal.code,
                "dispatched": refusal.dispatched.as_str(),
                "category": refusal.category.as_str(),
            }),
        }
    }

    fn nodes(nodes: &[Node]) -> Self {
        let ready = nodes.iter().filter(|node| node.ready()).count();
        Self {
            text: render::nodes(nodes),
            is_error: false,
            is_refused: false,
            details: json!({"status": "completed", "nodes": nodes.len(), "ready": ready}),
        }
    }

    fn exec(outcome: &ExecOutcome) -> Self {
        Self {
            text: render::exec(outcome),
            // A command that ran and failed is an answer, as with the official tool; one that was cut off is not.
            is_error: outcome.timed_out || outcome.error.is_some(),
            is_refused: false,
            details: json!({
                "status": if outcome.timed_out { "timeout" } else { "completed" },
                "host": "node",
                "nodeId": outcome.node_id,
                "nodeName": render::node_name(&outcome.node_name, &outcome.node_id),
                "exitCode": outcome.exit_code,
                "timedOut": outcome.timed_out,
                "truncated": outcome.truncated,
                "stdoutBytes": outcome.stdout.len(),
                "stderrBytes": outcome.stderr.len(),
                "queueMs": outcome.queue_ms,
                "executionMs": outcome.execution_ms,
                "durationMs": outcome.total_ms,
            }),
        }
    }

    fn which(outcome: &WhichOutcome) -> Self {
        let found = outcome
            .found
            .iter()
            .filter(|(_, path)| path.is_some())
            .count();
        Self {
            text: render::which(outcome),
            is_error: false,
            is_refused: false,
            details: json!({
                "status": "completed",
                "host": "node",
                "nodeId": outcome.node_id,
                "nodeName": render::node_name(&outcome.node_name, &outcome.node_id),
                "found": found,
                "durationMs": outcome.total_ms,
            }),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ExecArguments {
    command: String,
    node: Option<String>,
    cwd: Option<String>,
    timeout_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WhichArguments {
    bins: Vec<String>,
    node: Option<String>,
}

fn read_arguments<'a, T: Deserialize<'a>>(call: &'a ToolCall) -> Result<T, ToolRefusal> {
    T::deserialize(&call.arguments).map_err(|error| {
        let what = error.to_string();
        ToolRefusal::new(
            "INVALID_REQUEST",
            format!(
                "the arguments of {} are wrong: {}",
                call.name,
                render::head(&what, 200)
            ),
        )
    })
}

/// Waits for an abort; for ever, if none can come any more.
async fn aborted(abort: &mut watch::Receiver<Option<AbortReason>>) -> AbortReason {
    match abort.wait_for(Option::is_some).await.map(|reason| *reason) {
        Ok(Some(reason)) => reason,
        Ok(None) | Err(_) => std::future::pending().await,
    }
}

fn with_waiting(mut delta: String, deltas: &mut mpsc::Receiver<String>) -> String {
    while let Ok(more) = deltas.try_recv() {
        delta.push_str(&more);
    }
    delta
}

fn failed(message: String) -> End {
    End::Failed {
        message,
        kind: ErrorKind::Unknown,
    }
}

fn stopped_by(reason: AbortReason) -> &'static str {
    match reason {
        AbortReason::Requested => "stopped on request",
        AbortReason::Stopping => "stopped because the Gateway is stopping",
    }
}
