//! Session keys: which conversation a message belongs to.
//!
//! In: a key as a client wrote it. Out: the canonical `agent:<agent>:<rest>`, or a refusal.
//! Attacker controls: the text. Bounds: `limits::SESSION_KEY_BYTES_MAX`. Errors: `SessionKeyError`.

use std::fmt;

use crate::base::limits;

/// The one agent of this Gateway.
pub const AGENT_ID: &str = "main";
/// The part of the main session's key behind the agent.
pub const MAIN_KEY: &str = "main";

/// A canonical session key. Two spellings of one session compare equal because both are lowered on the way in.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionKey(String);

/// Why a session key was refused. Every variant answers `INVALID_REQUEST`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionKeyError {
    TooLong {
        got: usize,
        limit: usize,
    },
    /// A control character or white space inside the key; it would let two keys look alike in a log.
    Unprintable,
    /// It begins with `agent:` and lacks an agent or a rest.
    Malformed,
    /// It names an agent that this Gateway does not have.
    UnknownAgent,
}

impl SessionKey {
    /// Reads a key: empty and `main` are the main session, a bare word is a session of the only agent.
    pub fn parse(text: &str) -> Result<Self, SessionKeyError> {
        let text = text.trim();
        if text.len() > limits::SESSION_KEY_BYTES_MAX {
            return Err(SessionKeyError::TooLong {
                got: text.len(),
                limit: limits::SESSION_KEY_BYTES_MAX,
            });
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(SessionKeyError::Unprintable);
        }
        let text = text.to_lowercase();
        if text.is_empty() || text == MAIN_KEY {
            return Ok(Self::main());
        }
        let Some(qualified) = text.strip_prefix("agent:") else {
            return Ok(Self(format!("agent:{AGENT_ID}:{text}")));
        };
        match qualified.split_once(':') {
            None | Some(("", _) | (_, "")) => Err(SessionKeyError::Malformed),
            Some((AGENT_ID, _)) => Ok(Self(text)),
            Some(_) => Err(SessionKeyError::UnknownAgent),
        }
    }

    /// `agent:main:main`.
    pub fn main() -> Self {
        Self(format!("agent:{AGENT_ID}:{MAIN_KEY}"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_main(&self) -> bool {
        self.0
            .rsplit_once(':')
            .is_some_and(|(agent, rest)| rest == MAIN_KEY && agent == "agent:main")
    }
}

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SessionKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { got, limit } => {
                write!(f, "session key has {got} bytes, at most {limit}")
            }
            Self::Unprintable => f.write_str("session key has white space or a control character"),
            Self::Malformed => f.write_str("session key must read agent:<agent>:<name>"),
            Self::UnknownAgent => {
                write!(
                    f,
                    "session key names an unknown agent; the only agent is {AGENT_ID}"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_the_main_session_are_one() {
        for text in [
            "",
            "  ",
            "main",
            "Main",
            " main ",
            "agent:main:main",
            "AGENT:MAIN:Main",
        ] {
            let key = SessionKey::parse(text).unwrap();
            assert_eq!(key, SessionKey::main(), "{text:?}");
            assert!(key.is_main());
        }
    }

    #[test]
    fn other_keys_belong_to_the_only_agent() {
        let lab = SessionKey::parse("lab").unwrap();
        assert_eq!(lab.as_str(), "agent:main:lab");
        assert_eq!(SessionKey::parse("agent:main:lab").unwrap(), lab);
        assert!(!lab.is_main());
        assert!(!SessionKey::parse("agent:main:x:main").unwrap().is_main());
    }

    #[test]
    fn refusals() {
        let long = "k".repeat(limits::SESSION_KEY_BYTES_MAX + 1);
        let cases = [
            ("agent:", SessionKeyError::Malformed),
            ("agent:main", SessionKeyError::Malformed),
            ("agent:main:", SessionKeyError::Malformed),
            ("agent::main", SessionKeyError::Malformed),
            ("agent:ops:main", SessionKeyError::UnknownAgent),
            ("a b", SessionKeyError::Unprintable),
            ("a\u{7}b", SessionKeyError::Unprintable),
            (
                long.as_str(),
                SessionKeyError::TooLong {
                    got: long.len(),
                    limit: limits::SESSION_KEY_BYTES_MAX,
                },
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(SessionKey::parse(text), Err(expected), "{text:?}");
        }
    }
}
