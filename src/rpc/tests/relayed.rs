//! What `node.invoke` carries for `system.*` and what a node reports, as recorded. The program relays these as JSON, and
//! where it plans or executes a command it has types that say less; these say all, so that a change on the wire is seen.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `system.which`: finds programs by name. A name with a slash is never found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SystemWhichParams {
    pub(super) bins: Vec<String>,
}

/// The programs that were found, by name; the others are absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SystemWhichResult {
    pub(super) bins: BTreeMap<String, String>,
}

/// How freely a node executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ExecSecurity {
    Deny,
    Allowlist,
    Full,
}

/// When a node asks for an approval first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ExecAsk {
    Off,
    OnMiss,
    Always,
}

/// `system.run.prepare`: asks for the plan of a command without executing it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SystemRunPrepareParams {
    pub(super) command: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) raw_command: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cwd: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) agent_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) session_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) env: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) security: Option<ExecSecurity>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ask: Option<ExecAsk>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) strict_inline_eval: Option<bool>,
}

/// The answer to `system.run.prepare`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SystemRunPrepared {
    pub(super) plan: SystemRunPlan,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) exec_policy: Option<ExecPolicy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) allow_always_coverage: Option<AllowAlwaysCoverage>,
}

/// Exactly what would be executed. An approval is bound to it; keys without `skip` are `null` when absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SystemRunPlan {
    pub(super) argv: Vec<String>,
    #[serde(default)]
    pub(super) cwd: Option<String>,
    pub(super) command_text: String,
    #[serde(default)]
    pub(super) command_preview: Option<String>,
    #[serde(default)]
    pub(super) agent_id: Option<String>,
    #[serde(default)]
    pub(super) session_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) mutable_file_operand: Option<MutableFileOperand>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) policy_snapshot: Option<PolicySnapshot>,
}

/// The file whose content an approval covers; `sha256` is lower-case hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MutableFileOperand {
    pub(super) argv_index: u32,
    pub(super) path: String,
    pub sha256: String,
}

/// The node's policy when the plan was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PolicySnapshot {
    pub(super) security: ExecSecurity,
    pub(super) ask: ExecAsk,
    pub(super) ask_fallback: ExecSecurity,
    pub(super) auto_allow_skills: bool,
    pub(super) allowlist_rules: Vec<AllowlistRule>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AllowlistRule {
    pub(super) pattern: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) arg_pattern: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ExecPolicy {
    pub(super) security: ExecSecurity,
    pub(super) ask: ExecAsk,
}

/// Which rules an `allow-always` would write, and whether they would cover the whole command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AllowAlwaysCoverage {
    pub(super) complete: bool,
    pub(super) patterns: Vec<AllowlistRule>,
}

/// `system.run`. The last three keys carry an approval and are only ever written from our own record of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SystemRunParams {
    pub(super) command: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) raw_command: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) system_run_plan: Option<SystemRunPlan>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cwd: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) env: Option<BTreeMap<String, String>>,
    /// Absent or 0: no limit of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) timeout_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) needs_screen_recording: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) agent_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) session_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) run_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) suppress_notify_on_exit: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) approved: Option<bool>,
    /// `allow-once`, `allow-always` or `deny`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) approval_decision: Option<Cow<'static, str>>,
    /// `ask-fallback` or `auto-review`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) approval_source: Option<Cow<'static, str>>,
}

/// The answer to `system.run`. A command that fails is an answer, not an error; without `exit_code` it was killed or
/// never started, and `error` says why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SystemRunResult {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) exit_code: Option<i32>,
    pub(super) timed_out: bool,
    pub(super) success: bool,
    pub(super) stdout: String,
    pub(super) stderr: String,
    #[serde(default)]
    pub(super) error: Option<String>,
}

/// The payload of the node's `exec.finished` event. `output` is the tail, at most 20,000 characters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ExecFinished {
    pub(super) session_key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) run_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) host: Option<Cow<'static, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) command: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) exit_code: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) timed_out: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) success: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) output: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) suppress_notify_on_exit: Option<bool>,
}

/// The payload of the node's `exec.denied` event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ExecDenied {
    pub(super) session_key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) run_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) host: Option<Cow<'static, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) command: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) suppress_notify_on_exit: Option<bool>,
}
