//! The node host against a stand-in Gateway over a real socket.

use std::sync::Mutex;

use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::*;
use crate::base::Secret;
use crate::client::stand_in::{Session, StandIn};

const TICK_MS: u64 = 30_000;

/// The commands of a machine that has none: `echo` answers at once, `hold` when it is let go.
#[derive(Default)]
struct Fake {
    runs: Mutex<Vec<String>>,
    go: Notify,
    dropped: Arc<Notify>,
}

/// Tells that a command's future is gone.
struct OnDrop(Arc<Notify>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Commands for Fake {
    fn names(&self) -> Vec<String> {
        vec!["echo".to_owned(), "hold".to_owned()]
    }

    fn facts(&self) -> HostFacts {
        HostFacts::default()
    }

    fn invoke(
        self: Arc<Self>,
        command: String,
        params_json: Option<String>,
        progress: Option<mpsc::Sender<String>>,
    ) -> BoxFuture<Result<String, NodeError>> {
        self.runs.lock().unwrap().push(command.clone());
        let guard = OnDrop(Arc::clone(&self.dropped));
        Box::pin(async move {
            match command.as_str() {
                "echo" => Ok(params_json.unwrap_or_default()),
                "print" => {
                    if let Some(progress) = progress {
                        for piece in ["one", "two", "three"] {
                            let _ = progress.send(piece.to_owned()).await;
                        }
                    }
                    self.go.notified().await;
                    Ok("\"printed\"".to_owned())
                }
                "hold" => {
                    self.go.notified().await;
                    drop(guard);
                    Ok("\"held\"".to_owned())
                }
                _ => Err(NodeError {
                    code: Some("NO".to_owned()),
                    message: Some("unknown".to_owned()),
                }),
            }
        })
    }
}

struct Bench {
    server: StandIn,
    commands: Arc<Fake>,
    identity: Arc<Identity>,
    notices: Arc<Mutex<Vec<Notice>>>,
    node: JoinHandle<Stopped>,
    _home: tempfile::TempDir,
}

impl Bench {
    async fn start(stored_token: Option<&str>, shared: Option<&str>) -> Self {
        let home = tempfile::tempdir().unwrap();
        let (server, endpoint) = StandIn::tcp().await;
        let identity = Arc::new(
            Identity::load_or_create(&home.path().join("i"))
                .ok()
                .unwrap(),
        );
        if let Some(token) = stored_token {
            let token = Secret::new(token.as_bytes());
            identity
                .set_token(&endpoint.key(), "node", Some(&token))
                .unwrap();
        }
        let shared = shared.map(|text| Secret::new(text.as_bytes()));
        let notices: Arc<Mutex<Vec<Notice>>> = Arc::default();
        let told = Arc::clone(&notices);
        let settings = Settings {
            endpoint,
            identity: Arc::clone(&identity),
            display_name: "bench".to_owned(),
            break_glass: false,
            shared: Box::new(move || {
                Ok(Sent {
                    password: shared.clone(),
                    ..Sent::default()
                })
            }),
            notify: Box::new(move |notice| told.lock().unwrap().push(notice.clone())),
        };
        let commands = Arc::new(Fake::default());
        let machine = Arc::clone(&commands);
        let node =
            tokio::spawn(async move { run(settings, machine, std::future::pending()).await });
        Self {
            server,
            commands,
            identity,
            notices,
            node,
            _home: home,
        }
    }

    fn request(&self, id: &str, command: &str) -> Value {
        json!({"id": id, "nodeId": self.identity.id().as_str(), "command": command, "paramsJSON": "{\"a\":1}", "timeoutMs": 1000})
    }

    fn runs(&self) -> usize {
        self.commands.runs.lock().unwrap().len()
    }
}

async fn next_result(session: &mut Session) -> (Value, Value) {
    let request = session.request_of("node.invoke.result").await;
    (request["params"].clone(), request)
}

#[tokio::test]
async fn a_command_comes_in_and_its_result_goes_out() {
    let bench = Bench::start(None, Some("shared")).await;
    let (mut session, connect) = bench.server.admit(TICK_MS).await;
    let params = &connect["params"];
    assert_eq!(params["role"], "node");
    assert_eq!(
        (&params["client"]["id"], &params["client"]["mode"]),
        (&json!("node-host"), &json!("node"))
    );
    assert_eq!(
        (&params["caps"], &params["commands"]),
        (&json!(["system"]), &json!(["echo", "hold"]))
    );
    assert_eq!(
        (&params["auth"], &params["scopes"]),
        (&json!({"password": "shared"}), &json!([]))
    );
    assert_eq!(params["device"]["id"], bench.identity.id().as_str());
    session
        .event("node.invoke.request", &bench.request("i1", "echo"))
        .await;
    let (result, _) = next_result(&mut session).await;
    let want = json!({"id": "i1", "nodeId": bench.identity.id().as_str(), "ok": true, "payloadJSON": "{\"a\":1}"});
    assert_eq!(result, want);
    session
        .event("node.invoke.request", &bench.request("i2", "what"))
        .await;
    let (result, _) = next_result(&mut session).await;
    assert_eq!(result["error"], json!({"code": "NO", "message": "unknown"}));
}

#[tokio::test]
async fn requests_for_others_and_malformed_ones_run_nothing() {
    let bench = Bench::start(None, Some("shared")).await;
    let (mut session, _) = bench.server.admit(TICK_MS).await;
    let mut foreign = bench.request("i1", "echo");
    foreign["nodeId"] = json!("0".repeat(64));
    for payload in [
        foreign,
        bench.request("", "echo"),
        json!({"id": "i1"}),
        json!("i1"),
        Value::Null,
    ] {
        session.event("node.invoke.request", &payload).await;
    }
    session
        .event("node.invoke.request", &bench.request("good", "echo"))
        .await;
    assert_eq!(next_result(&mut session).await.0["id"], "good");
    assert_eq!(bench.runs(), 1);
}

#[tokio::test]
async fn the_same_request_is_executed_once() {
    let bench = Bench::start(None, Some("shared")).await;
    let (mut session, _) = bench.server.admit(TICK_MS).await;
    session
        .event("node.invoke.request", &bench.request("i1", "echo"))
        .await;
    let (first, request) = next_result(&mut session).await;
    // Not acknowledged yet, so the result is sent again and the command is not run again.
    session
        .event("node.invoke.request", &bench.request("i1", "echo"))
        .await;
    let (second, again) = next_result(&mut session).await;
    assert_eq!((first, bench.runs()), (second, 1));
    session.respond(&request, &json!({"ok": true})).await;
    session.respond(&again, &json!({"ok": true})).await;
}

/// Takes the next piece of progress and answers it.
async fn next_piece(session: &mut Session, ack: &Value) -> Value {
    let request = session.request_of("node.invoke.progress").await;
    session.respond(&request, ack).await;
    request["params"].clone()
}

#[tokio::test]
async fn progress_goes_out_in_order_and_before_the_result() {
    let bench = Bench::start(None, Some("shared")).await;
    let (mut session, _) = bench.server.admit(TICK_MS).await;
    let node_id = bench.identity.id().as_str();
    let mut asked = bench.request("i1", "print");
    asked["progress"] = json!(true);
    asked["timeoutMs"] = json!(60_000);
    session.event("node.invoke.request", &asked).await;
    // What the Gateway has no room for now is sent again.
    let request = session.request_of("node.invoke.progress").await;
    let error = json!({"code": "UNAVAILABLE", "message": "too many", "retryable": true});
    session.refuse(&request, &error).await;
    for (seq, chunk) in ["one", "two", "three"].into_iter().enumerate() {
        let piece = next_piece(&mut session, &json!({"ok": true})).await;
        let want = json!({"invokeId": "i1", "nodeId": node_id, "seq": seq, "chunk": chunk});
        assert_eq!(piece, want);
    }
    bench.commands.go.notify_one();
    assert_eq!(next_result(&mut session).await.0["id"], "i1");

    // A Gateway that wants no more gets no more.
    asked["id"] = json!("i2");
    session.event("node.invoke.request", &asked).await;
    let ignored = json!({"ok": true, "ignored": true});
    assert_eq!(next_piece(&mut session, &ignored).await["seq"], 0);
    bench.commands.go.notify_one();
    let request = session.request().await;
    assert_eq!(request["method"], "node.invoke.result", "{request}");

    // One that did not ask gets none.
    session
        .event("node.invoke.request", &bench.request("i3", "print"))
        .await;
    bench.commands.go.notify_one();
    let request = session.request().await;
    assert_eq!(request["method"], "node.invoke.result", "{request}");
}

#[tokio::test]
async fn a_cancelled_command_ends_and_says_nothing() {
    let bench = Bench::start(None, Some("shared")).await;
    let (mut session, _) = bench.server.admit(TICK_MS).await;
    session
        .event("node.invoke.request", &bench.request("i1", "hold"))
        .await;
    let cancel = json!({"invokeId": "i1", "nodeId": bench.identity.id().as_str()});
    session.event("node.invoke.cancel", &cancel).await;
    bench.commands.dropped.notified().await;
    session
        .event("node.invoke.request", &bench.request("i2", "echo"))
        .await;
    assert_eq!(next_result(&mut session).await.0["id"], "i2");
}

#[tokio::test(start_paused = true)]
async fn a_result_that_was_cut_off_is_delivered_after_the_reconnect() {
    let bench = Bench::start(None, Some("shared")).await;
    let (mut session, _) = bench.server.admit(TICK_MS).await;
    session
        .event("node.invoke.request", &bench.request("i1", "hold"))
        .await;
    session
        .event("node.invoke.request", &bench.request("i2", "echo"))
        .await;
    // The result of i2 arrives and is not acknowledged; i1 still runs.
    assert_eq!(next_result(&mut session).await.0["id"], "i2");
    session.close(1012, "service restart").await;
    bench.commands.go.notify_one();
    let (mut session, _) = bench.server.admit(TICK_MS).await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let (result, request) = next_result(&mut session).await;
        session.respond(&request, &json!({"ok": true})).await;
        ids.push(result["id"].as_str().unwrap().to_owned());
    }
    ids.sort();
    assert_eq!(
        (ids, bench.runs()),
        (vec!["i1".to_owned(), "i2".to_owned()], 2)
    );
}

#[tokio::test(start_paused = true)]
async fn the_device_token_is_kept_and_used_until_it_is_refused() {
    let bench = Bench::start(None, Some("shared")).await;
    let (mut session, connect) = bench.server.connect().await;
    session.admit(&connect, TICK_MS, Some("t1")).await;
    session.request_of("node.event").await;
    session.close(1012, "service restart").await;
    let (mut session, connect) = bench.server.connect().await;
    assert_eq!(connect["params"]["auth"], json!({"deviceToken": "t1"}));
    let error = json!({"code": "INVALID_REQUEST", "message": "unauthorized", "details": {"code": "AUTH_DEVICE_TOKEN_MISMATCH"}});
    session.refuse(&connect, &error).await;
    session.close(1008, "unauthorized").await;
    let (mut session, connect) = bench.server.connect().await;
    assert_eq!(connect["params"]["auth"], json!({"password": "shared"}));
    session.admit(&connect, TICK_MS, Some("t2")).await;
    session.request_of("node.event").await;
    session.close(1012, "service restart").await;
    let (_session, connect) = bench.server.connect().await;
    assert_eq!(connect["params"]["auth"], json!({"deviceToken": "t2"}));
}

#[tokio::test(start_paused = true)]
async fn pairing_is_waited_for_and_said_once() {
    let bench = Bench::start(None, Some("shared")).await;
    let error = json!({"code": "NOT_PAIRED", "message": "pairing required", "details": {"code": "PAIRING_REQUIRED", "requestId": "r1"}});
    for _ in 0..3 {
        let (mut session, connect) = bench.server.connect().await;
        session.refuse(&connect, &error).await;
        session.close(1008, "pairing required").await;
    }
    let (_session, _) = bench.server.admit(TICK_MS).await;
    let pairing = Notice::PairingRequired {
        request_id: Some("r1".to_owned()),
    };
    let told = bench
        .notices
        .lock()
        .unwrap()
        .iter()
        .filter(|notice| **notice == pairing)
        .count();
    assert_eq!(told, 1);
}

#[tokio::test]
async fn a_wrong_secret_ends_the_node_host() {
    for stored in [None, Some("old")] {
        let bench = Bench::start(stored, stored.is_none().then_some("wrong")).await;
        let (mut session, connect) = bench.server.connect().await;
        let detail = if stored.is_some() {
            "AUTH_DEVICE_TOKEN_MISMATCH"
        } else {
            "AUTH_PASSWORD_MISMATCH"
        };
        let error = json!({"code": "INVALID_REQUEST", "message": "unauthorized", "details": {"code": detail}});
        session.refuse(&connect, &error).await;
        session.close(1008, "unauthorized").await;
        assert!(
            matches!(bench.node.await.unwrap(), Stopped::Refused(_)),
            "{detail}"
        );
    }
}

#[tokio::test]
async fn the_callers_deadline_ends_a_command_though_no_cancel_arrives() {
    let bench = Bench::start(None, Some("shared")).await;
    let (mut session, _) = bench.server.admit(TICK_MS).await;
    let mut request = bench.request("i1", "hold");
    request["timeoutMs"] = json!(20);
    session.event("node.invoke.request", &request).await;
    bench.commands.dropped.notified().await;
    let (result, _) = next_result(&mut session).await;
    assert_eq!(result["error"]["code"], "TIMEOUT");
}
