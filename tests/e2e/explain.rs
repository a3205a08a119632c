//! What would run, and why not: the explanation against dispatch itself, the three states, and what is remembered of a node.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use serde_json::{Value, json};

use crate::run::{Lab, chat_end, message, text_of};
use crate::secrets::{RELOADED, reload};
use crate::support::{Connect, Device, Gateway, PATIENCE, Peer, Setup};

const COMMANDS: [&str; 8] = [
    "system.run",
    "system.run.prepare",
    "system.which",
    "system.notify",
    "camera.snap",
    "screen.record",
    "device.info",
    "system.execApprovals.get",
];

/// A node that never answers: whatever reaches it is dispatched and times out.
struct Silent {
    device: Device,
    peer: Peer,
}

impl Silent {
    fn connect(gateway: &Gateway, platform: &str, commands: &[&str]) -> Self {
        let device = Device::new();
        let peer = Self::session(gateway, &device, platform, commands);
        Self { device, peer }
    }

    fn session(gateway: &Gateway, device: &Device, platform: &str, commands: &[&str]) -> Peer {
        let connect = Connect::node()
            .with_client("platform", json!(platform))
            .with("commands", json!(commands));
        Peer::admitted(gateway, &connect, device).0
    }

    fn approve(&self, operator: &mut Peer, commands: Option<&[&str]>) {
        let about = json!({"nodeId": self.device.id});
        let entry = operator.call("node.describe", &about).unwrap();
        let mut decision = json!({"requestId": entry["pendingRequestId"]});
        if let Some(commands) = commands {
            decision["commands"] = json!(commands);
        }
        operator.call("node.pair.approve", &decision).unwrap();
    }
}

fn explain(operator: &mut Peer, node: &str, command: &str) -> Value {
    let about = json!({"nodeId": node, "command": command});
    operator.call("portcullis.nodes.explain", &about).unwrap()
}

/// Every pair of these nodes and commands: the verdict is dispatch's answer, word for word.
fn agrees(gateway: &Gateway, mode: &str, nodes: &[String]) -> usize {
    let mut operator = Peer::operator(gateway);
    let mut ran = 0;
    for node in nodes {
        for command in COMMANDS {
            let found = explain(&mut operator, node, command);
            let what = format!("{mode} {node} {command}: {found}");
            // A `/run` is planned first, which is refused for a node that does not offer it.
            let plans = found["change"].as_str();
            let plans = plans.is_some_and(|it| it.contains("system.run.prepare"));
            let command = match command {
                "system.run" if plans => "system.run.prepare",
                _ => command,
            };
            let invoke = json!({
                "nodeId": node, "command": command, "params": {"command": ["true"]}, "timeoutMs": 20,
                "idempotencyKey": Device::new().id,
            });
            if command == "system.execApprovals.get" {
                reserved_agrees(&mut operator, node, &found);
                continue;
            }
            let error = operator.call("node.invoke", &invoke).unwrap_err();
            if found["verdict"] == "allow" {
                assert_eq!(error.0["details"]["dispatched"], "yes", "{what} {error:?}");
                ran += 1;
            } else {
                assert_eq!(error.0["details"]["dispatched"], "no", "{what} {error:?}");
                assert_eq!(found["refusal"], error.message(), "{what}");
                assert!(found["change"].is_string(), "{what}");
                let asks = error.detail() == "APPROVAL_REQUIRED";
                assert_eq!(found["verdict"] == "ask", asks, "{what} {error:?}");
            }
        }
    }
    ran
}

/// A command with methods of its own: `node.invoke` never takes it, and what its method says counts.
fn reserved_agrees(operator: &mut Peer, node: &str, found: &Value) {
    let method = "exec.approvals.node.get";
    if found["verdict"] == "allow" {
        let way = format!("approvals get --node {node}");
        assert!(
            found["notes"][0].as_str().unwrap().contains(&way),
            "{found}"
        );
        return;
    }
    let error = operator.call(method, &json!({"nodeId": node})).unwrap_err();
    assert_eq!(found["refusal"], error.message(), "{found}");
    assert_eq!(
        found["change"], error.0["details"]["remediationHint"],
        "{found}"
    );
}

#[test]
fn a_nodes_policy_file_is_explained_by_the_method_that_reads_it() {
    let lab = Lab::start();
    let node = lab.gateway.cli_json(&["nodes", "list"])["nodes"][0]["nodeId"].clone();
    let node = node.as_str().unwrap();
    let text = |args: &[&str]| String::from_utf8(lab.gateway.cli(args).stdout).unwrap();
    let command = ["--command", "system.execApprovals.get"];
    let about = [&["nodes", "explain", "--node", "lab"], &command[..]].concat();
    let found = text(&about);
    assert!(
        found.contains("system.execApprovals.get: it would run now"),
        "{found}"
    );
    assert!(
        found.contains(&format!("approvals get --node {node}")),
        "{found}"
    );
    let list = text(&["nodes", "list"]);
    assert!(!list.contains("execApprovals"), "{list}");
    assert!(
        lab.gateway
            .cli(&["approvals", "get", "--node", "lab"])
            .status
            .success()
    );
    let denies =
        "{gateway: {nodes: {entries: {'NODE': {commands: {deny: ['system.execApprovals.get']}}}}}}";
    reload(&lab.gateway, &denies.replace("NODE", node), RELOADED);
    let found = text(&about);
    let setting = format!("gateway.nodes.entries.{node}.commands.deny");
    assert!(found.contains("it would not run now"), "{found}");
    assert!(found.contains(&format!("from {setting}")), "{found}");
    let refused = lab.gateway.cli(&["approvals", "get", "--node", "lab"]);
    let refused = String::from_utf8(refused.stderr).unwrap();
    assert!(
        refused.contains(&format!("is denied by {setting}")),
        "{refused}"
    );
    assert!(refused.contains("remedy: remove"), "{refused}");
}

#[test]
fn explain_says_that_the_node_has_no_such_program_and_that_nobody_would_be_asked() {
    let lab = Lab::start();
    let explained = |command: &str| {
        let params = json!({"command": [command]}).to_string();
        let about = [
            "nodes",
            "explain",
            "--node",
            "lab",
            "--command",
            "system.run",
            "--params",
        ];
        String::from_utf8(lab.gateway.cli(&[&about[..], &[&params]].concat()).stdout).unwrap()
    };
    for missing in ["no-such-program", "/no/such/program"] {
        let found = explained(missing);
        assert!(
            found.contains("system.run by a `/run`: it would not run now"),
            "{found}"
        );
        assert!(
            found.contains("command not found or not executable"),
            "{found}"
        );
        assert!(found.contains("install it on that machine"), "{found}");
    }
    for there in ["id", "/usr/bin/id", "cat"] {
        let found = explained(there);
        assert!(
            found.contains("system.run by a `/run`: it would run once it is approved"),
            "{found}"
        );
        assert!(
            found.contains("nobody who could approve is connected"),
            "{found}"
        );
        assert!(found.contains("portcullis approvals watch"), "{found}");
        assert!(
            found.contains("`portcullis nodes invoke` of it is refused now, approval required"),
            "{found}"
        );
    }
    let _approver = Peer::operator(&lab.gateway);
    let found = explained("id");
    assert!(!found.contains("nobody who could approve"), "{found}");
}

#[test]
fn n1_explain_says_what_dispatch_does_in_every_situation() {
    // Without `system.run.prepare`, so that no explanation waits for a node that never answers.
    let mut all = COMMANDS.to_vec();
    all.retain(|command| *command != "system.run.prepare");
    for (mode, ran) in [("deny", 6), ("allowlist", 6), ("ask", 6), ("full", 6)] {
        let config = format!(
            "{{gateway: {{nodes: {{commands: {{allow: ['camera.snap'], deny: ['system.notify']}}}}}}, \
             tools: {{exec: {{mode: '{mode}'}}}}}}"
        );
        let gateway = Setup::default().config(&config).start();
        let mut operator = Peer::operator(&gateway);
        let whole = Silent::connect(&gateway, "linux", &all);
        whole.approve(&mut operator, None);
        let subset = Silent::connect(&gateway, "linux", &all);
        subset.approve(&mut operator, Some(&["system.which", "system.run"]));
        let pending = Silent::connect(&gateway, "linux", &all);
        let phone = Silent::connect(&gateway, "ios", &["camera.snap", "device.info"]);
        phone.approve(&mut operator, None);
        let strange = Silent::connect(&gateway, "plan9", &all);
        strange.approve(&mut operator, None);
        let gone = Silent::connect(&gateway, "linux", &all);
        gone.approve(&mut operator, None);
        gone.peer.leave();
        let nobody = Device::new();
        let nodes = [
            &whole.device,
            &subset.device,
            &pending.device,
            &phone.device,
            &strange.device,
            &gone.device,
            &nobody,
        ]
        .map(|device| device.id.clone());
        assert_eq!(agrees(&gateway, mode, &nodes), ran, "{mode}");
    }
}

#[test]
fn n1_a_run_whose_plan_is_refused_is_shown_as_refused() {
    let gateway = Setup::default()
        .config("{tools: {exec: {mode: 'full'}}}")
        .start();
    let mut operator = Peer::operator(&gateway);
    let node = Silent::connect(&gateway, "linux", &["system.run", "system.run.prepare"]);
    node.approve(&mut operator, Some(&["system.run"]));
    let check = |operator: &mut Peer| {
        let plan = json!({
            "nodeId": node.device.id, "command": "system.run.prepare",
            "params": {"command": ["true"]}, "idempotencyKey": Device::new().id,
        });
        let error = operator.call("node.invoke", &plan).unwrap_err();
        let found = explain(operator, &node.device.id, "system.run");
        assert_eq!(found["verdict"], "deny", "{found}");
        assert_eq!(found["refusal"], error.message(), "{found}");
        let own = found["layers"].as_array().unwrap().last().unwrap();
        assert_eq!(own["layer"], "node", "{found}");
        assert_eq!(own["verdict"], "deny", "{found}");
        assert_eq!(own["change"], found["change"], "{found}");
        let report = operator.call("portcullis.nodes.report", &json!({}));
        let report = report.unwrap()["nodes"][0]["commands"].clone();
        let mut commands = report.as_array().unwrap().iter();
        let run = commands.find(|it| it["command"] == "system.run").unwrap();
        assert_eq!(run["verdict"], "deny", "{report}");
        assert_eq!(run["rule"], found["refusal"], "{report}");
    };
    check(&mut operator);
    let denies = "{tools: {exec: {mode: 'full'}}, gateway: {nodes: {commands: {deny: ['system.run.prepare']}}}}";
    reload(&gateway, denies, RELOADED);
    check(&mut operator);
}

#[test]
fn explain_asks_the_node_itself_and_runs_nothing() {
    let gateway = Setup::default()
        .config("{tools: {exec: {mode: 'full'}}}")
        .start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Silent::connect(&gateway, "linux", &["system.run", "system.run.prepare"]);
    node.approve(&mut operator, None);
    let about = json!({
        "nodeId": node.device.id, "command": "system.run",
        "params": {"command": ["id"], "approved": true, "runId": "x"},
    });
    let call = operator.request("portcullis.nodes.explain", &about);
    let asked = node.peer.event("node.invoke.request");
    assert_eq!(asked["command"], "system.run.prepare");
    let params: Value = serde_json::from_str(asked["paramsJSON"].as_str().unwrap()).unwrap();
    assert_eq!(
        params,
        json!({"command": ["id"], "agentId": "main", "security": "full", "ask": "off"})
    );
    let policy = json!({"security": "deny", "ask": "off", "askFallback": "deny"});
    let plan = json!({"argv": ["id"], "commandText": "id", "policySnapshot": policy});
    let plan = json!({"plan": plan}).to_string();
    let result =
        json!({"id": asked["id"], "nodeId": node.device.id, "ok": true, "payloadJSON": plan});
    node.peer.call("node.invoke.result", &result).unwrap();
    let found = operator.answer(&call).unwrap();
    let layers = found["layers"].as_array().unwrap();
    let own = layers
        .iter()
        .find(|layer| layer["layer"] == "node")
        .unwrap();
    assert_eq!(own["verdict"], "deny", "{found}");
    assert_eq!(found["verdict"], "deny", "{found}");
    assert_eq!(found["change"], own["change"], "{found}");
    // It was no dispatch.
    let report = operator
        .call("portcullis.nodes.report", &json!({}))
        .unwrap();
    let commands = report["nodes"][0]["commands"].as_array().unwrap().clone();
    assert!(commands.iter().all(|it| it["hits"] == 0), "{report}");
    // Nor is it shown as one that runs, once the node says so by itself.
    let facts = json!({"shell": "sh", "kernel": "6.1", "execMode": "deny"});
    let event = json!({"event": "portcullis.host", "payloadJSON": facts.to_string()});
    node.peer.call("node.event", &event).unwrap();
    let table = String::from_utf8(gateway.cli(&["nodes", "list"]).stdout).unwrap();
    assert!(!table.contains("system.run,"), "{table}");
    assert!(table.contains("denied: system.run;"), "{table}");
    let names: Vec<&str> = layers
        .iter()
        .map(|it| it["layer"].as_str().unwrap())
        .collect();
    let order = [
        "scope", "paired", "online", "declared", "approved", "policy", "exec", "node",
    ];
    assert_eq!(names, order);

    // Whoever may only read is told what it may not, and the node is not asked for it.
    let mut reader = Peer::open(&gateway);
    reader
        .connect(&Connect::cli().scopes(&["operator.read"]))
        .unwrap();
    let found = explain(&mut reader, &node.device.id, "system.run");
    assert_eq!(
        (&found["verdict"], &found["layers"][0]["verdict"]),
        (&json!("deny"), &json!("deny"))
    );
    assert!(
        found["refusal"]
            .as_str()
            .unwrap()
            .contains("operator.write"),
        "{found}"
    );
    node.peer.call("node.pending.pull", &json!({})).unwrap();
    assert!(!node.peer.has_heard("node.invoke.request"));
    let mut nothing = Peer::open(&gateway);
    nothing
        .connect(&Connect::cli().scopes(&["operator.pairing"]))
        .unwrap();
    let about = json!({"nodeId": node.device.id, "command": "system.run"});
    let error = nothing
        .call("portcullis.nodes.explain", &about)
        .unwrap_err();
    assert_eq!(error.detail(), "MISSING_SCOPE");
}

/// What a node's policy file says, and whether its allowlist holds the command.
fn write_policy(lab: &Lab, words: (&str, &str), rules: &Value) {
    let (security, ask) = words;
    let file = json!({
        "version": 1, "defaults": {"security": security, "ask": ask},
        "agents": {"main": {"allowlist": rules}},
    });
    let path = lab.path("state/portcullis/exec-approvals.json");
    fs::write(&path, file.to_string()).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn n1_explain_says_what_a_run_does_in_every_pair_of_modes_listed_or_not() {
    const WORDS: [(&str, &str); 5] = [
        ("deny", "off"),
        ("allowlist", "off"),
        ("allowlist", "always"),
        ("allowlist", "on-miss"),
        ("full", "off"),
    ];
    let full = r#"{"tools":{"exec":{"mode":"full"}}}"#;
    let lab = Lab::with_node_config(Gateway::start(), Some(full));
    let node = lab.gateway.cli_json(&["nodes", "list"])["nodes"][0]["nodeId"].clone();
    let mut approver = Peer::operator(&lab.gateway);
    let mut writer = Peer::open(&lab.gateway);
    let scopes = ["operator.read", "operator.write"];
    writer.connect(&Connect::cli().scopes(&scopes)).unwrap();
    let run = |writer: &mut Peer, key: &str| {
        let run = message("/run /usr/bin/id -u", key);
        writer.call("chat.send", &run).unwrap();
    };
    // Where the node asks each time, nothing can be allowed for good.
    write_policy(&lab, ("allowlist", "always"), &json!([]));
    run(&mut writer, "always");
    let asked = approver.event("exec.approval.requested");
    assert_eq!(
        asked["request"]["allowedDecisions"],
        json!(["allow-once", "deny"])
    );
    let resolve = json!({"id": asked["id"], "decision": "allow-once"});
    approver.call("exec.approval.resolve", &resolve).unwrap();
    chat_end(&mut writer, "always");
    write_policy(&lab, ("full", "off"), &json!([]));
    run(&mut writer, "first");
    let asked = approver.event("exec.approval.requested");
    let resolve = json!({"id": asked["id"], "decision": "allow-always"});
    approver.call("exec.approval.resolve", &resolve).unwrap();
    chat_end(&mut writer, "first");
    let kept = fs::read(lab.path("state/portcullis/exec-approvals.json")).unwrap();
    let kept: Value = serde_json::from_slice(&kept).unwrap();
    let rules = kept["agents"]["main"]["allowlist"].clone();
    assert_eq!(rules.as_array().unwrap().len(), 1, "{kept}");
    approver.leave();
    let about = json!({
        "nodeId": node, "command": "system.run", "params": {"command": ["/usr/bin/id", "-u"]},
    });
    let (mut ran, mut asks) = (0, 0);
    for (security, ask) in WORDS {
        let config = format!("{{tools: {{exec: {{security: '{security}', ask: '{ask}'}}}}}}");
        reload(&lab.gateway, &config, RELOADED);
        for words in WORDS {
            for rules in [&rules, &json!([])] {
                write_policy(&lab, words, rules);
                let found = writer.call("portcullis.nodes.explain", &about).unwrap();
                let key = Device::new().id;
                run(&mut writer, &key);
                let end = chat_end(&mut writer, &key);
                let said = text_of(&end);
                let what = format!("{security} {ask} {words:?} {rules}: {found} {said}");
                match found["verdict"].as_str().unwrap() {
                    "allow" => {
                        assert!(said.contains("exit code 0"), "{what}");
                        if (security, ask) == ("full", "off") {
                            assert_eq!(found["notes"], Value::Null, "{what}");
                        } else {
                            let mut invoke = about.clone();
                            invoke["idempotencyKey"] = Device::new().id.into();
                            let error = writer.call("node.invoke", &invoke).unwrap_err();
                            assert_eq!(error.0["details"]["dispatched"], "no", "{what}");
                            let note = found["notes"][0].as_str().unwrap();
                            assert!(note.contains(error.message()), "{what}");
                        }
                        ran += 1;
                    }
                    "ask" => {
                        assert!(said.contains("nobody who could approve"), "{what}");
                        let notes = found["notes"].to_string();
                        assert!(notes.contains("portcullis approvals watch"), "{what}");
                        asks += 1;
                    }
                    "deny" => {
                        let refusal = found["refusal"].as_str().unwrap();
                        assert!(said.contains(refusal), "{what}");
                        let file = found["change"].as_str().unwrap();
                        let of_node =
                            refusal.contains("on the node") || refusal.contains("SYSTEM_RUN");
                        assert!(!of_node || file.contains("exec-approvals.json"), "{what}");
                    }
                    _ => panic!("{what}"),
                }
            }
        }
    }
    // Free if listed, in 3 x 3 pairs, and in one anyway; asked always in 5 pairs, and unless it is listed in 3.
    assert_eq!((ran, asks), (10, 13));
}

#[test]
fn what_a_node_declares_and_policy_forbids_is_shown_and_refused_by_its_name() {
    let gateway = Gateway::start();
    let node = Silent::connect(
        &gateway,
        "linux",
        &[
            "system.which",
            "system.run",
            "camera.snap",
            "system.execApprovals.get",
        ],
    );
    let id = node.device.id.as_str();
    let text = |args: &[&str]| String::from_utf8(gateway.cli(args).stdout).unwrap();
    let renamed = gateway.cli(&["nodes", "rename", "--node", id, "--name", "den"]);
    assert!(renamed.status.success(), "{renamed:?}");
    let queue = text(&["nodes", "pending"]);
    for line in [
        "commands  +system.which +system.run\n",
        "declared  not permitted: camera.snap (gateway.nodes.commands.allow)\n",
        "name      den\n",
    ] {
        assert!(queue.contains(line), "{line}: {queue}");
    }
    let pending = gateway.cli_json(&["nodes", "pending"])["pending"][0].clone();
    let request = pending["requestId"].as_str().unwrap();
    let refused = |commands: &str| {
        let output = gateway.cli(&["nodes", "approve", request, "--commands", commands]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let said = refused("camera.snap");
    assert!(
        said.contains("is declared, but gateway.nodes does not permit it"),
        "{said}"
    );
    assert!(
        said.contains("remedy: add \"camera.snap\" to gateway.nodes.commands.allow"),
        "{said}"
    );
    assert!(refused("sms.send").contains("is not among the declared commands"));
    let mut operator = Peer::operator(&gateway);
    let nothing = json!({"requestId": request, "commands": []});
    let error = operator.call("node.pair.approve", &nothing).unwrap_err();
    assert_eq!(error.message(), "commands names no command");
    let twice = [
        "nodes",
        "approve",
        request,
        "--commands",
        "system.which,system.which",
    ];
    let approved = text(&twice);
    assert!(approved.contains("approved: system.which\n"), "{approved}");
}

#[test]
fn when_a_node_was_last_here_outlives_a_restart() {
    let mut gateway = Gateway::start();
    let node = Silent::connect(&gateway, "linux", &["system.which"]);
    let left = Silent::connect(&gateway, "linux", &["system.which"]);
    let gone = left.device.id.clone();
    left.peer.leave();
    let seen = |gateway: &Gateway, id: &str| {
        let list = gateway.cli_json(&["nodes", "list"]);
        let mut nodes = list["nodes"].as_array().unwrap().iter();
        let node = nodes.find(|node| node["nodeId"] == id).unwrap();
        (
            node["lastSeenAtMs"].as_u64(),
            node["lastSeenReason"].clone(),
        )
    };
    let begun = Instant::now();
    while seen(&gateway, &gone).1 != "disconnect" {
        assert!(begun.elapsed() < PATIENCE);
    }
    let before = (seen(&gateway, &node.device.id), seen(&gateway, &gone));
    gateway.kill();
    gateway.restart();
    assert_eq!(
        (seen(&gateway, &node.device.id), seen(&gateway, &gone)),
        before
    );
    assert_eq!(before.0.1, "connect");
    let list = String::from_utf8(gateway.cli(&["nodes", "list"]).stdout).unwrap();
    assert!(!list.contains("never"), "{list}");
}

#[test]
fn the_list_shows_three_states_and_describe_what_changed() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Silent::connect(
        &gateway,
        "linux",
        &[
            "system.run",
            "system.which",
            "camera.snap",
            "system.run.prepare",
        ],
    );
    node.approve(&mut operator, None);
    let facts = json!({"shell": "/bin/zsh", "kernel": "6.1", "execMode": "ask", "execPolicySha256": "ab12"});
    let event = json!({"event": "portcullis.host", "payloadJSON": facts.to_string()});
    let answer = node.peer.call("node.event", &event).unwrap();
    assert_eq!(answer["handled"], true);
    let which = json!({"nodeId": node.device.id, "command": "system.which", "timeoutMs": 20, "idempotencyKey": "k"});
    operator.call("node.invoke", &which).unwrap_err();

    let list = gateway.cli_json(&["nodes", "list"]);
    let report = &list["nodes"][0]["report"];
    let state = |name: &str| {
        let mut commands = report["commands"].as_array().unwrap().iter();
        let found = commands.find(|it| it["command"] == name).unwrap();
        (
            found["callable"] == true,
            found["permitted"] == true,
            found["verdict"].as_str().unwrap(),
        )
    };
    assert_eq!(state("system.which"), (true, true, "allow"));
    assert_eq!(state("system.run"), (true, true, "ask"));
    // What policy forbids is not asked for, so it was never approved either.
    assert_eq!(state("camera.snap"), (false, false, "deny"));
    let text = |args: &[&str]| String::from_utf8(gateway.cli(args).stdout).unwrap();
    let table = text(&["nodes", "list"]);
    assert!(
        table.contains("system.run (asks),system.run.prepare,system.which"),
        "{table}"
    );
    assert!(
        table.contains("denied: camera.snap; see --commands"),
        "{table}"
    );
    let table = text(&["nodes", "list", "--commands"]);
    assert!(
        table.contains("add \"camera.snap\" to gateway.nodes.commands.allow"),
        "{table}"
    );
    let found = text(&[
        "nodes",
        "explain",
        "--node",
        &node.device.id,
        "--command",
        "camera.snap",
    ]);
    assert!(
        found.contains("camera.snap: it would not run now"),
        "{found}"
    );

    node.peer.leave();
    let closed = text(&["nodes", "list"]);
    assert!(closed.contains("last close: "), "{closed}");
    let _again = Silent::session(&gateway, &node.device, "linux", &["system.which"]);
    let about = text(&["nodes", "describe", "--node", &node.device.id]);
    for line in [
        "Shell       /bin/zsh",
        "Exec policy ask, sha256:ab12",
        "Changed     -system.run, -camera.snap",
        "Routes      system.which 1",
        "2 connects since the gateway started",
        "Last close  ",
    ] {
        assert!(about.contains(line), "{line}: {about}");
    }
}
