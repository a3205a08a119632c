//! One table: which roles may call a method, with which scope, in which state of the session.
//!
//! In: a method, and of its parameters only what moves its scope. Out: `Access`, or a refusal for this caller.
//! Attacker controls: the method's name and its parameters. Bounds: none needed.
//! Errors: `PermissionRefusal`, with the reference's messages.
//!
//! The match has no default: a new method does not compile until it stands here (S1).

use std::borrow::Cow;

use super::scope::{Role, Scope, ScopeSet};
use crate::base::{Refusal, limits};
use crate::rpc::{ErrorShape, Method};

/// Commands whose relay is operator access to the node, and so needs `operator.admin`.
const ADMIN_COMMANDS: [&str; 4] = [
    "browser.proxy",
    "browser.proxy.upload.v1",
    "fs.listDir",
    "terminal.upload",
];

/// What a method needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// The first request of a connection, and no other.
    Handshake,
    /// An operator with this scope.
    Operator(Need),
    /// A node, whatever of its surface is approved.
    Node,
    /// A node whose declared surface an operator has approved.
    ApprovedNode,
}

/// An operator's scope for a method.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    Scope(Scope),
    /// `node.invoke`: `scope_of_command` of its `command`.
    ByCommand,
}

/// What a method needs.
pub fn required(method: Method) -> Access {
    const READ: Access = Access::Operator(Need::Scope(Scope::Read));
    const WRITE: Access = Access::Operator(Need::Scope(Scope::Write));
    const PAIRING: Access = Access::Operator(Need::Scope(Scope::Pairing));
    match method {
        Method::Connect => Access::Handshake,

        Method::Health | Method::Status | Method::SystemPresence => READ,

        Method::DevicePairList
        | Method::DevicePairApprove
        | Method::DevicePairReject
        | Method::DevicePairRemove
        | Method::DevicePairRename
        | Method::DeviceTokenRotate
        | Method::DeviceTokenRevoke => PAIRING,

        Method::NodePairList
        | Method::NodePairApprove
        | Method::NodePairReject
        | Method::NodePairRemove
        | Method::NodeRename => PAIRING,

        Method::NodeList
        | Method::NodeDescribe
        | Method::PortcullisNodesExplain
        | Method::PortcullisNodesReport => READ,
        Method::NodeInvoke => Access::Operator(Need::ByCommand),

        Method::NodeInvokeProgress
        | Method::NodeInvokeResult
        | Method::NodeEvent
        | Method::NodePendingPull
        | Method::NodePendingAck
        | Method::NodePendingDrain
        | Method::NodeSkillsUpdate
        | Method::NodePluginToolsUpdate => Access::Node,
        Method::NodeRunnerInventoryUpdate => Access::ApprovedNode,

        // Who asks and who decides both need it: asking shows commands to every operator (X10).
        Method::ExecApprovalRequest
        | Method::ExecApprovalGet
        | Method::ExecApprovalList
        | Method::ExecApprovalWaitDecision
        | Method::ExecApprovalResolve
        | Method::ApprovalGet
        | Method::ApprovalResolve
        | Method::PluginApprovalList
        | Method::OpenclawApprovalList => Access::Operator(Need::Scope(Scope::Approvals)),
        Method::ExecApprovalsNodeGet | Method::ExecApprovalsNodeSet => {
            Access::Operator(Need::Scope(Scope::Admin))
        }

        Method::ChatStartup | Method::ChatMetadata | Method::ChatHistory => READ,
        Method::ChatSend | Method::ChatAbort | Method::Agent | Method::AgentWait => WRITE,
        Method::AgentIdentityGet
        | Method::AgentsList
        | Method::ModelsList
        | Method::SessionsList => READ,
    }
}

/// The scope that relaying a command to a node needs.
pub fn scope_of_command(command: &str) -> Scope {
    if ADMIN_COMMANDS.contains(&command) {
        Scope::Admin
    } else {
        Scope::Write
    }
}

/// Decides for a caller who is past `connect`. `command` is `node.invoke`'s, if it could be read; without it the call
/// goes on with the ordinary scope, to be refused for its parameters.
pub fn check(
    method: Method,
    role: Role,
    scopes: ScopeSet,
    command: Option<&str>,
) -> Result<(), PermissionRefusal> {
    let scope = match (required(method), role) {
        (Access::Handshake, _) => return Err(PermissionRefusal::SecondConnect),
        (Access::Node | Access::ApprovedNode, Role::Node) => return Ok(()),
        (Access::Operator(need), Role::Operator) => match need {
            Need::Scope(scope) => scope,
            Need::ByCommand => command.map_or(Scope::Write, scope_of_command),
        },
        (Access::Operator(_) | Access::Node | Access::ApprovedNode, role) => {
            return Err(PermissionRefusal::Role(role));
        }
    };
    if !scopes.allows(scope) {
        return Err(PermissionRefusal::Scope(scope));
    }
    Ok(())
}

/// The forbidden calls that a session has made in a row. One that goes on is not mistaken, it is probing (R7).
#[derive(Clone, Copy, Default, Debug)]
pub struct Forbidden(u32);

impl Forbidden {
    /// The close frame for a session that has had enough chances.
    pub const CLOSE: (u16, &'static str) = (1008, "repeated unauthorized calls");

    /// Counts a call's outcome; `true` closes the session.
    pub fn count(&mut self, permitted: bool) -> bool {
        self.0 = if permitted {
            0
        } else {
            self.0.saturating_add(1)
        };
        self.0 >= limits::UNAUTHORIZED_CALLS_MAX
    }
}

/// Why a caller may not call a method.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PermissionRefusal {
    SecondConnect,
    Role(Role),
    Scope(Scope),
}

impl PermissionRefusal {
    pub fn error(&self) -> ErrorShape {
        match self {
            Self::Scope(scope) => ErrorShape::missing_scope(scope.as_str()),
            Self::SecondConnect | Self::Role(_) => ErrorShape::invalid_request(self.public()),
        }
    }
}

impl Refusal for PermissionRefusal {
    fn code(&self) -> &'static str {
        match self {
            Self::SecondConnect | Self::Role(_) => "INVALID_REQUEST",
            Self::Scope(_) => "FORBIDDEN",
        }
    }

    fn detail_code(&self) -> Option<&'static str> {
        matches!(self, Self::Scope(_)).then_some("MISSING_SCOPE")
    }

    fn http_status(&self) -> u16 {
        match self {
            Self::SecondConnect => 400,
            Self::Role(_) | Self::Scope(_) => 403,
        }
    }

    fn log_field(&self) -> &'static str {
        match self {
            Self::SecondConnect => "second_connect",
            Self::Role(_) => "role_not_allowed",
            Self::Scope(_) => "missing_scope",
        }
    }

    fn public(&self) -> Cow<'static, str> {
        match self {
            Self::SecondConnect => "connect is only valid as the first request".into(),
            Self::Role(role) => format!("unauthorized role: {role}").into(),
            Self::Scope(scope) => format!("missing scope: {scope}").into(),
        }
    }

    fn remedy(&self) -> Cow<'static, str> {
        match self {
            Self::SecondConnect => "open a new connection to connect again".into(),
            Self::Role(Role::Node) => "operator methods need a connection with the role operator".into(),
            Self::Role(Role::Operator) => "node methods are for the node's own connection".into(),
            Self::Scope(scope) => format!(
                "connect with {scope} among the scopes; a paired device must be approved for it, and a caller without \
                 a device has scopes only on this host (gateway.auth.localOperatorScopes)"
            )
            .into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(scope: Scope) -> ScopeSet {
        [scope].into_iter().collect()
    }

    #[test]
    fn s1_every_method_needs_a_role_and_operators_a_scope() {
        for method in Method::ALL {
            let no_scope = check(*method, Role::Operator, ScopeSet::NONE, None);
            assert!(no_scope.is_err(), "{}", method.as_str());
        }
        assert_eq!(Method::from_wire("no.such.method"), None);
        assert_eq!(
            ErrorShape::unknown_method("no.such.method").message,
            "unknown method: no.such.method"
        );
    }

    #[test]
    fn s1_a_missing_scope_is_named_as_recorded() {
        let refusal = check(
            Method::DevicePairApprove,
            Role::Operator,
            with(Scope::Write),
            None,
        );
        let refusal = refusal.unwrap_err();
        assert_eq!(refusal.public(), "missing scope: operator.pairing");
        let details = refusal.error().details.unwrap();
        assert_eq!(details["code"], "MISSING_SCOPE");
        assert_eq!(details["missingScope"], "operator.pairing");
        assert_eq!(details["requiredScopes"][0], "operator.pairing");
        assert!(check(Method::Health, Role::Operator, with(Scope::Write), None).is_ok());
        assert!(
            check(
                Method::DevicePairApprove,
                Role::Operator,
                with(Scope::Admin),
                None
            )
            .is_ok()
        );
    }

    #[test]
    fn s1_node_pair_approve_is_out_of_reach_of_write() {
        let refusal = check(
            Method::NodePairApprove,
            Role::Operator,
            with(Scope::Write),
            None,
        );
        assert_eq!(refusal, Err(PermissionRefusal::Scope(Scope::Pairing)));
    }

    #[test]
    fn n7_roles_keep_to_their_own_methods() {
        for method in Method::ALL {
            let node = check(*method, Role::Node, ScopeSet::all(), None);
            let operator = check(*method, Role::Operator, ScopeSet::all(), None);
            assert!(node.is_err() || operator.is_err(), "{}", method.as_str());
        }
        let node = check(Method::Status, Role::Node, ScopeSet::all(), None).unwrap_err();
        assert_eq!(node.error().message, "unauthorized role: node");
        let operator = check(
            Method::NodeInvokeResult,
            Role::Operator,
            ScopeSet::all(),
            None,
        );
        assert_eq!(
            operator.unwrap_err().error().message,
            "unauthorized role: operator"
        );
    }

    #[test]
    fn r7_repeated_unauthorized_calls_close_the_session() {
        let mut it = Forbidden::default();
        let call = |method| check(method, Role::Node, ScopeSet::NONE, None);
        assert!((1..20).all(|_| !it.count(call(Method::Status).is_ok())));
        assert!(it.count(call(Method::Status).is_ok()));
        assert!(
            !it.count(call(Method::NodeEvent).is_ok()),
            "an allowed call starts anew"
        );
    }

    #[test]
    fn a1_connect_is_only_the_first_request() {
        for role in [Role::Operator, Role::Node] {
            let second = check(Method::Connect, role, ScopeSet::all(), None);
            assert_eq!(second, Err(PermissionRefusal::SecondConnect));
        }
    }

    #[test]
    fn relaying_operator_like_commands_needs_admin() {
        for (command, scope) in [
            ("system.run", Scope::Write),
            ("browser.proxy", Scope::Admin),
            ("terminal.upload", Scope::Admin),
        ] {
            let call = |scopes| check(Method::NodeInvoke, Role::Operator, scopes, Some(command));
            assert!(call(with(scope)).is_ok());
            assert_eq!(call(ScopeSet::NONE), Err(PermissionRefusal::Scope(scope)));
        }
    }
}
