//! Which devices are paired, what an operator granted them, and what waits for a decision.
//!
//! In: requests, decisions and the time. Out: `Change`s, which the hub records, persists and then applies; nothing is
//! altered before that. Attacker controls: all that a pending request says of itself.
//! Bounds: `limits::PAIRING_REQUESTS_MAX`, `limits::PAIRING_REQUEST_TTL_MS`, `limits::DEVICES_MAX`,
//! `limits::TURNED_AWAY_MAX`.
//! Errors: `Refused`. Unknown and foreign ids are answered alike.

mod device;
mod records;
mod refused;
mod surface;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use device::{Approver, Filed};
pub use records::{
    Device, DeviceFacts, DeviceRequest, Surface, SurfaceFacts, SurfaceRequest, Token, TurnedAway,
};
pub use refused::Refused;
pub use surface::required_scopes;

use crate::auth::scope::Role;
use crate::base::{DeviceId, limits};

/// One step of the record, to be persisted and then applied.
#[derive(Clone)]
pub enum Change {
    Device(Device),
    DeviceGone(DeviceId),
    Request(DeviceRequest),
    RequestGone(String),
    TurnedAway(TurnedAway),
    TurnedAwayGone(DeviceId),
    Surface(Surface),
    SurfaceGone(DeviceId),
    SurfaceRequest(SurfaceRequest),
    SurfaceRequestGone(DeviceId),
}

/// All that is known of devices and nodes.
#[derive(Clone, Default)]
pub struct Pairing {
    devices: BTreeMap<DeviceId, Device>,
    requests: BTreeMap<String, DeviceRequest>,
    turned_away: BTreeMap<DeviceId, TurnedAway>,
    surfaces: BTreeMap<DeviceId, Surface>,
    /// One per node: a later declaration supersedes an earlier request.
    surface_requests: BTreeMap<DeviceId, SurfaceRequest>,
}

impl Pairing {
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            match change {
                Change::Device(device) => {
                    self.devices.insert(device.id.clone(), device);
                }
                Change::DeviceGone(id) => {
                    self.devices.remove(&id);
                }
                Change::Request(request) => {
                    self.requests.insert(request.request_id.clone(), request);
                }
                Change::RequestGone(id) => {
                    self.requests.remove(&id);
                }
                Change::TurnedAway(it) => {
                    self.turned_away.insert(it.device.clone(), it);
                }
                Change::TurnedAwayGone(id) => {
                    self.turned_away.remove(&id);
                }
                Change::Surface(surface) => {
                    self.surfaces.insert(surface.facts.node.clone(), surface);
                }
                Change::SurfaceGone(id) => {
                    self.surfaces.remove(&id);
                }
                Change::SurfaceRequest(request) => {
                    self.surface_requests
                        .insert(request.facts.node.clone(), request);
                }
                Change::SurfaceRequestGone(id) => {
                    self.surface_requests.remove(&id);
                }
            }
        }
    }

    pub fn device(&self, id: &DeviceId) -> Option<&Device> {
        self.devices.get(id)
    }

    /// Whether an operator removed or rejected this device, and none has approved it since.
    pub fn is_turned_away(&self, id: &DeviceId) -> bool {
        self.turned_away.contains_key(id)
    }

    /// Paired devices, ordered by id.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.devices.values()
    }

    /// Devices that are paired as nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Device> {
        self.devices()
            .filter(|device| device.roles.contains(&Role::Node))
    }

    /// Pending device requests, newest first, those past their time left out.
    pub fn requests(&self, now_ms: u64) -> Vec<&DeviceRequest> {
        let mut requests: Vec<_> = self
            .requests
            .values()
            .filter(|request| request.is_live(now_ms))
            .collect();
        requests.sort_by_key(|request| std::cmp::Reverse(request.ts_ms));
        requests
    }

    pub fn surface(&self, node: &DeviceId) -> Option<&Surface> {
        self.surfaces.get(node)
    }

    pub fn surfaces(&self) -> impl Iterator<Item = &Surface> {
        self.surfaces.values()
    }

    pub fn surface_request(&self, node: &DeviceId) -> Option<&SurfaceRequest> {
        self.surface_requests.get(node)
    }

    /// Pending surface requests, newest first.
    pub fn surface_requests(&self) -> Vec<&SurfaceRequest> {
        let mut requests: Vec<_> = self.surface_requests.values().collect();
        requests.sort_by_key(|request| std::cmp::Reverse(request.ts_ms));
        requests
    }

    /// Requests that have outlived `limits::PAIRING_REQUEST_TTL_MS`.
    pub fn expired(&self, now_ms: u64) -> Vec<Change> {
        self.requests
            .values()
            .filter(|request| !request.is_live(now_ms))
            .map(|request| Change::RequestGone(request.request_id.clone()))
            .collect()
    }
}

impl DeviceRequest {
    fn is_live(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.ts_ms) < limits::PAIRING_REQUEST_TTL_MS
    }
}
