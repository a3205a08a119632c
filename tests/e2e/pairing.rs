//! From a stranger to a paired device and back.

use serde_json::json;

use crate::support::{ADMIN, Connect, Device, Gateway, PASSWORD, Peer, Setup, WireError};

/// A Gateway on which nothing is paired silently.
fn strict() -> Gateway {
    Setup::default()
        .config("{gateway: {nodes: {pairing: {autoApproveLocal: false}}}}")
        .start()
}

/// Asks for admission and returns the id of the request that now waits.
fn pend(gateway: &Gateway, connect: &Connect, device: &Device) -> String {
    let error = Peer::open(gateway).connect_as(connect, device).unwrap_err();
    assert_eq!(error.code(), "NOT_PAIRED", "{error:?}");
    assert_eq!(error.detail(), "PAIRING_REQUIRED");
    error.0["details"]["requestId"].as_str().unwrap().to_owned()
}

/// A paired device's connection and its token.
fn paired(gateway: &Gateway, connect: &Connect, device: &Device) -> (Peer, String) {
    let (peer, hello) = Peer::admitted(gateway, connect, device);
    let token = hello["auth"]["deviceToken"].as_str().unwrap().to_owned();
    (peer, token)
}

#[test]
fn no_token_that_was_issued_stands_in_the_state_or_in_the_log() {
    let mut gateway = Gateway::start();
    let tokens = [Connect::cli(), Connect::node()]
        .map(|connect| paired(&gateway, &connect, &Device::new()).1);
    let mut seen = vec![gateway.stderr().into_bytes()];
    gateway.kill();
    let mut dirs = vec![gateway.state_dir()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.is_file() {
                seen.push(std::fs::read(path).unwrap());
            }
        }
    }
    assert!(
        seen.len() > 4,
        "log, database, its log, audit log and its head"
    );
    for bytes in seen {
        for token in &tokens {
            assert!(!bytes.windows(token.len()).any(|it| it == token.as_bytes()));
        }
    }
}

fn refused(gateway: &Gateway, connect: &Connect, device: &Device) -> WireError {
    Peer::open(gateway).connect_as(connect, device).unwrap_err()
}

fn paired_ids(gateway: &Gateway) -> Vec<String> {
    let list = gateway.cli_json(&["devices", "list"]);
    let paired = list["paired"].as_array().unwrap().iter();
    paired
        .map(|it| it["deviceId"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_device_pends_is_approved_and_comes_back_with_its_token() {
    let gateway = strict();
    let mut operator = Peer::operator(&gateway);
    let device = Device::new();
    let connect = Connect::cli().scopes(&["operator.read"]);
    let request = pend(&gateway, &connect, &device);
    let asked = operator.event("device.pair.requested");
    assert_eq!(asked["requestId"], request);
    assert_eq!(asked["deviceId"], device.id);
    assert_eq!(asked["scopes"], json!(["operator.read"]));
    // The same question has the same number.
    assert_eq!(pend(&gateway, &connect, &device), request);

    let approved = operator
        .call("device.pair.approve", &json!({"requestId": request}))
        .unwrap();
    assert_eq!(approved["device"]["deviceId"], device.id);
    assert_eq!(approved["device"]["scopes"], json!(["operator.read"]));
    let resolved = operator.event("device.pair.resolved");
    assert_eq!(
        (&resolved["requestId"], &resolved["decision"]),
        (&json!(request), &json!("approved"))
    );
    let again = operator
        .call("device.pair.approve", &json!({"requestId": request}))
        .unwrap_err();
    assert_eq!(again.message(), "unknown requestId");

    let (first, token) = paired(&gateway, &connect, &device);
    first.leave();
    // It is said once (decision 8), and is not the record.
    let (_second, hello) = Peer::admitted(&gateway, &connect, &device);
    assert!(hello["auth"].get("deviceToken").is_none(), "{hello}");
    let by_token = connect.clone().device_token(&token);
    let (mut third, hello) = Peer::admitted(&gateway, &by_token, &device);
    assert!(hello["auth"].get("deviceToken").is_none(), "{hello}");
    assert_eq!(hello["auth"]["scopes"], json!(["operator.read"]));
    assert_eq!(third.call("health", &json!({})).unwrap()["ok"], true);
    // In the `token` field it works too, and then it is what was signed.
    let in_token = connect.with("auth", json!({"token": token}));
    Peer::admitted(&gateway, &in_token, &device);
}

#[test]
fn a_token_is_nowhere_on_disk() {
    let gateway = Gateway::start();
    let (_peer, token) = paired(&gateway, &Connect::cli(), &Device::new());
    let mut files = vec![gateway.home().to_owned()];
    let mut seen = 0;
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(
                std::fs::read_dir(path)
                    .unwrap()
                    .map(|it| it.unwrap().path()),
            );
        } else if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            seen += 1;
            for secret in [token.as_str(), PASSWORD] {
                let found = bytes
                    .windows(secret.len())
                    .any(|window| window == secret.as_bytes());
                assert!(!found, "{secret} in {path:?}");
            }
        }
    }
    assert!(seen >= 2);
}

#[test]
fn a_rejected_device_stays_outside() {
    let gateway = strict();
    let device = Device::new();
    let request = pend(&gateway, &Connect::cli(), &device);
    gateway.cli_json(&["devices", "reject", &request]);
    let output = gateway.cli(&["devices", "approve", &request]);
    assert!(!output.status.success());
    assert_ne!(pend(&gateway, &Connect::cli(), &device), request);
    assert!(paired_ids(&gateway).is_empty());
}

#[test]
fn only_its_own_token_admits_a_device() {
    let gateway = Gateway::start();
    let (device, other) = (Device::new(), Device::new());
    let (_one, token) = paired(&gateway, &Connect::cli(), &device);
    let (_two, foreign) = paired(&gateway, &Connect::cli(), &other);
    for wrong in [
        foreign.as_str(),
        "wrong",
        &token[1..],
        &format!("{token}A"),
        &token.to_lowercase(),
    ] {
        let error = refused(&gateway, &Connect::cli().device_token(wrong), &device);
        assert_eq!(error.detail(), "AUTH_DEVICE_TOKEN_MISMATCH", "{wrong:?}");
        // A right one ends the series of delays.
        Peer::admitted(&gateway, &Connect::cli().device_token(&token), &device);
    }
    // An operator's token is not a node's, and without its key it is nothing.
    let node = Connect::node().device_token(&token);
    assert_eq!(
        refused(&gateway, &node, &device).detail(),
        "AUTH_DEVICE_TOKEN_MISMATCH"
    );
    let bare = Connect::cli().with("auth", json!({"token": token}));
    let error = Peer::open(&gateway).connect(&bare).unwrap_err();
    assert_eq!(error.detail(), "AUTH_PASSWORD_MISMATCH");
}

#[test]
fn n2_another_platform_must_be_approved_again() {
    let gateway = Gateway::start();
    let device = Device::new();
    let (_peer, token) = paired(&gateway, &Connect::node(), &device);
    for (field, value) in [
        ("platform", "macos"),
        ("deviceFamily", "Mac"),
        ("platform", "linux\u{a0}"),
        ("platform", "ｌinux"),
    ] {
        let changed = Connect::node().with_client(field, json!(value));
        for connect in [changed.clone(), changed.device_token(&token)] {
            let error = refused(&gateway, &connect, &device);
            assert_eq!(error.detail(), "PAIRING_REQUIRED", "{field} {value}");
            assert_eq!(error.0["details"]["reason"], "metadata-upgrade");
        }
    }
    // Case and outer blanks are not another platform.
    let same = Connect::node().with_client("platform", json!(" LiNuX "));
    Peer::admitted(&gateway, &same, &device);
}

#[test]
fn k1_removal_closes_the_connection() {
    let gateway = Gateway::start();
    let device = Device::new();
    let (mut peer, token) = paired(&gateway, &Connect::cli(), &device);
    let mut operator = Peer::operator(&gateway);
    let params = json!({"deviceId": device.id});
    assert_eq!(
        operator.call("device.pair.remove", &params).unwrap()["deviceId"],
        device.id
    );
    assert_eq!(peer.closed(), (4001, "device removed".to_owned()));
    let error = refused(&gateway, &Connect::cli().device_token(&token), &device);
    assert_eq!(error.detail(), "AUTH_DEVICE_TOKEN_MISMATCH");
    let again = operator.call("device.pair.remove", &params).unwrap_err();
    assert_eq!(again.message(), "unknown deviceId");
    assert!(paired_ids(&gateway).is_empty());
}

#[test]
fn k1_revocation_closes_the_connection_of_that_role() {
    let gateway = Gateway::start();
    let device = Device::new();
    let (mut peer, token) = paired(&gateway, &Connect::cli(), &device);
    let mut as_node = Connect::node();
    as_node.params["client"]
        .as_object_mut()
        .unwrap()
        .remove("deviceFamily");
    let (mut node, _) = paired(&gateway, &as_node, &device);
    let mut operator = Peer::operator(&gateway);
    let params = json!({"deviceId": device.id, "role": "operator"});
    operator.call("device.token.revoke", &params).unwrap();
    assert_eq!(peer.closed().0, 4001);
    let error = refused(&gateway, &Connect::cli().device_token(&token), &device);
    assert_eq!(error.detail(), "AUTH_DEVICE_TOKEN_MISMATCH");
    // The other role goes on.
    assert!(node.call("node.pending.pull", &json!({})).is_ok());
    // With the shared secret it gets a new one (decision 8).
    let (_peer, new) = paired(&gateway, &Connect::cli(), &device);
    assert_ne!(new, token);
}

#[test]
fn k1_rotation_closes_the_connection_and_the_old_token_is_void() {
    let gateway = Gateway::start();
    let device = Device::new();
    let (mut peer, token) = paired(&gateway, &Connect::cli(), &device);
    let mut operator = Peer::operator(&gateway);
    let params = json!({"deviceId": device.id, "role": "operator"});
    let rotated = operator.call("device.token.rotate", &params).unwrap();
    // Nobody but its device learns a token.
    assert!(rotated.get("token").is_none(), "{rotated}");
    assert_eq!(peer.closed().0, 4001);
    let error = refused(&gateway, &Connect::cli().device_token(&token), &device);
    assert_eq!(error.detail(), "AUTH_DEVICE_TOKEN_MISMATCH");
}

#[test]
fn k1_a_device_that_rotates_its_own_token_ends_its_other_connections() {
    let gateway = Gateway::start();
    let device = Device::new();
    let (mut stolen, token) = paired(&gateway, &Connect::cli(), &device);
    let by_token = Connect::cli().device_token(&token);
    let (mut peer, _) = Peer::admitted(&gateway, &by_token, &device);
    let params = json!({"deviceId": device.id, "role": "operator"});
    let rotated = peer.call("device.token.rotate", &params).unwrap();
    let new = rotated["token"].as_str().unwrap();
    assert_ne!(new, token);
    assert_eq!(stolen.closed().0, 4001);
    assert_eq!(peer.call("health", &json!({})).unwrap()["ok"], true);
    assert_eq!(
        refused(&gateway, &by_token, &device).detail(),
        "AUTH_DEVICE_TOKEN_MISMATCH"
    );
    Peer::admitted(&gateway, &Connect::cli().device_token(new), &device);
}

#[test]
fn s5_a_token_rotated_to_fewer_scopes_carries_fewer() {
    let gateway = Gateway::start();
    let device = Device::new();
    let (mut peer, _) = paired(&gateway, &Connect::cli(), &device);
    let params = json!({"deviceId": device.id, "role": "operator", "scopes": ["operator.read"]});
    let rotated = peer.call("device.token.rotate", &params).unwrap();
    assert_eq!(rotated["scopes"], json!(["operator.read"]));
    let token = rotated["token"].as_str().unwrap();
    let error = refused(&gateway, &Connect::cli().device_token(token), &device);
    assert_eq!(error.detail(), "AUTH_SCOPE_MISMATCH");
    let reader = Connect::cli()
        .scopes(&["operator.read"])
        .device_token(token);
    Peer::admitted(&gateway, &reader, &device);
}

#[test]
fn s3_an_approver_must_hold_what_it_grants() {
    let gateway = strict();
    let admin_request = pend(&gateway, &Connect::cli(), &Device::new());
    let node_request = pend(&gateway, &Connect::node(), &Device::new());
    let mut peer = Peer::open(&gateway);
    peer.connect(&Connect::cli().scopes(&["operator.pairing", "operator.write"]))
        .unwrap();
    for request in [admin_request, node_request] {
        let error = peer
            .call("device.pair.approve", &json!({"requestId": request}))
            .unwrap_err();
        assert_eq!(error.message(), "device pairing approval denied");
    }
    assert!(paired_ids(&gateway).is_empty());
    // What a node may run is refused by the scope that it takes.
    let mut admin = Peer::operator(&gateway);
    let device = Device::new();
    let connect = Connect::node().with("commands", json!(["system.run"]));
    let request = json!({"requestId": pend(&gateway, &connect, &device)});
    admin.call("device.pair.approve", &request).unwrap();
    let _node = Peer::admitted(&gateway, &connect, &device);
    let waiting = admin.call("node.pair.list", &json!({})).unwrap();
    let request = json!({"requestId": waiting["pending"][0]["requestId"]});
    let error = peer.call("node.pair.approve", &request).unwrap_err();
    assert_eq!(error.code(), "FORBIDDEN");
    assert_eq!(error.message(), "missing scope: operator.admin");
    assert_eq!(error.0["details"]["missingScope"], "operator.admin");
    assert_eq!(admin.call("node.pair.list", &json!({})).unwrap(), waiting);
}

#[test]
fn s4_e1_a_foreign_token_is_out_of_reach_and_looks_unknown() {
    let gateway = Gateway::start();
    let (admin, small) = (Device::new(), Device::new());
    let (mut admin_peer, token) = paired(&gateway, &Connect::cli(), &admin);
    let pairing = Connect::cli().scopes(&["operator.pairing"]);
    let (mut by_device, _) = paired(&gateway, &pairing, &small);
    let mut by_secret = Peer::open(&gateway);
    by_secret.connect(&pairing).unwrap();
    let unknown = "0".repeat(64);
    for peer in [&mut by_device, &mut by_secret] {
        for method in ["device.token.rotate", "device.token.revoke"] {
            let answers: Vec<WireError> = [admin.id.as_str(), &unknown, "nonsense"]
                .iter()
                .map(|id| {
                    peer.call(method, &json!({"deviceId": id, "role": "operator"}))
                        .unwrap_err()
                })
                .collect();
            assert_eq!(answers[0], answers[1], "{method}");
            assert_eq!(answers[0], answers[2], "{method}");
        }
        let foreign = json!({"deviceId": admin.id});
        let nobody = json!({"deviceId": unknown});
        let foreign = peer.call("device.pair.remove", &foreign).unwrap_err();
        assert_eq!(
            foreign,
            peer.call("device.pair.remove", &nobody).unwrap_err()
        );
    }
    assert_eq!(admin_peer.call("health", &json!({})).unwrap()["ok"], true);
    Peer::admitted(&gateway, &Connect::cli().device_token(&token), &admin);
}

#[test]
fn e1_a_foreign_device_cannot_be_renamed() {
    let gateway = Gateway::start();
    let (device, other) = (Device::new(), Device::new());
    let pairing = Connect::cli().scopes(&["operator.pairing"]);
    let (mut peer, _) = paired(&gateway, &pairing, &device);
    let (_other, _) = paired(&gateway, &Connect::cli(), &other);
    let foreign = json!({"deviceId": other.id, "label": "mine"});
    let unknown = json!({"deviceId": "0".repeat(64), "label": "mine"});
    let foreign = peer.call("device.pair.rename", &foreign).unwrap_err();
    assert_eq!(
        foreign,
        peer.call("device.pair.rename", &unknown).unwrap_err()
    );
    let own = json!({"deviceId": device.id, "label": "mine"});
    assert_eq!(
        peer.call("device.pair.rename", &own).unwrap()["label"],
        "mine"
    );
}

#[test]
fn pairing_a_wider_request_supersedes_the_narrower_one() {
    let gateway = strict();
    let device = Device::new();
    let small = pend(
        &gateway,
        &Connect::cli().scopes(&["operator.read"]),
        &device,
    );
    let wide = pend(&gateway, &Connect::cli(), &device);
    assert_ne!(small, wide);
    // Whoever approves the number on the screen approves what was shown with it.
    let mut operator = Peer::operator(&gateway);
    let error = operator
        .call("device.pair.approve", &json!({"requestId": small}))
        .unwrap_err();
    assert_eq!(error.message(), "unknown requestId");
    let pending = operator.call("device.pair.list", &json!({})).unwrap();
    assert_eq!(pending["pending"].as_array().unwrap().len(), 1);
    assert_eq!(pending["pending"][0]["scopes"], json!(ADMIN));
}
