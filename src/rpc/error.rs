//! The wire's `error` object and the codes that clients act on.
//!
//! The strings are the reference's: clients retry, pause or give up by them.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Values of `error.code`.
pub mod code {
    /// The request broke the schema, or a condition of its method.
    pub const INVALID_REQUEST: &str = "INVALID_REQUEST";
    /// The device waits for an operator's approval.
    pub const NOT_PAIRED: &str = "NOT_PAIRED";
    /// The caller is known and may not do this.
    pub const FORBIDDEN: &str = "FORBIDDEN";
    /// The Gateway, or the node that it needs, cannot do this now.
    pub const UNAVAILABLE: &str = "UNAVAILABLE";
}

/// Values of `error.details.code` by which our own clients decide what to do next. The rest stand with their refusals.
pub mod detail {
    pub const AUTH_TOKEN_MISSING: &str = "AUTH_TOKEN_MISSING";
    pub const AUTH_TOKEN_MISMATCH: &str = "AUTH_TOKEN_MISMATCH";
    pub const AUTH_PASSWORD_MISSING: &str = "AUTH_PASSWORD_MISSING";
    pub const AUTH_PASSWORD_MISMATCH: &str = "AUTH_PASSWORD_MISMATCH";
    pub const AUTH_DEVICE_TOKEN_MISMATCH: &str = "AUTH_DEVICE_TOKEN_MISMATCH";
    pub const AUTH_SCOPE_MISMATCH: &str = "AUTH_SCOPE_MISMATCH";
    pub const AUTH_RATE_LIMITED: &str = "AUTH_RATE_LIMITED";
    pub const CLIENT_VERSION_MISMATCH: &str = "CLIENT_VERSION_MISMATCH";
    pub const DEVICE_AUTH_NONCE_MISMATCH: &str = "DEVICE_AUTH_NONCE_MISMATCH";
    pub const DEVICE_AUTH_SIGNATURE_EXPIRED: &str = "DEVICE_AUTH_SIGNATURE_EXPIRED";
    pub const PAIRING_REQUIRED: &str = "PAIRING_REQUIRED";
    pub const PROTOCOL_MISMATCH: &str = "PROTOCOL_MISMATCH";
    pub const DEVICE_IDENTITY_REQUIRED: &str = "DEVICE_IDENTITY_REQUIRED";
    pub const MISSING_SCOPE: &str = "MISSING_SCOPE";
    pub const NOT_CONNECTED: &str = "NOT_CONNECTED";
}

/// What a refused or failed request is answered with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorShape {
    pub code: Cow<'static, str>,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retryable: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl ErrorShape {
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code: Cow::Borrowed(code),
            message: message.into(),
            details: None,
            retryable: None,
            retry_after_ms: None,
        }
    }

    pub fn invalid_request(message: impl Into<String>) -> Self {
        Self::new(code::INVALID_REQUEST, message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(code::UNAVAILABLE, message)
    }

    /// The method exists nowhere in our table. The name is the peer's, so it is escaped and cut.
    pub fn unknown_method(method: &str) -> Self {
        let method = crate::rpc::params::shown(method);
        Self::invalid_request(format!("unknown method: {method}"))
    }

    /// The caller lacks `scope`.
    pub fn missing_scope(scope: &str) -> Self {
        Self::new(code::FORBIDDEN, format!("missing scope: {scope}")).with_details(json!({
            "code": detail::MISSING_SCOPE,
            "missingScope": scope,
            "requiredScopes": [scope],
        }))
    }

    #[must_use]
    pub fn with_details(mut self, details: Value) -> Self {
        self.details = Some(details);
        self
    }

    #[must_use]
    pub fn with_retryable(mut self, retryable: bool) -> Self {
        self.retryable = Some(retryable);
        self
    }

    #[must_use]
    pub fn with_retry_after_ms(mut self, retry_after_ms: u64) -> Self {
        self.retry_after_ms = Some(retry_after_ms);
        self
    }

    /// `details.code`, by which clients decide what to do next.
    pub fn detail_code(&self) -> Option<&str> {
        self.details.as_ref()?.get("code")?.as_str()
    }
}
