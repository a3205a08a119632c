//! The configured secret, as `connect` and HTTP requests both meet it.

use std::time::Duration;

use super::facts::{Fact, Facts, SharedSecret};
use super::{AdmissionRefusal, Failed, Mode, SecretKind};
use crate::auth::rate_limit::{Class, LimitKey};
use crate::ingress::{Attributed, ListenerClass};

/// What became of a comparison.
pub(super) enum Check {
    /// An unpaired caller is slowed by `slow` while strangers guess from everywhere (R6).
    Right {
        success: (LimitKey, Class),
        slow: Duration,
    },
    Wrong,
    /// Nothing was compared.
    Not(AdmissionRefusal),
}

/// Compares what was presented, unless the client is locked out. Two wrong ones are one failure.
pub(super) fn check(
    facts: &Facts,
    attributed: &Attributed,
    kind: SecretKind,
    presented: [Option<&[u8]>; 2],
    failed: &mut Failed,
) -> Result<Check, Fact> {
    let counted = (LimitKey::from(attributed.client()), Class::SharedSecret);
    let slow = match facts.limit(attributed, &counted.0, counted.1)? {
        Ok(slow) => slow,
        Err(refusal) => return Ok(Check::Not(refusal)),
    };
    Ok(match facts.shared_secret()? {
        SharedSecret::Ready(secret) => {
            // Both are compared, whatever the first says.
            let [first, second] = presented.map(|candidate| secret.matches(candidate));
            if first | second {
                let success = counted;
                Check::Right { success, slow }
            } else {
                failed.push(counted);
                Check::Wrong
            }
        }
        SharedSecret::Starting => Check::Not(AdmissionRefusal::Starting),
        SharedSecret::NotConfigured | SharedSecret::Unresolved => {
            Check::Not(AdmissionRefusal::SecretNotConfigured(kind))
        }
    })
}

/// Why nobody comes in without a credential.
pub(super) fn missing(facts: &Facts, kind: SecretKind) -> Result<AdmissionRefusal, Fact> {
    Ok(match facts.shared_secret()? {
        SharedSecret::NotConfigured => AdmissionRefusal::SecretNotConfigured(kind),
        SharedSecret::Starting => AdmissionRefusal::Starting,
        SharedSecret::Ready(_) | SharedSecret::Unresolved => AdmissionRefusal::SecretMissing(kind),
    })
}

/// Whom mode `none` serves: this host's own programs, and pages that this Gateway served to it.
pub(super) fn is_own_host(attributed: &Attributed) -> bool {
    let loopback = attributed.peer().ip().is_some_and(|ip| ip.is_loopback());
    loopback && attributed.listener() == ListenerClass::Main && !attributed.via_proxy()
}

pub(super) fn kind(mode: Mode) -> SecretKind {
    match mode {
        Mode::Token | Mode::None => SecretKind::Token,
        Mode::Password | Mode::TrustedProxy => SecretKind::Password,
    }
}
