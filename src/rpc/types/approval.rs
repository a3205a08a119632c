//! `exec.approval.*`: asking operators about a command, and their answer.
//!
//! The events and lists are written in `hub`, from the Gateway's own records.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

/// `exec.approval.request`. What is bound is `systemRunPlan` and `env`; the fields that repeat a part of the plan must
/// agree with it, and those that only describe are passed over.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExecApprovalRequestParams {
    #[serde(default)]
    pub id: Option<String>,
    #[serde(default)]
    pub command_argv: Option<Vec<String>>,
    #[serde(default)]
    pub system_run_plan: Option<Box<RawValue>>,
    #[serde(default)]
    pub env: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub cwd: Option<String>,
    #[serde(default)]
    pub node_id: Option<String>,
    #[serde(default)]
    pub host: Option<String>,
    #[serde(default)]
    pub agent_id: Option<String>,
    #[serde(default)]
    pub session_key: Option<String>,
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    #[serde(default)]
    pub two_phase: bool,
    #[serde(default, rename = "command")]
    _command: IgnoredAny,
    #[serde(default, rename = "security")]
    _security: IgnoredAny,
    #[serde(default, rename = "ask")]
    _ask: IgnoredAny,
    #[serde(default, rename = "warningText")]
    _warning_text: IgnoredAny,
    #[serde(default, rename = "scope")]
    _scope: IgnoredAny,
    #[serde(default, rename = "unavailableDecisions")]
    _unavailable_decisions: IgnoredAny,
    #[serde(default, rename = "commandSpans")]
    _command_spans: IgnoredAny,
    #[serde(default, rename = "resolvedPath")]
    _resolved_path: IgnoredAny,
    #[serde(default, rename = "sessionId")]
    _session_id: IgnoredAny,
    #[serde(default, rename = "runId")]
    _run_id: IgnoredAny,
    #[serde(default, rename = "toolCallId")]
    _tool_call_id: IgnoredAny,
    #[serde(default, rename = "turnSourceChannel")]
    _turn_source_channel: IgnoredAny,
    #[serde(default, rename = "turnSourceTo")]
    _turn_source_to: IgnoredAny,
    #[serde(default, rename = "turnSourceAccountId")]
    _turn_source_account_id: IgnoredAny,
    #[serde(default, rename = "turnSourceThreadId")]
    _turn_source_thread_id: IgnoredAny,
    #[serde(default, rename = "approvalReviewerDeviceIds")]
    _approval_reviewer_device_ids: IgnoredAny,
    #[serde(default, rename = "requireDeliveryRoute")]
    _require_delivery_route: IgnoredAny,
    #[serde(default, rename = "suppressDelivery")]
    _suppress_delivery: IgnoredAny,
    #[serde(default, rename = "deliverToApprovalClientsOnly")]
    _deliver_to_approval_clients_only: IgnoredAny,
}

/// The first of two answers to `exec.approval.request` with `twoPhase`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecApprovalAccepted<'a> {
    pub status: &'static str,
    pub id: &'a str,
    pub delivery_route: &'static str,
    pub created_at_ms: u64,
    pub expires_at_ms: u64,
}

/// The last answer to `exec.approval.request`, and that to `exec.approval.waitDecision`. No decision is a denial.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecApprovalDecision<'a> {
    pub id: &'a str,
    pub decision: Option<&'static str>,
    pub created_at_ms: u64,
    pub expires_at_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminal_reason: Option<&'static str>,
}

/// `exec.approval.get` and `exec.approval.waitDecision`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecApprovalIdParams {
    pub id: String,
}

/// `exec.approval.resolve`. Who reviewed it on some channel, and how long a grant lasts, are not served.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecApprovalResolveParams {
    pub id: String,
    pub decision: String,
}

/// `approval.resolve`, for approvals of every kind.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApprovalResolveParams {
    pub id: String,
    pub kind: String,
    pub decision: String,
}

/// `exec.approvals.node.get` and `.set`; the file is the node's to judge.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExecApprovalsNodeParams {
    pub node_id: String,
    #[serde(default)]
    pub file: Option<Box<RawValue>>,
    #[serde(default)]
    pub base_hash: Option<String>,
}

/// What waits, as our command line reads it from `exec.approval.list` and `exec.approval.requested`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecApprovalEntry {
    pub id: String,
    pub request: ExecApprovalShown,
    pub expires_at_ms: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExecApprovalShown {
    pub command: String,
    pub cwd: Option<String>,
    pub node_id: Option<String>,
    pub node_name: Option<String>,
    pub requested_by: Option<String>,
    pub system_run_plan: Value,
    pub agent_id: Option<String>,
    pub session_key: Option<String>,
    pub env: BTreeMap<String, String>,
    pub allowed_decisions: Vec<String>,
    pub binding_sha256: Option<String>,
    pub warning_text: Option<String>,
}
