//! Devices and their tokens: `device.pair.*` and `device.token.*`.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::client::ClientSummary;
use super::field::{masked, non_empty, secret_option};
use super::node::HostStats;
use crate::base::Secret;

/// `device.pair.approve` and `device.pair.reject`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DevicePairDecideParams {
    #[serde(deserialize_with = "non_empty")]
    pub request_id: String,
}

/// `device.pair.remove`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DevicePairRemoveParams {
    #[serde(deserialize_with = "non_empty")]
    pub device_id: String,
}

/// `device.pair.rename`; also its answer. The label has at most 64 characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DevicePairRename {
    #[serde(deserialize_with = "non_empty")]
    pub device_id: String,
    #[serde(deserialize_with = "non_empty")]
    pub label: String,
}

/// `device.token.rotate`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceTokenRotateParams {
    #[serde(deserialize_with = "non_empty")]
    pub device_id: String,
    #[serde(deserialize_with = "non_empty")]
    pub role: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Vec<String>>,
}

/// `device.token.revoke`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceTokenRevokeParams {
    #[serde(deserialize_with = "non_empty")]
    pub device_id: String,
    #[serde(deserialize_with = "non_empty")]
    pub role: String,
}

/// The answer to `device.pair.list`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DevicePairList {
    pub pending: Vec<PendingDevice>,
    pub paired: Vec<PairedDevice>,
}

/// A device that waits for an operator; also the `device.pair.requested` event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PendingDevice {
    pub request_id: String,
    pub device_id: String,
    pub public_key: String,
    #[serde(flatten)]
    pub client: ClientSummary,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub browser_origin: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_ip: Option<String>,
    /// Ours, in the list only: the transport path that it came over. The event's schema is closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_repair: Option<bool>,
    pub ts: u64,
}

/// A device that was approved, with what it may be and which tokens it holds. Tokens themselves are not here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PairedDevice {
    pub device_id: String,
    pub public_key: String,
    #[serde(flatten)]
    pub client: ClientSummary,
    /// The operator's name for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    pub roles: Vec<String>,
    pub scopes: Vec<String>,
    /// `owner` for an operator's approval, `silent` for a local one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved_via: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_surface: Option<NodeSurface>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_node_surface: Option<PendingNodeSurface>,
    pub created_at_ms: u64,
    pub approved_at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_at_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connected: Option<bool>,
    pub tokens: Vec<DeviceTokenSummary>,
}

/// The capabilities and commands of a node that an operator has approved.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeSurface {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    pub caps: Vec<String>,
    pub commands: Vec<String>,
    pub created_at_ms: u64,
    pub approved_at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_connected_at_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_disconnected_at_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_host_stats: Option<HostStats>,
}

/// What a node declares and an operator has not approved yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PendingNodeSurface {
    pub request_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Without the client's id and mode, which the device has.
    #[serde(flatten)]
    pub client: ClientSummary,
    pub caps: Vec<String>,
    pub commands: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent: Option<bool>,
    pub ts: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceTokenSummary {
    pub role: String,
    pub scopes: Vec<String>,
    pub created_at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotated_at_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at_ms: Option<u64>,
}

/// The answer to `device.pair.approve`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DevicePairApproved {
    pub request_id: String,
    pub device: PairedDevice,
}

/// The answer to `device.pair.reject`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DevicePairRejected {
    pub request_id: String,
    pub device_id: String,
}

/// The answer to `device.pair.remove`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DevicePairRemoved {
    pub device_id: String,
}

/// The answer to `device.token.rotate`. The token is there only when the device itself asked.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceTokenRotated {
    pub device_id: String,
    pub role: String,
    #[serde(
        default,
        with = "secret_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub token: Option<Secret>,
    pub scopes: Vec<String>,
    pub rotated_at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_delivery: Option<TokenDelivery>,
}

impl fmt::Debug for DeviceTokenRotated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceTokenRotated")
            .field("device_id", &self.device_id)
            .field("role", &self.role)
            .field("token", &masked(self.token.as_ref()))
            .field("scopes", &self.scopes)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenDelivery {
    InBand,
    /// The caller is another device, or comes in the clear; the owner gets a token at its next connect that may carry one.
    WithheldCrossDevice,
}

/// The answer to `device.token.revoke`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceTokenRevoked {
    pub device_id: String,
    pub role: String,
    pub revoked_at_ms: u64,
}

/// The `device.pair.resolved` event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DevicePairResolvedEvent {
    pub request_id: String,
    pub device_id: String,
    /// `approved`, `rejected` or `expired`.
    pub decision: Cow<'static, str>,
    pub ts: u64,
}
