//! Why a config is refused. Each names the setting and what would be right; none shows a secret.

use std::fmt;
use std::path::PathBuf;

/// A config that a restart cannot cure (exit code 78).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigError {
    /// The file is there but cannot be read.
    Unreadable { path: PathBuf, why: String },
    /// The file is larger than anything written by hand.
    TooLarge { path: PathBuf, got: u64, limit: u64 },
    /// The file is not JSON5.
    Malformed { path: PathBuf, why: String },
    /// Others may write the file, or it is not ours: whoever can write it decides who gets in.
    Exposed { path: PathBuf, why: String },
    /// A key that neither Portcullis nor the reference knows.
    UnknownKey {
        setting: String,
        nearest: Option<String>,
    },
    /// A known setting of the reference whose being ignored would weaken security.
    NotServed { setting: String, instead: String },
    /// A value of the wrong kind or out of its range.
    BadValue {
        setting: String,
        got: String,
        want: String,
    },
    /// Settings that exclude each other, or that lack what they need.
    Conflict { setting: String, why: String },
    /// A secret that protects nothing.
    WeakSecret { setting: String, why: &'static str },
    /// No secret at all.
    NoSecret,
    /// A secret that is configured and cannot be had.
    UnresolvedSecret { setting: String, why: String },
    /// Neither a home directory nor an explicit place for state.
    NoHome,
}

impl ConfigError {
    pub(crate) fn bad(setting: &str, got: impl Into<String>, want: impl Into<String>) -> Self {
        Self::BadValue {
            setting: setting.to_owned(),
            got: got.into(),
            want: want.into(),
        }
    }

    pub(crate) fn conflict(setting: &str, why: impl Into<String>) -> Self {
        Self::Conflict {
            setting: setting.to_owned(),
            why: why.into(),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, why } => {
                write!(f, "the config file {} cannot be read: {why}", path.display())
            }
            Self::TooLarge { path, got, limit } => write!(
                f,
                "the config file {} has {got} bytes; at most {limit} are read",
                path.display()
            ),
            Self::Malformed { path, why } => {
                write!(f, "the config file {} is not valid JSON5: {why}", path.display())
            }
            Self::Exposed { path, why } => write!(
                f,
                "the config file {} is refused: {why}; make it yours with mode 0600",
                path.display()
            ),
            Self::UnknownKey { setting, nearest } => {
                write!(f, "{setting} is not a setting")?;
                match nearest {
                    Some(nearest) => write!(f, "; did you mean {nearest}?"),
                    None => write!(f, "; remove it"),
                }
            }
            Self::NotServed { setting, instead } => {
                write!(f, "{setting} is not served yet; {instead}")
            }
            Self::BadValue { setting, got, want } => {
                write!(f, "{setting} is {got}; it must be {want}")
            }
            Self::Conflict { setting, why } => write!(f, "{setting}: {why}"),
            Self::WeakSecret { setting, why } => write!(
                f,
                "{setting} {why}; set a long random value, for example from `openssl rand -hex 32`"
            ),
            Self::NoSecret => f.write_str(
                "no secret is configured; set gateway.auth.password (or OPENCLAW_GATEWAY_PASSWORD) to a long random value",
            ),
            Self::UnresolvedSecret { setting, why } => write!(
                f,
                "{setting} is configured and cannot be resolved: {why}; no other credential is tried in its place"
            ),
            Self::NoHome => f.write_str(
                "there is no home directory; set OPENCLAW_STATE_DIR to the directory that holds openclaw.json",
            ),
        }
    }
}

impl std::error::Error for ConfigError {}
