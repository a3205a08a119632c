//! The client against a stand-in Gateway over real sockets.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::join;

use super::dial::DialError;
use super::stand_in::{NONCE, StandIn, TS};
use super::*;
use crate::auth::device::{self, Signed};
use crate::auth::scope::Role;
use crate::base::Secret;
use crate::rpc::types::connect::{ClientId, ClientInfo, ClientMode, DeviceProof, PROTOCOL};
use crate::ws::handshake::ResponseError;

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(20);

pub(crate) fn options() -> ConnectOptions {
    ConnectOptions {
        client: ClientInfo {
            id: ClientId::Cli,
            display_name: None,
            version: "1".to_owned(),
            build_id: None,
            platform: "LiNuX".to_owned(),
            device_family: Some("Linux".to_owned()),
            model_identifier: None,
            time_zone: None,
            mode: ClientMode::Cli,
            instance_id: None,
        },
        role: Role::Operator,
        scopes: vec!["operator.read".to_owned()],
        caps: Vec::new(),
        commands: None,
        path_env: None,
        protocol_min: PROTOCOL,
        sent: Sent {
            password: Some(Secret::new(&b"the password"[..])),
            ..Sent::default()
        },
        identity: None,
        break_glass: false,
        timeout: LONG,
    }
}

async fn pair() -> (Client, Events, stand_in::Session) {
    let (server, endpoint) = StandIn::tcp().await;
    let options = options();
    let (client, (session, _)) = join!(Client::connect(&endpoint, &options), server.admit(30_000));
    let (client, events) = client.ok().unwrap();
    (client, events, session)
}

#[tokio::test]
async fn connects_and_calls_over_tcp() {
    let (server, endpoint) = StandIn::tcp().await;
    let options = options();
    let (client, (mut session, connect)) =
        join!(Client::connect(&endpoint, &options), server.admit(30_000));
    let (client, _events) = client.ok().unwrap();
    assert_eq!(client.hello().server.version, "stand-in");
    assert_eq!(client.hello().silence_max(), Duration::from_secs(60));
    assert_eq!(
        connect["params"]["auth"],
        json!({"password": "the password"})
    );
    assert_eq!(connect["params"]["device"], Value::Null);
    assert!(
        session
            .head
            .contains(&format!("Host: {}\r\n", endpoint.key()))
    );
    assert!(!session.head.to_lowercase().contains("origin"));
    let params = json!({"a": 1});
    let (result, ()) = join!(client.call("health", &params, LONG), async {
        let request = session.request_of("health").await;
        assert_eq!(
            (&request["method"], &request["params"]),
            (&json!("health"), &json!({"a": 1}))
        );
        session.respond(&request, &json!({"ok": true})).await;
    });
    assert_eq!(result.unwrap().get(), "{\"ok\":true}");
    drop(client);
    assert_eq!(session.closed().await, Some(1000));
}

#[tokio::test]
async fn the_admin_socket_carries_the_same_protocol() {
    let dir = tempfile::tempdir().unwrap();
    let (server, endpoint) = StandIn::unix(&dir.path().join("admin.sock"));
    let mut options = options();
    options.sent = Sent::default();
    let (client, (session, connect)) =
        join!(Client::connect(&endpoint, &options), server.admit(30_000));
    assert!(client.is_ok());
    assert_eq!(connect["params"]["auth"], Value::Null);
    assert!(session.head.contains("Host: localhost\r\n"));
}

#[tokio::test]
async fn a_device_signs_the_challenge_in_v3() {
    let home = tempfile::tempdir().unwrap();
    let identity = Arc::new(
        Identity::load_or_create(&home.path().join("i"))
            .ok()
            .unwrap(),
    );
    let (server, endpoint) = StandIn::tcp().await;
    let mut options = options();
    options.identity = Some(Arc::clone(&identity));
    options.sent.device_token = Some(Secret::new(&b"device-token"[..]));
    let (client, (_session, connect)) =
        join!(Client::connect(&endpoint, &options), server.admit(30_000));
    assert!(client.is_ok());
    let claim: DeviceProof = serde_json::from_value(connect["params"]["device"].clone()).unwrap();
    let mut signed = Signed {
        device_id: &claim.id,
        client_id: "cli",
        client_mode: "cli",
        role: Role::Operator,
        scopes: &options.scopes,
        signed_at_ms: TS,
        token: "device-token",
        nonce: NONCE,
        platform: Some("LiNuX"),
        device_family: Some("Linux"),
    };
    assert!(device::verify(&claim, &signed, NONCE, TS).is_ok());
    signed.token = "the password";
    assert!(device::verify(&claim, &signed, NONCE, TS).is_err());
}

#[tokio::test]
async fn a_refusal_carries_code_and_details() {
    let (server, endpoint) = StandIn::tcp().await;
    let options = options();
    let error = json!({"code": "NOT_PAIRED", "message": "pairing required", "details": {"code": "PAIRING_REQUIRED", "requestId": "r1"}});
    let (client, ()) = join!(Client::connect(&endpoint, &options), async {
        let (mut session, connect) = server.connect().await;
        session.refuse(&connect, &error).await;
        session.close(1008, "pairing required").await;
    });
    let refusal = client.err().unwrap();
    let ConnectError::Refused(error) = &refusal else {
        panic!("{refusal}");
    };
    assert_eq!(error.detail_code(), Some("PAIRING_REQUIRED"));
    assert_eq!(refusal.to_string(), "pairing required");
}

#[tokio::test]
async fn what_is_no_gateway_learns_nothing() {
    // No challenge, an unusable nonce, a frame that is none: `connect` is never sent.
    for first in [
        json!({"type": "event", "event": "tick", "payload": {}}).to_string(),
        json!({"type": "event", "event": "connect.challenge", "payload": {"nonce": " ", "ts": 1}}).to_string(),
        json!({"type": "event", "event": "connect.challenge", "payload": {"nonce": "a|b", "ts": 1}}).to_string(),
        json!({"type": "event", "event": "connect.challenge", "payload": {"nonce": "a"}}).to_string(),
        "hello".to_owned(),
    ] {
        let (server, endpoint) = StandIn::tcp().await;
        let options = options();
        let (client, seen) = join!(Client::connect(&endpoint, &options), async {
            let mut session = server.upgrade().await;
            session.send_text(&first).await;
            session.io.receive().await
        });
        assert!(matches!(client.err(), Some(ConnectError::Protocol(_))), "{first}");
        assert!(!matches!(seen, Ok(crate::ws::Event::Text(_))), "{first}");
    }
}

#[tokio::test]
async fn other_servers_are_named() {
    let (server, endpoint) = StandIn::tcp().await;
    let options = options();
    let (client, _) = join!(
        Client::connect(&endpoint, &options),
        server.answer(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
    );
    let error = client.err().unwrap();
    assert!(matches!(
        error,
        ConnectError::Dial(DialError::Response(ResponseError::Status(403)))
    ));
    let (client, _) = join!(
        Client::connect(&endpoint, &options),
        server.answer(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
    );
    assert!(matches!(
        client.err(),
        Some(ConnectError::Dial(DialError::Response(_)))
    ));
}

#[tokio::test]
async fn a_silent_server_is_given_up_before_hello() {
    let (server, endpoint) = StandIn::tcp().await;
    let mut options = options();
    options.timeout = Duration::from_millis(100);
    let (client, _session) = join!(Client::connect(&endpoint, &options), server.upgrade());
    assert!(matches!(client.err(), Some(ConnectError::Timeout { .. })));
}

#[tokio::test]
async fn a_call_times_out_alone() {
    let (client, _events, mut session) = pair().await;
    let none = json!({});
    let late = client.call("slow", &none, Duration::from_millis(50)).await;
    assert!(matches!(late, Err(CallError::Timeout { .. })));
    let (good, ()) = join!(client.call("quick", &none, LONG), async {
        let slow = session.request().await;
        let quick = session.request().await;
        session.respond(&slow, &json!("late")).await;
        session.respond(&quick, &json!("quick")).await;
    });
    assert_eq!(good.unwrap().get(), "\"quick\"");
}

#[tokio::test]
async fn the_servers_close_code_reaches_calls_and_events() {
    let (client, mut events, mut session) = pair().await;
    let none = json!({});
    let (call, ()) = join!(client.call("health", &none, LONG), async {
        session.request().await;
        session.close(4001, "device removed").await;
    });
    let want = Ended::Closed {
        code: Some(4001),
        reason: "device removed".to_owned(),
    };
    assert_eq!(call.err(), Some(CallError::Ended(want.clone())));
    assert_eq!(events.next().await.err(), Some(want.clone()));
    assert_eq!(
        client.call("again", &none, LONG).await.err(),
        Some(CallError::Ended(want))
    );
}

#[tokio::test]
async fn a_method_that_answers_twice_is_followed_to_its_end() {
    let (client, _events, mut session) = pair().await;
    let none = json!({});
    let (end, ()) = join!(client.call_to_end("agent", &none, LONG), async {
        let request = session.request().await;
        session
            .respond(&request, &json!({"status": "accepted"}))
            .await;
        session.respond(&request, &json!({"status": "ok"})).await;
    });
    assert_eq!(end.unwrap().get(), "{\"status\":\"ok\"}");
}

#[tokio::test]
async fn events_come_in_order() {
    let (_client, mut events, mut session) = pair().await;
    for number in 0..3 {
        session.event("tick", &json!({"ts": number})).await;
    }
    for number in 0..3 {
        let event = events.next().await.ok().unwrap();
        assert_eq!(event.name, "tick");
        assert_eq!(event.decode::<Value>(), Some(json!({"ts": number})));
    }
}

#[tokio::test]
async fn events_that_nobody_reads_end_the_connection_at_a_bound() {
    let (client, mut events, mut session) = pair().await;
    for _ in 0..1100 {
        session.event("tick", &json!({})).await;
    }
    assert_eq!(session.closed().await, Some(1008));
    let mut read = 0;
    let ended = loop {
        match events.next().await {
            Ok(_) => read += 1,
            Err(ended) => break ended,
        }
    };
    assert_eq!((read, ended), (1024, Ended::Overrun));
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_falls_silent_is_left() {
    let (server, endpoint) = StandIn::tcp().await;
    let options = options();
    let (client, (session, _)) = join!(Client::connect(&endpoint, &options), server.admit(1000));
    let (_client, mut events) = client.ok().unwrap();
    let after = 2 * SECOND;
    assert_eq!(events.next().await.err(), Some(Ended::Silent { after }));
    assert_eq!(session.closed().await, Some(4000));
}

#[tokio::test]
async fn an_oversized_request_is_not_sent() {
    let (client, _events, _session) = pair().await;
    let text = json!("x".repeat(100_000));
    assert!(matches!(
        client.call("big", &text, LONG).await,
        Err(CallError::TooLarge { limit: 100_000, .. })
    ));
}

#[test]
fn a_peers_sentence_cannot_drive_the_terminal() {
    assert_eq!(
        call::shown("a\u{1b}[31mb\u{202e}c\nd"),
        "a\\u{1b}[31mb\\u{202e}c\\u{a}d"
    );
    assert_eq!(call::shown(&"x".repeat(1000)).len(), 400);
}
