//! Why a pairing decision is refused. What a caller may not manage looks like what does not exist (E1).

use std::borrow::Cow;

use serde_json::json;

use crate::auth::scope::Scope;
use crate::base::Refusal;
use crate::rpc::ErrorShape;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PairingRefusal {
    UnknownRequest,
    UnknownDevice,
    UnknownNode,
    DeviceApproval,
    DeviceRejection,
    DeviceRemoval,
    DeviceRename,
    TokenRotation,
    TokenRevocation,
    NodeApproval,
    NodeRejection,
    NodeRemoval,
    NodeRename,
    /// The approver lacks a scope that it would grant.
    DeviceScope(Scope),
    NodeScope(Scope),
    LabelRequired,
    LabelTooLong,
    DisplayNameRequired,
    /// A subset that names what the node does not declare, or nothing.
    CommandsNotDeclared,
    QueueFull,
    TooManyDevices,
    SurfaceTooLarge,
}

impl PairingRefusal {
    pub fn error(&self) -> ErrorShape {
        match self {
            Self::NodeScope(scope) => {
                let mut required = vec![Scope::Pairing.as_str()];
                if *scope != Scope::Pairing {
                    required.push(scope.as_str());
                }
                ErrorShape::missing_scope(scope.as_str()).with_details(json!({
                    "code": "MISSING_SCOPE",
                    "missingScope": scope.as_str(),
                    "requiredScopes": required,
                }))
            }
            _ => ErrorShape::new(self.code(), self.public()),
        }
    }
}

impl Refusal for PairingRefusal {
    fn code(&self) -> &'static str {
        match self {
            Self::NodeScope(_) => "FORBIDDEN",
            Self::QueueFull | Self::TooManyDevices => "UNAVAILABLE",
            _ => "INVALID_REQUEST",
        }
    }

    fn detail_code(&self) -> Option<&'static str> {
        matches!(self, Self::NodeScope(_)).then_some("MISSING_SCOPE")
    }

    fn http_status(&self) -> u16 {
        match self {
            Self::QueueFull | Self::TooManyDevices => 503,
            Self::NodeScope(_) | Self::DeviceScope(_) => 403,
            _ => 400,
        }
    }

    fn log_field(&self) -> &'static str {
        match self {
            Self::UnknownRequest => "unknown_request",
            Self::UnknownDevice => "unknown_device",
            Self::UnknownNode => "unknown_node",
            Self::DeviceApproval => "device_approval_denied",
            Self::DeviceRejection => "device_rejection_denied",
            Self::DeviceRemoval => "device_removal_denied",
            Self::DeviceRename => "device_rename_denied",
            Self::TokenRotation => "token_rotation_denied",
            Self::TokenRevocation => "token_revocation_denied",
            Self::NodeApproval => "node_approval_denied",
            Self::NodeRejection => "node_rejection_denied",
            Self::NodeRemoval => "node_removal_denied",
            Self::NodeRename => "node_rename_denied",
            Self::DeviceScope(_) | Self::NodeScope(_) => "approver_missing_scope",
            Self::LabelRequired | Self::LabelTooLong => "label_invalid",
            Self::DisplayNameRequired => "display_name_invalid",
            Self::CommandsNotDeclared => "commands_not_declared",
            Self::QueueFull => "pairing_queue_full",
            Self::TooManyDevices => "too_many_devices",
            Self::SurfaceTooLarge => "node_surface_too_large",
        }
    }

    fn public(&self) -> Cow<'static, str> {
        match self {
            Self::UnknownRequest => "unknown requestId",
            Self::UnknownDevice => "unknown deviceId",
            Self::UnknownNode => "unknown nodeId",
            Self::DeviceApproval => "device pairing approval denied",
            Self::DeviceRejection => "device pairing rejection denied",
            Self::DeviceRemoval => "device pairing removal denied",
            Self::DeviceRename => "device pairing rename denied",
            Self::TokenRotation => "device token rotation denied",
            Self::TokenRevocation => "device token revocation denied",
            Self::NodeApproval => "node pairing approval denied",
            Self::NodeRejection => "node pairing rejection denied",
            Self::NodeRemoval => "node pairing removal denied",
            Self::NodeRename => "node rename denied",
            Self::DeviceScope(scope) | Self::NodeScope(scope) => {
                return format!("missing scope: {scope}").into();
            }
            Self::LabelRequired => "label required",
            Self::LabelTooLong => "label too long",
            Self::DisplayNameRequired => "displayName required",
            Self::CommandsNotDeclared => "commands must be some of those that the node declares",
            Self::QueueFull => "too many pairing requests are waiting; decide some of them first",
            Self::TooManyDevices => "too many paired devices; remove some of them first",
            Self::SurfaceTooLarge => "the node declares too many capabilities or commands",
        }
        .into()
    }

    fn remedy(&self) -> Cow<'static, str> {
        match self {
            Self::UnknownRequest => "the request was decided, replaced or has expired; list the pending ones".into(),
            Self::UnknownDevice | Self::UnknownNode => "list the paired ones for their ids".into(),
            Self::DeviceScope(scope) | Self::NodeScope(scope) => {
                format!("decide as an operator who holds {scope}: nobody grants more than it has").into()
            }
            Self::DeviceApproval
            | Self::DeviceRejection
            | Self::DeviceRemoval
            | Self::DeviceRename
            | Self::TokenRotation
            | Self::TokenRevocation
            | Self::NodeApproval
            | Self::NodeRejection
            | Self::NodeRemoval
            | Self::NodeRename => {
                "without operator.admin a paired device manages itself only, and nobody a role or scope that it lacks".into()
            }
            Self::LabelRequired | Self::LabelTooLong | Self::DisplayNameRequired => {
                "give a name of 1 to 64 characters".into()
            }
            Self::CommandsNotDeclared => "name commands from the pending request".into(),
            Self::QueueFull => "portcullis devices list, then approve or reject what waits".into(),
            Self::TooManyDevices => "portcullis devices remove what is not used any more".into(),
            Self::SurfaceTooLarge => "declare fewer capabilities and commands".into(),
        }
    }
}
