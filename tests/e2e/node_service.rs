//! The node host as a service: its unit, its lock, its identity, what it offers, and its exit codes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Gateway, PASSWORD, Peer, Process, program};

fn run(home: &Path, args: &[&str]) -> Output {
    program(home, &[]).args(args).output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn home() -> TempDir {
    let home = TempDir::new().unwrap();
    fs::create_dir(home.path().join("state")).unwrap();
    home
}

#[test]
fn a_unit_holds_no_secret_and_only_our_own_is_replaced_or_removed() {
    let home = home();
    let install = [
        "node",
        "install",
        "--host",
        "gw.example",
        "--port",
        "5",
        "--commands",
        "system.which",
    ];
    let print = [&install[..], &["--print"]].concat();
    let unit = text(&run(home.path(), &print));
    assert!(unit.contains("RestartPreventExitStatus=78"), "{unit}");
    assert!(
        unit.contains("\"--host\" \"gw.example\" \"--port\" \"5\" \"--commands\" \"system.which\""),
        "{unit}"
    );
    let path = home
        .path()
        .join(".config/systemd/user/portcullis-node.service");
    assert!(!path.exists(), "--print writes nothing");
    let secret = run(
        home.path(),
        &[&install[..], &["--password", "hunter2"]].concat(),
    );
    assert_eq!(secret.status.code(), Some(78), "{secret:?}");

    text(&run(home.path(), &install));
    assert_eq!(fs::read_to_string(&path).unwrap(), unit);
    assert_eq!(mode(&path), 0o644);
    assert_eq!(mode(&home.path().join("state/portcullis/node.env")), 0o600);
    // Again is the same; what is not ours stays as it is.
    text(&run(home.path(), &install));
    text(&run(home.path(), &["node", "uninstall"]));
    assert!(!path.exists());
    assert_eq!(
        run(home.path(), &["node", "uninstall"]).status.code(),
        Some(1)
    );
    fs::write(&path, "[Service]\n").unwrap();
    for command in [&install[..], &["node", "uninstall"]] {
        assert_eq!(run(home.path(), command).status.code(), Some(78));
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), "[Service]\n");
}

#[test]
fn a_node_host_is_known_by_its_lock_offers_what_it_is_told_and_is_stopped() {
    let gateway = Gateway::start();
    let home = home();
    let identity: Value =
        serde_json::from_str(&text(&run(home.path(), &["node", "identity", "--json"]))).unwrap();
    assert_eq!(mode(Path::new(identity["path"].as_str().unwrap())), 0o600);
    assert_eq!(run(home.path(), &["node", "status"]).status.code(), Some(1));
    assert_eq!(run(home.path(), &["node", "stop"]).status.code(), Some(1));

    let port = gateway.port().to_string();
    let start = ["node", "run", "--port", &port, "--commands", "system.which"];
    let mut command = program(home.path(), &[]);
    command
        .args(start)
        .env("OPENCLAW_GATEWAY_PASSWORD", PASSWORD);
    let mut node = Process::spawn(&mut command);
    node.line("connected to");
    let mut operator = Peer::operator(&gateway);
    let about = json!({"nodeId": identity["deviceId"]});
    let entry = operator.call("node.describe", &about).unwrap();
    assert_eq!(entry["pendingDeclaredCommands"], json!(["system.which"]));
    let approve = json!({"requestId": entry["pendingRequestId"]});
    operator.call("node.pair.approve", &approve).unwrap();
    let which = json!({
        "nodeId": identity["deviceId"], "command": "system.which", "params": {"bins": ["sh"]}, "idempotencyKey": "k",
    });
    assert_eq!(operator.call("node.invoke", &which).unwrap()["ok"], true);
    let about = gateway.cli(&[
        "nodes",
        "describe",
        "--node",
        identity["deviceId"].as_str().unwrap(),
    ]);
    assert!(
        text(&about).contains("Exec policy ask, sha256:"),
        "{about:?}"
    );

    let status = text(&run(home.path(), &["node", "status"]));
    assert!(
        status.contains(&format!("pid         {}", node.pid())),
        "{status}"
    );
    assert!(status.contains("state       connected to"), "{status}");
    // A second one would fight for the same identity: a supervisor may try again (75).
    let mut second = program(home.path(), &[]);
    second
        .args(start)
        .env("OPENCLAW_GATEWAY_PASSWORD", PASSWORD);
    assert_eq!(second.output().unwrap().status.code(), Some(75));
    text(&run(home.path(), &["node", "stop"]));
    assert_eq!(node.wait().code(), Some(0));
    assert_eq!(run(home.path(), &["node", "status"]).status.code(), Some(1));

    // What no restart cures says so (78).
    let unknown = run(home.path(), &["node", "run", "--commands", "camera.snap"]);
    assert_eq!(unknown.status.code(), Some(78), "{unknown:?}");
    fs::remove_dir_all(home.path().join("state/portcullis/identity")).unwrap();
    let mut wrong = program(home.path(), &[]);
    wrong
        .args(["node", "run", "--port", &port])
        .env("OPENCLAW_GATEWAY_PASSWORD", "wrong");
    assert_eq!(wrong.output().unwrap().status.code(), Some(78));
}
