//! Why a pairing decision was not taken.

use std::borrow::Cow;

use crate::auth::scope::Scope;
use crate::base::Refusal;

/// A pairing decision that was refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refused {
    /// Unknown, expired, or not the caller's to decide: all alike.
    UnknownRequest,
    UnknownDevice,
    UnknownNode,
    /// The approver lacks a scope that the request would grant.
    ApproverLacks {
        scope: Scope,
    },
    /// The same of a node's commands. The reference names the scope here, and not there.
    SurfaceApproverLacks {
        scope: Scope,
    },
    RotationDenied,
    RevocationDenied,
    /// The subset names a command that the node did not declare.
    NotDeclared {
        command: String,
    },
    /// The node declares it, and the Gateway's policy leaves it out of what can be approved.
    NotPermitted {
        command: String,
    },
    /// The subset is empty.
    NothingNamed,
    NameTooLong {
        chars: usize,
        limit: usize,
    },
    TooManyDevices {
        limit: usize,
    },
    /// An operator removed or rejected it; its address does not let it in again.
    TurnedAway,
}

impl Refusal for Refused {
    fn code(&self) -> &'static str {
        match self {
            Self::TooManyDevices { .. } => "UNAVAILABLE",
            Self::SurfaceApproverLacks { .. } => "FORBIDDEN",
            _ => "INVALID_REQUEST",
        }
    }

    fn log_field(&self) -> &'static str {
        match self {
            Self::UnknownRequest => "unknown_request",
            Self::UnknownDevice => "unknown_device",
            Self::UnknownNode => "unknown_node",
            Self::ApproverLacks { .. } | Self::SurfaceApproverLacks { .. } => {
                "approver_lacks_scope"
            }
            Self::RotationDenied => "rotation_denied",
            Self::RevocationDenied => "revocation_denied",
            Self::NotDeclared { .. } => "not_declared",
            Self::NotPermitted { .. } => "not_permitted",
            Self::NothingNamed => "nothing_named",
            Self::NameTooLong { .. } => "name_too_long",
            Self::TooManyDevices { .. } => "too_many_devices",
            Self::TurnedAway => "turned_away",
        }
    }

    fn public(&self) -> Cow<'static, str> {
        match self {
            Self::UnknownRequest => "unknown requestId".into(),
            Self::UnknownDevice => "unknown deviceId".into(),
            Self::UnknownNode => "unknown nodeId".into(),
            // The official CLI looks for this sentence and asks again with operator.admin.
            Self::ApproverLacks { .. } => "device pairing approval denied".into(),
            Self::SurfaceApproverLacks { scope } => format!("missing scope: {scope}").into(),
            Self::RotationDenied => "device token rotation denied".into(),
            Self::RevocationDenied => "device token revocation denied".into(),
            Self::NotDeclared { command } => {
                format!("{command:?} is not among the declared commands").into()
            }
            Self::NotPermitted { command } => format!(
                "{command:?} is declared, but gateway.nodes does not permit it on this node"
            )
            .into(),
            Self::NothingNamed => "commands names no command".into(),
            Self::NameTooLong { chars, limit } => {
                format!("a name has at most {limit} characters, not {chars}").into()
            }
            Self::TooManyDevices { limit } => format!("{limit} devices are paired already").into(),
            Self::TurnedAway => "this device was removed or rejected".into(),
        }
    }

    fn remedy(&self) -> Cow<'static, str> {
        match self {
            Self::UnknownRequest => {
                "list what waits: `portcullis devices list`, `portcullis nodes pending`".into()
            }
            Self::UnknownDevice => "list the devices: `portcullis devices list`".into(),
            Self::UnknownNode => "list the nodes: `portcullis nodes status`".into(),
            Self::ApproverLacks { scope } | Self::SurfaceApproverLacks { scope } => format!(
                "approve as an operator that holds {scope}, for instance on the gateway's own host"
            )
            .into(),
            Self::RotationDenied | Self::RevocationDenied => {
                "ask as an operator with operator.admin, or for the calling device itself".into()
            }
            Self::NotDeclared { .. } => {
                "name only commands that `portcullis nodes pending` shows".into()
            }
            Self::NotPermitted { command } => format!(
                "add {command:?} to gateway.nodes.commands.allow, or take it off the lists that deny it, and reload: then it waits, too"
            )
            .into(),
            Self::NothingNamed => {
                "leave commands out to approve all, or reject: `portcullis nodes reject`".into()
            }
            Self::NameTooLong { .. } => "choose a shorter name".into(),
            Self::TurnedAway => {
                "let it connect again and approve it: `portcullis devices approve`".into()
            }
            Self::TooManyDevices { .. } => {
                "remove devices that are no longer used: `portcullis devices remove`".into()
            }
        }
    }
}
