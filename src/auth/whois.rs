//! Judging a Tailscale identity: the header is an index, the local daemon's answer is the proof.
//!
//! In: what Serve's headers claim, and what the daemon said about their source address. Out: the login, or why not.
//! Attacker controls: the claim, if it is a local process; never the daemon's answer. Bounds: one comparison.
//! Errors: `WhoisRefusal`; a timeout, an error and a mismatch all refuse.

use std::net::IpAddr;

use crate::ingress::TailscaleClaim;

/// The login that the daemon reports for nodes that are tagged, and so belong to nobody.
const TAGGED: &str = "tagged-devices";

/// What the local daemon knows about an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Whois {
    Found {
        login: String,
    },
    /// A node that belongs to its tags, and so to nobody.
    Tagged,
    /// No error, but no node of the tailnet either.
    NotFound,
    /// No answer in time, or none that could be read.
    Failed,
}

/// Why a Tailscale identity does not count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WhoisRefusal {
    IdentityMissing,
    ProxyHeadersMissing,
    Failed,
    Mismatch,
}

/// The first half: whom to ask about, if the claim is complete.
pub fn question(claim: &TailscaleClaim) -> Result<(IpAddr, &str), WhoisRefusal> {
    let login = claim.login.as_deref().filter(|_| !claim.funnel);
    let login = login.ok_or(WhoisRefusal::IdentityMissing)?;
    let source = claim.source.ok_or(WhoisRefusal::ProxyHeadersMissing)?;
    Ok((source, login))
}

/// The second half: the daemon's login must be the claimed one, whole, ignoring ASCII case. Returns the daemon's.
pub fn judge(claimed: &str, answer: &Whois) -> Result<String, WhoisRefusal> {
    match answer {
        Whois::NotFound | Whois::Failed => Err(WhoisRefusal::Failed),
        Whois::Tagged => Err(WhoisRefusal::Mismatch),
        Whois::Found { login } if login.is_empty() || login == TAGGED => {
            Err(WhoisRefusal::Mismatch)
        }
        Whois::Found { login } if login.eq_ignore_ascii_case(claimed) => Ok(login.clone()),
        Whois::Found { .. } => Err(WhoisRefusal::Mismatch),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(login: &str) -> Whois {
        Whois::Found {
            login: login.into(),
        }
    }

    #[test]
    fn t2_only_the_daemons_own_answer_counts() {
        assert_eq!(
            judge("Alice@X.example", &found("alice@x.example")),
            Ok("alice@x.example".into())
        );
        for (claimed, answer) in [
            ("alice@x.example", found("bob@x.example")),
            ("alice@x", found("alice@x.example")),
            ("alice@x.example", found("malice@x.example")),
            ("alice@x.example", found("")),
            ("", found("")),
            ("tagged-devices", found("tagged-devices")),
            ("\u{212a}ate@x", found("kate@x")),
        ] {
            assert_eq!(judge(claimed, &answer), Err(WhoisRefusal::Mismatch));
        }
        assert_eq!(
            judge("tagged-devices", &Whois::Tagged),
            Err(WhoisRefusal::Mismatch)
        );
        for answer in [Whois::Failed, Whois::NotFound] {
            assert_eq!(judge("alice@x.example", &answer), Err(WhoisRefusal::Failed));
        }
    }

    #[test]
    fn t3_an_incomplete_claim_asks_nobody() {
        let source = Some("100.64.0.9".parse().unwrap());
        let claim = |login: Option<&str>, source, funnel| TailscaleClaim {
            login: login.map(str::to_owned),
            source,
            funnel,
        };
        assert!(question(&claim(Some("a@x"), source, false)).is_ok());
        assert_eq!(
            question(&claim(Some("a@x"), None, false)),
            Err(WhoisRefusal::ProxyHeadersMissing)
        );
        assert_eq!(
            question(&claim(None, source, false)),
            Err(WhoisRefusal::IdentityMissing)
        );
        assert_eq!(
            question(&claim(Some("a@x"), source, true)),
            Err(WhoisRefusal::IdentityMissing)
        );
    }
}
