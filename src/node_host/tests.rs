//! Real processes of this machine. They need `sh`, and what POSIX puts beside it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;
use crate::base::limits::{
    EXEC_GLOB_FILES_MAX, EXEC_OPERAND_BYTES_MAX, EXEC_OPERAND_NAMES_MAX, EXEC_OPERANDS_MAX,
    EXEC_OUTPUT_BYTES_MAX, EXEC_WHICH_NAMES_MAX, NODE_PROGRESS_BYTES_MAX,
};
use crate::machine::files;

struct Machine {
    dir: tempfile::TempDir,
    host: Arc<Host>,
}

impl Machine {
    fn new(mode: Mode) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cwd = fs::canonicalize(dir.path()).unwrap();
        let mut settings = Settings::of_process(mode).unwrap();
        settings.policy_path = Some(cwd.join("state/exec-approvals.json"));
        settings.cwd = cwd;
        settings
            .env
            .push(("OPENCLAW_GATEWAY_TOKEN".into(), "secret".into()));
        Self {
            dir,
            host: Arc::new(Host::new(settings)),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        fs::canonicalize(self.dir.path()).unwrap().join(name)
    }

    fn script(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Machine code that prints its arguments, with this at its end.
    fn binary(&self, name: &str, end: &str) -> String {
        let mut code = fs::read("/usr/bin/echo").unwrap();
        assert!(code.starts_with(b"\x7fELF"));
        code.extend(end.as_bytes());
        let path = self.script(name, "");
        fs::write(&path, code).unwrap();
        path
    }

    async fn call(&self, command: &str, params: Value) -> Result<Value, NodeError> {
        let (_canceller, cancelled) = cancellation();
        let context = Context {
            host: Arc::clone(&self.host),
            cancelled,
            progress: None,
        };
        let payload = handle(command, Some(&params.to_string()), &context).await?;
        Ok(serde_json::from_str(&payload).unwrap())
    }

    async fn sh(&self, script: &str, timeout_ms: u64) -> Value {
        let params = json!({"command": ["sh", "-c", script], "timeoutMs": timeout_ms});
        self.call("system.run", params).await.unwrap()
    }

    async fn refused(&self, params: Value) -> (&'static str, String) {
        let error = self.call("system.run", params).await.unwrap_err();
        (error.code, error.message)
    }
}

/// A zombie has ended; who reaps it is init's affair.
fn is_running(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let state = stat.rsplit_once(") ").map(|(_, rest)| rest.as_bytes()[0]);
        !matches!(state, Some(b'Z' | b'X'))
    })
}

async fn assert_ends(pid: &str) {
    let started = Instant::now();
    while is_running(pid) {
        assert!(started.elapsed() < Duration::from_secs(5), "{pid} lives");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn content(path: &Path) -> String {
    let started = Instant::now();
    loop {
        let text = fs::read_to_string(path).unwrap_or_default();
        if text.ends_with('\n') {
            return text.trim().to_owned();
        }
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "nothing written"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_command_answers_as_recorded() {
    let machine = Machine::new(Mode::Full);
    let (_canceller, cancelled) = cancellation();
    let context = Context {
        host: Arc::clone(&machine.host),
        cancelled,
        progress: None,
    };
    let params = r#"{"command":["echo","hello"],"runId":"3a00038e-f275-4bfe-9cc6-96ab97730402"}"#;
    assert_eq!(
        handle("system.run", Some(params), &context).await.unwrap(),
        r#"{"exitCode":0,"timedOut":false,"success":true,"stdout":"hello\n","stderr":"","error":null}"#
    );
}

#[tokio::test]
async fn arguments_reach_no_shell() {
    let machine = Machine::new(Mode::Full);
    let params = json!({"command": ["printf", "%s|", "$HOME", "a b", "", "*", ";id"]});
    let result = machine.call("system.run", params).await.unwrap();
    assert_eq!(result["stdout"], "$HOME|a b||*|;id|");
}

#[tokio::test]
async fn both_streams_the_code_the_directory_and_no_input() {
    let machine = Machine::new(Mode::Full);
    fs::create_dir(machine.path("sub")).unwrap();
    let params = json!({
        "command": ["sh", "-c", "cat; pwd; echo $FOO >&2; echo \"[$OPENCLAW_GATEWAY_TOKEN]\"; exit 3"],
        "cwd": "sub",
        "env": {"FOO": "bar"},
    });
    let result = machine.call("system.run", params).await.unwrap();
    let pwd = machine.path("sub");
    assert_eq!(result["stdout"], format!("{}\n[]\n", pwd.display()));
    assert_eq!(result["stderr"], "bar\n");
    assert_eq!(
        (&result["exitCode"], &result["success"]),
        (&json!(3), &json!(false))
    );
}

#[tokio::test]
async fn a_gigabyte_of_output_costs_its_head() {
    let machine = Machine::new(Mode::Full);
    let result = machine.sh("yes | head -c 1073741824", 60_000).await;
    let stdout = result["stdout"].as_str().unwrap();
    assert_eq!(result["exitCode"], 0);
    assert!(stdout.len() < EXEC_OUTPUT_BYTES_MAX + 100);
    let note = format!(
        "... {} bytes more ... (truncated)",
        1_073_741_824 - EXEC_OUTPUT_BYTES_MAX
    );
    assert!(stdout.ends_with(&note), "{}", &stdout[stdout.len() - 60..]);
}

/// A piece of a script that waits for a file.
fn wait_for(path: &Path) -> String {
    format!("until [ -e {} ]; do sleep 0.02; done", path.display())
}

#[tokio::test]
async fn what_a_command_prints_is_told_before_it_ends() {
    let machine = Machine::new(Mode::Full);
    let (first, second) = (machine.path("first"), machine.path("second"));
    let script = format!(
        "printf 'one \\342\\202'; {}; printf '\\254\\n'; echo two >&2; {}",
        wait_for(&first),
        wait_for(&second)
    );
    let (progress, mut pieces) = mpsc::channel(1);
    let (_canceller, cancelled) = cancellation();
    let context = Context {
        host: Arc::clone(&machine.host),
        cancelled,
        progress: Some(progress),
    };
    let params = json!({"command": ["sh", "-c", script]}).to_string();
    let run = async { handle("system.run", Some(&params), &context).await.unwrap() };
    let listen = async {
        // The command waits for this to be heard.
        assert_eq!(pieces.recv().await.unwrap(), "one ");
        fs::write(&first, "").unwrap();
        let mut told = String::new();
        while told.len() < "\u{20ac}\ntwo\n".len() {
            told.push_str(&pieces.recv().await.unwrap());
        }
        assert_eq!(told, "\u{20ac}\ntwo\n");
        fs::write(&second, "").unwrap();
    };
    let (result, ()) = tokio::join!(run, listen);
    let result: Value = serde_json::from_str(&result).unwrap();
    assert_eq!(result["stdout"], "one \u{20ac}\n");
    assert_eq!(result["stderr"], "two\n");
}

#[tokio::test]
async fn what_is_told_of_a_flood_is_bounded_and_holds_nothing_up() {
    let machine = Machine::new(Mode::Full);
    let (progress, mut pieces) = mpsc::channel(1);
    let (_canceller, cancelled) = cancellation();
    let context = Context {
        host: Arc::clone(&machine.host),
        cancelled,
        progress: Some(progress),
    };
    let gate = machine.path("gate");
    let script = format!("yes | head -c 10000000; {}", wait_for(&gate));
    let flood = json!({"command": ["sh", "-c", script]}).to_string();
    let run = handle("system.run", Some(&flood), &context);
    let mut told = String::new();
    let listen = async {
        while told.len() < EXEC_OUTPUT_BYTES_MAX {
            let piece = pieces.recv().await.unwrap();
            assert!(piece.len() <= NODE_PROGRESS_BYTES_MAX);
            told.push_str(&piece);
        }
        fs::write(&gate, "").unwrap();
        pieces
    };
    let (result, mut pieces) = tokio::join!(run, listen);
    let result: Value = serde_json::from_str(&result.unwrap()).unwrap();
    assert!(result["stdout"].as_str().unwrap().starts_with(&told));
    assert!(pieces.try_recv().is_err());
    // Nobody takes anything, and the command ends all the same.
    handle("system.run", Some(&flood), &context).await.unwrap();
}

#[tokio::test]
async fn a_flood_that_never_ends_has_a_time() {
    let machine = Machine::new(Mode::Full);
    let result = machine.sh("yes >&2 & yes", 100).await;
    assert_eq!(
        (&result["exitCode"], &result["timedOut"]),
        (&json!(124), &json!(true))
    );
}

#[tokio::test]
async fn the_time_ends_the_whole_group() {
    let machine = Machine::new(Mode::Full);
    let result = machine
        .sh(
            "(sleep 1000 & echo $!; wait) & sleep 1000 & echo $!; echo $$; sleep 1000",
            300,
        )
        .await;
    assert_eq!(
        (&result["exitCode"], &result["timedOut"]),
        (&json!(124), &json!(true))
    );
    assert_eq!(
        (&result["success"], &result["error"]),
        (&json!(false), &Value::Null)
    );
    let pids: Vec<&str> = result["stdout"].as_str().unwrap().lines().collect();
    assert_eq!(pids.len(), 3);
    for pid in pids {
        assert_ends(pid).await;
    }
}

#[tokio::test]
async fn ignored_signals_do_not_help() {
    let machine = Machine::new(Mode::Full);
    let result = machine
        .sh(
            "trap '' TERM INT HUP; echo $$; while :; do sleep 1; done",
            200,
        )
        .await;
    assert_eq!(result["timedOut"], true);
    assert_ends(result["stdout"].as_str().unwrap().trim()).await;
}

#[tokio::test]
async fn closed_output_is_not_the_end() {
    let machine = Machine::new(Mode::Full);
    let result = machine.sh("exec >&- 2>&-; sleep 0.1; exit 7", 10_000).await;
    assert_eq!(result["exitCode"], 7);
    let result = machine.sh("exec >&- 2>&-; sleep 1000", 100).await;
    assert_eq!(result["exitCode"], 124);
}

#[tokio::test]
async fn what_left_the_group_holds_nothing_up() {
    let machine = Machine::new(Mode::Full);
    let started = Instant::now();
    let result = machine.sh("setsid sleep 8 & echo done", 0).await;
    assert_eq!(
        (&result["exitCode"], &result["stdout"]),
        (&json!(0), &json!("done\n"))
    );
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn what_stays_in_the_group_ends_with_the_answer() {
    let machine = Machine::new(Mode::Full);
    let result = machine.sh("sleep 1000 >/dev/null 2>&1 & echo $!", 0).await;
    assert_eq!(result["exitCode"], 0);
    assert_ends(result["stdout"].as_str().unwrap().trim()).await;
}

#[tokio::test]
async fn a_signal_leaves_no_exit_code() {
    let machine = Machine::new(Mode::Full);
    let result = machine.sh("kill -KILL $$", 0).await;
    assert_eq!(result.get("exitCode"), None);
    assert_eq!(result["error"], "ended by signal 9");
}

#[tokio::test]
async fn what_cannot_start_is_a_result() {
    let machine = Machine::new(Mode::Full);
    fs::write(machine.path("plain"), "x").unwrap();
    for params in [
        json!({"command": ["portcullis-no-such-program"]}),
        json!({"command": ["./plain"]}),
        json!({"command": ["/"]}),
        json!({"command": ["echo"], "cwd": "/no/such/directory"}),
        json!({"command": ["echo"], "cwd": "plain"}),
    ] {
        let result = machine.call("system.run", params.clone()).await.unwrap();
        assert_eq!(result.get("exitCode"), None, "{params}");
        assert!(result["error"].is_string(), "{params}");
    }
}

#[tokio::test]
async fn cancelling_ends_the_group() {
    let machine = Machine::new(Mode::Full);
    let (canceller, cancelled) = cancellation();
    let context = Context {
        host: Arc::clone(&machine.host),
        cancelled,
        progress: None,
    };
    let params =
        json!({"command": ["sh", "-c", "sleep 1000 & echo $! > child; echo $$ > leader; wait"]});
    let task =
        tokio::spawn(
            async move { handle("system.run", Some(&params.to_string()), &context).await },
        );
    let child = content(&machine.path("child")).await;
    let leader = content(&machine.path("leader")).await;
    drop(canceller);
    let error = task.await.unwrap().unwrap_err();
    assert_eq!(error.code, NodeError::CANCELLED);
    assert_ends(&child).await;
    assert_ends(&leader).await;
}

#[tokio::test]
async fn dropping_the_call_ends_the_group() {
    let machine = Machine::new(Mode::Full);
    let (_canceller, cancelled) = cancellation();
    let context = Context {
        host: Arc::clone(&machine.host),
        cancelled,
        progress: None,
    };
    let params = json!({"command": ["sh", "-c", "sleep 1000 & echo $! > child; wait"]});
    let task =
        tokio::spawn(
            async move { handle("system.run", Some(&params.to_string()), &context).await },
        );
    let child = content(&machine.path("child")).await;
    task.abort();
    assert_ends(&child).await;
}

#[tokio::test]
async fn commands_at_once_are_bounded() {
    let machine = Machine::new(Mode::Full);
    let all: Vec<_> = (0..EXEC_RUNS_MAX)
        .map(|_| machine.host.slot().unwrap())
        .collect();
    let (code, message) = machine.refused(json!({"command": ["true"]})).await;
    assert_eq!(code, "UNAVAILABLE");
    assert!(message.contains("busy"));
    drop(all);
    assert!(
        machine
            .call("system.run", json!({"command": ["true"]}))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn malformed_requests_are_refused_in_the_references_words() {
    let machine = Machine::new(Mode::Full);
    let (_canceller, cancelled) = cancellation();
    let context = Context {
        host: Arc::clone(&machine.host),
        cancelled,
        progress: None,
    };
    let error = handle("camera.snap", Some("{}"), &context)
        .await
        .unwrap_err();
    assert_eq!(
        (error.code, error.message.as_str()),
        ("UNAVAILABLE", "command not supported")
    );
    for command in COMMANDS {
        let error = handle(command, None, &context).await.unwrap_err();
        assert_eq!(
            (error.code, error.message.as_str()),
            (
                "INVALID_REQUEST",
                "Error: INVALID_REQUEST: paramsJSON required"
            )
        );
        let error = handle(command, Some("{"), &context).await.unwrap_err();
        assert_eq!(error.code, "INVALID_REQUEST");
    }
    for (params, reason) in [
        (json!({}), "command required"),
        (json!({"command": "echo hi"}), "command required"),
        (json!({"command": []}), "command required"),
        (json!({"command": [""]}), "command required"),
        (json!({"command": ["echo", 1]}), "command required"),
        (json!({"command": ["echo", "a\0b"]}), "NUL"),
        (
            json!({"command": ["echo"], "rawCommand": "ls"}),
            "rawCommand does not match command",
        ),
        (
            json!({"command": ["echo", " x"], "rawCommand": "echo x"}),
            "rawCommand does not match command",
        ),
        (
            json!({"command": ["echo"], "timeoutMs": -1}),
            "params malformed",
        ),
        (
            json!({"command": ["echo"], "approved": "yes"}),
            "params malformed",
        ),
        (
            json!({"command": ["echo"], "env": {"PATH": "/x"}}),
            "SYSTEM_RUN_DENIED: environment override rejected (blocked override keys: PATH)",
        ),
    ] {
        for command in ["system.run", "system.run.prepare"] {
            let error = machine.call(command, params.clone()).await.unwrap_err();
            assert_eq!(error.code, "INVALID_REQUEST", "{params}");
            assert!(
                error.message.contains(reason),
                "{params}: {}",
                error.message
            );
        }
    }
    let inner = json!({"command": ["sh", "-lc", "true"], "rawCommand": "true"});
    assert!(machine.call("system.run", inner).await.is_ok());
}

#[tokio::test]
async fn which_finds_bare_names_only() {
    let machine = Machine::new(Mode::Deny);
    let found = machine
        .call(
            "system.which",
            json!({"bins": ["sh", "portcullis-none", "/bin/sh", "../bin/sh", "", ".", "a\0"]}),
        )
        .await
        .unwrap();
    let bins = found["bins"].as_object().unwrap();
    assert_eq!(bins.keys().collect::<Vec<_>>(), ["sh"]);
    assert!(bins["sh"].as_str().unwrap().ends_with("/sh"));
    let many = vec!["sh"; EXEC_WHICH_NAMES_MAX + 1];
    for wrong in [json!({}), json!({"bins": "sh"}), json!({"bins": many})] {
        assert_eq!(
            machine.call("system.which", wrong).await.unwrap_err().code,
            "INVALID_REQUEST"
        );
    }
}

#[test]
fn which_passes_over_what_is_no_program() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("plain"), "").unwrap();
    fs::create_dir(dir.path().join("folder")).unwrap();
    let path = dir.path().as_os_str();
    assert_eq!(which::find("plain", path), None);
    assert_eq!(which::find("folder", path), None);
    fs::set_permissions(dir.path().join("plain"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(which::find("plain", path), Some(dir.path().join("plain")));
    assert_eq!(which::find("Cargo.toml", ".".as_ref()), None);
}

#[tokio::test]
async fn a_plan_has_the_recorded_shape() {
    let machine = Machine::new(Mode::Full);
    let params = json!({"command": ["/bin/sh", "-lc", "echo from-node; uname -s"], "security": "full", "ask": "off",
        "rawCommand": "echo from-node; uname -s", "agentId": "main", "sessionKey": "agent:main:labnode2"});
    let mut answer = machine.call("system.run.prepare", params).await.unwrap();
    // The reference binds a shell's text to nothing.
    let plan = answer["plan"].as_object_mut().unwrap();
    assert!(plan.remove("mutableFileOperand").is_some());
    assert_eq!(
        answer,
        json!({
            "plan": {
                "argv": ["/bin/sh", "-lc", "echo from-node; uname -s"],
                "cwd": machine.path("").to_str().unwrap().trim_end_matches('/'),
                "commandText": "/bin/sh -lc \"echo from-node; uname -s\"",
                "commandPreview": "echo from-node; uname -s",
                "agentId": "main", "sessionKey": "agent:main:labnode2",
                "policySnapshot": {"security": "full", "ask": "off", "askFallback": "deny",
                    "autoAllowSkills": false, "allowlistRules": []},
            },
            "execPolicy": {"security": "full", "ask": "off"},
            "allowAlwaysCoverage": {"complete": false, "patterns": []},
        })
    );
    let pinned = machine
        .call("system.run.prepare", json!({"command": ["echo", "hello"]}))
        .await
        .unwrap();
    let echo = pinned["plan"]["argv"][0].as_str().unwrap();
    assert!(echo.starts_with('/') && echo.ends_with("/echo"));
    assert_eq!(pinned["plan"]["commandText"], format!("{echo} hello"));
    assert_eq!(pinned["plan"]["mutableFileOperand"]["path"], echo);
    assert_eq!(
        pinned["plan"]["mutableFileOperand"]["sha256"]
            .as_str()
            .unwrap()
            .len(),
        64
    );
}

#[tokio::test]
async fn x12_a_request_only_tightens() {
    let machine = Machine::new(Mode::Ask);
    let policy = |params| async {
        machine
            .call("system.run.prepare", params)
            .await
            .map(|answer| answer["execPolicy"].clone())
    };
    let full = json!({"command": ["echo"], "security": "full", "ask": "off"});
    assert_eq!(
        policy(full).await.unwrap(),
        json!({"security": "allowlist", "ask": "on-miss"})
    );
    let deny = json!({"command": ["echo"], "security": "deny"});
    assert_eq!(
        policy(deny).await.unwrap_err().message,
        "SYSTEM_RUN_DENIED: security=deny"
    );
    let wrong = json!({"command": ["echo"], "security": "fulll"});
    assert_eq!(policy(wrong).await.unwrap_err().code, "INVALID_REQUEST");
    let no_cwd = json!({"command": ["echo"], "cwd": "/no/such/directory"});
    assert_eq!(policy(no_cwd).await.unwrap_err().code, "INVALID_REQUEST");
}

#[tokio::test]
async fn the_mode_here_holds_whatever_the_gateway_says() {
    let bare = json!({"command": ["true"]});
    let ask = Machine::new(Mode::Ask);
    assert_eq!(
        ask.refused(bare.clone()).await,
        (
            "SYSTEM_RUN_DENIED",
            "SYSTEM_RUN_DENIED: approval required".to_owned()
        )
    );
    for mode in [Mode::Deny, Mode::Allowlist] {
        let machine = Machine::new(mode);
        assert_eq!(machine.refused(bare.clone()).await.0, "SYSTEM_RUN_DENIED");
        let approved =
            json!({"command": ["true"], "approved": true, "approvalDecision": "allow-once"});
        assert_eq!(machine.refused(approved).await.0, "SYSTEM_RUN_DENIED");
    }
}

/// A prepared command as the Gateway sends it once it was approved.
async fn approved(machine: &Machine, params: Value) -> Value {
    let answer = machine.call("system.run.prepare", params).await.unwrap();
    let plan = &answer["plan"];
    json!({"command": plan["argv"], "rawCommand": plan["commandText"], "systemRunPlan": plan, "cwd": plan["cwd"],
        "agentId": plan["agentId"], "sessionKey": plan["sessionKey"],
        "runId": "r", "approved": true, "approvalDecision": "allow-once"})
}

#[tokio::test]
async fn x1_approved_is_executed_and_nothing_else() {
    let machine = Machine::new(Mode::Ask);
    let good = approved(
        &machine,
        json!({"command": ["echo", "approved hello"], "agentId": "main"}),
    )
    .await;
    let result = machine.call("system.run", good.clone()).await.unwrap();
    assert_eq!(result["stdout"], "approved hello\n");

    let no_match = "explicit approval requires matching systemRunPlan";
    for (reason, pointer, value) in [
        (no_match, "/command/1", json!("approved hello ")),
        (no_match, "/cwd", json!("/")),
        (no_match, "/cwd", Value::Null),
        (no_match, "/agentId", json!("other")),
        (no_match, "/sessionKey", json!("s")),
        (no_match, "/systemRunPlan", Value::Null),
        (no_match, "/systemRunPlan/commandText", json!("ls")),
        (
            "delayed approval requires a prepared policy snapshot",
            "/systemRunPlan/policySnapshot",
            Value::Null,
        ),
        (
            "exec approval policy changed; request approval again",
            "/systemRunPlan/policySnapshot/ask",
            json!("off"),
        ),
        (
            "approval missing script operand binding",
            "/systemRunPlan/mutableFileOperand",
            Value::Null,
        ),
        (
            "approval script operand changed before execution",
            "/systemRunPlan/mutableFileOperand/sha256",
            json!("00"),
        ),
        (
            "approval required",
            "/approvalDecision",
            json!("allow_always "),
        ),
        ("approval required", "/approvalDecision", json!("yes")),
        ("approval required", "/approvalDecision", json!("deny")),
        ("approval required", "/approvalDecision", Value::Null),
        ("approval required", "/approved", Value::Null),
        (
            "approvalSource cannot be combined",
            "/approvalSource",
            json!("auto-review"),
        ),
        (
            "environment override rejected",
            "/env",
            json!({"LD_PRELOAD": "/x"}),
        ),
    ] {
        let mut changed = good.clone();
        // The text would refuse another argv before the plan does.
        changed["rawCommand"] = Value::Null;
        changed["approvalSource"] = Value::Null;
        changed["env"] = Value::Null;
        *changed.pointer_mut(pointer).unwrap() = value;
        let (_, message) = machine.refused(changed).await;
        assert!(message.contains(reason), "{pointer}: {message}");
    }
}

#[tokio::test]
async fn x11_no_consent_is_a_veto_even_where_all_may_run() {
    let machine = Machine::new(Mode::Full);
    let mut it = approved(&machine, json!({"command": ["echo", "x"]})).await;
    assert!(machine.call("system.run", it.clone()).await.is_ok());
    for word in ["deny", "yes", "allow-always "] {
        it["approvalDecision"] = json!(word);
        assert_eq!(machine.refused(it.clone()).await.0, "SYSTEM_RUN_DENIED");
    }
}

#[tokio::test]
async fn x4_an_edited_file_or_a_swapped_directory_is_not_what_was_approved() {
    let machine = Machine::new(Mode::Ask);
    let program = machine.script("tool", "#!/bin/sh\necho one\n");
    let direct = approved(&machine, json!({"command": [program]})).await;
    let interpreted = approved(&machine, json!({"command": ["sh", "tool", "arg"]})).await;
    assert_eq!(
        interpreted["systemRunPlan"]["mutableFileOperand"]["argvIndex"],
        1
    );
    for params in [&direct, &interpreted] {
        assert_eq!(
            machine.call("system.run", params.clone()).await.unwrap()["stdout"],
            "one\n"
        );
    }
    machine.script("tool", "#!/bin/sh\necho two\n");
    for params in [direct, interpreted] {
        let (code, message) = machine.refused(params).await;
        assert_eq!(code, "SYSTEM_RUN_DENIED");
        assert!(message.contains("operand changed"), "{message}");
    }

    // A decoy before the script binds nothing less than the script.
    fs::write(machine.path("README.md"), "true\n").unwrap();
    for command in [
        json!([
            machine.script("bash", "#!/bin/sh\n"),
            "--rcfile",
            "README.md",
            "evil.sh"
        ]),
        json!([
            machine.script("perl5.36-gnu", "#!/bin/sh\n"),
            "-I",
            "README.md",
            "evil.sh"
        ]),
        json!(["env", "sh", "README.md", "evil.sh"]),
        json!(["sh", "--init-file=evil.sh", "README.md"]),
        json!(["awk", "-fevil.sh", "README.md"]),
    ] {
        machine.script("evil.sh", "true\n");
        let decoyed = approved(&machine, json!({"command": command})).await;
        machine.script("evil.sh", "false\n");
        let (_, message) = machine.refused(decoyed).await;
        assert!(message.contains("operand changed"), "{command}: {message}");
    }
    let many: Vec<String> = (0..=EXEC_OPERANDS_MAX)
        .map(|it| machine.script(&format!("f{it}"), "x"))
        .collect();
    let command = [vec!["sh".to_owned()], many].concat();
    let prepared = machine
        .call("system.run.prepare", json!({"command": command}))
        .await;
    assert!(prepared.unwrap_err().message.contains("cannot safely bind"));

    // Nobody has names looked up without end; one name counts once.
    let names = |count: usize| -> String { (0..count).map(|it| format!("n{it} ")).collect() };
    for (text, binds) in [
        ("word ".repeat(2 * EXEC_OPERAND_NAMES_MAX), true),
        (names(EXEC_OPERAND_NAMES_MAX / 2), true),
        (names(2 * EXEC_OPERAND_NAMES_MAX), false),
    ] {
        let params = json!({"command": ["sh", "-c", text]});
        match machine.call("system.run.prepare", params).await {
            Ok(_) => assert!(binds),
            Err(error) => assert!(!binds && error.message.contains("cannot safely bind")),
        }
    }

    let absent = approved(&machine, json!({"command": ["portcullis-no-such-program"]})).await;
    let (_, message) = machine.refused(absent).await;
    assert!(message.contains("absolute program"), "{message}");

    fs::create_dir(machine.path("work")).unwrap();
    let here = approved(&machine, json!({"command": ["echo"], "cwd": "work"})).await;
    fs::rename(machine.path("work"), machine.path("moved")).unwrap();
    std::os::unix::fs::symlink("/", machine.path("work")).unwrap();
    let (_, message) = machine.refused(here).await;
    assert!(message.contains("cwd changed"), "{message}");
}

#[tokio::test]
async fn x7_an_allow_always_keeps_the_real_program_and_nothing_more() {
    let machine = Machine::new(Mode::Ask);
    files::ensure_dir(&machine.path("state")).unwrap();
    let run = |params: Value| async { machine.call("system.run", params).await };
    let id = fs::canonicalize("/usr/bin/id").unwrap();
    let wrapped = json!({"command": ["/bin/sh", "-c", "/usr/bin/id -u"], "agentId": "main"});
    let prepared = machine
        .call("system.run.prepare", wrapped.clone())
        .await
        .unwrap();
    let coverage = &prepared["allowAlwaysCoverage"];
    assert_eq!(coverage["complete"], true, "{prepared}");
    assert_eq!(coverage["patterns"][0]["pattern"], id.to_str().unwrap());
    let plan = &prepared["plan"];
    let mut approved = json!({
        "command": plan["argv"], "cwd": plan["cwd"], "agentId": "main", "systemRunPlan": plan,
        "approved": true, "approvalDecision": "allow-always",
    });
    assert!(run(approved.clone()).await.unwrap()["success"] == true);
    // From now on it runs unasked, bare or wrapped, and so does nothing else.
    let bare = json!({"command": ["/usr/bin/id", "-u"], "agentId": "main"});
    for listed in [wrapped.clone(), bare.clone()] {
        assert_eq!(run(listed).await.unwrap()["success"], true);
    }
    let mut others = vec![
        json!({"command": ["/usr/bin/id", "-g"], "agentId": "main"}),
        json!({"command": ["/usr/bin/id", "-u"], "agentId": "other"}),
        json!({"command": ["/usr/bin/id", "-u"], "agentId": "main", "cwd": "/"}),
        json!({"command": ["/usr/bin/id", "-u"], "agentId": "main", "env": {"LANG": "C"}}),
    ];
    // X7: a program of the same name elsewhere is another program.
    others.push(json!({"command": [machine.script("id", "#!/bin/sh\n"), "-u"], "agentId": "main"}));
    for other in others {
        assert_eq!(
            machine.refused(other).await.1,
            "SYSTEM_RUN_DENIED: approval required"
        );
    }
    let again = machine.call("system.run.prepare", wrapped).await.unwrap();
    let rules = again["plan"]["policySnapshot"]["allowlistRules"]
        .as_array()
        .unwrap();
    assert_eq!(rules.len(), 1);
    // X4: an interpreter's inline code is kept by nobody.
    let inline = json!({"command": ["sh", "-c", "id; id"]});
    let prepared = machine.call("system.run.prepare", inline).await.unwrap();
    assert_eq!(prepared["allowAlwaysCoverage"]["complete"], false);
    approved["command"] = prepared["plan"]["argv"].clone();
    approved["systemRunPlan"] = prepared["plan"].clone();
    approved.as_object_mut().unwrap().remove("agentId");
    run(approved).await.unwrap();
    assert!(
        machine
            .call("system.run", json!({"command": ["sh", "-c", "id; id"]}))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn x4_a_tool_inside_wrappers_is_bound_and_kept_as_it_was_planned() {
    let machine = Machine::new(Mode::Ask);
    files::ensure_dir(&machine.path("state")).unwrap();
    let tool = machine.binary("tool", "one");
    for command in [
        json!(["/usr/bin/env", tool, "x"]),
        json!(["/bin/sh", "-lc", format!("{tool} x")]),
    ] {
        machine.binary("tool", "one");
        let params = json!({"command": command});
        let prepared = machine.call("system.run.prepare", params.clone()).await;
        let prepared = prepared.unwrap();
        assert_eq!(prepared["plan"]["mutableFileOperand"]["path"], json!(tool));
        let mut always = approved(&machine, params).await;
        always["approvalDecision"] = json!("allow-always");
        machine.binary("tool", "two");
        let (_, message) = machine.refused(always.clone()).await;
        assert!(message.contains("operand changed"), "{message}");
        assert!(!machine.path("state/exec-approvals.json").exists());
    }
    machine.binary("tool", "one");
    let params = json!({"command": ["/usr/bin/env", tool, "x"]});
    let mut always = approved(&machine, params).await;
    always["approvalDecision"] = json!("allow-always");
    machine.call("system.run", always).await.unwrap();
    let kept = machine.call("system.execApprovals.get", json!({})).await;
    let kept = kept.unwrap();
    assert_eq!(
        kept["file"]["agents"]["*"]["allowlist"][0]["pattern"],
        json!(tool)
    );
}

#[tokio::test]
async fn x4_what_a_typed_text_names_is_bound() {
    let machine = Machine::new(Mode::Ask);
    for text in [
        "sh a.sh",
        "sh -x ./a.sh; true",
        "true && sh 'a.sh'",
        "FOO=1 sh --init-file=a.sh",
    ] {
        machine.script("a.sh", "true\n");
        let it = approved(&machine, json!({"command": ["/bin/sh", "-lc", text]})).await;
        assert!(machine.call("system.run", it.clone()).await.is_ok());
        machine.script("a.sh", "false\n");
        let (_, message) = machine.refused(it).await;
        assert!(message.contains("operand changed"), "{text}: {message}");
    }
}

/// Each way to name a file in a shell's text, and one who may not see it in the text as it stands.
#[tokio::test]
async fn x4_a_file_is_bound_however_a_text_spells_its_name() {
    let machine = Machine::new(Mode::Ask);
    fs::create_dir(machine.path("sub")).unwrap();
    for (text, file) in [
        (r#"sh "my script.sh""#, "my script.sh"),
        ("./'a b.sh'", "a b.sh"),
        (r"sh my\ script.sh", "my script.sh"),
        (r"sh x\.sh", "x.sh"),
        ("sh \\\nx.\\\nsh", "x.sh"),
        (r#"sh "x".sh"#, "x.sh"),
        (r#"sh "a(b).sh""#, "a(b).sh"),
        ("sh x.s?", "x.sh"),
        ("sh [x].sh", "x.sh"),
        ("sh [[:alpha:]].sh", "x.sh"),
        ("sh [!a-w].sh", "x.sh"),
        ("for f in s*/x.*; do sh $f; done", "sub/x.sh"),
        (r#"true && eval 'sh "a b.sh"'"#, "a b.sh"),
        (r#"sh -c "sh 'a b.sh'""#, "a b.sh"),
        (r#"bash -c 'sh x.s?'"#, "x.sh"),
        ("# don't\nsh 'a b.sh' # won't", "a b.sh"),
        (r#"sh "$(echo 'a b.sh')""#, "a b.sh"),
    ] {
        machine.script(file, "true\n");
        let it = approved(&machine, json!({"command": ["/bin/sh", "-lc", text]})).await;
        assert!(machine.call("system.run", it.clone()).await.is_ok());
        machine.script(file, "false\n");
        let refused = machine.call("system.run", it).await;
        let error = refused.expect_err(text);
        assert!(error.message.contains("operand changed"), "{text}");
        fs::remove_file(machine.path(file)).unwrap();
    }
    // A file that comes to match later is another plan, too.
    machine.script("a.sh", "true\n");
    let it = approved(
        &machine,
        json!({"command": ["/bin/sh", "-lc", "sh [ab].sh"]}),
    )
    .await;
    machine.script("b.sh", "true\n");
    assert!(machine.refused(it).await.1.contains("operand changed"));
}

#[tokio::test]
async fn x4_what_an_approved_variable_names_is_bound() {
    let machine = Machine::new(Mode::Ask);
    let script = machine.script("a b.sh", "true\n");
    let params = json!({"command": ["/bin/sh", "-lc", ". \"$F\""], "env": {"F": script}});
    let mut it = approved(&machine, params.clone()).await;
    it["env"] = params["env"].clone();
    assert!(machine.call("system.run", it.clone()).await.is_ok());
    machine.script("a b.sh", "false\n");
    assert!(machine.refused(it).await.1.contains("operand changed"));
    // One that the plan knew nothing of names no file past it.
    let mut it = approved(&machine, json!({"command": ["/bin/sh", "-lc", ". \"$F\""]})).await;
    it["env"] = params["env"].clone();
    assert!(machine.refused(it).await.1.contains("operand changed"));
}

#[tokio::test]
async fn x4_the_shell_and_the_programs_that_its_text_calls_are_bound() {
    let mut machine = Machine::new(Mode::Ask);
    let bin = machine.path("bin");
    fs::create_dir(&bin).unwrap();
    let shell = machine.path("bash");
    fs::copy("/bin/sh", &shell).unwrap();
    let host = Arc::get_mut(&mut machine.host).unwrap();
    let path = std::env::join_paths([bin, "/usr/bin".into(), "/bin".into()]).unwrap();
    host.path = path.clone();
    host.env.push(("PATH".into(), path));
    for (shell, text, file) in [
        ("/bin/sh", "true && a-tool x", "bin/a-tool"),
        ("/bin/sh", "FOO=1 'a-tool' \"x\"", "bin/a-tool"),
        ("/bin/sh", ". a-tool", "bin/a-tool"),
        (shell.to_str().unwrap(), "true; true", "bash"),
        (shell.to_str().unwrap(), "/usr/bin/id", "bash"),
    ] {
        machine.script("bin/a-tool", "true\n");
        let it = approved(&machine, json!({"command": [shell, "-c", text]})).await;
        let mut code = fs::read(machine.path(file)).unwrap();
        code.extend(b"\n# other");
        fs::write(machine.path(file), code).unwrap();
        let refused = machine.call("system.run", it).await.expect_err(text);
        assert!(refused.message.contains("operand changed"), "{text}");
    }
    let wrapped = json!({"command": ["/usr/bin/env", "a-tool"]});
    let it = approved(&machine, wrapped).await;
    machine.script("bin/a-tool", "false\n");
    assert!(machine.refused(it).await.1.contains("operand changed"));
}

#[tokio::test]
async fn x4_a_pattern_costs_little_and_data_may_grow() {
    let machine = Machine::new(Mode::Ask);
    for n in 0..=EXEC_GLOB_FILES_MAX {
        machine.script(&format!("f{n}.log"), "one\n");
    }
    // More than are bound: it is said in the request, and refuses nothing.
    let many = approved(&machine, json!({"command": ["/bin/sh", "-lc", "sh *.log"]})).await;
    machine.script("f0.log", "true\n");
    assert!(machine.call("system.run", many).await.is_ok());
    fs::remove_file(machine.path("f0.log")).unwrap();
    for text in ["tail *.log", "grep -h 'o n' f*.log | wc -l"] {
        let look = approved(&machine, json!({"command": ["/bin/sh", "-lc", text]})).await;
        machine.script("f1.log", "one\ntwo\n");
        assert!(machine.call("system.run", look).await.is_ok(), "{text}");
    }
}

#[tokio::test]
async fn x4_files_of_programs_on_no_list_are_bound_and_kept() {
    let machine = Machine::new(Mode::Ask);
    files::ensure_dir(&machine.path("state")).unwrap();
    let tool = machine.binary("unheard-of", "");
    let params = json!({"command": [tool, "-fplan.txt"]});
    fs::write(machine.path("plan.txt"), "one").unwrap();
    let once = approved(&machine, params.clone()).await;
    let mut always = once.clone();
    always["approvalDecision"] = json!("allow-always");
    assert!(machine.call("system.run", always).await.is_ok());
    assert!(machine.call("system.run", params.clone()).await.is_ok());
    fs::write(machine.path("plan.txt"), "two").unwrap();
    let (_, message) = machine.refused(once).await;
    assert!(message.contains("operand changed"), "{message}");
    let (_, message) = machine.refused(params.clone()).await;
    assert!(message.contains("approval required"), "{message}");
    // What has no digest is bound all the same.
    let huge = fs::File::create(machine.path("plan.txt")).unwrap();
    huge.set_len(EXEC_OPERAND_BYTES_MAX + 1).unwrap();
    let once = approved(&machine, params).await;
    huge.set_len(EXEC_OPERAND_BYTES_MAX + 2).unwrap();
    let (_, message) = machine.refused(once).await;
    assert!(message.contains("operand changed"), "{message}");
    // A log may grow under those who only look at it.
    for command in [
        json!(["/usr/bin/tail", "log"]),
        json!(["/bin/sh", "-lc", "tail log"]),
    ] {
        fs::write(machine.path("log"), "one").unwrap();
        let look = approved(&machine, json!({"command": command})).await;
        fs::write(machine.path("log"), "two").unwrap();
        assert!(machine.call("system.run", look).await.is_ok(), "{command}");
    }
}

#[tokio::test]
async fn x4_a_script_is_never_kept() {
    let machine = Machine::new(Mode::Ask);
    files::ensure_dir(&machine.path("state")).unwrap();
    let params = json!({"command": [machine.script("tool", "#!/bin/sh\n")]});
    let prepared = machine.call("system.run.prepare", params.clone()).await;
    assert_eq!(
        prepared.unwrap()["allowAlwaysCoverage"],
        json!({"complete": false, "patterns": []})
    );
    let mut always = approved(&machine, params.clone()).await;
    always["approvalDecision"] = json!("allow-always");
    assert!(machine.call("system.run", always).await.is_ok());
    let (_, message) = machine.refused(params).await;
    assert!(message.contains("approval required"), "{message}");
}

#[tokio::test]
async fn a_plan_tells_no_digest_of_a_file() {
    let machine = Machine::new(Mode::Ask);
    fs::write(machine.path("secret"), "hunter2").unwrap();
    let params = json!({"command": ["/usr/bin/id", machine.path("secret")], "cwd": "/"});
    let mut seen = Vec::new();
    for host in [&machine, &Machine::new(Mode::Ask)] {
        let answer = host.call("system.run.prepare", params.clone()).await;
        seen.push(answer.unwrap().to_string());
    }
    let digests = |answer: &str| -> Vec<String> {
        answer
            .split(['"', ':'])
            .filter(|it| it.len() == 64 && it.bytes().all(|it| it.is_ascii_hexdigit()))
            .map(str::to_owned)
            .collect()
    };
    let [one, two] = [digests(&seen[0]), digests(&seen[1])];
    assert_eq!((one.len(), two.len()), (2, 2), "operand and coverage");
    assert!(one.iter().all(|it| !two.contains(it)));
    let plain = ring::digest::digest(&ring::digest::SHA256, b"hunter2");
    assert!(!one.contains(&crate::base::ids::hex_lower(plain.as_ref())));
}

#[tokio::test]
async fn hashing_that_nobody_waits_for_keeps_its_place_and_ends() {
    let machine = Machine::new(Mode::Ask);
    let huge = fs::File::create(machine.path("huge")).unwrap();
    huge.set_len(EXEC_OPERAND_BYTES_MAX - (64 << 20)).unwrap();
    let free = || machine.host.slots.available_permits();
    let mut attempts = 0;
    let (canceller, cancelled) = loop {
        let (canceller, cancelled) = cancellation();
        let context = Context {
            host: Arc::clone(&machine.host),
            cancelled: cancelled.clone(),
            progress: None,
        };
        let params = json!({"command": ["sh", "huge"]}).to_string();
        let call =
            tokio::spawn(
                async move { handle("system.run.prepare", Some(&params), &context).await },
            );
        while free() == EXEC_RUNS_MAX && !call.is_finished() {
            tokio::task::yield_now().await;
        }
        call.abort();
        let _ = call.await;
        if free() < EXEC_RUNS_MAX {
            break (canceller, cancelled);
        }
        // A slow machine may have hashed all of it before this thread had its turn.
        attempts += 1;
        assert!(attempts < 10, "its place was given back");
    };
    drop(canceller);
    let started = Instant::now();
    while free() < EXEC_RUNS_MAX {
        assert!(started.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let argv = ["/bin/sh".to_owned(), "huge".to_owned()];
    let error = machine
        .host
        .bind(&argv, None, &machine.path(""), &cancelled);
    assert_eq!(error.err().unwrap().code, NodeError::CANCELLED);
}

#[tokio::test]
async fn x6_unclear_chains_need_an_approval_whatever_is_listed() {
    let machine = Machine::new(Mode::Ask);
    files::ensure_dir(&machine.path("state")).unwrap();
    let all = json!({"version": 1, "agents": {"*": {"allowlist": [{"pattern": "/**"}]}}});
    let set = json!({"file": all});
    machine.call("system.execApprovals.set", set).await.unwrap();
    let listed = json!({"command": ["/usr/bin/env", "/usr/bin/id"]});
    assert!(machine.call("system.run", listed).await.is_ok());
    for command in [
        json!(["/usr/bin/env", "-S", "sh -c id"]),
        json!(["nice", "nohup", "timeout", "1", "env", "sh", "-c", "id"]),
        json!([
            "/usr/bin/nice",
            "/usr/bin/nohup",
            "/usr/bin/timeout",
            "1",
            "/usr/bin/env",
            "/bin/sh",
            "-c",
            "/usr/bin/id"
        ]),
        json!(["/bin/busybox", "sh", "-c", "id"]),
        json!(["/usr/bin/script", "-c", "id"]),
        json!(["/usr/bin/time", "id"]),
    ] {
        assert_eq!(
            machine.refused(json!({"command": command})).await.1,
            "SYSTEM_RUN_DENIED: approval required",
            "{command}"
        );
    }
}

#[tokio::test]
async fn a_policy_files_socket_is_neither_told_nor_set_from_afar() {
    let machine = Machine::new(Mode::Ask);
    files::ensure_dir(&machine.path("state")).unwrap();
    let path = machine.path("state/exec-approvals.json");
    let text = r#"{"version":1,"socket":{"path":"/s","token":"t0ken"},"defaults":{}}"#;
    files::replace(&path, text.as_bytes()).unwrap();
    let got = machine.call("system.execApprovals.get", json!({})).await;
    let got = got.unwrap();
    assert!(!got.to_string().contains("t0ken"));
    let file = json!({"version": 1, "socket": {"token": "other"}, "defaults": {}});
    let set = json!({"file": file, "baseHash": got["hash"]});
    let answer = machine.call("system.execApprovals.set", set).await.unwrap();
    assert!(!answer.to_string().contains("t0ken"));
    let kept = fs::read_to_string(&path).unwrap();
    assert!(kept.contains("t0ken") && !kept.contains("other"));
}

#[tokio::test]
async fn x1_what_a_gateway_asked_about_runs_where_all_may_run() {
    let machine = Machine::new(Mode::Full);
    // A Gateway that does its own asking plans with the freest words.
    let free = |command: Value| json!({"command": command, "security": "full", "ask": "off"});
    let echo = approved(&machine, free(json!(["echo", "x"]))).await;
    assert!(echo["command"][0].as_str().unwrap().starts_with('/'));
    let result = machine.call("system.run", echo).await.unwrap();
    assert_eq!(result["stdout"], "x\n");
    // And what was approved is still all that runs.
    machine.script("tool", "#!/bin/sh\necho one\n");
    let it = approved(&machine, free(json!(["./tool"]))).await;
    machine.script("tool", "#!/bin/sh\necho two\n");
    let (_, message) = machine.refused(it).await;
    assert!(message.contains("operand changed"), "{message}");
    // A file that nothing can be bound to runs unapproved only.
    fs::File::create(machine.path("huge"))
        .and_then(|file| file.set_len(EXEC_OPERAND_BYTES_MAX + 1))
        .unwrap();
    let mut huge = approved(&machine, free(json!(["sh", "huge"]))).await;
    let (_, message) = machine.refused(huge.clone()).await;
    assert!(message.contains("cannot safely bind"), "{message}");
    huge["approved"] = Value::Null;
    huge["approvalDecision"] = Value::Null;
    huge["command"][1] = json!("tool");
    huge["rawCommand"] = Value::Null;
    assert_eq!(
        machine.call("system.run", huge).await.unwrap()["exitCode"],
        0
    );

    // X7: what the list let pass unasked is looked up again.
    files::ensure_dir(&machine.path("state")).unwrap();
    let tool = machine.binary("tool", "one");
    let mut always = approved(&machine, free(json!([tool]))).await;
    always["approvalDecision"] = json!("allow-always");
    machine.call("system.run", always).await.unwrap();
    let mut listed = approved(&machine, free(json!([tool]))).await;
    let fields = listed.as_object_mut().unwrap();
    fields.remove("approved");
    fields.remove("approvalDecision");
    assert!(machine.call("system.run", listed.clone()).await.is_ok());
    machine.binary("tool", "two");
    assert_eq!(
        machine.refused(listed).await.1,
        "SYSTEM_RUN_DENIED: allowlist miss"
    );
}

#[tokio::test]
async fn x12_a_nodes_own_list_is_not_widened_from_afar() {
    let list = json!({"version": 1, "agents": {"*": {"allowlist": [{"pattern": "/usr/bin/*"}]}}});
    for (mode, may) in [
        (Mode::Deny, false),
        (Mode::Allowlist, false),
        (Mode::Ask, true),
        (Mode::Full, true),
    ] {
        let machine = Machine::new(mode);
        files::ensure_dir(&machine.path("state")).unwrap();
        let set = json!({"file": list});
        let answer = machine.call("system.execApprovals.set", set).await;
        assert_eq!(answer.is_ok(), may, "{mode:?}");
        if let Err(error) = answer {
            assert_eq!(error.code, "FORBIDDEN");
            assert!(error.message.contains("tools.exec.mode"), "{error:?}");
        }
        assert_eq!(machine.path("state/exec-approvals.json").exists(), may);
        let get = machine.call("system.execApprovals.get", json!({})).await;
        assert_eq!(get.unwrap()["exists"], may);
    }
}

#[tokio::test]
async fn x12_the_policy_file_only_tightens_and_denies_when_it_is_broken() {
    let machine = Machine::new(Mode::Ask);
    files::ensure_dir(&machine.path("state")).unwrap();
    let get = || async {
        machine
            .call("system.execApprovals.get", json!({}))
            .await
            .unwrap()
    };
    let set = |params: Value| async { machine.call("system.execApprovals.set", params).await };
    let full = json!({"version": 1, "defaults": {"security": "full", "ask": "off"}, "agents": {}});
    assert_eq!(get().await["exists"], false);
    let kept = set(json!({"file": full})).await.unwrap();
    assert_eq!(kept["file"], full);
    let bare = json!({"command": ["true"]});
    assert_eq!(
        machine.refused(bare.clone()).await.1,
        "SYSTEM_RUN_DENIED: approval required"
    );
    for (params, why) in [
        (json!({"file": full}), "base hash required"),
        (json!({"file": full, "baseHash": "00"}), "changed"),
        (
            json!({"file": {"version": 1, "defaults": {"ask": "x"}}, "baseHash": kept["hash"]}),
            "ask cannot be",
        ),
    ] {
        let message = set(params).await.unwrap_err().message;
        assert!(message.contains(why), "{message}");
    }
    let deny = json!({"version": 1, "socket": {"token": "t"}, "defaults": {"security": "deny"}});
    let denies = set(json!({"file": deny, "baseHash": kept["hash"]}))
        .await
        .unwrap();
    assert_eq!(denies["file"]["socket"], Value::Null);
    assert_eq!(
        machine.refused(bare.clone()).await.1,
        "SYSTEM_RUN_DENIED: security=deny"
    );
    let prepare = machine.call("system.run.prepare", json!({"command": ["true"]}));
    assert_eq!(
        prepare.await.unwrap_err().message,
        "SYSTEM_RUN_DENIED: security=deny (exec-approvals.json)"
    );
    let path = machine.path("state/exec-approvals.json");
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    fs::write(&path, "{").unwrap();
    assert_eq!(
        machine.refused(bare).await.1,
        "SYSTEM_RUN_DENIED: security=deny"
    );
}
