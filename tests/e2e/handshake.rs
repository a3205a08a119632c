//! From the upgrade to `hello-ok`, and every way not to get there.

use std::io::Read;

use serde_json::{Value, json};
use tungstenite::Message;
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::support::{Connect, Device, Form, Gateway, PASSWORD, Peer, Received, WireError};

/// Sends `connect` on a socket of its own. The refusal, and that the close frame says the same.
fn refusal(gateway: &Gateway, connect: &Connect) -> WireError {
    let mut peer = Peer::open(gateway);
    let error = peer.connect(connect).unwrap_err();
    let (code, reason) = peer.closed();
    assert_eq!(code, 1008, "{error:?}");
    assert!(
        reason.starts_with(error.message().get(..100).unwrap_or(error.message())),
        "{reason:?} after {error:?}"
    );
    error
}

fn refusal_as(gateway: &Gateway, connect: &Connect, device: &Device) -> WireError {
    let mut peer = Peer::open(gateway);
    peer.connect_as(connect, device).unwrap_err()
}

/// The close frame that a raw first message earns, and the frame before it.
fn first_message(gateway: &Gateway, message: Message) -> (Option<Value>, u16, String) {
    let mut peer = Peer::open(gateway);
    peer.send_message(message);
    let mut answer = None;
    loop {
        match peer.receive() {
            Received::Frame(frame) => answer = Some(frame),
            Received::Close(code, reason) => return (answer, code, reason),
            Received::Lost(why) => panic!("no close frame: {why}"),
        }
    }
}

fn first_text(gateway: &Gateway, text: &str) -> (Option<Value>, u16, String) {
    first_message(gateway, Message::text(text))
}

/// A paired and pending list without anything in it.
fn nothing_was_filed(gateway: &Gateway) {
    let list = gateway.cli_json(&["devices", "list"]);
    assert_eq!(list, json!({"pending": [], "paired": []}));
}

#[test]
fn a1_no_method_before_connect() {
    let config = "{gateway: {auth: {mode: 'password'}}}";
    let gateway = crate::support::Setup::default().config(config).start();
    let state = gateway.home().join("state/openclaw.json");
    for method in [
        "config.apply",
        "health",
        "device.pair.list",
        "connect.challenge",
    ] {
        let request = json!({"type": "req", "id": "1", "method": method, "params": {}});
        let (answer, code, reason) = first_text(&gateway, &request.to_string());
        let answer = answer.unwrap();
        assert_eq!((&answer["id"], &answer["ok"]), (&json!("1"), &json!(false)));
        assert_eq!(answer["error"]["code"], "INVALID_REQUEST");
        let message = "invalid handshake: first request must be connect";
        assert_eq!(answer["error"]["message"], message);
        assert_eq!((code, reason.as_str()), (1008, message));
    }
    assert_eq!(std::fs::read_to_string(state).unwrap(), config);
    nothing_was_filed(&gateway);
}

#[test]
fn a1_connect_is_valid_once() {
    let gateway = Gateway::start();
    let mut peer = Peer::operator(&gateway);
    let error = peer.connect(&Connect::cli()).unwrap_err();
    assert_eq!(
        error.message(),
        "connect is only valid as the first request"
    );
    assert_eq!(peer.call("health", &json!({})).unwrap()["ok"], true);
}

#[test]
fn a2_the_validity_of_a_secret_counts_and_not_its_presence() {
    let gateway = Gateway::start();
    let wrong = Connect::cli().password("wrong");
    let error = refusal(&gateway, &wrong);
    assert_eq!(error.code(), "INVALID_REQUEST");
    assert_eq!(error.detail(), "AUTH_PASSWORD_MISMATCH");
    for empty in ["", " "] {
        let error = refusal(&gateway, &Connect::cli().password(empty));
        assert_eq!(error.detail(), "AUTH_PASSWORD_MISSING", "{empty:?}");
    }
    let error = refusal(&gateway, &Connect::cli().without("auth"));
    assert_eq!(error.code(), "NOT_PAIRED");
    assert_eq!(error.detail(), "DEVICE_IDENTITY_REQUIRED");
    let device = Device::new();
    let error = refusal_as(&gateway, &Connect::cli().without("auth"), &device);
    assert_eq!(error.detail(), "AUTH_PASSWORD_MISSING");
    nothing_was_filed(&gateway);
}

#[test]
fn a2_either_field_carries_the_secret() {
    let gateway = Gateway::start();
    for field in ["token", "password"] {
        let connect = Connect::cli().with("auth", json!({field: PASSWORD}));
        let hello = Peer::open(&gateway).connect(&connect).unwrap();
        assert_eq!(hello["type"], "hello-ok");
        assert_eq!(hello["protocol"], 4);
    }
}

#[test]
fn a2_a_part_of_the_secret_is_not_the_secret() {
    let gateway = Gateway::start();
    let longer = format!("{PASSWORD} ");
    let upper = PASSWORD.to_uppercase();
    for wrong in [
        &PASSWORD[1..],
        &PASSWORD[..PASSWORD.len() - 1],
        &longer,
        &upper,
    ] {
        let mut peer = Peer::open(&gateway);
        let error = peer.connect(&Connect::cli().password(wrong)).unwrap_err();
        assert_eq!(error.detail(), "AUTH_PASSWORD_MISMATCH", "{wrong:?}");
        // The right one starts the series of delays anew.
        Peer::operator(&gateway);
    }
}

#[test]
fn a4_words_for_nothing_are_wrong_secrets() {
    let gateway = Gateway::start();
    for word in ["undefined", "null", "NaN", "\0"] {
        let auth = json!({"token": word, "password": word});
        let mut peer = Peer::open(&gateway);
        let error = peer
            .connect(&Connect::cli().with("auth", auth))
            .unwrap_err();
        assert_eq!(error.detail(), "AUTH_PASSWORD_MISMATCH", "{word:?}");
        Peer::operator(&gateway);
    }
}

#[test]
fn a4_without_a_secret_it_does_not_start() {
    let home = tempfile::TempDir::new().unwrap();
    let port = crate::support::free_port();
    let empty = [("OPENCLAW_GATEWAY_PASSWORD".to_owned(), "  ".to_owned())];
    for env in [&[][..], &empty[..]] {
        let output = crate::support::program(home.path(), env)
            .args(["gateway", "run", "--port", &port.to_string()])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(78), "{output:?}");
        assert!(!output.stderr.is_empty());
        assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    }
}

#[test]
fn a6_a_program_on_this_host_is_paired_silently_and_a_page_is_not() {
    let gateway = Gateway::start();
    let (_program, hello) = Peer::admitted(&gateway, &Connect::cli(), &Device::new());
    assert_eq!(hello["auth"]["deviceToken"].as_str().unwrap().len(), 43);

    let page = Device::new();
    let origin = format!("http://127.0.0.1:{}", gateway.port());
    let mut peer = Peer::open_with(&gateway, &[("origin", &origin)]).unwrap();
    let connect = Connect::as_client("openclaw-control-ui", "webchat").password(PASSWORD);
    let error = peer.connect_as(&connect, &page).unwrap_err();
    assert_eq!(error.code(), "NOT_PAIRED");
    assert_eq!(error.detail(), "PAIRING_REQUIRED");
    assert_eq!(error.0["details"]["reason"], "not-paired");
    let request = error.0["details"]["requestId"].as_str().unwrap();
    let (code, reason) = peer.closed();
    assert_eq!(code, 1008);
    assert!(
        reason.ends_with(&format!("(requestId: {request})")),
        "{reason}"
    );
    let list = gateway.cli_json(&["devices", "list"]);
    assert_eq!(list["pending"][0]["requestId"], request);
    assert_eq!(list["pending"][0]["browserOrigin"], origin);
    assert_eq!(list["paired"].as_array().unwrap().len(), 1);
}

#[test]
fn a7_a_proof_is_bound_to_its_connection() {
    let gateway = Gateway::start();
    let device = Device::new();
    let mut first = Peer::open(&gateway);
    let captured = Connect::cli().signed(&device, &first.nonce, first.challenged_at);
    first.connect(&captured).unwrap();
    let error = refusal(&gateway, &captured);
    assert_eq!(error.detail(), "DEVICE_AUTH_NONCE_MISMATCH");
}

#[test]
fn a7_a_blank_nonce_is_refused_and_a_missing_one_is_malformed() {
    let gateway = Gateway::start();
    let device = Device::new();
    let mut peer = Peer::open(&gateway);
    let mut connect = Connect::cli().signed(&device, &peer.nonce, peer.challenged_at);
    connect.params["device"]["nonce"] = json!(" ");
    let error = peer.connect(&connect).unwrap_err();
    assert_eq!(error.detail(), "DEVICE_AUTH_NONCE_REQUIRED");
    connect.params["device"]
        .as_object_mut()
        .unwrap()
        .remove("nonce");
    let error = refusal(&gateway, &connect);
    assert_eq!(error.detail(), "");
    assert!(error.message().contains("'nonce'"), "{error:?}");
}

#[test]
fn a7_a_stale_or_future_signature_is_refused() {
    let gateway = Gateway::start();
    let device = Device::new();
    for skew_ms in [-180_000_i64, -122_000, 122_000] {
        let mut peer = Peer::open(&gateway);
        let signed_at = peer.challenged_at.checked_add_signed(skew_ms).unwrap();
        let connect = Connect::cli().signed(&device, &peer.nonce, signed_at);
        let error = peer.connect(&connect).unwrap_err();
        assert_eq!(error.detail(), "DEVICE_AUTH_SIGNATURE_EXPIRED", "{skew_ms}");
    }
    for skew_ms in [-110_000_i64, 110_000] {
        let mut peer = Peer::open(&gateway);
        let signed_at = peer.challenged_at.checked_add_signed(skew_ms).unwrap();
        let connect = Connect::cli().signed(&device, &peer.nonce, signed_at);
        assert!(peer.connect(&connect).is_ok(), "{skew_ms}");
    }
}

#[test]
fn a7_forms_two_and_three_are_read_and_form_one_is_not() {
    let gateway = Gateway::start();
    for form in [Form::V2, Form::V3] {
        Peer::admitted(&gateway, &Connect::cli().form(form), &Device::new());
    }
    let error = refusal_as(&gateway, &Connect::cli().form(Form::V1), &Device::new());
    assert_eq!(error.detail(), "DEVICE_AUTH_SIGNATURE_INVALID");
}

#[test]
fn a8_a_device_id_is_the_hash_of_its_key() {
    let gateway = Gateway::start();
    let (device, other) = (Device::new(), Device::new());
    let changes: [(&str, Value); 4] = [
        ("id", json!(other.id)),
        ("id", json!(device.id.to_uppercase())),
        ("publicKey", json!(other.public_key)),
        ("publicKey", json!("not a key")),
    ];
    for (field, value) in changes {
        let mut peer = Peer::open(&gateway);
        let mut connect = Connect::cli().signed(&device, &peer.nonce, peer.challenged_at);
        connect.params["device"][field] = value;
        let error = peer.connect(&connect).unwrap_err();
        assert_eq!(error.detail(), "DEVICE_AUTH_DEVICE_ID_MISMATCH", "{field}");
    }
    nothing_was_filed(&gateway);
}

#[test]
fn a8_a_key_of_small_order_is_no_identity() {
    let gateway = Gateway::start();
    // The neutral element: any signature whose S fits verifies for any message.
    let mut key = [0_u8; 32];
    key[0] = 1;
    let hash = ring::digest::digest(&ring::digest::SHA256, &key);
    let id: String = hash
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut peer = Peer::open(&gateway);
    let mut connect = Connect::cli().signed(&Device::new(), &peer.nonce, peer.challenged_at);
    connect.params["device"]["id"] = json!(id);
    connect.params["device"]["publicKey"] = json!("AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
    let error = peer.connect(&connect).unwrap_err();
    assert_eq!(error.detail(), "DEVICE_AUTH_PUBLIC_KEY_INVALID");
    nothing_was_filed(&gateway);
}

/// Signs, changes one thing, and expects the proof to be void.
fn flipped(path: &[&str], value: &Value) {
    let gateway = Gateway::start();
    let mut peer = Peer::open(&gateway);
    let connect = Connect::cli()
        .with("auth", json!({"token": PASSWORD}))
        .with_client("deviceFamily", json!("Linux"));
    let mut connect = connect.signed(&Device::new(), &peer.nonce, peer.challenged_at);
    let field = path
        .iter()
        .fold(&mut connect.params, |place, key| &mut place[*key]);
    assert_ne!(field, value);
    *field = value.clone();
    let error = peer.connect(&connect).unwrap_err();
    assert_eq!(error.detail(), "DEVICE_AUTH_SIGNATURE_INVALID", "{path:?}");
    nothing_was_filed(&gateway);
}

#[test]
fn a9_the_role_is_signed() {
    flipped(&["role"], &json!("node"));
}

#[test]
fn a9_the_scopes_are_signed_as_sent() {
    flipped(&["scopes"], &json!(["operator.read"]));
    flipped(
        &["scopes"],
        &json!([
            "operator.read",
            "operator.admin",
            "operator.write",
            "operator.approvals",
            "operator.pairing"
        ]),
    );
}

#[test]
fn a9_the_token_is_signed() {
    flipped(&["auth"], &json!({"password": PASSWORD}));
}

#[test]
fn a9_the_client_id_is_signed() {
    flipped(&["client", "id"], &json!("gateway-client"));
}

#[test]
fn a9_the_client_mode_is_signed() {
    flipped(&["client", "mode"], &json!("backend"));
}

#[test]
fn a9_the_platform_is_signed() {
    flipped(&["client", "platform"], &json!("macos"));
}

#[test]
fn a9_the_device_family_is_signed() {
    flipped(&["client", "deviceFamily"], &json!("Mac"));
}

#[test]
fn a9_the_time_is_signed() {
    let gateway = Gateway::start();
    let mut peer = Peer::open(&gateway);
    let mut connect = Connect::cli().signed(&Device::new(), &peer.nonce, peer.challenged_at);
    connect.params["device"]["signedAt"] = json!(peer.challenged_at + 1);
    let error = peer.connect(&connect).unwrap_err();
    assert_eq!(error.detail(), "DEVICE_AUTH_SIGNATURE_INVALID");
}

#[test]
fn a10_a_node_needs_a_device() {
    let gateway = Gateway::start();
    for client in ["node-host", "openclaw-control-ui", "cli"] {
        let mut connect = Connect::node();
        connect.params["client"]["id"] = json!(client);
        let mut peer = match client {
            "openclaw-control-ui" => {
                let origin = format!("http://127.0.0.1:{}", gateway.port());
                Peer::open_with(&gateway, &[("origin", &origin)]).unwrap()
            }
            _ => Peer::open(&gateway),
        };
        let error = peer.connect(&connect).unwrap_err();
        assert_eq!(error.code(), "NOT_PAIRED");
        assert_eq!(error.detail(), "DEVICE_IDENTITY_REQUIRED", "{client}");
        assert_eq!(peer.closed(), (1008, "device identity required".to_owned()));
    }
}

#[test]
fn a_protocol_mismatch_closes_with_1002() {
    let gateway = Gateway::start();
    for (min, max) in [(5, 6), (1, 3), (1, 2), (6, 4)] {
        let connect = Connect::cli()
            .with("minProtocol", json!(min))
            .with("maxProtocol", json!(max));
        let mut peer = Peer::open(&gateway);
        let error = peer.connect(&connect).unwrap_err();
        assert_eq!(error.detail(), "PROTOCOL_MISMATCH", "{min}..{max}");
        assert_eq!(peer.closed(), (1002, "protocol mismatch".to_owned()));
    }
    // Nodes may be one version behind.
    let connect = Connect::node()
        .with("minProtocol", json!(3))
        .with("maxProtocol", json!(3));
    Peer::admitted(&gateway, &connect, &Device::new());
}

#[test]
fn an_unknown_role_is_refused() {
    let gateway = Gateway::start();
    for role in ["admin", "Operator", "operator ", "node\u{0}"] {
        let error = refusal(&gateway, &Connect::cli().with("role", json!(role)));
        assert_eq!(error.message(), "invalid role", "{role:?}");
    }
    let mut peer = Peer::open(&gateway);
    let worker = Connect::cli().with("role", json!("worker"));
    peer.request("connect", &worker.params);
    assert_eq!(peer.closed(), (1008, "invalid-handshake".to_owned()));
}

#[test]
fn connect_is_read_exactly_as_the_schema_says() {
    let gateway = Gateway::start();
    let cases: [(Connect, &str); 9] = [
        (Connect::cli().with("admin", json!(true)), "'admin'"),
        (Connect::cli().with_client("isAdmin", json!(1)), "'isAdmin'"),
        (Connect::cli().without("client"), "'client'"),
        (
            Connect::cli().with_client("id", json!("ios-node")),
            "/client/id",
        ),
        (
            Connect::cli().with_client("mode", json!("operator")),
            "/client/mode",
        ),
        (
            Connect::cli().with("minProtocol", json!("4")),
            "/minProtocol",
        ),
        (Connect::cli().with("maxProtocol", json!(0)), "/maxProtocol"),
        (
            Connect::cli().with("scopes", json!("operator.admin")),
            "/scopes",
        ),
        (
            Connect::cli().with("auth", json!({"secret": "x"})),
            "'secret'",
        ),
    ];
    for (connect, named) in cases {
        let error = refusal(&gateway, &connect);
        assert_eq!(error.code(), "INVALID_REQUEST");
        assert_eq!(error.detail(), "");
        assert!(
            error.message().starts_with("invalid connect params: "),
            "{error:?}"
        );
        assert!(error.message().contains(named), "{named} in {error:?}");
    }
    nothing_was_filed(&gateway);
}

#[test]
fn what_is_no_request_ends_the_connection() {
    let gateway = Gateway::start();
    for text in ["", "hello", "{", "{}{}", "\u{feff}{}", "nul"] {
        let (_, code, reason) = first_text(&gateway, text);
        assert_eq!((code, reason.as_str()), (1000, ""), "{text:?}");
    }
    for text in [
        "{}",
        "[]",
        "null",
        "\"connect\"",
        "{\"type\":\"req\"}",
        "{\"type\":\"res\",\"id\":\"1\",\"ok\":true}",
        "{\"type\":\"event\",\"event\":\"connect\"}",
        "{\"type\":\"req\",\"id\":7,\"method\":\"connect\"}",
        "{\"type\":\"req\",\"id\":\"\",\"method\":\"connect\"}",
    ] {
        let (_, code, reason) = first_text(&gateway, text);
        assert_eq!(
            (code, reason.as_str()),
            (1008, "invalid request frame"),
            "{text}"
        );
    }
}

#[test]
fn a_binary_first_frame_is_not_the_protocol() {
    let gateway = Gateway::start();
    let connect =
        json!({"type": "req", "id": "1", "method": "connect", "params": Connect::cli().params});
    let (answer, code, _) = first_message(&gateway, Message::binary(connect.to_string()));
    assert_eq!((answer, code), (None, 1008));
}

#[test]
fn w2_a_silent_client_is_closed_within_sixteen_seconds() {
    let gateway = Gateway::start();
    let mut silent = Peer::open(&gateway);
    let mut slow_head = gateway.dial();
    std::io::Write::write_all(&mut slow_head, b"GET / HTTP/1.1\r\nHo").unwrap();
    assert_eq!(silent.closed(), (1000, String::new()));
    let mut rest = Vec::new();
    // What counts is that the connection ends.
    let _ = slow_head.read_to_end(&mut rest);
    assert!(!rest.starts_with(b"HTTP/1.1 2"), "{rest:?}");
}

#[test]
fn w3_a_first_frame_over_64_kib_is_refused() {
    let gateway = Gateway::start();
    let text = "x".repeat(64 * 1024 + 1);
    let (answer, code, _) = first_text(&gateway, &text);
    assert_eq!((answer, code), (None, 1009));
    // At the limit it is read, and found not to be JSON.
    let (_, code, _) = first_text(&gateway, &text[1..]);
    assert_eq!(code, 1000);
}

#[test]
fn w3_a_fragmented_first_message_over_64_kib_is_refused() {
    let gateway = Gateway::start();
    let mut peer = Peer::open(&gateway);
    let piece = "x".repeat(66);
    for number in 0..1000 {
        let opcode = match number {
            0 => OpCode::Data(Data::Text),
            _ => OpCode::Data(Data::Continue),
        };
        let frame = Frame::message(piece.clone(), opcode, number == 999);
        peer.send_message(Message::Frame(frame));
    }
    assert_eq!(peer.closed().0, 1009);
}

#[test]
fn w3_a_claimed_length_reserves_nothing() {
    let gateway = Gateway::start();
    let mut peer = Peer::open(&gateway);
    // A text frame that claims 2^62 bytes.
    peer.send_raw(&[0x81, 0xff, 0x40, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
    assert_eq!(peer.closed().0, 1009);
    Peer::operator(&gateway);
}

#[test]
fn w4_duplicate_keys_and_depth_are_refused() {
    let gateway = Gateway::start();
    let connect =
        json!({"type": "req", "id": "1", "method": "connect", "params": Connect::cli().params})
            .to_string();
    let twice = connect.replacen("\"role\":", "\"role\":\"node\",\"role\":", 1);
    assert_ne!(twice, connect);
    let escaped = connect.replacen("\"role\":", "\"\\u0072ole\":\"node\",\"role\":", 1);
    let deep = format!(
        "{{\"type\":\"req\",\"id\":\"1\",\"method\":\"connect\",\"params\":{}{}}}",
        "[".repeat(10_000),
        "]".repeat(10_000)
    );
    for text in [&twice, &escaped, &deep] {
        let (answer, code, reason) = first_text(&gateway, text);
        assert_eq!(answer.unwrap()["error"]["code"], "INVALID_REQUEST");
        assert_eq!((code, reason.as_str()), (1008, "invalid request frame"));
    }
    nothing_was_filed(&gateway);
}

#[test]
fn w4_surrogates_and_nul_are_no_words() {
    let gateway = Gateway::start();
    let connect =
        json!({"type": "req", "id": "1", "method": "connect", "params": Connect::cli().params})
            .to_string();
    let lone = connect.replacen("\"linux\"", "\"\\ud800\"", 1);
    assert_ne!(lone, connect);
    let (answer, code, _) = first_text(&gateway, &lone);
    assert_eq!(answer.unwrap()["error"]["code"], "INVALID_REQUEST");
    assert_eq!(code, 1008);
    let nul = connect.replacen("\"connect\"", "\"connect\\u0000\"", 1);
    let (answer, code, _) = first_text(&gateway, &nul);
    assert_eq!(
        answer.unwrap()["error"]["message"],
        "invalid handshake: first request must be connect"
    );
    assert_eq!(code, 1008);
    // Not UTF-8 (RFC 6455 §8.1).
    let mut peer = Peer::open(&gateway);
    peer.send_raw(&[0x81, 0x82, 0, 0, 0, 0, 0xc3, 0x28]);
    assert_eq!(peer.closed().0, 1007);
}

#[test]
fn an_unmasked_frame_is_a_protocol_error() {
    let gateway = Gateway::start();
    let mut peer = Peer::open(&gateway);
    peer.send_raw(b"\x81\x02{}");
    assert_eq!(peer.closed().0, 1002);
}
