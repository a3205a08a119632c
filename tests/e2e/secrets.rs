//! The shared secret: where it may stand, how it changes, and what happens when it is gone (rows K2, K4, C1, C3).

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::run::{Lab, Queued};
use super::support::{
    Connect, Device, Gateway, PASSWORD, PATIENCE, Peer, Process, Setup, free_port, program,
    read_answer, write_private,
};

const NEW: &str = "a wholly different passphrase";
const FILE: &str = r#"{
    gateway: { auth: { mode: "password", password: { source: "file", provider: "vault", id: "value" } } },
    secrets: { providers: { vault: { source: "file", path: "~/secret", mode: "singleValue" } } },
}"#;

/// A Gateway whose password stands in `~/secret`.
fn with_file() -> Gateway {
    Setup::default()
        .config(FILE)
        .file("secret", PASSWORD)
        .env("OPENCLAW_GATEWAY_PASSWORD", "")
        .start()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::park_timeout(Duration::from_millis(10));
    }
}

fn detail(gateway: &Gateway, connect: &Connect) -> String {
    match Peer::open(gateway).connect(connect) {
        Ok(_) => "admitted".to_owned(),
        Err(error) => error.detail().to_owned(),
    }
}

#[test]
fn k2_a_rotated_file_counts_at_once_and_ends_the_sessions_of_the_old_secret() {
    let gateway = with_file();
    let device = Device::new();
    let (paired, hello) = Peer::admitted(&gateway, &Connect::cli(), &device);
    let token = hello["auth"]["deviceToken"].as_str().unwrap().to_owned();
    paired.leave();
    let by_token = Connect::cli().device_token(&token);
    let (mut by_token, _) = Peer::admitted(&gateway, &by_token, &device);
    let mut idle = Peer::operator(&gateway);
    let mut node = Peer::open(&gateway);
    node.connect_as(&Connect::node(), &Device::new()).unwrap();

    write_private(&gateway.home().join("secret"), NEW);
    // The very next attempt, without waiting for anything to be noticed.
    let mut new = Peer::open(&gateway);
    new.connect(&Connect::cli().password(NEW)).unwrap();
    assert_eq!(detail(&gateway, &Connect::cli()), "AUTH_PASSWORD_MISMATCH");
    let changed = (4001, "gateway auth changed".to_owned());
    assert_eq!(idle.closed(), changed);
    assert_eq!(node.closed(), changed);
    assert!(by_token.call("health", &json!({})).is_ok());
    assert!(new.call("health", &json!({})).is_ok());

    // And without any attempt at all.
    write_private(&gateway.home().join("secret"), PASSWORD);
    assert_eq!(new.closed(), changed);
    assert!(by_token.call("health", &json!({})).is_ok());
    let audit = gateway.audit();
    assert_eq!(audit.matches("\"secret.changed\"").count(), 2, "{audit}");
    assert!(!audit.contains(NEW) && !gateway.stderr().contains(NEW));
}

#[test]
fn k1_what_was_queued_on_the_old_secret_does_not_run() {
    let mut lab = Lab::of(with_file());
    lab.node = lab.node.start_again_without_password(&lab.gateway);
    let mut peer = Peer::operator(&lab.gateway);
    let queued = Queued::by(&mut peer, &lab, "old");
    write_private(&lab.gateway.home().join("secret"), NEW);
    assert_eq!(peer.closed(), (4001, "gateway auth changed".to_owned()));
    let mut new = Peer::open(&lab.gateway);
    new.connect(&Connect::cli().password(NEW)).unwrap();
    queued.expect_refusal(&mut new, "old");
}

#[test]
fn k4_a_secret_that_is_gone_admits_nobody_until_it_is_back() {
    let gateway = with_file();
    let device = Device::new();
    let (paired, hello) = Peer::admitted(&gateway, &Connect::cli(), &device);
    let token = hello["auth"]["deviceToken"].as_str().unwrap().to_owned();
    paired.leave();
    let path = gateway.home().join("secret");
    fs::remove_file(&path).unwrap();
    for connect in [Connect::cli(), Connect::cli().password(NEW)] {
        assert_eq!(detail(&gateway, &connect), "AUTH_PASSWORD_NOT_CONFIGURED");
    }
    let by_token = Connect::cli().device_token(&token);
    let (mut peer, _) = Peer::admitted(&gateway, &by_token, &device);
    let alarms = |health: Value| health["alarms"].clone();
    let shown = alarms(peer.call("health", &json!({})).unwrap());
    assert_eq!(shown[0]["setting"], "gateway.auth.password");
    assert!(shown[0]["what"].as_str().unwrap().contains("is not there"));
    let told = String::from_utf8(gateway.cli(&["health"]).stdout).unwrap();
    assert!(told.contains("alarm: gateway.auth.password"), "{told}");

    // Readable by others is as good as gone.
    write_private(&path, PASSWORD);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(
        detail(&gateway, &Connect::cli()),
        "AUTH_PASSWORD_NOT_CONFIGURED"
    );

    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(detail(&gateway, &Connect::cli()), "admitted");
    until("the alarm ends", || {
        alarms(peer.call("health", &json!({})).unwrap()).is_null()
    });
    let audit = gateway.audit();
    for change in ["unresolved", "resolved"] {
        let record = format!("\"change\":\"{change}\"");
        assert_eq!(audit.matches(&record).count(), 1, "{audit}");
    }
    assert!(gateway.stderr().contains("no longer resolves"));
}

/// How `gateway run` ends in a home with this config and this secret file.
fn refused(config: &str, secret: &str, mode: u32) -> String {
    let home = TempDir::new().unwrap();
    fs::create_dir(home.path().join("state")).unwrap();
    write_private(&home.path().join("state/openclaw.json"), config);
    let path = home.path().join("secret");
    write_private(&path, secret);
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    let output = program(home.path(), &[])
        .args(["gateway", "run", "--port", &free_port().to_string()])
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{stderr}");
    assert!(!stderr.contains("listens:"), "{stderr}");
    stderr
}

#[test]
fn k4_a_broken_reference_refuses_to_start_whatever_else_is_set() {
    let stderr = refused(
        r#"{
            gateway: {
                auth: { mode: "token", token: { source: "file", provider: "vault", id: "/not/there" } },
                remote: { token: "a-token-for-another-gateway" },
            },
            secrets: { providers: { vault: { source: "file", path: "~/secret" } } },
        }"#,
        "{}",
        0o600,
    );
    assert!(stderr.contains("gateway.auth.token"), "{stderr}");
    assert!(stderr.contains("/not/there"), "{stderr}");
}

#[test]
fn c3_a_secret_file_that_others_may_read_refuses_to_start() {
    let stderr = refused(FILE, PASSWORD, 0o644);
    assert!(stderr.contains("has mode 0644"), "{stderr}");
    assert!(!stderr.contains(PASSWORD), "{stderr}");
}

/// A password that `sh -c SCRIPT` prints.
fn printed_by(script: &str) -> String {
    let shell = fs::canonicalize("/bin/sh").unwrap();
    let provider = json!({
        "source": "exec", "command": shell, "args": ["-c", script], "passEnv": ["HOME"],
        "jsonOnly": false, "timeoutMs": 60000,
    });
    json!({
        "gateway": {"auth": {"mode": "password", "password": {"source": "exec", "provider": "sh", "id": "it"}}},
        "secrets": {"providers": {"sh": provider}},
    })
    .to_string()
}

#[test]
fn k4_until_the_first_resolution_everybody_is_told_to_come_again() {
    let home = TempDir::new().unwrap();
    fs::create_dir(home.path().join("state")).unwrap();
    let script = "until [ -e $HOME/go ]; do sleep 0.02; done; cat $HOME/secret";
    write_private(
        &home.path().join("state/openclaw.json"),
        &printed_by(script),
    );
    write_private(&home.path().join("secret"), PASSWORD);
    let port = free_port();
    let mut command = program(home.path(), &[]);
    command.args(["gateway", "run", "--port", &port.to_string()]);
    let mut gateway = Process::spawn(&mut command);
    gateway.line("listens:");
    let status = |path: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        read_answer(&mut stream).unwrap().status
    };
    assert_eq!((status("/healthz"), status("/readyz")), (200, 503));
    for connect in [Connect::cli(), Connect::cli().password(NEW)] {
        let error = Peer::open_at(port, &[])
            .unwrap()
            .connect(&connect)
            .unwrap_err();
        assert_eq!(error.code(), "UNAVAILABLE");
        assert_eq!(error.0["retryable"], true);
    }
    fs::write(home.path().join("go"), "").unwrap();
    gateway.line("portcullis is ready");
    assert_eq!(status("/readyz"), 200);
    Peer::open_at(port, &[])
        .unwrap()
        .connect(&Connect::cli())
        .unwrap();
    let wrong = Connect::cli().password(NEW);
    let error = Peer::open_at(port, &[])
        .unwrap()
        .connect(&wrong)
        .unwrap_err();
    assert_eq!(error.detail(), "AUTH_PASSWORD_MISMATCH");
}

#[test]
fn k4_a_program_that_gives_no_secret_ends_the_start() {
    let home = TempDir::new().unwrap();
    fs::create_dir(home.path().join("state")).unwrap();
    write_private(
        &home.path().join("state/openclaw.json"),
        &printed_by("exit 1"),
    );
    let output = program(home.path(), &[])
        .args(["gateway", "run", "--port", &free_port().to_string()])
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{stderr}");
    assert!(
        stderr.contains("gateway.auth.password") && stderr.contains("exec:sh:it"),
        "{stderr}"
    );
}

#[test]
fn c1_nobody_writes_the_config_through_the_gateway() {
    let gateway = Gateway::start();
    let mut admin = Peer::operator(&gateway);
    let params =
        json!({"gateway": {"auth": {"mode": "none"}}, "raw": "{}", "path": "gateway.auth.mode"});
    for method in ["config.patch", "config.apply", "config.set", "config.unset"] {
        let error = admin.call(method, &params).unwrap_err();
        assert_eq!(error.code(), "INVALID_REQUEST");
        assert_eq!(error.message(), format!("unknown method: {method}"));
    }
    let hello = Peer::open(&gateway).connect(&Connect::cli()).unwrap();
    assert!(!hello["features"]["methods"].to_string().contains("config."));
}

fn hang_up(gateway: &Gateway) {
    let pid = rustix::process::Pid::from_raw(gateway.pid().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
}

/// Puts another config in place, and returns when the Gateway has said what became of it.
pub(crate) fn reload(gateway: &Gateway, config: &str, said: &str) {
    let before = gateway.stderr().matches(said).count();
    write_private(&gateway.home().join("state/openclaw.json"), config);
    hang_up(gateway);
    until(said, || gateway.stderr().matches(said).count() > before);
}

pub(crate) const RELOADED: &str = "the configuration was reloaded";
const KEPT: &str = "the configuration was not reloaded";

fn in_mode(mode: &str, secret: &str, more: &str) -> String {
    format!(r#"{{ gateway: {{ auth: {{ mode: "{mode}", {mode}: "{secret}", {more} }} }} }}"#)
}

#[test]
fn k3_a_reload_swaps_mode_and_secret_for_everybody_at_once() {
    let gateway = Setup::default()
        .config(&in_mode("token", PASSWORD, ""))
        .env("OPENCLAW_GATEWAY_PASSWORD", "")
        .start();
    let device = Device::new();
    let (paired, hello) = Peer::admitted(&gateway, &Connect::cli(), &device);
    let token = hello["auth"]["deviceToken"].as_str().unwrap().to_owned();
    paired.leave();
    let by_token = Connect::cli().device_token(&token);
    let (mut by_token, _) = Peer::admitted(&gateway, &by_token, &device);
    let mut idle = Peer::operator(&gateway);

    let port = gateway.port();
    let swapped = AtomicBool::new(false);
    let tried = AtomicU32::new(0);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let mut late = 0;
                while late < 2 {
                    let after = swapped.load(Ordering::SeqCst);
                    let mut peer = Peer::open_at(port, &[]).unwrap();
                    let outcome = peer.connect(&Connect::cli());
                    tried.fetch_add(1, Ordering::SeqCst);
                    match outcome {
                        Ok(_) => assert!(!after, "the old secret after the swap"),
                        Err(error) => assert!(
                            ["AUTH_PASSWORD_MISMATCH", "AUTH_RATE_LIMITED"]
                                .contains(&error.detail())
                                || error.0["retryable"] == true,
                            "{error:?}"
                        ),
                    }
                    late += u32::from(after);
                }
            });
        }
        until("many attempts", || tried.load(Ordering::SeqCst) > 100);
        reload(&gateway, &in_mode("password", NEW, ""), RELOADED);
        swapped.store(true, Ordering::SeqCst);
    });
    assert_eq!(idle.closed(), (4001, "gateway auth changed".to_owned()));
    assert!(by_token.call("health", &json!({})).is_ok());
    let hello = Peer::open(&gateway)
        .connect(&Connect::cli().password(NEW))
        .unwrap();
    assert_eq!(hello["snapshot"]["authMode"], "password");
    let audit = gateway.audit();
    for path in [
        "gateway.auth.mode",
        "gateway.auth.token",
        "gateway.auth.password",
    ] {
        assert!(audit.contains(&format!("\"{path}\"")), "{audit}");
    }
    assert!(!audit.contains(NEW) && !gateway.stderr().contains(NEW));
}

#[test]
fn k3_a_config_that_would_not_start_changes_nothing() {
    let good = in_mode("password", PASSWORD, "");
    let gateway = Setup::default()
        .config(&good)
        .env("OPENCLAW_GATEWAY_PASSWORD", "")
        .start();
    let mut idle = Peer::operator(&gateway);
    for bad in [
        "{",
        "{ gateway: { auht: {} } }",
        "{}",
        &in_mode("password", "changeme", ""),
        &in_mode("password", "${NOT_SET_ANYWHERE}", ""),
        r#"{ gateway: { bind: "lan", auth: { mode: "password", password: "a wholly different one" } } }"#,
        r#"{ gateway: { port: 1, auth: { mode: "password", password: "a wholly different one" } } }"#,
    ] {
        reload(&gateway, bad, KEPT);
        assert_eq!(detail(&gateway, &Connect::cli()), "admitted");
    }
    assert!(
        gateway
            .stderr()
            .contains("gateway.port can only change with a restart")
    );
    // What only widens ends nothing; what narrows ends what it carried.
    let narrow = in_mode(
        "password",
        PASSWORD,
        r#"localOperatorScopes: ["operator.read"]"#,
    );
    assert!(idle.call("health", &json!({})).is_ok());
    reload(&gateway, &narrow, RELOADED);
    assert_eq!(idle.closed().0, 4001);
    let mut idle = Peer::operator(&gateway);
    let error = idle.call("device.pair.list", &json!({})).unwrap_err();
    assert_eq!(error.detail(), "MISSING_SCOPE");
    reload(&gateway, &good, RELOADED);
    assert!(idle.call("health", &json!({})).is_ok());
}

#[test]
fn a_fifo_in_place_of_the_config_holds_up_nothing() {
    let good = in_mode("password", PASSWORD, "");
    let gateway = Setup::default()
        .config(&good)
        .env("OPENCLAW_GATEWAY_PASSWORD", "")
        .start();
    let config = gateway.home().join("state/openclaw.json");
    fs::remove_file(&config).unwrap();
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&config)
            .status()
            .unwrap()
            .success()
    );
    hang_up(&gateway);
    until(KEPT, || {
        gateway.stderr().contains("it is not a regular file")
    });
    let output = gateway.cli(&["gateway", "run", "--port", "1"]);
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    reload(&gateway, &good, RELOADED);
}

#[test]
fn a_reload_that_takes_long_does_not_hold_up_the_end() {
    let mut gateway = Setup::default()
        .config(&in_mode("password", PASSWORD, ""))
        .env("OPENCLAW_GATEWAY_PASSWORD", "")
        .start();
    let began = gateway.home().join("began");
    let slow = printed_by("touch $HOME/began; sleep 55");
    write_private(&gateway.home().join("state/openclaw.json"), &slow);
    hang_up(&gateway);
    until("the program runs", || began.exists());
    let stopped = Instant::now();
    assert!(gateway.terminate().success());
    assert!(stopped.elapsed() < Duration::from_secs(30));
}

#[test]
fn secrets_audit_shows_where_each_secret_stands_and_never_its_value() {
    let gateway = with_file();
    let rows = |gateway: &Gateway| {
        let output = gateway.cli(&["secrets", "audit", "--json"]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            !text.contains(PASSWORD) && !text.contains("literal-of-another"),
            "{text}"
        );
        let report: Value = serde_json::from_str(&text).unwrap();
        (output.status.code(), report)
    };
    let (code, report) = rows(&gateway);
    assert_eq!((code, &report["ok"]), (Some(0), &json!(true)));
    let row = &report["secrets"][0];
    assert_eq!(row["setting"], "gateway.auth.password");
    assert_eq!(
        (&row["source"], &row["provider"]),
        (&json!("file"), &json!("vault"))
    );
    assert!(row["changedAtMs"].as_u64().unwrap() > 0);
    let path = gateway.home().join("secret");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let both = FILE.replacen(
        "gateway: {",
        r#"gateway: { remote: { token: "literal-of-another" },"#,
        1,
    );
    write_private(&gateway.home().join("state/openclaw.json"), &both);
    let (code, report) = rows(&gateway);
    assert_eq!((code, &report["ok"]), (Some(78), &json!(false)));
    assert_eq!(report["secrets"][0]["state"], "unresolved");
    assert!(
        report["secrets"][0]["note"]
            .as_str()
            .unwrap()
            .contains("mode 0640")
    );
    assert_eq!(report["secrets"][1]["state"], "literal");
}

#[test]
fn h7_hooks_with_the_secret_of_the_gateway_refuse_to_start() {
    let literal = FILE.replacen('{', &format!("{{ hooks: {{ token: \"{PASSWORD}\" }},"), 1);
    let stderr = refused(&literal, PASSWORD, 0o600);
    assert!(stderr.contains("hooks.token"), "{stderr}");
    assert!(!stderr.contains(PASSWORD), "{stderr}");
    let same = FILE.replacen(
        '{',
        r#"{ hooks: { token: { source: "file", provider: "vault", id: "value" } },"#,
        1,
    );
    assert!(refused(&same, PASSWORD, 0o600).contains("hooks.token"));
}
