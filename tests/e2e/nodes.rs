//! What a node may be told, who may tell it, and whose word counts as its answer (rows N1–N9).
//!
//! The node here is scripted: it has a device key of its own and says what a test wants it to say.

use std::io::Read as _;

use serde_json::{Value, json};

use crate::secrets::{RELOADED, reload};
use crate::support::{Connect, Device, Gateway, Peer, Setup, WireError};

const RUN: [&str; 3] = ["system.run", "system.run.prepare", "system.which"];
const PENDING: &str =
    "node command not allowed: the node's declared command surface is pending approval";

/// The event with what a command prints, and the capability by which a client asks for it.
pub(crate) const PROGRESS: &str = "portcullis.node.invoke.progress";

/// A scripted node: one device, and its present connection.
pub(crate) struct Node {
    pub(crate) device: Device,
    pub(crate) connect: Connect,
    pub(crate) peer: Peer,
    /// The device token that its first `hello-ok` brought.
    token: String,
}

impl Node {
    /// Connects and is paired silently; what it declares still waits.
    fn pending(gateway: &Gateway, commands: &[&str]) -> Self {
        Self::declaring(gateway, Connect::node().with("commands", json!(commands)))
    }

    fn declaring(gateway: &Gateway, connect: Connect) -> Self {
        let device = Device::new();
        let (peer, hello) = Peer::admitted(gateway, &connect, &device);
        assert_eq!(hello["auth"]["role"], "node");
        Self {
            device,
            connect,
            peer,
            token: hello["auth"]["deviceToken"].as_str().unwrap().to_owned(),
        }
    }

    /// The same, and an operator approves all that it declares.
    pub(crate) fn approved(gateway: &Gateway, operator: &mut Peer, commands: &[&str]) -> Self {
        let node = Self::pending(gateway, commands);
        node.approve(operator);
        node
    }

    pub(crate) fn id(&self) -> &str {
        &self.device.id
    }

    fn approve(&self, operator: &mut Peer) {
        let request = self.entry(operator)["pendingRequestId"].clone();
        operator
            .call("node.pair.approve", &json!({"requestId": request}))
            .unwrap();
    }

    /// The node as operators see it.
    fn entry(&self, operator: &mut Peer) -> Value {
        operator
            .call("node.describe", &json!({"nodeId": self.id()}))
            .unwrap()
    }

    /// A further connection of the same device.
    pub(crate) fn again(&self, gateway: &Gateway) -> Peer {
        Peer::admitted(gateway, &self.connect, &self.device).0
    }

    /// Starts an invoke and returns the operator's request id.
    fn ask(&self, operator: &mut Peer, command: &str, params: &Value) -> String {
        self.ask_within(operator, command, params, 30_000)
    }

    pub(crate) fn ask_within(
        &self,
        operator: &mut Peer,
        command: &str,
        params: &Value,
        timeout_ms: u64,
    ) -> String {
        let device = Device::new();
        operator.request(
            "node.invoke",
            &json!({
                "nodeId": self.id(),
                "command": command,
                "params": params,
                "timeoutMs": timeout_ms,
                // Random enough to be new each time.
                "idempotencyKey": device.id,
            }),
        )
    }

    /// The same under a key of the caller's own.
    pub(crate) fn ask_once(&self, operator: &mut Peer, key: &str, params: &Value) -> String {
        operator.request(
            "node.invoke",
            &json!({
                "nodeId": self.id(),
                "command": "system.which",
                "params": params,
                "idempotencyKey": key,
            }),
        )
    }

    /// An invoke that is refused without the node's hearing of it.
    fn refused(&mut self, operator: &mut Peer, command: &str) -> WireError {
        let id = self.ask(operator, command, &json!({}));
        let error = operator.answer(&id).unwrap_err();
        self.heard_nothing();
        assert_eq!(error.0["details"]["dispatched"], "no", "{error:?}");
        error
    }

    /// No request has been sent to this node that it has not taken.
    pub(crate) fn heard_nothing(&mut self) {
        // Whatever was sent before this answer has arrived before it.
        self.peer.call("node.pending.pull", &json!({})).unwrap();
        assert!(!self.peer.has_heard("node.invoke.request"));
    }

    pub(crate) fn taken(&mut self) -> Value {
        self.peer.event("node.invoke.request")
    }

    pub(crate) fn report(&mut self, request: &Value, payload_json: &str) -> Value {
        let result = self.result(request, payload_json);
        self.peer.call("node.invoke.result", &result).unwrap()
    }

    pub(crate) fn result(&self, request: &Value, payload_json: &str) -> Value {
        json!({"id": request["id"], "nodeId": self.id(), "ok": true, "payloadJSON": payload_json})
    }

    /// A whole round: an operator asks, the node answers, the answer arrives.
    pub(crate) fn serves(&mut self, operator: &mut Peer, command: &str) {
        let id = self.ask(operator, command, &json!({"bins": ["sh"]}));
        let request = self.taken();
        assert_eq!(request["command"], command);
        assert_eq!(request["nodeId"], self.id());
        assert_eq!(self.report(&request, "{\"served\":1}"), json!({"ok": true}));
        let answer = operator.answer(&id).unwrap();
        assert_eq!(answer["payload"], json!({"served": 1}));
    }
}

#[test]
fn n1_nothing_runs_before_an_operator_approved_it_and_then_only_that() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::pending(&gateway, &RUN);
    let error = node.refused(&mut operator, "system.run");
    assert_eq!(error.code(), "INVALID_REQUEST");
    assert_eq!(error.message(), PENDING);
    let entry = node.entry(&mut operator);
    assert_eq!(entry["approvalState"], "pending-approval");
    assert_eq!(entry["commands"], json!([]));
    assert_eq!(
        error.0["details"]["requestId"], entry["pendingRequestId"],
        "the refusal names what to approve"
    );
    let mut plain = Node::approved(&gateway, &mut operator, &["system.which"]);
    plain.serves(&mut operator, "system.which");
    let error = plain.refused(&mut operator, "system.run.prepare");
    assert_eq!(
        error.message(),
        "node command not allowed: command not declared by node"
    );
}

#[test]
fn n1_an_approved_subset_is_all_that_runs() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::pending(&gateway, &RUN);
    let pending = gateway.cli_json(&["nodes", "pending"]);
    let request = pending["pending"][0]["requestId"].as_str().unwrap();
    let stranger = gateway.cli(&["nodes", "approve", request, "--commands", "camera.snap"]);
    assert!(!stranger.status.success(), "{stranger:?}");
    let output = gateway.cli(&["nodes", "approve", request, "--commands", "system.which"]);
    assert!(output.status.success(), "{output:?}");
    node.serves(&mut operator, "system.which");
    let error = node.refused(&mut operator, "system.run.prepare");
    assert!(error.message().contains("was not approved for this node"));
}

#[test]
fn n2_a_reconnect_with_more_commands_keeps_the_old_set_until_it_is_approved() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &["system.which"]);
    node.connect = Connect::node().with("commands", json!(["system.which", "system.notify"]));
    node.peer = node.again(&gateway);
    let entry = node.entry(&mut operator);
    assert_eq!(entry["approvalState"], "pending-reapproval");
    assert_eq!(entry["commands"], json!(["system.which"]));
    node.serves(&mut operator, "system.which");
    assert_eq!(
        node.refused(&mut operator, "system.notify").message(),
        PENDING
    );
    node.approve(&mut operator);
    node.serves(&mut operator, "system.notify");
}

#[test]
fn n2_racing_reconnects_leave_one_session_and_never_the_wider_set() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &["system.which"]);
    let wider = Connect::node().with("commands", json!(["system.which", "system.notify"]));
    let (mut narrow, mut wide) = (Peer::open(&gateway), Peer::open(&gateway));
    let sign = |connect: &Connect, peer: &Peer| {
        let signed = connect.clone();
        signed.signed(&node.device, &peer.nonce, peer.challenged_at)
    };
    let (first, second) = (sign(&node.connect, &narrow), sign(&wider, &wide));
    let ids = (
        narrow.request("connect", &first.params),
        wide.request("connect", &second.params),
    );
    narrow.answer(&ids.0).unwrap();
    wide.answer(&ids.1).unwrap();
    assert_eq!(
        node.entry(&mut operator)["commands"],
        json!(["system.which"])
    );
    assert_eq!(node.peer.closed().0, 4000);
    // One of the two has been replaced by the other.
    let id = node.ask(&mut operator, "system.notify", &json!({}));
    assert!(operator.answer(&id).is_err());
    let status = operator.call("node.list", &json!({})).unwrap();
    assert_eq!(status["nodes"].as_array().unwrap().len(), 1);
}

#[test]
fn n2_a_changed_platform_or_family_is_not_let_in_and_changes_nothing() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &["system.which"]);
    for (key, value) in [("platform", "macos"), ("deviceFamily", "Mac")] {
        let other = node.connect.clone().with_client(key, json!(value));
        let error = Peer::open(&gateway)
            .connect_as(&other, &node.device)
            .unwrap_err();
        assert_eq!(error.code(), "NOT_PAIRED", "{error:?}");
        assert_eq!(error.0["details"]["reason"], "metadata-upgrade");
    }
    node.serves(&mut operator, "system.which");
    assert_eq!(node.entry(&mut operator)["platform"], "linux");
}

#[test]
fn n3_a_platform_that_only_looks_known_gets_nothing() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    for platform in [
        "\u{ff4d}acos",
        "m\u{430}cos",
        "macos\u{a0}",
        "linuxx",
        "plan9",
    ] {
        let connect = Connect::node()
            .with("commands", json!(RUN))
            .with_client("platform", json!(platform));
        let mut node = Node::declaring(&gateway, connect);
        node.approve(&mut operator);
        let error = node.refused(&mut operator, "system.run");
        assert!(
            error.message().contains("gateway.nodes.commands.allow"),
            "{platform:?}: {error:?}"
        );
        assert_eq!(node.entry(&mut operator)["commands"], json!([]));
    }
    // The same with other capitals is the same platform.
    let connect = Connect::node().with_client("platform", json!("Linux"));
    let mut node = Node::declaring(&gateway, connect);
    node.approve(&mut operator);
    node.serves(&mut operator, "system.which");
}

#[test]
fn n4_only_the_node_that_was_asked_may_answer() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut asked = Node::approved(&gateway, &mut operator, &["system.which"]);
    let mut other = Node::approved(&gateway, &mut operator, &["system.which"]);
    let id = asked.ask(&mut operator, "system.which", &json!({}));
    let request = asked.taken();
    for claimed in [other.id().to_owned(), asked.id().to_owned()] {
        let mut forged = other.result(&request, "{\"forged\":true}");
        forged["nodeId"] = json!(claimed);
        let error = other.peer.call("node.invoke.result", &forged).unwrap_err();
        assert_eq!(error.message(), "nodeId mismatch");
    }
    let mut unknown = other.result(&request, "{}");
    unknown["id"] = json!("no-such-invoke");
    let answer = other.peer.call("node.invoke.result", &unknown).unwrap();
    assert_eq!(answer, json!({"ok": true, "ignored": true}));
    // What was pending is still pending, and its owner still answers it, once.
    assert_eq!(asked.report(&request, "{\"own\":1}"), json!({"ok": true}));
    assert_eq!(operator.answer(&id).unwrap()["payload"], json!({"own": 1}));
    assert_eq!(
        asked.report(&request, "{\"own\":2}"),
        json!({"ok": true, "ignored": true})
    );
}

#[test]
fn n4_an_older_socket_of_the_same_node_is_not_listened_to() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &["system.which"]);
    // What the older socket was asked ends with it, and the newer one cannot answer it.
    let lost = node.ask(&mut operator, "system.which", &json!({}));
    let lost_request = node.taken();
    let newer = node.again(&gateway);
    let mut older = std::mem::replace(&mut node.peer, newer);
    let error = operator.answer(&lost).unwrap_err();
    assert_eq!(error.0["details"]["nodeError"]["code"], "DISCONNECTED");
    assert_eq!(
        node.report(&lost_request, "{}"),
        json!({"ok": true, "ignored": true})
    );
    let id = node.ask(&mut operator, "system.which", &json!({}));
    let request = node.taken();
    let forged = node.result(&request, "{\"from\":\"older\"}");
    older.request("node.invoke.result", &forged);
    assert_eq!(older.closed().0, 4000);
    older.leave();
    node.report(&request, "{\"from\":\"newer\"}");
    assert_eq!(
        operator.answer(&id).unwrap()["payload"],
        json!({"from": "newer"})
    );
}

/// A `system.run` whose caller pretends to have an approval; one field's name is written with an escape.
fn pretending(node: &Node) -> String {
    format!(
        r#"{{"type":"req","id":"pretend","method":"node.invoke","params":{{"nodeId":"{}","command":"system.run",
            "idempotencyKey":"k","params":{{"command":["id"],"approved":true,"\u0061pprovalDecision":"allow-always",
            "approvalSource":"x","systemRunPlan":{{"argv":["id"]}},"runId":"x","cwd":"/tmp"}}}}}}"#,
        node.id()
    )
}

#[test]
fn n5_an_approval_that_a_caller_claims_is_none() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &RUN);
    operator.send_text(&pretending(&node));
    let error = operator.answer("pretend").unwrap_err();
    assert_eq!(error.code(), "INVALID_REQUEST");
    assert_eq!(error.message(), "approval required");
    assert_eq!(error.detail(), "APPROVAL_REQUIRED");
    assert_eq!(error.0["details"]["runId"], "x");
    node.heard_nothing();
    assert!(gateway.audit().contains("approval_required"));
}

#[test]
fn n5_in_mode_full_a_node_hears_none_of_the_callers_control_fields() {
    let gateway = Setup::default()
        .config(r#"{"tools":{"exec":{"mode":"full"}}}"#)
        .start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &RUN);
    operator.send_text(&pretending(&node));
    let request = node.taken();
    let mut params: Value = serde_json::from_str(request["paramsJSON"].as_str().unwrap()).unwrap();
    let run_id = params.as_object_mut().unwrap().remove("runId").unwrap();
    assert_ne!(run_id, "x", "the run's id is ours");
    assert_eq!(params, json!({"command": ["id"], "cwd": "/tmp"}));
    node.report(&request, "{}");
    operator.answer("pretend").unwrap();
    // X3: nor a variable that chooses code, in no mode.
    let env = json!({"command": ["id"], "env": {"LD_PRELOAD": "/x"}});
    let loaded =
        json!({"nodeId": node.id(), "command": "system.run", "idempotencyKey": "e", "params": env});
    let error = operator.call("node.invoke", &loaded).unwrap_err();
    assert_eq!(
        error.message(),
        "environment override rejected (blocked override keys: LD_PRELOAD)"
    );
}

#[test]
fn n6_exec_approvals_cannot_be_invoked() {
    let gateway = Setup::default()
        .config(r#"{"gateway":{"nodes":{"commands":{"allow":["system.execApprovals.set"]}}}}"#)
        .start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &["system.execApprovals.set"]);
    for command in ["system.execApprovals.set", "system.execApprovals.get"] {
        assert_eq!(
            node.refused(&mut operator, command).message(),
            "node.invoke does not allow system.execApprovals.*; use exec.approvals.node.*"
        );
    }
    let attempts = gateway.audit().matches("reserved_command").count();
    assert_eq!(attempts, 2);
}

#[test]
fn every_failure_of_an_invoke_says_whether_it_was_sent_and_what_kind_it_is() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &["system.which"]);
    let kind = |error: &WireError| {
        let word = |name: &str| error.0["details"][name].as_str().unwrap().to_owned();
        [word("dispatched"), word("category")]
    };
    let whole = json!({"nodeId": node.id(), "command": "system.which", "idempotencyKey": "k"});
    let long = "x".repeat(257);
    for (name, value) in [
        ("idempotencyKey", json!(7)),
        ("idempotencyKey", json!(long)),
    ] {
        let mut asked = whole.clone();
        asked[name] = value;
        let error = operator.call("node.invoke", &asked).unwrap_err();
        assert_eq!(kind(&error), ["no", "protocol"], "{error:?}");
    }
    let mut reader = Peer::open(&gateway);
    reader
        .connect(&Connect::cli().scopes(&["operator.read"]))
        .unwrap();
    let error = reader.call("node.invoke", &whole).unwrap_err();
    assert_eq!(error.detail(), "MISSING_SCOPE");
    assert_eq!(kind(&error), ["no", "permission"], "{error:?}");
    let said = [
        ("SYSTEM_RUN_DENIED", "SYSTEM_RUN_DENIED: x", "permission"),
        ("UNAVAILABLE", "SYSTEM_RUN_DENIED: x", "permission"),
        ("UNAVAILABLE", "command not supported", "execution"),
    ];
    for (code, message, category) in said {
        let id = node.ask(&mut operator, "system.which", &json!({}));
        let request = node.taken();
        let mut result = node.result(&request, "");
        result["ok"] = json!(false);
        result["error"] = json!({"code": code, "message": message});
        node.peer.call("node.invoke.result", &result).unwrap();
        let error = operator.answer(&id).unwrap_err();
        assert_eq!(kind(&error), ["yes", category], "{error:?}");
        assert!(
            error.0["details"]["timing"]["totalMs"].is_u64(),
            "{error:?}"
        );
    }
    let id = node.ask(&mut operator, "system.which", &json!({}));
    let request = node.taken();
    node.report(&request, r#"{"a":1,"a":2}"#);
    let error = operator.answer(&id).unwrap_err();
    assert_eq!(kind(&error), ["yes", "protocol"], "{error:?}");
    // More calls at once than a connection may have.
    let mut ids: Vec<String> = (0..=256)
        .map(|_| node.ask(&mut operator, "system.which", &json!({})))
        .collect();
    let error = operator.answer(&ids.pop().unwrap()).unwrap_err();
    assert_eq!(kind(&error), ["no", "network"], "{error:?}");
    let id = node.id().to_owned();
    node.peer.leave();
    let gone = json!({"nodeId": id, "command": "system.which", "idempotencyKey": "gone"});
    let mut other = Peer::operator(&gateway);
    let error = other.call("node.invoke", &gone).unwrap_err();
    assert_eq!(kind(&error), ["no", "network"], "{error:?}");
    // A form for people, with what to make of it.
    let args = [
        "nodes",
        "invoke",
        "--node",
        &id,
        "--command",
        "system.which",
    ];
    let failed = gateway.cli(&args);
    let said = String::from_utf8(failed.stderr).unwrap();
    assert!(said.contains("(network, dispatched: no)"), "{said}");
}

#[test]
fn a_result_says_how_long_each_part_took_and_so_does_its_record() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &["system.which"]);
    let id = node.ask_once(&mut operator, "k", &json!({}));
    let request = node.taken();
    std::thread::sleep(std::time::Duration::from_millis(60));
    node.report(&request, "{}");
    let answer = operator.answer(&id).unwrap();
    let ms = |part: &str| answer["timing"][part].as_u64().unwrap();
    assert!(ms("executionMs") >= 50, "{answer}");
    assert!(
        ms("totalMs") >= ms("executionMs") + ms("queueMs"),
        "{answer}"
    );
    let audit = gateway.audit();
    let record = audit.lines().find(|line| line.contains("dispatch.result"));
    let record = record.unwrap();
    for part in ["queueMs", "executionMs", "totalMs"] {
        assert!(record.contains(part), "{record}");
    }
    // What is on record took no time now.
    let again = node.ask_once(&mut operator, "k", &json!({}));
    assert_eq!(operator.answer(&again).unwrap()["timing"], Value::Null);
}

#[test]
fn k1_what_is_forbidden_while_it_is_under_way_ends() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &RUN);
    let mut forbid = |take: &mut dyn FnMut(&mut Peer)| {
        let id = node.ask(&mut operator, "system.which", &json!({}));
        let request = node.taken();
        let mut other = Peer::operator(&gateway);
        take(&mut other);
        let error = operator.answer(&id).unwrap_err();
        assert_eq!(error.detail(), "PAIRING_CHANGED", "{error:?}");
        assert_eq!(error.0["details"]["dispatched"], "yes");
        assert_eq!(error.0["details"]["category"], "permission");
        let cancel = node.peer.event("node.invoke.cancel");
        assert_eq!(cancel["invokeId"], request["id"]);
        let ends = gateway.audit();
        let end = |line: &&str| {
            line.contains("dispatch.result") && line.contains(request["id"].as_str().unwrap())
        };
        assert!(ends.lines().any(|line| end(&line)), "{ends}");
    };
    let about = json!({"nodeId": gateway.cli_json(&["nodes", "list"])["nodes"][0]["nodeId"]});
    // Removed, it asks again at once, to be approved with more or with less than before.
    forbid(&mut |other| {
        other.call("node.pair.remove", &about).unwrap();
        let entry = other.call("node.describe", &about).unwrap();
        assert_eq!(entry["pendingDeclaredCommands"], json!(RUN));
        let decision = json!({"requestId": entry["pendingRequestId"]});
        other.call("node.pair.approve", &decision).unwrap();
    });
}

#[test]
fn k1_a_reload_that_denies_ends_what_is_under_way_and_one_that_allows_has_nodes_ask() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &["system.which", "camera.snap"]);
    let id = node.ask(&mut operator, "system.which", &json!({}));
    node.taken();
    let denies = "{gateway: {nodes: {commands: {deny: ['system.which']}}}}";
    reload(&gateway, denies, RELOADED);
    let error = operator.answer(&id).unwrap_err();
    assert_eq!(error.detail(), "PAIRING_CHANGED", "{error:?}");
    assert_eq!(node.entry(&mut operator)["pendingRequestId"], Value::Null);
    let allows = "{gateway: {nodes: {commands: {allow: ['camera.snap']}}}}";
    reload(&gateway, allows, RELOADED);
    let remedy = |operator: &mut Peer, id: &str| {
        let about = json!({"nodeId": id, "command": "camera.snap"});
        let found = operator.call("portcullis.nodes.explain", &about).unwrap();
        found["change"].as_str().unwrap().to_owned()
    };
    let entry = node.entry(&mut operator);
    let request = entry["pendingRequestId"].as_str().unwrap();
    assert!(remedy(&mut operator, node.id()).contains(request));
    let subset = json!({"requestId": request, "commands": ["system.which"]});
    operator.call("node.pair.approve", &subset).unwrap();
    let remove = format!("portcullis nodes remove --node {};", node.id());
    assert!(remedy(&mut operator, node.id()).starts_with(&remove));
    operator
        .call("node.pair.remove", &json!({"nodeId": node.id()}))
        .unwrap();
    node.approve(&mut operator);
    node.serves(&mut operator, "camera.snap");
}

#[test]
fn k1_a_reload_to_mode_deny_ends_runs() {
    let full = "{tools: {exec: {mode: 'full'}}}";
    let gateway = Setup::default().config(full).start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(
        &gateway,
        &mut operator,
        &["system.run", "system.run.prepare"],
    );
    let run = json!({"command": ["/bin/sleep", "9"]});
    let id = node.ask(&mut operator, "system.run", &run);
    node.taken();
    reload(&gateway, "{tools: {exec: {mode: 'deny'}}}", RELOADED);
    let error = operator.answer(&id).unwrap_err();
    assert_eq!(error.detail(), "PAIRING_CHANGED", "{error:?}");
}

#[test]
fn a_reload_asks_again_only_for_what_it_changes_and_says_what_is_moot() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let node = Node::pending(&gateway, &["system.which", "camera.snap"]);
    let asked = operator.event("node.pair.requested");
    let decision = json!({"requestId": asked["requestId"]});
    operator.call("node.pair.reject", &decision).unwrap();
    operator.event("node.pair.resolved");
    let other = "{gateway: {nodes: {commands: {deny: ['screen.record']}}}}";
    reload(&gateway, other, RELOADED);
    assert_eq!(node.entry(&mut operator)["pendingRequestId"], Value::Null);
    assert!(!operator.has_heard("node.pair.requested"));

    operator
        .call("node.pair.remove", &json!({"nodeId": node.id()}))
        .unwrap();
    operator.event("node.pair.resolved");
    operator.event("node.pair.requested");
    node.approve(&mut operator);
    operator.event("node.pair.resolved");
    let allows = "{gateway: {nodes: {commands: {allow: ['camera.snap']}}}}";
    reload(&gateway, allows, RELOADED);
    let asked = operator.event("node.pair.requested");
    reload(&gateway, other, RELOADED);
    let resolved = operator.event("node.pair.resolved");
    assert_eq!(resolved["requestId"], asked["requestId"]);
    assert_eq!(resolved["decision"], "expired");
    assert_eq!(node.entry(&mut operator)["pendingRequestId"], Value::Null);
    let id = asked["requestId"].as_str().unwrap();
    let audit = gateway.audit();
    let moot = |line: &str| line.contains("pairing.expired") && line.contains(id);
    assert!(audit.lines().any(moot), "{audit}");
}

#[test]
fn a_call_beyond_the_limit_of_a_connection_has_no_effect() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let node = Node::approved(&gateway, &mut operator, &["system.which"]);
    for _ in 0..256 {
        node.ask(&mut operator, "system.which", &json!({"bins": ["sh"]}));
    }
    let turn = json!({"message": "/nodes", "sessionKey": "main", "idempotencyKey": "late"});
    let error = operator.call("agent", &turn).unwrap_err();
    assert!(error.message().starts_with("256 calls"), "{error:?}");
    assert_eq!(error.0["retryable"], true);
    // What is answered at once still is, and nothing of the turn is there.
    let history = json!({"sessionKey": "main"});
    let history = operator.call("chat.history", &history).unwrap();
    assert_eq!(history["messages"], json!([]));
}

#[test]
fn n7_nodes_call_nothing_of_operators_and_operators_nothing_of_nodes() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &["system.which"]);
    let invoke = json!({"nodeId": node.id(), "command": "system.which", "idempotencyKey": "k"});
    let chat = json!({"sessionKey": "main", "message": "/nodes", "idempotencyKey": "k"});
    for (method, params) in [
        ("node.list", json!({})),
        ("node.invoke", invoke),
        ("chat.send", chat),
        ("device.pair.list", json!({})),
        ("health", json!({})),
    ] {
        let error = node.peer.call(method, &params).unwrap_err();
        assert_eq!(error.message(), "unauthorized role: node", "{method}");
    }
    for method in [
        "node.invoke.result",
        "node.invoke.progress",
        "node.event",
        "node.pending.pull",
    ] {
        let error = operator.call(method, &json!({})).unwrap_err();
        assert_eq!(error.message(), "unauthorized role: operator", "{method}");
    }
}

#[test]
fn n8_deny_beats_allow_and_dangerous_commands_are_opt_in() {
    const DANGEROUS: [&str; 4] = ["camera.snap", "screen.record", "sms.send", "system.which"];
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &DANGEROUS);
    assert_eq!(
        node.entry(&mut operator)["commands"],
        json!(["system.which"])
    );
    for command in &DANGEROUS[..3] {
        assert_eq!(
            node.refused(&mut operator, command).message(),
            format!(
                "node command not allowed: {command:?} requires explicit gateway.nodes.commands.allow opt-in"
            )
        );
    }
    let gateway = Setup::default()
        .config(
            r#"{"gateway":{"nodes":{"commands":{
                "allow":["camera.snap","screen.record"],"deny":["camera.snap"]}}}}"#,
        )
        .start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &DANGEROUS);
    node.serves(&mut operator, "screen.record");
    assert_eq!(
        node.refused(&mut operator, "camera.snap").message(),
        "node command not allowed: \"camera.snap\" is denied by gateway.nodes.commands.deny"
    );
}

#[test]
fn n9_the_newest_session_serves_and_the_end_of_an_older_one_changes_nothing() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &["system.which"]);
    let newer = node.again(&gateway);
    let mut older = std::mem::replace(&mut node.peer, newer);
    assert_eq!(older.closed().0, 4000);
    older.leave();
    assert_eq!(node.entry(&mut operator)["connected"], true);
    node.serves(&mut operator, "system.which");
}

#[test]
fn k1_removed_revoked_or_rotated_a_node_is_gone_at_once() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    for method in [
        "device.pair.remove",
        "device.token.revoke",
        "device.token.rotate",
    ] {
        let mut node = Node::approved(&gateway, &mut operator, &["system.which"]);
        let by_token = Connect::node().device_token(&node.token);
        Peer::admitted(&gateway, &by_token, &node.device);
        node.peer = node.again(&gateway);
        let id = node.ask(&mut operator, "system.which", &json!({}));
        node.taken();
        let mut params = json!({"deviceId": node.id()});
        if method != "device.pair.remove" {
            params["role"] = json!("node");
        }
        operator.call(method, &params).unwrap();
        assert_eq!(node.peer.closed().0, 4001, "{method}");
        let error = operator.answer(&id).unwrap_err();
        assert_eq!(error.0["details"]["nodeError"]["code"], "DISCONNECTED");
        let mut back = Peer::open(&gateway);
        let error = back.connect_as(&by_token, &node.device).unwrap_err();
        assert_eq!(error.detail(), "AUTH_DEVICE_TOKEN_MISMATCH", "{method}");
        let id = node.ask(&mut operator, "system.which", &json!({}));
        operator.answer(&id).unwrap_err();
    }
}

#[test]
fn at_the_deadline_the_caller_is_answered_and_the_node_is_told_to_stop() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &["system.which"]);
    let id = node.ask_within(&mut operator, "system.which", &json!({}), 50);
    let request = node.taken();
    assert!(request["timeoutMs"].as_u64().unwrap() <= 50);
    let error = operator.answer(&id).unwrap_err();
    assert_eq!(error.code(), "UNAVAILABLE");
    assert_eq!(error.message(), "TIMEOUT: node invoke timed out");
    assert_eq!(error.0["details"]["dispatched"], "yes");
    assert_eq!(error.0["details"]["category"], "timeout");
    let cancel = node.peer.event("node.invoke.cancel");
    assert_eq!(
        cancel,
        json!({"invokeId": request["id"], "nodeId": node.id()})
    );
    assert!(!gateway.audit().contains("\"late\":true"));
    // What comes after the deadline is on record, and answers nobody.
    assert_eq!(
        node.report(&request, "{}"),
        json!({"ok": true, "ignored": true})
    );
    assert!(gateway.audit().contains("\"late\":true"));
    node.serves(&mut operator, "system.which");
}

#[test]
fn a_node_that_leaves_takes_its_invokes_along_and_nobody_knows_how_far_they_came() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &["system.which"]);
    let id = node.ask(&mut operator, "system.which", &json!({}));
    node.taken();
    node.peer
        .stream()
        .shutdown(std::net::Shutdown::Both)
        .unwrap();
    let error = operator.answer(&id).unwrap_err();
    assert_eq!(error.code(), "UNAVAILABLE");
    assert_eq!(
        error.message(),
        "DISCONNECTED: node disconnected (system.which)"
    );
    assert_eq!(error.0["details"]["dispatched"], "unknown");
    let id = node.ask(&mut operator, "system.which", &json!({}));
    let error = operator.answer(&id).unwrap_err();
    assert_eq!(error.message(), "node not connected");
    assert_eq!(error.0["details"]["dispatched"], "no");
}

#[test]
fn n11_events_of_nodes_are_bounded_and_speak_for_no_other_agent() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &["system.which"]);
    let event =
        |payload: &Value| json!({"event": "exec.finished", "payloadJSON": payload.to_string()});
    let ours = event(&json!({"sessionKey": "agent:main:main", "runId": "r"}));
    node.peer.call("node.event", &ours).unwrap();
    for payload in [
        json!({"sessionKey": "agent:other:main"}),
        json!({"output": "x".repeat(256 * 1024)}),
    ] {
        let error = node.peer.call("node.event", &event(&payload)).unwrap_err();
        assert_eq!(error.code(), "INVALID_REQUEST");
    }
    let id = node.ask(&mut operator, "system.which", &json!({}));
    let request = node.taken();
    let progress = |chunk: String| json!({"invokeId": request["id"], "nodeId": node.id(), "seq": 0, "chunk": chunk});
    let (small, large) = (progress("x".to_owned()), progress("\u{e9}".repeat(8193)));
    node.peer.call("node.invoke.progress", &small).unwrap();
    let error = node.peer.call("node.invoke.progress", &large).unwrap_err();
    assert_eq!(error.message(), "progress chunk too large");
    let mut other = Node::approved(&gateway, &mut operator, &["system.which"]);
    let error = other.peer.call("node.invoke.progress", &small).unwrap_err();
    assert_eq!(error.message(), "nodeId mismatch");
    // A flood is dropped, and the node goes on serving.
    let taken = (0..5000).position(|_| node.peer.call("node.event", &ours).is_err());
    assert!(taken.is_some_and(|taken| taken > 1100), "{taken:?}");
    node.report(&request, "{}");
    operator.answer(&id).unwrap();
}

#[test]
fn n4_progress_is_taken_from_the_node_that_was_asked_once_and_in_order() {
    let gateway = Gateway::start();
    let mut operator = Peer::open(&gateway);
    operator
        .connect(&Connect::cli().with("caps", json!([PROGRESS])))
        .unwrap();
    let mut node = Node::approved(&gateway, &mut operator, &["system.which"]);
    let mut other = Node::approved(&gateway, &mut operator, &["system.which"]);

    // A node that is not ours is not asked, for it might not know the word.
    let id = node.ask(&mut operator, "system.which", &json!({}));
    let request = node.taken();
    assert!(request.get("progress").is_none(), "{request}");
    node.report(&request, "{}");
    operator.answer(&id).unwrap();

    let ours = json!({"event": "portcullis.host", "payloadJSON": "{}"});
    node.peer.call("node.event", &ours).unwrap();
    let asked = json!({"nodeId": node.id(), "command": "system.which", "idempotencyKey": "k"});
    let id = operator.request("node.invoke", &asked);
    let request = node.taken();
    assert_eq!(request["progress"], true);
    let own = node.id().to_owned();
    let tell = |by: &mut Node, claims: &str, seq: u64| {
        let piece = json!({"invokeId": request["id"], "nodeId": claims, "seq": seq, "chunk": format!("{seq};")});
        by.peer.call("node.invoke.progress", &piece)
    };
    let (taken, ignored) = (json!({"ok": true}), json!({"ok": true, "ignored": true}));
    assert_eq!(tell(&mut node, &own, 1).unwrap(), ignored, "a gap");
    assert_eq!(tell(&mut node, &own, 0).unwrap(), taken);
    assert_eq!(tell(&mut node, &own, 0).unwrap(), ignored, "a repeat");
    assert!(tell(&mut other, &own, 1).is_err(), "a foreign node");
    let others = other.id().to_owned();
    assert_eq!(tell(&mut other, &others, 1).unwrap(), ignored);
    let mut older = node.again(&gateway);
    std::mem::swap(&mut older, &mut node.peer);
    assert_eq!(tell(&mut node, &own, 1).unwrap(), ignored, "a new session");
    let heard = operator.event(PROGRESS);
    assert_eq!((&heard["seq"], &heard["chunk"]), (&json!(0), &json!("0;")));
    // The older session was closed, and its invoke with it.
    assert!(operator.answer(&id).is_err());

    let id = operator.request(
        "node.invoke",
        &json!({"nodeId": own, "command": "system.which", "idempotencyKey": "l"}),
    );
    let request = node.taken();
    let piece =
        |seq: u64| json!({"invokeId": request["id"], "nodeId": own, "seq": seq, "chunk": "x"});
    for seq in 0..3 {
        let answer = node.peer.call("node.invoke.progress", &piece(seq));
        assert_eq!(answer.unwrap(), taken);
    }
    node.report(&request, "{}");
    let late = node.peer.call("node.invoke.progress", &piece(3));
    assert_eq!(late.unwrap(), ignored, "after the end");
    operator.answer(&id).unwrap();
    for seq in 0..3 {
        assert_eq!(operator.event(PROGRESS)["seq"], seq);
    }
    assert!(!operator.has_heard(PROGRESS));
}

#[test]
fn w7_progress_is_dropped_for_a_slow_reader_who_still_gets_its_answer() {
    let gateway = Gateway::start();
    let mut operator = Peer::open(&gateway);
    operator
        .connect(&Connect::cli().with("caps", json!([PROGRESS])))
        .unwrap();
    operator.takes_little();
    let mut node = Node::approved(&gateway, &mut operator, &["system.which"]);
    let id = node.ask(&mut operator, "system.which", &json!({}));
    let request = node.taken();
    // More than the sockets and the outbox hold together, within what a node may report. Nobody reads meanwhile.
    for seq in 0..1000_u64 {
        let piece = json!({"invokeId": request["id"], "nodeId": node.id(), "seq": seq, "chunk": "x".repeat(16_000)});
        let answer = node.peer.call("node.invoke.progress", &piece).unwrap();
        assert_eq!(answer, json!({"ok": true}));
    }
    node.report(&request, "{}");
    operator.answer(&id).unwrap();
    let mut seen = 0;
    let mut last = None;
    while operator.has_heard(PROGRESS) {
        let seq = operator.event(PROGRESS)["seq"].as_u64();
        assert!(seq > last, "{seq:?} after {last:?}");
        (last, seen) = (seq, seen + 1);
    }
    assert!((10..1000).contains(&seen), "{seen}");
}

#[test]
fn a_nodes_own_error_is_passed_on() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &["system.which"]);
    let id = node.ask(&mut operator, "system.which", &json!({}));
    let request = node.taken();
    let error = json!({"code": "E_BINS", "message": "no bins given"});
    let result = json!({"id": request["id"], "nodeId": node.id(), "ok": false, "error": error});
    node.peer.call("node.invoke.result", &result).unwrap();
    let refused = operator.answer(&id).unwrap_err();
    assert_eq!(refused.code(), "UNAVAILABLE");
    assert_eq!(refused.message(), "E_BINS: no bins given");
    assert_eq!(refused.0["details"]["nodeError"], error);
    assert_eq!(refused.0["details"]["nodeCommandDispatched"], true);
}

#[test]
fn a_result_is_relayed_as_it_is_or_not_at_all() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &["system.which"]);

    let id = node.ask(&mut operator, "system.which", &json!({}));
    let request = node.taken();
    node.report(&request, "no JSON");
    let answer = operator.answer(&id).unwrap();
    assert_eq!(answer["payload"], json!({"payloadJSON": "no JSON"}));
    assert_eq!(answer["payloadJSON"], "no JSON");

    let id = node.ask(&mut operator, "system.which", &json!({}));
    let request = node.taken();
    node.report(&request, r#"{"exitCode":0,"exitCode":1}"#);
    let error = operator.answer(&id).unwrap_err();
    assert_eq!(error.0["details"]["nodeError"]["code"], "INVALID_RESULT");

    // A frame that repeats a key is no request: what is pending stays so.
    let id = node.ask(&mut operator, "system.which", &json!({}));
    let request = node.taken();
    let twice = node.result(&request, "{}").to_string();
    let twice = twice.replace("\"ok\":true", "\"ok\":true,\"payload\":{\"a\":1,\"a\":2}");
    node.peer.send_text(&format!(
        r#"{{"type":"req","id":"twice","method":"node.invoke.result","params":{twice}}}"#
    ));
    let refused = node.peer.frame(|frame| frame["type"] == "res");
    assert_eq!(refused["ok"], false, "{refused}");
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("invalid request frame"), "{message}");

    let large = json!({"text": "\u{e9}".repeat(512 * 1024)}).to_string();
    assert!(large.len() > 1024 * 1024);
    node.report(&request, &large);
    let answer = operator.answer(&id).unwrap();
    assert!(answer["payloadJSON"] == large.as_str());
    assert!(answer["payload"]["text"].as_str().unwrap().len() == 1024 * 1024);
}

#[test]
fn a_result_over_the_limit_ends_the_nodes_session_and_nothing_else() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &["system.which"]);
    let id = node.ask(&mut operator, "system.which", &json!({}));
    node.taken();
    // A masked text frame that announces one byte more than `policy.maxPayload`; the header is enough.
    let mut header = vec![0x81, 0xff];
    header.extend((25 * 1024 * 1024 + 1_u64).to_be_bytes());
    header.extend([0; 4]);
    node.peer.send_raw(&header);
    assert_eq!(node.peer.closed().0, 1009);
    let error = operator.answer(&id).unwrap_err();
    assert_eq!(error.0["details"]["nodeError"]["code"], "DISCONNECTED");
    assert_eq!(error.0["details"]["dispatched"], "unknown");
    node.peer = node.again(&gateway);
    node.serves(&mut operator, "system.which");
}

#[test]
fn a_node_of_protocol_3_is_served_over_restarts_and_an_operator_is_not() {
    let mut gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let old = |connect: Connect| {
        let older = connect.with("minProtocol", json!(3));
        older.with("maxProtocol", json!(3))
    };
    // As recorded of the reference, with more commands.
    let mut node = Node::declaring(&gateway, old(Connect::node().with("commands", json!(RUN))));
    node.approve(&mut operator);
    node.serves(&mut operator, "system.which");
    node.connect = node.connect.device_token(&node.token);
    for end in [
        |gateway: &mut Gateway| {
            gateway.terminate();
        },
        Gateway::kill,
    ] {
        end(&mut gateway);
        gateway.restart();
        node.peer = node.again(&gateway);
        operator = Peer::operator(&gateway);
        node.serves(&mut operator, "system.which");
    }
    let error = Peer::open(&gateway)
        .connect(&old(Connect::cli()))
        .unwrap_err();
    assert_eq!(error.detail(), "PROTOCOL_MISMATCH", "{error:?}");
}

#[test]
fn a_ping_is_answered_with_its_own_bytes() {
    let gateway = Gateway::start();
    let mut node = Node::pending(&gateway, &RUN);
    // RFC 6455 §5.5.2; the mask is zero. Nothing else is on its way to a node that was not asked anything.
    node.peer.send_raw(b"\x89\x84\0\0\0\0live");
    let mut pong = [0; 6];
    node.peer.stream().read_exact(&mut pong).unwrap();
    assert_eq!(&pong, b"\x8a\x04live");
}

#[test]
fn what_a_node_could_not_take_is_refused_before_it_is_recorded() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &["system.which"]);
    // A quote has two bytes in the caller's frame and four in the node's.
    let quotes = json!({"text": "\"".repeat(7 * 1024 * 1024)});
    let id = node.ask(&mut operator, "system.which", &quotes);
    let error = operator.answer(&id).unwrap_err();
    assert_eq!(error.code(), "INVALID_REQUEST");
    assert!(error.message().ends_with("it takes 26214400"), "{error:?}");
    assert_eq!(error.0["details"]["dispatched"], "no");
    assert!(!gateway.audit().contains("\"kind\":\"dispatch\""));
    node.serves(&mut operator, "system.which");
}

#[test]
fn a_result_too_large_for_its_caller_ends_no_session() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &["system.which"]);
    let id = node.ask(&mut operator, "system.which", &json!({}));
    let request = node.taken();
    // The node's frame has just room for it, the caller's needs a few bytes more around it.
    let text = "x".repeat(25 * 1024 * 1024 - 250);
    node.report(&request, &json!({"text": text}).to_string());
    let error = operator.answer(&id).unwrap_err();
    let details = &error.0["details"];
    assert_eq!(details["nodeError"]["code"], "RESULT_TOO_LARGE");
    assert_eq!(details["dispatched"], "yes");
    node.serves(&mut operator, "system.which");
}
