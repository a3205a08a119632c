//! Devices: pending, paired, their tokens, and the sign-in links that pair one browser.

use std::collections::VecDeque;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{Audience, Caller, Denied, Fault, Hub, Inner};
use crate::audit::{self, Actor, TokenChange};
use crate::auth::admission::{self, ApprovedVia, KnownDevice, SignInLink, TokenHolder};
use crate::auth::device::PublicKey;
use crate::auth::permission::PermissionRefusal;
use crate::auth::scope::{Role, Scope, ScopeSet};
use crate::auth::secret_eq::TokenDigest;
use crate::base::{DeviceId, Refusal as _, Secret, ids::uuid_v4, limits};
use crate::machine;
use crate::pairing::{Device, DeviceFacts, DeviceRequest, SurfaceFacts};
use crate::rpc::types::client::ClientSummary;
use crate::rpc::types::device::{
    DevicePairList, DevicePairResolvedEvent, DeviceTokenSummary, PairedDevice, PendingDevice,
    PendingNodeSurface,
};

/// A device token on the one occasion when it is known in the clear.
pub struct Issued {
    pub token: Secret,
    pub issued_at_ms: u64,
}

/// A rotated token: in the clear only for the device that asked for its own.
pub struct Granted {
    pub device: DeviceId,
    pub role: Role,
    pub token: Option<Secret>,
    pub scopes: ScopeSet,
    pub rotated_at_ms: u64,
}

/// A sign-in link that was not opened.
#[derive(Debug)]
pub enum LinkRefused {
    Permission(PermissionRefusal),
    Fault(Fault),
}

impl std::fmt::Display for LinkRefused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Permission(refusal) => f.write_str(&refusal.public()),
            Self::Fault(fault) => fault.fmt(f),
        }
    }
}

/// Open sign-in links: each pairs one browser once, within ten minutes. Only digests are kept, in memory: a restart
/// closes them all.
#[derive(Default)]
pub(super) struct Grants(VecDeque<Grant>);

struct Grant {
    id: String,
    digest: TokenDigest,
    link: SignInLink,
}

impl Grants {
    fn position(&self, digest: &TokenDigest) -> Option<usize> {
        self.0.iter().position(|grant| grant.digest.equals(digest))
    }
}

impl Hub {
    pub fn device(&self, id: &DeviceId) -> Option<Device> {
        self.lock().pairing.device(id).cloned()
    }

    /// What admission needs to know of a device.
    pub fn known_device(&self, id: &DeviceId) -> Option<KnownDevice> {
        let inner = self.lock();
        let device = inner.pairing.device(id)?;
        Some(KnownDevice {
            public_key: PublicKey::decode(&device.public_key)?,
            platform: device.platform.clone(),
            device_family: device.device_family.clone(),
            grants: device
                .roles
                .iter()
                .map(|role| admission::Grant {
                    role: *role,
                    scopes: match role {
                        Role::Operator => device.scopes,
                        Role::Node => ScopeSet::NONE,
                    },
                    token: device
                        .token(*role)
                        .filter(|token| token.revoked_at_ms.is_none())
                        .map(|token| token.digest.clone()),
                    token_scopes: device
                        .token(*role)
                        .map_or(ScopeSet::NONE, |token| token.scopes),
                })
                .collect(),
        })
    }

    /// Whether an operator removed or rejected this device.
    pub fn is_turned_away(&self, id: &DeviceId) -> bool {
        self.lock().pairing.is_turned_away(id)
    }

    /// Whose live token this is. Every token is compared, so that the time tells nothing of where it stands.
    pub fn token_holder(&self, digest: &TokenDigest) -> Option<TokenHolder> {
        let inner = self.lock();
        let mut holder = None;
        for device in inner.pairing.devices() {
            for role in &device.roles {
                let Some(token) = device.token(*role) else {
                    continue;
                };
                if token.digest.equals(digest) && token.revoked_at_ms.is_none() {
                    let scopes = match role {
                        Role::Operator => device.scopes.meet(token.scopes),
                        Role::Node => ScopeSet::NONE,
                    };
                    holder = Some(TokenHolder {
                        device: device.id.clone(),
                        role: *role,
                        scopes,
                    });
                }
            }
        }
        holder
    }

    /// A verified device that is not paired, or asks for more, waits for an operator.
    pub fn file_device_request(&self, facts: DeviceFacts) -> Result<DeviceRequest, Fault> {
        let mut inner = self.lock();
        let filed =
            inner
                .pairing
                .file_request(facts, uuid_v4(machine::random()), machine::now_ms());
        let request = filed.request;
        if filed.is_new {
            let event = audit::Event::PairingRequested {
                request: request.request_id.clone(),
                stage: audit::Stage::Device,
                device: request.facts.id.as_str().into(),
                role: request.facts.role.as_str().to_owned(),
                scopes: names(request.facts.scopes),
                commands: Vec::new(),
                address: request.facts.remote_ip.clone().unwrap_or_default(),
            };
            self.commit(&mut inner, &event, filed.changes)?;
            inner.tell(
                Audience::PairingOf(&request.facts.id),
                "device.pair.requested",
                &pending_device(&request),
            );
        } else if !filed.changes.is_empty() {
            let event = audit::Event::PairingExpired {
                request: request.request_id.clone(),
                stage: audit::Stage::Device,
                device: request.facts.id.as_str().into(),
            };
            self.commit(&mut inner, &event, filed.changes)?;
        }
        Ok(request)
    }

    /// Pairs a device without an operator's hand, as admission decided.
    pub fn pair_device(
        &self,
        facts: DeviceFacts,
        via: ApprovedVia,
        rule: &'static str,
    ) -> Result<Device, Denied> {
        let mut inner = self.lock();
        let (device, changes) = inner.pairing.pair(facts, via, machine::now_ms())?;
        let event = audit::Event::PairingApproved {
            request: String::new(),
            stage: audit::Stage::Device,
            device: device.id.as_str().into(),
            scopes: names(device.scopes),
            commands: Vec::new(),
            by: Actor::System { rule },
        };
        self.commit(&mut inner, &event, changes)?;
        Self::announce_device(&mut inner, "", &device.id, "approved");
        Ok(device)
    }

    /// Issues a device token for a role that the device was granted.
    pub fn issue_device_token(&self, id: &DeviceId, role: Role) -> Result<Option<Issued>, Fault> {
        let now_ms = machine::now_ms();
        let (token, digest) = new_token();
        let mut inner = self.lock();
        let Some(changes) = inner.pairing.issue_token(id, role, digest, now_ms) else {
            return Ok(None);
        };
        let event = audit::Event::TokenChanged {
            device: id.as_str().into(),
            role: role.as_str().to_owned(),
            change: TokenChange::Issued,
            scopes: inner
                .pairing
                .device(id)
                .map_or_else(Vec::new, |device| names(device.scopes)),
            by: Actor::System { rule: "connect" },
        };
        self.commit(&mut inner, &event, changes)?;
        Ok(Some(Issued {
            token,
            issued_at_ms: now_ms,
        }))
    }

    pub fn device_list(&self, caller: &Caller) -> DevicePairList {
        let inner = self.lock();
        let approver = caller.approver();
        DevicePairList {
            pending: inner
                .pairing
                .visible_requests(&approver, machine::now_ms())
                .into_iter()
                .map(|request| PendingDevice {
                    path: shown_path(&request.facts.path),
                    ..pending_device(request)
                })
                .collect(),
            paired: inner
                .pairing
                .visible_devices(&approver)
                .map(|device| paired_device(&inner, device))
                .collect(),
        }
    }

    pub fn approve_device(
        &self,
        caller: &Caller,
        request_id: &str,
    ) -> Result<PairedDevice, Denied> {
        let mut inner = self.lock();
        let (approver, now_ms) = (caller.approver(), machine::now_ms());
        let (device, changes) = inner.pairing.approve(&approver, request_id, now_ms)?;
        let event = audit::Event::PairingApproved {
            request: request_id.to_owned(),
            stage: audit::Stage::Device,
            device: device.id.as_str().into(),
            scopes: names(device.scopes),
            commands: Vec::new(),
            by: caller.actor.clone(),
        };
        self.commit(&mut inner, &event, changes)?;
        Self::announce_device(&mut inner, request_id, &device.id, "approved");
        Ok(paired_device(&inner, &device))
    }

    pub fn reject_device(&self, caller: &Caller, request_id: &str) -> Result<DeviceId, Denied> {
        let mut inner = self.lock();
        let (approver, now_ms) = (caller.approver(), machine::now_ms());
        let (device, changes) = inner.pairing.reject(&approver, request_id, now_ms)?;
        let event = audit::Event::PairingRejected {
            request: request_id.to_owned(),
            stage: audit::Stage::Device,
            device: device.as_str().into(),
            by: caller.actor.clone(),
        };
        self.commit(&mut inner, &event, changes)?;
        Self::announce_device(&mut inner, request_id, &device, "rejected");
        Ok(device)
    }

    /// Unpairs a device and closes its sockets.
    pub fn remove_device(&self, caller: &Caller, id: &str) -> Result<DeviceId, Denied> {
        let mut inner = self.lock();
        let (approver, now_ms) = (caller.approver(), machine::now_ms());
        let (device, changes) = inner.pairing.remove(&approver, id, now_ms)?;
        let event = audit::Event::DeviceRemoved {
            device: device.as_str().into(),
            by: caller.actor.clone(),
        };
        self.commit(&mut inner, &event, changes)?;
        self.close_device(&mut inner, &device, None, None, "device removed");
        inner.registry.forget(&device);
        Ok(device)
    }

    pub fn rename_device(&self, caller: &Caller, id: &str, label: &str) -> Result<Device, Denied> {
        let mut inner = self.lock();
        let (device, changes) = inner.pairing.rename(&caller.approver(), id, label)?;
        let event = audit::Event::DeviceRenamed {
            device: device.id.as_str().into(),
            name: label.into(),
            by: caller.actor.clone(),
        };
        self.commit(&mut inner, &event, changes)?;
        let nothing = serde_json::Map::new();
        inner.tell(
            Audience::Operators(Scope::Pairing),
            "device.pair.changed",
            &nothing,
        );
        Ok(device)
    }

    /// Replaces a device's token. Whoever used the old one is disconnected.
    pub fn rotate_token(
        &self,
        caller: &Caller,
        id: &str,
        role: Role,
        scopes: Option<ScopeSet>,
    ) -> Result<Granted, Denied> {
        let now_ms = machine::now_ms();
        let (secret, digest) = new_token();
        let mut inner = self.lock();
        let (token, device, changes) =
            inner
                .pairing
                .rotate(&caller.approver(), id, role, scopes, digest, now_ms)?;
        let event = audit::Event::TokenChanged {
            device: device.as_str().into(),
            role: role.as_str().to_owned(),
            change: TokenChange::Rotated,
            scopes: names(token.scopes),
            by: caller.actor.clone(),
        };
        self.commit(&mut inner, &event, changes)?;
        let own = caller.device.as_ref() == Some(&device) && caller.role == role;
        if own {
            inner
                .connections
                .set_token(&caller.conn, token.digest.clone());
        }
        // Its own connection goes on, since it learns the new token; all others may be whoever had the old one.
        let spared = own.then_some(&caller.conn);
        self.close_device(
            &mut inner,
            &device,
            Some(role),
            spared,
            "device token rotated",
        );
        Ok(Granted {
            device,
            role,
            token: (own && caller.private).then_some(secret),
            scopes: token.scopes,
            rotated_at_ms: now_ms,
        })
    }

    pub fn revoke_token(
        &self,
        caller: &Caller,
        id: &str,
        role: Role,
    ) -> Result<(DeviceId, u64), Denied> {
        let now_ms = machine::now_ms();
        let mut inner = self.lock();
        let (device, changes) = inner.pairing.revoke(&caller.approver(), id, role, now_ms)?;
        let event = audit::Event::TokenChanged {
            device: device.as_str().into(),
            role: role.as_str().to_owned(),
            change: TokenChange::Revoked,
            scopes: Vec::new(),
            by: caller.actor.clone(),
        };
        self.commit(&mut inner, &event, changes)?;
        self.close_device(&mut inner, &device, Some(role), None, "device removed");
        Ok((device, now_ms))
    }

    /// Opens a single-use sign-in link for one browser and returns its code, which never holds the password. `maker` is
    /// what the one who opens it may do.
    pub fn open_sign_in_link(
        &self,
        maker: ScopeSet,
        scopes: ScopeSet,
        by: Actor,
    ) -> Result<Secret, LinkRefused> {
        let link =
            SignInLink::mint(maker, scopes, machine::now_ms()).map_err(LinkRefused::Permission)?;
        let (code, digest) = new_token();
        let id = uuid_v4(machine::random());
        let event = audit::Event::GrantCreated {
            grant: id.clone(),
            expires_at_ms: link.expires_at_ms,
            by,
        };
        let mut inner = self.lock();
        self.audit
            .append(&event, audit::Durability::Synced)
            .map_err(|error| LinkRefused::Fault(Fault::Audit(error)))?;
        let grants = &mut inner.grants.0;
        if grants.len() >= limits::SIGN_IN_LINKS_MAX {
            grants.pop_front();
        }
        grants.push_back(Grant { id, digest, link });
        Ok(code)
    }

    /// The sign-in link with this digest, as admission judges it.
    pub fn sign_in_link(&self, digest: &TokenDigest) -> Option<SignInLink> {
        let inner = self.lock();
        let grant = inner.grants.0.get(inner.grants.position(digest)?)?;
        Some(grant.link.clone())
    }

    /// Uses up a sign-in link for a device. `false` if another connection was faster.
    pub fn spend_sign_in_link(
        &self,
        digest: &TokenDigest,
        device: &DeviceId,
        address: &str,
    ) -> Result<bool, Fault> {
        let mut inner = self.lock();
        let Some(at) = inner.grants.position(digest) else {
            return Ok(false);
        };
        let Some(grant) = inner.grants.0.remove(at) else {
            return Ok(false);
        };
        let event = audit::Event::GrantUsed {
            grant: grant.id,
            device: device.as_str().into(),
            address: address.to_owned(),
        };
        self.audit
            .append(&event, audit::Durability::Synced)
            .map_err(Fault::Audit)?;
        Ok(true)
    }

    /// A misused sign-in link never works again.
    pub fn burn_sign_in_link(&self, digest: &TokenDigest) {
        let mut inner = self.lock();
        if let Some(at) = inner.grants.position(digest) {
            inner.grants.0.remove(at);
        }
    }

    fn announce_device(
        inner: &mut Inner,
        request_id: &str,
        device: &DeviceId,
        decision: &'static str,
    ) {
        let event = DevicePairResolvedEvent {
            request_id: request_id.to_owned(),
            device_id: device.as_str().to_owned(),
            decision: decision.into(),
            ts: machine::now_ms(),
        };
        inner.tell(Audience::PairingOf(device), "device.pair.resolved", &event);
    }
}

/// 32 random bytes as text, and what the record keeps of them.
fn new_token() -> (Secret, TokenDigest) {
    let token = URL_SAFE_NO_PAD.encode(machine::random::<32>());
    let digest = TokenDigest::of(token.as_bytes());
    (Secret::new(token), digest)
}

pub(super) fn names(scopes: ScopeSet) -> Vec<String> {
    scopes.to_wire().into_iter().map(str::to_owned).collect()
}

/// A path of the record; older records have none.
pub(super) fn shown_path(path: &str) -> Option<String> {
    (!path.is_empty()).then(|| path.to_owned())
}

/// A paired device as the lists show it.
pub(super) fn of_device(device: &Device) -> ClientSummary {
    let platform = device.platform_shown.as_ref().unwrap_or(&device.platform);
    ClientSummary {
        client_id: Some(device.client_id.clone()),
        client_mode: Some(device.client_mode.clone()),
        display_name: device.display_name.clone(),
        platform: Some(platform.clone()),
        version: None,
        device_family: device.device_family_shown.clone(),
    }
}

/// A node's declaration as the lists show it.
pub(super) fn of_surface(facts: &SurfaceFacts) -> ClientSummary {
    ClientSummary {
        client_id: Some(facts.client_id.clone()),
        client_mode: Some(facts.client_mode.clone()),
        display_name: facts.display_name.clone(),
        platform: Some(facts.platform.clone()),
        version: Some(facts.version.clone()),
        device_family: facts.device_family.clone(),
    }
}

pub(super) fn pending_device(request: &DeviceRequest) -> PendingDevice {
    let facts = &request.facts;
    PendingDevice {
        request_id: request.request_id.clone(),
        device_id: facts.id.as_str().to_owned(),
        public_key: facts.public_key.clone(),
        client: ClientSummary {
            client_id: Some(facts.client_id.clone()),
            client_mode: Some(facts.client_mode.clone()),
            display_name: facts.display_name.clone(),
            platform: facts
                .platform_shown
                .clone()
                .or_else(|| Some(facts.platform.clone())),
            version: None,
            device_family: facts.device_family_shown.clone(),
        },
        browser_origin: facts.browser_origin.clone(),
        role: Some(facts.role.as_str().to_owned()),
        roles: Some(vec![facts.role.as_str().to_owned()]),
        scopes: Some(names(facts.scopes)),
        remote_ip: facts.remote_ip.clone(),
        path: None,
        silent: Some(false),
        is_repair: Some(request.is_repair),
        ts: request.ts_ms,
    }
}

fn paired_device(inner: &Inner, device: &Device) -> PairedDevice {
    let roles: Vec<String> = device
        .roles
        .iter()
        .map(|role| role.as_str().to_owned())
        .collect();
    PairedDevice {
        device_id: device.id.as_str().to_owned(),
        public_key: device.public_key.clone(),
        client: of_device(device),
        label: device.label.clone(),
        role: roles.first().cloned(),
        roles,
        scopes: names(device.scopes),
        approved_via: Some(device.approved_via.as_str().to_owned()),
        node_surface: None,
        pending_node_surface: inner.pairing.surface_request(&device.id).map(|request| {
            PendingNodeSurface {
                request_id: request.request_id.clone(),
                revision: None,
                client: ClientSummary {
                    client_id: None,
                    client_mode: None,
                    ..of_surface(&request.facts)
                },
                caps: request.facts.caps.clone(),
                commands: request.facts.commands.clone(),
                silent: request.facts.silent.then_some(true),
                ts: request.ts_ms,
            }
        }),
        created_at_ms: device.created_at_ms,
        approved_at_ms: device.approved_at_ms,
        last_seen_at_ms: device.last_seen_at_ms,
        last_seen_reason: device.last_seen_reason.clone(),
        connected: Some(inner.connections.of_device(&device.id).next().is_some()),
        tokens: device
            .tokens
            .iter()
            .map(|token| DeviceTokenSummary {
                role: token.role.as_str().to_owned(),
                scopes: names(token.scopes),
                created_at_ms: token.created_at_ms,
                rotated_at_ms: token.rotated_at_ms,
                revoked_at_ms: token.revoked_at_ms,
                last_used_at_ms: None,
            })
            .collect(),
    }
}
