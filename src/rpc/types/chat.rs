//! The conversation: `chat.*` and the `chat` event.

use std::borrow::Cow;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::field::non_empty;

/// `chat.send`. The key of idempotency becomes the run's id. Keys that we take and do not serve come last.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChatSendParams {
    #[serde(deserialize_with = "non_empty")]
    pub session_key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliver: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// The newest message that the client has seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_leaf_entry_id: Option<String>,
    /// A message that is text and not a command, even if it looks like one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suppress_command_interpretation: Option<bool>,
    #[serde(deserialize_with = "non_empty")]
    pub idempotency_key: String,

    #[serde(default, skip_serializing)]
    pub attachments: Option<Vec<IgnoredAny>>,
    #[serde(default, skip_serializing)]
    pub intent: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub fast_mode: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub fast_auto_on_seconds: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub queue_mode: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub originating_channel: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub originating_to: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub originating_account_id: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub originating_thread_id: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub reply_to_id: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub tool_bindings: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub system_input_provenance: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub system_provenance_receipt: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub expected_session_routing_contract: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub expected_permission_mode: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub expected_tool_overrides: Option<IgnoredAny>,
}

impl ChatSendParams {
    /// The first key that is there and would change what the message means, had we served it. A caller that sends it
    /// is refused by name rather than half obeyed.
    pub fn unserved(&self) -> Option<&'static str> {
        let has_attachments = self.attachments.as_ref().is_some_and(|a| !a.is_empty());
        [
            ("attachments", has_attachments),
            ("intent", self.intent.is_some()),
            ("toolBindings", self.tool_bindings.is_some()),
            (
                "expectedPermissionMode",
                self.expected_permission_mode.is_some(),
            ),
            (
                "expectedToolOverrides",
                self.expected_tool_overrides.is_some(),
            ),
            (
                "systemInputProvenance",
                self.system_input_provenance.is_some(),
            ),
        ]
        .into_iter()
        .find_map(|(key, is_there)| is_there.then_some(key))
    }
}

/// The answer to `chat.send`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChatSendResult {
    pub run_id: String,
    /// `started`; `ok` when the same key has already been done, `in_flight` while it is under way.
    pub status: Cow<'static, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_seq: Option<u64>,
}

/// `chat.history`. `max_bytes` is not in the published schema; the Control UI sends it and the reference takes it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChatHistoryParams {
    #[serde(deserialize_with = "non_empty")]
    pub session_key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_before: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_run_ids: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_chars: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
}

/// `chat.startup`. The schema does not name its parameters, so other keys are taken and ignored.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChatStartupParams {
    #[serde(deserialize_with = "non_empty")]
    pub session_key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
}

/// `chat.metadata`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChatMetadataParams {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_key: Option<String>,
}

/// `chat.abort`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChatAbortParams {
    #[serde(deserialize_with = "non_empty")]
    pub session_key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preserve_side_runs: Option<bool>,
}

/// The answer to `chat.abort`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChatAbortResult {
    pub ok: bool,
    pub aborted: bool,
    pub run_ids: Vec<String>,
}

/// The answer to `chat.history` and, with `metadata`, to `chat.startup`. Our client reads also the answers to a
/// cursor, which say `kind` and may leave out the session.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChatHistory {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Cow<'static, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    #[serde(default)]
    pub messages: Vec<HistoryMessage>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta_cursor: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_offset: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub has_more: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_messages: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_inputs: Option<PendingInputs>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_info: Option<SessionInfo>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking_level: Option<Cow<'static, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_flight_run: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<ChatMetadata>,
}

/// A message of the history: either plain, or wrapped with the session that it belongs to, as cursors give it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HistoryMessage {
    /// `user`, `assistant`, `toolResult` or `custom`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Cow<'static, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<Cow<'static, str>>,
    /// Of a `toolResult`: which call it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_error: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<serde_json::Value>,
    /// Of a `custom` message: its kind, and whether a chat shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_type: Option<Cow<'static, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display: Option<bool>,
    #[serde(
        rename = "__openclaw",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub record: Option<MessageRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<Box<HistoryMessage>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_seq: Option<u64>,
}

/// What the transcript knows about a message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageRecord {
    pub id: String,
    pub seq: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record_timestamp_ms: Option<u64>,
}

/// A message's content: text, or a list of parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    Text(String),
    Parts(Vec<Part>),
}

/// One part of a message: `text`, or a `toolCall` with its id, name and arguments; of others the type is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub r#type: Cow<'static, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<serde_json::Value>,
}

impl Part {
    pub fn text(text: impl Into<String>) -> Self {
        Self {
            r#type: Cow::Borrowed("text"),
            text: Some(text.into()),
            ..Self::default()
        }
    }
}

/// Messages that wait for the running turn. We queue none.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PendingInputs {
    pub items: Vec<Box<RawValue>>,
    pub total: u64,
}

/// A session as lists and histories describe it: the keys that we can fill truthfully.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionInfo {
    pub key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Cow<'static, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_main: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Cow<'static, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub has_active_run: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_run_ids: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_leaf_entry_id: Option<String>,
}

/// The answer to `chat.metadata`: models and slash commands to offer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatMetadata {
    pub models: Vec<super::agent::ModelChoice>,
    pub commands: Vec<ChatCommand>,
}

/// A slash command. `args` stays as it came.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChatCommand {
    pub name: Cow<'static, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub native_name: Option<Cow<'static, str>>,
    pub text_aliases: Vec<Cow<'static, str>>,
    pub description: Cow<'static, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<Cow<'static, str>>,
    /// `native`, `plugin` or `skill`.
    pub source: Cow<'static, str>,
    /// `both` or `text`.
    pub scope: Cow<'static, str>,
    pub accepts_args: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<serde_json::Value>,
}

/// The `chat` event: how one run of a session is going. `seq` counts within the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChatEvent {
    pub run_id: String,
    pub session_key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    pub seq: u64,
    #[serde(flatten)]
    pub state: ChatState,
}

/// What happened. `Delta` carries the text so far in `message` and what was added in `delta_text`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "state",
    rename_all = "lowercase",
    rename_all_fields = "camelCase"
)]
pub enum ChatState {
    Status {
        phase: Cow<'static, str>,
    },
    Delta {
        delta_text: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<ChatMessage>,
        /// The text so far replaces what was shown before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        replace: Option<bool>,
    },
    Final {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<ChatMessage>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stop_reason: Option<Cow<'static, str>>,
    },
    Aborted {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<ChatMessage>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error_message: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stop_reason: Option<Cow<'static, str>>,
    },
    Error {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<ChatMessage>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error_message: Option<String>,
        /// `refusal`, `timeout`, `rate_limit`, `context_length` or `unknown`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error_kind: Option<Cow<'static, str>>,
    },
}

/// A message as events carry it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    pub role: Cow<'static, str>,
    pub content: Vec<Part>,
    pub timestamp: u64,
}
