//! Every method that this Gateway serves, by name.
//!
//! `auth::permission` and `control` match over `Method` without a default, so that a method cannot be added without
//! its roles, scopes and handler.

use crate::base::names::names;

names! {
    /// A method of the Gateway protocol.
    pub enum Method {
        Connect = "connect",
        Health = "health",
        Status = "status",
        SystemPresence = "system-presence",
        DevicePairList = "device.pair.list",
        DevicePairApprove = "device.pair.approve",
        DevicePairReject = "device.pair.reject",
        DevicePairRemove = "device.pair.remove",
        DevicePairRename = "device.pair.rename",
        DeviceTokenRotate = "device.token.rotate",
        DeviceTokenRevoke = "device.token.revoke",
        NodePairList = "node.pair.list",
        NodePairApprove = "node.pair.approve",
        NodePairReject = "node.pair.reject",
        NodePairRemove = "node.pair.remove",
        NodeRename = "node.rename",
        NodeList = "node.list",
        NodeDescribe = "node.describe",
        NodeInvoke = "node.invoke",
        NodeInvokeProgress = "node.invoke.progress",
        NodeInvokeResult = "node.invoke.result",
        NodeEvent = "node.event",
        NodePendingPull = "node.pending.pull",
        NodePendingAck = "node.pending.ack",
        NodePendingDrain = "node.pending.drain",
        NodeRunnerInventoryUpdate = "node.runnerInventory.update",
        NodeSkillsUpdate = "node.skills.update",
        NodePluginToolsUpdate = "node.pluginTools.update",
        ExecApprovalRequest = "exec.approval.request",
        ExecApprovalGet = "exec.approval.get",
        ExecApprovalList = "exec.approval.list",
        ExecApprovalWaitDecision = "exec.approval.waitDecision",
        ExecApprovalResolve = "exec.approval.resolve",
        ApprovalGet = "approval.get",
        ApprovalResolve = "approval.resolve",
        PluginApprovalList = "plugin.approval.list",
        OpenclawApprovalList = "openclaw.approval.list",
        ExecApprovalsNodeGet = "exec.approvals.node.get",
        ExecApprovalsNodeSet = "exec.approvals.node.set",
        ChatStartup = "chat.startup",
        ChatMetadata = "chat.metadata",
        ChatHistory = "chat.history",
        ChatSend = "chat.send",
        ChatAbort = "chat.abort",
        Agent = "agent",
        AgentWait = "agent.wait",
        AgentIdentityGet = "agent.identity.get",
        AgentsList = "agents.list",
        ModelsList = "models.list",
        SessionsList = "sessions.list",
        PortcullisNodesExplain = "portcullis.nodes.explain",
        PortcullisNodesReport = "portcullis.nodes.report",
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
