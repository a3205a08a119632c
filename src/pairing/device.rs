//! Devices: asked for, approved, rejected, renamed, removed, and their tokens.

use super::{Change, Device, DeviceFacts, DeviceRequest, Pairing, Refused, Token, TurnedAway};
use crate::auth::admission::ApprovedVia;
use crate::auth::scope::{Role, Scope, ScopeSet};
use crate::auth::secret_eq::TokenDigest;
use crate::base::{DeviceId, limits};

/// Who decides.
#[derive(Clone)]
pub struct Approver {
    pub scopes: ScopeSet,
    /// The approver's own device; a local operator has none.
    pub device: Option<DeviceId>,
}

impl Approver {
    fn is_admin(&self) -> bool {
        self.scopes.contains(Scope::Admin)
    }

    /// A paired device without admin sees and decides about itself only; a local operator is the machine's owner.
    pub fn may_see(&self, device: &DeviceId) -> bool {
        self.is_admin() || self.device.as_ref().is_none_or(|own| own == device)
    }
}

/// A device request that now waits, and whether it is a new one.
pub struct Filed {
    pub request: DeviceRequest,
    pub is_new: bool,
    pub changes: Vec<Change>,
}

impl Pairing {
    /// Lets a device's request wait for an operator.
    ///
    /// The same device asking for the same keeps its request id; asking for something else supersedes it. When too
    /// many wait, the oldest gives way.
    pub fn file_request(&self, facts: DeviceFacts, request_id: String, now_ms: u64) -> Filed {
        let mut changes = self.expired(now_ms);
        let mut same = None;
        for request in self.requests(now_ms) {
            if request.facts.id != facts.id || request.facts.role != facts.role {
                continue;
            }
            if asks_the_same(request, &facts) {
                same = Some(request.clone());
            } else {
                changes.push(Change::RequestGone(request.request_id.clone()));
            }
        }
        if let Some(request) = same {
            return Filed {
                request,
                is_new: false,
                changes,
            };
        }
        let live = self.requests(now_ms);
        if live.len() >= limits::PAIRING_REQUESTS_MAX
            && let Some(oldest) = live.last()
        {
            changes.push(Change::RequestGone(oldest.request_id.clone()));
        }
        let request = DeviceRequest {
            request_id,
            is_repair: self.devices.contains_key(&facts.id),
            facts,
            ts_ms: now_ms,
        };
        changes.push(Change::Request(request.clone()));
        Filed {
            request,
            is_new: true,
            changes,
        }
    }

    /// An operator approves a request. It must hold every scope that the device would be granted.
    pub fn approve(
        &self,
        approver: &Approver,
        request_id: &str,
        now_ms: u64,
    ) -> Result<(Device, Vec<Change>), Refused> {
        let request = self.visible_request(approver, request_id, now_ms)?;
        let needed = match request.facts.role {
            // A node executes what it is sent; only an administrator lets one in.
            Role::Node => Scope::Admin.into(),
            Role::Operator => request.facts.scopes,
        };
        if let Some(scope) = approver.scopes.first_missing(needed) {
            return Err(Refused::ApproverLacks { scope });
        }
        let device = self.admitted(request, ApprovedVia::Owner, now_ms)?;
        Ok((
            device.clone(),
            vec![
                Change::RequestGone(request_id.to_owned()),
                Change::TurnedAwayGone(device.id.clone()),
                Change::Device(device),
            ],
        ))
    }

    /// A device is paired without a request: a direct local caller, or a sign-in link.
    pub fn pair(
        &self,
        facts: DeviceFacts,
        via: ApprovedVia,
        now_ms: u64,
    ) -> Result<(Device, Vec<Change>), Refused> {
        if via == ApprovedVia::TrustedCidr && self.is_turned_away(&facts.id) {
            return Err(Refused::TurnedAway);
        }
        let Filed { request, .. } = self.file_request(facts, String::new(), now_ms);
        let device = self.admitted(&request, via, now_ms)?;
        let waiting = self
            .requests
            .values()
            .filter(|waiting| waiting.facts.id == device.id);
        let mut changes: Vec<_> = waiting
            .map(|waiting| Change::RequestGone(waiting.request_id.clone()))
            .collect();
        changes.push(Change::Device(device.clone()));
        Ok((device, changes))
    }

    /// The record that a granted request leaves. A repair replaces metadata and adds the role; it keeps the label.
    fn admitted(
        &self,
        request: &DeviceRequest,
        via: ApprovedVia,
        now_ms: u64,
    ) -> Result<Device, Refused> {
        let known = self.devices.get(&request.facts.id);
        if known.is_none() && self.devices.len() >= limits::DEVICES_MAX {
            return Err(Refused::TooManyDevices {
                limit: limits::DEVICES_MAX,
            });
        }
        let mut roles = known.map_or_else(Vec::new, |device| device.roles.clone());
        if !roles.contains(&request.facts.role) {
            roles.push(request.facts.role);
        }
        let scopes = match request.facts.role {
            // What is asked for again is what is granted from now on: an empty list means none.
            Role::Operator => request.facts.scopes,
            Role::Node => known.map_or(ScopeSet::NONE, |device| device.scopes),
        };
        let mut tokens = known.map_or_else(Vec::new, |device| device.tokens.clone());
        if let Some(token) = tokens
            .iter_mut()
            .find(|token| token.role == request.facts.role)
        {
            token.scopes = match request.facts.role {
                Role::Operator => scopes,
                Role::Node => ScopeSet::NONE,
            };
        }
        Ok(Device {
            id: request.facts.id.clone(),
            public_key: request.facts.public_key.clone(),
            display_name: request.facts.display_name.clone(),
            label: known.and_then(|device| device.label.clone()),
            platform: request.facts.platform.clone(),
            device_family: request.facts.device_family.clone(),
            platform_shown: request.facts.platform_shown.clone(),
            device_family_shown: request.facts.device_family_shown.clone(),
            client_id: request.facts.client_id.clone(),
            client_mode: request.facts.client_mode.clone(),
            roles,
            scopes,
            tokens,
            approved_via: via,
            created_at_ms: known.map_or(now_ms, |device| device.created_at_ms),
            approved_at_ms: now_ms,
            last_seen_at_ms: known.and_then(|device| device.last_seen_at_ms),
            last_seen_reason: known.and_then(|device| device.last_seen_reason.clone()),
        })
    }

    pub fn reject(
        &self,
        approver: &Approver,
        request_id: &str,
        now_ms: u64,
    ) -> Result<(DeviceId, Vec<Change>), Refused> {
        let request = self.visible_request(approver, request_id, now_ms)?;
        let mut changes = vec![Change::RequestGone(request_id.to_owned())];
        // A paired device that asked for more keeps what it has, and is turned away when it is removed.
        if !self.devices.contains_key(&request.facts.id) {
            changes.extend(self.turn_away(&request.facts.id, now_ms));
        }
        Ok((request.facts.id.clone(), changes))
    }

    /// Remembers a device that is not to come back by its address alone (decision 23).
    fn turn_away(&self, device: &DeviceId, at_ms: u64) -> Vec<Change> {
        let device = device.clone();
        let is_full = self.turned_away.len() >= limits::TURNED_AWAY_MAX;
        let oldest = self.turned_away.values().min_by_key(|it| it.at_ms);
        let forgotten = oldest.filter(|_| is_full && !self.is_turned_away(&device));
        let mut changes: Vec<_> = forgotten
            .map(|it| Change::TurnedAwayGone(it.device.clone()))
            .into_iter()
            .collect();
        changes.push(Change::TurnedAway(TurnedAway { device, at_ms }));
        changes
    }

    /// Unpairs a device, with its node surface and whatever waits.
    pub fn remove(
        &self,
        approver: &Approver,
        id: &str,
        now_ms: u64,
    ) -> Result<(DeviceId, Vec<Change>), Refused> {
        let device = self.visible_device(approver, id)?;
        // Whoever removes takes away at most what it could have granted.
        if !approver.scopes.allows_all(device.scopes)
            && approver.device.as_ref() != Some(&device.id)
        {
            return Err(Refused::UnknownDevice);
        }
        let id = device.id.clone();
        let mut changes = vec![
            Change::SurfaceRequestGone(id.clone()),
            Change::SurfaceGone(id.clone()),
        ];
        changes.extend(
            self.requests
                .values()
                .filter(|request| request.facts.id == id)
                .map(|request| Change::RequestGone(request.request_id.clone())),
        );
        changes.push(Change::DeviceGone(id.clone()));
        changes.extend(self.turn_away(&id, now_ms));
        Ok((id, changes))
    }

    pub fn rename(
        &self,
        approver: &Approver,
        id: &str,
        label: &str,
    ) -> Result<(Device, Vec<Change>), Refused> {
        let mut device = self.visible_device(approver, id)?.clone();
        device.label = Some(checked_name(label)?);
        Ok((device.clone(), vec![Change::Device(device)]))
    }

    /// Replaces a role's token. The new one never carries more than the device was granted or the caller holds.
    pub fn rotate(
        &self,
        approver: &Approver,
        id: &str,
        role: Role,
        scopes: Option<ScopeSet>,
        digest: TokenDigest,
        now_ms: u64,
    ) -> Result<(Token, DeviceId, Vec<Change>), Refused> {
        let denied = |_| Refused::RotationDenied;
        let mut device = self.visible_device(approver, id).map_err(denied)?.clone();
        let Some(old) = device.token(role) else {
            return Err(Refused::RotationDenied);
        };
        let wanted = scopes.unwrap_or(old.scopes);
        if !device.scopes.allows_all(wanted) || !may_change_token(approver, &device, role) {
            return Err(Refused::RotationDenied);
        }
        let token = Token {
            role,
            scopes: wanted,
            digest,
            created_at_ms: old.created_at_ms,
            rotated_at_ms: Some(now_ms),
            revoked_at_ms: None,
        };
        put_token(&mut device, token.clone());
        Ok((token, device.id.clone(), vec![Change::Device(device)]))
    }

    pub fn revoke(
        &self,
        approver: &Approver,
        id: &str,
        role: Role,
        now_ms: u64,
    ) -> Result<(DeviceId, Vec<Change>), Refused> {
        let mut device = self
            .visible_device(approver, id)
            .map_err(|_| Refused::RevocationDenied)?
            .clone();
        if !may_change_token(approver, &device, role) {
            return Err(Refused::RevocationDenied);
        }
        let Some(token) = device.tokens.iter_mut().find(|token| token.role == role) else {
            return Err(Refused::RevocationDenied);
        };
        token.revoked_at_ms = Some(now_ms);
        let mut changes = self.waiting_of(&device.id, Some(role));
        changes.push(Change::Device(device.clone()));
        Ok((device.id, changes))
    }

    /// Takes away all for which a device waits, in one role or in any.
    fn waiting_of(&self, id: &DeviceId, role: Option<Role>) -> Vec<Change> {
        let concerned = |of: Role| role.is_none_or(|role| role == of);
        let requests = self.requests.values();
        let mut gone: Vec<_> = requests
            .filter(|request| request.facts.id == *id && concerned(request.facts.role))
            .map(|request| Change::RequestGone(request.request_id.clone()))
            .collect();
        if concerned(Role::Node) {
            gone.push(Change::SurfaceRequestGone(id.clone()));
        }
        gone
    }

    /// A token that a connect issues to a device which was granted its role.
    pub fn issue_token(
        &self,
        id: &DeviceId,
        role: Role,
        digest: TokenDigest,
        now_ms: u64,
    ) -> Option<Vec<Change>> {
        let mut device = self.devices.get(id)?.clone();
        let scopes = match role {
            Role::Operator => device.scopes,
            Role::Node => ScopeSet::NONE,
        };
        put_token(
            &mut device,
            Token {
                role,
                scopes,
                digest,
                created_at_ms: now_ms,
                rotated_at_ms: None,
                revoked_at_ms: None,
            },
        );
        Some(vec![Change::Device(device)])
    }

    /// A device was seen; kept for the lists, not worth a disk sync.
    pub fn seen(&mut self, id: &DeviceId, reason: &str, now_ms: u64) {
        if let Some(device) = self.devices.get_mut(id) {
            device.last_seen_at_ms = Some(now_ms);
            device.last_seen_reason = Some(reason.to_owned());
        }
    }

    /// What this caller may see of the pending requests.
    pub fn visible_requests(&self, approver: &Approver, now_ms: u64) -> Vec<&DeviceRequest> {
        self.requests(now_ms)
            .into_iter()
            .filter(|request| approver.may_see(&request.facts.id))
            .collect()
    }

    /// What this caller may see of the paired devices.
    pub fn visible_devices<'a>(
        &'a self,
        approver: &'a Approver,
    ) -> impl Iterator<Item = &'a Device> {
        self.devices().filter(|device| approver.may_see(&device.id))
    }

    fn visible_request(
        &self,
        approver: &Approver,
        id: &str,
        now_ms: u64,
    ) -> Result<&DeviceRequest, Refused> {
        self.requests
            .get(id)
            .filter(|request| request.is_live(now_ms) && approver.may_see(&request.facts.id))
            .ok_or(Refused::UnknownRequest)
    }

    fn visible_device(&self, approver: &Approver, id: &str) -> Result<&Device, Refused> {
        DeviceId::parse(id)
            .and_then(|id| self.devices.get(&id))
            .filter(|device| approver.may_see(&device.id))
            .ok_or(Refused::UnknownDevice)
    }
}

/// A role's token may be changed by its own device, or by whoever holds all that it carries.
fn may_change_token(approver: &Approver, device: &Device, role: Role) -> bool {
    if approver.device.as_ref() == Some(&device.id) {
        return true;
    }
    let carried = match role {
        Role::Node => Scope::Admin.into(),
        Role::Operator => device.scopes,
    };
    approver.scopes.allows_all(carried)
}

fn put_token(device: &mut Device, token: Token) {
    device.tokens.retain(|old| old.role != token.role);
    device.tokens.push(token);
}

fn asks_the_same(request: &DeviceRequest, facts: &DeviceFacts) -> bool {
    request.facts.public_key == facts.public_key
        && request.facts.scopes == facts.scopes
        && request.facts.platform == facts.platform
        && request.facts.device_family == facts.device_family
        && request.facts.client_id == facts.client_id
        && request.facts.client_mode == facts.client_mode
}

/// A name that an operator gives: bounded, without control characters.
pub(super) fn checked_name(name: &str) -> Result<String, Refused> {
    let name: String = name.trim().chars().filter(|c| !c.is_control()).collect();
    let chars = name.chars().count();
    if chars > limits::NAME_CHARS_MAX {
        return Err(Refused::NameTooLong {
            chars,
            limit: limits::NAME_CHARS_MAX,
        });
    }
    Ok(name)
}
