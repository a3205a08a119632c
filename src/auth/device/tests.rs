use ring::signature::{Ed25519KeyPair, KeyPair as _};

use super::*;

const NONCE: &str = "6d1f1c1e-8a53-4f0c-9a5e-111111111111";
const NOW_MS: u64 = 1_795_225_965_368;

fn key() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap()
}

fn public(key: &Ed25519KeyPair) -> PublicKey {
    PublicKey::from_bytes(key.public_key().as_ref().try_into().unwrap())
}

/// What `connect` said, owned, so that a test can change one field after signing.
#[derive(Clone)]
struct Connect {
    device_id: String,
    client_id: String,
    client_mode: String,
    role: Role,
    scopes: Vec<String>,
    signed_at_ms: u64,
    token: String,
    nonce: String,
    platform: Option<String>,
    device_family: Option<String>,
}

impl Connect {
    fn new() -> Self {
        Self {
            device_id: public(&key()).device_id().to_string(),
            client_id: "cli".into(),
            client_mode: "cli".into(),
            role: Role::Operator,
            scopes: vec!["operator.read".into(), "operator.write".into()],
            signed_at_ms: NOW_MS,
            token: "tok".into(),
            nonce: NONCE.into(),
            platform: Some("  LiNuX ".into()),
            device_family: Some("Linux".into()),
        }
    }

    fn signed(&self) -> Signed<'_> {
        Signed {
            device_id: &self.device_id,
            client_id: &self.client_id,
            client_mode: &self.client_mode,
            role: self.role,
            scopes: &self.scopes,
            signed_at_ms: self.signed_at_ms,
            token: &self.token,
            nonce: &self.nonce,
            platform: self.platform.as_deref(),
            device_family: self.device_family.as_deref(),
        }
    }

    fn claim(&self, signature: String) -> DeviceProof {
        DeviceProof {
            id: self.device_id.clone(),
            public_key: public(&key()).to_wire(),
            signature,
            signed_at: self.signed_at_ms,
            nonce: self.nonce.clone(),
        }
    }

    fn signed_claim(&self) -> DeviceProof {
        self.claim(sign(&key(), &self.signed().v3()))
    }

    fn verify(&self, claim: &DeviceProof) -> Result<Proof, DeviceError> {
        verify(claim, &self.signed(), NONCE, NOW_MS)
    }
}

/// Signs an honest request, changes it, and expects the signature to hold no more.
fn flipped(change: impl Fn(&mut Connect)) {
    let mut it = Connect::new();
    let claim = it.signed_claim();
    assert!(it.verify(&claim).is_ok());
    change(&mut it);
    assert_eq!(it.verify(&claim), Err(DeviceError::SignatureInvalid));
}

#[test]
fn the_strings_are_those_of_the_reference() {
    let it = Connect::new();
    let id = &it.device_id;
    assert_eq!(
        it.signed().v3(),
        format!(
            "v3|{id}|cli|cli|operator|operator.read,operator.write|{NOW_MS}|tok|{NONCE}|linux|linux"
        )
    );
    assert_eq!(
        it.signed().v2(),
        format!("v2|{id}|cli|cli|operator|operator.read,operator.write|{NOW_MS}|tok|{NONCE}")
    );
    let bare = Connect {
        scopes: vec![],
        token: String::new(),
        platform: None,
        device_family: None,
        role: Role::Node,
        ..it
    };
    assert_eq!(
        bare.signed().v3(),
        format!("v3|{}|cli|cli|node||{NOW_MS}||{NONCE}||", bare.device_id)
    );
}

#[test]
fn metadata_is_trimmed_and_lowered_in_ascii_only() {
    assert_eq!(
        signed_metadata(Some(" \u{feff}\u{a0}ÄpPle\u{3000}")),
        "Äpple"
    );
    assert_eq!(
        signed_metadata(Some("\u{212a}")),
        "\u{212a}",
        "the Kelvin sign stays"
    );
}

#[test]
fn n3_pinned_metadata_keeps_look_alikes_apart() {
    assert_eq!(pinned_metadata(Some(" MacOS\t")), "macos");
    for other in [
        "\u{ff4d}acos",
        "m\u{430}cos",
        "macos\u{a0}",
        "mac\u{200b}os",
    ] {
        assert_ne!(pinned_metadata(Some(other)), "macos");
    }
}

#[test]
fn v3_and_v2_signatures_hold() {
    let it = Connect::new();
    let proof = it.verify(&it.signed_claim()).unwrap();
    assert_eq!(proof.device.as_str(), it.device_id);
    assert!(
        it.verify(&it.claim(sign(&key(), &it.signed().v2())))
            .is_ok()
    );
}

#[test]
fn a7_a_v1_or_truncated_payload_is_signature_invalid() {
    let it = Connect::new();
    let v2 = it.signed().v2();
    let v1 = v2.replace("v2|", "v1|").replace(&format!("|{NONCE}"), "");
    let v3_short = v2.replace("v2|", "v3|");
    for payload in [v1, v3_short, String::new()] {
        let claim = it.claim(sign(&key(), &payload));
        assert_eq!(it.verify(&claim), Err(DeviceError::SignatureInvalid));
    }
}

#[test]
fn a7_skew_is_two_minutes_either_way() {
    for (offset, ok) in [
        (0_i64, true),
        (120_000, true),
        (-120_000, true),
        (120_001, false),
        (-120_001, false),
        (-180_000, false),
    ] {
        let it = Connect {
            signed_at_ms: NOW_MS.checked_add_signed(offset).unwrap(),
            ..Connect::new()
        };
        let got = it.verify(&it.signed_claim());
        match got {
            Ok(_) => assert!(ok, "{offset}"),
            Err(error) => {
                assert!(!ok, "{offset}");
                let skew_ms = offset.unsigned_abs();
                assert_eq!(error, DeviceError::SignatureExpired { skew_ms });
            }
        }
    }
    let it = Connect {
        signed_at_ms: u64::MAX,
        ..Connect::new()
    };
    assert!(it.verify(&it.signed_claim()).is_err());
}

#[test]
fn a7_nonce_blank_is_required_and_foreign_is_mismatch() {
    for (nonce, expected) in [
        ("", Err(DeviceError::NonceMissing)),
        (" \t", Err(DeviceError::NonceMissing)),
        ("another", Err(DeviceError::NonceMismatch)),
    ] {
        let it = Connect {
            nonce: nonce.into(),
            ..Connect::new()
        };
        assert_eq!(it.verify(&it.signed_claim()).map(|_| ()), expected);
    }
    let mut claim = Connect::new().signed_claim();
    claim.nonce = format!(" {NONCE}\n");
    assert!(Connect::new().verify(&claim).is_ok(), "trimmed");
}

#[test]
fn a8_id_is_the_hash_of_the_key() {
    let it = Connect::new();
    for id in ["0".repeat(64), it.device_id.to_uppercase(), String::new()] {
        let mut claim = it.signed_claim();
        claim.id = id;
        assert_eq!(it.verify(&claim), Err(DeviceError::IdMismatch));
    }
    for unreadable in [
        "AAAA",
        "",
        "not base64!",
        &crate::base::ids::hex_lower(public(&key()).as_bytes()),
    ] {
        let mut claim = it.signed_claim();
        claim.public_key = unreadable.into();
        assert_eq!(
            it.verify(&claim),
            Err(DeviceError::IdMismatch),
            "{unreadable}"
        );
    }
}

#[test]
fn a8_unsound_keys_are_public_key_invalid() {
    let mut unsound: Vec<[u8; 32]> = SMALL_ORDER_Y.to_vec();
    // p, p + 1 and the largest encoding: second encodings of points that have a canonical one.
    for low in [0xed, 0xee, 0xff] {
        let mut bytes = [0xff; 32];
        bytes[0] = low;
        bytes[31] = 0x7f;
        unsound.push(bytes);
    }
    for bytes in unsound.clone() {
        let mut negative = bytes;
        negative[31] |= 0x80;
        unsound.push(negative);
    }
    for bytes in unsound {
        let key = PublicKey::from_bytes(bytes);
        let mut claim = Connect::new().signed_claim();
        claim.public_key = key.to_wire();
        claim.id = key.device_id().to_string();
        assert_eq!(
            Connect::new().verify(&claim),
            Err(DeviceError::PublicKeyInvalid)
        );
    }
    // p - 2 is canonical and of large order or no point at all: not refused here.
    let mut fine = [0xff; 32];
    fine[0] = 0xeb;
    fine[31] = 0x7f;
    assert!(PublicKey::from_bytes(fine).is_sound());
}

#[test]
fn keys_and_signatures_are_read_as_the_reference_reads_them() {
    let raw = public(&key());
    let standard = STANDARD.encode(raw.as_bytes());
    let mut der = SPKI_HEADER.to_vec();
    der.extend(raw.as_bytes());
    let pem = format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        STANDARD.encode(&der)
    );
    for text in [raw.to_wire(), standard, pem] {
        assert_eq!(PublicKey::decode(&text), Some(raw), "{text}");
    }
    assert_eq!(PublicKey::decode(&format!("{}=", raw.to_wire())), None);

    let it = Connect::new();
    let mut claim = it.signed_claim();
    let bytes = URL_SAFE_NO_PAD.decode(&claim.signature).unwrap();
    claim.signature = STANDARD.encode(&bytes);
    assert!(it.verify(&claim).is_ok());
    claim.signature = crate::base::ids::hex_lower(&bytes);
    assert_eq!(it.verify(&claim), Err(DeviceError::SignatureInvalid));
}

#[test]
fn a9_flipped_role() {
    flipped(|it| it.role = Role::Node);
}

#[test]
fn a9_flipped_scopes() {
    flipped(|it| it.scopes.push("operator.admin".into()));
}

#[test]
fn a9_reordered_scopes() {
    flipped(|it| it.scopes.reverse());
}

#[test]
fn a9_joined_scopes() {
    flipped(|it| it.scopes = vec!["operator.read,operator.write".into()]);
}

#[test]
fn a9_flipped_token() {
    flipped(|it| it.token = "other".into());
}

#[test]
fn a9_flipped_client_id() {
    flipped(|it| it.client_id = "node-host".into());
}

#[test]
fn a9_flipped_client_mode() {
    flipped(|it| it.client_mode = "node".into());
}

#[test]
fn a9_flipped_platform() {
    flipped(|it| it.platform = Some("darwin".into()));
}

#[test]
fn a9_flipped_device_family() {
    flipped(|it| it.device_family = None);
}

#[test]
fn a9_flipped_signed_at() {
    let it = Connect::new();
    let mut claim = it.signed_claim();
    claim.signed_at += 1;
    assert_eq!(it.verify(&claim), Err(DeviceError::SignatureInvalid));
}

#[test]
fn a9_a_separator_in_a_field_never_verifies() {
    // Signed as platform "a" with family "b|", presented as platform "a|b" with an empty family: the same string.
    let signer = Connect {
        platform: Some("a".into()),
        device_family: Some("b|".into()),
        ..Connect::new()
    };
    let presented = Connect {
        platform: Some("a|b".into()),
        device_family: Some(String::new()),
        ..Connect::new()
    };
    assert_eq!(signer.signed().v3(), presented.signed().v3());
    let claim = signer.signed_claim();
    assert_eq!(presented.verify(&claim), Err(DeviceError::SignatureInvalid));
    // A token with a separator is fine, and the whole of it is bound.
    let token = Connect {
        token: "a|b".into(),
        ..Connect::new()
    };
    assert!(token.verify(&token.signed_claim()).is_ok());
}

#[test]
fn a9_another_key_does_not_sign_for_this_one() {
    let it = Connect::new();
    let other = Ed25519KeyPair::from_seed_unchecked(&[8; 32]).unwrap();
    let claim = it.claim(sign(&other, &it.signed().v3()));
    assert_eq!(it.verify(&claim), Err(DeviceError::SignatureInvalid));
}
