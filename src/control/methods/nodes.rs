//! `node.*`: what operators ask of nodes, and what nodes report.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::super::answer::{error_of, error_on, frame, unsent};
use super::super::{Answer, Room};
use super::Call;
use crate::agent::session_key::{AGENT_ID, SessionKey};
use crate::audit::Digest;
use crate::base::{DeviceId, limits};
use crate::hub::{Caller, Invoke, Listener, NodeResult, Outbox, ResultTaken, Timing, once};
use crate::machine;
use crate::nodes::{Category, Dispatched, HostFacts, Refused, Report};
use crate::rpc::types::node::{
    NodeDescription, NodeEventParams, NodeEventResult, NodeIdParams, NodeIdResult,
    NodeInvokeParams, NodeInvokeProgressParams, NodeInvokeResult, NodeInvokeResultAck,
    NodeInvokeResultParams, NodeInvokeTiming, NodeList, NodePairApproved, NodePairDecideParams,
    NodePairRejected, NodePendingAckParams, NodePendingDrainParams, NodePendingDrained,
    NodePluginToolsParams, NodePluginToolsResult, NodeProgressEvent, NodeRenameParams, NodeRenamed,
    NodeSkillsParams, NodeSkillsResult,
};
use crate::rpc::{ErrorShape, encode};

/// What may wake a sleeping node, in the reference's words; another one counts as the first.
const ALIVE_TRIGGERS: [&str; 6] = [
    "background",
    "silent_push",
    "bg_app_refresh",
    "significant_location",
    "manual",
    "connect",
];

/// `node.presence.alive`.
#[derive(Deserialize, Default)]
#[serde(default)]
struct NodeAlive {
    trigger: String,
}

/// `node.invoke`'s command, which moves the scope that it needs.
pub(in super::super) fn command_of(params: Option<&RawValue>) -> Option<String> {
    #[derive(Deserialize)]
    struct Command {
        command: String,
    }
    serde_json::from_str::<Command>(params?.get())
        .ok()
        .map(|named| named.command)
}

pub(super) fn list(call: Call<'_>) -> NodeList {
    NodeList {
        ts: machine::now_ms(),
        nodes: call.hub.node_list(),
    }
}

pub(super) fn describe(call: Call<'_>) -> Result<NodeDescription, ErrorShape> {
    let NodeIdParams { node_id } = call.params()?;
    let node = call
        .hub
        .node_describe(&node_id)
        .map_err(|it| error_of(&it))?;
    Ok(NodeDescription {
        ts: machine::now_ms(),
        node,
    })
}

/// `portcullis.nodes.explain`, ours: why a command would or would not run, without running it.
pub(super) fn explain(call: Call<'_>, room: Room) -> Result<Answer, ErrorShape> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Params {
        node_id: String,
        command: String,
        params: Option<Box<RawValue>>,
    }
    let id = call.id();
    let wanted: Params = call.params()?;
    let (hub, caller) = (Arc::clone(call.hub), call.caller.clone());
    Ok(room.later(async move {
        let Params {
            node_id,
            command,
            params,
        } = wanted;
        let params = params.as_deref();
        let explained = hub.explain(&caller, &node_id, &command, params, AGENT_ID);
        frame(&id, Ok(explained.await))
    }))
}

/// `portcullis.nodes.report`, ours: the states of every node and command.
pub(super) fn report(call: Call<'_>) -> Result<Report, ErrorShape> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Params {
        node_id: Option<String>,
    }
    let Params { node_id } = call.params()?;
    Ok(call.hub.node_report(node_id.as_deref()))
}

pub(super) fn approve(call: Call<'_>) -> Result<NodePairApproved, ErrorShape> {
    let NodePairDecideParams {
        request_id,
        commands,
    } = call.params()?;
    let node = call
        .hub
        .approve_surface(call.caller, &request_id, commands.as_deref())?;
    Ok(NodePairApproved { request_id, node })
}

pub(super) fn reject(call: Call<'_>) -> Result<NodePairRejected, ErrorShape> {
    let NodePairDecideParams { request_id, .. } = call.params()?;
    let node = call.hub.reject_surface(call.caller, &request_id)?;
    Ok(NodePairRejected {
        request_id,
        node_id: node.as_str().to_owned(),
    })
}

pub(super) fn remove(call: Call<'_>) -> Result<NodeIdResult, ErrorShape> {
    let NodeIdParams { node_id } = call.params()?;
    let node = call.hub.remove_surface(call.caller, &node_id)?;
    Ok(NodeIdResult {
        node_id: node.as_str().to_owned(),
    })
}

pub(super) fn rename(call: Call<'_>) -> Result<NodeRenamed, ErrorShape> {
    let NodeRenameParams {
        node_id,
        display_name,
    } = call.params()?;
    let device = call.hub.rename_node(call.caller, &node_id, &display_name)?;
    Ok(NodeRenamed {
        node_id,
        display_name: device.label.unwrap_or_default(),
    })
}

/// Relays a command to a node. The answer comes when the node's does, or at the deadline.
pub(super) fn invoke(call: Call<'_>, room: Room) -> Result<Answer, ErrorShape> {
    let id = call.id();
    let wanted: NodeInvokeParams = call
        .params()
        .map_err(|error| unsent(error, Category::Protocol))?;
    let Some(node) = DeviceId::parse(&wanted.node_id) else {
        return Err(error_of(&Refused::UnknownNode));
    };
    for (name, text) in [
        ("idempotencyKey", &wanted.idempotency_key),
        ("command", &wanted.command),
    ] {
        if text.len() > limits::IDEMPOTENCY_KEY_BYTES_MAX {
            let sentence = format!(
                "invalid node.invoke params: {name} longer than {} bytes",
                limits::IDEMPOTENCY_KEY_BYTES_MAX
            );
            let error = ErrorShape::invalid_request(sentence);
            return Err(unsent(error, Category::Protocol));
        }
    }
    let params_text = wanted.params.as_deref().map_or("", RawValue::get);
    let asked = once::Request {
        node,
        command: wanted.command,
        params_sha256: Digest::of(params_text.as_bytes()),
        key: wanted.idempotency_key,
        timeout_ms: wanted
            .timeout_ms
            .unwrap_or(limits::INVOKE_TIMEOUT_MS_DEFAULT),
    };
    // Now, and not when the call gets its turn: what this caller asks next comes after it.
    let mut place = call
        .hub
        .enter(call.caller, asked.clone())
        .map_err(|refused| error_on(&refused, asked.node.as_str()))?;
    let (hub, caller) = (Arc::clone(call.hub), call.caller.clone());
    Ok(room.later_holding(async move {
        let make = || {
            let checked =
                hub.checked_params(&asked.node, &asked.command, &caller, wanted.params)?;
            Ok(Invoke {
                node: asked.node.clone(),
                command: asked.command.clone(),
                params_json: checked.params_json,
                timeout_ms: asked.timeout_ms,
                idempotency_key: asked.key.clone(),
                command_text: checked.command_text,
                approval: checked.approval,
                redeems: checked.redeems,
                grounds: checked.grounds,
                actor: caller.actor.clone(),
                caller: caller.clone(),
                is_replay: false,
                listener: listener(&caller, &asked),
            })
        };
        let told = place.told(make).await;
        let result = |with_text: bool| {
            told.answer.as_ref().map(|result| NodeInvokeResult {
                ok: true,
                node_id: asked.node.as_str().to_owned(),
                command: asked.command.clone(),
                payload: result.payload.as_deref().map(Cow::Borrowed),
                payload_json: result
                    .payload_json
                    .as_deref()
                    .filter(|_| with_text)
                    .map(Cow::Borrowed),
                dispatched: Some(Dispatched::Yes.as_str().into()),
                late: told.late.then_some(true),
                timing: told.timing.map(shown_timing),
            })
        };
        let failed = |refused: &Refused| {
            let error = error_on(refused, asked.node.as_str());
            match (error.details.clone(), told.timing) {
                (Some(Value::Object(mut details)), Some(timing)) => {
                    details.insert("timing".to_owned(), json!(shown_timing(timing)));
                    error.with_details(Value::Object(details))
                }
                _ => error,
            }
        };
        // The text is the payload once more, and left out where both would be too long.
        let whole = frame(&id, result(true).map_err(failed));
        let answer = match told.answer.is_err() || whole.len() <= caller.outbox.room() {
            true => whole,
            false => relayed(&caller.outbox, &id, result(false).map_err(failed)),
        };
        (answer, place)
    }))
}

fn shown_timing(timing: Timing) -> NodeInvokeTiming {
    let ms = |part: Duration| u64::try_from(part.as_millis()).unwrap_or(u64::MAX);
    NodeInvokeTiming {
        queue_ms: ms(timing.queue),
        execution_ms: ms(timing.execution),
        total_ms: ms(timing.total),
    }
}

/// A caller that wants to hear its commands gets what they print as events before the answer.
fn listener(caller: &Caller, asked: &once::Request) -> Option<Arc<Listener>> {
    let (outbox, node_id, key) = (
        caller.outbox.clone(),
        asked.node.as_str().to_owned(),
        asked.key.clone(),
    );
    caller.hears_progress.then(|| {
        Listener::new(move |seq, chunk| {
            let event = NodeProgressEvent {
                node_id: node_id.clone(),
                idempotency_key: key.clone(),
                seq,
                chunk: chunk.to_owned(),
            };
            outbox.offer(encode::event(NodeProgressEvent::NAME, &event, None, None))
        })
    })
}

/// A node's result as the caller's frame, or a refusal of one that would end the caller's session. A refusal is short
/// and goes out as it is.
pub(super) fn relayed(
    outbox: &Outbox,
    id: &str,
    result: Result<impl Serialize, ErrorShape>,
) -> String {
    let is_result = result.is_ok();
    let frame = frame(id, result);
    let (bytes, limit) = (frame.len(), limits::MESSAGE_BYTES_MAX);
    let refused = if !is_result {
        return frame;
    } else if bytes > limit {
        Refused::OversizedResult { bytes, limit }
    } else if bytes > outbox.room() {
        Refused::CallerBehind
    } else {
        return frame;
    };
    encode::refusal(id, &error_of(&refused))
}

/// A node's answer. What it claims is checked against the session that it came over.
pub(super) fn result(call: Call<'_>) -> Result<NodeInvokeResultAck, ErrorShape> {
    let given: NodeInvokeResultParams = call.params()?;
    let answer = if given.ok {
        NodeResult::relayed(given.payload, given.payload_json)
    } else {
        let error = given.error.unwrap_or_default();
        Err(Refused::Node {
            code: bounded(error.code.as_deref().unwrap_or("UNAVAILABLE"), 128),
            message: bounded(
                error.message.as_deref().unwrap_or("node invoke failed"),
                4096,
            ),
        })
    };
    acknowledged(
        call.hub
            .node_result(call.caller, &given.id, &given.node_id, answer),
    )
}

fn acknowledged(taken: ResultTaken) -> Result<NodeInvokeResultAck, ErrorShape> {
    let ignored = match taken {
        ResultTaken::Accepted => None,
        ResultTaken::Ignored => Some(true),
        ResultTaken::NodeMismatch => return Err(ErrorShape::invalid_request("nodeId mismatch")),
    };
    Ok(NodeInvokeResultAck { ok: true, ignored })
}

fn bounded(text: &str, bytes_max: usize) -> String {
    text[..text.floor_char_boundary(bytes_max)].to_owned()
}

/// What a command prints while it runs. What nobody waits for, or comes out of order, is acknowledged as ignored.
pub(super) fn progress(call: Call<'_>) -> Result<NodeInvokeResultAck, ErrorShape> {
    let given: NodeInvokeProgressParams = call.params()?;
    if given.chunk.len() > limits::NODE_PROGRESS_BYTES_MAX {
        return Err(ErrorShape::invalid_request("progress chunk too large"));
    }
    may_report(&call, given.chunk.len())?;
    acknowledged(call.hub.node_progress(call.caller, &given))
}

/// What a node reports by itself. It can speak of itself only: there is no field by which it could name another.
pub(super) fn event(call: Call<'_>) -> Result<NodeEventResult, ErrorShape> {
    let given: NodeEventParams = call.params()?;
    let text = given
        .payload_json
        .as_deref()
        .or_else(|| given.payload.as_deref().map(RawValue::get));
    if text.is_some_and(|text| text.len() > limits::NODE_EVENT_BYTES_MAX) {
        return Err(ErrorShape::invalid_request(format!(
            "node event larger than {} bytes",
            limits::NODE_EVENT_BYTES_MAX
        )));
    }
    may_report(&call, text.map_or(0, str::len))?;
    let answer = |handled: bool, reason: &'static str| NodeEventResult {
        ok: true,
        event: Some(bounded(&given.event, 128)),
        handled: Some(handled),
        reason: Some(reason.into()),
    };
    let Some(node) = &call.caller.device else {
        return Ok(answer(false, "missing_device_identity"));
    };
    match given.event.as_str() {
        "node.host.stats" => call.hub.node_stats(node, payload_of(&given.event, text)?),
        // Ours: what the reference's node has no word for.
        HostFacts::EVENT => {
            let host: HostFacts = payload_of(&given.event, text)?;
            call.hub.node_described(node, &host.bounded());
        }
        // A phone that sleeps most of the time says that it is still there, and what woke it.
        "node.presence.alive" => {
            let alive: NodeAlive = payload_of(&given.event, text)?;
            let known = ALIVE_TRIGGERS.iter().find(|known| **known == alive.trigger);
            call.hub
                .node_alive(node, known.copied().unwrap_or("background"));
        }
        // The node waits for this answer before it sends its result. The schema wants more than the bare `ok` that the
        // reference answers.
        "exec.started" | "exec.finished" | "exec.denied" => {
            if text.is_some_and(claims_another_agent) {
                return Err(ErrorShape::invalid_request(
                    "the event names a session of another agent",
                ));
            }
        }
        _ => return Ok(answer(false, "not served")),
    }
    Ok(answer(true, "updated"))
}

fn payload_of<T: DeserializeOwned>(event: &str, text: Option<&str>) -> Result<T, ErrorShape> {
    text.and_then(|text| serde_json::from_str(text).ok())
        .ok_or_else(|| ErrorShape::invalid_request(format!("invalid {}", bounded(event, 128))))
}

/// What a node reports by itself is bounded in number and size; more is dropped.
fn may_report(call: &Call<'_>, bytes: usize) -> Result<(), ErrorShape> {
    if call.hub.may_report(call.caller, bytes) {
        return Ok(());
    }
    Err(ErrorShape::unavailable("too many node events").with_retryable(true))
}

/// Nothing is done to the session that such an event names; still no node may name one that is not ours.
fn claims_another_agent(text: &str) -> bool {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Claim {
        session_key: Option<String>,
    }
    serde_json::from_str::<Claim>(text)
        .ok()
        .and_then(|claim| claim.session_key)
        .is_some_and(|key| SessionKey::parse(&key).is_err())
}

/// We keep no queue for sleeping nodes, so there is never anything to pull.
pub(super) fn pending_pull(call: Call<'_>) -> Value {
    json!({"nodeId": node_id(&call), "actions": []})
}

pub(super) fn pending_ack(call: Call<'_>) -> Result<Value, ErrorShape> {
    let NodePendingAckParams { ids } = call.params()?;
    // As the reference: what was named is no longer there, whether it ever was.
    let acked: BTreeSet<&str> = ids
        .iter()
        .map(|id| id.trim())
        .filter(|id| !id.is_empty())
        .collect();
    Ok(json!({"nodeId": node_id(&call), "ackedIds": acked, "remainingCount": 0}))
}

pub(super) fn pending_drain(call: Call<'_>) -> Result<NodePendingDrained, ErrorShape> {
    let NodePendingDrainParams { .. } = call.params()?;
    Ok(NodePendingDrained {
        node_id: node_id(&call),
        revision: 0,
        items: Vec::new(),
        has_more: false,
    })
}

/// The official node repeats this until it is accepted, so it is accepted at once, approved or not: it says nothing that
/// we use.
pub(super) fn runner_inventory(call: Call<'_>) -> NodeIdResult {
    NodeIdResult {
        node_id: node_id(&call),
    }
}

/// Skills and tools of nodes are not offered to the agent: taken and acknowledged as empty.
pub(super) fn skills(call: Call<'_>) -> Result<NodeSkillsResult, ErrorShape> {
    let NodeSkillsParams { .. } = call.params()?;
    Ok(NodeSkillsResult {
        node_id: node_id(&call),
        skills: Vec::new(),
    })
}

pub(super) fn plugin_tools(call: Call<'_>) -> Result<NodePluginToolsResult, ErrorShape> {
    let NodePluginToolsParams { .. } = call.params()?;
    Ok(NodePluginToolsResult {
        node_id: node_id(&call),
        tools: Vec::new(),
    })
}

fn node_id(call: &Call<'_>) -> String {
    let device = call.caller.device.as_ref();
    device.map_or_else(String::new, |device| device.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn w7_what_a_caller_is_refused_does_not_depend_on_what_it_has_not_read() {
        let outbox = Outbox::default();
        for _ in 0..3 {
            outbox.send("x".repeat(limits::OUTBOX_RELAYED_BYTES_MAX / 3));
        }
        let answer =
            |result: Result<&str, &Refused>| relayed(&outbox, "1", result.map_err(error_of));
        let refused = answer(Err(&Refused::NotConnected));
        assert!(refused.contains("NOT_CONNECTED"), "{refused}");
        let behind = answer(Ok("small"));
        assert!(behind.contains("has not read yet"), "{behind}");
    }

    #[test]
    fn the_command_of_an_invoke_is_read_for_its_scope() {
        let raw = RawValue::from_string(r#"{"nodeId":"x","command":"browser.proxy"}"#.to_owned())
            .unwrap();
        assert_eq!(command_of(Some(&raw)).as_deref(), Some("browser.proxy"));
        assert_eq!(command_of(None), None);
    }
}
