//! No approval can be turned into a different execution (rows X1–X13, N5): the real program, the real node host.

use std::time::{Duration, Instant};
use std::{fs, thread};

use serde_json::{Value, json};

use crate::nodes::Node;
use crate::run::{Lab, chat_end, message, text_of};
use crate::secrets::{RELOADED, reload};
use crate::support::{
    Connect, Device, Gateway, PATIENCE, Peer, Process, Setup, WireError, program,
};

/// An operator who may write, and not approve.
fn writer(gateway: &Gateway) -> Peer {
    let mut peer = Peer::open(gateway);
    let scopes = ["operator.read", "operator.write"];
    peer.connect(&Connect::cli().scopes(&scopes)).unwrap();
    peer
}

fn node_id(lab: &Lab) -> Value {
    lab.gateway.cli_json(&["nodes", "list"])["nodes"][0]["nodeId"].clone()
}

fn resolve(peer: &mut Peer, id: &Value, decision: &str) -> Result<Value, WireError> {
    let params = json!({"id": id, "decision": decision});
    peer.call("exec.approval.resolve", &params)
}

fn is_not_found(error: &WireError) -> bool {
    error.message() == "unknown or expired approval id"
        && error.0["details"]["reason"] == "APPROVAL_NOT_FOUND"
        && error.0["details"]["remediation"].is_string()
}

/// A client that asks, the node that it asks about, and who decides.
struct Asking {
    lab: Lab,
    node: Value,
    client: Peer,
    approver: Peer,
}

impl Asking {
    fn start() -> Self {
        let lab = Lab::start();
        Self {
            node: node_id(&lab),
            client: Peer::operator(&lab.gateway),
            approver: Peer::operator(&lab.gateway),
            lab,
        }
    }

    fn invoke(&mut self, command: &str, params: &Value) -> Result<Value, WireError> {
        invoke(&mut self.client, &self.node, command, params)
    }

    fn plan(&mut self, argv: &[&str]) -> Value {
        let prepared = self.invoke("system.run.prepare", &json!({"command": argv}));
        prepared.unwrap()["payload"]["plan"].take()
    }

    /// Asks for an approval of a plan; the frame's id and the approval's.
    fn ask(&mut self, plan: &Value, more: &Value) -> (String, Value) {
        let mut params = json!({
            "command": plan["commandText"], "commandArgv": plan["argv"], "systemRunPlan": plan,
            "cwd": plan["cwd"], "nodeId": self.node, "host": "node", "twoPhase": true,
        });
        for (key, value) in more.as_object().unwrap() {
            params[key] = value.clone();
        }
        let frame = self.client.request("exec.approval.request", &params);
        let accepted = self.client.answer(&frame).unwrap();
        assert_eq!(accepted["status"], "accepted");
        assert_eq!(accepted["deliveryRoute"], "approval-client");
        (frame, accepted["id"].clone())
    }

    /// A plan that was asked about and allowed.
    fn allowed(&mut self, argv: &[&str], more: &Value) -> Value {
        let plan = self.plan(argv);
        let (frame, id) = self.ask(&plan, more);
        resolve(&mut self.approver, &id, "allow-once").unwrap();
        assert_eq!(
            self.client.answer(&frame).unwrap()["decision"],
            "allow-once"
        );
        run_params(&plan, &id)
    }
}

fn invoke(
    peer: &mut Peer,
    node: &Value,
    command: &str,
    params: &Value,
) -> Result<Value, WireError> {
    let key = Device::new().id;
    peer.call(
        "node.invoke",
        &json!({"nodeId": node, "command": command, "params": params, "idempotencyKey": key}),
    )
}

/// `system.run` as the official client sends it after an approval.
fn run_params(plan: &Value, id: &Value) -> Value {
    json!({
        "command": plan["argv"], "rawCommand": plan["commandText"], "systemRunPlan": plan,
        "cwd": plan["cwd"], "runId": id, "approved": true, "approvalDecision": "allow-once",
    })
}

#[test]
fn what_an_operator_allows_runs_once() {
    let lab = Lab::start();
    let log = lab.path("log");
    let mut approver = Peer::operator(&lab.gateway);
    let mut writer = writer(&lab.gateway);
    let text = format!("/run echo line >> {}", log.display());
    writer.call("chat.send", &message(&text, "k")).unwrap();
    let asked = approver.event("exec.approval.requested");
    let command = asked["request"]["command"].as_str().unwrap();
    assert!(
        command.starts_with("/bin/sh -lc \"echo line >> "),
        "{command}"
    );
    assert_eq!(asked["request"]["nodeId"], node_id(&lab));
    assert_eq!(asked["request"]["sessionKey"], "agent:main:main");
    assert_eq!(asked["request"]["agentId"], "main");
    assert!(!log.exists());
    resolve(&mut approver, &asked["id"], "allow-once").unwrap();
    let end = chat_end(&mut writer, "k");
    assert!(text_of(&end).contains("exit code 0"), "{end}");
    assert_eq!(fs::read_to_string(&log).unwrap(), "line\n");
    let resolved = approver.event("exec.approval.resolved");
    assert_eq!(resolved["decision"], "allow-once");
    assert_eq!(
        resolve(&mut approver, &asked["id"], "allow-once").unwrap()["ok"],
        true
    );
    let error = resolve(&mut approver, &asked["id"], "deny").unwrap_err();
    assert_eq!(error.message(), "approval already resolved");
    assert_eq!(error.0["details"]["reason"], "APPROVAL_ALREADY_RESOLVED");
    // The turn's own approval is of no use to anybody else.
    let stolen = run_params(&asked["request"]["systemRunPlan"], &asked["id"]);
    let error = invoke(&mut writer, &node_id(&lab), "system.run", &stolen).unwrap_err();
    assert_eq!(error.message(), "approval required");
    assert_eq!(fs::read_to_string(&log).unwrap(), "line\n");
    let audit = lab.gateway.audit();
    for kind in ["approval.requested", "approval.decided"] {
        assert!(audit.contains(kind), "{kind}");
    }
}

#[test]
fn what_is_denied_does_not_run() {
    let lab = Lab::start();
    let proof = lab.path("ran");
    let mut approver = Peer::operator(&lab.gateway);
    let mut writer = writer(&lab.gateway);
    let text = format!("/run touch {}", proof.display());
    // X11: a word that is no decision denies, and says that it was none.
    for (key, decision) in [("no", "deny"), ("almost", "allow-once "), ("yes", "yes")] {
        writer.call("chat.send", &message(&text, key)).unwrap();
        let asked = approver.event("exec.approval.requested");
        let answer = resolve(&mut approver, &asked["id"], decision);
        if key != "no" {
            assert_eq!(answer.unwrap_err().message(), "invalid decision");
        }
        let end = chat_end(&mut writer, key);
        assert!(text_of(&end).contains("approval denied"), "{end}");
        let error = resolve(&mut approver, &asked["id"], "allow-once").unwrap_err();
        assert_eq!(error.message(), "approval already resolved");
    }
    assert!(!proof.exists());
}

#[test]
fn x10_a_requester_without_the_scope_cannot_decide() {
    let lab = Lab::start();
    let mut approver = Peer::operator(&lab.gateway);
    let mut writer = writer(&lab.gateway);
    writer
        .call("chat.send", &message("/run echo x", "k"))
        .unwrap();
    let asked = approver.event("exec.approval.requested");
    let id = &asked["id"];
    for (method, params) in [
        (
            "exec.approval.resolve",
            json!({"id": id, "decision": "allow-once"}),
        ),
        ("exec.approval.get", json!({"id": id})),
        ("exec.approval.list", json!({})),
        ("exec.approval.waitDecision", json!({"id": id})),
        ("exec.approval.request", json!({"nodeId": "x"})),
    ] {
        let error = writer.call(method, &params).unwrap_err();
        assert_eq!(error.code(), "FORBIDDEN", "{method}");
        assert_eq!(error.message(), "missing scope: operator.approvals");
    }
    assert!(!writer.has_heard("exec.approval.requested"));
    let listed = approver.call("exec.approval.list", &json!({})).unwrap();
    assert_eq!(listed[0]["id"], *id);
}

#[test]
fn nobody_is_asked_when_nobody_could_answer() {
    let lab = Lab::start();
    let mut alone = Peer::operator(&lab.gateway);
    let node = node_id(&lab);
    let plan = json!({"argv": ["/bin/true"], "cwd": "/", "commandText": "/bin/true"});
    let asked = json!({"nodeId": node, "systemRunPlan": plan});
    let error = alone.call("exec.approval.request", &asked).unwrap_err();
    assert_eq!(
        error.message(),
        "approval required: nobody who could approve is connected"
    );
    // A client that says that it shows requests may answer its own, with the scope.
    let mut shows = Peer::open(&lab.gateway);
    drop(alone);
    shows
        .connect(&Connect::cli().with("caps", json!(["exec-approvals"])))
        .unwrap();
    let frame = shows.request("exec.approval.request", &asked);
    let event = shows.event("exec.approval.requested");
    resolve(&mut shows, &event["id"], "deny").unwrap();
    assert_eq!(shows.answer(&frame).unwrap()["decision"], "deny");
}

#[test]
fn x9_a_cancelled_turn_takes_its_request_with_it() {
    let lab = Lab::start();
    let proof = lab.path("ran");
    let mut approver = Peer::operator(&lab.gateway);
    let mut writer = writer(&lab.gateway);
    let text = format!("/run touch {}", proof.display());
    writer.call("chat.send", &message(&text, "k")).unwrap();
    let asked = approver.event("exec.approval.requested");
    let abort = json!({"sessionKey": "main", "runId": "k"});
    writer.call("chat.abort", &abort).unwrap();
    let resolved = approver.event("exec.approval.resolved");
    assert_eq!(resolved["terminalReason"], "run-aborted");
    assert_eq!(resolved["decision"], "deny");
    let error = resolve(&mut approver, &asked["id"], "allow-once").unwrap_err();
    assert!(is_not_found(&error), "{error:?}");
    assert_eq!(
        approver.call("exec.approval.list", &json!({})).unwrap(),
        json!([])
    );
    assert!(!proof.exists());
}

#[test]
fn x9_a_request_ends_with_its_time_and_with_its_connection() {
    let mut it = Asking::start();
    let plan = it.plan(&["true"]);
    let (frame, id) = it.ask(&plan, &json!({"timeoutMs": 1}));
    assert_eq!(it.client.answer(&frame).unwrap()["decision"], Value::Null);
    assert_eq!(
        it.approver.event("exec.approval.resolved")["terminalReason"],
        "timeout"
    );
    let error = resolve(&mut it.approver, &id, "allow-once").unwrap_err();
    assert!(is_not_found(&error), "{error:?}");
    let (_, id) = it.ask(&plan, &json!({}));
    let Asking {
        client,
        mut approver,
        ..
    } = it;
    client.leave();
    approver.event("exec.approval.resolved");
    let error = resolve(&mut approver, &id, "allow-once").unwrap_err();
    assert!(is_not_found(&error), "{error:?}");
}

#[test]
fn approvals_of_every_kind_are_shown_and_decided_by_one_method() {
    let mut it = Asking::start();
    let plan = it.plan(&["echo", "a b"]);
    let (_, id) = it.ask(&plan, &json!({"id": "a/b?", "env": {"LANG": "C"}}));
    let get = |peer: &mut Peer| {
        let found = peer.call("approval.get", &json!({"id": id})).unwrap();
        found["approval"].clone()
    };
    let decide = |peer: &mut Peer, kind: &str, decision: &str| {
        let params = json!({"id": id, "kind": kind, "decision": decision});
        peer.call("approval.resolve", &params)
    };
    let shown = get(&mut it.approver);
    assert_eq!(shown["status"], "pending");
    assert_eq!(shown["urlPath"], "/approve/a%2Fb%3F");
    let presentation = &shown["presentation"];
    assert_eq!(presentation["commandText"], plan["commandText"]);
    assert_eq!(
        presentation["allowedDecisions"],
        json!(["allow-once", "deny"])
    );
    let warning = presentation["warningText"].as_str().unwrap();
    assert!(warning.ends_with("with LANG=C"), "{warning}");
    // What no client may decide, or not like this, leaves it as it is.
    let mut reader = writer(&it.lab.gateway);
    let error = decide(&mut reader, "exec", "allow-once").unwrap_err();
    assert_eq!(error.code(), "FORBIDDEN");
    for method in [
        "approval.get",
        "plugin.approval.list",
        "openclaw.approval.list",
    ] {
        let params = json!({"id": id});
        assert_eq!(
            reader.call(method, &params).unwrap_err().code(),
            "FORBIDDEN"
        );
    }
    let error = decide(&mut it.approver, "plugin", "allow-once").unwrap_err();
    assert_eq!(error.message(), "approval not found");
    let error = decide(&mut it.approver, "exec", "allow-always").unwrap_err();
    assert_eq!(
        error.0["details"]["reason"],
        "APPROVAL_ALLOW_ALWAYS_UNAVAILABLE"
    );
    assert_eq!(get(&mut it.approver)["status"], "pending");

    let first = decide(&mut it.approver, "exec", "allow-once").unwrap();
    assert_eq!(first["applied"], true);
    assert_eq!(first["approval"]["status"], "allowed");
    assert_eq!(first["approval"]["reason"], "user");
    assert!(first["approval"]["resolver"]["id"].is_string());
    assert!(
        first["approval"]["resolvedAtMs"].as_u64() >= first["approval"]["createdAtMs"].as_u64()
    );
    for decision in ["allow-once", "deny"] {
        let later = decide(&mut it.approver, "exec", decision).unwrap();
        assert_eq!(later["applied"], false);
        assert_eq!(later["approval"], first["approval"]);
    }
    let (_, denied) = it.ask(&plan, &json!({}));
    resolve(&mut it.approver, &denied, "deny").unwrap();
    let found = it
        .approver
        .call("approval.get", &json!({"id": denied}))
        .unwrap();
    assert_eq!(found["approval"]["status"], "denied");
    let (frame, late) = it.ask(&plan, &json!({"timeoutMs": 1}));
    it.client.answer(&frame).unwrap();
    let params = json!({"id": late, "kind": "exec", "decision": "allow-once"});
    let late = it.approver.call("approval.resolve", &params).unwrap();
    assert_eq!(late["applied"], false);
    assert_eq!(late["approval"]["status"], "expired");
    assert_eq!(late["approval"]["reason"], "timeout");
    let absent = it.approver.call("approval.get", &json!({"id": "none"}));
    assert_eq!(absent.unwrap_err().message(), "approval not found");
}

#[test]
fn a_restart_ends_what_was_pending_and_says_so() {
    let mut it = Asking::start();
    let plan = it.plan(&["true"]);
    let (_, pending) = it.ask(&plan, &json!({}));
    let allowed = it.allowed(&["true"], &json!({}));
    it.lab.gateway.kill();
    it.lab.gateway.restart();
    it.lab.node_returns();
    it.client = Peer::operator(&it.lab.gateway);
    it.approver = Peer::operator(&it.lab.gateway);
    let error = resolve(&mut it.approver, &pending, "allow-once").unwrap_err();
    assert!(is_not_found(&error), "{error:?}");
    let error = it.invoke("system.run", &allowed).unwrap_err();
    assert_eq!(error.message(), "approval required");
}

#[test]
fn n5_the_official_way_from_a_request_to_its_run() {
    let mut it = Asking::start();
    let plan = it.plan(&["echo", "approved hello"]);
    let (frame, id) = it.ask(&plan, &json!({"timeoutMs": 60_000}));
    let event = it.approver.event("exec.approval.requested");
    assert_eq!(event["id"], id);
    let request = &event["request"];
    assert_eq!(request["command"], plan["commandText"]);
    assert_eq!(request["systemRunBinding"]["argv"], plan["argv"]);
    assert_eq!(request["systemRunPlan"], plan, "with the file's hash");
    assert_eq!(request["allowedDecisions"], json!(["allow-once", "deny"]));
    assert_eq!(request["bindingSha256"].as_str().unwrap().len(), 64);
    assert!(request["nodeName"].is_string(), "{request}");
    assert!(request["requestedBy"].is_string(), "{request}");
    let got = it.approver.call("exec.approval.get", &json!({"id": id}));
    assert_eq!(got.unwrap()["commandText"], plan["commandText"]);
    let waiting = it
        .client
        .request("exec.approval.waitDecision", &json!({"id": id}));
    let early = it.invoke("system.run", &run_params(&plan, &id));
    let early = early.unwrap_err();
    assert_eq!(early.message(), "approval required");
    assert_eq!(early.detail(), "APPROVAL_REQUIRED");
    assert_eq!(early.0["details"]["runId"], id);
    resolve(&mut it.approver, &id, "allow-once").unwrap();
    let waited = it.client.answer(&waiting).unwrap();
    assert_eq!(waited["decision"], "allow-once");
    assert_eq!(waited["terminalReason"], "user");
    assert_eq!(it.client.answer(&frame).unwrap()["decision"], "allow-once");
    let ran = it.invoke("system.run", &run_params(&plan, &id)).unwrap();
    assert_eq!(ran["payload"]["stdout"], "approved hello\n");
    let again = it.invoke("system.run", &run_params(&plan, &id));
    assert_eq!(again.unwrap_err().message(), "approval required");
}

#[test]
fn x1_whatever_differs_from_what_was_approved_is_refused() {
    let mut it = Asking::start();
    let good = it.allowed(&["echo", " x"], &json!({"env": {"LANG": "C"}}));
    let with = |key: &str, value: Value| {
        let mut params = good.clone();
        params["env"] = json!({"LANG": "C"});
        params[key] = value;
        params
    };
    let mut other_plan = good["systemRunPlan"].clone();
    other_plan["mutableFileOperand"]["sha256"] = json!("00");
    let mut no_snapshot = good["systemRunPlan"].clone();
    no_snapshot
        .as_object_mut()
        .unwrap()
        .remove("policySnapshot");
    let request = "approval id does not match request";
    let env = "approval id env binding mismatch";
    for (params, message) in [
        (with("command", json!([good["command"][0], "x"])), request),
        (with("cwd", json!("/")), request),
        (with("agentId", json!("main")), request),
        (with("sessionKey", json!("agent:main:main")), request),
        (with("systemRunPlan", other_plan), request),
        (with("systemRunPlan", no_snapshot), request),
        (with("env", json!({"LANG": "C", "LD_PRELOAD": "/x"})), env),
        (with("env", json!({})), env),
    ] {
        let error = it.invoke("system.run", &params).unwrap_err();
        assert_eq!(error.message(), message, "{params}");
    }
    let good = with("approvalDecision", json!("allow-always"));
    // Another client, although it may approve; and another node.
    let error = invoke(&mut it.approver, &it.node, "system.run", &good).unwrap_err();
    assert_eq!(
        error.message(),
        "approval id not valid for this client/device"
    );
    let other = Device::new();
    let connect = Connect::node().with("commands", json!(["system.run"]));
    let (_other_node, _) = Peer::admitted(&it.lab.gateway, &connect, &other);
    let pending = it.lab.gateway.cli_json(&["nodes", "pending"]);
    let rid = pending["pending"][0]["requestId"].as_str().unwrap();
    assert!(
        it.lab
            .gateway
            .cli(&["nodes", "approve", rid])
            .status
            .success()
    );
    let error = invoke(&mut it.client, &json!(other.id), "system.run", &good).unwrap_err();
    assert_eq!(error.message(), "approval id not valid for this node");
    // None of this has used it up.
    let ran = it.invoke("system.run", &good).unwrap();
    assert_eq!(ran["payload"]["stdout"], " x\n");
}

#[test]
fn x9_what_was_not_sent_uses_up_no_approval() {
    let gateway = Gateway::start();
    let (mut client, mut approver) = (Peer::operator(&gateway), Peer::operator(&gateway));
    let commands = ["system.run", "system.which"];
    let mut node = Node::approved(&gateway, &mut approver, &commands);
    let id = json!(node.id());
    let mut plan = json!({"argv": ["/bin/true"], "cwd": "/", "commandText": "/bin/true"});
    plan["pad"] = json!("x".repeat(7 << 20));
    let asked = json!({"nodeId": id, "systemRunPlan": plan, "twoPhase": true});
    let frame = client.request("exec.approval.request", &asked);
    let approval = client.answer(&frame).unwrap()["id"].clone();
    resolve(&mut approver, &approval, "allow-once").unwrap();
    client.answer(&frame).unwrap();
    // A node that reads nothing, until no more fits.
    let pad = "x".repeat(6 << 20);
    let mut crowd = Peer::operator(&gateway);
    let calls: Vec<String> = (0..12)
        .map(|key| {
            let params = json!({"nodeId": id, "command": "system.which", "idempotencyKey": format!("{key}"),
                "params": {"bins": [], "pad": pad}});
            crowd.request("node.invoke", &params)
        })
        .collect();
    let full = crowd.answer(calls.last().unwrap()).unwrap_err();
    assert!(full.message().contains("has not read"), "{full:?}");
    let mut run = run_params(&plan, &approval);
    run["systemRunPlan"].take();
    for _ in 0..2 {
        let error = invoke(&mut client, &id, "system.run", &run).unwrap_err();
        assert!(error.message().contains("has not read"), "{error:?}");
        assert_eq!(error.0["details"]["dispatched"], "no");
    }
    // Of two that lean on it as soon as there is room, one is sent.
    let calls = [Device::new().id, Device::new().id].map(|key| {
        node.peer
            .frame(|frame| frame["event"] == "node.invoke.request");
        let params =
            json!({"nodeId": id, "command": "system.run", "params": run, "idempotencyKey": key});
        client.request("node.invoke", &params)
    });
    let sent = node
        .peer
        .frame(|frame| frame["payload"]["command"] == "system.run");
    let result =
        json!({"id": sent["payload"]["id"], "nodeId": id, "ok": true, "payloadJSON": "{}"});
    node.peer.call("node.invoke.result", &result).unwrap();
    let [first, second] = calls.map(|call| client.answer(&call));
    assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
}

#[test]
fn x4_a_script_that_was_edited_after_the_approval_does_not_run() {
    let mut it = Asking::start();
    let script = it.lab.path("script.sh");
    let proof = it.lab.path("ran");
    fs::write(&script, "true\n").unwrap();
    let good = it.allowed(&["sh", script.to_str().unwrap()], &json!({}));
    fs::write(&script, format!("touch {}\n", proof.display())).unwrap();
    let error = it.invoke("system.run", &good).unwrap_err();
    assert!(
        error.message().contains("script operand changed"),
        "{error:?}"
    );
    assert!(!proof.exists());
}

#[test]
fn x4_what_a_typed_text_runs_is_bound_or_said_not_to_be() {
    let lab = Lab::start();
    let mut approver = Peer::operator(&lab.gateway);
    let mut writer = writer(&lab.gateway);
    let (script, proof) = (lab.path("my script.sh"), lab.path("ran"));
    let mut ask = |key: &str, text: &str| {
        fs::write(&script, "true\n").unwrap();
        let text = format!("/run {text}");
        writer.call("chat.send", &message(&text, key)).unwrap();
        let asked = approver.event("exec.approval.requested");
        fs::write(&script, format!("touch '{}'\n", proof.display())).unwrap();
        resolve(&mut approver, &asked["id"], "allow-once").unwrap();
        (asked, text_of(&chat_end(&mut writer, key)).to_owned())
    };
    let path = script.display().to_string();
    for (key, text) in [
        ("quoted", format!("sh \"{path}\"")),
        ("escaped", format!("sh {}", path.replace(' ', "\\ "))),
        (
            "matched",
            format!("sh {}", path.replace("script", "scrip?").replace(' ', "?")),
        ),
    ] {
        let (asked, said) = ask(key, &text);
        let file = &asked["request"]["systemRunPlan"]["mutableFileOperand"];
        assert_eq!(file["path"], path, "{text}");
        assert_eq!(
            asked["request"]["warningText"].is_string(),
            key == "matched"
        );
        assert!(said.contains("operand changed"), "{text}: {said}");
        assert!(!proof.exists(), "{text}");
    }
    let dir = script.parent().unwrap().display();
    let (asked, _) = ask("cd", &format!("cd '{dir}' && sh 'my script.sh'"));
    let warning = asked["request"]["warningText"].as_str().unwrap();
    assert!(warning.contains("are not bound"), "{warning}");
    let lines = &asked["request"]["commandAnalysis"]["warningLines"];
    assert_eq!(lines, &json!([warning]));
}

#[test]
fn what_is_shown_of_a_plan_is_what_the_gateway_makes_of_it() {
    let mut it = Asking::start();
    for (argv, preview) in [
        (["echo", "hi", "there"], Value::Null),
        (
            ["sh", "-c", "echo --password=hunter2"],
            json!("echo --password=[redacted]"),
        ),
    ] {
        let mut plan = it.plan(&argv);
        plan["commandPreview"] = json!("ls -la (harmless)");
        let (_, id) = it.ask(&plan, &json!({}));
        let shown = it.approver.event("exec.approval.requested");
        assert!(!shown.to_string().contains("harmless"), "{shown}");
        assert_eq!(shown["request"]["systemRunPlan"]["commandPreview"], preview);
        resolve(&mut it.approver, &id, "allow-once").unwrap();
        assert!(it.invoke("system.run", &run_params(&plan, &id)).is_ok());
    }
}

#[test]
fn x12_a_node_that_denies_is_not_overruled() {
    let gateway = Setup::default()
        .config(r#"{"tools":{"exec":{"mode":"full"}}}"#)
        .start();
    let denies = r#"{"tools":{"exec":{"mode":"deny"}}}"#;
    let lab = Lab::with_node_config(gateway, Some(denies));
    let said = lab.is_refused("/run echo x");
    assert!(said.contains("security=deny"), "{said}");
}

#[test]
fn n8_a_nodes_own_entry_covers_its_policy_file() {
    let lab = Lab::start();
    let node = node_id(&lab);
    let mut admin = Peer::operator(&lab.gateway);
    let mut get = || admin.call("exec.approvals.node.get", &json!({"nodeId": node}));
    assert!(get().is_ok());
    for (entry, list) in [
        ("deny: ['*']", "deny"),
        ("deny: ['system.execApprovals.get']", "deny"),
        ("allow: ['system.run']", "allow"),
    ] {
        let id = node.as_str().unwrap();
        let config =
            format!("{{gateway: {{nodes: {{entries: {{'{id}': {{commands: {{{entry}}}}}}}}}}}}}");
        reload(&lab.gateway, &config, RELOADED);
        let error = get().unwrap_err();
        let setting = format!("gateway.nodes.entries.{id}.commands.{list}");
        assert!(error.message().ends_with(&setting), "{entry}: {error:?}");
        assert_eq!(error.0["details"]["dispatched"], "no");
    }
}

fn set_mode(gateway: &Gateway, mode: &str) {
    let config = format!("{{tools: {{exec: {{mode: '{mode}'}}}}}}");
    reload(gateway, &config, RELOADED);
}

#[test]
fn x12_in_mode_allowlist_only_the_list_counts() {
    let lab = Lab::start();
    let mut approver = Peer::operator(&lab.gateway);
    let mut writer = writer(&lab.gateway);
    let run = message("/run /usr/bin/id -u", "first");
    writer.call("chat.send", &run).unwrap();
    let asked = approver.event("exec.approval.requested");
    resolve(&mut approver, &asked["id"], "allow-always").unwrap();
    chat_end(&mut writer, "first");
    set_mode(&lab.gateway, "allowlist");
    // The list holds it, whoever says it.
    assert!(lab.say("/run /usr/bin/id -u").contains("exit code 0"));
    let run = message("/run /usr/bin/id -u", "second");
    writer.call("chat.send", &run).unwrap();
    let second = chat_end(&mut writer, "second");
    assert!(text_of(&second).contains("exit code 0"), "{second}");
    // The list does not hold it, and who may approve typed it.
    let proof = lab.path("ran");
    let said = lab.is_refused(&format!("/run touch {}", proof.display()));
    assert!(said.contains("tools.exec.mode is allowlist"), "{said}");
    let node = node_id(&lab);
    let params = json!({"command": ["/usr/bin/touch", proof.to_str().unwrap()]});
    let error = invoke(&mut approver, &node, "system.run", &params).unwrap_err();
    assert_eq!(error.detail(), "ALLOWLIST_MISS");
    let plan = json!({"argv": ["/bin/true"], "cwd": "/", "commandText": "/bin/true"});
    let asked = json!({"nodeId": node, "systemRunPlan": plan});
    let error = approver.call("exec.approval.request", &asked).unwrap_err();
    assert_eq!(error.detail(), "ALLOWLIST_MISS");
    assert!(!proof.exists());
}

#[test]
fn x12_an_approval_does_not_outlive_the_mode_it_was_given_in() {
    let mut it = Asking::start();
    let proof = it.lab.path("ran");
    let given = it.allowed(&["touch", proof.to_str().unwrap()], &json!({}));
    // A turn that waits meanwhile, in each of the stricter modes.
    let mut writer = writer(&it.lab.gateway);
    for (mode, detail, said) in [
        (
            "allowlist",
            "ALLOWLIST_MISS",
            "tools.exec.mode is allowlist",
        ),
        ("deny", "EXEC_DENIED", "tools.exec.mode is deny"),
    ] {
        set_mode(&it.lab.gateway, "ask");
        let text = format!("/run touch {}", proof.display());
        writer.call("chat.send", &message(&text, mode)).unwrap();
        let asked = it.approver.frame(|frame| {
            frame["event"] == "exec.approval.requested"
                && frame["payload"]["request"]["sessionKey"] == "agent:main:main"
        });
        set_mode(&it.lab.gateway, mode);
        resolve(&mut it.approver, &asked["payload"]["id"], "allow-once").unwrap();
        let end = chat_end(&mut writer, mode);
        assert!(text_of(&end).contains(said), "{end}");
        let error = it.invoke("system.run", &given).unwrap_err();
        assert_eq!(error.detail(), detail);
        assert_eq!(error.0["details"]["dispatched"], "no");
    }
    assert!(!proof.exists());
    set_mode(&it.lab.gateway, "ask");
    it.invoke("system.run", &given).unwrap();
    assert!(proof.exists());
}

#[test]
fn x13_what_is_shown_holds_no_secret_and_what_runs_does() {
    let mut it = Asking::start();
    let header = "Authorization: Bearer abc.def";
    let plan = it.plan(&["echo", header, "--password", "hunter2"]);
    let (_, id) = it.ask(&plan, &json!({}));
    let event = it.approver.event("exec.approval.requested").to_string();
    assert!(
        event.contains("Authorization: Bearer [redacted]"),
        "{event}"
    );
    let list = it.approver.call("exec.approval.list", &json!({})).unwrap();
    resolve(&mut it.approver, &id, "allow-once").unwrap();
    let ran = it.invoke("system.run", &run_params(&plan, &id)).unwrap();
    assert_eq!(
        ran["payload"]["stdout"],
        format!("{header} --password hunter2\n")
    );
    for shown in [event, list.to_string(), it.lab.gateway.audit()] {
        assert!(!shown.contains("abc.def") && !shown.contains("hunter2"));
    }
}

#[test]
fn the_command_line_shows_and_decides() {
    let mut it = Asking::start();
    let home = it.lab.gateway.home().to_owned();
    let mut watch = Process::spawn(program(&home, &[]).args(["approvals", "watch"]));
    watch.line("watching");
    let plan = it.plan(&["echo", "one\u{202e}"]);
    let (frame, id) = it.ask(&plan, &json!({"env": {"LANG": "C"}}));
    let id = id.as_str().unwrap();
    let line: Value = serde_json::from_str(&watch.line("requested")).unwrap();
    assert_eq!(line["payload"]["id"], id);
    let cli = |args: &[&str]| {
        let output = it.lab.gateway.cli(args);
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.success(), text)
    };
    let (_, list) = cli(&["approvals", "list"]);
    assert!(
        list.contains("one\\u{202e}") && list.contains("env      LANG=C"),
        "{list}"
    );
    assert_eq!(
        cli(&["approvals", "get", id]).1.lines().next(),
        list.lines().next()
    );
    assert!(
        !cli(&["approvals", "approve", id, "--always"]).0,
        "not on offer"
    );
    assert_eq!(
        cli(&["approvals", "approve", &id[..8]]),
        (true, "allow-once\n".to_owned())
    );
    watch.line("exec.approval.resolved");
    assert_eq!(
        cli(&["approvals", "list"]).1,
        "Nothing waits for a decision\n"
    );
    assert_eq!(it.client.answer(&frame).unwrap()["decision"], "allow-once");
    let (frame, id) = it.ask(&plan, &json!({}));
    assert!(
        it.lab
            .gateway
            .cli(&["approvals", "deny", id.as_str().unwrap()])
            .status
            .success()
    );
    assert_eq!(it.client.answer(&frame).unwrap()["decision"], "deny");
}

#[test]
fn x7_what_was_allowed_for_good_is_not_asked_again() {
    let lab = Lab::start();
    let mut approver = Peer::operator(&lab.gateway);
    let mut writer = writer(&lab.gateway);
    let run = message("/run /usr/bin/id -u", "first");
    writer.call("chat.send", &run).unwrap();
    let asked = approver.event("exec.approval.requested");
    assert_eq!(
        asked["request"]["allowedDecisions"],
        json!(["allow-once", "allow-always", "deny"])
    );
    resolve(&mut approver, &asked["id"], "allow-always").unwrap();
    let first = chat_end(&mut writer, "first");
    assert!(text_of(&first).contains("exit code 0"), "{first}");
    // With nobody there to ask.
    approver.leave();
    let run = message("/run /usr/bin/id -u", "second");
    writer.call("chat.send", &run).unwrap();
    let second = chat_end(&mut writer, "second");
    assert!(text_of(&second).contains("exit code 0"), "{second}");
    let other = message("/run /usr/bin/id -g", "other");
    writer.call("chat.send", &other).unwrap();
    let other = chat_end(&mut writer, "other");
    assert!(
        text_of(&other).contains("nobody who could approve"),
        "{other}"
    );
}

#[test]
fn n6_a_nodes_policy_is_read_and_set_by_an_administrator() {
    let lab = Lab::start();
    let node = node_id(&lab);
    let mut admin = Peer::operator(&lab.gateway);
    let mut writer = writer(&lab.gateway);
    let get = json!({"nodeId": node});
    for method in ["exec.approvals.node.get", "exec.approvals.node.set"] {
        let error = writer.call(method, &get).unwrap_err();
        assert_eq!(error.message(), "missing scope: operator.admin", "{method}");
    }
    let before = admin.call("exec.approvals.node.get", &get).unwrap();
    assert_eq!(before["exists"], false);
    assert_eq!(
        before["file"],
        json!({"version": 1, "defaults": {}, "agents": {}})
    );
    let file = json!({"version": 1, "defaults": {"security": "deny"}, "agents": {"main": {"allowlist": [{"pattern": "/bin/ls"}]}}});
    let set = json!({"nodeId": node, "file": file, "baseHash": before["hash"]});
    let after = admin.call("exec.approvals.node.set", &set).unwrap();
    assert_eq!(after["file"], file);
    let id = node.as_str().unwrap();
    let got = lab.gateway.cli(&["approvals", "get", "--node", id]);
    let got = String::from_utf8(got.stdout).unwrap();
    assert!(got.contains("all agents  security deny"), "{got}");
    assert!(got.contains("agent main  -\n  /bin/ls"), "{got}");
    let remove = ["approvals", "allowlist", "remove", "/bin/ls", "--node", id];
    assert!(lab.gateway.cli(&remove).status.success());
    assert!(!lab.gateway.cli(&remove).status.success(), "it is gone");
    let left = admin.call("exec.approvals.node.get", &get).unwrap();
    let emptied = json!({"main": {"allowlist": []}});
    assert_eq!(left["file"]["agents"], emptied, "and no other field");
    let error = admin.call("exec.approvals.node.set", &set).unwrap_err();
    assert!(error.message().contains("reload and retry"), "{error:?}");
    assert!(lab.is_refused("/run echo x").contains("security=deny"));
    // The node says so by itself, too.
    let about = json!({"nodeId": node});
    let said = |report: &Value| {
        let host = &report["nodes"][0]["host"];
        let changes = report["nodes"][0]["changes"].to_string();
        host["execMode"] == "deny" && changes.contains("exec policy")
    };
    let mut report = || admin.call("portcullis.nodes.report", &about).unwrap();
    let begun = Instant::now();
    while !said(&report()) {
        assert!(begun.elapsed() < PATIENCE, "{}", report());
        thread::sleep(Duration::from_millis(20));
    }
    assert!(lab.gateway.audit().contains("policy.changed"));
}
