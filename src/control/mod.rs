//! One admitted caller and one request make one answer.
//!
//! In: a `Caller`, which only an admission makes, and a request. Out: a response frame, now or later.
//! Attacker controls: the method's name and its parameters. Bounds: those of the hub and of the session.
//! Errors: `ErrorShape`, with the reference's codes.
//!
//! Order of refusals: unknown method (to a node, what nodes may not call), then role and scope (`auth::permission`),
//! then, of what answers later, too many calls under way, then parameters.

mod answer;
mod methods;

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

pub use answer::Answer;
use answer::{Room, unsent};

use crate::agent::Agent;
use crate::auth::permission::{self, Access, PermissionRefusal};
use crate::auth::scope::{Role, Scope};
use crate::hub::{Caller, Hub};
use crate::net::tls::ServerTls;
use crate::nodes::Category;
use crate::rpc::types::connect::{Features, SessionDefaults, Snapshot};
use crate::rpc::types::node::NodeProgressEvent;
use crate::rpc::{ErrorShape, Method, Request, encode};

/// What the Gateway calls itself on the wire.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Every event that this Gateway sends.
const EVENTS: &[&str] = &[
    "connect.challenge",
    "agent",
    "chat",
    "device.pair.changed",
    "device.pair.requested",
    "device.pair.resolved",
    "exec.approval.requested",
    "exec.approval.resolved",
    "node.invoke.cancel",
    "node.invoke.request",
    "node.pair.requested",
    "node.pair.resolved",
    NodeProgressEvent::NAME,
    "presence",
    "shutdown",
    "tick",
];

/// Methods that the reference has for nodes and that are not served here.
const OTHER_NODE_METHODS: [&str; 2] = ["node.pluginSurface.refresh", "skills.bins"];

/// What the calls need besides the hub.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `hello-ok.snapshot`, for administrators only.
    pub config_path: Option<String>,
    pub state_dir: Option<String>,
    /// Each with its class; set when they are bound.
    pub listeners: OnceLock<Vec<String>>,
}

/// The control plane: every method, in one place.
pub struct Control {
    pub hub: Arc<Hub>,
    pub agent: Agent,
    pub settings: Settings,
    /// Of the main listener.
    pub tls: Option<Arc<ServerTls>>,
}

impl Control {
    /// Where the Gateway listens. The paths of sockets are for administrators (row E2).
    pub fn listeners(&self, with_paths: bool) -> Vec<String> {
        let all = self.settings.listeners.get().into_iter().flatten();
        all.map(|name| match name.split_once(" /") {
            Some((class, _)) if !with_paths => class.to_owned(),
            _ => name.clone(),
        })
        .collect()
    }

    /// `under_way` is how many calls of the same connection are not answered yet.
    pub fn call(&self, caller: &Caller, request: &Request<'_>, under_way: usize) -> Answer {
        let id = request.id.as_ref();
        let Some(method) = Method::from_wire(&request.method) else {
            // Whatever else operators may call elsewhere, nodes may not (N7), and who goes on trying is probing (R7).
            if caller.role == Role::Node && !OTHER_NODE_METHODS.contains(&&*request.method) {
                let error = PermissionRefusal::Role(caller.role).error();
                return Answer::Unauthorized(encode::refusal(id, &error));
            }
            let error = ErrorShape::unknown_method(&request.method);
            return Answer::Now(encode::refusal(id, &error));
        };
        let command = (method == Method::NodeInvoke)
            .then(|| methods::nodes::command_of(request.params))
            .flatten();
        if let Err(refusal) =
            permission::check(method, caller.role, caller.scopes, command.as_deref())
        {
            let mut error = refusal.error();
            if method == Method::NodeInvoke {
                error = unsent(error, Category::Permission);
            }
            return Answer::Unauthorized(encode::refusal(id, &error));
        }
        let room = Room::beside(under_way, caller).map_err(|error| match method {
            Method::NodeInvoke => unsent(error, Category::Network),
            _ => error,
        });
        let call = methods::Call {
            control: self,
            hub: &self.hub,
            agent: &self.agent,
            caller,
            method,
            request,
        };
        methods::dispatch(call, room)
            .unwrap_or_else(|error| Answer::Now(encode::refusal(id, &error)))
    }

    /// What this role can use, for `hello-ok`.
    pub fn features(&self, role: Role) -> Features {
        let callable = |method: &&Method| match permission::required(**method) {
            Access::Handshake => false,
            Access::Operator(_) => role == Role::Operator,
            Access::Node | Access::ApprovedNode => role == Role::Node,
        };
        Features {
            methods: Method::ALL
                .iter()
                .filter(callable)
                .map(|method| Cow::Borrowed(method.as_str()))
                .collect(),
            events: EVENTS.iter().map(|event| Cow::Borrowed(*event)).collect(),
            capabilities: Vec::new(),
        }
    }

    /// What a client would otherwise have to ask for first.
    pub fn snapshot(&self, caller: &Caller) -> Snapshot {
        let (presence, state_version) = self.hub.presence(caller);
        let is_admin = caller.role == Role::Operator && caller.scopes.contains(Scope::Admin);
        let only_admin = |text: &Option<String>| text.clone().filter(|_| is_admin);
        Snapshot {
            presence,
            health: methods::health::health(self, caller),
            state_version,
            uptime_ms: self.hub.uptime_ms(),
            config_path: only_admin(&self.settings.config_path),
            state_dir: only_admin(&self.settings.state_dir),
            session_defaults: Some(SessionDefaults {
                default_agent_id: crate::agent::AGENT_ID.to_owned(),
                model_configured: Some(self.agent.has_model()),
                main_key: crate::agent::MAIN_KEY.to_owned(),
                main_session_key: crate::agent::SessionKey::main().as_str().to_owned(),
                scope: Some("per-sender".into()),
            }),
            auth_mode: is_admin.then_some(Cow::Borrowed(self.hub.auth_mode())),
        }
    }
}
