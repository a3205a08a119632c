//! Who may call what.

use portcullis::rpc::Method;
use serde_json::{Value, json};

use crate::support::{ADMIN, Connect, Device, Gateway, PASSWORD, Peer, Setup, WireError};

fn assert_missing(error: &WireError, scope: &str) {
    assert_eq!(error.code(), "FORBIDDEN", "{error:?}");
    assert_eq!(error.message(), format!("missing scope: {scope}"));
    assert_eq!(error.detail(), "MISSING_SCOPE");
    assert_eq!(error.0["details"]["missingScope"], scope);
}

fn with_scopes(gateway: &Gateway, scopes: &[&str]) -> Peer {
    let mut peer = Peer::open(gateway);
    let hello = peer.connect(&Connect::cli().scopes(scopes)).unwrap();
    assert_eq!(hello["auth"]["scopes"], json!(scopes));
    peer
}

#[test]
fn s1_an_unknown_method_is_refused() {
    let gateway = Gateway::start();
    let mut peer = Peer::operator(&gateway);
    for method in [
        "no.such.method",
        "config.get",
        "Health",
        "health ",
        "health\u{0}",
        "\u{202e}htlaeh",
    ] {
        let error = peer.call(method, &json!({})).unwrap_err();
        assert_eq!(error.code(), "INVALID_REQUEST", "{method:?}");
        assert!(error.message().starts_with("unknown method: "), "{error:?}");
        assert!(error.message().is_ascii(), "shown, not repeated: {error:?}");
    }
    assert_eq!(peer.call("health", &json!({})).unwrap()["ok"], true);
}

#[test]
fn s1_without_scopes_nothing_can_be_called() {
    let gateway = Gateway::start();
    for method in Method::ALL {
        let mut peer = with_scopes(&gateway, &[]);
        let error = peer.call(method.as_str(), &json!({})).unwrap_err();
        let role = error.message() == "unauthorized role: operator";
        let second = *method == Method::Connect;
        assert!(
            role || second || error.detail() == "MISSING_SCOPE",
            "{}: {error:?}",
            method.as_str()
        );
    }
}

#[test]
fn s1_a_missing_scope_is_named() {
    let gateway = Gateway::start();
    let mut reader = with_scopes(&gateway, &["operator.read"]);
    assert_eq!(reader.call("health", &json!({})).unwrap()["ok"], true);
    for (method, scope) in [
        ("device.pair.list", "operator.pairing"),
        ("node.pair.approve", "operator.pairing"),
        ("node.invoke", "operator.write"),
        ("chat.send", "operator.write"),
    ] {
        assert_missing(&reader.call(method, &json!({})).unwrap_err(), scope);
    }
    let mut writer = with_scopes(&gateway, &["operator.write"]);
    let error = writer
        .call("node.pair.approve", &json!({"requestId": "x"}))
        .unwrap_err();
    assert_missing(&error, "operator.pairing");
    let browser = json!({"nodeId": "n", "command": "browser.proxy", "idempotencyKey": "k"});
    assert_missing(
        &writer.call("node.invoke", &browser).unwrap_err(),
        "operator.admin",
    );
}

#[test]
fn s1_an_escaped_command_is_judged_as_what_it_says() {
    let gateway = Gateway::start();
    let mut writer = with_scopes(&gateway, &["operator.write"]);
    writer.send_text(
        "{\"type\":\"req\",\"id\":\"x\",\"method\":\"node.invoke\",\"params\":\
         {\"nodeId\":\"n\",\"comm\\u0061nd\":\"browser.pr\\u006fxy\",\"idempotencyKey\":\"k\"}}",
    );
    assert_missing(&writer.answer("x").unwrap_err(), "operator.admin");
}

#[test]
fn s2_a_local_operator_gets_what_it_asks_for() {
    let gateway = Gateway::start();
    for client in ["cli", "gateway-client", "test", "openclaw-tui"] {
        let connect = Connect::as_client(client, "backend")
            .password(PASSWORD)
            .scopes(ADMIN);
        let hello = Peer::open(&gateway).connect(&connect).unwrap();
        assert_eq!(hello["auth"]["scopes"], json!(ADMIN), "{client}");
        assert_eq!(hello["auth"]["role"], "operator");
        assert!(hello["auth"].get("deviceToken").is_none());
    }
    let unknown = Connect::cli().scopes(&["operator.root", "operator.read", "*"]);
    let hello = Peer::open(&gateway).connect(&unknown).unwrap();
    assert_eq!(hello["auth"]["scopes"], json!(["operator.read"]));
}

#[test]
fn s2_a_local_operator_gets_at_most_what_is_configured() {
    let config = "{gateway: {auth: {localOperatorScopes: ['operator.read']}}}";
    let gateway = Setup::default().config(config).start();
    for client in ["cli", "gateway-client"] {
        let connect = Connect::as_client(client, "cli")
            .password(PASSWORD)
            .scopes(ADMIN);
        let mut peer = Peer::open(&gateway);
        let hello = peer.connect(&connect).unwrap();
        assert_eq!(hello["auth"]["scopes"], json!(["operator.read"]));
        let error = peer.call("device.pair.list", &json!({})).unwrap_err();
        assert_missing(&error, "operator.pairing");
    }
    // Nor does a device of its own lift it over that, now or later.
    let device = Device::new();
    for _ in 0..2 {
        let (mut peer, hello) = Peer::admitted(&gateway, &Connect::cli(), &device);
        assert_eq!(hello["auth"]["scopes"], json!(["operator.read"]));
        let error = peer.call("device.pair.list", &json!({})).unwrap_err();
        assert_missing(&error, "operator.pairing");
    }
}

#[test]
fn s2_a_header_only_narrows() {
    let gateway = Gateway::start();
    let cap = [("x-openclaw-scopes", "operator.read")];
    let mut peer = Peer::open_with(&gateway, &cap).unwrap();
    let hello = peer.connect(&Connect::cli()).unwrap();
    assert_eq!(hello["auth"]["scopes"], json!(["operator.read"]));
    let cap = [("x-openclaw-scopes", "operator.admin")];
    let mut peer = Peer::open_with(&gateway, &cap).unwrap();
    let hello = peer
        .connect(&Connect::cli().scopes(&["operator.read"]))
        .unwrap();
    assert!(
        !hello["auth"]["scopes"]
            .as_array()
            .unwrap()
            .contains(&json!("operator.admin"))
    );
}

#[test]
fn s5_a_token_is_capped_by_what_was_approved() {
    let gateway = Gateway::start();
    let device = Device::new();
    let reader = Connect::cli().scopes(&["operator.read"]);
    let (_peer, hello) = Peer::admitted(&gateway, &reader, &device);
    let token = hello["auth"]["deviceToken"].as_str().unwrap();
    let wider = Connect::cli().device_token(token);
    let error = Peer::open(&gateway)
        .connect_as(&wider, &device)
        .unwrap_err();
    assert_eq!(error.detail(), "AUTH_SCOPE_MISMATCH");
    let same = reader.device_token(token);
    let (mut peer, hello) = Peer::admitted(&gateway, &same, &device);
    assert_eq!(hello["auth"]["scopes"], json!(["operator.read"]));
    let error = peer.call("chat.send", &json!({})).unwrap_err();
    assert_missing(&error, "operator.write");
}

#[test]
fn s6_a_device_sees_and_decides_for_itself_only() {
    let gateway = Gateway::start();
    let (own, other) = (Device::new(), Device::new());
    let pairing = Connect::cli().scopes(&["operator.pairing"]);
    let (mut peer, _) = Peer::admitted(&gateway, &pairing, &own);
    Peer::admitted(&gateway, &Connect::cli(), &other).0.leave();
    // A third one waits.
    let changed = Connect::cli().with_client("platform", json!("macos"));
    let waiting = Peer::open(&gateway)
        .connect_as(&changed, &other)
        .unwrap_err();
    let request = waiting.0["details"]["requestId"]
        .as_str()
        .unwrap()
        .to_owned();

    let list = peer.call("device.pair.list", &json!({})).unwrap();
    assert_eq!(list["pending"], json!([]));
    let paired: Vec<&Value> = list["paired"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["deviceId"])
        .collect();
    assert_eq!(paired, [&json!(own.id)]);
    for method in ["device.pair.approve", "device.pair.reject"] {
        let foreign = peer
            .call(method, &json!({"requestId": request}))
            .unwrap_err();
        let unknown = peer
            .call(method, &json!({"requestId": "no-such-request"}))
            .unwrap_err();
        assert_eq!(foreign, unknown, "{method}");
    }
    let list = gateway.cli_json(&["devices", "list"]);
    assert_eq!(list["pending"][0]["requestId"], request);
    // Nor is it told of the other's request, nor of what became of it.
    gateway.cli_json(&["devices", "reject", &request]);
    peer.call("device.pair.list", &json!({})).unwrap();
    assert!(!peer.has_heard("device.pair.requested"));
    assert!(!peer.has_heard("device.pair.resolved"));
}

#[test]
fn s8_an_empty_list_means_none() {
    let gateway = Gateway::start();
    let device = Device::new();
    let (_peer, hello) = Peer::admitted(&gateway, &Connect::cli(), &device);
    let token = hello["auth"]["deviceToken"].as_str().unwrap();
    for empty in [Connect::cli().scopes(&[]), Connect::cli().without("scopes")] {
        let (mut peer, hello) = Peer::admitted(&gateway, &empty.device_token(token), &device);
        assert_eq!(hello["auth"]["scopes"], json!([]));
        assert_missing(
            &peer.call("health", &json!({})).unwrap_err(),
            "operator.read",
        );
    }
    // Paired anew with none, its old token carries none.
    let moved = |connect: Connect| connect.with_client("platform", json!("macos"));
    let again = moved(Connect::cli().scopes(&[]));
    let error = Peer::open(&gateway)
        .connect_as(&again, &device)
        .unwrap_err();
    assert_eq!(error.0["details"]["reason"], "metadata-upgrade");
    let request = error.0["details"]["requestId"].as_str().unwrap();
    gateway.cli_json(&["devices", "approve", request]);
    let reader = moved(
        Connect::cli()
            .scopes(&["operator.read"])
            .device_token(token),
    );
    let error = Peer::open(&gateway)
        .connect_as(&reader, &device)
        .unwrap_err();
    assert_eq!(error.detail(), "AUTH_SCOPE_MISMATCH");
}

#[test]
fn r7_repeated_unauthorized_calls_close_the_connection() {
    let gateway = Gateway::start();
    let (mut node, _) = Peer::admitted(&gateway, &Connect::node(), &Device::new());
    // One that is served, and one that is not.
    for method in ["status", "config.get"].repeat(10) {
        let error = node.call(method, &json!({})).unwrap_err();
        assert_eq!(error.message(), "unauthorized role: node");
    }
    let close = (1008, "repeated unauthorized calls".to_owned());
    assert_eq!(node.closed(), close);

    let mut reader = with_scopes(&gateway, &["operator.read"]);
    for _ in 0..20 {
        reader.call("device.pair.list", &json!({})).unwrap_err();
    }
    assert_eq!(reader.closed(), close);
}

#[test]
fn r7_a_caller_that_goes_on_properly_is_not_probing() {
    let gateway = Gateway::start();
    let mut reader = with_scopes(&gateway, &["operator.read"]);
    for _ in 0..50 {
        reader.call("device.pair.list", &json!({})).unwrap_err();
        reader.call("health", &json!({})).unwrap();
    }
}

#[test]
fn n7_roles_keep_to_their_own_methods() {
    let gateway = Gateway::start();
    let (mut node, _) = Peer::admitted(&gateway, &Connect::node().scopes(ADMIN), &Device::new());
    for method in [
        "health",
        "device.pair.list",
        "node.invoke",
        "chat.send",
        "node.pair.approve",
        "config.get",
    ] {
        let error = node.call(method, &json!({})).unwrap_err();
        assert_eq!(error.code(), "INVALID_REQUEST");
        assert_eq!(error.message(), "unauthorized role: node", "{method}");
    }
    let error = node.call("skills.bins", &json!({})).unwrap_err();
    assert_eq!(error.message(), "unknown method: skills.bins");
    let mut operator = Peer::operator(&gateway);
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
fn e2_without_admin_no_path_and_no_process_is_shown() {
    let gateway = Gateway::start();
    let home = gateway.home().to_str().unwrap().to_owned();
    let mut peer = Peer::open(&gateway);
    let hello = peer
        .connect(&Connect::cli().scopes(&["operator.read"]))
        .unwrap();
    let status = peer.call("status", &json!({})).unwrap();
    let health = peer.call("health", &json!({})).unwrap();
    for answer in [&hello, &status, &health] {
        assert!(!answer.to_string().contains(&home), "{answer}");
    }
    assert_ne!(status["pid"], gateway.pid());
    // An administrator does see it, so the test looks at the right place.
    let mut admin = Peer::operator(&gateway);
    assert!(
        admin
            .call("status", &json!({}))
            .unwrap()
            .to_string()
            .contains(&home)
    );
}
