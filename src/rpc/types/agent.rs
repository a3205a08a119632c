//! Agent runs, and the lists of agents, models and sessions.

use std::borrow::Cow;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::chat::SessionInfo;
use super::field::non_empty;

/// `agent`. The key of idempotency becomes the run's id. Keys that we take and do not serve come last.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentParams {
    #[serde(deserialize_with = "non_empty")]
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliver: Option<bool>,
    /// Seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    #[serde(deserialize_with = "non_empty")]
    pub idempotency_key: String,

    #[serde(default, skip_serializing)]
    pub provider: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub model: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub to: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub reply_to: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub expected_existing_session_id: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub attachments: Option<Vec<IgnoredAny>>,
    #[serde(default, skip_serializing)]
    pub channel: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub reply_channel: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub account_id: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub reply_account_id: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub thread_id: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub group_id: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub group_channel: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub group_space: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub best_effort_deliver: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub cwd: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub cleanup_bundle_mcp_on_run_end: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub model_run: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub prompt_mode: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub extra_system_prompt: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub bootstrap_context_mode: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub bootstrap_context_run_kind: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub acp_turn_source: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub internal_runtime_handoff_id: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub internal_execution_identity_retry: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub internal_execution_identity_recovery_attempt: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub exec_approval_followup_expected_session_id: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub internal_events: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub input_provenance: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub suppress_prompt_persistence: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub session_effects: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub source_reply_delivery_mode: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub disable_message_tool: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub swarm_collector: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub swarm_output_schema: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub force_restart_safe_tools: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub force_code_mode_tools: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub voice_wake_trigger: Option<IgnoredAny>,
}

impl AgentParams {
    /// The first key that is there and would change what the run does, had we served it. A caller that sends it is
    /// refused by name rather than half obeyed.
    pub fn unserved(&self) -> Option<&'static str> {
        let has_attachments = self.attachments.as_ref().is_some_and(|a| !a.is_empty());
        [
            ("provider", self.provider.is_some()),
            ("model", self.model.is_some()),
            ("to", self.to.is_some()),
            ("replyTo", self.reply_to.is_some()),
            ("attachments", has_attachments),
            ("channel", self.channel.is_some()),
            ("replyChannel", self.reply_channel.is_some()),
            ("cwd", self.cwd.is_some()),
            ("extraSystemPrompt", self.extra_system_prompt.is_some()),
            ("internalEvents", self.internal_events.is_some()),
            ("inputProvenance", self.input_provenance.is_some()),
            ("swarmOutputSchema", self.swarm_output_schema.is_some()),
        ]
        .into_iter()
        .find_map(|(key, is_there)| is_there.then_some(key))
    }
}

/// The first answer to `agent`: the run has begun. The second, under the same id, is `AgentFinished`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentAccepted {
    pub run_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    /// Always `accepted`.
    pub status: Cow<'static, str>,
    pub accepted_at: u64,
}

/// The second answer to `agent`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentFinished {
    pub run_id: String,
    /// `ok`, `error` or `timeout`.
    pub status: Cow<'static, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<AgentResult>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentResult {
    pub payloads: Vec<AgentReply>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<AgentMeta>,
}

/// One thing that the agent said; `mediaUrl` is `null` here always.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentReply {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    #[serde(default)]
    pub media_url: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentMeta {
    pub duration_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_meta: Option<Value>,
    /// Ours: the run's latest tool call came to no result. `code`, `dispatched` and `category` say how.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_refused: Option<Value>,
}

/// `agent.wait`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentWaitParams {
    #[serde(deserialize_with = "non_empty")]
    pub run_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// The answer to `agent.wait`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentWaited {
    pub run_id: String,
    /// `ok`, `error` or `timeout`.
    pub status: Cow<'static, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<Cow<'static, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The `agent` event: one step of a run. `stream` says what kind; `data` is that kind's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentEvent {
    pub run_id: String,
    /// Counts within the run.
    pub seq: u64,
    /// `lifecycle`, `assistant`, `tool`, …
    pub stream: Cow<'static, str>,
    pub ts: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    /// Said of runs that a chat began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_heartbeat: Option<bool>,
    pub data: Value,
}

/// The answer to `agents.list`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentsList {
    pub default_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ownership: Option<Cow<'static, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selection_required: Option<bool>,
    pub main_key: String,
    /// `per-sender` or `global`.
    pub scope: Cow<'static, str>,
    pub agents: Vec<AgentSummary>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentSummary {
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Cow<'static, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<AgentModel>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentModel {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<String>,
}

/// `agent.identity.get`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentIdentityParams {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_key: Option<String>,
}

/// The answer to `agent.identity.get`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentIdentity {
    pub agent_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `config`, `agent`, `workspace` or `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_source: Option<Cow<'static, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub avatar: Option<String>,
}

/// `models.list`. `session_key` is not in the published schema; the Control UI sends it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelsListParams {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include_provider_capabilities: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prepared_only: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view: Option<String>,
}

/// The answer to `models.list`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelsList {
    pub models: Vec<ModelChoice>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelChoice {
    pub id: String,
    pub name: String,
    pub provider: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_window: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<String>>,
}

/// `sessions.list`. Keys that we take and do not serve only widen the answer, so they come last and are ignored.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SessionsListParams {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_minutes: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spawned_by: Option<String>,

    #[serde(default, skip_serializing)]
    pub require_last_interaction: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub sort_by: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub include_global: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub include_unknown: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub configured_agents_only: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub include_derived_titles: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub include_last_message: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub board_face: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub creator_id: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub owner_id: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub owner_first: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub involving_me: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub involving_profile_id: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub include_people: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub archived: Option<IgnoredAny>,
}

/// The answer to `sessions.list`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionsList {
    pub ts: u64,
    pub count: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_count: Option<u64>,
    #[serde(default)]
    pub next_offset: Option<u64>,
    #[serde(default)]
    pub has_more: bool,
    pub sessions: Vec<SessionInfo>,
}
