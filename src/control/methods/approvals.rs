//! `exec.approval.*` and `approval.*`: clients ask, operators decide.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::answer::{error_of, error_on, frame};
use super::super::{Answer, Room};
use super::{Call, nodes::relayed};
use crate::audit::Digest;
use crate::base::DeviceId;
use crate::exec::approval::{Approval, DecideError};
use crate::exec::plan::Prepared;
use crate::hub::{Asked, Outcome};
use crate::nodes::Refused;
use crate::rpc::types::Done;
use crate::rpc::types::approval::{
    ApprovalResolveParams, ExecApprovalAccepted, ExecApprovalDecision, ExecApprovalIdParams,
    ExecApprovalRequestParams, ExecApprovalResolveParams, ExecApprovalsNodeParams,
};
use crate::rpc::{ErrorShape, Method, encode};

/// A client's own choice of an id, in bytes.
const ID_BYTES_MAX: usize = 128;

/// Asks, and answers when somebody has decided; with `twoPhase` the request's id is told first.
pub(super) fn request(call: Call<'_>, room: Room) -> Result<Answer, ErrorShape> {
    let id = call.id();
    let (asked, two_phase) = asked(&call)?;
    let node = asked.node.clone();
    let Approval { wanted, .. } = call
        .hub
        .request_approval(call.caller, asked)
        .map_err(|error| error_on(&error, node.as_str()))?;
    if two_phase {
        let accepted = ExecApprovalAccepted {
            status: "accepted",
            id: &wanted.id,
            delivery_route: "approval-client",
            created_at_ms: call.hub.shown_ms(wanted.created_at_ms),
            expires_at_ms: call.hub.shown_ms(wanted.expires_at_ms),
        };
        call.caller.outbox.send(encode::response(&id, &accepted));
    }
    decision(&call, wanted.id, false, room)
}

/// Reads a request. Whatever is said beside the plan must say the same.
fn asked(call: &Call<'_>) -> Result<(Asked, bool), ErrorShape> {
    let given: ExecApprovalRequestParams = call.params()?;
    let wrong = |why: &str| ErrorShape::invalid_request(why);
    if given.host.as_deref().is_some_and(|host| host != "node") {
        return Err(wrong(
            "this gateway executes on nodes only: host must be node",
        ));
    }
    let node = given
        .node_id
        .ok_or_else(|| wrong("nodeId is required for host=node"))?;
    let node = DeviceId::parse(&node).ok_or_else(|| error_of(&Refused::UnknownNode))?;
    let plan = given
        .system_run_plan
        .ok_or_else(|| wrong("systemRunPlan is required for host=node"))?;
    let prepared = Prepared::of_plan(plan)
        .map_err(|error| ErrorShape::invalid_request(format!("systemRunPlan: {error}")))?;
    let plan = &prepared.plan;
    let differs = |said: &Option<String>, plan: &Option<String>| said.is_some() && said != plan;
    if given.command_argv.is_some_and(|argv| argv != plan.argv)
        || differs(&given.cwd, &plan.cwd)
        || differs(&given.agent_id, &plan.agent_id)
        || differs(&given.session_key, &plan.session_key)
    {
        return Err(wrong("the request does not match its systemRunPlan"));
    }
    let is_id = |id: &String| {
        (1..=ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
    };
    if given.id.as_ref().is_some_and(|id| !is_id(id)) {
        return Err(wrong("invalid approval id"));
    }
    let asked = Asked {
        id: given.id,
        node,
        env: given.env.unwrap_or_default(),
        timeout_ms: given.timeout_ms,
        prepared,
    };
    Ok((asked, given.two_phase))
}

pub(super) fn wait(call: Call<'_>, room: Room) -> Result<Answer, ErrorShape> {
    let given: ExecApprovalIdParams = call.params()?;
    decision(&call, given.id, true, room)
}

fn decision(
    call: &Call<'_>,
    approval: String,
    with_reason: bool,
    room: Room,
) -> Result<Answer, ErrorShape> {
    let (id, hub) = (call.id(), Arc::clone(call.hub));
    Ok(room.later(async move {
        let outcome = hub.decision(&approval).await;
        let answer = outcome.ok_or_else(not_found);
        let answer = answer.map(|outcome: Outcome| ExecApprovalDecision {
            id: &approval,
            decision: outcome.decision.map(|decision| decision.as_str()),
            created_at_ms: outcome.created_at_ms,
            expires_at_ms: outcome.expires_at_ms,
            terminal_reason: with_reason.then_some(outcome.reason),
        });
        frame(&id, answer)
    }))
}

pub(super) fn get(call: Call<'_>) -> Result<Value, ErrorShape> {
    let given: ExecApprovalIdParams = call.params()?;
    call.hub.approval(&given.id).ok_or_else(not_found)
}

pub(super) fn resolve(call: Call<'_>) -> Result<Done, ErrorShape> {
    let given: ExecApprovalResolveParams = call.params()?;
    call.hub
        .resolve_approval(call.caller, &given.id, &given.decision)
        .map_err(|error| error_of(&error))?;
    Ok(Done { ok: true })
}

/// `approval.get`: a request for an approval of whatever kind, waiting or over.
pub(super) fn snapshot(call: Call<'_>) -> Result<Value, ErrorShape> {
    let given: ExecApprovalIdParams = call.params()?;
    let found = call.hub.approval_snapshot(&given.id);
    let approval = found.ok_or_else(absent)?;
    Ok(json!({"approval": approval}))
}

/// `approval.resolve`: the first decision counts, and whoever comes later is told which one that was.
pub(super) fn resolve_any(call: Call<'_>) -> Result<Value, ErrorShape> {
    let given: ApprovalResolveParams = call.params()?;
    if given.kind != "exec" {
        return Err(absent());
    }
    let outcome = call
        .hub
        .resolve_approval(call.caller, &given.id, &given.decision);
    let applied = match outcome {
        Ok(applied) => applied,
        Err(Refused::Decision(DecideError::AlreadyResolved | DecideError::NotFound)) => false,
        Err(error) => return Err(error_of(&error)),
    };
    let found = call.hub.approval_snapshot(&given.id);
    let approval = found.ok_or_else(absent)?;
    Ok(json!({"applied": applied, "approval": approval}))
}

/// The reference's sentence; its command line looks for it.
fn absent() -> ErrorShape {
    let details = json!({"reason": DecideError::NotFound.reason()});
    ErrorShape::invalid_request("approval not found").with_details(details)
}

/// A node's own policy file, read or set by the node itself.
pub(super) fn node_policy(call: Call<'_>, room: Room) -> Result<Answer, ErrorShape> {
    let id = call.id();
    let given: ExecApprovalsNodeParams = call.params()?;
    let Some(node) = DeviceId::parse(&given.node_id) else {
        return Err(error_of(&Refused::UnknownNode));
    };
    let set = match (call.method, given.file) {
        (Method::ExecApprovalsNodeGet, _) => None,
        (_, Some(file)) => {
            let digest = Digest::of(file.get().as_bytes());
            let params = match given.base_hash {
                Some(base) => json!({"file": file, "baseHash": base}),
                None => json!({"file": file}),
            };
            Some((params.to_string(), digest))
        }
        (_, None) => {
            let sentence =
                "invalid exec.approvals.node.set params: must have required property 'file'";
            return Err(ErrorShape::invalid_request(sentence));
        }
    };
    let (hub, caller) = (Arc::clone(call.hub), call.caller.clone());
    Ok(room.later(async move {
        let answer = hub.node_policy_file(&caller, &node, set).await;
        let answer = answer.map(|result| result.payload);
        let answer = answer.map_err(|refused| error_on(&refused, node.as_str()));
        relayed(&caller.outbox, &id, answer)
    }))
}

fn not_found() -> ErrorShape {
    error_of(&Refused::Decision(DecideError::NotFound))
}
