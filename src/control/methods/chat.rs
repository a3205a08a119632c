//! `chat.*`, `agent` and the lists that a chat client asks for.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::super::answer::frame;
use super::super::{Answer, Room};
use super::Call;
use crate::agent::payload::{self, History, HistoryQuery};
use crate::agent::transcript::TranscriptError;
use crate::agent::{
    AGENT_ID, Accepted, Entrance, Requester, RunState, SendRefusal, SessionKey, SessionKeyError,
    Status, TurnRequest,
};
use crate::machine;
use crate::rpc::types::agent::{AgentParams, AgentWaitParams, SessionsList, SessionsListParams};
use crate::rpc::types::chat::{
    ChatAbortParams, ChatAbortResult, ChatHistory, ChatHistoryParams, ChatSendParams,
    ChatSendResult, ChatStartupParams,
};
use crate::rpc::{ErrorShape, encode};

/// The two forms of an answer to `chat.history`.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum HistoryAnswer {
    Page(Box<ChatHistory>),
    Reset(Value),
}

/// How long `agent.wait` waits when the caller names no time, in milliseconds.
const WAIT_DEFAULT_MS: u64 = 30_000;

pub(super) fn startup(call: Call<'_>) -> Result<ChatHistory, ErrorShape> {
    let wanted: ChatStartupParams = call.params()?;
    let key = session_key(wanted.agent_id.as_deref(), &wanted.session_key)?;
    let history = read(&call, &key, wanted.limit, 0, wanted.max_bytes)?;
    Ok(payload::startup(&history))
}

pub(super) fn history(call: Call<'_>) -> Result<HistoryAnswer, ErrorShape> {
    let wanted: ChatHistoryParams = call.params()?;
    let key = session_key(wanted.agent_id.as_deref(), &wanted.session_key)?;
    if wanted.cursor.is_some() {
        // We keep no cursors: the client is told to read from the beginning.
        return Ok(HistoryAnswer::Reset(payload::history_reset()));
    }
    let offset = wanted.offset.unwrap_or(0);
    let history = read(&call, &key, wanted.limit, offset, wanted.max_bytes)?;
    Ok(HistoryAnswer::Page(Box::new(payload::history(&history))))
}

fn read(
    call: &Call<'_>,
    key: &SessionKey,
    limit: Option<u32>,
    offset: u32,
    bytes_max: Option<u64>,
) -> Result<History, ErrorShape> {
    let query = HistoryQuery {
        limit: limit.map(|limit| limit as usize),
        offset: offset as usize,
        bytes_max: bytes_max.and_then(|bytes| usize::try_from(bytes).ok()),
    };
    Ok(payload::read_history(call.agent, key, query)?)
}

pub(super) fn send(call: Call<'_>) -> Result<ChatSendResult, ErrorShape> {
    let wanted: ChatSendParams = call.params()?;
    if let Some(key) = wanted.unserved() {
        return Err(ErrorShape::invalid_request(format!(
            "chat.send does not serve {key} here"
        )));
    }
    let accepted = call.agent.send(TurnRequest {
        session_key: session_key(wanted.agent_id.as_deref(), &wanted.session_key)?,
        message: wanted.message,
        idempotency_key: wanted.idempotency_key,
        requester: Requester::new(call.caller.clone()),
        typed: true,
        commands: !wanted.suppress_command_interpretation.unwrap_or(false),
        entrance: Entrance::Chat,
        timeout: wanted.timeout_ms.map(Duration::from_millis),
    })?;
    Ok(payload::send(&accepted))
}

pub(super) fn abort(call: Call<'_>) -> Result<ChatAbortResult, ErrorShape> {
    let wanted: ChatAbortParams = call.params()?;
    let key = session_key(wanted.agent_id.as_deref(), &wanted.session_key)?;
    Ok(payload::abort(
        call.agent.abort(&key, wanted.run_id.as_deref()),
    ))
}

/// Two answers under one id, as clients of this method expect: accepted at once, and the result at the end.
pub(super) fn agent(call: Call<'_>, room: Room) -> Result<Answer, ErrorShape> {
    let id = call.id();
    let (accepted, key) = begin(&call)?;
    call.caller.outbox.send(encode::response(
        &id,
        &payload::agent_accepted(&accepted, &key),
    ));
    let Accepted {
        run_id,
        state,
        finish,
        ..
    } = accepted;
    Ok(room.later(async move {
        let outcome = match state {
            RunState::Finished(outcome) => Some(outcome),
            RunState::Started | RunState::InFlight => finish.wait().await,
        };
        match outcome {
            Some(outcome) if outcome.status == Status::Ok => {
                encode::response(&id, &payload::agent_finished(&run_id, &outcome))
            }
            Some(outcome) => {
                let message = outcome
                    .error
                    .clone()
                    .unwrap_or_else(|| "the run was aborted".to_owned());
                let error = ErrorShape::unavailable(message);
                encode::failure(
                    &id,
                    &error,
                    Some(&payload::agent_finished(&run_id, &outcome)),
                )
            }
            None => encode::refusal(&id, &ErrorShape::unavailable("the gateway is stopping")),
        }
    }))
}

fn begin(call: &Call<'_>) -> Result<(Accepted, SessionKey), ErrorShape> {
    let wanted: AgentParams = call.params()?;
    if let Some(key) = wanted.unserved() {
        return Err(ErrorShape::invalid_request(format!(
            "agent does not serve {key} here"
        )));
    }
    let key = wanted.session_key.as_deref().unwrap_or_default();
    let key = session_key(wanted.agent_id.as_deref(), key)?;
    let accepted = call.agent.send(TurnRequest {
        session_key: key.clone(),
        message: wanted.message,
        idempotency_key: wanted.idempotency_key,
        requester: Requester::new(call.caller.clone()),
        typed: true,
        commands: true,
        entrance: Entrance::Agent,
        timeout: wanted.timeout.map(Duration::from_secs),
    })?;
    Ok((accepted, key))
}

pub(super) fn wait(call: Call<'_>, room: Room) -> Result<Answer, ErrorShape> {
    let id = call.id();
    let wanted: AgentWaitParams = call.params()?;
    let Some(finish) = call.agent.find(&wanted.run_id, None) else {
        return Err(ErrorShape::invalid_request("unknown runId"));
    };
    let timeout = Duration::from_millis(wanted.timeout_ms.unwrap_or(WAIT_DEFAULT_MS));
    Ok(room.later(async move {
        let outcome = tokio::time::timeout(timeout, finish.wait())
            .await
            .ok()
            .flatten();
        frame(
            &id,
            Ok(payload::agent_waited(&wanted.run_id, outcome.as_ref())),
        )
    }))
}

pub(super) fn identity() -> Value {
    json!({"agentId": AGENT_ID, "name": "Assistant", "avatar": "A"})
}

/// The built-in command agent is no model, so the list is empty until one is configured.
pub(super) fn models() -> Value {
    json!({"models": []})
}

pub(super) fn sessions(call: Call<'_>) -> Result<SessionsList, ErrorShape> {
    let wanted: SessionsListParams = call.params()?;
    let limit = wanted.limit.map(|limit| limit as usize);
    Ok(payload::sessions_list(
        call.agent,
        limit,
        machine::now_ms(),
    )?)
}

/// The session that is meant, of the agent that is meant: another one than ours never stands in for it.
fn session_key(agent: Option<&str>, text: &str) -> Result<SessionKey, ErrorShape> {
    let named = agent.map(str::trim).filter(|agent| !agent.is_empty());
    if named.is_some_and(|agent| !agent.eq_ignore_ascii_case(AGENT_ID)) {
        return Err(ErrorShape::invalid_request(format!(
            "unknown agent id; the only agent is {AGENT_ID}"
        )));
    }
    SessionKey::parse(text).map_err(|error: SessionKeyError| {
        ErrorShape::invalid_request(format!("invalid sessionKey: {error}"))
    })
}

impl From<SendRefusal> for ErrorShape {
    fn from(refusal: SendRefusal) -> Self {
        let error = Self::new(refusal.code(), refusal.to_string());
        match refusal.is_retryable() {
            true => error.with_retryable(true),
            false => error,
        }
    }
}

impl From<TranscriptError> for ErrorShape {
    fn from(error: TranscriptError) -> Self {
        tracing::error!(%error, "the transcript cannot be read");
        Self::unavailable("the transcript cannot be read now").with_retryable(true)
    }
}
