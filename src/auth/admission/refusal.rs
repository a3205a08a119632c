//! Why a `connect` is refused: code, message, details, close code and the operator's remedy.

use std::borrow::Cow;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::PairingReason;
use crate::auth::device::DeviceError;
use crate::auth::scope::Role;
use crate::auth::whois::WhoisRefusal;
use crate::base::{DeviceId, Refusal};
use crate::ingress::ProxyUserRefusal;
use crate::rpc::ErrorShape;
use crate::rpc::types::connect::{PROTOCOL, PROTOCOL_MIN_NODE};

/// A close frame's reason is cut here, as the reference cuts it; RFC 6455 §5.5 allows 123 bytes.
const CLOSE_REASON_BYTES_MAX: usize = 120;

/// Which configured secret a message speaks of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SecretKind {
    Token,
    Password,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AdmissionRefusal {
    /// The worker roles of the reference do not exist here.
    Worker,
    ProtocolMismatch {
        min: u32,
        max: u32,
    },
    InvalidRole,
    /// A browser's client id without an Origin.
    OriginMissing,
    DeviceIdentityRequired,
    Device(DeviceError),
    /// A credential on a connection that others can read (decision 10).
    PlaintextCredential,
    SecretMissing(SecretKind),
    SecretMismatch {
        kind: SecretKind,
        /// The device may have a token of its own and has not tried it.
        may_retry_with_device_token: bool,
    },
    SecretNotConfigured(SecretKind),
    /// Secrets are not resolved yet, and a little later they will be.
    Starting,
    DeviceTokenMismatch,
    ScopeMismatch,
    SignInLinkInvalid,
    RateLimited {
        retry_after: Duration,
    },
    Tailscale(WhoisRefusal),
    ProxyUser(ProxyUserRefusal),
    /// Mode `none` serves this host's own programs and pages only.
    NotLocal,
    PairingRequired(Box<PairingRequired>),
    /// No more pairing requests can wait for approval.
    PairingQueueFull,
    /// The page in the browser is older than this Gateway.
    ReloadRequired {
        build_id: String,
    },
}

/// The facts of `PAIRING_REQUIRED`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PairingRequired {
    pub reason: PairingReason,
    pub request_id: String,
    pub device: DeviceId,
    pub role: Role,
    /// As asked for.
    pub scopes: Vec<String>,
    /// Set when the device is paired already: what it has.
    pub approved_roles: Vec<Role>,
    pub approved_scopes: Vec<&'static str>,
}

impl AdmissionRefusal {
    /// The close frame that follows the answer.
    pub fn close(&self) -> (u16, String) {
        match self {
            Self::Worker => (1008, "invalid-handshake".to_owned()),
            Self::ProtocolMismatch { .. } => (1002, cut(&self.public())),
            Self::PairingRequired(it) => {
                let text = format!("{} (requestId: {})", self.public(), it.request_id);
                (1008, cut(&text))
            }
            _ => (1008, cut(&self.public())),
        }
    }

    /// The error of the response; a worker gets none.
    pub fn error(&self) -> Option<ErrorShape> {
        if *self == Self::Worker {
            return None;
        }
        let mut error = ErrorShape::new(self.code(), self.public());
        if let Some(details) = self.details() {
            error = error.with_details(details);
        }
        match self {
            Self::RateLimited { .. } | Self::Starting => {
                let wait = self.retry_after().unwrap_or_default();
                let ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                Some(error.with_retryable(true).with_retry_after_ms(ms))
            }
            Self::PairingQueueFull => Some(error.with_retryable(true)),
            Self::ReloadRequired { .. } => Some(error.with_retryable(false)),
            _ => Some(error),
        }
    }

    /// When the same request may be tried again, if that is what it waits for.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after } => Some(*retry_after),
            Self::Starting => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    fn details(&self) -> Option<Value> {
        let code = self.detail_code()?;
        let mut details = Map::new();
        details.insert("code".into(), code.into());
        let mut put = |key: &str, value: Value| {
            details.insert(key.into(), value);
        };
        match self {
            Self::ProtocolMismatch { min, max } => {
                put("clientMinProtocol", (*min).into());
                put("clientMaxProtocol", (*max).into());
                put("expectedProtocol", PROTOCOL.into());
                put("minimumProbeProtocol", PROTOCOL_MIN_NODE.into());
            }
            Self::OriginMissing => put("reason", "origin missing or invalid".into()),
            Self::Device(error) => put("reason", device_reason(*error).into()),
            Self::PairingRequired(it) => {
                put("reason", it.reason.as_str().into());
                put("requestId", it.request_id.as_str().into());
                put("stage", "device".into());
                put("remediationHint", it.reason.hint().into());
                put("deviceId", it.device.as_str().into());
                put("requestedRole", it.role.as_str().into());
                if it.role == Role::Node {
                    // Without these the official node stops connecting for good, and an approval is not enough.
                    put("recommendedNextStep", "wait_then_retry".into());
                    put("pauseReconnect", false.into());
                }
                if !it.scopes.is_empty() {
                    put("requestedScopes", json!(it.scopes));
                }
                if !it.approved_roles.is_empty() {
                    let roles: Vec<_> =
                        it.approved_roles.iter().map(|role| role.as_str()).collect();
                    put("approvedRoles", json!(roles));
                    put("approvedScopes", json!(it.approved_scopes));
                }
            }
            Self::ReloadRequired { build_id } => {
                put("gatewayBuildId", build_id.as_str().into());
                put("reloadRequired", true.into());
            }
            _ => {
                if let Some((reason, next)) = self.recovery() {
                    let retry = matches!(
                        self,
                        Self::SecretMismatch {
                            may_retry_with_device_token: true,
                            ..
                        }
                    );
                    put("authReason", reason.into());
                    put("canRetryWithDeviceToken", retry.into());
                    put("recommendedNextStep", next.into());
                }
            }
        }
        Some(Value::Object(details))
    }

    /// `authReason` and `recommendedNextStep`, by which clients choose what to do.
    fn recovery(&self) -> Option<(&'static str, &'static str)> {
        const CONFIGURATION: &str = "update_auth_configuration";
        const CREDENTIALS: &str = "update_auth_credentials";
        const REVIEW: &str = "review_auth_configuration";
        Some(match self {
            Self::SecretMissing(_) | Self::SecretNotConfigured(_) => {
                (self.log_field(), CONFIGURATION)
            }
            Self::SecretMismatch {
                may_retry_with_device_token: true,
                ..
            } => (self.log_field(), "retry_with_device_token"),
            Self::SecretMismatch { .. } | Self::DeviceTokenMismatch => {
                (self.log_field(), CREDENTIALS)
            }
            Self::ScopeMismatch | Self::SignInLinkInvalid => (self.log_field(), REVIEW),
            Self::RateLimited { .. } => (self.log_field(), "wait_then_retry"),
            Self::Tailscale(_)
            | Self::ProxyUser(_)
            | Self::NotLocal
            | Self::PlaintextCredential => (self.log_field(), REVIEW),
            _ => return None,
        })
    }
}

impl Refusal for AdmissionRefusal {
    fn code(&self) -> &'static str {
        match self {
            Self::DeviceIdentityRequired | Self::PairingRequired(_) => "NOT_PAIRED",
            Self::Starting | Self::PairingQueueFull | Self::ReloadRequired { .. } => "UNAVAILABLE",
            _ => "INVALID_REQUEST",
        }
    }

    fn detail_code(&self) -> Option<&'static str> {
        use SecretKind::{Password, Token};
        Some(match self {
            Self::Worker | Self::InvalidRole | Self::Starting | Self::PairingQueueFull => {
                return None;
            }
            Self::ProtocolMismatch { .. } | Self::ReloadRequired { .. } => "PROTOCOL_MISMATCH",
            Self::OriginMissing => "CONTROL_UI_ORIGIN_NOT_ALLOWED",
            Self::DeviceIdentityRequired => "DEVICE_IDENTITY_REQUIRED",
            Self::Device(DeviceError::IdMismatch) => "DEVICE_AUTH_DEVICE_ID_MISMATCH",
            Self::Device(DeviceError::PublicKeyInvalid) => "DEVICE_AUTH_PUBLIC_KEY_INVALID",
            Self::Device(DeviceError::SignatureExpired { .. }) => "DEVICE_AUTH_SIGNATURE_EXPIRED",
            Self::Device(DeviceError::NonceMissing) => "DEVICE_AUTH_NONCE_REQUIRED",
            Self::Device(DeviceError::NonceMismatch) => "DEVICE_AUTH_NONCE_MISMATCH",
            Self::Device(DeviceError::SignatureInvalid) => "DEVICE_AUTH_SIGNATURE_INVALID",
            Self::PlaintextCredential | Self::NotLocal => "AUTH_UNAUTHORIZED",
            Self::SecretMissing(Token) => "AUTH_TOKEN_MISSING",
            Self::SecretMissing(Password) => "AUTH_PASSWORD_MISSING",
            Self::SecretMismatch { kind: Token, .. } => "AUTH_TOKEN_MISMATCH",
            Self::SecretMismatch { kind: Password, .. } => "AUTH_PASSWORD_MISMATCH",
            Self::SecretNotConfigured(Token) => "AUTH_TOKEN_NOT_CONFIGURED",
            Self::SecretNotConfigured(Password) => "AUTH_PASSWORD_NOT_CONFIGURED",
            Self::DeviceTokenMismatch => "AUTH_DEVICE_TOKEN_MISMATCH",
            Self::ScopeMismatch => "AUTH_SCOPE_MISMATCH",
            Self::SignInLinkInvalid => "AUTH_BOOTSTRAP_TOKEN_INVALID",
            Self::RateLimited { .. } => "AUTH_RATE_LIMITED",
            Self::Tailscale(WhoisRefusal::IdentityMissing) => "AUTH_TAILSCALE_IDENTITY_MISSING",
            Self::Tailscale(WhoisRefusal::ProxyHeadersMissing) => "AUTH_TAILSCALE_PROXY_MISSING",
            Self::Tailscale(WhoisRefusal::Failed) => "AUTH_TAILSCALE_WHOIS_FAILED",
            Self::Tailscale(WhoisRefusal::Mismatch) => "AUTH_TAILSCALE_IDENTITY_MISMATCH",
            Self::ProxyUser(ProxyUserRefusal::MissingHeader(_) | ProxyUserRefusal::UserMissing) => {
                "AUTH_IDENTITY_HEADER_REQUIRED"
            }
            Self::ProxyUser(_) => "AUTH_UNAUTHORIZED",
            Self::PairingRequired(_) => "PAIRING_REQUIRED",
        })
    }

    fn http_status(&self) -> u16 {
        match self {
            Self::Worker | Self::ProtocolMismatch { .. } | Self::InvalidRole => 400,
            Self::RateLimited { .. } => 429,
            Self::Starting | Self::PairingQueueFull | Self::ReloadRequired { .. } => 503,
            Self::OriginMissing | Self::PlaintextCredential | Self::NotLocal => 403,
            Self::ScopeMismatch | Self::PairingRequired(_) => 403,
            _ => 401,
        }
    }

    fn log_field(&self) -> &'static str {
        use SecretKind::{Password, Token};
        match self {
            Self::Worker => "worker",
            Self::ProtocolMismatch { .. } => "protocol_mismatch",
            Self::InvalidRole => "invalid_role",
            Self::OriginMissing => "origin_missing",
            Self::DeviceIdentityRequired => "device_identity_required",
            Self::Device(error) => device_reason(*error),
            Self::PlaintextCredential => "plaintext_credential",
            Self::SecretMissing(Token) => "token_missing",
            Self::SecretMissing(Password) => "password_missing",
            Self::SecretMismatch { kind: Token, .. } => "token_mismatch",
            Self::SecretMismatch { kind: Password, .. } => "password_mismatch",
            Self::SecretNotConfigured(Token) => "token_missing_config",
            Self::SecretNotConfigured(Password) => "password_missing_config",
            Self::Starting => "starting",
            Self::DeviceTokenMismatch => "device_token_mismatch",
            Self::ScopeMismatch => "scope_mismatch",
            Self::SignInLinkInvalid => "bootstrap_token_invalid",
            Self::RateLimited { .. } => "rate_limited",
            Self::Tailscale(WhoisRefusal::IdentityMissing) => "tailscale_user_missing",
            Self::Tailscale(WhoisRefusal::ProxyHeadersMissing) => "tailscale_proxy_missing",
            Self::Tailscale(WhoisRefusal::Failed) => "tailscale_whois_failed",
            Self::Tailscale(WhoisRefusal::Mismatch) => "tailscale_user_mismatch",
            Self::ProxyUser(refusal) => refusal.log_field(),
            Self::NotLocal => "not_local",
            Self::PairingRequired(it) => it.reason.as_str(),
            Self::PairingQueueFull => "pairing_queue_full",
            Self::ReloadRequired { .. } => "reload_required",
        }
    }

    fn public(&self) -> Cow<'static, str> {
        use SecretKind::{Password, Token};
        match self {
            Self::Worker => "invalid-handshake",
            Self::ProtocolMismatch { .. } => "protocol mismatch",
            Self::InvalidRole => "invalid role",
            Self::OriginMissing => {
                "origin not allowed (open the Control UI from the gateway host or allow it in \
                 gateway.controlUi.allowedOrigins)"
            }
            Self::DeviceIdentityRequired => "device identity required",
            Self::Device(DeviceError::IdMismatch) => "device identity mismatch",
            Self::Device(DeviceError::PublicKeyInvalid) => "device public key invalid",
            Self::Device(DeviceError::SignatureExpired { .. }) => "device signature expired",
            Self::Device(DeviceError::NonceMissing) => "device nonce required",
            Self::Device(DeviceError::NonceMismatch) => "device nonce mismatch",
            Self::Device(DeviceError::SignatureInvalid) => "device signature invalid",
            Self::PlaintextCredential => "unauthorized: credentials need an encrypted connection",
            Self::SecretMissing(Token) => {
                "unauthorized: gateway token missing (use this gateway's gateway.auth.token or pair the device)"
            }
            Self::SecretMismatch { kind: Token, .. } => {
                "unauthorized: gateway token mismatch (use this gateway's gateway.auth.token or pair the device)"
            }
            Self::SecretMissing(Password) => {
                "unauthorized: gateway password missing (use this gateway's gateway.auth.password)"
            }
            Self::SecretMismatch { kind: Password, .. } => {
                "unauthorized: gateway password mismatch (use this gateway's gateway.auth.password)"
            }
            Self::SecretNotConfigured(Token) => "unauthorized: gateway token not configured",
            Self::SecretNotConfigured(Password) => "unauthorized: gateway password not configured",
            Self::Starting => "gateway is starting; retry shortly",
            Self::DeviceTokenMismatch => "unauthorized: device token mismatch (rotate/reissue device token)",
            Self::ScopeMismatch => "unauthorized: device token scope mismatch",
            Self::SignInLinkInvalid => "unauthorized: sign-in link invalid, expired or already used",
            Self::RateLimited { .. } => "unauthorized: too many failed attempts",
            Self::Tailscale(WhoisRefusal::IdentityMissing) => "unauthorized: tailscale identity missing",
            Self::Tailscale(WhoisRefusal::ProxyHeadersMissing) => {
                "unauthorized: tailscale proxy headers missing"
            }
            Self::Tailscale(WhoisRefusal::Failed) => "unauthorized: tailscale identity check failed",
            Self::Tailscale(WhoisRefusal::Mismatch) => "unauthorized: tailscale identity mismatch",
            Self::ProxyUser(ProxyUserRefusal::MissingHeader(_) | ProxyUserRefusal::UserMissing) => {
                "unauthorized: identity header missing"
            }
            Self::ProxyUser(_) => "unauthorized: proxy identity not accepted",
            Self::NotLocal => "unauthorized: this gateway serves its own host only",
            Self::PairingRequired(it) => return format!("pairing required: {}", it.reason.requirement()).into(),
            Self::PairingQueueFull => "a pairing cannot be recorded now; try again later",
            Self::ReloadRequired { .. } => {
                "protocol mismatch: Control UI updated; reload this page to continue"
            }
        }
        .into()
    }

    fn remedy(&self) -> Cow<'static, str> {
        use SecretKind::{Password, Token};
        match self {
            Self::Worker => "workers are not supported; connect as an operator or a node".into(),
            Self::ProtocolMismatch { min, max } => format!(
                "the client speaks protocol {min} to {max}, this gateway {PROTOCOL}; update the older of the two"
            )
            .into(),
            Self::InvalidRole => "connect with the role operator or node".into(),
            Self::OriginMissing => "a browser client must send its Origin; other programs must not use a browser's client id".into(),
            Self::DeviceIdentityRequired => {
                "nodes, and operators without the gateway's secret, must sign the challenge with a device key".into()
            }
            Self::Device(DeviceError::SignatureExpired { skew_ms }) => {
                format!("the clocks of device and gateway differ by {} s; set them right", skew_ms / 1000).into()
            }
            Self::Device(_) => "sign this connection's challenge with the device's own key (see docs/COMPATIBILITY.md)".into(),
            Self::PlaintextCredential => {
                "use wss:// (gateway.tls), a tailnet or an SSH tunnel, or list the client in gateway.allowPlaintextFrom".into()
            }
            Self::SecretMissing(Token) | Self::SecretMismatch { kind: Token, .. } => {
                "give the client the value of gateway.auth.token (or OPENCLAW_GATEWAY_TOKEN of the gateway)".into()
            }
            Self::SecretMissing(Password) | Self::SecretMismatch { kind: Password, .. } => {
                "give the client the value of gateway.auth.password (or OPENCLAW_GATEWAY_PASSWORD of the gateway)".into()
            }
            Self::SecretNotConfigured(Token) => "set gateway.auth.token, and check that its SecretRef resolves".into(),
            Self::SecretNotConfigured(Password) => {
                "set gateway.auth.password, and check that its SecretRef resolves".into()
            }
            Self::Starting => "wait until /readyz answers 200".into(),
            Self::DeviceTokenMismatch => {
                "the token was revoked, rotated or belongs elsewhere; let the device connect once with the gateway's secret".into()
            }
            Self::ScopeMismatch => "ask for no more scopes than the device was approved for, or approve the upgrade".into(),
            Self::SignInLinkInvalid => "make a new sign-in link; each works once, for ten minutes, for one browser operator".into(),
            Self::RateLimited { retry_after } => {
                format!("too many wrong secrets came from this client; it may try again in {} s", retry_after.as_secs().max(1)).into()
            }
            Self::Tailscale(_) => {
                "connect through Tailscale Serve as the user whom tailscale whois names, or use the gateway's secret".into()
            }
            Self::ProxyUser(ProxyUserRefusal::MissingHeader(name)) => {
                format!("let the proxy send {name} on WebSocket upgrades too").into()
            }
            Self::ProxyUser(ProxyUserRefusal::LoopbackSource) => {
                "a proxy on this host needs gateway.auth.trustedProxy.allowLoopback: true".into()
            }
            Self::ProxyUser(_) => {
                "check gateway.trustedProxies and gateway.auth.trustedProxy (userHeader, allowUsers)".into()
            }
            Self::NotLocal => "set gateway.auth.mode to token or password for callers from elsewhere".into(),
            Self::PairingRequired(it) => {
                format!("portcullis devices approve {} (portcullis devices list shows what it asks for)", it.request_id).into()
            }
            Self::PairingQueueFull => "free space on the disk of the state directory, and look at what waits: portcullis devices list".into(),
            Self::ReloadRequired { .. } => "reload the page".into(),
        }
    }
}

fn device_reason(error: DeviceError) -> &'static str {
    match error {
        DeviceError::IdMismatch => "device-id-mismatch",
        DeviceError::PublicKeyInvalid => "device-public-key",
        DeviceError::SignatureExpired { .. } => "device-signature-stale",
        DeviceError::NonceMissing => "device-nonce-missing",
        DeviceError::NonceMismatch => "device-nonce-mismatch",
        DeviceError::SignatureInvalid => "device-signature",
    }
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(CLOSE_REASON_BYTES_MAX)].to_owned()
}
