//! Which commands may run, as one word.
//!
//! In: `mode` or the older `security`, `ask` and `askFallback` from either side's settings. Out: a `Mode`; two merge into
//! the stricter one. Attacker controls: at most the words that a request carries, which can only tighten.
//! Bounds: none needed. Errors: `UnknownWord`; whoever reads a file denies on it and never falls back to a default (X12).

use std::fmt;

use crate::base::names::names;

names! {
    /// What happens to a command that nobody has approved yet, from the strictest to the freest.
    #[derive(PartialOrd, Ord, Default)]
    pub enum Mode {
        /// Nothing runs, approved or not.
        Deny = "deny",
        /// What an allowlist names runs; nobody is asked about the rest.
        Allowlist = "allowlist",
        /// Each command needs an approval, whatever an allowlist says.
        AskAlways = "ask-always",
        /// Each command that no allowlist names needs an approval.
        #[default]
        Ask = "ask",
        /// Every command runs.
        Full = "full",
    }
}

/// A setting whose word means nothing to us.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownWord {
    pub setting: &'static str,
    pub word: String,
}

impl fmt::Display for UnknownWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot be {:?}", self.setting, self.word)
    }
}

impl Mode {
    /// Reads the older settings. An absent one takes the stricter of the possible meanings.
    ///
    /// `askFallback` is checked but has no say: when nobody can answer, a command is denied.
    pub fn from_legacy(
        security: Option<&str>,
        ask: Option<&str>,
        ask_fallback: Option<&str>,
    ) -> Result<Self, UnknownWord> {
        let by_security = match security {
            Some("deny") => Self::Deny,
            Some("allowlist") => Self::Allowlist,
            Some("full") => Self::Full,
            None => Self::Ask,
            Some(word) => return Err(unknown("security", word)),
        };
        let asks = match ask {
            Some("off") => None,
            Some("on-miss") => Some(Self::Ask),
            Some("always") => Some(Self::AskAlways),
            None => (by_security != Self::Full).then_some(Self::Ask),
            Some(word) => return Err(unknown("ask", word)),
        };
        match ask_fallback {
            None | Some("deny" | "allowlist" | "full") => {}
            Some(word) => return Err(unknown("askFallback", word)),
        }
        Ok(match by_security {
            Self::Deny => Self::Deny,
            other => asks.unwrap_or(other),
        })
    }

    /// The stricter of the two: a side can tighten what the other allows and never loosen it.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        match (self, other) {
            // What an allowlist must name and somebody must approve as well is more than either side can say.
            (Self::Allowlist, Self::AskAlways) | (Self::AskAlways, Self::Allowlist) => Self::Deny,
            _ => self.min(other),
        }
    }

    /// In the words that plans carry: `security` and `ask`.
    pub fn legacy(self) -> (&'static str, &'static str) {
        match self {
            Self::Deny => ("deny", "off"),
            Self::Allowlist => ("allowlist", "off"),
            Self::AskAlways => ("allowlist", "always"),
            Self::Ask => ("allowlist", "on-miss"),
            Self::Full => ("full", "off"),
        }
    }
}

fn unknown(setting: &'static str, word: &str) -> UnknownWord {
    UnknownWord {
        setting,
        word: word.chars().take(32).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Mode; 5] = *Mode::ALL.first_chunk().unwrap();

    #[test]
    fn words_are_exact() {
        for mode in ALL {
            let (security, ask) = mode.legacy();
            assert_eq!(
                Mode::from_legacy(Some(security), Some(ask), Some("deny")),
                Ok(mode)
            );
        }
        for wrong in ["", "Full", "full ", "allow", "off"] {
            assert!(
                Mode::from_legacy(Some(wrong), None, None).is_err(),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn x12_malformed_legacy_words_are_errors() {
        assert!(Mode::from_legacy(Some("fulll"), None, None).is_err());
        assert!(Mode::from_legacy(None, Some("never"), None).is_err());
        assert!(Mode::from_legacy(Some("full"), Some("off"), Some("")).is_err());
    }

    #[test]
    fn legacy_words_mean_the_stricter_thing() {
        let legacy = |security, ask| Mode::from_legacy(security, ask, Some("full"));
        assert_eq!(legacy(None, None), Ok(Mode::Ask));
        assert_eq!(legacy(Some("full"), None), Ok(Mode::Full));
        assert_eq!(legacy(Some("full"), Some("always")), Ok(Mode::AskAlways));
        assert_eq!(legacy(Some("allowlist"), Some("on-miss")), Ok(Mode::Ask));
        assert_eq!(legacy(Some("deny"), Some("always")), Ok(Mode::Deny));
        assert_eq!(legacy(None, Some("off")), Ok(Mode::Ask));
    }

    #[test]
    fn x12_merging_only_tightens() {
        for one in ALL {
            for other in ALL {
                let merged = one.merge(other);
                assert!(merged <= one && merged <= other);
                assert!(merged != Mode::Allowlist || ![one, other].contains(&Mode::AskAlways));
                assert_eq!(merged, other.merge(one));
            }
        }
        assert_eq!(Mode::Full.merge(Mode::Deny), Mode::Deny);
    }
}
