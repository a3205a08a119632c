//! `browser.proxy`: a browser of this machine, through its own DevTools endpoint.
//!
//! In: method, path, query, body and profile, as the reference names them. Out: `{"result": …}`. Attacker controls: the
//! parameters, with which it may do all that the browser can; and whoever holds the endpoint's port, every answer.
//! Bounds: `limits::BROWSER_*`, `EXEC_RUNS_MAX`, the invocation's time. Errors: `NodeError`.
//!
//! Only the loopback addresses of the configuration are dialled. A redirect is an error, and so is a WebSocket that the
//! endpoint claims to have elsewhere. Nothing says `Origin`, so that Chrome takes us for a program (`Host` is an address).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Host, NodeError, payload};
use crate::base::ids::percent_encoded;
use crate::base::limits::{BROWSER_ANSWER_BYTES_MAX, BROWSER_TIMEOUT_MS_DEFAULT};
use crate::client::call::shown;
use crate::client::{Endpoint, WsUrl, dial};
use crate::net::http_answer;
use crate::ws::Event;

pub(super) const COMMAND: &str = "browser.proxy";
/// Characters of a target's id; Chrome's have 32.
const TARGET_CHARS_MAX: usize = 64;
const SERVED: &str = "GET /json/version, GET /json/list, POST /json/new with query.url, POST /json/activate/ID, POST or DELETE /json/close/ID, POST /cdp/ID with body.method and body.params";

/// The profiles that may be used, each with its DevTools endpoint. An empty list is none.
pub type Profiles = BTreeMap<String, SocketAddr>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Params {
    method: Option<String>,
    path: String,
    #[serde(default)]
    query: BTreeMap<String, String>,
    body: Option<Box<RawValue>>,
    timeout_ms: Option<u64>,
    profile: Option<String>,
}

/// A DevTools command.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Command {
    method: String,
    params: Option<Box<RawValue>>,
}

enum Action {
    Http {
        method: &'static str,
        target: String,
    },
    Cdp {
        target: String,
        command: Command,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    id: String,
    web_socket_debugger_url: Option<String>,
}

/// An answer or an event, which has no id.
#[derive(Deserialize)]
struct Message {
    id: Option<u64>,
    result: Option<Box<RawValue>>,
    error: Option<CdpError>,
}

#[derive(Deserialize)]
struct CdpError {
    message: String,
}

#[derive(Serialize)]
struct Answer {
    result: Box<RawValue>,
}

pub(super) async fn proxy(params_json: &str, host: &Host) -> Result<String, NodeError> {
    let mut params: Params =
        serde_json::from_str(params_json).map_err(|error| invalid(&error.to_string()))?;
    let endpoint = endpoint(&mut params, host.browser.as_ref())?;
    let wait = Duration::from_millis(params.timeout_ms.unwrap_or(BROWSER_TIMEOUT_MS_DEFAULT));
    let action = action(params)?;
    let _slot = host.slot()?;
    let work = async {
        match action {
            Action::Http { method, target } => fetch(endpoint, method, &target).await,
            Action::Cdp { target, command } => call(endpoint, &target, &command).await,
        }
    };
    let text = tokio::time::timeout(wait, work).await.unwrap_or_else(|_| {
        let why = format!("the browser took longer than {} ms", wait.as_millis());
        Err(NodeError::new("TIMEOUT", why))
    })?;
    let result = RawValue::from_string(text).map_err(unavailable)?;
    payload(&Answer { result })
}

/// Where the profile that the request names is. Whoever names none means the only one that there is.
fn endpoint(params: &mut Params, profiles: Option<&Profiles>) -> Result<SocketAddr, NodeError> {
    let profiles = profiles.ok_or_else(|| {
        NodeError::new(
            "UNAVAILABLE",
            "UNAVAILABLE: node browser proxy disabled; set nodeHost.browserProxy.enabled on that machine",
        )
    })?;
    let named = (params.profile.take(), params.query.remove("profile"));
    let name = match named {
        (Some(one), Some(other)) if one != other => return Err(invalid("two profiles are named")),
        (one, other) => one.or(other),
    };
    let found = match &name {
        Some(name) => profiles.get(name),
        None if profiles.len() > 1 => return Err(invalid("profile required")),
        None => profiles.values().next(),
    };
    found.copied().ok_or_else(|| {
        invalid("browser profile not allowed; nodeHost.browserProxy.allowProfiles on that machine names the ones that are")
    })
}

fn action(mut params: Params) -> Result<Action, NodeError> {
    let url = params.query.remove("url");
    if let Some((name, _)) = params.query.first_key_value() {
        return Err(invalid(&format!("query.{} is not taken", shown(name))));
    }
    let method = params.method.as_deref().unwrap_or("GET");
    let method = method.to_ascii_uppercase();
    let mut parts = params.path.strip_prefix('/').unwrap_or_default().split('/');
    let route = (parts.next(), parts.next(), parts.next(), parts.next());
    if matches!(route.0, Some("profiles" | "reset-profile")) {
        return Err(invalid(
            "browser.proxy cannot mutate persistent browser profiles",
        ));
    }
    let is_target = |id: &str| {
        (1..=TARGET_CHARS_MAX).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    // Chrome takes what changes something by PUT only, or also by PUT.
    let (method, target) = match (&*method, route, url) {
        ("GET", (Some("json"), Some(what @ ("version" | "list")), None, _), None) => {
            ("GET", format!("/json/{what}"))
        }
        ("POST", (Some("json"), Some("new"), None, _), Some(url)) => {
            ("PUT", format!("/json/new?{}", percent_encoded(&url)))
        }
        ("POST", (Some("json"), Some("activate"), Some(id), None), None) if is_target(id) => {
            ("PUT", format!("/json/activate/{id}"))
        }
        ("POST" | "DELETE", (Some("json"), Some("close"), Some(id), None), None)
            if is_target(id) =>
        {
            ("PUT", format!("/json/close/{id}"))
        }
        ("POST", (Some("cdp"), Some(id), None, _), None) if is_target(id) => {
            let body = params.body.as_deref().map_or("{}", RawValue::get);
            let command =
                serde_json::from_str(body).map_err(|error| invalid(&format!("body: {error}")))?;
            let target = id.to_owned();
            return Ok(Action::Cdp { target, command });
        }
        _ => return Err(invalid(&format!("not served; this node serves {SERVED}"))),
    };
    match params.body {
        Some(_) => Err(invalid("this path takes no body")),
        None => Ok(Action::Http { method, target }),
    }
}

/// One exchange with the endpoint. `Target is closing` and the like come back as a JSON string.
async fn fetch(endpoint: SocketAddr, method: &str, target: &str) -> Result<String, NodeError> {
    let mut stream = TcpStream::connect(endpoint).await.map_err(unavailable)?;
    let head =
        format!("{method} {target} HTTP/1.1\r\nHost: {endpoint}\r\nConnection: close\r\n\r\n");
    stream
        .write_all(head.as_bytes())
        .await
        .map_err(unavailable)?;
    let mut bytes = Vec::new();
    let mut stream = stream.take(BROWSER_ANSWER_BYTES_MAX as u64);
    // Chrome leaves the connection open, whatever it is told.
    let (status, body) = loop {
        let read = stream.read_buf(&mut bytes).await.map_err(unavailable)?;
        if let Some(answer) = http_answer(&bytes) {
            break answer;
        }
        if read == 0 {
            return Err(unavailable(match stream.limit() {
                0 => "its answer is too long",
                _ => "its answer is no whole HTTP answer",
            }));
        }
    };
    let text = String::from_utf8_lossy(&body).into_owned();
    match status {
        200 if serde_json::from_str::<&RawValue>(&text).is_ok() => Ok(text),
        200 => Ok(json!(text).to_string()),
        _ => Err(unavailable(format!("{status}: {}", shown(&text)))),
    }
}

/// One command on one target, over a WebSocket of its own.
async fn call(endpoint: SocketAddr, id: &str, command: &Command) -> Result<String, NodeError> {
    let list = fetch(endpoint, "GET", "/json/list").await?;
    let targets: Vec<Target> = serde_json::from_str(&list).map_err(unavailable)?;
    let target = targets.into_iter().find(|target| target.id == id);
    let url = target
        .ok_or_else(|| invalid("no such target"))?
        .web_socket_debugger_url
        .ok_or_else(|| unavailable("another client holds that target"))?;
    let url = WsUrl::parse(&url).map_err(|_| unavailable("its WebSocket has no usable address"))?;
    let is_there = url.host.parse() == Ok::<IpAddr, _>(endpoint.ip())
        && (url.port, url.tls) == (endpoint.port(), false);
    if !is_there {
        return Err(unavailable("it claims that its WebSocket is elsewhere"));
    }
    let mut io = dial::dial(&Endpoint::Tcp(url), false, BROWSER_ANSWER_BYTES_MAX)
        .await
        .map_err(|_| unavailable("it takes no WebSocket"))?;
    let request = json!({"id": 1, "method": command.method, "params": command.params});
    io.queue_text_owned(request.to_string());
    io.flush().await.map_err(unavailable)?;
    loop {
        let text = match io.receive().await.map_err(unavailable)? {
            Event::Text(text) => text,
            Event::Close { .. } => return Err(unavailable("the target closed")),
            _ => continue,
        };
        let message: Message = serde_json::from_str(&text).map_err(unavailable)?;
        match message {
            Message { id, .. } if id != Some(1) => {}
            Message {
                error: Some(error), ..
            } => {
                return Err(invalid(&format!(
                    "the browser says {}",
                    shown(&error.message)
                )));
            }
            Message { result, .. } => {
                return Ok(result.map_or_else(|| "{}".to_owned(), |raw| raw.get().to_owned()));
            }
        }
    }
}

fn invalid(why: &str) -> NodeError {
    NodeError::invalid(format!("INVALID_REQUEST: {why}"))
}

fn unavailable(why: impl std::fmt::Display) -> NodeError {
    NodeError::new(
        "UNAVAILABLE",
        format!("UNAVAILABLE: the browser's endpoint: {why}"),
    )
}

#[cfg(test)]
mod tests;
