//! Sessions come and go.

use super::devices::names;
use super::invoke::Waiter;
use super::{Hub, Outbox, Standing, connections::Audience};
use crate::audit::{self, Actor, Durability, PeerText};
use crate::auth::Admitted;
use crate::auth::admission::AuthMethod;
use crate::auth::scope::{Role, Scope, ScopeSet};
use crate::auth::secret_eq::TokenDigest;
use crate::base::{ConnId, DeviceId, ids::uuid_v4};
use crate::exec::approval;
use crate::machine;
use crate::nodes::{self, NodeSession, PathOf, Pending, Refused};
use crate::pairing::{Approver, SurfaceFacts};
use crate::rpc::types::connect::ClientInfo;
use crate::rpc::types::node::NodeProgressEvent;
use crate::rpc::types::presence::{PresenceEntry, StateVersion};

/// Who calls, as every handler needs to know. Made only from an `Admitted`.
#[derive(Clone)]
pub struct Caller {
    pub conn: ConnId,
    pub role: Role,
    pub scopes: ScopeSet,
    pub device: Option<DeviceId>,
    pub method: AuthMethod,
    pub(super) standing: Standing,
    /// Its device's token when the session opened. With it ends whatever the session left queued.
    pub(super) token: Option<TokenDigest>,
    /// As the audit log names the caller.
    pub actor: Actor,
    /// The client has the capability `tool-events`.
    pub tool_events: bool,
    /// The client says that it shows requests for approval (`approvals` or `exec-approvals` among its capabilities).
    pub shows_approvals: bool,
    /// A secret may be sent to it.
    pub private: bool,
    /// The path that it came by, if that is a public one.
    pub(super) public_path: Option<String>,
    /// The client wants to hear what its invokes print while they run (the event's name among its capabilities).
    pub hears_progress: bool,
    pub outbox: Outbox,
}

impl Caller {
    /// The caller as someone who decides about pairing.
    pub fn approver(&self) -> Approver {
        Approver {
            scopes: self.scopes,
            device: self.device.clone(),
        }
    }

    /// What names the caller across its connections: its device, or else this connection.
    pub fn key(&self) -> &str {
        self.device
            .as_ref()
            .map_or(self.conn.as_str(), DeviceId::as_str)
    }

    /// What names the caller of an idempotency key: its device, or the user whom somebody vouched for. Callers with
    /// neither, who show the shared secret or use the admin socket, are all the operator of this host, and have their
    /// keys in common.
    pub fn name(&self) -> String {
        match (&self.device, &self.actor) {
            (Some(device), _) => device.as_str().to_owned(),
            (
                None,
                Actor::Operator {
                    user: Some(user), ..
                },
            ) => format!("user:{}", user.as_str()),
            (None, _) => "operator".to_owned(),
        }
    }

    /// Whether a command may go out for a caller on this path.
    pub(super) fn check_path(&self, command: &str) -> Result<(), Refused> {
        nodes::check_path(command, PathOf::Caller, self.public_path.as_deref())
    }

    /// The caller as the one for whom an approval is.
    pub(super) fn for_approval(&self) -> approval::Caller {
        match &self.device {
            Some(device) => approval::Caller::Device(device.clone()),
            None => approval::Caller::Connection(self.conn.clone()),
        }
    }
}

/// What a node says that it offers.
#[derive(Clone, Debug, Default)]
pub struct NodeDeclaration {
    pub caps: Vec<String>,
    pub commands: Vec<String>,
    pub path_env: Option<String>,
    /// Whether its device was paired silently by this very connect.
    pub newly_paired: bool,
}

/// What a connection said of itself and how it came.
#[derive(Clone, Debug)]
pub struct SessionFacts {
    pub client: ClientInfo,
    /// The client's address, as ingress found it; absent on the admin socket.
    pub address: Option<String>,
    pub path: String,
    /// `ingress` calls that path public.
    pub public: bool,
    pub node: NodeDeclaration,
    pub standing: Standing,
}

impl Hub {
    /// Enters an admitted connection into the house. A node's older session is closed.
    pub fn open_session(
        &self,
        conn: &ConnId,
        admitted: &Admitted,
        actor: Actor,
        facts: SessionFacts,
        outbox: &Outbox,
    ) -> Result<Caller, super::Fault> {
        let now_ms = machine::now_ms();
        let mut caller = Caller {
            conn: conn.clone(),
            role: admitted.role(),
            scopes: admitted.scopes(),
            device: admitted.device().cloned(),
            method: admitted.method(),
            standing: facts.standing,
            token: None,
            actor: actor.clone(),
            tool_events: facts.node.caps.iter().any(|cap| cap == "tool-events"),
            shows_approvals: facts
                .node
                .caps
                .iter()
                .any(|cap| cap == "approvals" || cap == "exec-approvals"),
            private: admitted.is_private(),
            public_path: facts.public.then(|| facts.path.clone()),
            hears_progress: facts
                .node
                .caps
                .iter()
                .any(|cap| cap == NodeProgressEvent::NAME),
            outbox: outbox.clone(),
        };
        let event = audit::Event::Admitted {
            actor,
            role: caller.role.as_str().to_owned(),
            scopes: names(caller.scopes),
            path: facts.path.clone(),
        };
        self.audit
            .append(&event, Durability::Grouped)
            .map_err(super::Fault::Audit)?;
        let mut inner = self.lock();
        // From here on a withdrawal finds this session and closes it; one that came before must be found here (K1).
        if !still_stands(&inner, admitted)
            || !inner.withdrawn.spares(caller.method, caller.standing)
        {
            return Err(super::Fault::Withdrawn);
        }
        caller.token = live_token(&inner, &caller).cloned();
        if let Some(device) = &caller.device {
            inner.pairing.seen(device, "connect", now_ms);
        }
        // Dropped outside the lock; each waiter learns that its node's session has ended.
        let mut replaced = Vec::new();
        if caller.role == Role::Node {
            replaced = self.attach_node(&mut inner, &caller, facts, now_ms)?;
        }
        // Last, for nothing would take it out again if what comes before failed.
        inner.connections.open(&caller);
        drop(inner);
        drop(replaced);
        self.keep_seen(&caller, "connect", now_ms);
        Ok(caller)
    }

    /// So that a restart does not forget when a device was last here. Nobody's right hangs on it.
    fn keep_seen(&self, caller: &Caller, reason: &str, now_ms: u64) {
        if let Some(device) = &caller.device
            && let Err(error) = self
                .store
                .record(|records| records.device_seen(device, now_ms, reason))
        {
            tracing::warn!(%error, "a device's presence could not be kept");
        }
    }

    /// Takes an ended connection out. What it was asked and did not answer is answered now.
    pub fn close_session(&self, caller: &Caller, reason: &str) {
        let now_ms = machine::now_ms();
        let mut inner = self.lock();
        inner.connections.close(&caller.conn);
        // The waiters are dropped outside the lock; each learns that its node has gone.
        let unanswered = inner.invokes.disconnected(&caller.conn);
        let mut left = false;
        let conn = approval::Caller::Connection(caller.conn.clone());
        self.withdraw_approvals(&mut inner, |wanted| wanted.caller == conn);
        if caller.role == Role::Node
            && let Some(node) = &caller.device
            && let Some(session) = inner.registry.detach(node, &caller.conn, reason, now_ms)
        {
            left = true;
            inner.pairing.seen(node, "disconnect", now_ms);
            inner.presence.leave(node, now_ms);
            inner.announce_presence();
            tracing::info!(node = %session.facts.node, %reason, "node offline");
        }
        drop(inner);
        drop(unanswered);
        if left {
            self.keep_seen(caller, "disconnect", now_ms);
        }
    }

    /// The presence list for a `hello-ok` or `system-presence`, with its version. Nodes see none of it.
    pub fn presence(&self, caller: &Caller) -> (Vec<PresenceEntry>, StateVersion) {
        let inner = self.lock();
        let version = inner.presence.version();
        if caller.role == Role::Operator && caller.scopes.allows(Scope::Read) {
            (inner.presence.list(), version)
        } else {
            (Vec::new(), version)
        }
    }

    /// Ends every connection of a device in one role, or in any, but the one that is spared; also what the device asked
    /// the operators for, unless it goes on, and what they were asked about it as a node, if it is none any more.
    pub(super) fn close_device(
        &self,
        inner: &mut super::Inner,
        device: &DeviceId,
        role: Option<Role>,
        spared: Option<&ConnId>,
        reason: &str,
    ) {
        for (conn, connection) in inner.connections.of_device(device) {
            let concerned = role.is_none_or(|role| role == connection.caller.role);
            if concerned && spared != Some(conn) {
                connection.outbox.close(4001, reason);
            }
        }
        let asks = spared.is_none() && role != Some(Role::Node);
        self.withdraw_approvals(inner, |wanted| {
            (asks && wanted.device.as_ref() == Some(device))
                || (role.is_none() && wanted.node == *device)
        });
    }

    /// What a connected node declares and policy permits waits for an approval, unless it has one.
    fn file_surface(
        &self,
        inner: &mut super::Inner,
        declared: &SurfaceFacts,
        now_ms: u64,
    ) -> Result<(), super::Fault> {
        let node = &declared.node;
        let waiting = inner.pairing.surface_request(node);
        let waiting = waiting.map(|request| request.request_id.clone());
        let (request, changes) = inner.pairing.declare(
            SurfaceFacts {
                commands: permitted(&self.settings(), declared),
                ..declared.clone()
            },
            uuid_v4(machine::random()),
            now_ms,
        );
        if let Some(request) = &request {
            let event = audit::Event::PairingRequested {
                request: request.request_id.clone(),
                stage: audit::Stage::Surface,
                device: node.as_str().into(),
                role: Role::Node.as_str().to_owned(),
                scopes: Vec::new(),
                commands: PeerText::all(&request.facts.commands),
                address: declared.remote_ip.clone().unwrap_or_default(),
            };
            self.commit(inner, &event, changes)?;
            let audience = Audience::PairingOf(node);
            let pending = super::nodes::pending_node(inner, request, Some(declared));
            inner.tell(audience, "node.pair.requested", &pending);
        } else if let Some(request) = waiting.filter(|_| !changes.is_empty()) {
            // What it asked for was approved before, or is not permitted any more.
            let event = audit::Event::PairingExpired {
                request: request.clone(),
                stage: audit::Stage::Surface,
                device: node.as_str().into(),
            };
            self.commit(inner, &event, changes)?;
            Self::announce_surface(inner, &request, node, "expired");
        }
        Ok(())
    }

    /// The same for a node that has declared already, after a removal or under another policy.
    pub(super) fn ask_again(
        &self,
        inner: &mut super::Inner,
        node: &DeviceId,
    ) -> Result<(), super::Fault> {
        let Some(session) = inner.registry.session(node) else {
            return Ok(());
        };
        let declared = SurfaceFacts {
            silent: false,
            ..session.facts.clone()
        };
        self.file_surface(inner, &declared, machine::now_ms())
    }

    /// Whether nothing that a connected node declares is permitted, or forbidden, only since these settings went: then
    /// what an operator rejected is not asked for again.
    pub(super) fn is_permitted_as_under(
        &self,
        inner: &super::Inner,
        before: &super::Settings,
        node: &DeviceId,
    ) -> bool {
        let session = inner.registry.session(node);
        session.is_none_or(|session| {
            permitted(before, &session.facts) == permitted(&self.settings(), &session.facts)
        })
    }

    fn attach_node(
        &self,
        inner: &mut super::Inner,
        caller: &Caller,
        facts: SessionFacts,
        now_ms: u64,
    ) -> Result<Vec<Pending<Waiter>>, super::Fault> {
        let Some(node) = caller.device.clone() else {
            return Ok(Vec::new());
        };
        let client = facts.client;
        let record = inner.pairing.device(&node);
        let platform = record.map_or_else(String::new, |device| device.platform.clone());
        let display_name = client.display_name.clone();
        let declared = SurfaceFacts {
            node: node.clone(),
            display_name: display_name.clone(),
            platform,
            device_family: client.device_family.clone(),
            version: client.version.clone(),
            client_id: client.id.as_str().to_owned(),
            client_mode: client.mode.as_str().to_owned(),
            caps: facts.node.caps,
            commands: facts.node.commands,
            silent: facts.node.newly_paired,
            remote_ip: facts.address.clone(),
            path: facts.path,
        };
        self.file_surface(inner, &declared, now_ms)?;
        let replaced = inner.registry.attach(NodeSession {
            conn: caller.conn.clone(),
            facts: declared,
            path_env: facts.node.path_env,
            connected_at_ms: now_ms,
            public: facts.public,
            epoch: 0,
        });
        let mut unanswered = Vec::new();
        if let Some(older) = replaced {
            // Now, and not when that session's task gets to it: nothing that it says counts any more.
            unanswered = inner.invokes.disconnected(&older);
            if let Some(outbox) = inner.connections.outbox(&older) {
                outbox.close(4000, "replaced by a newer session of this device");
            }
        }
        inner
            .presence
            .join(&node, display_name.as_deref(), &client, now_ms);
        inner.announce_presence();
        tracing::info!(node = %node, conn = %caller.conn, "node online");
        Ok(unanswered)
    }
}

/// The commands among those that a node declares which the policy permits.
fn permitted(settings: &super::Settings, declared: &SurfaceFacts) -> Vec<String> {
    let policy = settings.policy_of(&declared.node);
    let permits = |command: &&String| policy.check(&declared.platform, command).is_ok();
    declared.commands.iter().filter(permits).cloned().collect()
}

/// Whether the record still holds what admission found in it, which may be a while ago.
fn still_stands(inner: &super::Inner, admitted: &Admitted) -> bool {
    let Some(id) = admitted.device() else {
        return true;
    };
    let Some(device) = inner.pairing.device(id) else {
        return false;
    };
    let token = device.token(admitted.role());
    let live = token.filter(|token| token.revoked_at_ms.is_none());
    let has_it = |shown| live.is_some_and(|token| token.digest.equals(shown));
    device.roles.contains(&admitted.role()) && admitted.token().is_none_or(has_it)
}

/// The token of a caller's device in its role, unless it was revoked.
fn live_token<'a>(inner: &'a super::Inner, caller: &Caller) -> Option<&'a TokenDigest> {
    let device = inner.pairing.device(caller.device.as_ref()?)?;
    let token = device.token(caller.role)?;
    token.revoked_at_ms.is_none().then_some(&token.digest)
}

impl super::Inner {
    /// What a caller may do now. Turns outlive the session that queued them, but not what admitted it (K1).
    pub(super) fn present_scopes(&self, caller: &Caller) -> Result<ScopeSet, Refused> {
        // An open session may have rotated its own token.
        let caller = self.connections.caller(&caller.conn).unwrap_or(caller);
        if !self.withdrawn.spares(caller.method, caller.standing) {
            return Err(Refused::CallerWithdrawn);
        }
        let Some(id) = &caller.device else {
            return Ok(caller.scopes);
        };
        let same_token = match (live_token(self, caller), &caller.token) {
            (Some(now), Some(then)) => now.equals(then),
            (None, None) => true,
            _ => false,
        };
        self.pairing
            .device(id)
            .filter(|device| same_token && device.roles.contains(&caller.role))
            .map(|device| caller.scopes.meet(device.scopes))
            .ok_or(Refused::CallerWithdrawn)
    }

    pub(super) fn announce_presence(&mut self) {
        let event = crate::rpc::types::presence::PresenceEvent {
            presence: self.presence.list(),
        };
        let version = self.presence.version();
        self.connections.broadcast(
            Audience::Operators(Scope::Read),
            "presence",
            &event,
            Some(version),
        );
    }
}
