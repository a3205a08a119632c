//! Against a stand-in for a browser's DevTools endpoint; `tests/browser` has the real one.

use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use super::super::{Context, Settings, cancellation, connect::Commands, handle};
use super::*;
use crate::client::stand_in::StandIn;
use crate::exec::Mode;

struct Machine {
    host: Arc<Host>,
    devtools: StandIn,
    endpoint: SocketAddr,
}

impl Machine {
    /// With these profiles, all of one browser.
    async fn new(names: &[&str]) -> Self {
        let (devtools, endpoint) = StandIn::tcp().await;
        let Endpoint::Tcp(url) = endpoint else {
            panic!("not TCP");
        };
        let endpoint = SocketAddr::from(([127, 0, 0, 1], url.port));
        let mut settings = Settings::of_process(Mode::Ask).unwrap();
        settings.browser = Some(
            names
                .iter()
                .map(|name| ((*name).to_owned(), endpoint))
                .collect(),
        );
        Self {
            host: Arc::new(Host::new(settings)),
            devtools,
            endpoint,
        }
    }

    async fn call(&self, params: Value) -> Result<Value, NodeError> {
        invoke(&self.host, params).await
    }

    async fn refused(&self, params: Value) -> String {
        self.call(params).await.unwrap_err().message
    }

    /// What the browser hears, and what becomes of its answer.
    async fn exchange(&self, params: Value, answer: &str) -> (String, Result<Value, NodeError>) {
        let (head, result) =
            tokio::join!(self.devtools.answer(answer.as_bytes()), self.call(params));
        (head, result)
    }

    /// A list with one target, whose WebSocket is said to be there.
    fn list(&self, socket: &str) -> String {
        let socket = socket.replace("HERE", &self.endpoint.to_string());
        let list = json!([{"id": "T1", "type": "page", "webSocketDebuggerUrl": socket}]);
        http("200 OK", &list.to_string())
    }
}

async fn invoke(host: &Arc<Host>, params: Value) -> Result<Value, NodeError> {
    let (_canceller, cancelled) = cancellation();
    let context = Context {
        host: Arc::clone(host),
        cancelled,
        progress: None,
    };
    let payload = handle(COMMAND, Some(&params.to_string()), &context).await?;
    Ok(serde_json::from_str(&payload).unwrap())
}

fn http(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Length:{}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn browser_control_is_declared_only_when_it_is_switched_on() {
    let off = Host::new(Settings::of_process(Mode::Full).unwrap());
    assert!(!off.names().iter().any(|name| name == COMMAND));
    assert!(
        Machine::new(&[])
            .await
            .host
            .names()
            .contains(&COMMAND.to_owned())
    );
    let error = invoke(&Arc::new(off), json!({"path": "/json/list"})).await;
    assert_eq!(error.unwrap_err().message, "command not supported");
    let off = Host::new(Settings::of_process(Mode::Full).unwrap());
    assert!(off.offering(&[COMMAND.to_owned()]).is_err());
}

#[tokio::test]
async fn what_is_not_allowed_never_reaches_the_browser() {
    // Nobody accepts at the endpoint: whatever went there would wait.
    let one = Machine::new(&["work"]).await;
    let two = Machine::new(&["home", "work"]).await;
    let none = Machine::new(&[]).await;
    let list = json!({"path": "/json/list"});
    let profile = "browser profile not allowed";
    for (machine, params, words) in [
        (&none, list.clone(), profile),
        (
            &none,
            json!({"path": "/json/list", "profile": "work"}),
            profile,
        ),
        (
            &one,
            json!({"path": "/json/list", "profile": "home"}),
            profile,
        ),
        (
            &one,
            json!({"path": "/json/list", "profile": "Work"}),
            profile,
        ),
        (
            &one,
            json!({"path": "/json/list", "query": {"profile": "home"}}),
            profile,
        ),
        (&two, list.clone(), "profile required"),
        (
            &two,
            json!({"path": "/json/list", "profile": "work", "query": {"profile": "home"}}),
            "two profiles are named",
        ),
        (
            &one,
            json!({"path": "/profiles/create", "method": "POST"}),
            "cannot mutate",
        ),
        (
            &one,
            json!({"path": "/profiles/work", "method": "DELETE"}),
            "cannot mutate",
        ),
        (
            &one,
            json!({"path": "/reset-profile", "method": "POST"}),
            "cannot mutate",
        ),
        (
            &one,
            json!({"path": "/tabs"}),
            "not served; this node serves GET",
        ),
        (
            &one,
            json!({"path": "/json/list", "method": "POST"}),
            "not served",
        ),
        (&one, json!({"path": "/json/list/x"}), "not served"),
        (&one, json!({"path": "json/list"}), "not served"),
        (
            &one,
            json!({"path": "//evil.example/json/list"}),
            "not served",
        ),
        (
            &one,
            json!({"path": "/json/list HTTP/1.1\r\nHost: x"}),
            "not served",
        ),
        (
            &one,
            json!({"path": "/json/new", "query": {"url": "x"}}),
            "not served",
        ),
        (
            &one,
            json!({"path": "/json/new", "method": "POST"}),
            "not served",
        ),
        (
            &one,
            json!({"path": "/json/close/T1?x", "method": "POST"}),
            "not served",
        ),
        (
            &one,
            json!({"path": "/json/close/T1/x", "method": "POST"}),
            "not served",
        ),
        (
            &one,
            json!({"path": "/json/close/..", "method": "POST"}),
            "not served",
        ),
        (&one, json!({"path": "/cdp/T1"}), "not served"),
        (
            &one,
            json!({"path": "/cdp/T1", "method": "POST"}),
            "missing field `method`",
        ),
        (&one, json!({"path": "/json/list", "body": {}}), "no body"),
        (
            &one,
            json!({"path": "/json/list", "query": {"x": "y"}}),
            "query.x",
        ),
        (
            &one,
            json!({"path": "/json/list", "upload": {}}),
            "unknown field",
        ),
        (
            &one,
            json!({"path": "/json/list", "cdpUrl": "http://10.0.0.1:1"}),
            "unknown field",
        ),
        (&one, json!({}), "missing field `path`"),
    ] {
        let said = machine.refused(params.clone()).await;
        assert!(said.contains(words), "{params}: {said}");
        assert!(said.starts_with("INVALID_REQUEST: "), "{said}");
    }
}

#[tokio::test]
async fn chrome_hears_its_own_address_no_origin_and_put_for_what_changes_something() {
    let machine = Machine::new(&["work"]).await;
    let heard = |line: &str| {
        let host = machine.endpoint;
        format!("{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
    };
    let page = "http://127.0.0.1:1/ü?a=b&c#d\r\nX: y";
    let body = r#"{"webSocketDebuggerUrl":"ws://x"}"#;
    for (params, line) in [
        (json!({"path": "/json/version"}), "GET /json/version"),
        (
            json!({"path": "/json/list", "method": "get", "query": {"profile": "work"}}),
            "GET /json/list",
        ),
        (
            json!({"path": "/json/new", "method": "POST", "query": {"url": page}, "profile": "work"}),
            "PUT /json/new?http%3A%2F%2F127.0.0.1%3A1%2F%C3%BC%3Fa%3Db%26c%23d%0D%0AX%3A%20y",
        ),
        (
            json!({"path": "/json/activate/T-1", "method": "POST"}),
            "PUT /json/activate/T-1",
        ),
        (
            json!({"path": "/json/close/T1", "method": "DELETE"}),
            "PUT /json/close/T1",
        ),
    ] {
        let (head, result) = machine.exchange(params, &http("200 OK", body)).await;
        assert_eq!(head, heard(line));
        assert_eq!(result.unwrap()["result"]["webSocketDebuggerUrl"], "ws://x");
    }
    let close = json!({"path": "/json/close/T1", "method": "POST"});
    let (_, closed) = machine
        .exchange(close, &http("200 OK", "Target is closing"))
        .await;
    assert_eq!(closed.unwrap(), json!({"result": "Target is closing"}));
}

#[tokio::test]
async fn an_endpoint_that_sends_us_elsewhere_or_too_much_is_not_followed() {
    let machine = Machine::new(&["work"]).await;
    let list = || json!({"path": "/json/list"});
    let elsewhere = "HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\nContent-Length: 0\r\n\r\n";
    let long = "x".repeat(BROWSER_ANSWER_BYTES_MAX);
    for (answer, words) in [
        (elsewhere.to_owned(), "302: "),
        (
            http("404 Not Found", "No such\u{7} target"),
            "404: No such\\u{7} target",
        ),
        (
            "HTTP/1.1 200 OK\r\n\r\n{}".to_owned(),
            "no whole HTTP answer",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}".to_owned(),
            "no whole",
        ),
        ("garbage".to_owned(), "no whole HTTP answer"),
        (http("200 OK", &long), "too long"),
    ] {
        // The stand-in may find that nobody reads all of the long one.
        let (_, result) = machine.exchange(list(), &answer).await;
        let error = result.unwrap_err();
        assert_eq!(error.code, "UNAVAILABLE");
        assert!(error.message.contains(words), "{error:?}");
    }
}

#[tokio::test]
async fn a_command_goes_to_its_target_and_events_are_passed_over() {
    let machine = Machine::new(&["work"]).await;
    let params = json!({
        "path": "/cdp/T1", "method": "POST",
        "body": {"method": "Runtime.evaluate", "params": {"expression": "document.title"}},
    });
    for (reply, result) in [
        (
            json!({"id": 1, "result": {"value": "t"}}),
            Ok(json!({"result": {"value": "t"}})),
        ),
        (
            json!({"id": 1, "error": {"code": -32601, "message": "'X' wasn't found"}}),
            Err("INVALID_REQUEST: the browser says 'X' wasn't found"),
        ),
    ] {
        let browser = async {
            let list = machine.list("ws://HERE/devtools/page/T1");
            machine.devtools.answer(list.as_bytes()).await;
            let mut session = machine.devtools.upgrade().await;
            assert!(
                session
                    .head
                    .starts_with("GET /devtools/page/T1 HTTP/1.1\r\n")
            );
            let head = session.head.to_ascii_lowercase();
            assert!(head.contains(&format!("host: {}\r\n", machine.endpoint)));
            assert!(!head.contains("origin"));
            let request = session.request().await;
            let expected = json!({
                "id": 1, "method": "Runtime.evaluate", "params": {"expression": "document.title"},
            });
            assert_eq!(request, expected);
            session
                .send(&json!({"method": "Page.loaded", "params": {}}))
                .await;
            session
                .send(&json!({"id": 7, "result": {"value": "other"}}))
                .await;
            session.send(&reply).await;
            session.closed().await
        };
        let (_, answer) = tokio::join!(browser, machine.call(params.clone()));
        let answer = answer.map_err(|error| error.message);
        assert_eq!(answer, result.map_err(str::to_owned));
    }
}

#[tokio::test]
async fn a_websocket_that_is_claimed_to_be_elsewhere_is_refused() {
    let machine = Machine::new(&["work"]).await;
    let call = json!({"path": "/cdp/T1", "method": "POST", "body": {"method": "Page.reload"}});
    let port = machine.endpoint.port();
    for socket in [
        "ws://10.0.0.1:9222/devtools/page/T1".to_owned(),
        format!("ws://127.0.0.2:{port}/devtools/page/T1"),
        format!("ws://localhost:{port}/devtools/page/T1"),
        format!("wss://127.0.0.1:{port}/devtools/page/T1"),
        "ws://127.0.0.1:1/devtools/page/T1".to_owned(),
    ] {
        let (_, result) = machine.exchange(call.clone(), &machine.list(&socket)).await;
        let said = result.unwrap_err().message;
        assert!(
            said.ends_with("its WebSocket is elsewhere"),
            "{socket}: {said}"
        );
    }
    let (_, result) = machine
        .exchange(call.clone(), &machine.list("http://HERE/"))
        .await;
    assert!(result.unwrap_err().message.contains("no usable address"));
    let none = http("200 OK", r#"[{"id": "T1"}, {"id": "T2"}]"#);
    let (_, result) = machine.exchange(call, &none).await;
    assert!(result.unwrap_err().message.contains("another client"));
    let call = json!({"path": "/cdp/T3", "method": "POST", "body": {"method": "Page.reload"}});
    let (_, result) = machine.exchange(call, &none).await;
    assert_eq!(
        result.unwrap_err().message,
        "INVALID_REQUEST: no such target"
    );
}

#[tokio::test]
async fn a_browser_that_says_nothing_is_not_waited_for() {
    let machine = Machine::new(&["work"]).await;
    let began = Instant::now();
    let error = machine
        .call(json!({"path": "/json/list", "timeoutMs": 20}))
        .await
        .unwrap_err();
    assert_eq!(error.code, "TIMEOUT");
    assert!(began.elapsed() < Duration::from_secs(5));
}
