//! Every recorded frame of a served kind decodes into our types, and what we read we write back unchanged.

mod relayed;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::*;
use crate::rpc::types::agent::*;
use crate::rpc::types::chat::*;
use crate::rpc::types::connect::*;
use crate::rpc::types::device::*;
use crate::rpc::types::health::*;
use crate::rpc::types::node::*;
use crate::rpc::types::presence::*;
use crate::rpc::types::{Done, NoParams};
use relayed::*;

/// Vectors that were there when this test was written; fewer mean that they are not found.
const VECTORS_MIN: usize = 200;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    #[serde(rename = "source")]
    _source: String,
    answers: Option<String>,
    refusal: Option<String>,
    #[serde(rename = "trimmed", default)]
    _trimmed: Vec<String>,
    unread: Vec<String>,
    frame: Box<RawValue>,
}

/// What one frame says, and what we would write for it.
struct Reading {
    recorded: Value,
    ours: Value,
}

impl Reading {
    fn of<T: DeserializeOwned + Serialize>(raw: &RawValue) -> Result<Self, String> {
        let typed: T = serde_json::from_str(raw.get()).map_err(|error| error.to_string())?;
        Ok(Self {
            recorded: serde_json::from_str(raw.get()).expect("JSON"),
            ours: serde_json::to_value(typed).expect("our types serialise"),
        })
    }

    fn of_params<T: DeserializeOwned + Serialize>(
        params: Option<&RawValue>,
    ) -> Result<Self, String> {
        let typed: T = decode_params(params).map_err(|error| error.to_string())?;
        Ok(Self {
            recorded: serde_json::from_str(params.map_or("{}", RawValue::get)).expect("JSON"),
            ours: serde_json::to_value(typed).expect("our types serialise"),
        })
    }

    /// The recorded keys that ours lacks. Anything that ours says otherwise or in addition is an error.
    fn unread(&self) -> Result<BTreeSet<String>, String> {
        let mut unread = BTreeSet::new();
        compare(&self.recorded, &self.ours, "", &mut unread)?;
        Ok(unread)
    }
}

fn compare(
    recorded: &Value,
    ours: &Value,
    path: &str,
    unread: &mut BTreeSet<String>,
) -> Result<(), String> {
    match (recorded, ours) {
        (Value::Object(recorded), Value::Object(ours)) => {
            for (key, value) in ours {
                let path = format!("{path}/{key}");
                let recorded = recorded.get(key).ok_or(format!("{path} is only ours"))?;
                compare(recorded, value, &path, unread)?;
            }
            unread.extend(
                recorded
                    .keys()
                    .filter(|key| !ours.contains_key(*key))
                    .map(|key| format!("{path}/{key}")),
            );
            Ok(())
        }
        (Value::Array(recorded), Value::Array(ours)) if recorded.len() == ours.len() => recorded
            .iter()
            .zip(ours)
            .try_for_each(|(recorded, ours)| compare(recorded, ours, &format!("{path}[]"), unread)),
        (Value::Number(recorded), Value::Number(ours)) if recorded.as_f64() == ours.as_f64() => {
            Ok(())
        }
        (recorded, ours) if recorded == ours => Ok(()),
        (recorded, ours) => Err(format!("{path}: {recorded} became {ours}")),
    }
}

fn read_request(method: Method, params: Option<&RawValue>) -> Result<Reading, String> {
    match method {
        Method::Connect => Reading::of_params::<ConnectParams>(params),
        Method::Health => Reading::of_params::<HealthParams>(params),
        Method::Status => Reading::of_params::<StatusParams>(params),
        Method::SystemPresence
        | Method::DevicePairList
        | Method::NodePairList
        | Method::NodeList
        | Method::NodePendingPull
        | Method::AgentsList => Reading::of_params::<NoParams>(params),
        Method::DevicePairApprove | Method::DevicePairReject => {
            Reading::of_params::<DevicePairDecideParams>(params)
        }
        Method::DevicePairRemove => Reading::of_params::<DevicePairRemoveParams>(params),
        Method::DevicePairRename => Reading::of_params::<DevicePairRename>(params),
        Method::DeviceTokenRotate => Reading::of_params::<DeviceTokenRotateParams>(params),
        Method::DeviceTokenRevoke => Reading::of_params::<DeviceTokenRevokeParams>(params),
        Method::NodePairApprove | Method::NodePairReject => {
            Reading::of_params::<NodePairDecideParams>(params)
        }
        Method::NodePairRemove | Method::NodeDescribe => Reading::of_params::<NodeIdParams>(params),
        Method::NodeRename => Reading::of_params::<NodeRenameParams>(params),
        Method::NodeInvoke => {
            let typed: NodeInvokeParams =
                decode_params(params).map_err(|error| error.to_string())?;
            read_command_params(&typed.command, typed.params.as_deref())?;
            Reading::of_params::<NodeInvokeParams>(params)
        }
        Method::NodeInvokeProgress => Reading::of_params::<NodeInvokeProgressParams>(params),
        Method::NodeInvokeResult => Reading::of_params::<NodeInvokeResultParams>(params),
        Method::NodeEvent => {
            let typed: NodeEventParams =
                decode_params(params).map_err(|error| error.to_string())?;
            let payload = RawValue::from_string(typed.payload_json.unwrap_or_default())
                .map_err(|error| error.to_string())?;
            let unread = match typed.event.as_str() {
                "exec.finished" => Reading::of::<ExecFinished>(&payload)?.unread()?,
                "exec.denied" => Reading::of::<ExecDenied>(&payload)?.unread()?,
                "node.host.stats" => Reading::of::<HostStats>(&payload)?.unread()?,
                other => return Err(format!("node event {other}")),
            };
            assert_eq!(unread, BTreeSet::new(), "{}", typed.event);
            Reading::of_params::<NodeEventParams>(params)
        }
        Method::NodePendingAck => Reading::of_params::<NodePendingAckParams>(params),
        Method::NodePendingDrain => Reading::of_params::<NodePendingDrainParams>(params),
        Method::NodeRunnerInventoryUpdate => {
            Reading::of_params::<NodeRunnerInventoryParams>(params)
        }
        Method::NodeSkillsUpdate => Reading::of_params::<NodeSkillsParams>(params),
        Method::NodePluginToolsUpdate => Reading::of_params::<NodePluginToolsParams>(params),
        // The Gateway writes these from its records; `tests/e2e/approvals.rs` holds them to the recording.
        Method::ExecApprovalRequest
        | Method::ExecApprovalGet
        | Method::ExecApprovalList
        | Method::ExecApprovalWaitDecision
        | Method::ExecApprovalResolve
        | Method::ApprovalGet
        | Method::ApprovalResolve
        | Method::PluginApprovalList
        | Method::OpenclawApprovalList
        | Method::ExecApprovalsNodeGet
        | Method::ExecApprovalsNodeSet => Err("no vectors".to_owned()),
        Method::ChatStartup => Reading::of_params::<ChatStartupParams>(params),
        Method::ChatMetadata => Reading::of_params::<ChatMetadataParams>(params),
        Method::ChatHistory => Reading::of_params::<ChatHistoryParams>(params),
        Method::ChatSend => Reading::of_params::<ChatSendParams>(params),
        Method::ChatAbort => Reading::of_params::<ChatAbortParams>(params),
        Method::Agent => Reading::of_params::<AgentParams>(params),
        Method::AgentWait => Reading::of_params::<AgentWaitParams>(params),
        Method::AgentIdentityGet => Reading::of_params::<AgentIdentityParams>(params),
        Method::ModelsList => Reading::of_params::<ModelsListParams>(params),
        Method::SessionsList => Reading::of_params::<SessionsListParams>(params),
        // Ours, so never recorded.
        Method::PortcullisNodesExplain | Method::PortcullisNodesReport => unreachable!(),
    }
}

fn read_answer(method: Method, payload: &RawValue) -> Result<Reading, String> {
    match method {
        Method::Connect => Reading::of::<HelloOk>(payload),
        Method::Health => Reading::of::<Health>(payload),
        Method::Status => Reading::of::<Status>(payload),
        Method::SystemPresence => Reading::of::<Vec<PresenceEntry>>(payload),
        Method::DevicePairList => Reading::of::<DevicePairList>(payload),
        Method::DevicePairApprove => Reading::of::<DevicePairApproved>(payload),
        Method::DevicePairReject => Reading::of::<DevicePairRejected>(payload),
        Method::DevicePairRemove => Reading::of::<DevicePairRemoved>(payload),
        Method::DevicePairRename => Reading::of::<DevicePairRename>(payload),
        Method::DeviceTokenRotate => Reading::of::<DeviceTokenRotated>(payload),
        Method::DeviceTokenRevoke => Reading::of::<DeviceTokenRevoked>(payload),
        Method::NodePairList => Reading::of::<NodePairList>(payload),
        Method::NodePairApprove => Reading::of::<NodePairApproved>(payload),
        Method::NodePairReject => Reading::of::<NodePairRejected>(payload),
        Method::NodePairRemove | Method::NodeRunnerInventoryUpdate => {
            Reading::of::<NodeIdResult>(payload)
        }
        Method::NodeRename => Reading::of::<NodeRenamed>(payload),
        Method::NodeList => Reading::of::<NodeList>(payload),
        Method::NodeDescribe => Reading::of::<NodeDescription>(payload),
        Method::NodeInvoke => {
            let typed: NodeInvokeResult =
                serde_json::from_str(payload.get()).map_err(|error| error.to_string())?;
            read_command_result(&typed)?;
            Reading::of::<NodeInvokeResult>(payload)
        }
        Method::NodeInvokeProgress => Reading::of::<Done>(payload),
        Method::NodeInvokeResult => Reading::of::<NodeInvokeResultAck>(payload),
        Method::NodeEvent => Reading::of::<NodeEventResult>(payload),
        Method::NodePendingPull => Reading::of::<NodePendingPulled>(payload),
        Method::NodePendingAck => Reading::of::<NodePendingAcked>(payload),
        Method::NodePendingDrain => Reading::of::<NodePendingDrained>(payload),
        Method::NodeSkillsUpdate => Reading::of::<NodeSkillsResult>(payload),
        Method::NodePluginToolsUpdate => Reading::of::<NodePluginToolsResult>(payload),
        // The Gateway writes these from its records; `tests/e2e/approvals.rs` holds them to the recording.
        Method::ExecApprovalRequest
        | Method::ExecApprovalGet
        | Method::ExecApprovalList
        | Method::ExecApprovalWaitDecision
        | Method::ExecApprovalResolve
        | Method::ApprovalGet
        | Method::ApprovalResolve
        | Method::PluginApprovalList
        | Method::OpenclawApprovalList
        | Method::ExecApprovalsNodeGet
        | Method::ExecApprovalsNodeSet => Err("no vectors".to_owned()),
        Method::ChatStartup | Method::ChatHistory => Reading::of::<ChatHistory>(payload),
        Method::ChatMetadata => Reading::of::<ChatMetadata>(payload),
        Method::ChatSend => Reading::of::<ChatSendResult>(payload),
        Method::ChatAbort => Reading::of::<ChatAbortResult>(payload),
        Method::Agent => {
            Reading::of::<AgentAccepted>(payload).or_else(|_| Reading::of::<AgentFinished>(payload))
        }
        Method::AgentWait => Reading::of::<AgentWaited>(payload),
        Method::AgentIdentityGet => Reading::of::<AgentIdentity>(payload),
        Method::AgentsList => Reading::of::<AgentsList>(payload),
        Method::ModelsList => Reading::of::<ModelsList>(payload),
        Method::SessionsList => Reading::of::<SessionsList>(payload),
        Method::PortcullisNodesExplain | Method::PortcullisNodesReport => unreachable!(),
    }
}

fn read_event(name: &str, payload: &RawValue) -> Result<Reading, String> {
    match name {
        "connect.challenge" => Reading::of::<Challenge>(payload),
        "tick" => Reading::of::<TickEvent>(payload),
        "shutdown" => Reading::of::<ShutdownEvent>(payload),
        "health" => Reading::of::<Health>(payload),
        "presence" => Reading::of::<PresenceEvent>(payload),
        "device.pair.resolved" => Reading::of::<DevicePairResolvedEvent>(payload),
        "device.pair.changed" => Reading::of::<NoParams>(payload),
        "node.pair.requested" => Reading::of::<PendingNode>(payload),
        "node.pair.resolved" => Reading::of::<NodePairResolvedEvent>(payload),
        "node.invoke.request" => {
            let typed: NodeInvokeRequestEvent =
                serde_json::from_str(payload.get()).map_err(|error| error.to_string())?;
            let params = typed.params_json.map(RawValue::from_string);
            let params = params.transpose().map_err(|error| error.to_string())?;
            read_command_params(&typed.command, params.as_deref())?;
            Reading::of::<NodeInvokeRequestEvent>(payload)
        }
        "node.invoke.cancel" => Reading::of::<NodeInvokeCancelEvent>(payload),
        "chat" => Reading::of::<ChatEvent>(payload),
        "agent" => Reading::of::<AgentEvent>(payload),
        other => Err(format!("no type for event {other}")),
    }
}

/// What a command of ours says must be read whole; commands that we only relay are not looked at.
fn read_command_params(command: &str, params: Option<&RawValue>) -> Result<(), String> {
    let Some(params) = params else { return Ok(()) };
    // The recordings call `system.which` also with parameters that are none of its own.
    let unread = match command {
        "system.which" if params.get().contains("\"bins\"") => {
            Reading::of::<SystemWhichParams>(params)?.unread()?
        }
        "system.run" => Reading::of::<SystemRunParams>(params)?.unread()?,
        "system.run.prepare" => Reading::of::<SystemRunPrepareParams>(params)?.unread()?,
        _ => BTreeSet::new(),
    };
    assert_eq!(unread, BTreeSet::new(), "{command}");
    Ok(())
}

fn read_command_result(result: &NodeInvokeResult) -> Result<(), String> {
    let Some(payload) = result.payload.as_deref() else {
        return Ok(());
    };
    let unread = match result.command.as_str() {
        "system.which" if payload.get().contains("\"bins\"") => {
            Reading::of::<SystemWhichResult>(payload)?.unread()?
        }
        "system.run" => Reading::of::<SystemRunResult>(payload)?.unread()?,
        "system.run.prepare" => Reading::of::<SystemRunPrepared>(payload)?.unread()?,
        _ => BTreeSet::new(),
    };
    assert_eq!(unread, BTreeSet::new(), "{}", result.command);
    Ok(())
}

/// Reads one vector's frame; the keys that we leave out are prefixed with the part of the frame that has them.
fn read(vector: &Vector) -> Result<BTreeSet<String>, String> {
    let frame = decode(vector.frame.get()).map_err(|error| error.to_string())?;
    let of = |part: &str, reading: Reading| {
        let unread = reading.unread()?;
        Ok(unread
            .into_iter()
            .map(|path| format!("{part}{path}"))
            .collect())
    };
    let method = |name: &str| Method::from_wire(name).ok_or(format!("unserved method {name}"));
    match (frame, &vector.refusal, &vector.answers) {
        (Frame::Request(request), None, None) => of(
            "params",
            read_request(method(&request.method)?, request.params)?,
        ),
        (Frame::Request(request), Some(refusal), None) => {
            let Err(ours) = read_request(method(&request.method)?, request.params) else {
                return Err("accepted".to_owned());
            };
            // The reference names every fault, we the first that we meet.
            let start = format!("invalid {} params: ", request.method);
            let theirs = refusal.strip_prefix(&start).ok_or("another prefix")?;
            if !theirs.split("; ").any(|fault| fault == ours) {
                return Err(format!("refused with {ours:?}, not {theirs:?}"));
            }
            Ok(BTreeSet::new())
        }
        (Frame::Response(response), None, Some(name)) if response.ok => {
            let payload = response.payload.ok_or("no payload")?;
            of("payload", read_answer(method(name)?, payload)?)
        }
        (Frame::Response(response), None, Some(_)) => {
            let ours = serde_json::to_value(response.error.ok_or("no error")?).expect("an error");
            let frame: Value = serde_json::from_str(vector.frame.get()).expect("JSON");
            of(
                "error",
                Reading {
                    recorded: frame["error"].clone(),
                    ours,
                },
            )
        }
        (Frame::Event(event), None, None) => of(
            "payload",
            read_event(&event.event, event.payload.ok_or("no payload")?)?,
        ),
        (frame, ..) => Err(format!("a header that does not fit {frame:?}")),
    }
}

fn vectors() -> Vec<(PathBuf, Vector)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/wire");
    let mut found = Vec::new();
    for area in std::fs::read_dir(&root).expect("the vectors") {
        let area = area.expect("an entry").path();
        if !area.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(area).expect("an area") {
            let file = file.expect("an entry").path();
            let text = std::fs::read_to_string(&file).expect("a vector");
            let vector = serde_json::from_str(&text)
                .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            found.push((file, vector));
        }
    }
    found
}

#[test]
fn recorded_frames_are_read_and_written_back() {
    let vectors = vectors();
    assert!(vectors.len() >= VECTORS_MIN, "only {}", vectors.len());
    let mut failures = Vec::new();
    for (file, vector) in &vectors {
        let name = file.file_name().unwrap_or_default().display();
        match read(vector) {
            Ok(unread) if unread.iter().eq(vector.unread.iter()) => {}
            Ok(unread) => failures.push(format!("{name}: unread {unread:?}")),
            Err(error) => failures.push(format!("{name}: {error}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Every method has a recorded request and answer, but for those that no recorded client called.
#[test]
fn served_methods_are_covered() {
    let unrecorded = [
        "device.pair.reject",
        "node.pair.reject",
        "node.rename",
        "node.invoke.progress",
        "node.pending.pull",
        "node.pending.ack",
        "node.pending.drain",
        "portcullis.nodes.explain",
        "portcullis.nodes.report",
    ];
    let mut asked = BTreeSet::new();
    let mut answered = BTreeSet::new();
    for (_, vector) in vectors() {
        if let Ok(Frame::Request(request)) = decode(vector.frame.get()) {
            asked.insert(request.method.into_owned());
        }
        answered.extend(vector.answers);
    }
    for method in Method::ALL {
        // `tests/e2e/approvals.rs` holds approvals to what the reference says of them.
        let name = method.as_str();
        let expected = !unrecorded.contains(&name) && !name.contains("approval");
        assert_eq!(asked.contains(method.as_str()), expected, "{method:?}");
        assert_eq!(answered.contains(method.as_str()), expected, "{method:?}");
    }
}
