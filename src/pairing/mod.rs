//! Which devices are known, what was approved for them, and what waits for an operator.
//!
//! In: an ask from `auth::admission`, a node's declared surface, an operator's decision with that operator's scopes.
//! Out: a `Plan`: records to persist, notices to send, sessions to cut. Nothing changes until the caller, having written
//! its audit record, `apply`s the plan; a refused decision changes nothing.
//! Attacker controls: what a device says of itself, and request ids. Bounds: `limits::{PAIRED_DEVICES_MAX,
//! PAIRING_REQUESTS_MAX, PAIRING_REQUEST_TTL, NODE_SURFACE_NAMES_MAX}`.
//! Errors: `PairingRefusal`; to a caller who may not manage a device it says the same as for one that does not exist.

mod devices;
mod nodes;
mod record;
mod refusal;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use devices::{Rotated, TokenTarget};
pub use nodes::{Declared, SurfaceState, required_scopes};
pub use record::{Approval, Device, DeviceRequest, PendingSurface, Surface, Token};
pub use refusal::PairingRefusal;

use crate::auth::admission::{Admitted, KnownDevice};
use crate::auth::scope::{Role, Scope, ScopeSet};
use crate::base::{DeviceId, limits};

/// Who decides. Its scopes are a ceiling on what it can grant (S3).
#[derive(Clone, Debug)]
pub struct Approver {
    scopes: ScopeSet,
    device: Option<DeviceId>,
}

impl Approver {
    pub fn new(caller: &Admitted) -> Self {
        Self {
            scopes: caller.scopes(),
            device: caller.device().cloned(),
        }
    }

    fn is_admin(&self) -> bool {
        self.scopes.contains(Scope::Admin)
    }

    /// A paired device without `operator.admin` manages itself only (S6).
    fn may_manage(&self, target: &DeviceId) -> bool {
        self.is_admin() || self.device.as_ref().is_none_or(|own| own == target)
    }

    fn is_self(&self, target: &DeviceId) -> bool {
        self.device.as_ref() == Some(target)
    }
}

/// A record to persist.
#[derive(Clone, Debug)]
pub enum Change {
    PutDevice(Box<Device>),
    RemoveDevice(DeviceId),
    PutRequest(Box<DeviceRequest>),
    RemoveRequest(String),
}

/// An event for operators, or for the device.
#[derive(Clone, Debug)]
pub enum Notice {
    /// `device.pair.requested`
    DeviceRequested { request_id: String },
    /// `device.pair.resolved`
    DeviceResolved {
        request_id: String,
        device: DeviceId,
        decision: Decision,
    },
    /// `device.pair.changed`
    DeviceChanged,
    /// `node.pair.requested`
    NodeRequested { node: DeviceId, request_id: String },
    /// `node.pair.resolved`, to operators and to the node; the request id is empty for a removal.
    NodeResolved {
        request_id: String,
        node: DeviceId,
        decision: Decision,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    Approved,
    Rejected,
    Removed,
    Expired,
}

impl Decision {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::Rejected => "rejected",
            Self::Removed => "removed",
            Self::Expired => "expired",
        }
    }
}

/// Sessions that must close, with 4001 (K1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cut {
    pub device: DeviceId,
    /// `None`: those of every role.
    pub role: Option<Role>,
    /// The session that asked stays: a device that rotates its own token gets the answer.
    pub except_caller: bool,
}

impl Cut {
    pub const CODE: u16 = 4001;
    pub const REASON: &'static str = "device removed";
}

/// What a decision does. Audit first, then persist the changes, then `Pairing::apply`, then notices and cuts.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub changes: Vec<Change>,
    pub notices: Vec<Notice>,
    pub cuts: Vec<Cut>,
}

impl Plan {
    /// Nothing to do: no audit record is needed either.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.notices.is_empty() && self.cuts.is_empty()
    }

    fn put(&mut self, device: Device) {
        self.changes.push(Change::PutDevice(Box::new(device)));
    }
}

/// All records, in memory; the store holds the same.
#[derive(Debug, Default)]
pub struct Pairing {
    devices: BTreeMap<DeviceId, Device>,
    requests: BTreeMap<String, DeviceRequest>,
}

impl Pairing {
    /// From the store.
    pub fn load(
        devices: impl IntoIterator<Item = Device>,
        requests: impl IntoIterator<Item = DeviceRequest>,
    ) -> Self {
        let mut it = Self::default();
        for device in devices {
            it.devices.insert(device.id.clone(), device);
        }
        for request in requests {
            it.requests.insert(request.request_id.clone(), request);
        }
        it
    }

    /// Makes a plan's changes real. Call it once the store has them.
    pub fn apply(&mut self, changes: &[Change]) {
        for change in changes.iter().cloned() {
            match change {
                Change::PutDevice(device) => {
                    self.devices.insert(device.id.clone(), *device);
                }
                Change::RemoveDevice(id) => {
                    self.devices.remove(&id);
                }
                Change::PutRequest(request) => {
                    self.requests.insert(request.request_id.clone(), *request);
                }
                Change::RemoveRequest(id) => {
                    self.requests.remove(&id);
                }
            }
        }
    }

    pub fn device(&self, id: &DeviceId) -> Option<&Device> {
        self.devices.get(id)
    }

    /// For `admission::Answer::Device`.
    pub fn known(&self, id: &DeviceId) -> Option<KnownDevice> {
        self.devices.get(id).map(Device::known)
    }

    /// The paired devices that this caller may see (S6), by id.
    pub fn devices_for(&self, caller: &Approver) -> impl Iterator<Item = &Device> {
        self.devices
            .values()
            .filter(|device| caller.may_manage(&device.id))
    }

    /// The live requests that this caller may see, the latest first.
    pub fn requests_for(&self, caller: &Approver, now_ms: u64) -> Vec<&DeviceRequest> {
        let mut seen: Vec<_> = self
            .requests
            .values()
            .filter(|request| request.is_live(now_ms) && caller.may_manage(&request.ask.device))
            .collect();
        seen.sort_by(|a, b| b.ts_ms.cmp(&a.ts_ms).then(a.request_id.cmp(&b.request_id)));
        seen
    }

    /// The paired devices that are nodes, by id.
    pub fn nodes(&self) -> impl Iterator<Item = &Device> {
        self.devices
            .values()
            .filter(|device| device.has_role(Role::Node))
    }

    /// Requests whose time is over. The requests stop counting by themselves; this clears them out.
    pub fn expire(&self, now_ms: u64) -> Plan {
        let mut plan = Plan::default();
        for request in self.requests.values().filter(|it| !it.is_live(now_ms)) {
            plan.changes
                .push(Change::RemoveRequest(request.request_id.clone()));
            plan.notices.push(Notice::DeviceResolved {
                request_id: request.request_id.clone(),
                device: request.ask.device.clone(),
                decision: Decision::Expired,
            });
        }
        plan
    }

    fn live_request(&self, id: &str, now_ms: u64) -> Option<&DeviceRequest> {
        self.requests.get(id).filter(|it| it.is_live(now_ms))
    }

    fn has_room(&self) -> bool {
        self.devices.len() < limits::PAIRED_DEVICES_MAX
    }
}
