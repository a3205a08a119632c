//! Nodes as operators see them, and the approval of what they offer.

use std::time::Instant;

use super::devices::{of_device, of_surface, shown_path};
use super::{Audience, Caller, Denied, Hub, Inner};
use crate::audit::{self, PeerText};
use crate::auth::scope::Role;
use crate::base::DeviceId;
use crate::machine;
use crate::nodes::{Refused, is_reserved};
use crate::pairing::{
    Device, Refused as NotApproved, Surface, SurfaceFacts, SurfaceRequest, required_scopes,
};
use crate::rpc::encode;
use crate::rpc::types::client::ClientSummary;
use crate::rpc::types::node::{
    HostStats, NodeApprovalState, NodeEntry, NodePairList, NodePairResolvedEvent, PairedNode,
    PendingNode,
};

/// Whether one node would run one command now.
#[derive(Clone, Debug)]
pub struct NodeView {
    pub id: DeviceId,
    pub name: String,
    pub online: bool,
    /// The commands that would run now.
    pub callable: Vec<String>,
    pub pending_request: Option<String>,
}

impl Hub {
    /// Every node, ordered by id.
    pub fn node_list(&self) -> Vec<NodeEntry> {
        let inner = self.lock();
        inner
            .pairing
            .nodes()
            .map(|device| self.node_entry(&inner, device))
            .collect()
    }

    pub fn node_describe(&self, id: &str) -> Result<NodeEntry, Refused> {
        let inner = self.lock();
        let device = DeviceId::parse(id)
            .and_then(|id| inner.pairing.device(&id).cloned())
            .filter(|device| device.roles.contains(&Role::Node))
            .ok_or(Refused::UnknownNode)?;
        Ok(self.node_entry(&inner, &device))
    }

    /// Nodes as the agent needs them: names and what is callable.
    pub fn node_views(&self) -> Vec<NodeView> {
        let inner = self.lock();
        inner
            .pairing
            .nodes()
            .map(|device| {
                let entry = self.node_entry(&inner, device);
                NodeView {
                    id: device.id.clone(),
                    name: device.name().to_owned(),
                    online: entry.connected,
                    callable: if entry.connected {
                        entry.commands
                    } else {
                        Vec::new()
                    },
                    pending_request: entry.pending_request_id,
                }
            })
            .collect()
    }

    /// Why a node would not run a command now; `None` if it would.
    pub fn why_not(&self, node: &DeviceId, command: &str) -> Option<Refused> {
        self.decide(&self.lock(), node, command).err()
    }

    /// What waits and what was approved, as far as the caller may decide about it (S6).
    pub fn node_pair_list(&self, caller: &Caller) -> NodePairList {
        let inner = self.lock();
        let approver = caller.approver();
        NodePairList {
            pending: inner
                .pairing
                .surface_requests()
                .into_iter()
                .filter(|request| approver.may_see(&request.facts.node))
                .map(|request| {
                    let session = inner.registry.session(&request.facts.node);
                    pending_node(&inner, request, session.map(|session| &session.facts))
                })
                .collect(),
            paired: inner
                .pairing
                .surfaces()
                .filter(|surface| approver.may_see(&surface.facts.node))
                .map(|surface| paired_node(surface, inner.pairing.device(&surface.facts.node)))
                .collect(),
        }
    }

    /// An operator lets a node offer what it declared, or a subset of it.
    pub fn approve_surface(
        &self,
        caller: &Caller,
        request_id: &str,
        subset: Option<&[String]>,
    ) -> Result<PairedNode, Denied> {
        let mut inner = self.lock();
        let now_ms = machine::now_ms();
        let approved =
            inner
                .pairing
                .approve_surface(&caller.approver(), request_id, subset, now_ms);
        let (surface, changes) = approved.map_err(|refused| match refused {
            NotApproved::NotDeclared { command } if declares(&inner, request_id, &command) => {
                NotApproved::NotPermitted { command }
            }
            refused => refused,
        })?;
        let event = audit::Event::PairingApproved {
            request: request_id.to_owned(),
            stage: audit::Stage::Surface,
            device: surface.facts.node.as_str().into(),
            scopes: Vec::new(),
            commands: PeerText::all(&surface.facts.commands),
            by: caller.actor.clone(),
        };
        self.commit(&mut inner, &event, changes)?;
        Self::announce_surface(&mut inner, request_id, &surface.facts.node, "approved");
        self.end_forbidden(&mut inner);
        Ok(paired_node(
            &surface,
            inner.pairing.device(&surface.facts.node),
        ))
    }

    pub fn reject_surface(&self, caller: &Caller, request_id: &str) -> Result<DeviceId, Denied> {
        let mut inner = self.lock();
        let (node, changes) = inner
            .pairing
            .reject_surface(&caller.approver(), request_id)?;
        let event = audit::Event::PairingRejected {
            request: request_id.to_owned(),
            stage: audit::Stage::Surface,
            device: node.as_str().into(),
            by: caller.actor.clone(),
        };
        self.commit(&mut inner, &event, changes)?;
        Self::announce_surface(&mut inner, request_id, &node, "rejected");
        Ok(node)
    }

    /// Takes back what a node may offer. Its session stays, nothing on it is callable, and what it declares waits again.
    pub fn remove_surface(&self, caller: &Caller, node: &str) -> Result<DeviceId, Denied> {
        let mut inner = self.lock();
        let (node, changes) = inner.pairing.remove_surface(&caller.approver(), node)?;
        let event = audit::Event::PolicyChanged {
            policy: format!("node surface {node}"),
            after_sha256: audit::Digest::of(b"[]"),
            summary: "removed".into(),
            by: caller.actor.clone(),
        };
        self.commit(&mut inner, &event, changes)?;
        Self::announce_surface(&mut inner, "", &node, "removed");
        self.end_forbidden(&mut inner);
        // A connected node asks again at once; a removal that is recorded stands even if that is not.
        if let Err(error) = self.ask_again(&mut inner, &node) {
            tracing::error!(%error, "a node's declaration could not be filed");
        }
        Ok(node)
    }

    pub fn rename_node(&self, caller: &Caller, node: &str, name: &str) -> Result<Device, Denied> {
        let mut inner = self.lock();
        let (device, changes) = inner.pairing.rename_node(&caller.approver(), node, name)?;
        let event = audit::Event::DeviceRenamed {
            device: device.id.as_str().into(),
            name: name.into(),
            by: caller.actor.clone(),
        };
        self.commit(&mut inner, &event, changes)?;
        Ok(device)
    }

    /// A node says that it is still there, and why it is awake.
    pub fn node_alive(&self, node: &DeviceId, reason: &'static str) {
        self.lock().pairing.seen(node, reason, machine::now_ms());
    }

    /// Whether a node may report something by itself now (N11).
    pub fn may_report(&self, sender: &Caller, bytes: usize) -> bool {
        let now = Instant::now();
        self.lock().connections.may_report(&sender.conn, bytes, now)
    }

    /// A node measured itself.
    pub fn node_stats(&self, node: &DeviceId, mut stats: HostStats) {
        stats.updated_at_ms = Some(machine::now_ms());
        let mut inner = self.lock();
        inner.registry.measured(node, stats);
    }

    /// Tells operators, and the node itself, what became of its surface.
    pub(super) fn announce_surface(
        inner: &mut Inner,
        request_id: &str,
        node: &DeviceId,
        decision: &'static str,
    ) {
        let event = NodePairResolvedEvent {
            request_id: request_id.to_owned(),
            node_id: node.as_str().to_owned(),
            decision: decision.into(),
            ts: machine::now_ms(),
        };
        if let Some(outbox) = inner
            .registry
            .session(node)
            .and_then(|session| inner.connections.outbox(&session.conn))
        {
            outbox.send(encode::event("node.pair.resolved", &event, None, None));
        }
        inner.tell(Audience::PairingOf(node), "node.pair.resolved", &event);
    }

    fn node_entry(&self, inner: &Inner, device: &Device) -> NodeEntry {
        let id = &device.id;
        let session = inner.registry.session(id);
        let record = inner.registry.record(id);
        let surface = inner.pairing.surface(id);
        let request = inner.pairing.surface_request(id);
        let approved = surface.map_or(&[][..], |surface| surface.facts.commands.as_slice());
        let policy = self.command_policy(id);
        let effective = approved.iter().filter(|command| {
            let declared = session.is_none_or(|session| session.facts.commands.contains(command));
            declared && policy.check(&device.platform, command).is_ok()
        });
        let state = match (surface, request) {
            (Some(_), None) => NodeApprovalState::Approved,
            (Some(_), Some(_)) => NodeApprovalState::PendingReapproval,
            (None, Some(_)) => NodeApprovalState::PendingApproval,
            (None, None) => NodeApprovalState::Unapproved,
        };
        NodeEntry {
            node_id: id.as_str().to_owned(),
            client: ClientSummary {
                display_name: device.label.clone().or_else(|| device.display_name.clone()),
                version: session
                    .map(|session| &session.facts)
                    .or_else(|| surface.map(|surface| &surface.facts))
                    .map(|facts| facts.version.clone()),
                ..of_device(device)
            },
            caps: surface.map_or_else(Vec::new, |surface| surface.facts.caps.clone()),
            commands: effective.cloned().collect(),
            node_plugin_tools: session.map(|_| Vec::new()),
            path_env: session.and_then(|session| session.path_env.clone()),
            host_stats: record.and_then(|record| record.stats.clone()),
            approval_state: Some(state),
            pending_request_id: request.map(|request| request.request_id.clone()),
            pending_declared_caps: request.map(|request| request.facts.caps.clone()),
            pending_declared_commands: request.map(|request| request.facts.commands.clone()),
            connected_at_ms: session.map(|session| session.connected_at_ms),
            last_connected_at_ms: session.map(|session| session.connected_at_ms),
            last_seen_at_ms: device.last_seen_at_ms,
            last_seen_reason: device.last_seen_reason.clone(),
            approved_at_ms: Some(
                surface.map_or(device.approved_at_ms, |surface| surface.approved_at_ms),
            ),
            paired: true,
            connected: session.is_some(),
            ..NodeEntry::default()
        }
    }
}

/// Whether the connected node of a request declares a command, be it permitted or not.
fn declares(inner: &Inner, request_id: &str, command: &str) -> bool {
    let requests = inner.pairing.surface_requests();
    let mut mine = requests
        .iter()
        .filter(|request| request.request_id == request_id);
    mine.any(|request| {
        let session = inner.registry.session(&request.facts.node);
        session.is_some_and(|session| session.facts.commands.iter().any(|it| it == command))
    })
}

/// A request as it is shown, beside all that the node declares if it is connected.
pub(super) fn pending_node(
    inner: &Inner,
    request: &SurfaceRequest,
    declared: Option<&SurfaceFacts>,
) -> PendingNode {
    let facts = &request.facts;
    let device = inner.pairing.device(&facts.node);
    let declared = declared.map_or(&[][..], |declared| declared.commands.as_slice());
    // Reserved commands are never asked for: their own methods serve them once anything is approved (N6).
    let not_permitted = declared
        .iter()
        .filter(|name| !facts.commands.contains(name) && !is_reserved(name));
    PendingNode {
        request_id: request.request_id.clone(),
        node_id: facts.node.as_str().to_owned(),
        client: named(facts, device),
        caps: facts.caps.clone(),
        commands: facts.commands.clone(),
        not_permitted_commands: not_permitted.cloned().collect(),
        required_approve_scopes: required_scopes(&facts.commands)
            .to_wire()
            .into_iter()
            .map(Into::into)
            .collect(),
        approved_commands: inner
            .pairing
            .surface(&facts.node)
            .map(|surface| surface.facts.commands.clone()),
        remote_ip: facts.remote_ip.clone(),
        path: shown_path(&facts.path),
        silent: facts.silent.then_some(true),
        ts: request.ts_ms,
    }
}

/// A node's client under the name that an operator gave it, if any.
fn named(facts: &SurfaceFacts, device: Option<&Device>) -> ClientSummary {
    ClientSummary {
        display_name: device
            .and_then(|device| device.label.clone())
            .or_else(|| facts.display_name.clone())
            .or_else(|| device.map(|device| device.name().to_owned())),
        ..of_surface(facts)
    }
}

fn paired_node(surface: &Surface, device: Option<&Device>) -> PairedNode {
    let facts = &surface.facts;
    PairedNode {
        node_id: facts.node.as_str().to_owned(),
        client: named(facts, device),
        caps: facts.caps.clone(),
        commands: facts.commands.clone(),
        created_at_ms: surface.created_at_ms,
        approved_at_ms: surface.approved_at_ms,
        last_seen_at_ms: device.and_then(|device| device.last_seen_at_ms),
        last_seen_reason: device.and_then(|device| device.last_seen_reason.clone()),
        ..PairedNode::default()
    }
}
