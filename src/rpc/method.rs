//! Every method that this Gateway serves, by name.
//!
//! `auth::permission` and `control` match over `Method` without a default, so that a method cannot be added without
//! its roles, scopes and handler.

/// A method of the Gateway protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    Connect,
    Health,
    Status,
    SystemPresence,
    DevicePairList,
    DevicePairApprove,
    DevicePairReject,
    DevicePairRemove,
    DevicePairRename,
    DeviceTokenRotate,
    DeviceTokenRevoke,
    NodePairList,
    NodePairApprove,
    NodePairReject,
    NodePairRemove,
    NodeRename,
    NodeList,
    NodeDescribe,
    NodeInvoke,
    NodeInvokeProgress,
    NodeInvokeResult,
    NodeEvent,
    NodePendingPull,
    NodePendingAck,
    NodePendingDrain,
    NodeRunnerInventoryUpdate,
    NodeSkillsUpdate,
    NodePluginToolsUpdate,
    ExecApprovalRequest,
    ExecApprovalGet,
    ExecApprovalList,
    ExecApprovalWaitDecision,
    ExecApprovalResolve,
    ChatStartup,
    ChatMetadata,
    ChatHistory,
    ChatSend,
    ChatAbort,
    Agent,
    AgentWait,
    AgentIdentityGet,
    AgentsList,
    ModelsList,
    SessionsList,
    PortcullisNodesExplain,
    PortcullisNodesReport,
}

impl Method {
    /// All methods, in the order of their declaration.
    pub const ALL: &[Self] = &[
        Self::Connect,
        Self::Health,
        Self::Status,
        Self::SystemPresence,
        Self::DevicePairList,
        Self::DevicePairApprove,
        Self::DevicePairReject,
        Self::DevicePairRemove,
        Self::DevicePairRename,
        Self::DeviceTokenRotate,
        Self::DeviceTokenRevoke,
        Self::NodePairList,
        Self::NodePairApprove,
        Self::NodePairReject,
        Self::NodePairRemove,
        Self::NodeRename,
        Self::NodeList,
        Self::NodeDescribe,
        Self::NodeInvoke,
        Self::NodeInvokeProgress,
        Self::NodeInvokeResult,
        Self::NodeEvent,
        Self::NodePendingPull,
        Self::NodePendingAck,
        Self::NodePendingDrain,
        Self::NodeRunnerInventoryUpdate,
        Self::NodeSkillsUpdate,
        Self::NodePluginToolsUpdate,
        Self::ExecApprovalRequest,
        Self::ExecApprovalGet,
        Self::ExecApprovalList,
        Self::ExecApprovalWaitDecision,
        Self::ExecApprovalResolve,
        Self::ChatStartup,
        Self::ChatMetadata,
        Self::ChatHistory,
        Self::ChatSend,
        Self::ChatAbort,
        Self::Agent,
        Self::AgentWait,
        Self::AgentIdentityGet,
        Self::AgentsList,
        Self::ModelsList,
        Self::SessionsList,
        Self::PortcullisNodesExplain,
        Self::PortcullisNodesReport,
    ];

    /// The method of this name, compared exactly.
    pub fn from_wire(name: &str) -> Option<Self> {
        Some(match name {
            "connect" => Self::Connect,
            "health" => Self::Health,
            "status" => Self::Status,
            "system-presence" => Self::SystemPresence,
            "device.pair.list" => Self::DevicePairList,
            "device.pair.approve" => Self::DevicePairApprove,
            "device.pair.reject" => Self::DevicePairReject,
            "device.pair.remove" => Self::DevicePairRemove,
            "device.pair.rename" => Self::DevicePairRename,
            "device.token.rotate" => Self::DeviceTokenRotate,
            "device.token.revoke" => Self::DeviceTokenRevoke,
            "node.pair.list" => Self::NodePairList,
            "node.pair.approve" => Self::NodePairApprove,
            "node.pair.reject" => Self::NodePairReject,
            "node.pair.remove" => Self::NodePairRemove,
            "node.rename" => Self::NodeRename,
            "node.list" => Self::NodeList,
            "node.describe" => Self::NodeDescribe,
            "node.invoke" => Self::NodeInvoke,
            "node.invoke.progress" => Self::NodeInvokeProgress,
            "node.invoke.result" => Self::NodeInvokeResult,
            "node.event" => Self::NodeEvent,
            "node.pending.pull" => Self::NodePendingPull,
            "node.pending.ack" => Self::NodePendingAck,
            "node.pending.drain" => Self::NodePendingDrain,
            "node.runnerInventory.update" => Self::NodeRunnerInventoryUpdate,
            "node.skills.update" => Self::NodeSkillsUpdate,
            "node.pluginTools.update" => Self::NodePluginToolsUpdate,
            "exec.approval.request" => Self::ExecApprovalRequest,
            "exec.approval.get" => Self::ExecApprovalGet,
            "exec.approval.list" => Self::ExecApprovalList,
            "exec.approval.waitDecision" => Self::ExecApprovalWaitDecision,
            "exec.approval.resolve" => Self::ExecApprovalResolve,
            "chat.startup" => Self::ChatStartup,
            "chat.metadata" => Self::ChatMetadata,
            "chat.history" => Self::ChatHistory,
            "chat.send" => Self::ChatSend,
            "chat.abort" => Self::ChatAbort,
            "agent" => Self::Agent,
            "agent.wait" => Self::AgentWait,
            "agent.identity.get" => Self::AgentIdentityGet,
            "agents.list" => Self::AgentsList,
            "models.list" => Self::ModelsList,
            "sessions.list" => Self::SessionsList,
            "portcullis.nodes.explain" => Self::PortcullisNodesExplain,
            "portcullis.nodes.report" => Self::PortcullisNodesReport,
            _ => return None,
        })
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Health => "health",
            Self::Status => "status",
            Self::SystemPresence => "system-presence",
            Self::DevicePairList => "device.pair.list",
            Self::DevicePairApprove => "device.pair.approve",
            Self::DevicePairReject => "device.pair.reject",
            Self::DevicePairRemove => "device.pair.remove",
            Self::DevicePairRename => "device.pair.rename",
            Self::DeviceTokenRotate => "device.token.rotate",
            Self::DeviceTokenRevoke => "device.token.revoke",
            Self::NodePairList => "node.pair.list",
            Self::NodePairApprove => "node.pair.approve",
            Self::NodePairReject => "node.pair.reject",
            Self::NodePairRemove => "node.pair.remove",
            Self::NodeRename => "node.rename",
            Self::NodeList => "node.list",
            Self::NodeDescribe => "node.describe",
            Self::NodeInvoke => "node.invoke",
            Self::NodeInvokeProgress => "node.invoke.progress",
            Self::NodeInvokeResult => "node.invoke.result",
            Self::NodeEvent => "node.event",
            Self::NodePendingPull => "node.pending.pull",
            Self::NodePendingAck => "node.pending.ack",
            Self::NodePendingDrain => "node.pending.drain",
            Self::NodeRunnerInventoryUpdate => "node.runnerInventory.update",
            Self::NodeSkillsUpdate => "node.skills.update",
            Self::NodePluginToolsUpdate => "node.pluginTools.update",
            Self::ExecApprovalRequest => "exec.approval.request",
            Self::ExecApprovalGet => "exec.approval.get",
            Self::ExecApprovalList => "exec.approval.list",
            Self::ExecApprovalWaitDecision => "exec.approval.waitDecision",
            Self::ExecApprovalResolve => "exec.approval.resolve",
            Self::ChatStartup => "chat.startup",
            Self::ChatMetadata => "chat.metadata",
            Self::ChatHistory => "chat.history",
            Self::ChatSend => "chat.send",
            Self::ChatAbort => "chat.abort",
            Self::Agent => "agent",
            Self::AgentWait => "agent.wait",
            Self::AgentIdentityGet => "agent.identity.get",
            Self::AgentsList => "agents.list",
            Self::ModelsList => "models.list",
            Self::SessionsList => "sessions.list",
            Self::PortcullisNodesExplain => "portcullis.nodes.explain",
            Self::PortcullisNodesReport => "portcullis.nodes.report",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_variants_agree() {
        for (position, method) in Method::ALL.iter().enumerate() {
            assert_eq!(Method::from_wire(method.as_str()), Some(*method));
            assert_eq!(*method as usize, position, "{}", method.as_str());
        }
    }

    #[test]
    fn names_are_exact() {
        for name in ["", "Connect", "connect ", "node.invoke\0", "no.such.method"] {
            assert_eq!(Method::from_wire(name), None, "{name:?}");
        }
    }
}
