//! Node surfaces: what a node declares, what an operator approved of it, and what waits (N1, N2).

use std::collections::BTreeSet;

use super::devices::node_removed;
use super::record::short;
use super::{
    Approver, Cut, Decision, Device, Notice, Pairing, PairingRefusal, PendingSurface, Plan, Surface,
};
use crate::auth::admission::ApprovedVia;
use crate::auth::scope::{Role, Scope};
use crate::base::{DeviceId, limits};
use crate::rpc::types::node as wire;

/// Commands that amount to running anything on the node; to approve one takes `operator.admin`.
const ADMIN_COMMANDS: [&str; 9] = [
    "system.run",
    "system.run.prepare",
    "system.which",
    "system.execApprovals.get",
    "system.execApprovals.set",
    "browser.proxy",
    "browser.proxy.upload.v1",
    "fs.listDir",
    "terminal.upload",
];

/// What a node says at `connect` that it can do, after the Gateway's own policy has taken away what it never allows.
#[derive(Clone, Copy, Debug)]
pub struct Declared<'a> {
    pub caps: &'a [String],
    pub commands: &'a [String],
    pub display_name: Option<&'a str>,
    pub version: Option<&'a str>,
}

/// How a node's surface stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SurfaceState {
    Approved,
    /// Never approved yet.
    PendingApproval,
    /// Approved once; the node now declares more.
    PendingReapproval,
    Unapproved,
}

impl SurfaceState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::PendingApproval => "pending-approval",
            Self::PendingReapproval => "pending-reapproval",
            Self::Unapproved => "unapproved",
        }
    }
}

impl Surface {
    /// The part of a declaration that is approved. Order and repetitions of the declaration are not kept.
    #[must_use]
    pub fn effective(
        approved: Option<&Self>,
        declared: Declared<'_>,
    ) -> (Vec<String>, Vec<String>) {
        let Some(approved) = approved else {
            return (Vec::new(), Vec::new());
        };
        let both = |approved: &[String], declared: &[String]| {
            let declared: BTreeSet<_> = declared.iter().collect();
            let both = approved.iter().filter(|name| declared.contains(name));
            both.cloned().collect()
        };
        (
            both(&approved.caps, declared.caps),
            both(&approved.commands, declared.commands),
        )
    }
}

impl Device {
    pub fn surface_state(&self) -> SurfaceState {
        match (&self.surface, &self.pending_surface) {
            (Some(_), None) => SurfaceState::Approved,
            (None, Some(_)) => SurfaceState::PendingApproval,
            (Some(_), Some(_)) => SurfaceState::PendingReapproval,
            (None, None) => SurfaceState::Unapproved,
        }
    }

    /// As `node.pair.list` and `node.pair.requested` show what waits.
    pub fn pending_node_to_wire(&self) -> Option<wire::PendingNode> {
        let pending = self.pending_surface.as_ref()?;
        let scopes = required_scopes(&pending.commands);
        Some(wire::PendingNode {
            request_id: pending.request_id.clone(),
            node_id: self.id.to_string(),
            client_id: Some(self.client_id.clone()),
            client_mode: Some(self.client_mode.clone()),
            display_name: pending.display_name.clone(),
            platform: Some(self.platform.clone()),
            version: pending.version.clone(),
            device_family: self.device_family.clone(),
            caps: pending.caps.clone(),
            commands: pending.commands.clone(),
            required_approve_scopes: scopes.iter().map(|it| it.as_str().into()).collect(),
            silent: (self.approved_via == ApprovedVia::Silent).then_some(true),
            ts: pending.ts_ms,
        })
    }

    /// As `node.pair.list` and `node.pair.approve` show what was approved.
    pub fn paired_node_to_wire(&self) -> Option<wire::PairedNode> {
        let surface = self.surface.as_ref()?;
        Some(wire::PairedNode {
            node_id: self.id.to_string(),
            client_id: Some(self.client_id.clone()),
            client_mode: Some(self.client_mode.clone()),
            display_name: self.shown_name().map(str::to_owned),
            platform: Some(self.platform.clone()),
            version: surface.version.clone(),
            device_family: self.device_family.clone(),
            caps: surface.caps.clone(),
            commands: surface.commands.clone(),
            created_at_ms: surface.created_at_ms,
            approved_at_ms: surface.approved_at_ms,
            last_seen_at_ms: self.last_seen_at_ms,
            last_seen_reason: self.last_seen_reason.clone(),
            ..wire::PairedNode::default()
        })
    }
}

/// What an approver must hold to approve these commands.
pub fn required_scopes(commands: &[String]) -> Vec<Scope> {
    let mut scopes = vec![Scope::Pairing];
    if commands
        .iter()
        .any(|it| ADMIN_COMMANDS.contains(&it.as_str()))
    {
        scopes.push(Scope::Admin);
    } else if !commands.is_empty() {
        scopes.push(Scope::Write);
    }
    scopes
}

impl Pairing {
    /// A node has connected and declared this. More than was approved waits for an operator under `fresh_request_id`, or
    /// under the older id if the same surface waits already; meanwhile only `Surface::effective` counts.
    pub fn declare_surface(
        &self,
        id: &DeviceId,
        declared: Declared<'_>,
        fresh_request_id: &str,
        now_ms: u64,
    ) -> Result<Plan, PairingRefusal> {
        let device = self.node(id).ok_or(PairingRefusal::UnknownNode)?;
        let caps = names(declared.caps)?;
        let commands = names(declared.commands)?;
        let covers = |approved: &Surface| {
            caps.iter().all(|cap| approved.caps.contains(cap))
                && commands
                    .iter()
                    .all(|it| approved.commands.contains(it) || approved.declined.contains(it))
        };
        let mut plan = Plan::default();
        let mut device = device.clone();
        let older = device.pending_surface.take();
        if device.surface.as_ref().is_some_and(covers) {
            if let Some(older) = older {
                plan.put(device);
                plan.notices.push(resolved(&older, id, Decision::Expired));
            }
            return Ok(plan);
        }
        let mut pending = PendingSurface {
            request_id: fresh_request_id.to_owned(),
            caps,
            commands,
            display_name: declared.display_name.map(short),
            version: declared.version.map(short),
            ts_ms: now_ms,
        };
        let mut is_new = true;
        if let Some(older) = older {
            if older.caps == pending.caps && older.commands == pending.commands {
                pending.request_id = older.request_id;
                pending.ts_ms = older.ts_ms;
                is_new = false;
            } else {
                plan.notices.push(resolved(&older, id, Decision::Expired));
            }
        }
        if is_new {
            plan.notices.push(Notice::NodeRequested {
                node: id.clone(),
                request_id: pending.request_id.clone(),
            });
        }
        device.pending_surface = Some(pending);
        plan.put(device);
        Ok(plan)
    }

    /// `node.pair.approve`. `subset` approves only some of the declared commands (decision 23). What was approved before
    /// and is not declared any more is dropped.
    pub fn approve_node(
        &self,
        request_id: &str,
        subset: Option<&[String]>,
        caller: &Approver,
        now_ms: u64,
    ) -> Result<(Device, Plan), PairingRefusal> {
        let denied = PairingRefusal::NodeApproval;
        let (device, pending) = self.pending_surface(request_id, caller, denied)?;
        let commands = match subset {
            None => pending.commands.clone(),
            Some(some) => {
                let some = names(some)?;
                let declared = some.iter().all(|it| pending.commands.contains(it));
                if some.is_empty() || !declared {
                    return Err(PairingRefusal::CommandsNotDeclared);
                }
                some
            }
        };
        for scope in required_scopes(&commands) {
            if !caller.scopes.allows(scope) {
                return Err(PairingRefusal::NodeScope(scope));
            }
        }
        let left_out = pending.commands.iter().filter(|it| !commands.contains(it));
        let mut device = device.clone();
        device.pending_surface = None;
        device.surface = Some(Surface {
            caps: pending.caps.clone(),
            declined: left_out.cloned().collect(),
            commands,
            display_name: pending.display_name.clone(),
            version: pending.version.clone(),
            created_at_ms: device
                .surface
                .as_ref()
                .map_or(now_ms, |it| it.created_at_ms),
            approved_at_ms: now_ms,
        });
        let mut plan = Plan::default();
        plan.put(device.clone());
        plan.notices
            .push(resolved(pending, &device.id, Decision::Approved));
        Ok((device, plan))
    }

    /// `node.pair.reject`
    pub fn reject_node(
        &self,
        request_id: &str,
        caller: &Approver,
    ) -> Result<(DeviceId, Plan), PairingRefusal> {
        let denied = PairingRefusal::NodeRejection;
        let (device, pending) = self.pending_surface(request_id, caller, denied)?;
        let mut plan = Plan::default();
        plan.notices
            .push(resolved(pending, &device.id, Decision::Rejected));
        let mut device = device.clone();
        device.pending_surface = None;
        let id = device.id.clone();
        plan.put(device);
        Ok((id, plan))
    }

    /// `node.pair.remove`: takes the node role away, and the device with it if it has no other.
    pub fn remove_node(&self, id: &DeviceId, caller: &Approver) -> Result<Plan, PairingRefusal> {
        if !caller.may_manage(id) {
            return Err(PairingRefusal::NodeRemoval);
        }
        let device = self.node(id).ok_or(PairingRefusal::UnknownNode)?;
        let mixed = device.has_role(Role::Operator);
        if mixed && !caller.is_admin() {
            return Err(PairingRefusal::NodeRemoval);
        }
        let mut plan = Plan::default();
        if mixed {
            let mut device = device.clone();
            device.approvals.retain(|it| it.role != Role::Node);
            device.surface = None;
            device.pending_surface = None;
            plan.put(device);
        } else {
            plan.changes.push(super::Change::RemoveDevice(id.clone()));
        }
        plan.notices.push(node_removed(id));
        plan.cuts.push(Cut {
            device: id.clone(),
            role: Some(Role::Node),
            except_caller: false,
        });
        Ok(plan)
    }

    /// `node.rename`
    pub fn rename_node(
        &self,
        id: &DeviceId,
        display_name: &str,
        caller: &Approver,
    ) -> Result<(String, Plan), PairingRefusal> {
        let name = display_name.trim();
        let length = name.chars().count();
        if !(1..=limits::DEVICE_LABEL_CHARS_MAX).contains(&length) {
            return Err(PairingRefusal::DisplayNameRequired);
        }
        if !caller.may_manage(id) {
            return Err(PairingRefusal::NodeRename);
        }
        let mut device = self.node(id).ok_or(PairingRefusal::UnknownNode)?.clone();
        device.label = Some(name.to_owned());
        let mut plan = Plan::default();
        plan.put(device);
        plan.notices.push(Notice::DeviceChanged);
        Ok((name.to_owned(), plan))
    }

    fn node(&self, id: &DeviceId) -> Option<&Device> {
        self.devices.get(id).filter(|it| it.has_role(Role::Node))
    }

    fn pending_surface(
        &self,
        request_id: &str,
        caller: &Approver,
        denied: PairingRefusal,
    ) -> Result<(&Device, &PendingSurface), PairingRefusal> {
        let found = self.devices.values().find_map(|device| {
            let pending = device.pending_surface.as_ref()?;
            (pending.request_id == request_id).then_some((device, pending))
        });
        let own_only = caller.device.is_some() && !caller.is_admin();
        match found {
            Some((device, _)) if !caller.may_manage(&device.id) => Err(denied),
            Some(found) => Ok(found),
            None if own_only => Err(denied),
            None => Err(PairingRefusal::UnknownRequest),
        }
    }
}

fn resolved(pending: &PendingSurface, node: &DeviceId, decision: Decision) -> Notice {
    Notice::NodeResolved {
        request_id: pending.request_id.clone(),
        node: node.clone(),
        decision,
    }
}

/// The names in order, each once, within bounds.
fn names(declared: &[String]) -> Result<Vec<String>, PairingRefusal> {
    let names: BTreeSet<&String> = declared.iter().collect();
    let fits = names.len() <= limits::NODE_SURFACE_NAMES_MAX
        && names
            .iter()
            .all(|name| name.len() <= limits::NODE_SURFACE_NAME_BYTES_MAX);
    if !fits {
        return Err(PairingRefusal::SurfaceTooLarge);
    }
    Ok(names.into_iter().cloned().collect())
}
