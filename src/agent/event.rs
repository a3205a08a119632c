//! What happens in a run, in order, for whoever watches.

use std::sync::Arc;

use super::session_key::SessionKey;
use super::transcript::{ToolCall, ToolResult};
use crate::base::names::names;

/// What does not change while a run lasts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunFacts {
    pub run_id: String,
    pub session_key: SessionKey,
    pub session_id: String,
    pub entry: Entrance,
}

/// The method that began a run; the wire's events differ in one field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entrance {
    Chat,
    Agent,
}

/// One event of a run.
#[derive(Clone, PartialEq, Debug)]
pub struct Event {
    pub run: Arc<RunFacts>,
    /// Counts from 1 within the run, without a gap.
    pub seq: u64,
    pub at_ms: u64,
    pub kind: EventKind,
}

#[derive(Clone, PartialEq, Debug)]
pub enum EventKind {
    Started,
    /// The provider that takes the turn.
    Model {
        provider: String,
        model: String,
    },
    /// `text` is all that was said so far and ends in `delta`.
    TextDelta {
        delta: String,
        text: String,
    },
    ToolStarted(ToolCall),
    /// `output` is what the command printed so far, its end if that is long.
    ToolOutput {
        tool_call_id: String,
        name: String,
        output: String,
    },
    ToolFinished(ToolResult),
    Final {
        text: String,
        started_at_ms: u64,
        tools_used: Vec<String>,
        provider: String,
        model: String,
    },
    Error {
        message: String,
        kind: ErrorKind,
        started_at_ms: u64,
    },
    Aborted {
        text: String,
        reason: AbortReason,
        started_at_ms: u64,
    },
}

/// The wire's `errorKind`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorKind {
    Timeout,
    Unknown,
}

names! {
    /// Why a run was stopped, as the wire's `stopReason` names it.
    pub enum AbortReason {
        /// A client asked for it.
        Requested = "rpc",
        /// The Gateway is stopping.
        Stopping = "shutdown",
    }
}

/// Where events go. Called in order from the run's own task; must not block.
pub type EventSink = dyn Fn(Event) + Send + Sync;
