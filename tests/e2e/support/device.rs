//! A device identity and its proofs, written from the protocol's description and not from the program's code.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

/// An Ed25519 key and the id that is its hash.
pub(crate) struct Device {
    key: Ed25519KeyPair,
    pub(crate) id: String,
    /// 43 characters of base64url.
    pub(crate) public_key: String,
}

/// Which of the two signed strings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    V1,
    V2,
    V3,
}

impl Device {
    pub(crate) fn new() -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let key = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
        let public = key.public_key().as_ref();
        let hash = digest(&SHA256, public);
        let id = hash
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let public_key = URL_SAFE_NO_PAD.encode(public);
        Self {
            key,
            id,
            public_key,
        }
    }

    /// The `device` object for these `connect` parameters.
    pub(crate) fn prove(&self, params: &Value, nonce: &str, signed_at: u64, form: Form) -> Value {
        let text = self.signed_text(params, nonce, signed_at, form);
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(text.as_bytes()));
        json!({
            "id": self.id,
            "publicKey": self.public_key,
            "signature": signature,
            "signedAt": signed_at,
            "nonce": nonce,
        })
    }

    fn signed_text(&self, params: &Value, nonce: &str, signed_at: u64, form: Form) -> String {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let client = &params["client"];
        let scopes: Vec<String> = params["scopes"]
            .as_array()
            .into_iter()
            .flatten()
            .map(text)
            .collect();
        let token = ["token", "deviceToken", "bootstrapToken"]
            .iter()
            .find_map(|field| params["auth"][field].as_str())
            .unwrap_or_default();
        let folded = |value: &Value| text(value).trim().to_ascii_lowercase();
        let signed_at = signed_at.to_string();
        let mut fields = vec![
            self.id.clone(),
            text(&client["id"]),
            text(&client["mode"]),
            params["role"].as_str().unwrap_or("operator").to_owned(),
            scopes.join(","),
            signed_at,
            token.to_owned(),
        ];
        match form {
            Form::V1 => fields.insert(0, "v1".to_owned()),
            Form::V2 => {
                fields.insert(0, "v2".to_owned());
                fields.push(nonce.to_owned());
            }
            Form::V3 => {
                fields.insert(0, "v3".to_owned());
                fields.push(nonce.to_owned());
                fields.push(folded(&client["platform"]));
                fields.push(folded(&client["deviceFamily"]));
            }
        }
        fields.join("|")
    }
}
