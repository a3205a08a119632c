//! Why a command did not run, and whether it was sent.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::policy::{DeniedBy, PathOf};
use crate::base::Refusal;
use crate::base::names::names;
use crate::exec::approval::{ApprovalError, DecideError, Unapproved};
use crate::exec::env;

names! {
    /// Whether the node may have begun to execute a command.
    pub enum Dispatched {
        No = "no",
        Yes = "yes",
        /// A crash or a lost session leaves it open; such a command is never run again by itself.
        Unknown = "unknown",
    }
}

names! {
    /// Where an invocation failed.
    pub enum Category {
        Network = "network",
        Permission = "permission",
        Execution = "execution",
        Timeout = "timeout",
        Protocol = "protocol",
    }
}

/// The reason for which a command on a node is not run, or has no result. Kept in this form under idempotency keys.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Refused {
    UnknownNode,
    NotConnected,
    Disconnected {
        command: String,
    },
    /// The node's device is paired but no operator approved what it may run.
    SurfacePending {
        request_id: Option<String>,
    },
    NotDeclared {
        command: String,
    },
    NotApproved {
        command: String,
    },
    Denied {
        command: String,
        by: DeniedBy,
    },
    NotAllowlisted {
        command: String,
    },
    /// Browser control crosses no public path, neither the caller's nor the node's.
    PublicPath {
        command: String,
        of: PathOf,
        path: String,
    },
    /// `system.execApprovals.*` have methods of their own.
    ReservedCommand,
    ExecDenied,
    ApprovalRequired {
        run_id: Option<String>,
    },
    /// What leans on an approval is not what was approved.
    ApprovalMismatch(ApprovalError),
    /// An approval was asked for, and not given.
    Unapproved(Unapproved),
    /// A request for an approval, or a decision about one, is not taken.
    Decision(DecideError),
    /// In mode `allowlist` nobody is asked about what is not on the list, and nobody's word puts it there.
    AllowlistMiss,
    /// The node's own exec mode lets nothing run that this could be, whoever approves it.
    NodeExecMode {
        gateway: String,
        node: String,
    },
    /// What admitted the caller, or the scope that the call needs, was taken away after it asked (K1).
    CallerWithdrawn,
    /// What permitted it was taken away while it was under way (K1).
    PairingChanged,
    Busy {
        limit: usize,
    },
    TimedOut {
        timeout_ms: u64,
    },
    /// Nobody waits for it any more.
    Cancelled {
        sent: bool,
    },
    /// The Gateway ended while the command was under way. It is never sent again by itself.
    Interrupted,
    /// It ran, and its outcome was answered once, but is no longer here to be answered again.
    OutcomeNotKept {
        bytes: usize,
    },
    /// The node's own error, as it reported it.
    Node {
        code: String,
        message: String,
    },
    /// The frame is no longer than the node takes, but does not fit behind what waits for it now.
    NodeBehind,
    /// The result is no longer than the caller takes, but does not fit behind what waits for it now.
    CallerBehind,
    /// The frame for the node would be longer than the node takes.
    OversizedRequest {
        bytes: usize,
        limit: usize,
    },
    OversizedResult {
        bytes: usize,
        limit: usize,
    },
    AuditUnavailable,
    DuplicateKey,
    /// The parameters are not what this command takes.
    BadParams,
    /// The variables that a command shall get are not taken; which, and why.
    BadEnv {
        why: String,
    },
}

impl Refused {
    pub fn dispatched(&self) -> Dispatched {
        match self {
            Self::Disconnected { .. } | Self::Interrupted => Dispatched::Unknown,
            Self::TimedOut { .. }
            | Self::Cancelled { sent: true }
            | Self::OutcomeNotKept { .. }
            | Self::PairingChanged
            | Self::Node { .. }
            | Self::CallerBehind
            | Self::OversizedResult { .. } => Dispatched::Yes,
            _ => Dispatched::No,
        }
    }

    pub fn category(&self) -> Category {
        match self {
            Self::UnknownNode
            | Self::DuplicateKey
            | Self::BadParams
            | Self::BadEnv { .. }
            | Self::OversizedRequest { .. }
            | Self::OversizedResult { .. } => Category::Protocol,
            Self::NotConnected
            | Self::Disconnected { .. }
            | Self::Interrupted
            // The way to the node is shut while nothing can be recorded.
            | Self::AuditUnavailable
            | Self::NodeBehind
            | Self::CallerBehind
            | Self::Busy { .. } => Category::Network,
            Self::TimedOut { .. } => Category::Timeout,
            Self::Node { code, message }
                if code == "SYSTEM_RUN_DENIED" || message.starts_with("SYSTEM_RUN_DENIED") =>
            {
                Category::Permission
            }
            Self::Node { code, .. }
                if ["INVALID_RESULT", "INVALID_PLAN", "INVALID_REQUEST"].contains(&code.as_str()) =>
            {
                Category::Protocol
            }
            Self::Cancelled { .. } | Self::OutcomeNotKept { .. } | Self::Node { .. } => {
                Category::Execution
            }
            Self::SurfacePending { .. }
            | Self::NotDeclared { .. }
            | Self::NotApproved { .. }
            | Self::Denied { .. }
            | Self::NotAllowlisted { .. }
            | Self::PublicPath { .. }
            | Self::ReservedCommand
            | Self::ExecDenied
            | Self::ApprovalRequired { .. }
            | Self::ApprovalMismatch(_)
            | Self::Unapproved(_)
            | Self::Decision(_)
            | Self::AllowlistMiss
            | Self::NodeExecMode { .. }
            | Self::CallerWithdrawn
            | Self::PairingChanged => Category::Permission,
        }
    }

    /// The `nodeError` of the wire: what stands before and after the colon of the public sentence.
    pub fn node_error(&self) -> Option<(Cow<'_, str>, Cow<'_, str>)> {
        match self {
            Self::NotConnected => Some(("NOT_CONNECTED".into(), "node not connected".into())),
            Self::Disconnected { command } => Some((
                "DISCONNECTED".into(),
                format!("node disconnected ({command})").into(),
            )),
            Self::TimedOut { .. } => Some(("TIMEOUT".into(), "node invoke timed out".into())),
            Self::Cancelled { .. } => Some(("CANCELLED".into(), "node invoke cancelled".into())),
            Self::Interrupted => Some((
                "INTERRUPTED".into(),
                "the gateway ended while the command was under way".into(),
            )),
            Self::OutcomeNotKept { bytes } => Some((
                "OUTCOME_NOT_KEPT".into(),
                format!("the command ran; its outcome of {bytes} bytes is no longer kept").into(),
            )),
            Self::Node { code, message } => Some((code.into(), message.into())),
            Self::OversizedResult { .. } => {
                Some(("RESULT_TOO_LARGE".into(), "node result too large".into()))
            }
            _ => None,
        }
    }

    /// The rule that said no, as the reference names it in `details.reason`.
    pub fn reason(&self) -> Option<&'static str> {
        match self {
            Self::NotAllowlisted { .. } => Some("command not allowlisted"),
            Self::Denied { .. } => Some("command denied"),
            Self::NotDeclared { .. } => Some("command not declared by node"),
            Self::NotApproved { .. } => Some("command not approved"),
            Self::SurfacePending { .. } => Some("command surface pending approval"),
            Self::PublicPath { .. } => Some("command over a public path"),
            Self::Decision(error) => error.reason(),
            _ => None,
        }
    }

    pub fn command(&self) -> Option<&str> {
        match self {
            Self::NotAllowlisted { command }
            | Self::Denied { command, .. }
            | Self::NotDeclared { command }
            | Self::NotApproved { command }
            | Self::PublicPath { command, .. } => Some(command),
            _ => None,
        }
    }
}

impl From<env::Refused> for Refused {
    fn from(refused: env::Refused) -> Self {
        Self::BadEnv {
            why: refused.to_string(),
        }
    }
}

/// Where a sentence that does not know the node leaves a place for its id, and what stands there.
const PLACES: [(&str, &str); 2] = [
    ("--node NODE", "NODE"),
    ("gateway.nodes.entries.<id>.", "<id>"),
];

impl Refused {
    /// The public sentence about this node, by its full id (empty if nobody knows it): it may name a setting of its own.
    pub fn public_on(&self, node: &str) -> String {
        match self {
            Self::Denied { .. } => on(&self.public(), node),
            _ => self.public().into_owned(),
        }
    }

    /// The remedy for this node, to be used as it is.
    pub fn remedy_on(&self, node: &str) -> String {
        on(&self.remedy(), node)
    }
}

fn on(text: &str, node: &str) -> String {
    let named = |text: String, (place, name): (&str, &str)| match node {
        "" => text,
        _ => text.replace(place, &place.replace(name, node)),
    };
    PLACES.into_iter().fold(text.to_owned(), named)
}

impl Refusal for Refused {
    fn code(&self) -> &'static str {
        match self {
            Self::CallerWithdrawn => "FORBIDDEN",
            Self::NotConnected
            | Self::Disconnected { .. }
            | Self::PairingChanged
            | Self::Busy { .. }
            | Self::NodeBehind
            | Self::CallerBehind
            | Self::TimedOut { .. }
            | Self::Cancelled { .. }
            | Self::Interrupted
            | Self::OutcomeNotKept { .. }
            | Self::Node { .. }
            | Self::OversizedResult { .. }
            | Self::AuditUnavailable => "UNAVAILABLE",
            _ => "INVALID_REQUEST",
        }
    }

    fn detail_code(&self) -> Option<&'static str> {
        match self {
            Self::NotConnected => Some("NOT_CONNECTED"),
            Self::ApprovalRequired { .. } => Some("APPROVAL_REQUIRED"),
            Self::ApprovalMismatch(error) => Some(error.detail_code()),
            Self::Unapproved(Unapproved::Denied) => Some("APPROVAL_DENIED"),
            Self::Unapproved(_) => Some("APPROVAL_REQUIRED"),
            Self::AllowlistMiss => Some("ALLOWLIST_MISS"),
            Self::ExecDenied => Some("EXEC_DENIED"),
            Self::NodeExecMode { .. } => Some("NODE_EXEC_MODE"),
            Self::PublicPath { .. } => Some("PUBLIC_PATH"),
            Self::CallerWithdrawn => Some("CALLER_WITHDRAWN"),
            Self::PairingChanged => Some("PAIRING_CHANGED"),
            Self::AuditUnavailable => Some("AUDIT_UNAVAILABLE"),
            _ => None,
        }
    }

    fn log_field(&self) -> &'static str {
        match self {
            Self::UnknownNode => "unknown_node",
            Self::NotConnected => "not_connected",
            Self::Disconnected { .. } => "disconnected",
            Self::SurfacePending { .. } => "surface_pending",
            Self::NotDeclared { .. } => "not_declared",
            Self::NotApproved { .. } => "not_approved",
            Self::Denied { .. } => "denied",
            Self::NotAllowlisted { .. } => "not_allowlisted",
            Self::PublicPath { .. } => "public_path",
            Self::ReservedCommand => "reserved_command",
            Self::ExecDenied => "exec_denied",
            Self::ApprovalRequired { .. } => "approval_required",
            Self::ApprovalMismatch(_) => "approval_mismatch",
            Self::Unapproved(_) => "unapproved",
            Self::Decision(_) => "decision",
            Self::AllowlistMiss => "allowlist_miss",
            Self::NodeExecMode { .. } => "node_exec_mode",
            Self::CallerWithdrawn => "caller_withdrawn",
            Self::PairingChanged => "pairing_changed",
            Self::Busy { .. } => "busy",
            Self::NodeBehind => "node_behind",
            Self::CallerBehind => "caller_behind",
            Self::TimedOut { .. } => "timed_out",
            Self::Cancelled { .. } => "cancelled",
            Self::Interrupted => "interrupted",
            Self::OutcomeNotKept { .. } => "outcome_not_kept",
            Self::Node { .. } => "node_error",
            Self::OversizedRequest { .. } => "oversized_request",
            Self::OversizedResult { .. } => "oversized_result",
            Self::AuditUnavailable => "audit_unavailable",
            Self::DuplicateKey => "duplicate_key",
            Self::BadParams => "bad_params",
            Self::BadEnv { .. } => "bad_env",
        }
    }

    fn public(&self) -> Cow<'static, str> {
        match self {
            Self::UnknownNode => "unknown nodeId".into(),
            Self::NotConnected => "node not connected".into(),
            Self::SurfacePending { request_id: None } => {
                "node command not allowed: nothing that the node declares is approved, and no request waits".into()
            }
            Self::SurfacePending { .. } => {
                "node command not allowed: the node's declared command surface is pending approval".into()
            }
            Self::NotDeclared { .. } => "node command not allowed: command not declared by node".into(),
            Self::NotApproved { command } => {
                format!("node command not allowed: {command:?} was not approved for this node").into()
            }
            Self::Denied { command, by: DeniedBy::NodeAllow } => {
                format!("node command not allowed: {command:?} is not among {}", DeniedBy::NodeAllow.setting()).into()
            }
            Self::Denied { command, by } => {
                format!("node command not allowed: {command:?} is denied by {}", by.setting()).into()
            }
            Self::NotAllowlisted { command } => {
                format!("node command not allowed: {command:?} requires explicit gateway.nodes.commands.allow opt-in")
                    .into()
            }
            Self::PublicPath { command, of, path } => {
                let whose = if *of == PathOf::Caller { "caller" } else { "node" };
                format!("node command not allowed: {command:?} crosses no public path, and the {whose}'s is {path:?}").into()
            }
            Self::ReservedCommand => {
                "node.invoke does not allow system.execApprovals.*; use exec.approvals.node.*".into()
            }
            Self::ExecDenied => "exec denied: tools.exec.mode is deny".into(),
            Self::ApprovalRequired { .. } => "approval required".into(),
            Self::ApprovalMismatch(error) => error.to_string().into(),
            Self::Unapproved(why) => why.to_string().into(),
            Self::Decision(error) => error.to_string().into(),
            Self::AllowlistMiss => {
                "exec denied: tools.exec.mode is allowlist, and only a `/run` of what the node's allowlist holds passes it".into()
            }
            Self::NodeExecMode { gateway, node } => {
                let lets = if node == "allowlist" && gateway != "ask-always" {
                    "only what its own allowlist holds"
                } else {
                    "nothing"
                };
                format!("exec denied: mode {gateway} here and {node} on the node let {lets} run").into()
            }
            Self::CallerWithdrawn => "what admitted the caller was withdrawn; nothing is run for it".into(),
            Self::PairingChanged => "node pairing or policy changed while invocation was active".into(),
            Self::Busy { limit } => format!("too many invocations under way ({limit})").into(),
            Self::NodeBehind => "the node has not read yet what was sent to it before".into(),
            Self::CallerBehind => "the caller has not read yet what was sent to it before, so it gets no result".into(),
            Self::AuditUnavailable => "nothing can be recorded now, so nothing is dispatched".into(),
            Self::OversizedRequest { bytes, limit } => {
                format!("the request to the node would have {bytes} bytes, and it takes {limit}").into()
            }
            Self::DuplicateKey => "idempotencyKey was already used with other parameters".into(),
            Self::BadParams => "invalid params for this command".into(),
            Self::BadEnv { why } => why.clone().into(),
            Self::Disconnected { .. }
            | Self::TimedOut { .. }
            | Self::Cancelled { .. }
            | Self::Interrupted
            | Self::OutcomeNotKept { .. }
            | Self::Node { .. }
            | Self::OversizedResult { .. } => match self.node_error() {
                Some((code, message)) => format!("{code}: {message}").into(),
                None => "node invoke failed".into(),
            },
        }
    }

    fn remedy(&self) -> Cow<'static, str> {
        match self {
            Self::UnknownNode => "list the nodes with `portcullis nodes status`".into(),
            Self::Disconnected { .. } => {
                "find out on the node whether it ran before you repeat it".into()
            }
            Self::NotConnected => {
                "start the node host on that machine: `portcullis node run --host HOST --port PORT`".into()
            }
            Self::SurfacePending { request_id: Some(id) } => {
                format!("approve what it declared: `portcullis nodes approve {id}`").into()
            }
            Self::SurfacePending { request_id: None } => {
                "portcullis nodes remove --node NODE; it then asks again for all that it declares".into()
            }
            Self::NotDeclared { command } => format!("run a node host that offers {command:?}").into(),
            Self::NotApproved { .. } => {
                "portcullis nodes remove --node NODE; it then asks again for all that it declares".into()
            }
            Self::Denied { command, by: DeniedBy::NodeAllow } => {
                format!("add {command:?} to {}", DeniedBy::NodeAllow.setting()).into()
            }
            Self::Denied { command, by } => format!("remove {command:?} from {}", by.setting()).into(),
            Self::NotAllowlisted { command } => format!("add {command:?} to gateway.nodes.commands.allow").into(),
            Self::PublicPath { path, .. } if path == "funnel" => {
                "set gateway.tailscale.mode to serve and connect over the tailnet".into()
            }
            Self::PublicPath { .. } => "set gateway.tls.enabled to true and connect with wss://".into(),
            Self::ReservedCommand => "use the exec.approvals.node.* methods".into(),
            Self::ExecDenied => "set tools.exec.mode to ask or allowlist".into(),
            Self::ApprovalRequired { .. } | Self::ApprovalMismatch(_) => {
                "ask with exec.approval.request and name the approval's id as runId; or send `/run …` as an operator with operator.approvals".into()
            }
            Self::Unapproved(Unapproved::NoApprover) => {
                "keep `portcullis approvals watch` running, or another client with operator.approvals connected".into()
            }
            Self::Unapproved(_) => "ask again if it is still wanted".into(),
            Self::Decision(DecideError::NotFound) => {
                "ask again: what was pending ends when its time is up, with its turn, and with a restart".into()
            }
            Self::Decision(_) => "list what waits: `portcullis approvals list`".into(),
            Self::AllowlistMiss => "add the command to the node's allowlist; or set tools.exec.mode to ask".into(),
            Self::NodeExecMode { .. } => {
                "change what that machine says: tools.exec.mode of its configuration, and the words and lists of its exec-approvals.json".into()
            }
            Self::CallerWithdrawn => "connect again with what counts now, then ask again".into(),
            Self::PairingChanged => "see what the node may run now: `portcullis nodes list --commands`".into(),
            Self::Busy { .. } => "wait for running invocations to end".into(),
            Self::NodeBehind => "try again when the node has caught up".into(),
            Self::CallerBehind => "read what waits, then ask again under the same idempotencyKey".into(),
            Self::TimedOut { timeout_ms } => format!("raise timeoutMs above {timeout_ms} or run a shorter command").into(),
            Self::Interrupted => {
                "find out on the node whether it ran; under this key it is not run again, but its result is, should the node still deliver it".into()
            }
            Self::OutcomeNotKept { .. } => "the audit log has how it ended; use a new idempotencyKey to run it again".into(),
            Self::Cancelled { sent: true } => "find out on the node how far it came before you repeat it".into(),
            Self::Cancelled { sent: false } => "send the request again if it is still wanted".into(),
            Self::Node { message, .. } if message.contains("exec-approvals.json") => {
                "change exec-approvals.json on that machine, or set it with `portcullis gateway call exec.approvals.node.set`".into()
            }
            Self::Node { message, .. } if message.starts_with("command not found") => {
                "install it on that machine, or name it by its path".into()
            }
            Self::Node { message, .. } if message.contains("tools.exec.mode") => {
                "set tools.exec.mode in the configuration of that machine".into()
            }
            Self::Node { .. } => "see the node's own message".into(),
            Self::OversizedRequest { .. } => {
                "send shorter params".into()
            }
            Self::OversizedResult { limit, .. } => format!("keep the result below {limit} bytes").into(),
            Self::AuditUnavailable => "free space on the disk of the state directory; dispatch goes on by itself".into(),
            Self::DuplicateKey => "use a new idempotencyKey".into(),
            Self::BadParams => "send an object with the fields that the command takes".into(),
            Self::BadEnv { .. } => "leave them out of env; what they do can stand in the command, where it is seen".into(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Every variant once, and those whose words depend on what they hold again. A new one does not build without its
    /// place here.
    pub(crate) fn every() -> Vec<Refused> {
        let mut found = vec![Refused::UnknownNode];
        while let Some(next) = found.last().and_then(after) {
            found.push(next);
        }
        let command = || "camera.snap".to_owned();
        found.extend([
            Refused::SurfacePending { request_id: None },
            Refused::Cancelled { sent: true },
            Refused::Unapproved(Unapproved::NoApprover),
            Refused::Decision(DecideError::NotFound),
        ]);
        found.extend(
            [DeniedBy::Gateway, DeniedBy::NodeAllow].map(|by| Refused::Denied {
                command: command(),
                by,
            }),
        );
        found
    }

    fn after(refused: &Refused) -> Option<Refused> {
        let command = "camera.snap".to_owned();
        Some(match refused {
            Refused::UnknownNode => Refused::NotConnected,
            Refused::NotConnected => Refused::Disconnected { command },
            Refused::Disconnected { .. } => Refused::SurfacePending {
                request_id: Some("r1".to_owned()),
            },
            Refused::SurfacePending { .. } => Refused::NotDeclared { command },
            Refused::NotDeclared { .. } => Refused::NotApproved { command },
            Refused::NotApproved { .. } => Refused::Denied {
                command,
                by: DeniedBy::Node,
            },
            Refused::Denied { .. } => Refused::NotAllowlisted { command },
            Refused::NotAllowlisted { .. } => Refused::PublicPath {
                command,
                of: PathOf::Node,
                path: "funnel".to_owned(),
            },
            Refused::PublicPath { .. } => Refused::ReservedCommand,
            Refused::ReservedCommand => Refused::ExecDenied,
            Refused::ExecDenied => Refused::ApprovalRequired { run_id: None },
            Refused::ApprovalRequired { .. } => Refused::ApprovalMismatch(ApprovalError::WrongNode),
            Refused::ApprovalMismatch(_) => Refused::Unapproved(Unapproved::Denied),
            Refused::Unapproved(_) => Refused::Decision(DecideError::IdTaken),
            Refused::Decision(_) => Refused::AllowlistMiss,
            Refused::AllowlistMiss => Refused::NodeExecMode {
                gateway: "ask".to_owned(),
                node: "deny".to_owned(),
            },
            Refused::NodeExecMode { .. } => Refused::CallerWithdrawn,
            Refused::CallerWithdrawn => Refused::PairingChanged,
            Refused::PairingChanged => Refused::Busy { limit: 1 },
            Refused::Busy { .. } => Refused::TimedOut { timeout_ms: 1 },
            Refused::TimedOut { .. } => Refused::Cancelled { sent: false },
            Refused::Cancelled { .. } => Refused::Interrupted,
            Refused::Interrupted => Refused::OutcomeNotKept { bytes: 1 },
            Refused::OutcomeNotKept { .. } => Refused::Node {
                code: "SYSTEM_RUN_DENIED".to_owned(),
                message: "NODE says --node X".to_owned(),
            },
            Refused::Node { .. } => Refused::NodeBehind,
            Refused::NodeBehind => Refused::CallerBehind,
            Refused::CallerBehind => Refused::OversizedRequest { bytes: 2, limit: 1 },
            Refused::OversizedRequest { .. } => Refused::OversizedResult { bytes: 2, limit: 1 },
            Refused::OversizedResult { .. } => Refused::AuditUnavailable,
            Refused::AuditUnavailable => Refused::DuplicateKey,
            Refused::DuplicateKey => Refused::BadParams,
            Refused::BadParams => Refused::BadEnv {
                why: "too many".to_owned(),
            },
            Refused::BadEnv { .. } => return None,
        })
    }

    #[test]
    fn whatever_is_refused_names_the_node_and_not_a_place_for_it() {
        let node = "ab".repeat(32);
        for refused in every() {
            let said = [refused.public_on(&node), refused.remedy_on(&node)];
            assert!(!said[1].is_empty(), "{refused:?}");
            for text in said {
                let left = text.contains("<id>") || text.contains("--node NODE");
                assert!(!left, "{refused:?}: {text}");
            }
        }
        let form = Refused::Node {
            code: "INVALID_REQUEST".to_owned(),
            message: "command required".to_owned(),
        };
        assert_eq!(form.category(), Category::Protocol);
        let denied = Refused::Denied {
            command: "system.run".to_owned(),
            by: DeniedBy::Node,
        };
        let setting = format!("gateway.nodes.entries.{node}.commands.deny");
        assert!(denied.public_on(&node).contains(&setting));
        assert!(denied.remedy_on(&node).contains(&setting));
        assert!(denied.remedy_on("").contains("entries.<id>."));
    }
}
