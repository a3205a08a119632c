//! `connect.challenge`, `connect` and `hello-ok`.
//!
//! `connect` is the first thing that a stranger says, so its parameters are read exactly as the schema says, plus the
//! one key beyond it that the Control UI sends.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::field::{
    at_least_one, masked, non_empty, non_empty_list, non_empty_list_option, non_empty_option,
    object, object_option, present, secret_option,
};
use super::health::Health;
use super::presence::{PresenceEntry, StateVersion};
use crate::base::Secret;
use crate::base::names::names;

/// The protocol version that we speak.
pub const PROTOCOL: u32 = 4;
/// The oldest version that nodes and probes may offer as their newest.
pub const PROTOCOL_MIN_NODE: u32 = 3;

/// The `connect.challenge` event: the first frame of every connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    pub nonce: String,
    /// Unix milliseconds; clients sign it as `signedAt`.
    pub ts: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<Cow<'static, str>>,
}

names! {
    /// The program that connects. A closed list: the reference refuses any other name.
    pub enum ClientId {
        WebchatUi = "webchat-ui",
        ControlUi = "openclaw-control-ui",
        BrowserCopilot = "openclaw-browser-copilot",
        Tui = "openclaw-tui",
        Webchat = "webchat",
        Cli = "cli",
        GatewayClient = "gateway-client",
        Macos = "openclaw-macos",
        Linux = "openclaw-linux",
        Ios = "openclaw-ios",
        Watchos = "openclaw-watchos",
        Android = "openclaw-android",
        NodeHost = "node-host",
        Worker = "openclaw-worker",
        Test = "test",
        Fingerprint = "fingerprint",
        Probe = "openclaw-probe",
    }
}

names! {
    /// How the program is used. A closed list.
    pub enum ClientMode {
        Webchat = "webchat",
        Cli = "cli",
        Ui = "ui",
        Backend = "backend",
        Node = "node",
        Worker = "worker",
        Probe = "probe",
        Test = "test",
    }
}

/// `connect`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConnectParams {
    #[serde(deserialize_with = "at_least_one")]
    pub min_protocol: u32,
    #[serde(deserialize_with = "at_least_one")]
    pub max_protocol: u32,
    #[serde(deserialize_with = "object")]
    pub client: ClientInfo,
    #[serde(default, deserialize_with = "non_empty_list")]
    pub caps: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "non_empty_list_option")]
    pub commands: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub computer_use: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "object_option")]
    pub worker_runs: Option<WorkerRuns>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "present")]
    pub permissions: Option<BTreeMap<String, bool>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "present")]
    pub path_env: Option<String>,
    /// As sent: whether it is a role is admission's to say, with a refusal of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "non_empty_option")]
    pub role: Option<String>,
    /// As sent, in order and with repetitions: this is what the device has signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "non_empty_list_option")]
    pub scopes: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "object_option")]
    pub device: Option<DeviceProof>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "object_option")]
    pub auth: Option<ConnectAuth>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "present")]
    pub locale: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "present")]
    pub user_agent: Option<String>,
    /// Not in the published schema; the Control UI sends it and the reference takes it. Not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_catalog: Option<Box<RawValue>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientInfo {
    pub id: ClientId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "non_empty_option")]
    pub display_name: Option<String>,
    #[serde(deserialize_with = "non_empty")]
    pub version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "non_empty_option")]
    pub build_id: Option<String>,
    #[serde(deserialize_with = "non_empty")]
    pub platform: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "non_empty_option")]
    pub device_family: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "non_empty_option")]
    pub model_identifier: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "non_empty_option")]
    pub time_zone: Option<String>,
    pub mode: ClientMode,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "non_empty_option")]
    pub instance_id: Option<String>,
}

/// A device's identity and its signature over this connection; `auth::device` verifies it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceProof {
    #[serde(deserialize_with = "non_empty")]
    pub id: String,
    #[serde(deserialize_with = "non_empty")]
    pub public_key: String,
    #[serde(deserialize_with = "non_empty")]
    pub signature: String,
    pub signed_at: u64,
    #[serde(deserialize_with = "non_empty")]
    pub nonce: String,
}

/// Credentials as sent; each may be empty. `Debug` shows which are there and never what they say.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ConnectAuth {
    #[serde(with = "secret_option", skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    #[serde(with = "secret_option", skip_serializing_if = "Option::is_none")]
    pub bootstrap_token: Option<Secret>,
    #[serde(with = "secret_option", skip_serializing_if = "Option::is_none")]
    pub device_token: Option<Secret>,
    #[serde(with = "secret_option", skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    #[serde(with = "secret_option", skip_serializing_if = "Option::is_none")]
    pub approval_runtime_token: Option<Secret>,
    #[serde(with = "secret_option", skip_serializing_if = "Option::is_none")]
    pub agent_runtime_identity_token: Option<Secret>,
}

impl fmt::Debug for ConnectAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectAuth")
            .field("token", &masked(self.token.as_ref()))
            .field("bootstrap_token", &masked(self.bootstrap_token.as_ref()))
            .field("device_token", &masked(self.device_token.as_ref()))
            .field("password", &masked(self.password.as_ref()))
            .finish_non_exhaustive()
    }
}

/// What a worker of the reference declares. We have no workers; the key is read so that it is refused as one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkerRuns {
    #[serde(deserialize_with = "non_empty")]
    pub bundle_hash: String,
    #[serde(deserialize_with = "non_empty")]
    pub openclaw_version: String,
    #[serde(deserialize_with = "non_empty_list")]
    pub protocol_features: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "present")]
    pub bundle_prewarm: Option<u64>,
}

/// The answer to `connect`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HelloOk {
    /// Always `hello-ok`.
    pub r#type: Cow<'static, str>,
    pub protocol: u32,
    pub server: ServerInfo,
    pub features: Features,
    pub snapshot: Snapshot,
    pub auth: HelloAuth,
    pub policy: Policy,
}

impl HelloOk {
    pub const TYPE: &'static str = "hello-ok";
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerInfo {
    pub version: Cow<'static, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    pub conn_id: String,
}

/// What this Gateway serves, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    pub methods: Vec<Cow<'static, str>>,
    pub events: Vec<Cow<'static, str>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<Cow<'static, str>>,
}

/// What the client would otherwise have to ask for first. A node's presence list is empty.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    pub presence: Vec<PresenceEntry>,
    pub health: Health,
    pub state_version: StateVersion,
    pub uptime_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_defaults: Option<SessionDefaults>,
    /// `none`, `token`, `password` or `trusted-proxy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_mode: Option<Cow<'static, str>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionDefaults {
    pub default_agent_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_configured: Option<bool>,
    pub main_key: String,
    pub main_session_key: String,
    /// `per-sender` or `global`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Cow<'static, str>>,
}

/// What the caller may do here, and its device token on the one occasion when that is issued.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HelloAuth {
    pub role: Cow<'static, str>,
    pub scopes: Vec<Cow<'static, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(with = "secret_option")]
    pub device_token: Option<Secret>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_at_ms: Option<u64>,
}

impl fmt::Debug for HelloAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HelloAuth")
            .field("role", &self.role)
            .field("scopes", &self.scopes)
            .field("device_token", &masked(self.device_token.as_ref()))
            .field("issued_at_ms", &self.issued_at_ms)
            .finish()
    }
}

/// The bounds that the client is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    pub max_payload: usize,
    pub max_buffered_bytes: usize,
    pub tick_interval_ms: u64,
}
