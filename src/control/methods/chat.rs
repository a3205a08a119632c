//! `chat.*`, `agent` and the lists that a chat client asks for.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::super::answer::frame;
use super::super::{Answer, Control, Room};
use super::params;
use crate::agent::payload::{self, HistoryQuery};
use crate::agent::transcript::TranscriptError;
use crate::agent::{
    Accepted, Entrance, Requester, RunState, SendRefusal, SessionKey, SessionKeyError, Status,
    TurnRequest,
};
use crate::hub::Caller;
use crate::machine;
use crate::rpc::types::agent::{AgentParams, AgentWaitParams, SessionsList, SessionsListParams};
use crate::rpc::types::chat::{
    ChatAbortParams, ChatAbortResult, ChatHistory, ChatHistoryParams, ChatSendParams,
    ChatSendResult, ChatStartupParams,
};
use crate::rpc::{ErrorShape, Method, Request, encode};

/// The two forms of an answer to `chat.history`.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum HistoryAnswer {
    Page(Box<ChatHistory>),
    Reset(Value),
}

/// How long `agent.wait` waits when the caller names no time, in milliseconds.
const WAIT_DEFAULT_MS: u64 = 30_000;

pub(super) fn startup(control: &Control, request: &Request<'_>) -> Result<ChatHistory, ErrorShape> {
    let wanted: ChatStartupParams = params(Method::ChatStartup, request)?;
    let key = session_key(&wanted.session_key)?;
    let query = HistoryQuery {
        limit: wanted.limit.map(|limit| limit as usize),
        offset: 0,
        bytes_max: wanted
            .max_bytes
            .and_then(|bytes| usize::try_from(bytes).ok()),
    };
    let history = payload::read_history(&control.agent, &key, query).map_err(unreadable)?;
    Ok(payload::startup(&history))
}

pub(super) fn history(
    control: &Control,
    request: &Request<'_>,
) -> Result<HistoryAnswer, ErrorShape> {
    let wanted: ChatHistoryParams = params(Method::ChatHistory, request)?;
    let key = session_key(&wanted.session_key)?;
    if wanted.cursor.is_some() {
        // We keep no cursors: the client is told to read from the beginning.
        return Ok(HistoryAnswer::Reset(payload::history_reset()));
    }
    let query = HistoryQuery {
        limit: wanted.limit.map(|limit| limit as usize),
        offset: wanted.offset.unwrap_or(0) as usize,
        bytes_max: wanted
            .max_bytes
            .and_then(|bytes| usize::try_from(bytes).ok()),
    };
    let history = payload::read_history(&control.agent, &key, query).map_err(unreadable)?;
    Ok(HistoryAnswer::Page(Box::new(payload::history(&history))))
}

pub(super) fn send(
    control: &Control,
    caller: &Caller,
    request: &Request<'_>,
) -> Result<ChatSendResult, ErrorShape> {
    let wanted: ChatSendParams = params(Method::ChatSend, request)?;
    if let Some(key) = wanted.unserved() {
        return Err(ErrorShape::invalid_request(format!(
            "chat.send does not serve {key} here"
        )));
    }
    let accepted = control
        .agent
        .send(TurnRequest {
            session_key: session_key(&wanted.session_key)?,
            message: wanted.message,
            idempotency_key: wanted.idempotency_key,
            requester: Requester::new(caller.clone()),
            typed: true,
            commands: !wanted.suppress_command_interpretation.unwrap_or(false),
            entrance: Entrance::Chat,
            timeout: wanted.timeout_ms.map(Duration::from_millis),
        })
        .map_err(|refusal| not_accepted(&refusal))?;
    Ok(payload::send(&accepted))
}

pub(super) fn abort(
    control: &Control,
    request: &Request<'_>,
) -> Result<ChatAbortResult, ErrorShape> {
    let wanted: ChatAbortParams = params(Method::ChatAbort, request)?;
    let key = session_key(&wanted.session_key)?;
    Ok(payload::abort(
        control.agent.abort(&key, wanted.run_id.as_deref()),
    ))
}

/// Two answers under one id, as clients of this method expect: accepted at once, and the result at the end.
pub(super) fn agent(
    control: &Arc<Control>,
    caller: &Caller,
    request: &Request<'_>,
    room: Room,
) -> Result<Answer, ErrorShape> {
    let id = request.id.as_ref().to_owned();
    let (accepted, key) = begin(control, caller, request)?;
    caller.outbox.send(encode::response(
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

fn begin(
    control: &Control,
    caller: &Caller,
    request: &Request<'_>,
) -> Result<(Accepted, SessionKey), ErrorShape> {
    let wanted: AgentParams = params(Method::Agent, request)?;
    if let Some(key) = wanted.unserved() {
        return Err(ErrorShape::invalid_request(format!(
            "agent does not serve {key} here"
        )));
    }
    let key = match &wanted.session_key {
        Some(key) => session_key(key)?,
        None => SessionKey::main(),
    };
    let accepted = control
        .agent
        .send(TurnRequest {
            session_key: key.clone(),
            message: wanted.message,
            idempotency_key: wanted.idempotency_key,
            requester: Requester::new(caller.clone()),
            typed: true,
            commands: true,
            entrance: Entrance::Agent,
            timeout: wanted.timeout.map(Duration::from_secs),
        })
        .map_err(|refusal| not_accepted(&refusal))?;
    Ok((accepted, key))
}

pub(super) fn wait(
    control: &Arc<Control>,
    request: &Request<'_>,
    room: Room,
) -> Result<Answer, ErrorShape> {
    let id = request.id.as_ref().to_owned();
    let wanted: AgentWaitParams = params(Method::AgentWait, request)?;
    let Some(finish) = control.agent.find(&wanted.run_id, None) else {
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
    json!({"agentId": crate::agent::AGENT_ID, "name": "Assistant", "avatar": "A"})
}

/// The built-in command agent is no model, so the list is empty until one is configured.
pub(super) fn models() -> Value {
    json!({"models": []})
}

pub(super) fn sessions(
    control: &Control,
    request: &Request<'_>,
) -> Result<SessionsList, ErrorShape> {
    let wanted: SessionsListParams = params(Method::SessionsList, request)?;
    let limit = wanted.limit.map(|limit| limit as usize);
    payload::sessions_list(&control.agent, limit, machine::now_ms()).map_err(unreadable)
}

fn session_key(text: &str) -> Result<SessionKey, ErrorShape> {
    SessionKey::parse(text).map_err(|error: SessionKeyError| {
        ErrorShape::invalid_request(format!("invalid sessionKey: {error}"))
    })
}

fn not_accepted(refusal: &SendRefusal) -> ErrorShape {
    let error = ErrorShape::new(refusal.code(), refusal.to_string());
    if refusal.is_retryable() {
        error.with_retryable(true)
    } else {
        error
    }
}

#[expect(clippy::needless_pass_by_value, reason = "made for map_err")]
fn unreadable(error: TranscriptError) -> ErrorShape {
    tracing::error!(%error, "the transcript cannot be read");
    ErrorShape::unavailable("the transcript cannot be read now").with_retryable(true)
}
