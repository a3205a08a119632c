//! Nodes: pairing of what they offer, listing, and the call that makes one execute.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::client::ClientSummary;
use super::field::non_empty;

// Approval of what a node offers.

/// `node.pair.approve` and `node.pair.reject`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodePairDecideParams {
    #[serde(deserialize_with = "non_empty")]
    pub request_id: String,
    /// Ours, beyond the schema: approve only these commands. Absent approves all that the node declares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commands: Option<Vec<String>>,
}

/// `node.pair.remove` and `node.describe`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeIdParams {
    #[serde(deserialize_with = "non_empty")]
    pub node_id: String,
}

/// `node.rename`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeRenameParams {
    #[serde(deserialize_with = "non_empty")]
    pub node_id: String,
    #[serde(deserialize_with = "non_empty")]
    pub display_name: String,
}

/// The answer to `node.pair.list`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodePairList {
    pub pending: Vec<PendingNode>,
    pub paired: Vec<PairedNode>,
}

/// A node whose declared surface waits for an operator; also the `node.pair.requested` event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PendingNode {
    pub request_id: String,
    pub node_id: String,
    #[serde(flatten)]
    pub client: ClientSummary,
    pub caps: Vec<String>,
    pub commands: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub required_approve_scopes: Vec<Cow<'static, str>>,
    /// Ours: what the connected node declares besides, and the policy does not permit. It cannot be approved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_permitted_commands: Vec<String>,
    /// Ours: what is approved now, so that the request can be read as a difference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved_commands: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_ip: Option<String>,
    /// Ours: the transport path of the declaring session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent: Option<bool>,
    pub ts: u64,
}

/// A node whose surface was approved.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PairedNode {
    pub node_id: String,
    #[serde(flatten)]
    pub client: ClientSummary,
    pub caps: Vec<String>,
    pub commands: Vec<String>,
    pub created_at_ms: u64,
    pub approved_at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_connected_at_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_disconnected_at_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_at_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_host_stats: Option<HostStats>,
}

/// The answer to `node.pair.approve`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePairApproved {
    pub request_id: String,
    pub node: PairedNode,
}

/// The answer to `node.pair.reject`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePairRejected {
    pub request_id: String,
    pub node_id: String,
}

/// The answer to `node.pair.remove`; also what `node.runnerInventory.update` is answered with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeIdResult {
    pub node_id: String,
}

/// The answer to `node.rename`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRenamed {
    pub node_id: String,
    pub display_name: String,
}

/// The `node.pair.resolved` event, to operators and to the node itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePairResolvedEvent {
    pub request_id: String,
    pub node_id: String,
    /// `approved`, `rejected` or `expired`.
    pub decision: Cow<'static, str>,
    pub ts: u64,
}

// Listing.

/// The answer to `node.list`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeList {
    pub ts: u64,
    pub nodes: Vec<NodeEntry>,
}

/// The answer to `node.describe`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeDescription {
    pub ts: u64,
    #[serde(flatten)]
    pub node: NodeEntry,
}

/// One known node. `caps` and `commands` are those that are approved and permitted, not those declared.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeEntry {
    pub node_id: String,
    #[serde(flatten)]
    pub client: ClientSummary,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_identifier: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_ip: Option<String>,
    pub caps: Vec<String>,
    pub commands: Vec<String>,
    /// Whether agent sessions can live there; the reference's, always false here.
    #[serde(default)]
    pub session_host: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_plugin_tools: Option<Vec<serde_json::Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_env: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_stats: Option<HostStats>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval_state: Option<NodeApprovalState>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_request_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_declared_caps: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_declared_commands: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connected_at_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_connected_at_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_disconnected_at_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_at_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved_at_ms: Option<u64>,
    pub paired: bool,
    pub connected: bool,
}

/// How far a node's surface has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeApprovalState {
    Unapproved,
    PendingApproval,
    Approved,
    /// Approved before, and it now declares more.
    PendingReapproval,
}

/// A node's own measurements.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostStats {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_count: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_average: Option<Vec<f64>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_total_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_free_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_total_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_available_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at_ms: Option<u64>,
}

// The call.

/// `node.invoke`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeInvokeParams {
    #[serde(deserialize_with = "non_empty")]
    pub node_id: String,
    #[serde(deserialize_with = "non_empty")]
    pub command: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    #[serde(deserialize_with = "non_empty")]
    pub idempotency_key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn_source_channel: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn_source_to: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn_source_account_id: Option<String>,
    /// A string or a number; not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn_source_thread_id: Option<Box<RawValue>>,
}

/// The answer to `node.invoke`. `payload` is the node's result; `payload_json` the same as text, when it came as text.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInvokeResult<'a> {
    pub ok: bool,
    pub node_id: String,
    pub command: String,
    #[serde(default)]
    pub payload: Option<Cow<'a, RawValue>>,
    #[serde(rename = "payloadJSON", default)]
    pub payload_json: Option<Cow<'a, str>>,
    /// Ours, beyond the reference: whether the command reached the node, in the words of `error.details.dispatched`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dispatched: Option<Cow<'static, str>>,
    /// Ours: the node answered after this invocation's caller had been told that it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late: Option<bool>,
    /// Ours; absent when what is on record is answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timing: Option<NodeInvokeTiming>,
}

/// How long the parts of an invocation took: until the frame for the node, until the node's answer, and in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInvokeTiming {
    pub queue_ms: u64,
    pub execution_ms: u64,
    pub total_ms: u64,
}

/// The `node.invoke.request` event, to one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInvokeRequestEvent {
    pub id: String,
    pub node_id: String,
    pub command: String,
    /// The caller's parameters as JSON text, or `null`.
    #[serde(rename = "paramsJSON", default)]
    pub params_json: Option<String>,
    /// What is left of the caller's time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// Ours, and only to nodes that are ours: somebody listens to what the command prints while it runs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub progress: bool,
}

/// The `node.invoke.cancel` event, to one node, which sends nothing more for this call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInvokeCancelEvent {
    pub invoke_id: String,
    pub node_id: String,
}

/// `node.invoke.result`, from the node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeInvokeResultParams {
    #[serde(deserialize_with = "non_empty")]
    pub id: String,
    #[serde(deserialize_with = "non_empty")]
    pub node_id: String,
    pub ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Box<RawValue>>,
    #[serde(
        rename = "payloadJSON",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub payload_json: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<NodeError>,
}

/// What a node says when it fails.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeError {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The answer to `node.invoke.result`; `ignored` when the call is not, or no longer, under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInvokeResultAck {
    pub ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignored: Option<bool>,
}

/// `node.invoke.progress`, from the node. A chunk has at most 16,384 characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeInvokeProgressParams {
    #[serde(deserialize_with = "non_empty")]
    pub invoke_id: String,
    #[serde(deserialize_with = "non_empty")]
    pub node_id: String,
    pub seq: u64,
    pub chunk: String,
}

/// Ours: the event [`NodeProgressEvent::NAME`], to the caller of `node.invoke` whose `connect.caps` name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeProgressEvent {
    pub node_id: String,
    /// Of the call that it belongs to.
    pub idempotency_key: String,
    /// As the node counts, from 0; what was dropped for a slow reader is missing.
    pub seq: u64,
    pub chunk: String,
}

impl NodeProgressEvent {
    pub const NAME: &str = "portcullis.node.invoke.progress";
}

// What a node reports by itself.

/// `node.event`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeEventParams {
    #[serde(deserialize_with = "non_empty")]
    pub event: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Box<RawValue>>,
    #[serde(
        rename = "payloadJSON",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub payload_json: Option<String>,
}

/// The answer to `node.event`; `exec.*` events are answered with `ok` alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEventResult {
    pub ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handled: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'static, str>>,
}

/// `node.runnerInventory.update`. Not in the schema and not used: every key is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRunnerInventoryParams {}

/// `node.skills.update`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSkillsParams {
    pub skills: Vec<NodeSkill>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSkill {
    #[serde(deserialize_with = "non_empty")]
    pub name: String,
    #[serde(deserialize_with = "non_empty")]
    pub description: String,
    pub content: String,
}

/// The answer to `node.skills.update`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeSkillsResult {
    pub node_id: String,
    pub skills: Vec<NodeSkill>,
}

/// `node.pluginTools.update`. Tools stay raw: we serve none of them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodePluginToolsParams {
    pub tools: Vec<Box<RawValue>>,
}

/// The answer to `node.pluginTools.update`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePluginToolsResult {
    pub node_id: String,
    pub tools: Vec<Box<RawValue>>,
}

/// `node.pending.ack`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodePendingAckParams {
    pub ids: Vec<String>,
}

/// The answer to `node.pending.pull`. We keep no queue for sleeping nodes, so it is empty.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePendingPulled {
    pub node_id: String,
    pub actions: Vec<Box<RawValue>>,
}

/// The answer to `node.pending.ack`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePendingAcked {
    pub node_id: String,
    pub acked_ids: Vec<String>,
    pub remaining_count: u64,
}

/// `node.pending.drain`; `max_items` is from 1 to 10.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodePendingDrainParams {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_items: Option<u32>,
}

/// The answer to `node.pending.drain`, empty for the same reason.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePendingDrained {
    pub node_id: String,
    pub revision: u64,
    pub items: Vec<Box<RawValue>>,
    pub has_more: bool,
}
