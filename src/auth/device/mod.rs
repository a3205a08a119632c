//! Device identity: an Ed25519 key, the id that is its hash, and the string that is signed at `connect`.
//!
//! In: the `device` object of `connect` and the fields that its signature covers. Out: a `Proof`, or why not.
//! Both ends build the string here, so that they cannot differ.
//! Attacker controls: everything but the nonce and the clock. Bounds: one hash and at most two signature checks.
//! Errors: `DeviceError`, in the order in which the reference answers.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::digest::{SHA256, digest};
use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};

use super::scope::Role;
use crate::base::{DeviceId, limits};
use crate::rpc::types::connect::DeviceProof;

/// The DER header of an Ed25519 SubjectPublicKeyInfo (RFC 8410 §4); the 32 key bytes follow it.
const SPKI_HEADER: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// The y coordinates of the points of small order, little-endian and with the sign bit clear: 0, 1, the two of order 8,
/// and p - 1. Encodings not below p are refused before.
const SMALL_ORDER_Y: [[u8; 32]; 5] = [
    [0; 32],
    {
        let mut one = [0; 32];
        one[0] = 1;
        one
    },
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98,
        0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53,
        0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67,
        0x0f, 0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac,
        0x03, 0x7a,
    ],
    {
        let mut minus_one = [0xff; 32];
        minus_one[0] = 0xec;
        minus_one[31] = 0x7f;
        minus_one
    },
];

/// The 32 raw bytes of an Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads what the reference reads: base64url without padding, base64 with padding, or SPKI in PEM.
    pub fn decode(text: &str) -> Option<Self> {
        let bytes = match text.trim().strip_prefix("-----BEGIN PUBLIC KEY-----") {
            Some(rest) => spki(rest.strip_suffix("-----END PUBLIC KEY-----")?)?,
            None => base64_either(text)?,
        };
        bytes.try_into().ok().map(Self)
    }

    /// As it stands on the wire: base64url without padding, 43 characters.
    pub fn to_wire(self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The id that belongs to this key.
    pub fn device_id(&self) -> DeviceId {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, &self.0).as_ref());
        DeviceId::from_digest(hash)
    }

    /// Whether the bytes can be an identity: one point has one encoding (RFC 8032 §5.1.3), and not a point of small
    /// order, for which anybody can make signatures that verify.
    fn is_sound(&self) -> bool {
        let mut y = self.0;
        y[31] &= 0x7f;
        let below_p = y[31] != 0x7f || y[1..31].iter().any(|byte| *byte != 0xff) || y[0] < 0xed;
        below_p && !SMALL_ORDER_Y.contains(&y)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_wire())
    }
}

/// The fields that a device's signature covers, as they stand in `connect`.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    pub device_id: &'a str,
    pub client_id: &'a str,
    pub client_mode: &'a str,
    pub role: Role,
    /// As sent: order, duplicates and inner spaces count.
    pub scopes: &'a [String],
    pub signed_at_ms: u64,
    /// The first of `auth.token`, `auth.deviceToken` and `auth.bootstrapToken` that is there; never the password.
    pub token: &'a str,
    pub nonce: &'a str,
    pub platform: Option<&'a str>,
    pub device_family: Option<&'a str>,
}

impl Signed<'_> {
    /// The string of the third version, which also binds platform and device family.
    pub fn v3(&self) -> String {
        format!(
            "v3|{}|{}|{}",
            self.common(),
            signed_metadata(self.platform),
            signed_metadata(self.device_family)
        )
    }

    /// The string of the second version.
    pub fn v2(&self) -> String {
        format!("v2|{}", self.common())
    }

    fn common(&self) -> String {
        format!(
            "{}|{}|{}|{}|{}|{}|{}|{}",
            self.device_id,
            self.client_id,
            self.client_mode,
            self.role,
            self.scopes.join(","),
            self.signed_at_ms,
            self.token,
            self.nonce
        )
    }

    /// Whether the string can be read in one way only. Nothing in it is escaped, so a separator inside a field would let
    /// one signature stand for two requests. The token may hold one: everything before and after it is fixed.
    fn reads_one_way(&self) -> bool {
        let plain = |text: &str| !text.contains('|');
        let scope_plain = |scope: &String| !scope.contains(['|', ',']);
        plain(self.client_id)
            && plain(self.client_mode)
            && plain(self.nonce)
            && plain(self.platform.unwrap_or_default())
            && plain(self.device_family.unwrap_or_default())
            && self.scopes.iter().all(scope_plain)
    }
}

/// The client's half: the signature for `connect`'s `device.signature`. Ed25519 signatures need no randomness.
pub fn sign(key: &Ed25519KeyPair, payload: &str) -> String {
    URL_SAFE_NO_PAD.encode(key.sign(payload.as_bytes()))
}

/// The peer holds this key and meant this connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    pub device: DeviceId,
    pub public_key: PublicKey,
}

/// Why a device's proof does not count. The order of the variants is the order of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceError {
    /// The key cannot be read, or the id is not its hash.
    IdMismatch,
    /// The key is readable but no fit identity: not canonical, or of small order.
    PublicKeyInvalid,
    /// `signedAt` is further from our clock than `limits::SIGNATURE_SKEW`.
    SignatureExpired {
        skew_ms: u64,
    },
    NonceMissing,
    NonceMismatch,
    SignatureInvalid,
}

/// Checks a device's proof. `nonce` is the one that this connection was challenged with, and `signed` must be built from
/// the same `connect` request; its nonce and device id are taken from our side and from the key.
pub fn verify(
    claim: &DeviceProof,
    signed: &Signed<'_>,
    nonce: &str,
    now_ms: u64,
) -> Result<Proof, DeviceError> {
    let public_key = PublicKey::decode(&claim.public_key).ok_or(DeviceError::IdMismatch)?;
    let device = public_key.device_id();
    if device.as_str() != claim.id {
        return Err(DeviceError::IdMismatch);
    }
    if !public_key.is_sound() {
        return Err(DeviceError::PublicKeyInvalid);
    }
    let skew_ms = now_ms.abs_diff(claim.signed_at);
    if u128::from(skew_ms) > limits::SIGNATURE_SKEW.as_millis() {
        return Err(DeviceError::SignatureExpired { skew_ms });
    }
    let presented = trim_as_javascript(&claim.nonce);
    if presented.is_empty() {
        return Err(DeviceError::NonceMissing);
    }
    if presented != nonce {
        return Err(DeviceError::NonceMismatch);
    }
    let signed = Signed {
        device_id: device.as_str(),
        nonce,
        signed_at_ms: claim.signed_at,
        ..*signed
    };
    if !signature_holds(&public_key, &claim.signature, &signed) {
        return Err(DeviceError::SignatureInvalid);
    }
    Ok(Proof { device, public_key })
}

fn signature_holds(key: &PublicKey, signature: &str, signed: &Signed<'_>) -> bool {
    let Some(signature) = base64_either(signature) else {
        return false;
    };
    let key = UnparsedPublicKey::new(&ED25519, key.as_bytes());
    let holds = |payload: String| key.verify(payload.as_bytes(), &signature).is_ok();
    signed.reads_one_way() && (holds(signed.v3()) || holds(signed.v2()))
}

/// Platform or device family as it stands in the signed string: trimmed, then A–Z lowered and nothing else.
fn signed_metadata(text: Option<&str>) -> String {
    trim_as_javascript(text.unwrap_or_default()).to_ascii_lowercase()
}

/// Platform or device family as it is pinned and as policy reads it: only ASCII blanks are trimmed and only A–Z lowered,
/// so that a look-alike letter or a non-breaking space stays a difference.
pub fn pinned_metadata(text: Option<&str>) -> String {
    text.unwrap_or_default().trim_ascii().to_ascii_lowercase()
}

/// What `String.prototype.trim` removes (ECMA-262 §22.1.3.32), because that is what clients sign.
fn trim_as_javascript(text: &str) -> &str {
    text.trim_matches(|c: char| {
        matches!(c, '\u{9}'..='\u{d}' | ' ' | '\u{a0}' | '\u{1680}' | '\u{2000}'..='\u{200a}'
            | '\u{2028}' | '\u{2029}' | '\u{202f}' | '\u{205f}' | '\u{3000}' | '\u{feff}')
    })
}

/// Strict base64, either base64url without padding or the standard alphabet with it.
fn base64_either(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD
        .decode(text)
        .or_else(|_| STANDARD.decode(text))
        .ok()
}

fn spki(body: &str) -> Option<Vec<u8>> {
    let body: String = body.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    let der = STANDARD.decode(body).ok()?;
    der.strip_prefix(&SPKI_HEADER[..]).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests;
