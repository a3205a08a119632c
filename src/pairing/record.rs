//! The records: what the store keeps of a device, of its request, and of a node's surface.

use crate::auth::admission::{ApprovedVia, Ask, Grant, KnownDevice};
use crate::auth::device::{PublicKey, pinned_metadata};
use crate::auth::scope::{Role, ScopeSet};
use crate::auth::secret_eq::TokenDigest;
use crate::base::{DeviceId, limits};
use crate::rpc::types::device as wire;

/// A paired device.
#[derive(Clone, Debug)]
pub struct Device {
    pub id: DeviceId,
    pub public_key: PublicKey,
    pub display_name: Option<String>,
    /// The operator's own name for it.
    pub label: Option<String>,
    /// As the device said it; compared in its pinned form.
    pub platform: String,
    pub device_family: Option<String>,
    pub client_id: String,
    pub client_mode: String,
    /// One for each approved role.
    pub approvals: Vec<Approval>,
    pub approved_via: ApprovedVia,
    pub created_at_ms: u64,
    pub approved_at_ms: u64,
    pub last_seen_at_ms: Option<u64>,
    pub last_seen_reason: Option<String>,
    /// What an operator has approved of the node's surface.
    pub surface: Option<Surface>,
    pub pending_surface: Option<PendingSurface>,
}

/// What was approved for one role.
#[derive(Clone, Debug)]
pub struct Approval {
    pub role: Role,
    pub scopes: ScopeSet,
    pub token: Option<Token>,
}

/// A device token as it is kept: never itself.
#[derive(Clone, Debug)]
pub struct Token {
    /// `None` once it was revoked, or rotated and not yet issued anew.
    pub digest: Option<TokenDigest>,
    pub created_at_ms: u64,
    pub rotated_at_ms: Option<u64>,
    pub revoked_at_ms: Option<u64>,
}

/// A device that waits for an operator.
#[derive(Clone, Debug)]
pub struct DeviceRequest {
    pub request_id: String,
    pub ask: Ask,
    /// The device is paired already and asks for more, or has changed.
    pub is_repair: bool,
    pub ts_ms: u64,
}

/// An approved node surface: the ceiling of what the node may run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Surface {
    pub caps: Vec<String>,
    pub commands: Vec<String>,
    /// Commands that the operator saw declared and left out. They do not ask again.
    pub declined: Vec<String>,
    pub display_name: Option<String>,
    pub version: Option<String>,
    pub created_at_ms: u64,
    pub approved_at_ms: u64,
}

/// A declared surface that waits for an operator. It does not expire.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PendingSurface {
    pub request_id: String,
    pub caps: Vec<String>,
    pub commands: Vec<String>,
    pub display_name: Option<String>,
    pub version: Option<String>,
    pub ts_ms: u64,
}

impl Device {
    /// A record for a device that is being approved for the first time.
    pub(super) fn from_ask(ask: &Ask, via: ApprovedVia, now_ms: u64) -> Self {
        let mut it = Self {
            id: ask.device.clone(),
            public_key: ask.public_key,
            display_name: None,
            label: None,
            platform: String::new(),
            device_family: None,
            client_id: String::new(),
            client_mode: String::new(),
            approvals: Vec::new(),
            approved_via: via,
            created_at_ms: now_ms,
            approved_at_ms: now_ms,
            last_seen_at_ms: None,
            last_seen_reason: None,
            surface: None,
            pending_surface: None,
        };
        it.describe(ask);
        it
    }

    /// Takes over what the approved request says of the device.
    pub(super) fn describe(&mut self, ask: &Ask) {
        let client = &ask.client;
        self.display_name = client.display_name.as_deref().map(short);
        self.platform = short(&client.platform);
        self.device_family = client.device_family.as_deref().map(short);
        self.client_id = client.id.as_str().to_owned();
        self.client_mode = client.mode.as_str().to_owned();
    }

    pub fn approval(&self, role: Role) -> Option<&Approval> {
        self.approvals.iter().find(|it| it.role == role)
    }

    pub(super) fn approval_mut(&mut self, role: Role) -> Option<&mut Approval> {
        self.approvals.iter_mut().find(|it| it.role == role)
    }

    pub fn has_role(&self, role: Role) -> bool {
        self.approval(role).is_some()
    }

    /// The operator's name for it, else its own.
    pub fn shown_name(&self) -> Option<&str> {
        self.label.as_deref().or(self.display_name.as_deref())
    }

    pub(super) fn known(&self) -> KnownDevice {
        let grants = self.approvals.iter().map(|approval| Grant {
            role: approval.role,
            scopes: approval.scopes,
            token: approval.token.as_ref().and_then(|it| it.digest.clone()),
        });
        KnownDevice {
            public_key: self.public_key,
            platform: pinned_metadata(Some(&self.platform)),
            device_family: pinned_metadata(self.device_family.as_deref()),
            grants: grants.collect(),
        }
    }

    fn scopes(&self) -> ScopeSet {
        self.approvals
            .iter()
            .fold(ScopeSet::NONE, |all, it| all.union(it.scopes))
    }

    /// As `device.pair.list` shows it; `connected` is the caller's to add.
    pub fn to_wire(&self) -> wire::PairedDevice {
        let roles: Vec<String> = self
            .approvals
            .iter()
            .map(|it| it.role.to_string())
            .collect();
        let tokens = self.approvals.iter().filter_map(|approval| {
            let token = approval.token.as_ref()?;
            Some(wire::DeviceTokenSummary {
                role: approval.role.to_string(),
                scopes: names(approval.scopes),
                created_at_ms: token.created_at_ms,
                rotated_at_ms: token.rotated_at_ms,
                revoked_at_ms: token.revoked_at_ms,
                last_used_at_ms: None,
            })
        });
        wire::PairedDevice {
            device_id: self.id.to_string(),
            public_key: self.public_key.to_wire(),
            display_name: self.display_name.clone(),
            label: self.label.clone(),
            platform: Some(self.platform.clone()),
            device_family: self.device_family.clone(),
            client_id: Some(self.client_id.clone()),
            client_mode: Some(self.client_mode.clone()),
            role: roles.first().cloned(),
            roles,
            scopes: names(self.scopes()),
            approved_via: Some(self.approved_via.as_str().to_owned()),
            node_surface: self.surface.as_ref().map(|surface| wire::NodeSurface {
                display_name: surface.display_name.clone(),
                version: surface.version.clone(),
                caps: surface.caps.clone(),
                commands: surface.commands.clone(),
                created_at_ms: surface.created_at_ms,
                approved_at_ms: surface.approved_at_ms,
                ..wire::NodeSurface::default()
            }),
            pending_node_surface: self.pending_surface.as_ref().map(|pending| {
                wire::PendingNodeSurface {
                    request_id: pending.request_id.clone(),
                    display_name: pending.display_name.clone(),
                    platform: Some(self.platform.clone()),
                    version: pending.version.clone(),
                    device_family: self.device_family.clone(),
                    caps: pending.caps.clone(),
                    commands: pending.commands.clone(),
                    ts: pending.ts_ms,
                    ..wire::PendingNodeSurface::default()
                }
            }),
            created_at_ms: self.created_at_ms,
            approved_at_ms: self.approved_at_ms,
            last_seen_at_ms: self.last_seen_at_ms,
            last_seen_reason: self.last_seen_reason.clone(),
            connected: None,
            tokens: tokens.collect(),
        }
    }
}

impl Approval {
    /// Puts a newly made token in place of any older one.
    pub(super) fn issue(&mut self, digest: TokenDigest, now_ms: u64) {
        let created_at_ms = self.token.as_ref().map_or(now_ms, |it| it.created_at_ms);
        let rotated = self.token.is_some().then_some(now_ms);
        self.token = Some(Token {
            digest: Some(digest),
            created_at_ms,
            rotated_at_ms: rotated,
            revoked_at_ms: None,
        });
    }
}

impl DeviceRequest {
    pub fn is_live(&self, now_ms: u64) -> bool {
        let age_ms = u128::from(now_ms.saturating_sub(self.ts_ms));
        age_ms < limits::PAIRING_REQUEST_TTL.as_millis()
    }

    /// As `device.pair.list` and `device.pair.requested` show it.
    pub fn to_wire(&self) -> wire::PendingDevice {
        let ask = &self.ask;
        let role = ask.role.to_string();
        wire::PendingDevice {
            request_id: self.request_id.clone(),
            device_id: ask.device.to_string(),
            public_key: ask.public_key.to_wire(),
            display_name: ask.client.display_name.as_deref().map(short),
            platform: Some(short(&ask.client.platform)),
            device_family: ask.client.device_family.as_deref().map(short),
            client_id: Some(ask.client.id.as_str().to_owned()),
            client_mode: Some(ask.client.mode.as_str().to_owned()),
            browser_origin: ask.browser_origin.clone(),
            role: Some(role.clone()),
            roles: Some(vec![role]),
            scopes: Some(names(ask.scopes)),
            remote_ip: match ask.from {
                crate::ingress::Client::Ip(address) if !address.is_loopback() => {
                    Some(address.to_string())
                }
                _ => None,
            },
            silent: Some(false),
            is_repair: Some(self.is_repair),
            ts: self.ts_ms,
        }
    }
}

fn names(scopes: ScopeSet) -> Vec<String> {
    scopes.to_wire().into_iter().map(str::to_owned).collect()
}

/// A word of the device about itself, cut to what an operator can read.
pub(super) fn short(text: &str) -> String {
    text.chars().take(limits::DEVICE_TEXT_CHARS_MAX).collect()
}
