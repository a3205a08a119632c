//! Devices: request, approve, reject, remove, rename; tokens: issue, rotate, revoke.

use super::record::{Approval, short};
use super::{
    Approver, Change, Cut, Decision, Device, DeviceRequest, Notice, Pairing, PairingRefusal, Plan,
};
use crate::auth::admission::{ApprovedVia, Ask, PairingReason};
use crate::auth::scope::{Role, ScopeSet};
use crate::auth::secret_eq::TokenDigest;
use crate::base::{DeviceId, limits};

/// Whose token.
#[derive(Clone, Copy, Debug)]
pub struct TokenTarget<'a> {
    pub device: &'a DeviceId,
    pub role: Role,
}

/// A rotation.
#[derive(Clone, Debug)]
pub struct Rotated {
    pub plan: Plan,
    pub scopes: ScopeSet,
    /// The device itself asked, so the answer carries the new token. To anybody else it is withheld, and the device is
    /// issued one at its next connect with the shared secret.
    pub in_band: bool,
}

impl Pairing {
    /// Files a request for approval. The same ask again keeps its id; another ask of the same device and role replaces
    /// the older one under a new id, so that nobody approves what was not shown.
    pub fn request(
        &self,
        ask: &Ask,
        fresh_request_id: &str,
        now_ms: u64,
    ) -> Result<(String, Plan), PairingRefusal> {
        let mut plan = self.expire(now_ms);
        let mut live = self.requests.values().filter(|it| it.is_live(now_ms));
        let older = live
            .clone()
            .find(|it| it.ask.device == ask.device && it.ask.role == ask.role);
        if let Some(older) = older {
            if same_ask(&older.ask, ask) {
                let request = DeviceRequest {
                    ts_ms: now_ms,
                    ..older.clone()
                };
                plan.changes.push(Change::PutRequest(Box::new(request)));
                return Ok((older.request_id.clone(), plan));
            }
            plan.changes
                .push(Change::RemoveRequest(older.request_id.clone()));
            plan.notices.push(Notice::DeviceResolved {
                request_id: older.request_id.clone(),
                device: ask.device.clone(),
                decision: Decision::Expired,
            });
        } else if live.nth(limits::PAIRING_REQUESTS_MAX - 1).is_some() {
            return Err(PairingRefusal::QueueFull);
        }
        plan.changes
            .push(Change::PutRequest(Box::new(DeviceRequest {
                request_id: fresh_request_id.to_owned(),
                ask: ask.clone(),
                is_repair: self.devices.contains_key(&ask.device),
                ts_ms: now_ms,
            })));
        plan.notices.push(Notice::DeviceRequested {
            request_id: fresh_request_id.to_owned(),
        });
        Ok((fresh_request_id.to_owned(), plan))
    }

    /// Approves without a decision: the local operator's own programs, and holders of a sign-in link
    /// (`admission::Enrolment::Approve`).
    pub fn enrol(&self, ask: &Ask, via: ApprovedVia, now_ms: u64) -> Result<Plan, PairingRefusal> {
        let mut plan = Plan::default();
        plan.put(self.approved(ask, via, now_ms)?);
        // What waited for the same role is settled with it.
        for older in self.requests.values() {
            if older.ask.device == ask.device && older.ask.role == ask.role {
                plan.changes
                    .push(Change::RemoveRequest(older.request_id.clone()));
                plan.notices.push(Notice::DeviceResolved {
                    request_id: older.request_id.clone(),
                    device: ask.device.clone(),
                    decision: Decision::Approved,
                });
            }
        }
        Ok(plan)
    }

    /// `device.pair.approve`
    pub fn approve_device(
        &self,
        request_id: &str,
        caller: &Approver,
        now_ms: u64,
    ) -> Result<(Device, Plan), PairingRefusal> {
        let Some(request) = self.live_request(request_id, now_ms) else {
            return Err(unknown_or(caller, PairingRefusal::DeviceApproval));
        };
        let ask = &request.ask;
        if !caller.may_manage(&ask.device) {
            return Err(PairingRefusal::DeviceApproval);
        }
        // A node executes for everybody, so only an admin lets one in.
        if ask.role != Role::Operator && !caller.is_admin() {
            return Err(PairingRefusal::DeviceApproval);
        }
        let device = self.approved(ask, ApprovedVia::Owner, now_ms)?;
        let granted = device
            .approval(ask.role)
            .map_or(ScopeSet::NONE, |it| it.scopes);
        if let Some(missing) = caller.scopes.first_missing(granted) {
            return Err(PairingRefusal::DeviceScope(missing));
        }
        let mut plan = Plan::default();
        // A session that was admitted on more than is approved now must not live on.
        let before = self.devices.get(&ask.device);
        let before = before.and_then(|device| device.approval(ask.role));
        if before.is_some_and(|it| !granted.allows_all(it.scopes)) {
            plan.cuts.push(Cut {
                device: ask.device.clone(),
                role: Some(ask.role),
                except_caller: false,
            });
        }
        plan.put(device.clone());
        plan.changes
            .push(Change::RemoveRequest(request_id.to_owned()));
        plan.notices.push(Notice::DeviceResolved {
            request_id: request_id.to_owned(),
            device: ask.device.clone(),
            decision: Decision::Approved,
        });
        Ok((device, plan))
    }

    /// `device.pair.reject`
    pub fn reject_device(
        &self,
        request_id: &str,
        caller: &Approver,
        now_ms: u64,
    ) -> Result<(DeviceId, Plan), PairingRefusal> {
        let Some(request) = self.live_request(request_id, now_ms) else {
            return Err(unknown_or(caller, PairingRefusal::DeviceRejection));
        };
        if !caller.may_manage(&request.ask.device) {
            return Err(PairingRefusal::DeviceRejection);
        }
        let device = request.ask.device.clone();
        let plan = Plan {
            changes: vec![Change::RemoveRequest(request_id.to_owned())],
            notices: vec![Notice::DeviceResolved {
                request_id: request_id.to_owned(),
                device: device.clone(),
                decision: Decision::Rejected,
            }],
            cuts: vec![],
        };
        Ok((device, plan))
    }

    /// `device.pair.remove`
    pub fn remove_device(&self, id: &DeviceId, caller: &Approver) -> Result<Plan, PairingRefusal> {
        let denied = PairingRefusal::DeviceRemoval;
        if !caller.may_manage(id) {
            return Err(denied);
        }
        let device = self.devices.get(id).ok_or(PairingRefusal::UnknownDevice)?;
        let manages_nodes = caller.is_admin() || caller.device.is_none();
        if device.has_role(Role::Node) && !manages_nodes {
            return Err(denied);
        }
        // Nobody removes a device that holds more than it does itself (S4).
        let operator = device.approval(Role::Operator);
        if operator.is_some_and(|it| !caller.scopes.allows_all(it.scopes)) {
            return Err(denied);
        }
        let mut plan = Plan {
            changes: vec![Change::RemoveDevice(id.clone())],
            ..Plan::default()
        };
        if device.has_role(Role::Node) {
            plan.notices.push(node_removed(id));
        }
        plan.cuts.push(Cut {
            device: id.clone(),
            role: None,
            except_caller: false,
        });
        Ok(plan)
    }

    /// `device.pair.rename`
    pub fn rename_device(
        &self,
        id: &DeviceId,
        label: &str,
        caller: &Approver,
    ) -> Result<(String, Plan), PairingRefusal> {
        let label = label.trim();
        if label.is_empty() {
            return Err(PairingRefusal::LabelRequired);
        }
        if label.chars().count() > limits::DEVICE_LABEL_CHARS_MAX {
            return Err(PairingRefusal::LabelTooLong);
        }
        if !caller.may_manage(id) {
            return Err(PairingRefusal::DeviceRename);
        }
        let device = self.devices.get(id).ok_or(PairingRefusal::UnknownDevice)?;
        let manages_nodes = caller.is_admin() || caller.device.is_none();
        if device.has_role(Role::Node) && !manages_nodes {
            return Err(PairingRefusal::DeviceRename);
        }
        let mut renamed = device.clone();
        renamed.label = Some(label.to_owned());
        let mut plan = Plan::default();
        plan.put(renamed);
        plan.notices.push(Notice::DeviceChanged);
        Ok((label.to_owned(), plan))
    }

    /// Stores the digest of a token that `hello-ok` is about to carry (`Admitted::issues_token`).
    pub fn issue_token(
        &self,
        target: TokenTarget<'_>,
        digest: TokenDigest,
        now_ms: u64,
    ) -> Result<Plan, PairingRefusal> {
        let mut device = self.target(target)?;
        if let Some(approval) = device.approval_mut(target.role) {
            approval.issue(digest, now_ms);
        }
        let mut plan = Plan::default();
        plan.put(device);
        Ok(plan)
    }

    /// `device.token.rotate`. `fresh` is used only if the device itself asks. `scopes` narrows what is approved.
    pub fn rotate_token(
        &self,
        target: TokenTarget<'_>,
        scopes: Option<ScopeSet>,
        caller: &Approver,
        fresh: TokenDigest,
        now_ms: u64,
    ) -> Result<Rotated, PairingRefusal> {
        let denied = PairingRefusal::TokenRotation;
        let mut device = self.manageable(target, caller).ok_or(denied)?;
        let in_band = caller.is_self(target.device);
        let approval = device.approval_mut(target.role).ok_or(denied)?;
        let scopes = scopes.unwrap_or(approval.scopes);
        if !approval.scopes.allows_all(scopes) {
            return Err(denied);
        }
        approval.scopes = scopes;
        approval.issue(fresh, now_ms);
        if let Some(token) = approval.token.as_mut() {
            token.rotated_at_ms = Some(now_ms);
            token.digest = token.digest.take().filter(|_| in_band);
        }
        let mut plan = Plan::default();
        plan.put(device);
        plan.cuts.push(Cut {
            device: target.device.clone(),
            role: Some(target.role),
            except_caller: in_band,
        });
        Ok(Rotated {
            plan,
            scopes,
            in_band,
        })
    }

    /// `device.token.revoke`
    pub fn revoke_token(
        &self,
        target: TokenTarget<'_>,
        caller: &Approver,
        now_ms: u64,
    ) -> Result<Plan, PairingRefusal> {
        let denied = PairingRefusal::TokenRevocation;
        let mut device = self.manageable(target, caller).ok_or(denied)?;
        let token = device
            .approval_mut(target.role)
            .and_then(|approval| approval.token.as_mut())
            .ok_or(denied)?;
        token.digest = None;
        token.revoked_at_ms = Some(now_ms);
        let mut plan = Plan::default();
        plan.put(device);
        plan.cuts.push(Cut {
            device: target.device.clone(),
            role: Some(target.role),
            except_caller: false,
        });
        Ok(plan)
    }

    /// A device was seen. Worth a record, not worth an audit entry.
    pub fn seen(&self, id: &DeviceId, reason: &str, now_ms: u64) -> Plan {
        let mut plan = Plan::default();
        if let Some(device) = self.devices.get(id) {
            let mut device = device.clone();
            device.last_seen_at_ms = Some(now_ms);
            device.last_seen_reason = Some(short(reason));
            plan.put(device);
        }
        plan
    }

    /// The record as it stands after the ask is granted.
    fn approved(&self, ask: &Ask, via: ApprovedVia, now_ms: u64) -> Result<Device, PairingRefusal> {
        let mut device = match self.devices.get(&ask.device) {
            Some(device) => device.clone(),
            None if self.has_room() => Device::from_ask(ask, via, now_ms),
            None => return Err(PairingRefusal::TooManyDevices),
        };
        device.describe(ask);
        device.approved_via = via;
        device.approved_at_ms = now_ms;
        match device.approval_mut(ask.role) {
            // An upgrade adds to what was approved; any other approval says all there is (S8: an empty list is none).
            Some(approval) if ask.reason == PairingReason::ScopeUpgrade => {
                approval.scopes = approval.scopes.union(ask.scopes);
            }
            Some(approval) => approval.scopes = ask.scopes,
            None => device.approvals.push(Approval {
                role: ask.role,
                scopes: ask.scopes,
                token: None,
            }),
        }
        Ok(device)
    }

    fn target(&self, target: TokenTarget<'_>) -> Result<Device, PairingRefusal> {
        let device = self.devices.get(target.device);
        let device = device.filter(|device| device.has_role(target.role));
        device.cloned().ok_or(PairingRefusal::UnknownDevice)
    }

    /// The device whose token the caller may rotate or revoke: its own or, with enough scopes, another's (S4). `None`
    /// also if there is no such device or role: the answers must not differ (E1).
    fn manageable(&self, target: TokenTarget<'_>, caller: &Approver) -> Option<Device> {
        let device = self.target(target).ok()?;
        let approval = device.approval(target.role)?;
        let may = caller.may_manage(target.device)
            && (caller.is_admin()
                || (target.role == Role::Operator && caller.scopes.allows_all(approval.scopes)));
        may.then_some(device)
    }
}

fn unknown_or(caller: &Approver, denied: PairingRefusal) -> PairingRefusal {
    if caller.device.is_some() && !caller.is_admin() {
        denied
    } else {
        PairingRefusal::UnknownRequest
    }
}

pub(super) fn node_removed(node: &DeviceId) -> Notice {
    Notice::NodeResolved {
        request_id: String::new(),
        node: node.clone(),
        decision: Decision::Removed,
    }
}

/// Whether an operator who has read one ask has read the other.
fn same_ask(a: &Ask, b: &Ask) -> bool {
    a.reason == b.reason
        && a.public_key == b.public_key
        && a.scopes == b.scopes
        && a.scopes_asked == b.scopes_asked
        && a.browser_origin == b.browser_origin
        && a.from == b.from
        && a.client.id == b.client.id
        && a.client.mode == b.client.mode
        && a.client.platform == b.client.platform
        && a.client.device_family == b.client.device_family
        && a.client.display_name == b.client.display_name
}
