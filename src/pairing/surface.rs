//! Nodes: what they declare and what an operator lets them offer.

use super::device::checked_name;
use super::{Approver, Change, Device, Pairing, Refused, Surface, SurfaceFacts, SurfaceRequest};
use crate::auth::scope::{Scope, ScopeSet};
use crate::base::DeviceId;

/// The scopes that an approver of these commands must hold.
pub fn required_scopes(commands: &[String]) -> ScopeSet {
    let pairing: ScopeSet = Scope::Pairing.into();
    if commands
        .iter()
        .any(|command| command.starts_with("system.") || command.starts_with("browser."))
    {
        pairing.union(Scope::Admin.into())
    } else if commands.is_empty() {
        pairing
    } else {
        pairing.union(Scope::Write.into())
    }
}

impl Pairing {
    /// A node declared its surface. Nothing waits if an operator already approved all of it.
    ///
    /// A declaration that only shrinks needs no approval; one that adds anything waits, and until it is approved the
    /// old surface stays in force (a reconnect never widens).
    pub fn declare(
        &self,
        facts: SurfaceFacts,
        request_id: String,
        now_ms: u64,
    ) -> (Option<SurfaceRequest>, Vec<Change>) {
        let waiting = self.surface_request(&facts.node);
        let approved = self.surface(&facts.node);
        let covered = approved.is_some_and(|surface| {
            is_subset(&facts.caps, &surface.facts.caps)
                && (is_subset(&facts.commands, &surface.facts.commands)
                    || is_subset(&facts.commands, &surface.declared))
        });
        if covered {
            let gone = waiting.map(|_| Change::SurfaceRequestGone(facts.node));
            return (None, gone.into_iter().collect());
        }
        if let Some(waiting) = waiting
            && waiting.facts.caps == facts.caps
            && waiting.facts.commands == facts.commands
        {
            return (None, Vec::new());
        }
        let request = SurfaceRequest {
            request_id,
            facts,
            ts_ms: now_ms,
        };
        (Some(request.clone()), vec![Change::SurfaceRequest(request)])
    }

    /// An operator approves a node's surface, or a subset of its commands.
    pub fn approve_surface(
        &self,
        approver: &Approver,
        request_id: &str,
        subset: Option<&[String]>,
        now_ms: u64,
    ) -> Result<(Surface, Vec<Change>), Refused> {
        let request = self.visible_request_of_node(approver, request_id)?;
        let commands = match subset {
            None => request.facts.commands.clone(),
            Some([]) => return Err(Refused::NothingNamed),
            Some(subset) => {
                if let Some(command) = subset
                    .iter()
                    .find(|name| !request.facts.commands.contains(name))
                {
                    return Err(Refused::NotDeclared {
                        command: command.clone(),
                    });
                }
                // In the order of the declaration, and each once.
                let named = request.facts.commands.iter();
                named
                    .filter(|name| subset.contains(name))
                    .cloned()
                    .collect()
            }
        };
        if let Some(scope) = approver.scopes.first_missing(required_scopes(&commands)) {
            return Err(Refused::SurfaceApproverLacks { scope });
        }
        let created_at_ms = self
            .surface(&request.facts.node)
            .map_or(now_ms, |surface| surface.created_at_ms);
        let surface = Surface {
            declared: request.facts.commands.clone(),
            facts: SurfaceFacts {
                commands,
                ..request.facts.clone()
            },
            created_at_ms,
            approved_at_ms: now_ms,
        };
        let changes = vec![
            Change::SurfaceRequestGone(request.facts.node.clone()),
            Change::Surface(surface.clone()),
        ];
        Ok((surface, changes))
    }

    pub fn reject_surface(
        &self,
        approver: &Approver,
        request_id: &str,
    ) -> Result<(DeviceId, Vec<Change>), Refused> {
        let request = self.visible_request_of_node(approver, request_id)?;
        Ok((
            request.facts.node.clone(),
            vec![Change::SurfaceRequestGone(request.facts.node.clone())],
        ))
    }

    /// Takes back what a node was approved for. Its device stays paired.
    pub fn remove_surface(
        &self,
        approver: &Approver,
        node: &str,
    ) -> Result<(DeviceId, Vec<Change>), Refused> {
        let node = self.visible_node(approver, node)?.id.clone();
        if let Some(surface) = self.surface(&node)
            && let Some(scope) = approver
                .scopes
                .first_missing(required_scopes(&surface.facts.commands))
            && scope != Scope::Admin
        {
            return Err(Refused::SurfaceApproverLacks { scope });
        }
        let changes = vec![
            Change::SurfaceRequestGone(node.clone()),
            Change::SurfaceGone(node.clone()),
        ];
        Ok((node, changes))
    }

    pub fn rename_node(
        &self,
        approver: &Approver,
        node: &str,
        name: &str,
    ) -> Result<(Device, Vec<Change>), Refused> {
        let mut device = self.visible_node(approver, node)?.clone();
        device.label = Some(checked_name(name)?);
        Ok((device.clone(), vec![Change::Device(device)]))
    }

    fn visible_node(&self, approver: &Approver, id: &str) -> Result<&Device, Refused> {
        DeviceId::parse(id)
            .filter(|id| approver.may_see(id))
            .and_then(|id| self.device(&id))
            .filter(|device| device.roles.contains(&crate::auth::scope::Role::Node))
            .ok_or(Refused::UnknownNode)
    }

    fn visible_request_of_node(
        &self,
        approver: &Approver,
        id: &str,
    ) -> Result<&SurfaceRequest, Refused> {
        self.surface_requests
            .values()
            .find(|request| request.request_id == id && approver.may_see(&request.facts.node))
            .ok_or(Refused::UnknownRequest)
    }
}

fn is_subset(small: &[String], large: &[String]) -> bool {
    small.iter().all(|name| large.contains(name))
}
