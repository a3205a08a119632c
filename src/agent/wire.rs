//! A run's events as the wire shows them: `chat` for chats, `agent` for those who follow every step.
//!
//! Pure. The shapes are the recorded ones, less what only the reference has (workspaces, fallback chains, usage);
//! `stream: "tool"` was not recorded and follows the reference's own schema of that stream.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::{Value, json};

use crate::rpc::types::agent::AgentEvent;
use crate::rpc::types::chat::{ChatEvent, ChatMessage, ChatState, Part};

use super::event::{Entrance, ErrorKind, Event, EventKind};
use super::session_key::AGENT_ID;

/// The payload of one event frame.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(untagged)]
pub enum WireEvent {
    Chat(ChatEvent),
    Agent(AgentEvent),
}

impl WireEvent {
    /// The event's name on the wire.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Chat(_) => "chat",
            Self::Agent(_) => "agent",
        }
    }

    /// Whether it goes only to clients with the capability `tool-events`.
    pub fn needs_tool_events(&self) -> bool {
        matches!(self, Self::Agent(event) if event.stream == "tool")
    }
}

/// The frames of one event, in the order to send them.
pub fn frames(event: &Event) -> Vec<WireEvent> {
    match &event.kind {
        EventKind::Started => vec![
            lifecycle(event, json!({"phase": "start", "startedAt": event.at_ms})),
            chat(
                event,
                ChatState::Status {
                    phase: "preparing_context".into(),
                },
            ),
        ],
        EventKind::Model { provider, model } => {
            vec![lifecycle(
                event,
                json!({"phase": "model", "provider": provider, "model": model}),
            )]
        }
        EventKind::TextDelta { delta, text } => text_delta(event, delta, text),
        EventKind::ToolStarted(call) => vec![tool(
            event,
            json!({
                "phase": "start",
                "name": call.name,
                "toolCallId": call.tool_call_id,
                "args": call.arguments,
            }),
        )],
        EventKind::ToolOutput {
            tool_call_id,
            name,
            output,
        } => vec![tool(
            event,
            json!({
                "phase": "update",
                "name": name,
                "toolCallId": tool_call_id,
                "partialResult": tool_result(output, &json!({"status": "running"})),
            }),
        )],
        EventKind::ToolFinished(result) => vec![tool(
            event,
            json!({
                "phase": "result",
                "name": result.name,
                "toolCallId": result.tool_call_id,
                "isError": result.is_error,
                "result": tool_result(&result.text, &result.details),
            }),
        )],
        EventKind::Final { text, .. } => vec![
            lifecycle(event, end_data(event)),
            chat(
                event,
                ChatState::Final {
                    message: Some(message(text, event.at_ms)),
                    stop_reason: Some("stop".into()),
                },
            ),
        ],
        EventKind::Error {
            message,
            kind,
            started_at_ms,
        } => vec![
            lifecycle(event, error_data(event, message, *started_at_ms)),
            chat(
                event,
                ChatState::Error {
                    message: None,
                    error_message: Some(message.clone()),
                    error_kind: (*kind == ErrorKind::Timeout).then_some("timeout".into()),
                },
            ),
        ],
        EventKind::Aborted { text, reason, .. } => vec![
            lifecycle(event, end_data(event)),
            chat(
                event,
                ChatState::Aborted {
                    message: (!text.is_empty()).then(|| message(text, event.at_ms)),
                    error_message: None,
                    stop_reason: Some(reason.as_str().into()),
                },
            ),
        ],
    }
}

fn text_delta(event: &Event, delta: &str, text: &str) -> Vec<WireEvent> {
    let item_id = format!("{}:text", event.run.run_id);
    let data = json!({"text": text, "delta": delta, "itemId": item_id});
    vec![
        WireEvent::Agent(agent(event, "assistant", data)),
        chat(
            event,
            ChatState::Delta {
                delta_text: delta.to_owned(),
                message: Some(message(text, event.at_ms)),
                replace: None,
            },
        ),
    ]
}

/// The end of a run that was answered or stopped.
fn end_data(event: &Event) -> Value {
    match &event.kind {
        EventKind::Final {
            text,
            started_at_ms,
            tools_used,
            provider,
            model,
        } => json!({
            "phase": "end",
            "startedAt": started_at_ms,
            "endedAt": event.at_ms,
            "aborted": false,
            "stopReason": "stop",
            "livenessState": "working",
            "executionSettled": true,
            "terminalReceipt": {
                "runId": event.run.run_id,
                "sessionId": event.run.session_id,
                "turnId": event.run.run_id,
                "requested": {"provider": provider, "model": model},
                "effective": {"provider": provider, "model": model, "responseModel": model},
                "successfulToolNames": tools_used,
                "rerouted": false,
                "terminalDisposition": "visible",
            },
            "terminalReply": {"disposition": "visible", "text": text},
        }),
        EventKind::Aborted {
            started_at_ms,
            reason,
            ..
        } => json!({
            "phase": "end",
            "startedAt": started_at_ms,
            "endedAt": event.at_ms,
            "aborted": true,
            "stopReason": reason.as_str(),
            "livenessState": "working",
            "executionSettled": true,
        }),
        _ => json!({"phase": "end", "endedAt": event.at_ms}),
    }
}

fn error_data(event: &Event, message: &str, started_at_ms: u64) -> Value {
    json!({
        "phase": "error",
        "startedAt": started_at_ms,
        "endedAt": event.at_ms,
        "error": message,
        "executionSettled": true,
    })
}

fn tool_result(text: &str, details: &Value) -> Value {
    json!({"content": [{"type": "text", "text": text}], "details": details})
}

fn message(text: &str, timestamp: u64) -> ChatMessage {
    ChatMessage {
        role: "assistant".into(),
        content: vec![Part::text(text)],
        timestamp,
    }
}

fn chat(event: &Event, state: ChatState) -> WireEvent {
    WireEvent::Chat(ChatEvent {
        run_id: event.run.run_id.clone(),
        session_key: event.run.session_key.as_str().to_owned(),
        agent_id: Some(AGENT_ID.to_owned()),
        seq: event.seq,
        state,
    })
}

fn agent(event: &Event, stream: &'static str, data: Value) -> AgentEvent {
    AgentEvent {
        run_id: event.run.run_id.clone(),
        seq: event.seq,
        stream: Cow::Borrowed(stream),
        ts: event.at_ms,
        session_key: Some(event.run.session_key.as_str().to_owned()),
        session_id: None,
        agent_id: Some(AGENT_ID.to_owned()),
        is_heartbeat: (event.run.entry == Entrance::Chat).then_some(false),
        data,
    }
}

fn lifecycle(event: &Event, data: Value) -> WireEvent {
    let session_id = Some(event.run.session_id.clone());
    WireEvent::Agent(AgentEvent {
        session_id,
        ..agent(event, "lifecycle", data)
    })
}

fn tool(event: &Event, data: Value) -> WireEvent {
    WireEvent::Agent(agent(event, "tool", data))
}

#[cfg(test)]
mod tests;
