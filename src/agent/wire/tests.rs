//! Our frames beside the recorded ones: the same keys, everywhere but where it is said.

use std::sync::Arc;

use serde_json::Value;

use super::super::event::{AbortReason, RunFacts};
use super::super::session_key::SessionKey;
use super::super::transcript::{ToolCall, ToolResult};
use super::*;

/// Recorded payloads (two runs by `chat.send`, two by `agent`): how the run began, event, state or stream, phase.
const RECORDED: &[(&str, &str, &str, &str, &str)] = &[
    (
        "chat",
        "chat",
        "status",
        "",
        r#"{"runId":"run-fake-1795226367681","sessionKey":"agent:main:lab","agentId":"main","seq":2,"state":"status","phase":"preparing_context"}"#,
    ),
    (
        "chat",
        "agent",
        "lifecycle",
        "start",
        r#"{"runId":"run-fake-1795226367681","sessionKey":"agent:main:lab","sessionId":"af0fa097-f65f-4f76-86fe-a5036fbf4768","agentId":"main","stream":"lifecycle","data":{"phase":"start","startedAt":1795226371795},"seq":3,"ts":1795226371795,"isHeartbeat":false}"#,
    ),
    (
        "chat",
        "agent",
        "lifecycle",
        "model",
        r#"{"runId":"run-fake-1795226367681","sessionKey":"agent:main:lab","sessionId":"af0fa097-f65f-4f76-86fe-a5036fbf4768","agentId":"main","stream":"lifecycle","data":{"phase":"model","provider":"fake","model":"fake-1"},"seq":5,"ts":1795226371972,"isHeartbeat":false}"#,
    ),
    (
        "chat",
        "agent",
        "assistant",
        "",
        r#"{"runId":"run-fake-1795226367681","stream":"assistant","data":{"text":"Hello","delta":"Hello","itemId":"6a9cada9-924b-4708-b5ed-5b74dd64a3db:1"},"sessionKey":"agent:main:lab","agentId":"main","seq":6,"ts":1795226371985,"isHeartbeat":false}"#,
    ),
    (
        "chat",
        "chat",
        "delta",
        "",
        r#"{"runId":"run-fake-1795226367681","sessionKey":"agent:main:lab","agentId":"main","seq":6,"state":"delta","deltaText":"Hello","message":{"role":"assistant","content":[{"type":"text","text":"Hello"}],"timestamp":1795226371989}}"#,
    ),
    (
        "chat",
        "agent",
        "lifecycle",
        "end",
        r#"{"runId":"run-fake-1795226367681","sessionKey":"agent:main:lab","stream":"lifecycle","data":{"stopReason":"stop","aborted":false,"livenessState":"working","phase":"end","endedAt":1795226372442,"startedAt":1795226371795,"replayInvalid":false,"terminalReply":{"disposition":"visible","text":"Hello from the fake model."},"terminalReceipt":{"runId":"run-fake-1795226367681","sessionId":"af0fa097-f65f-4f76-86fe-a5036fbf4768","turnId":"run-fake-1795226367681","requested":{"provider":"fake","model":"fake-1"},"effective":{"provider":"fake","model":"fake-1","responseModel":"fake-1"},"successfulToolNames":[],"rerouted":false,"terminalDisposition":"visible"},"executionSettled":true},"sessionId":"af0fa097-f65f-4f76-86fe-a5036fbf4768","agentId":"main","seq":15,"ts":1795226372442,"isHeartbeat":false}"#,
    ),
    (
        "chat",
        "chat",
        "final",
        "",
        r#"{"runId":"run-fake-1795226367681","sessionKey":"agent:main:lab","agentId":"main","seq":15,"state":"final","stopReason":"stop","message":{"role":"assistant","content":[{"type":"text","text":"Hello from the fake model."}],"timestamp":1795226372452}}"#,
    ),
    (
        "agent",
        "agent",
        "lifecycle",
        "start",
        r#"{"runId":"ag-fake-1795226367681","sessionKey":"agent:main:lab2","sessionId":"e6c230ca-8cc2-4750-9c38-442ab95c830b","agentId":"main","stream":"lifecycle","data":{"phase":"start","startedAt":1795226373996},"seq":1,"ts":1795226373996}"#,
    ),
    (
        "agent",
        "agent",
        "lifecycle",
        "model",
        r#"{"runId":"ag-fake-1795226367681","sessionKey":"agent:main:lab2","sessionId":"e6c230ca-8cc2-4750-9c38-442ab95c830b","agentId":"main","stream":"lifecycle","data":{"phase":"model","provider":"fake","model":"fake-1"},"seq":2,"ts":1795226374102}"#,
    ),
    (
        "agent",
        "agent",
        "assistant",
        "",
        r#"{"runId":"ag-fake-1795226367681","stream":"assistant","data":{"text":"Hello","delta":"Hello","itemId":"c1131dbf-ef6c-47ae-80ae-a6a63f971f66:1"},"sessionKey":"agent:main:lab2","agentId":"main","seq":3,"ts":1795226374104}"#,
    ),
    (
        "agent",
        "chat",
        "delta",
        "",
        r#"{"runId":"ag-fake-1795226367681","sessionKey":"agent:main:lab2","agentId":"main","seq":3,"state":"delta","deltaText":"Hello","message":{"role":"assistant","content":[{"type":"text","text":"Hello"}],"timestamp":1795226374105}}"#,
    ),
    (
        "agent",
        "agent",
        "lifecycle",
        "end",
        r#"{"runId":"ag-fake-1795226367681","stream":"lifecycle","data":{"phase":"end","startedAt":1795226373818,"endedAt":1795226374505,"aborted":false,"stopReason":"stop","livenessState":"working","executionSettled":true,"terminalReceipt":{"runId":"ag-fake-1795226367681","sessionId":"e6c230ca-8cc2-4750-9c38-442ab95c830b","turnId":"ag-fake-1795226367681","requested":{"provider":"fake","model":"fake-1"},"effective":{"provider":"fake","model":"fake-1","responseModel":"fake-1"},"successfulToolNames":[],"rerouted":false,"terminalDisposition":"visible"},"terminalReply":{"disposition":"visible","text":"Hello from the fake model."}},"sessionKey":"agent:main:lab2","sessionId":"e6c230ca-8cc2-4750-9c38-442ab95c830b","agentId":"main","seq":12,"ts":1795226374505}"#,
    ),
    (
        "agent",
        "chat",
        "final",
        "",
        r#"{"runId":"ag-fake-1795226367681","sessionKey":"agent:main:lab2","agentId":"main","seq":12,"state":"final","stopReason":"stop","message":{"role":"assistant","content":[{"type":"text","text":"Hello from the fake model."}],"timestamp":1795226374513}}"#,
    ),
    (
        "agent",
        "agent",
        "lifecycle",
        "error",
        r#"{"runId":"ag-nomodel-1795226312908","stream":"lifecycle","data":{"phase":"error","startedAt":1795226317845,"endedAt":1795226318138,"error":"No route-compatible authentication source is configured for openai.","executionSettled":true},"sessionKey":"agent:main:lab2","sessionId":"e6c230ca-8cc2-4750-9c38-442ab95c830b","agentId":"main","seq":2,"ts":1795226318139}"#,
    ),
    (
        "agent",
        "chat",
        "error",
        "",
        r#"{"runId":"ag-nomodel-1795226312908","sessionKey":"agent:main:lab2","agentId":"main","seq":2,"state":"error","errorMessage":"No route-compatible authentication source is configured for openai."}"#,
    ),
    (
        "chat",
        "agent",
        "lifecycle",
        "error",
        r#"{"runId":"run-nomodel-1795226312908","sessionKey":"agent:main:lab","stream":"lifecycle","data":{"phase":"error","endedAt":1795226316462,"startedAt":1795226316018,"error":"No route-compatible authentication source is configured for openai.","executionSettled":true},"sessionId":"af0fa097-f65f-4f76-86fe-a5036fbf4768","agentId":"main","seq":5,"ts":1795226316463,"isHeartbeat":false}"#,
    ),
    (
        "chat",
        "chat",
        "error",
        "",
        r#"{"runId":"run-nomodel-1795226312908","sessionKey":"agent:main:lab","agentId":"main","seq":5,"state":"error","errorMessage":"No route-compatible authentication source is configured for openai."}"#,
    ),
];

/// Recorded keys that we leave out, and why.
const LEFT_OUT: &[&str] = &["/data/replayInvalid"]; // a replay is the reference's own

fn events(entry: Entrance) -> Vec<Event> {
    let run = Arc::new(RunFacts {
        run_id: "run".to_owned(),
        session_key: SessionKey::main(),
        session_id: "session".to_owned(),
        entry,
    });
    let text = "Hello".to_owned();
    let (provider, model) = ("fake".to_owned(), "fake-1".to_owned());
    let kinds = vec![
        EventKind::Started,
        EventKind::Model {
            provider: provider.clone(),
            model: model.clone(),
        },
        EventKind::TextDelta {
            delta: text.clone(),
            text: text.clone(),
        },
        EventKind::Final {
            text,
            started_at_ms: 1,
            tools_used: Vec::new(),
            provider,
            model,
        },
        EventKind::Error {
            message: "no".to_owned(),
            kind: ErrorKind::Unknown,
            started_at_ms: 1,
        },
    ];
    numbered(&run, kinds)
}

fn numbered(run: &Arc<RunFacts>, kinds: Vec<EventKind>) -> Vec<Event> {
    kinds
        .into_iter()
        .zip(1..)
        .map(|(kind, seq)| Event {
            run: Arc::clone(run),
            seq,
            at_ms: 1_795_226_369_480,
            kind,
        })
        .collect()
}

/// Every key of a value, as a path; the type of each scalar with it.
fn paths(prefix: &str, value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                paths(&format!("{prefix}/{key}"), value, out);
            }
        }
        Value::Array(items) => items
            .iter()
            .for_each(|item| paths(&format!("{prefix}/*"), item, out)),
        Value::String(_) => out.push(format!("{prefix}: text")),
        Value::Number(_) => out.push(format!("{prefix}: number")),
        Value::Bool(_) => out.push(format!("{prefix}: bool")),
        Value::Null => out.push(format!("{prefix}: null")),
    }
}

fn shape(value: &Value) -> Vec<String> {
    let mut all = Vec::new();
    paths("", value, &mut all);
    all.retain(|path| !LEFT_OUT.iter().any(|left_out| path.starts_with(left_out)));
    all.sort();
    all.dedup();
    all
}

#[test]
fn our_frames_have_the_recorded_shape() {
    for (began, name, kind, phase, recorded) in RECORDED {
        let entry = if *began == "chat" {
            Entrance::Chat
        } else {
            Entrance::Agent
        };
        let recorded: Value = serde_json::from_str(recorded).unwrap();
        let ours: Vec<Value> = events(entry)
            .iter()
            .flat_map(frames)
            .filter(|frame| frame.name() == *name)
            .map(|frame| serde_json::to_value(frame).unwrap())
            .filter(|ours| ours["state"] == *kind || ours["stream"] == *kind)
            .filter(|ours| phase.is_empty() || ours["data"]["phase"] == *phase)
            .collect();
        assert_eq!(ours.len(), 1, "{began} {name} {kind} {phase}");
        assert_eq!(
            shape(&ours[0]),
            shape(&recorded),
            "{began} {name} {kind} {phase}"
        );
    }
}

#[test]
fn tool_frames_have_the_shape_of_the_reference_schema() {
    let run = Arc::clone(&events(Entrance::Chat)[0].run);
    let (tool_call_id, name) = ("run:1".to_owned(), "exec".to_owned());
    let kinds = vec![
        EventKind::ToolStarted(ToolCall {
            tool_call_id: tool_call_id.clone(),
            name: name.clone(),
            arguments: json!({"command": "ls"}),
        }),
        EventKind::ToolOutput {
            tool_call_id: tool_call_id.clone(),
            name: name.clone(),
            output: "a".to_owned(),
        },
        EventKind::ToolFinished(ToolResult {
            tool_call_id,
            name,
            text: "a".to_owned(),
            is_error: false,
            details: json!({"exitCode": 0}),
        }),
    ];
    let frames: Vec<WireEvent> = numbered(&run, kinds).iter().flat_map(frames).collect();
    assert!(frames.iter().all(WireEvent::needs_tool_events));
    let data: Vec<Value> = frames
        .iter()
        .map(|frame| serde_json::to_value(frame).unwrap()["data"].clone())
        .collect();
    assert_eq!(
        data[0],
        json!({"phase": "start", "name": "exec", "toolCallId": "run:1", "args": {"command": "ls"}})
    );
    assert_eq!(data[1]["partialResult"]["content"][0]["text"], "a");
    assert_eq!(data[2]["result"]["details"]["exitCode"], 0);
    assert_eq!(data[2]["isError"], false);
}

#[test]
fn an_abort_says_why_and_what_was_said() {
    let run = Arc::clone(&events(Entrance::Chat)[0].run);
    let aborted = |text: &str| EventKind::Aborted {
        text: text.to_owned(),
        reason: AbortReason::Requested,
        started_at_ms: 1,
    };
    for (text, has_message) in [("", false), ("Hel", true)] {
        let event = &numbered(&run, vec![aborted(text)])[0];
        let chat = serde_json::to_value(&frames(event)[1]).unwrap();
        assert_eq!(
            (&chat["state"], &chat["stopReason"]),
            (&json!("aborted"), &json!("rpc"))
        );
        assert_eq!(chat.get("message").is_some(), has_message);
        assert_eq!(
            serde_json::to_value(&frames(event)[0]).unwrap()["data"]["aborted"],
            true
        );
    }
}

#[test]
fn a_timeout_is_named() {
    let run = Arc::clone(&events(Entrance::Chat)[0].run);
    let kind = EventKind::Error {
        message: "late".to_owned(),
        kind: ErrorKind::Timeout,
        started_at_ms: 1,
    };
    let chat = serde_json::to_value(&frames(&numbered(&run, vec![kind])[0])[1]).unwrap();
    assert_eq!(
        (&chat["errorKind"], &chat["errorMessage"]),
        (&json!("timeout"), &json!("late"))
    );
}
