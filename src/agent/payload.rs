//! Answers to the chat methods: what the official Control UI needs to show and continue a chat, and no more than we
//! know. Pure but for the reading of the transcript.

use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use crate::base::limits;
use crate::rpc::types::agent::{
    AgentAccepted, AgentFinished, AgentMeta, AgentReply, AgentResult, AgentSummary, AgentWaited,
    AgentsList, SessionsList,
};
use crate::rpc::types::chat::{
    ChatAbortResult, ChatCommand, ChatHistory, ChatMetadata, ChatSendResult, Content,
    HistoryMessage, MessageRecord, Part, PendingInputs, SessionInfo,
};

use super::command;
use super::run::{Accepted, Agent, InFlight, RunState};
use super::session_key::{AGENT_ID, MAIN_KEY, SessionKey};
use super::transcript::{Body, Session, Stored, ToolResult, TranscriptError};
use super::turn::{Outcome, Status};

/// Entries that a history answer holds when the client names no number.
const HISTORY_DEFAULT: usize = 200;
/// The bytes of entries that a history answer holds when the client names no number.
const HISTORY_BYTES_DEFAULT: usize = 1024 * 1024;

/// What a client asks of `chat.startup` and `chat.history`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HistoryQuery {
    pub limit: Option<usize>,
    pub offset: usize,
    pub bytes_max: Option<usize>,
}

/// What is in a history answer, read before it is shown.
#[derive(Clone, PartialEq, Debug)]
pub struct History {
    pub key: SessionKey,
    /// Absent until the first message: reading a session does not create it.
    pub session: Option<Session>,
    pub entries: Vec<Stored>,
    pub total: u64,
    pub has_more: bool,
    /// Where an older page begins.
    pub next_offset: u64,
    pub in_flight: Option<InFlight>,
}

/// Reads a session's newest entries, within the client's bounds and ours. Blocks for a page of rows.
pub fn read_history(
    agent: &Agent,
    key: &SessionKey,
    query: HistoryQuery,
) -> Result<History, TranscriptError> {
    let limit = query
        .limit
        .unwrap_or(HISTORY_DEFAULT)
        .clamp(1, limits::HISTORY_MESSAGES_MAX);
    let in_flight = agent.in_flight(key);
    let session = agent.transcript().session(key)?;
    let page = agent.transcript().page(key, limit, query.offset)?;
    let mut entries = page.entries;
    let bytes_max = query
        .bytes_max
        .unwrap_or(HISTORY_BYTES_DEFAULT)
        .min(HISTORY_BYTES_DEFAULT);
    // The newest entry always stays: it is bounded, and an answer without it would look like an empty session.
    let mut kept = entries.len();
    let mut bytes = 0;
    for stored in entries.iter().rev() {
        bytes += entry_bytes(&stored.entry.body);
        if bytes > bytes_max && kept < entries.len() {
            break;
        }
        kept -= 1;
    }
    entries.drain(..kept);
    let shown = entries.len() as u64 + query.offset as u64;
    Ok(History {
        key: key.clone(),
        session,
        entries,
        total: page.total,
        has_more: page.total > shown,
        next_offset: shown,
        in_flight,
    })
}

fn entry_bytes(body: &Body) -> usize {
    const ENVELOPE: usize = 256;
    ENVELOPE
        + match body {
            Body::User { text, .. }
            | Body::Assistant { text, .. }
            | Body::ToolResult(ToolResult { text, .. })
            | Body::Note { text } => text.len(),
            Body::ToolCall(call) => call.arguments.to_string().len(),
        }
}

/// The answer to `chat.history`.
///
/// We send no `deltaCursor`; a request that brings one anyway is answered by `history_reset`.
pub fn history(history: &History) -> ChatHistory {
    ChatHistory {
        session_key: Some(history.key.as_str().to_owned()),
        session_id: history
            .session
            .as_ref()
            .map(|session| session.session_id.clone()),
        messages: history.entries.iter().map(message).collect(),
        has_more: Some(history.has_more),
        next_offset: history.has_more.then_some(history.next_offset),
        total_messages: Some(history.total),
        pending_inputs: Some(PendingInputs::default()),
        session_info: history
            .session
            .as_ref()
            .map(|session| session_info(session, history.in_flight.as_ref())),
        in_flight_run: history.in_flight.as_ref().and_then(in_flight_run),
        ..ChatHistory::default()
    }
}

/// The answer to a `chat.history` with a cursor: start again.
pub fn history_reset() -> Value {
    json!({"kind": "reset"})
}

/// The answer to `chat.startup`.
pub fn startup(history_read: &History) -> ChatHistory {
    ChatHistory {
        thinking_level: Some("off".into()),
        metadata: Some(metadata()),
        ..history(history_read)
    }
}

/// The answer to `chat.metadata`: no model, and the commands of the built-in agent.
pub fn metadata() -> ChatMetadata {
    let commands = command::HELP
        .iter()
        .map(|(name, usage, description)| ChatCommand {
            name: (*name).into(),
            native_name: Some((*name).into()),
            text_aliases: vec![format!("/{name}").into()],
            description: format!("{description} {usage}").into(),
            category: Some("tools".into()),
            source: "native".into(),
            scope: "both".into(),
            accepts_args: usage.contains(' '),
            args: None,
        })
        .collect();
    ChatMetadata {
        models: Vec::new(),
        commands,
    }
}

/// The answer to `chat.send`. When it returns a failed run, the wire's answer is a refusal (`failure`) besides.
pub fn send(accepted: &Accepted) -> ChatSendResult {
    let status = match &accepted.state {
        RunState::Started => "started",
        RunState::InFlight => "in_flight",
        RunState::Finished(outcome) => word(outcome.status),
    };
    ChatSendResult {
        run_id: accepted.run_id.clone(),
        status: status.into(),
        message_seq: accepted.message_seq,
    }
}

/// The answer to `chat.abort`.
pub fn abort(run_ids: Vec<String>) -> ChatAbortResult {
    ChatAbortResult {
        ok: true,
        aborted: !run_ids.is_empty(),
        run_ids,
    }
}

/// The first answer to `agent`: accepted; the result follows under the same request id.
pub fn agent_accepted(accepted: &Accepted, key: &SessionKey) -> AgentAccepted {
    AgentAccepted {
        run_id: accepted.run_id.clone(),
        session_key: Some(key.as_str().to_owned()),
        agent_id: Some(AGENT_ID.to_owned()),
        status: "accepted".into(),
        accepted_at: accepted.accepted_at_ms,
    }
}

/// The second answer to `agent`.
pub fn agent_finished(run_id: &str, outcome: &Outcome) -> AgentFinished {
    let summary = match (&outcome.error, outcome.status) {
        (Some(error), _) => error.clone(),
        (None, Status::Ok) => "completed".to_owned(),
        (None, _) => "failed".to_owned(),
    };
    let reply = (!outcome.text.is_empty()).then(|| AgentReply {
        text: Some(outcome.text.clone()),
        media_url: None,
    });
    AgentFinished {
        run_id: run_id.to_owned(),
        status: word(outcome.status).into(),
        summary: Some(summary),
        result: Some(AgentResult {
            payloads: reply.into_iter().collect(),
            meta: Some(AgentMeta {
                duration_ms: outcome.ended_at_ms.saturating_sub(outcome.started_at_ms),
                agent_meta: None,
                tool_refused: outcome.refused.clone(),
            }),
        }),
    }
}

/// The answer to `agent.wait`; without an outcome the client's time ran out before the run did.
pub fn agent_waited(run_id: &str, outcome: Option<&Outcome>) -> AgentWaited {
    AgentWaited {
        run_id: run_id.to_owned(),
        status: outcome
            .map_or("timeout", |outcome| word(outcome.status))
            .into(),
        started_at: outcome.map(|outcome| outcome.started_at_ms),
        ended_at: outcome.map(|outcome| outcome.ended_at_ms),
        stop_reason: outcome
            .filter(|outcome| outcome.status == Status::Ok)
            .map(|_| "stop".into()),
        error: outcome.and_then(|outcome| outcome.error.clone()),
    }
}

/// The answer to `agents.list`.
pub fn agents_list() -> AgentsList {
    AgentsList {
        default_id: AGENT_ID.to_owned(),
        ownership: Some("sole".into()),
        selection_required: Some(false),
        main_key: MAIN_KEY.to_owned(),
        scope: "per-sender".into(),
        agents: vec![AgentSummary {
            id: AGENT_ID.to_owned(),
            kind: Some("agent".into()),
            name: None,
            workspace: None,
            model: None,
        }],
    }
}

/// The answer to `sessions.list`. Blocks for a page of rows.
pub fn sessions_list(
    agent: &Agent,
    limit: Option<usize>,
    now_ms: u64,
) -> Result<SessionsList, TranscriptError> {
    let limit = limit
        .unwrap_or(HISTORY_DEFAULT)
        .clamp(1, limits::HISTORY_MESSAGES_MAX);
    let mut sessions = agent.transcript().sessions(limit + 1)?;
    let has_more = sessions.len() > limit;
    sessions.truncate(limit);
    let shown: Vec<SessionInfo> = sessions
        .iter()
        .map(|session| session_info(session, agent.in_flight(&session.key).as_ref()))
        .collect();
    let count = shown.len() as u64;
    Ok(SessionsList {
        ts: now_ms,
        count,
        total_count: (!has_more).then_some(count),
        next_offset: None,
        has_more,
        sessions: shown,
    })
}

fn session_info(session: &Session, in_flight: Option<&InFlight>) -> SessionInfo {
    SessionInfo {
        key: session.key.as_str().to_owned(),
        session_id: Some(session.session_id.clone()),
        agent_id: Some(AGENT_ID.to_owned()),
        kind: Some("direct".into()),
        is_main: Some(session.key.is_main()),
        display_name: None,
        created_at: Some(session.created_at_ms),
        updated_at: Some(session.updated_at_ms),
        status: Some(
            if in_flight.is_some() {
                "running"
            } else {
                "done"
            }
            .into(),
        ),
        has_active_run: Some(in_flight.is_some()),
        active_run_ids: Some(in_flight.iter().map(|run| run.run_id.clone()).collect()),
        active_leaf_entry_id: None,
    }
}

fn in_flight_run(run: &InFlight) -> Option<Box<RawValue>> {
    let run = json!({"runId": run.run_id, "text": run.text, "startedAt": run.accepted_at_ms});
    to_raw_value(&run).ok()
}

/// An entry of the transcript as a chat shows it.
pub fn message(stored: &Stored) -> HistoryMessage {
    let entry = &stored.entry;
    let shown = match &entry.body {
        Body::User {
            text,
            idempotency_key,
        } => HistoryMessage {
            role: Some("user".into()),
            content: Some(Content::Text(text.clone())),
            idempotency_key: Some(format!("{idempotency_key}:user")),
            ..HistoryMessage::default()
        },
        Body::Assistant {
            text,
            provider,
            model,
            stop_reason,
        } => HistoryMessage {
            role: Some("assistant".into()),
            content: Some(Content::Parts(vec![Part::text(text.clone())])),
            provider: Some(provider.clone()),
            model: Some(model.clone()),
            stop_reason: Some(stop_reason.clone().into()),
            ..HistoryMessage::default()
        },
        Body::ToolCall(call) => HistoryMessage {
            role: Some("assistant".into()),
            content: Some(Content::Parts(vec![Part {
                r#type: "toolCall".into(),
                id: Some(call.tool_call_id.clone()),
                name: Some(call.name.clone()),
                arguments: Some(call.arguments.clone()),
                text: None,
            }])),
            stop_reason: Some("toolUse".into()),
            ..HistoryMessage::default()
        },
        Body::ToolResult(result) => HistoryMessage {
            role: Some("toolResult".into()),
            content: Some(Content::Parts(vec![Part::text(result.text.clone())])),
            tool_call_id: Some(result.tool_call_id.clone()),
            tool_name: Some(result.name.clone()),
            is_error: Some(result.is_error),
            details: Some(result.details.clone()),
            ..HistoryMessage::default()
        },
        Body::Note { text } => HistoryMessage {
            role: Some("custom".into()),
            content: Some(Content::Text(text.clone())),
            custom_type: Some("run-failed-before-reply".into()),
            display: Some(true),
            ..HistoryMessage::default()
        },
    };
    HistoryMessage {
        timestamp: Some(entry.timestamp_ms),
        record: Some(MessageRecord {
            id: stored.id.clone(),
            seq: stored.seq,
            run_id: Some(entry.run_id.clone()),
            record_timestamp_ms: Some(entry.timestamp_ms),
        }),
        ..shown
    }
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::Error | Status::Aborted => "error",
        Status::TimedOut => "timeout",
    }
}
