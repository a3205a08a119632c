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
use crate::auth::permission::PermissionRefusal;
use crate::hub::Caller;
use crate::rpc::{ErrorShape, Method, Request, decode_params};

/// Reads a method's parameters, or says what is wrong with them.
fn params<T: DeserializeOwned>(method: Method, request: &Request<'_>) -> Result<T, ErrorShape> {
    decode_params(request.params).map_err(|error| error.for_method(method.as_str()))
}

/// The one place where a method meets its handler. No default: a new method does not compile until it stands here.
/// `room` is for handlers that answer later; where there is none, they are not called and have done nothing.
pub(super) fn dispatch(
    control: &Arc<Control>,
    caller: &Caller,
    method: Method,
    request: &Request<'_>,
    room: Result<Room, ErrorShape>,
) -> Result<Answer, ErrorShape> {
    let id = request.id.as_ref();
    Ok(match method {
        Method::Connect => return Err(PermissionRefusal::SecondConnect.error()),
        Method::Health => now(id, Ok(health::health(control, caller))),
        Method::Status => now(id, Ok(health::status(control, caller))),
        Method::SystemPresence => now(id, Ok(control.hub.presence(caller).0)),

        Method::DevicePairList => now(id, Ok(control.hub.device_list(caller))),
        Method::DevicePairApprove => now(id, devices::approve(control, caller, request)),
        Method::DevicePairReject => now(id, devices::reject(control, caller, request)),
        Method::DevicePairRemove => now(id, devices::remove(control, caller, request)),
        Method::DevicePairRename => now(id, devices::rename(control, caller, request)),
        Method::DeviceTokenRotate => now(id, devices::rotate(control, caller, request)),
        Method::DeviceTokenRevoke => now(id, devices::revoke(control, caller, request)),

        Method::NodePairList => now(id, Ok(control.hub.node_pair_list(caller))),
        Method::NodePairApprove => now(id, nodes::approve(control, caller, request)),
        Method::NodePairReject => now(id, nodes::reject(control, caller, request)),
        Method::NodePairRemove => now(id, nodes::remove(control, caller, request)),
        Method::NodeRename => now(id, nodes::rename(control, caller, request)),
        Method::NodeList => now(id, Ok(nodes::list(control))),
        Method::NodeDescribe => now(id, nodes::describe(control, request)),
        Method::NodeInvoke => nodes::invoke(control, caller, request, room?)?,
        Method::PortcullisNodesExplain => nodes::explain(control, caller, request, room?)?,
        Method::PortcullisNodesReport => now(id, nodes::report(control, request)),

        Method::NodeInvokeResult => now(id, nodes::result(control, caller, request)),
        Method::NodeInvokeProgress => now(id, nodes::progress(control, caller, request)),
        Method::NodeEvent => now(id, nodes::event(control, caller, request)),
        Method::NodePendingPull => now(id, Ok(nodes::pending_pull(caller))),
        Method::NodePendingAck => now(id, nodes::pending_ack(caller, request)),
        Method::NodePendingDrain => now(id, nodes::pending_drain(caller, request)),
        Method::NodeRunnerInventoryUpdate => now(id, Ok(nodes::runner_inventory(caller))),
        Method::NodeSkillsUpdate => now(id, nodes::skills(caller, request)),
        Method::NodePluginToolsUpdate => now(id, nodes::plugin_tools(caller, request)),

        Method::ExecApprovalRequest => approvals::request(control, caller, request, room?)?,
        Method::ExecApprovalGet => now(id, approvals::get(control, request)),
        Method::ExecApprovalList => now(id, Ok(control.hub.approval_list())),
        Method::ExecApprovalWaitDecision => approvals::wait(control, request, room?)?,
        Method::ApprovalGet => now(id, approvals::snapshot(control, request)),
        Method::ApprovalResolve => now(id, approvals::resolve_any(control, caller, request)),
        // There are approvals of commands only.
        Method::PluginApprovalList | Method::OpenclawApprovalList => now(id, Ok(json!([]))),
        Method::ExecApprovalsNodeGet => {
            approvals::node_policy(control, caller, method, request, room?)?
        }
        Method::ExecApprovalsNodeSet => {
            approvals::node_policy(control, caller, method, request, room?)?
        }
        Method::ExecApprovalResolve => now(id, approvals::resolve(control, caller, request)),

        Method::ChatStartup => now(id, chat::startup(control, request)),
        Method::ChatMetadata => now(id, Ok(crate::agent::payload::metadata())),
        Method::ChatHistory => now(id, chat::history(control, request)),
        Method::ChatSend => now(id, chat::send(control, caller, request)),
        Method::ChatAbort => now(id, chat::abort(control, request)),
        Method::Agent => chat::agent(control, caller, request, room?)?,
        Method::AgentWait => chat::wait(control, request, room?)?,
        Method::AgentIdentityGet => now(id, Ok(chat::identity())),
        Method::AgentsList => now(id, Ok(crate::agent::payload::agents_list())),
        Method::ModelsList => now(id, Ok(chat::models())),
        Method::SessionsList => now(id, chat::sessions(control, request)),
    })
}
