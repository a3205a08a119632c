//! The parameters of `connect`, as the official clients send them.

use serde_json::{Value, json};

use super::device::Form;
use super::{Device, PASSWORD};

/// Every scope that an operator can have.
pub(crate) const ADMIN: &[&str] = &[
    "operator.admin",
    "operator.read",
    "operator.write",
    "operator.approvals",
    "operator.pairing",
];

/// `connect` in the making.
#[derive(Clone)]
pub(crate) struct Connect {
    pub(crate) params: Value,
    pub(crate) form: Form,
}

impl Connect {
    /// The local command line: no device, the shared password, every scope.
    pub(crate) fn cli() -> Self {
        Self::as_client("cli", "cli")
            .password(PASSWORD)
            .scopes(ADMIN)
    }

    /// A node host that declares one command, with the shared password.
    pub(crate) fn node() -> Self {
        let mut node = Self::as_client("node-host", "node").password(PASSWORD);
        node.params["role"] = json!("node");
        node.params["caps"] = json!(["system"]);
        node.params["commands"] = json!(["system.which"]);
        node.params["client"]["deviceFamily"] = json!("Linux");
        node
    }

    /// An operator without scopes and without a secret.
    pub(crate) fn as_client(id: &str, mode: &str) -> Self {
        let params = json!({
            "minProtocol": 4,
            "maxProtocol": 4,
            "client": {"id": id, "version": "2026.9.6", "platform": "linux", "mode": mode},
            "role": "operator",
            "scopes": [],
        });
        Self {
            params,
            form: Form::V3,
        }
    }

    pub(crate) fn scopes(self, scopes: &[&str]) -> Self {
        self.with("scopes", json!(scopes))
    }

    pub(crate) fn password(self, password: &str) -> Self {
        self.with("auth", json!({"password": password}))
    }

    pub(crate) fn device_token(self, token: &str) -> Self {
        self.with("auth", json!({"deviceToken": token}))
    }

    pub(crate) fn with(mut self, key: &str, value: Value) -> Self {
        self.params[key] = value;
        self
    }

    pub(crate) fn without(mut self, key: &str) -> Self {
        self.params.as_object_mut().unwrap().remove(key);
        self
    }

    pub(crate) fn with_client(mut self, key: &str, value: Value) -> Self {
        self.params["client"][key] = value;
        self
    }

    #[allow(dead_code)]
    pub(crate) fn form(mut self, form: Form) -> Self {
        self.form = form;
        self
    }

    /// Adds the proof for a challenge.
    pub(crate) fn signed(mut self, device: &Device, nonce: &str, signed_at: u64) -> Self {
        self.params["device"] = device.prove(&self.params, nonce, signed_at, self.form);
        self
    }
}
