//! What is kept of a device and of a node. The store writes these as they are.

use serde::{Deserialize, Serialize};

use crate::auth::admission::ApprovedVia;
use crate::auth::scope::{Role, ScopeSet};
use crate::auth::secret_eq::TokenDigest;
use crate::base::DeviceId;

/// A device token as the record holds it: never the token, only its SHA-256.
#[derive(Clone, Serialize, Deserialize)]
pub struct Token {
    pub role: Role,
    #[serde(with = "scopes")]
    pub scopes: ScopeSet,
    #[serde(with = "digest")]
    pub digest: TokenDigest,
    pub created_at_ms: u64,
    pub rotated_at_ms: Option<u64>,
    pub revoked_at_ms: Option<u64>,
}

/// A paired device.
#[derive(Clone, Serialize, Deserialize)]
pub struct Device {
    pub id: DeviceId,
    pub public_key: String,
    pub display_name: Option<String>,
    /// What an operator calls it.
    pub label: Option<String>,
    /// Canonical; a reconnect with another one needs approval again.
    pub platform: String,
    pub device_family: String,
    /// As the device wrote them, for display.
    pub platform_shown: Option<String>,
    pub device_family_shown: Option<String>,
    pub client_id: String,
    pub client_mode: String,
    pub roles: Vec<Role>,
    /// What an operator granted; the most that any connection of this device can hold.
    #[serde(with = "scopes")]
    pub scopes: ScopeSet,
    pub tokens: Vec<Token>,
    pub approved_via: ApprovedVia,
    pub created_at_ms: u64,
    pub approved_at_ms: u64,
    pub last_seen_at_ms: Option<u64>,
    pub last_seen_reason: Option<String>,
}

impl Device {
    /// The token of a role, revoked or not.
    pub fn token(&self, role: Role) -> Option<&Token> {
        self.tokens.iter().find(|token| token.role == role)
    }

    /// What to call it in a sentence.
    pub fn name(&self) -> &str {
        self.label
            .as_deref()
            .or(self.display_name.as_deref())
            .unwrap_or_else(|| self.id.as_str())
    }
}

/// A device that an operator removed or rejected. Only an operator lets it in again.
#[derive(Clone, Serialize, Deserialize)]
pub struct TurnedAway {
    pub device: DeviceId,
    pub at_ms: u64,
}

/// What a connecting device said of itself, already verified to hold its key, and what it asks for.
#[derive(Clone, Serialize, Deserialize)]
pub struct DeviceFacts {
    #[serde(rename = "device_id")]
    pub id: DeviceId,
    pub public_key: String,
    pub display_name: Option<String>,
    pub platform: String,
    pub device_family: String,
    pub platform_shown: Option<String>,
    pub device_family_shown: Option<String>,
    pub client_id: String,
    pub client_mode: String,
    pub role: Role,
    #[serde(with = "scopes")]
    pub scopes: ScopeSet,
    pub remote_ip: Option<String>,
    /// The transport path that it came over.
    #[serde(default)]
    pub path: String,
    pub browser_origin: Option<String>,
}

/// A device that asks to be paired, or to be granted more.
#[derive(Clone, Serialize, Deserialize)]
pub struct DeviceRequest {
    pub request_id: String,
    #[serde(flatten)]
    pub facts: DeviceFacts,
    /// Whether the device was paired before and asks for something else now.
    pub is_repair: bool,
    pub ts_ms: u64,
}

/// What a node says of itself and that it offers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SurfaceFacts {
    pub node: DeviceId,
    pub display_name: Option<String>,
    pub platform: String,
    pub device_family: Option<String>,
    pub version: String,
    pub client_id: String,
    pub client_mode: String,
    pub caps: Vec<String>,
    pub commands: Vec<String>,
    /// Whether the device itself was paired silently just before.
    #[serde(default)]
    pub silent: bool,
    #[serde(default)]
    pub remote_ip: Option<String>,
    /// The transport path of the declaring session.
    #[serde(default)]
    pub path: String,
}

/// What an operator approved a node to offer.
#[derive(Clone, Serialize, Deserialize)]
pub struct Surface {
    /// The declaration that was approved, its commands cut down to those that were.
    #[serde(flatten)]
    pub facts: SurfaceFacts,
    /// What the node had declared when a part of it was approved: declaring the same again asks for nothing new.
    #[serde(default)]
    pub declared: Vec<String>,
    pub created_at_ms: u64,
    pub approved_at_ms: u64,
}

/// A node that declared something which no operator has approved yet.
#[derive(Clone, Serialize, Deserialize)]
pub struct SurfaceRequest {
    pub request_id: String,
    /// Commands that the Gateway's policy forbids are already left out.
    #[serde(flatten)]
    pub facts: SurfaceFacts,
    pub ts_ms: u64,
}

/// The wire's words for values whose types know no serialisation.
mod scopes {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::auth::scope::{Scope, ScopeSet};

    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde hands out references"
    )]
    pub(super) fn serialize<S: Serializer>(scopes: &ScopeSet, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(scopes.to_wire())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ScopeSet, D::Error> {
        Vec::<String>::deserialize(from)?
            .iter()
            .map(|name| Scope::from_wire(name).ok_or_else(|| D::Error::custom("unknown scope")))
            .collect()
    }
}

mod digest {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::auth::secret_eq::TokenDigest;
    use crate::base::ids::{hex_decode, hex_lower};

    pub(super) fn serialize<S: Serializer>(it: &TokenDigest, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex_lower(it.as_bytes()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<TokenDigest, D::Error> {
        hex_decode(&String::deserialize(from)?)
            .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
            .map(TokenDigest::from_bytes)
            .ok_or_else(|| D::Error::custom("not a SHA-256"))
    }
}
