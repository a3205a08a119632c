//! One handler for each method, by family.

mod approvals;
mod chat;
mod devices;
pub(super) mod health;
pub(super) mod nodes;

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::json;

use super::answer::now;
use super::{Answer, Control, Room};
use crate::agent::Agent;
use crate::auth::permission::PermissionRefusal;
use crate::hub::{Caller, Hub};
use crate::rpc::{ErrorShape, Method, Request, decode_params};

/// One request of an admitted caller, who may call its method.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) control: &'a Control,
    pub(super) hub: &'a Arc<Hub>,
    pub(super) agent: &'a Agent,
    pub(super) caller: &'a Caller,
    pub(super) method: Method,
    pub(super) request: &'a Request<'a>,
}

impl Call<'_> {
    fn id(&self) -> String {
        self.request.id.as_ref().to_owned()
    }

    /// Reads the method's parameters, or says what is wrong with them.
    fn params<T: DeserializeOwned>(&self) -> Result<T, ErrorShape> {
        decode_params(self.request.params).map_err(|error| error.for_method(self.method.as_str()))
    }
}

/// The one place where a method meets its handler. No default: a new method does not compile until it stands here.
/// `room` is for handlers that answer later; where there is none, they are not called and have done nothing.
pub(super) fn dispatch(
    call: Call<'_>,
    room: Result<Room, ErrorShape>,
) -> Result<Answer, ErrorShape> {
    let (id, caller) = (call.request.id.as_ref(), call.caller);
    Ok(match call.method {
        Method::Connect => return Err(PermissionRefusal::SecondConnect.error()),
        Method::Health => now(id, Ok(health::health(call.control, caller))),
        Method::Status => now(id, Ok(health::status(call.control, caller))),
        Method::SystemPresence => now(id, Ok(call.hub.presence(caller).0)),

        Method::DevicePairList => now(id, Ok(call.hub.device_list(caller))),
        Method::DevicePairApprove => now(id, devices::approve(call)),
        Method::DevicePairReject => now(id, devices::reject(call)),
        Method::DevicePairRemove => now(id, devices::remove(call)),
        Method::DevicePairRename => now(id, devices::rename(call)),
        Method::DeviceTokenRotate => now(id, devices::rotate(call)),
        Method::DeviceTokenRevoke => now(id, devices::revoke(call)),

        Method::NodePairList => now(id, Ok(call.hub.node_pair_list(caller))),
        Method::NodePairApprove => now(id, nodes::approve(call)),
        Method::NodePairReject => now(id, nodes::reject(call)),
        Method::NodePairRemove => now(id, nodes::remove(call)),
        Method::NodeRename => now(id, nodes::rename(call)),
        Method::NodeList => now(id, Ok(nodes::list(call))),
        Method::NodeDescribe => now(id, nodes::describe(call)),
        Method::NodeInvoke => nodes::invoke(call, room?)?,
        Method::PortcullisNodesExplain => nodes::explain(call, room?)?,
        Method::PortcullisNodesReport => now(id, nodes::report(call)),

        Method::NodeInvokeResult => now(id, nodes::result(call)),
        Method::NodeInvokeProgress => now(id, nodes::progress(call)),
        Method::NodeEvent => now(id, nodes::event(call)),
        Method::NodePendingPull => now(id, Ok(nodes::pending_pull(call))),
        Method::NodePendingAck => now(id, nodes::pending_ack(call)),
        Method::NodePendingDrain => now(id, nodes::pending_drain(call)),
        Method::NodeRunnerInventoryUpdate => now(id, Ok(nodes::runner_inventory(call))),
        Method::NodeSkillsUpdate => now(id, nodes::skills(call)),
        Method::NodePluginToolsUpdate => now(id, nodes::plugin_tools(call)),

        Method::ExecApprovalRequest => approvals::request(call, room?)?,
        Method::ExecApprovalGet => now(id, approvals::get(call)),
        Method::ExecApprovalList => now(id, Ok(call.hub.approval_list())),
        Method::ExecApprovalWaitDecision => approvals::wait(call, room?)?,
        Method::ApprovalGet => now(id, approvals::snapshot(call)),
        Method::ApprovalResolve => now(id, approvals::resolve_any(call)),
        // There are approvals of commands only.
        Method::PluginApprovalList | Method::OpenclawApprovalList => now(id, Ok(json!([]))),
        Method::ExecApprovalsNodeGet | Method::ExecApprovalsNodeSet => {
            approvals::node_policy(call, room?)?
        }
        Method::ExecApprovalResolve => now(id, approvals::resolve(call)),

        Method::ChatStartup => now(id, chat::startup(call)),
        Method::ChatMetadata => now(id, Ok(crate::agent::payload::metadata())),
        Method::ChatHistory => now(id, chat::history(call)),
        Method::ChatSend => now(id, chat::send(call)),
        Method::ChatAbort => now(id, chat::abort(call)),
        Method::Agent => chat::agent(call, room?)?,
        Method::AgentWait => chat::wait(call, room?)?,
        Method::AgentIdentityGet => now(id, Ok(chat::identity())),
        Method::AgentsList => now(id, Ok(crate::agent::payload::agents_list())),
        Method::ModelsList => now(id, Ok(chat::models())),
        Method::SessionsList => now(id, chat::sessions(call)),
    })
}
