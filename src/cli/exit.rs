//! Exit codes and the last words of a command that failed.

use std::fmt::{self, Write as _};
use std::process::ExitCode;

use crate::client::call::shown;
use crate::client::credentials::Refused;
use crate::client::{CallError, ConnectError, DialError, IdentityError};
use crate::config::ConfigError;
use crate::machine::files::FileError;
use crate::rpc::ErrorShape;
use crate::rpc::error::{code, detail};

/// What a supervisor may conclude (decision 17).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// The Gateway or the node refused, or the thing asked for is not there.
    Refused,
    /// Our own fault.
    Software,
    /// Another try may succeed: port or state in use, Gateway absent.
    Temporary,
    /// A restart cannot cure it: config, credentials, permissions.
    Config,
}

impl Exit {
    /// Of a file that could not be used.
    pub fn of_file(error: &FileError) -> Self {
        match error.is_permission() {
            true => Self::Config,
            false => Self::Temporary,
        }
    }

    pub fn code(self) -> u8 {
        match self {
            Self::Refused => 1,
            Self::Software => 70,
            Self::Temporary => 75,
            Self::Config => 78,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a command failed: for the operator's eyes, without secrets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    pub exit: Exit,
    pub sentence: String,
    /// The wire's codes, if the Gateway refused.
    pub code: Option<String>,
    pub remedy: Option<String>,
}

impl Failure {
    pub fn new(exit: Exit, sentence: impl Into<String>) -> Self {
        Self {
            exit,
            sentence: sentence.into(),
            code: None,
            remedy: None,
        }
    }

    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// The Gateway's refusal.
    pub fn of_refusal(error: &ErrorShape) -> Self {
        let detail = error.detail_code();
        let mut code = shown(&error.code);
        if let Some(detail) = detail {
            let _ = write!(code, " / {}", shown(detail));
        }
        let of_invoke = |name| error.details.as_ref()?.get(name)?.as_str();
        if let (Some(category), Some(dispatched)) = (of_invoke("category"), of_invoke("dispatched"))
        {
            let _ = write!(
                code,
                " ({}, dispatched: {})",
                shown(category),
                shown(dispatched)
            );
        }
        if let Some(decision) = of_invoke("decisionId") {
            let _ = write!(code, ", decision {} in the gateway's log", shown(decision));
        }
        let exit = match (error.code.as_ref(), detail) {
            (_, Some(detail)) if is_credential(detail) => Exit::Config,
            (code::UNAVAILABLE, _) if error.retryable == Some(true) => Exit::Temporary,
            _ => Exit::Refused,
        };
        Self {
            exit,
            sentence: shown(&error.message),
            code: Some(code),
            remedy: remedy(error),
        }
    }
}

/// Whether the same credentials will be refused again.
pub fn is_credential(detail_code: &str) -> bool {
    detail_code != detail::AUTH_RATE_LIMITED
        && (detail_code.starts_with("AUTH_") || detail_code.starts_with("DEVICE_"))
        || detail_code == detail::PAIRING_REQUIRED
}

/// What to do about a refusal, where we know.
pub fn remedy(error: &ErrorShape) -> Option<String> {
    let field = |name: &str| {
        error
            .details
            .as_ref()
            .and_then(|details| details.get(name))
            .and_then(|value| value.as_str())
            .map(shown)
    };
    let known = match error.detail_code().unwrap_or_default() {
        detail::PAIRING_REQUIRED => match field("requestId") {
            Some(id) => format!("on the gateway's machine: portcullis devices approve {id}"),
            None => "on the gateway's machine: portcullis devices list".to_owned(),
        },
        detail::AUTH_TOKEN_MISSING
        | detail::AUTH_PASSWORD_MISSING
        | detail::DEVICE_IDENTITY_REQUIRED => {
            "give --token or --password, or set OPENCLAW_GATEWAY_PASSWORD".to_owned()
        }
        detail::AUTH_TOKEN_MISMATCH | detail::AUTH_PASSWORD_MISMATCH => {
            "the gateway has another secret; --explain-auth shows where this one came from".to_owned()
        }
        detail::AUTH_DEVICE_TOKEN_MISMATCH => {
            "the device's token was rotated or revoked; connect with the shared secret, or pair it again"
                .to_owned()
        }
        detail::AUTH_RATE_LIMITED => "wait; correct the secret first".to_owned(),
        detail::NOT_CONNECTED => "start the node host, then: portcullis nodes status".to_owned(),
        detail::MISSING_SCOPE => {
            "the gateway does not grant that scope to this caller; see gateway.auth.localOperatorScopes"
                .to_owned()
        }
        _ => return field("remediationHint"),
    };
    Some(known)
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "portcullis: {}", self.sentence)?;
        if let Some(code) = &self.code {
            write!(f, "\n  code: {code}")?;
        }
        if let Some(remedy) = &self.remedy {
            write!(f, "\n  remedy: {remedy}")?;
        }
        Ok(())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Config, error.to_string())
    }
}

impl From<Refused> for Failure {
    fn from(error: Refused) -> Self {
        Self::new(Exit::Config, error.to_string())
    }
}

impl From<IdentityError> for Failure {
    fn from(error: IdentityError) -> Self {
        let exit = match &error {
            IdentityError::File(file) => Exit::of_file(file),
            IdentityError::Random => Exit::Software,
            _ => Exit::Config,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<DialError> for Failure {
    fn from(error: DialError) -> Self {
        let exit = if error.is_transient() {
            Exit::Temporary
        } else {
            Exit::Config
        };
        let failure = Self::new(exit, error.to_string());
        match error {
            DialError::Connect { .. } => {
                failure.with_remedy("start the gateway: portcullis gateway run")
            }
            _ => failure,
        }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Dial(error) => error.into(),
            ConnectError::Refused(error) => Self::of_refusal(&error),
            ConnectError::Protocol(_) => Self::new(Exit::Config, error.to_string()),
            ConnectError::Closed { .. } | ConnectError::Lost(_) | ConnectError::Timeout { .. } => {
                Self::new(Exit::Temporary, error.to_string())
            }
        }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match &error {
            CallError::Refused(refusal) => Self::of_refusal(refusal),
            CallError::TooLarge { .. } => Self::new(Exit::Refused, error.to_string()),
            CallError::Ended(_) | CallError::Timeout { .. } | CallError::Busy { .. } => {
                Self::new(Exit::Temporary, error.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refusal_prints_sentence_code_and_remedy() {
        let error = ErrorShape::new(code::NOT_PAIRED, "pairing required")
            .with_details(json!({"code": "PAIRING_REQUIRED", "requestId": "r-1"}));
        let failure = Failure::of_refusal(&error);
        assert_eq!(
            failure.to_string(),
            "portcullis: pairing required\n  code: NOT_PAIRED / PAIRING_REQUIRED\n  remedy: on the gateway's machine: portcullis devices approve r-1"
        );
        assert_eq!(failure.exit.code(), 78);
    }

    #[test]
    fn a_peer_cannot_write_to_the_terminal() {
        let error = ErrorShape::invalid_request("a\u{1b}[2Jb")
            .with_details(json!({"code": "X\n", "remediationHint": "run\u{7}"}));
        let text = Failure::of_refusal(&error).to_string();
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text}");
        assert_eq!(text.lines().count(), 3);
    }

    #[test]
    fn exit_codes_tell_a_supervisor_what_to_do() {
        for (detail, exit) in [
            ("AUTH_PASSWORD_MISMATCH", Exit::Config),
            ("AUTH_RATE_LIMITED", Exit::Refused),
            ("DEVICE_IDENTITY_REQUIRED", Exit::Config),
            ("NOT_CONNECTED", Exit::Refused),
        ] {
            let error = ErrorShape::invalid_request("no").with_details(json!({"code": detail}));
            assert_eq!(Failure::of_refusal(&error).exit, exit, "{detail}");
        }
        assert_eq!(Failure::from(ConfigError::NoSecret).exit, Exit::Config);
        let starting = ErrorShape::unavailable("starting").with_retryable(true);
        assert_eq!(Failure::of_refusal(&starting).exit, Exit::Temporary);
    }
}
