//! Comparing secrets without telling how far a guess got.
//!
//! In: the operator's secret, or the stored digest of a device token, and what a caller presented. Out: yes or no.
//! Attacker controls: the candidate. Bounds: one SHA-256 of the candidate (a frame holds it, so its length is bounded
//! before) and one comparison of 32 bytes, whatever was presented.
//! Errors: none; a missing candidate is hashed and compared too, and then refused. (Whoever presents no credential at all
//! knows that, and is told without a comparison.)

use std::fmt;

use ring::digest::{SHA256, digest};
use subtle::{Choice, ConstantTimeEq};
use zeroize::Zeroizing;

use crate::base::Secret;

/// The Gateway's shared secret as the server keeps it: the SHA-256 digest, so that every comparison is over 32 bytes.
///
/// It has neither `Debug` nor `PartialEq` (`base::Secret` says why).
pub struct ConfiguredSecret(Zeroizing<[u8; 32]>);

impl ConfiguredSecret {
    /// `None` for an empty or blank secret: it counts as not configured and so can never match.
    pub fn new(secret: &Secret) -> Option<Self> {
        let blank = secret
            .expose()
            .iter()
            .all(|byte| byte.is_ascii_whitespace() || *byte == 0);
        (!blank).then(|| Self(Zeroizing::new(sha256(secret.expose()))))
    }

    /// Whether both are the same secret.
    pub fn equals(&self, other: &Self) -> bool {
        bool::from(self.0[..].ct_eq(&other.0[..]))
    }

    /// Whether the candidate is the secret. The work depends on the candidate's length and never on the secret.
    pub fn matches(&self, candidate: Option<&[u8]>) -> bool {
        bool::from(equals(&self.0, candidate))
    }
}

/// The SHA-256 digest of a device token or sign-in link token: all that is ever stored of one.
#[derive(Clone)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    pub fn of(token: &[u8]) -> Self {
        Self(sha256(token))
    }

    /// From the store.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// For the store.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub fn matches(&self, candidate: Option<&[u8]>) -> bool {
        bool::from(equals(&self.0, candidate))
    }

    /// Whether both are digests of the same token.
    pub fn equals(&self, other: &Self) -> bool {
        bool::from(self.0.ct_eq(&other.0))
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenDigest(..)")
    }
}

fn equals(expected: &[u8; 32], candidate: Option<&[u8]>) -> Choice {
    let present = Choice::from(u8::from(candidate.is_some()));
    let got = Zeroizing::new(sha256(candidate.unwrap_or_default()));
    expected[..].ct_eq(&got[..]) & present
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> ConfiguredSecret {
        ConfiguredSecret::new(&Secret::new(text)).unwrap()
    }

    #[test]
    fn a3_only_the_exact_secret_matches() {
        let it = secret("correct horse");
        assert!(it.matches(Some(b"correct horse")));
        for wrong in [
            &b"correct hors"[..],
            b"correct horsf",
            b"correct horse ",
            b"",
            b"x",
        ] {
            assert!(!it.matches(Some(wrong)));
        }
        assert!(!it.matches(Some(&[b'x'; 70_000])));
        assert!(!it.matches(None));
    }

    #[test]
    fn a4_a_blank_secret_is_no_secret() {
        for blank in ["", " ", "\t\r\n ", "\0"] {
            assert!(ConfiguredSecret::new(&Secret::new(blank)).is_none());
        }
    }

    #[test]
    fn a_missing_candidate_is_not_the_empty_one() {
        assert!(!TokenDigest::of(b"").matches(None));
        assert!(TokenDigest::of(b"").matches(Some(b"")));
    }

    #[test]
    fn a_digest_shows_nothing_of_itself() {
        assert_eq!(format!("{:?}", TokenDigest::of(b"t")), "TokenDigest(..)");
    }
}
