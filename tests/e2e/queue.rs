//! Both stages of a node's admission stand in one queue, and either command decides either.

use serde_json::json;

use crate::support::{Connect, Device, Gateway, Peer, Setup};

fn text(gateway: &Gateway, args: &[&str]) -> String {
    let output = gateway.cli(args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn one_queue_shows_both_stages_and_either_command_approves_either() {
    let gateway = Setup::default()
        .config("{gateway: {nodes: {pairing: {autoApproveLocal: false}}}}")
        .start();
    let device = Device::new();
    let connect = |commands: &[&str]| Connect::node().with("commands", json!(commands));
    let first = connect(&["system.run", "system.which"]);
    let error = Peer::open(&gateway)
        .connect_as(&first, &device)
        .unwrap_err();
    assert_eq!(error.0["details"]["stage"], "device");
    let request = error.0["details"]["requestId"].as_str().unwrap();
    let shown = text(&gateway, &["nodes", "pending"]);
    assert!(shown.starts_with(&format!("device {request}, ")), "{shown}");
    assert!(shown.contains(&format!("sha256:{}", device.id)), "{shown}");
    assert!(shown.contains("from      loopback"), "{shown}");
    let command = format!("portcullis devices approve {request}");
    assert!(shown.contains(&command), "{shown}");
    let early = gateway.cli(&["nodes", "approve", request, "--commands", "system.which"]);
    assert_eq!(early.status.code(), Some(1), "{early:?}");
    text(&gateway, &["nodes", "approve", request]);

    let (mut peer, _) = Peer::admitted(&gateway, &first, &device);
    let queue = gateway.cli_json(&["nodes", "pending"]);
    let entry = &queue["pending"][0];
    assert_eq!(queue["pending"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&entry["stage"], &entry["path"]),
        (&json!("surface"), &json!("loopback"))
    );
    let surface = entry["requestId"].as_str().unwrap();
    let mut operator = Peer::operator(&gateway);
    let invoke = json!({"nodeId": device.id, "command": "system.which", "idempotencyKey": "k1"});
    let error = operator.call("node.invoke", &invoke).unwrap_err();
    assert_eq!(error.0["details"]["stage"], "surface");
    assert_eq!(error.0["details"]["requestId"], surface);
    let listed = text(&gateway, &["devices", "list"]);
    assert!(listed.contains("+system.run +system.which"), "{listed}");
    text(&gateway, &["devices", "approve", &surface[..8]]);
    peer.event("node.pair.resolved");

    // What it declares later is shown against what was approved.
    let later = connect(&["system.which", "system.notify"]);
    let _again = Peer::admitted(&gateway, &later, &device);
    let shown = text(&gateway, &["nodes", "pending"]);
    let difference = "+system.notify -system.run (1 as before)";
    assert!(shown.contains(difference), "{shown}");
    let queue = gateway.cli_json(&["nodes", "pending"]);
    let surface = queue["pending"][0]["requestId"].as_str().unwrap();
    text(&gateway, &["devices", "reject", surface]);
    assert_eq!(
        text(&gateway, &["nodes", "pending"]),
        "Nothing waits for approval\n"
    );
    let gone = gateway.cli(&["nodes", "approve", surface]);
    assert_eq!(gone.status.code(), Some(1), "{gone:?}");
}
