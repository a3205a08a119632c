//! Ends and beginnings: what was acknowledged is still there, and nobody shares a state or a port unknowingly.

use std::net::TcpListener;

use serde_json::json;

use crate::support::{
    ADMIN, Connect, Device, Gateway, PASSWORD, Peer, Process, Setup, free_port, program,
};

fn audit_is_whole(gateway: &Gateway) {
    let output = gateway.cli(&["audit", "verify"]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn what_was_acknowledged_outlives_a_kill() {
    let config = "{gateway: {nodes: {pairing: {autoApproveLocal: false}}}}";
    let mut gateway = Setup::default().config(config).start();
    let device = Device::new();
    let reader = Connect::cli().scopes(&["operator.read"]);
    let pend = |gateway: &Gateway, connect: &Connect| {
        let error = Peer::open(gateway)
            .connect_as(connect, &device)
            .unwrap_err();
        error.0["details"]["requestId"].as_str().unwrap().to_owned()
    };

    // A request that waits.
    let request = pend(&gateway, &reader);
    gateway.kill();
    gateway.restart();
    audit_is_whole(&gateway);
    assert_eq!(pend(&gateway, &reader), request);

    // An approval.
    let mut operator = Peer::operator(&gateway);
    operator
        .call("device.pair.approve", &json!({"requestId": request}))
        .unwrap();
    gateway.kill();
    gateway.restart();
    audit_is_whole(&gateway);

    // A token.
    let (_peer, hello) = Peer::admitted(&gateway, &reader, &device);
    let token = hello["auth"]["deviceToken"].as_str().unwrap();
    gateway.kill();
    gateway.restart();
    audit_is_whole(&gateway);
    let by_token = reader.device_token(token);
    let (_peer, hello) = Peer::admitted(&gateway, &by_token, &device);
    assert_eq!(hello["auth"]["scopes"], json!(["operator.read"]));

    // A revocation.
    let mut operator = Peer::operator(&gateway);
    let params = json!({"deviceId": device.id, "role": "operator"});
    operator.call("device.token.revoke", &params).unwrap();
    gateway.kill();
    gateway.restart();
    let error = Peer::open(&gateway)
        .connect_as(&by_token, &device)
        .unwrap_err();
    assert_eq!(error.detail(), "AUTH_DEVICE_TOKEN_MISMATCH");

    // A removal.
    let mut operator = Peer::operator(&gateway);
    operator
        .call("device.pair.remove", &json!({"deviceId": device.id}))
        .unwrap();
    gateway.kill();
    gateway.restart();
    audit_is_whole(&gateway);
    let list = gateway.cli_json(&["devices", "list"]);
    assert_eq!(list, json!({"pending": [], "paired": []}));
}

#[test]
fn a_kill_amid_pairings_loses_none_that_was_acknowledged() {
    let mut gateway = Gateway::start();
    let devices: Vec<Device> = (0..12).map(|_| Device::new()).collect();
    for round in devices.chunks(4) {
        let mut acknowledged = Vec::new();
        for device in &round[..3] {
            let (_, hello) = Peer::admitted(&gateway, &Connect::cli(), device);
            acknowledged.push((
                device,
                hello["auth"]["deviceToken"].as_str().unwrap().to_owned(),
            ));
        }
        // The fourth is on its way when the end comes.
        let mut peer = Peer::open(&gateway);
        let connect = Connect::cli().signed(&round[3], &peer.nonce, peer.challenged_at);
        peer.request("connect", &connect.params);
        gateway.kill();
        gateway.restart();
        audit_is_whole(&gateway);
        for (device, token) in acknowledged {
            Peer::admitted(&gateway, &Connect::cli().device_token(&token), device);
        }
    }
}

#[test]
fn what_happened_stands_in_the_audit_log() {
    let gateway = Gateway::start();
    let device = Device::new();
    let (peer, _) = Peer::admitted(&gateway, &Connect::cli().scopes(ADMIN), &device);
    let mut operator = Peer::operator(&gateway);
    operator
        .call("device.pair.remove", &json!({"deviceId": device.id}))
        .unwrap();
    drop(peer);
    let log = gateway.audit();
    for kind in [
        "gateway.started",
        "pairing.approved",
        "token.changed",
        "session.admitted",
        "device.removed",
    ] {
        assert!(
            log.contains(&format!("\"kind\":\"{kind}\"")),
            "{kind} in {log}"
        );
    }
    assert!(log.contains(&device.id));
    audit_is_whole(&gateway);
}

#[test]
fn the_audit_log_is_read_with_and_without_a_gateway() {
    let mut gateway = Gateway::start();
    let device = Device::new();
    Peer::admitted(&gateway, &Connect::cli(), &device).0.leave();
    let text = |output: std::process::Output| {
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    // Following while it is written to.
    let env = [("OPENCLAW_GATEWAY_PASSWORD".to_owned(), PASSWORD.to_owned())];
    let mut command = program(gateway.home(), &env);
    let mut follower = Process::spawn(command.args(["audit", "tail", "-f", "-n", "1"]));
    follower.line("session.");
    let mut operator = Peer::operator(&gateway);
    let removed = json!({"deviceId": device.id});
    operator.call("device.pair.remove", &removed).unwrap();
    follower.line("device.removed");
    drop(follower);
    gateway.kill();
    let shown = text(gateway.cli(&[
        "audit",
        "show",
        "--kind",
        "token",
        "--node",
        &device.id[..8],
    ]));
    assert_eq!(shown.lines().count(), 1, "{shown}");
    assert!(shown.contains("\"kind\":\"token.changed\""), "{shown}");
    for none in [["--kind", "tok"], ["--node", "nosuch"]] {
        let output = gateway.cli(&[&["audit", "show"], &none[..]].concat());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.contains("no record matches") && said.contains("by its id"),
            "{said}"
        );
    }
    let hour = text(gateway.cli(&["audit", "show", "--since", "1h", "--json"]));
    let all = gateway.audit();
    assert_eq!(hour, all);
    let to = gateway.home().join("exported");
    text(gateway.cli(&["audit", "export", "-o", to.to_str().unwrap()]));
    assert_eq!(std::fs::read_to_string(&to).unwrap(), all);
    // Never over what is there already.
    let again = gateway.cli(&["audit", "export", "-o", to.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(78), "{again:?}");
    // A line that a kill left unfinished is no tampering.
    let path = gateway.state_dir().join("audit/audit-00000001.jsonl");
    std::fs::write(&path, format!("{all}{{\"seq\":")).unwrap();
    let said = text(gateway.cli(&["audit", "verify"]));
    assert!(said.contains("unfinished line"), "{said}");
    gateway.restart();
    let said = text(gateway.cli(&["audit", "verify"]));
    assert!(
        said.contains("1 records were cut short by a crash"),
        "{said}"
    );
}

#[test]
fn a_changed_audit_log_is_found_out() {
    let mut gateway = Gateway::start();
    Peer::admitted(&gateway, &Connect::cli(), &Device::new())
        .0
        .leave();
    assert!(gateway.terminate().success());
    audit_is_whole(&gateway);
    let path = gateway.state_dir().join("audit/audit-00000001.jsonl");
    let log = std::fs::read_to_string(&path).unwrap();
    let changed = log.replacen("direct local caller", "direct lawful caller", 1);
    assert_ne!(changed, log);
    std::fs::write(&path, changed).unwrap();
    let output = gateway.cli(&["audit", "verify"]);
    assert!(!output.status.success(), "{output:?}");
}

#[test]
fn an_orderly_end_says_so_and_exits_with_zero() {
    let mut gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let (mut node, _) = Peer::admitted(&gateway, &Connect::node(), &Device::new());
    assert!(gateway.terminate().success());
    operator.event("shutdown");
    node.event("shutdown");
    assert!(matches!(operator.closed().0, 1001 | 1012));
    assert!(!gateway.state_dir().join("admin.sock").exists());
}

#[test]
fn a_log_that_is_not_there_is_not_called_broken() {
    let home = tempfile::TempDir::new().unwrap();
    let mut command = program(home.path(), &[]);
    let output = command.args(["audit", "verify"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("--dir") && !said.contains("copy"), "{said}");
}

#[test]
fn a_second_gateway_on_one_state_is_refused_and_told_who_holds_it() {
    let gateway = Gateway::start();
    let ended = gateway.second(free_port());
    assert_eq!(ended.code, Some(75), "{ended:?}");
    let holder = format!("process {}", gateway.pid());
    assert!(ended.stderr.contains(&holder), "{ended:?}");
    // The first one has lost nothing by it, its admin socket neither.
    assert!(gateway.cli(&["health"]).status.success());
    Peer::operator(&gateway);
}

#[test]
fn a_taken_port_names_its_owner_and_the_way_out() {
    let owner = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = owner.local_addr().unwrap().port().to_string();
    let home = tempfile::TempDir::new().unwrap();
    let env = [("OPENCLAW_GATEWAY_PASSWORD".to_owned(), PASSWORD.to_owned())];
    let output = program(home.path(), &env)
        .args(["gateway", "run", "--port", &port])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(75), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    for said in [port.as_str(), &std::process::id().to_string(), "--port"] {
        assert!(text.contains(said), "{said} in {text}");
    }
}

#[test]
fn c3_a_state_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut gateway = Gateway::start();
    gateway.kill();
    let dir = gateway.state_dir();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).unwrap();
    let ended = gateway.second(gateway.port());
    assert_eq!(ended.code, Some(78), "{ended:?}");
}
