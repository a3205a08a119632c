//! The main job with the real node host: a message reaches a node, the node executes, the result comes back.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::nodes::PROGRESS;
use crate::secrets::{RELOADED, reload};
use crate::support::{
    Connect, Device, Gateway, PASSWORD, PATIENCE, Peer, Process, Setup, peak_memory_kib, program,
};

/// A Gateway and one approved node host.
pub(crate) struct Lab {
    pub(crate) gateway: Gateway,
    pub(crate) node: NodeHost,
}

impl Lab {
    pub(crate) fn start() -> Self {
        Self::of(Gateway::start())
    }

    pub(crate) fn of(gateway: Gateway) -> Self {
        Self::with_node_config(gateway, None)
    }

    pub(crate) fn with_node_config(gateway: Gateway, config: Option<&str>) -> Self {
        let home = TempDir::new().unwrap();
        if let Some(config) = config {
            fs::create_dir(home.path().join("state")).unwrap();
            fs::write(home.path().join("state/openclaw.json"), config).unwrap();
        }
        let node = NodeHost::start(home, gateway.port(), Some(PASSWORD));
        Self::approved(gateway, node)
    }

    pub(crate) fn approved(gateway: Gateway, node: NodeHost) -> Self {
        let pending = gateway.cli_json(&["nodes", "pending"]);
        let request = pending["pending"][0]["requestId"].as_str().unwrap();
        let approved = gateway.cli(&["nodes", "approve", request]);
        assert!(approved.status.success(), "{approved:?}");
        Self { gateway, node }
    }

    /// What `agent --message` prints; it must succeed.
    pub(crate) fn say(&self, message: &str) -> String {
        let output = self.gateway.cli(&["agent", "--message", message]);
        assert!(output.status.success(), "{message}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What `agent --message` prints of a call that came to no result; it must fail, and say so in a code.
    pub(crate) fn is_refused(&self, message: &str) -> String {
        let output = self.gateway.cli(&["agent", "--message", message]);
        assert_eq!(output.status.code(), Some(1), "{message}: {output:?}");
        let [said, why] = [output.stdout, output.stderr].map(|it| String::from_utf8(it).unwrap());
        assert!(
            why.contains("code: ") && why.contains("dispatched: "),
            "{why}"
        );
        said + &why
    }

    /// Waits until the node is there again.
    pub(crate) fn node_returns(&mut self) {
        self.node.process.line("connected to");
    }

    /// A file in the node's home.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.node.home.path().join(name)
    }
}

/// `portcullis node run` in a home of its own.
pub(crate) struct NodeHost {
    pub(crate) home: TempDir,
    pub(crate) process: Process,
}

impl NodeHost {
    /// Returns once it is connected.
    pub(crate) fn start(home: TempDir, port: u16, password: Option<&str>) -> Self {
        let mut command = program(home.path(), &[]);
        command.args([
            "node",
            "run",
            "--host",
            "127.0.0.1",
            "--display-name",
            "lab",
        ]);
        command.args(["--port", &port.to_string()]);
        command.envs(password.map(|it| ("OPENCLAW_GATEWAY_PASSWORD", it)));
        let mut process = Process::spawn(&mut command);
        process.line("connected to");
        Self { home, process }
    }

    /// Ends it and starts it again without the shared secret.
    pub(crate) fn start_again_without_password(self, gateway: &Gateway) -> Self {
        let Self { home, process } = self;
        drop(process);
        Self::start(home, gateway.port(), None)
    }
}

/// A named pipe that a command and all of its children hold open, so that its end shows theirs.
pub(crate) struct Leash {
    path: PathBuf,
    held: Receiver<()>,
}

impl Leash {
    pub(crate) fn new(path: PathBuf) -> Self {
        make_pipe(&path);
        let (tell, held) = channel();
        let pipe = path.clone();
        thread::spawn(move || {
            let mut pipe = File::open(pipe).unwrap();
            let mut byte = [0];
            pipe.read_exact(&mut byte).unwrap();
            let _ = tell.send(());
            assert_eq!(pipe.read(&mut byte).unwrap(), 0);
            let _ = tell.send(());
        });
        Self { path, held }
    }

    /// The beginning of a command: takes the leash and says so.
    pub(crate) fn take(&self) -> String {
        format!("exec 3>{}; printf x >&3", self.path.display())
    }

    pub(crate) fn wait_until_held(&self) {
        self.held.recv_timeout(PATIENCE).expect("nobody took it");
    }

    pub(crate) fn wait_until_free(&self) {
        self.held.recv_timeout(PATIENCE).expect("somebody holds it");
    }
}

fn make_pipe(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

pub(crate) fn message(text: &str, key: &str) -> Value {
    json!({"sessionKey": "main", "message": text, "idempotencyKey": key})
}

/// The last `chat` event of a run.
pub(crate) fn chat_end(peer: &mut Peer, run_id: &str) -> Value {
    peer.frame(|frame| {
        let payload = &frame["payload"];
        let state = payload["state"].as_str().unwrap_or_default();
        frame["event"] == "chat"
            && payload["runId"] == run_id
            && matches!(state, "final" | "error" | "aborted")
    })["payload"]
        .take()
}

pub(crate) fn text_of(chat: &Value) -> &str {
    chat["message"]["content"][0]["text"]
        .as_str()
        .unwrap_or_else(|| panic!("no text: {chat}"))
}

/// A turn that holds its session until it is let go, and one behind it that would leave a proof.
pub(crate) struct Queued {
    gate: PathBuf,
    proof: PathBuf,
}

impl Queued {
    /// Returns when the first has begun and the second waits.
    pub(crate) fn by(peer: &mut Peer, lab: &Lab, name: &str) -> Self {
        let path = |what: &str| lab.path(&format!("{name}-{what}"));
        let (gate, proof, leash) = (path("gate"), path("proof"), Leash::new(path("leash")));
        make_pipe(&gate);
        let first = format!("/run {}; read go < {}", leash.take(), gate.display());
        let second = format!("/run touch {}", proof.display());
        peer.call("chat.send", &message(&first, &format!("{name}-first")))
            .unwrap();
        leash.wait_until_held();
        peer.call("chat.send", &message(&second, &format!("{name}-second")))
            .unwrap();
        Self { gate, proof }
    }

    /// Lets the first go; the second must end refused.
    pub(crate) fn expect_refusal(self, heard_by: &mut Peer, name: &str) {
        fs::write(&self.gate, "go\n").unwrap();
        let end = chat_end(heard_by, &format!("{name}-second"));
        assert!(text_of(&end).contains("was withdrawn"), "{end}");
        assert!(!self.proof.exists());
    }
}

/// `agent` to its end: the second answer under the one id.
fn agent(peer: &mut Peer, text: &str, key: &str) -> String {
    let id = peer.request("agent", &json!({"message": text, "idempotencyKey": key}));
    assert_eq!(peer.answer(&id).unwrap()["status"], "accepted");
    let end = peer.answer(&id).unwrap();
    let text = &end["result"]["payloads"][0]["text"];
    text.as_str().unwrap_or_else(|| panic!("{end}")).to_owned()
}

#[test]
fn another_agent_than_ours_is_refused_not_replaced() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let turn = |agent: &str| json!({"message": "/help", "agentId": agent, "idempotencyKey": agent});
    let error = operator.call("agent", &turn("nope")).unwrap_err();
    assert_eq!(error.code(), "INVALID_REQUEST");
    assert!(error.message().starts_with("unknown agent id"), "{error:?}");
    for method in ["chat.history", "chat.startup", "chat.abort"] {
        let params = json!({"sessionKey": "main", "agentId": "nope"});
        let error = operator.call(method, &params).unwrap_err();
        assert!(error.message().starts_with("unknown agent id"), "{error:?}");
    }
    let history = json!({"sessionKey": "main", "agentId": " Main "});
    let history = operator.call("chat.history", &history).unwrap();
    assert_eq!(history["messages"], json!([]));
    assert_eq!(
        operator.call("agent", &turn("main")).unwrap()["status"],
        "accepted"
    );
    let other = gateway.cli(&["agent", "--agent", "nope", "--message", "/help"]);
    assert_eq!(other.status.code(), Some(1), "{other:?}");
}

#[test]
fn a_message_reaches_the_node_and_its_output_comes_back() {
    let lab = Lab::start();
    let said = lab.say("/run echo hi");
    assert!(said.starts_with("lab ("), "{said}");
    assert!(said.contains("exit code 0"), "{said}");
    assert!(said.contains("\nhi\n"), "{said}");

    let said = lab.say("/run echo oops >&2; exit 3");
    assert!(said.contains("exit code 3"), "{said}");
    assert!(said.contains("stderr:\n```\noops\n```"), "{said}");

    let said = lab.say("/nodes");
    assert!(
        said.starts_with("lab (") && said.contains("ready"),
        "{said}"
    );
    let said = lab.say("/which sh no-such-program");
    assert!(said.contains("\nsh: /"), "{said}");
    assert!(said.contains("\nno-such-program: not found"), "{said}");
    let said = lab.say("/help");
    assert!(said.contains("/run [node] <command>"), "{said}");
    let said = lab.say("how are you?");
    assert!(said.starts_with("No model is configured"), "{said}");
}

#[test]
fn a_command_sees_none_of_the_secrets_that_the_node_host_was_given() {
    let lab = Lab::start();
    let said = lab.say("/run env; cat /proc/$$/environ");
    assert!(said.contains("PATH="), "{said}");
    assert!(!said.contains(PASSWORD), "{said}");
    assert!(!said.contains("OPENCLAW"), "{said}");
}

#[test]
fn what_a_command_prints_is_seen_before_it_ends() {
    let full = r#"{"tools":{"exec":{"mode":"full"}}}"#;
    let gateway = Setup::default().config(full).start();
    let lab = Lab::with_node_config(gateway, Some(full));
    let node = lab.gateway.cli_json(&["nodes", "list"])["nodes"][0]["nodeId"].clone();
    let gate = lab.path("gate");
    make_pipe(&gate);
    let script = format!("echo first; read go < {}; echo second", gate.display());
    let params = json!({"command": ["sh", "-c", script]});
    let open = || fs::write(&gate, "go\n").unwrap();

    // In the chat, for who follows tools.
    let mut peer = Peer::open(&lab.gateway);
    let caps = ["tool-events", PROGRESS];
    peer.connect(&Connect::cli().with("caps", json!(caps)))
        .unwrap();
    let text = format!("/run {script}");
    peer.call("chat.send", &message(&text, "live")).unwrap();
    let shown = peer
        .frame(|frame| frame["event"] == "agent" && frame["payload"]["data"]["phase"] == "update");
    let shown = &shown["payload"]["data"]["partialResult"]["content"][0]["text"];
    assert_eq!(shown, "first\n");
    open();
    let end = chat_end(&mut peer, "live");
    assert!(text_of(&end).contains("\nfirst\nsecond\n"), "{end}");

    // By who invokes and asked to hear it; nobody else does.
    let mut silent = Peer::operator(&lab.gateway);
    let asked =
        json!({"nodeId": node, "command": "system.run", "params": params, "idempotencyKey": "k"});
    let id = peer.request("node.invoke", &asked);
    let heard = peer.event(PROGRESS);
    let want = json!({"nodeId": node, "idempotencyKey": "k", "seq": 0, "chunk": "first\n"});
    assert_eq!(heard, want);
    open();
    let answer = peer.answer(&id).unwrap();
    assert_eq!(answer["payload"]["stdout"], "first\nsecond\n");
    let mut asked = asked;
    asked["idempotencyKey"] = json!("other");
    let id = silent.request("node.invoke", &asked);
    open();
    assert_eq!(silent.answer(&id).unwrap()["payload"], answer["payload"]);
    assert!(!silent.has_heard(PROGRESS));

    // On the terminal, apart from the result.
    let params = params.to_string();
    let args = [
        "nodes",
        "invoke",
        "--node",
        "lab",
        "--command",
        "system.run",
    ];
    let mut command = program(lab.gateway.home(), &[]);
    command.args(args).args(["--params", &params]);
    let mut running = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stderr = BufReader::new(running.stderr.take().unwrap());
    stderr.read_line(&mut line).unwrap();
    assert_eq!(line, "first\n");
    open();
    let output = running.wait_with_output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let (payload, how) = printed.trim_end().rsplit_once('\n').unwrap();
    let payload: Value = serde_json::from_str(payload).unwrap();
    assert_eq!(payload, answer["payload"]);
    assert!(how.starts_with("dispatched: yes; queue "), "{how}");
}

#[test]
fn a_command_that_prints_a_gigabyte_leaves_everyone_small() {
    let lab = Lab::start();
    let said = lab.say("/run yes 0123456789abcdef | head -c 1000000000; echo the-end >&2");
    assert!(said.len() < 64 * 1024, "{} bytes", said.len());
    assert!(said.contains("exit code 0"), "{said}");
    for pid in [lab.gateway.pid(), lab.node.process.pid()] {
        let peak = peak_memory_kib(pid);
        assert!(peak < 150 * 1024, "{peak} KiB");
    }
    assert!(lab.say("/run echo still here").contains("still here"));
}

#[test]
fn a_command_that_never_ends_is_ended_by_an_abort_with_all_of_its_children() {
    let lab = Lab::start();
    let leash = Leash::new(lab.path("leash"));
    let mut peer = Peer::operator(&lab.gateway);
    let text = format!(
        "/run {}; trap '' TERM HUP INT; (sleep 100; sleep 100) & sleep 100",
        leash.take()
    );
    peer.call("chat.send", &message(&text, "forever")).unwrap();
    leash.wait_until_held();
    let aborted = peer
        .call(
            "chat.abort",
            &json!({"sessionKey": "main", "runId": "forever"}),
        )
        .unwrap();
    assert_eq!(
        aborted,
        json!({"ok": true, "aborted": true, "runIds": ["forever"]})
    );
    assert_eq!(chat_end(&mut peer, "forever")["state"], "aborted");
    leash.wait_until_free();
    assert!(
        lab.gateway
            .audit()
            .contains("\"kind\":\"dispatch.cancelled\"")
    );
    assert!(lab.say("/run echo next").contains("next"));
}

#[test]
fn s7_who_may_write_but_not_approve_cannot_run_a_command_by_talking() {
    let lab = Lab::start();
    let proof = lab.path("ran");
    let text = format!("/run touch {}", proof.display());
    let mut writer = Peer::open(&lab.gateway);
    let scopes = ["operator.read", "operator.write"];
    writer.connect(&Connect::cli().scopes(&scopes)).unwrap();
    let said = agent(&mut writer, &text, "by-agent");
    assert!(said.contains("approval required"), "{said}");
    writer
        .call("chat.send", &message(&text, "by-chat"))
        .unwrap();
    let end = chat_end(&mut writer, "by-chat");
    assert!(text_of(&end).contains("approval required"), "{end}");
    assert!(!proof.exists());

    let mut reader = Peer::open(&lab.gateway);
    reader
        .connect(&Connect::cli().scopes(&["operator.read"]))
        .unwrap();
    let error = reader.call("chat.send", &message(&text, "k")).unwrap_err();
    assert_eq!(error.message(), "missing scope: operator.write");

    // The same words from one who may approve are the approval.
    let mut approver = Peer::operator(&lab.gateway);
    let said = agent(&mut approver, &text, "approved");
    assert!(said.contains("exit code 0"), "{said}");
    assert!(proof.exists());
}

#[test]
fn a_message_that_is_sent_twice_runs_once() {
    let lab = Lab::start();
    let log = lab.path("log");
    let text = format!("/run echo line >> {}", log.display());
    let mut peer = Peer::operator(&lab.gateway);
    let first = peer.call("chat.send", &message(&text, "once")).unwrap();
    let second = peer.call("chat.send", &message(&text, "once")).unwrap();
    assert_eq!(first["status"], "started");
    assert_eq!(second["runId"], first["runId"]);
    assert_eq!(chat_end(&mut peer, "once")["state"], "final");
    // The event comes just before the run counts as finished.
    peer.call("agent.wait", &json!({"runId": "once"})).unwrap();
    let third = peer.call("chat.send", &message(&text, "once")).unwrap();
    assert_eq!(third["status"], "ok");
    let error = peer
        .call("chat.send", &message("/help", "once"))
        .unwrap_err();
    assert_eq!(error.code(), "INVALID_REQUEST", "{error:?}");
    // A later turn of the same session ends after all earlier ones.
    peer.call("chat.send", &message("/nodes", "later")).unwrap();
    chat_end(&mut peer, "later");
    assert_eq!(fs::read_to_string(&log).unwrap(), "line\n");
}

#[test]
fn what_was_acknowledged_outlives_a_sigkill() {
    let mut gateway = Gateway::start();
    let mut peer = Peer::operator(&gateway);
    // No more than may wait in one session, since nothing here waits for a turn to end.
    for n in 0..16 {
        let text = format!("word {n}");
        peer.call("chat.send", &message(&text, &format!("key-{n}")))
            .unwrap();
    }
    gateway.kill();
    gateway.restart();
    let mut peer = Peer::operator(&gateway);
    let history = peer
        .call("chat.history", &json!({"sessionKey": "main"}))
        .unwrap();
    let words: Vec<&str> = history["messages"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|message| message["role"] == "user")
        .filter_map(|message| message["content"].as_str())
        .collect();
    let expected: Vec<String> = (0..16).map(|n| format!("word {n}")).collect();
    assert_eq!(words, expected);
    let output = gateway.cli(&["audit", "verify"]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_sigkill_of_the_gateway_mid_run_loses_no_node_and_runs_nothing_twice() {
    let mut lab = Lab::start();
    lab.node = lab.node.start_again_without_password(&lab.gateway);
    let leash = Leash::new(lab.path("leash"));
    let gate = lab.path("gate");
    make_pipe(&gate);
    let log = lab.path("log");
    let text = format!(
        "/run {}; read go < {}; echo ran >> {}",
        leash.take(),
        gate.display(),
        log.display()
    );
    let mut peer = Peer::operator(&lab.gateway);
    peer.call("chat.send", &message(&text, "cut-short"))
        .unwrap();
    leash.wait_until_held();
    lab.gateway.kill();
    lab.gateway.restart();
    // By its device token, for it knows nothing else.
    lab.node.process.line("connected to");
    // The command went on meanwhile; whatever it says now is for nobody.
    fs::write(&gate, "go\n").unwrap();
    leash.wait_until_free();
    let mut peer = Peer::operator(&lab.gateway);
    let error = peer
        .call("chat.send", &message(&text, "cut-short"))
        .unwrap_err();
    assert!(error.message().contains("is not run again"), "{error:?}");
    assert!(lab.say("/run echo again").contains("again"));
    assert_eq!(fs::read_to_string(&log).unwrap(), "ran\n");
    let output = lab.gateway.cli(&["audit", "verify"]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_run_whose_node_dies_may_have_run_and_says_so() {
    let lab = Lab::start();
    let leash = Leash::new(lab.path("leash"));
    let text = format!("/run {}; sleep 100", leash.take());
    let node = Pid::from_raw(lab.node.process.pid().try_into().unwrap()).unwrap();
    let killed = thread::spawn(move || {
        leash.wait_until_held();
        kill_process(node, Signal::KILL).unwrap();
    });
    let said = lab.is_refused(&text);
    killed.join().unwrap();
    for part in [
        "Unknown, it may have run; find out before you repeat it (UNAVAILABLE): DISCONNECTED",
        "find out on the node whether it ran",
        "code: UNAVAILABLE (network, dispatched: unknown)",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("node run"), "{said}");
    // What lived on is the command's own; the next one is not sent at all.
    let said = lab.is_refused("/run echo again");
    assert!(
        said.starts_with("Refused, not sent (NOT_CONNECTED)"),
        "{said}"
    );
    assert!(said.contains("(network, dispatched: no)"), "{said}");
    let said = lab.is_refused("/which sh");
    assert!(
        said.starts_with("Refused, not sent (NOT_CONNECTED)"),
        "{said}"
    );
}

#[test]
fn a_reload_binds_commands_to_another_node_at_once() {
    let lab = Lab::start();
    assert!(lab.say("/run echo here").contains("exit code 0"));
    for config in [
        "{tools: {exec: {node: 'elsewhere'}}}",
        "{agents: {entries: {main: {tools: {exec: {node: 'elsewhere'}}}}}}",
    ] {
        reload(&lab.gateway, config, RELOADED);
        let said = lab.is_refused("/run echo here");
        assert!(said.contains("no node is called elsewhere"), "{said}");
        assert!(said.contains("tools.exec.node"), "{said}");
        reload(&lab.gateway, "{}", RELOADED);
        assert!(lab.say("/run echo here").contains("exit code 0"));
    }
    let log = lab.gateway.stderr();
    assert!(!log.contains("wait for a restart"), "{log}");
}

#[test]
fn a_run_that_is_refused_before_it_is_sent_is_on_record_once() {
    let lab = Lab::start();
    let mut writer = Peer::open(&lab.gateway);
    let scopes = ["operator.read", "operator.write"];
    writer.connect(&Connect::cli().scopes(&scopes)).unwrap();
    let end = agent(&mut writer, "/run echo x", "nobody");
    assert!(end.contains("nobody who could approve"), "{end}");
    let rules = |expected: &[&str]| {
        let expected = expected
            .iter()
            .map(|rule| format!("\"rule\":\"{rule}\""))
            .collect::<Vec<_>>();
        let begun = Instant::now();
        loop {
            let audit = lab.gateway.audit();
            let found: Vec<&str> = audit
                .lines()
                .filter(|it| it.contains("dispatch.refused"))
                .collect();
            if found.len() >= expected.len() || begun.elapsed() > PATIENCE {
                assert_eq!(found.len(), expected.len(), "{found:#?}");
                for (found, rule) in found.iter().zip(&expected) {
                    assert!(found.contains(rule.as_str()), "{found}");
                }
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
    };
    rules(&["unapproved"]);
    reload(
        &lab.gateway,
        "{tools: {exec: {mode: 'allowlist'}}}",
        RELOADED,
    );
    let said = lab.is_refused("/run echo x");
    assert!(
        said.starts_with("Refused, not sent (ALLOWLIST_MISS)"),
        "{said}"
    );
    reload(&lab.gateway, "{tools: {exec: {mode: 'deny'}}}", RELOADED);
    let said = lab.is_refused("/run echo x");
    assert!(
        said.starts_with("Refused, not sent (EXEC_DENIED)"),
        "{said}"
    );
    rules(&["unapproved", "allowlist_miss", "exec_denied"]);
    // What keeps the planning from the node keeps the command from it, and is recorded there.
    let denies = "{gateway: {nodes: {commands: {deny: ['system.run.prepare']}}}}";
    reload(&lab.gateway, denies, RELOADED);
    let said = lab.is_refused("/run echo x");
    assert!(
        said.starts_with("Refused, not sent (INVALID_REQUEST)"),
        "{said}"
    );
    rules(&["unapproved", "allowlist_miss", "exec_denied", "denied"]);
}

#[test]
fn a_node_host_that_asks_refuses_what_arrives_without_an_approval() {
    let config = r#"{"tools":{"exec":{"mode":"full"}}}"#;
    let lab = Lab::of(Setup::default().config(config).start());
    let nodes = lab.gateway.cli_json(&["nodes", "list"]);
    let mut peer = Peer::operator(&lab.gateway);
    let proof = lab.path("ran");
    let error = peer
        .call(
            "node.invoke",
            &json!({
                "nodeId": nodes["nodes"][0]["nodeId"],
                "command": "system.run",
                "params": {
                    "command": ["touch", proof.to_str().unwrap()],
                    "approved": true,
                    "approvalDecision": "allow-once",
                },
                "idempotencyKey": "k",
            }),
        )
        .unwrap_err();
    assert_eq!(
        error.message(),
        "SYSTEM_RUN_DENIED: SYSTEM_RUN_DENIED: approval required"
    );
    assert!(!proof.exists());
}

#[test]
fn k1_what_a_device_queued_ends_with_its_right() {
    let lab = Lab::start();
    let mut operator = Peer::operator(&lab.gateway);
    for method in [
        "device.pair.remove",
        "device.token.revoke",
        "device.token.rotate",
    ] {
        let device = Device::new();
        let (mut peer, _) = Peer::admitted(&lab.gateway, &Connect::cli(), &device);
        let queued = Queued::by(&mut peer, &lab, method);
        let mut params = json!({"deviceId": device.id});
        if method != "device.pair.remove" {
            params["role"] = json!("operator");
        }
        operator.call(method, &params).unwrap();
        assert_eq!(peer.closed().0, 4001, "{method}");
        // Paired again, it is another device: what the old one queued stays void.
        let (_again, _) = Peer::admitted(&lab.gateway, &Connect::cli(), &device);
        queued.expect_refusal(&mut operator, method);
    }
    // Whoever rotates its own token goes on.
    let device = Device::new();
    let (mut peer, _) = Peer::admitted(&lab.gateway, &Connect::cli(), &device);
    let params = json!({"deviceId": device.id, "role": "operator"});
    peer.call("device.token.rotate", &params).unwrap();
    peer.call("chat.send", &message("/run echo on", "own"))
        .unwrap();
    let end = chat_end(&mut peer, "own");
    assert!(text_of(&end).contains("exit code 0"), "{end}");
    assert!(lab.gateway.audit().contains("caller_withdrawn"));
}
