//! A signature over one request never verifies for another: whatever two sets of fields the fuzzer finds, if the one's
//! signature holds for the other, every signed field is the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::auth::device::{PublicKey, Signed, pinned_metadata, sign, verify};
use portcullis::auth::scope::Role;
use portcullis::rpc::types::connect::DeviceProof;
use ring::signature::{Ed25519KeyPair, KeyPair};

const NONCE: &str = "6d1f1c1e-8a53-4f0c-9a5e-111111111111";

fuzz_target!(|input: &str| {
    let key = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a seed");
    let public = PublicKey::from_bytes(key.public_key().as_ref().try_into().expect("32 bytes"));
    let id = public.device_id().to_string();
    let (signer, presenter) = input.split_once('\0').unwrap_or((input, input));
    let (signer, presenter) = (Fields::read(signer), Fields::read(presenter));
    let version = if input.len() % 2 == 0 {
        Signed::v3
    } else {
        Signed::v2
    };
    let claim = DeviceProof {
        id: id.clone(),
        public_key: public.to_wire(),
        signature: sign(&key, &version(&signer.signed(&id))),
        signed_at: 1,
        nonce: NONCE.into(),
    };
    if verify(&claim, &presenter.signed(&id), NONCE, 1).is_ok() {
        let metadata_is_signed = input.len() % 2 == 0;
        assert_eq!(
            signer.key(metadata_is_signed),
            presenter.key(metadata_is_signed)
        );
    }
});

/// One request's signed fields, a line each.
struct Fields<'a> {
    words: [&'a str; 5],
    role: Role,
    scopes: Vec<String>,
}

impl<'a> Fields<'a> {
    fn read(text: &'a str) -> Self {
        let mut lines = text.split('\n');
        let words = [(); 5].map(|()| lines.next().unwrap_or_default());
        let role = if lines.next() == Some("node") {
            Role::Node
        } else {
            Role::Operator
        };
        Self {
            words,
            role,
            scopes: lines.map(str::to_owned).collect(),
        }
    }

    fn signed(&'a self, id: &'a str) -> Signed<'a> {
        let [client_id, client_mode, token, platform, device_family] = self.words;
        Signed {
            device_id: id,
            client_id,
            client_mode,
            role: self.role,
            scopes: &self.scopes,
            signed_at_ms: 1,
            token,
            nonce: NONCE,
            platform: Some(platform),
            device_family: Some(device_family),
        }
    }

    /// What must be equal. No scopes and one empty scope are the same string and the same nothing.
    fn key(&self, metadata_is_signed: bool) -> impl PartialEq + std::fmt::Debug {
        let [id, mode, token, platform, family] = self.words.map(str::to_owned);
        let scopes = if self.scopes.is_empty() {
            vec![String::new()]
        } else {
            self.scopes.clone()
        };
        let metadata = [platform, family].map(|text| {
            let trimmed = text.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
            pinned_metadata(Some(trimmed))
        });
        (
            id,
            mode,
            token,
            self.role,
            scopes,
            metadata_is_signed.then_some(metadata),
        )
    }
}
