//! The table of routes. Each names who may use it; whatever is not named here is nobody's (H1).
//!
//! Paths are compared as they come: no spelling of a path ever reaches another route's decision (W6).

use hyper::body::Incoming;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use serde_json::json;

use super::body;
use super::respond::{Answer, answer, json, method_not_allowed, not_found};
use super::serve::Front;
use crate::auth::AdmittedRequest;
use crate::auth::scope::Scope;
use crate::control;
use crate::ui;

/// Who may use a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    /// Anyone whom ingress lets through.
    Open,
    /// Anyone at all, from anywhere; with a bearer it says more, to whoever holds the scope.
    Health(Scope),
    /// An operator with this scope.
    Operator(Scope),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Handler {
    Live,
    Ready,
    Page,
    /// Channels bring their hooks, each with its own signature; none is built yet.
    Hook,
    InvokeTool,
}

/// One route. A path that ends in `/*` is for any one further segment.
#[derive(Debug)]
pub(super) struct Route {
    path: &'static str,
    pub(super) access: Access,
    methods: &'static str,
    handler: Handler,
}

const fn route(
    path: &'static str,
    access: Access,
    methods: &'static str,
    handler: Handler,
) -> Route {
    Route {
        path,
        access,
        methods,
        handler,
    }
}

const READS: &str = "GET, HEAD";
const HEALTH: Access = Access::Health(Scope::Read);

const ROUTES: &[Route] = &[
    route("/health", HEALTH, READS, Handler::Live),
    route("/healthz", HEALTH, READS, Handler::Live),
    route("/live", HEALTH, READS, Handler::Live),
    route("/ready", HEALTH, READS, Handler::Ready),
    route("/readyz", HEALTH, READS, Handler::Ready),
    route("/", Access::Open, READS, Handler::Page),
    route("/index.html", Access::Open, READS, Handler::Page),
    route("/app.js", Access::Open, READS, Handler::Page),
    route("/style.css", Access::Open, READS, Handler::Page),
    route("/hooks/*", Access::Open, "POST", Handler::Hook),
    route(
        "/tools/invoke",
        Access::Operator(Scope::Write),
        "POST",
        Handler::InvokeTool,
    ),
];

/// The route of a path, the query already taken off.
pub(super) fn find(path: &str, serve_page: bool) -> Option<&'static Route> {
    ROUTES
        .iter()
        .filter(|route| route.handler != Handler::Page || (serve_page && ui::asset(path).is_some()))
        .find(|route| match route.path.strip_suffix('*') {
            None => route.path == path,
            Some(parent) => path.strip_prefix(parent).is_some_and(is_plain_segment),
        })
}

/// One path segment that means the same to every reader.
fn is_plain_segment(segment: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !segment.is_empty() && !segment.starts_with('.') && segment.bytes().all(plain)
}

impl Route {
    pub(super) fn takes(&self, method: &Method) -> bool {
        self.methods
            .split(", ")
            .any(|taken| taken == method.as_str())
    }

    pub(super) fn wrong_method(&self) -> Answer {
        method_not_allowed(self.methods)
    }

    /// Answers a request that `access` lets through; `caller` is whoever was admitted.
    pub(super) async fn answer(
        &self,
        front: &Front,
        path: &str,
        body: Incoming,
        caller: Option<&AdmittedRequest>,
    ) -> Answer {
        match self.handler {
            // Status only: an outsider learns nothing else (H8).
            Handler::Live => {
                let mut status = json!({"ok": true, "status": "live"});
                detail(&mut status, front, caller);
                json(StatusCode::OK, &status)
            }
            Handler::Ready => {
                let ready = front.is_ready();
                let mut status = json!({"ready": ready});
                detail(&mut status, front, caller);
                let code = match ready {
                    true => StatusCode::OK,
                    false => StatusCode::SERVICE_UNAVAILABLE,
                };
                json(code, &status)
            }
            Handler::Page => ui::asset(path).map_or_else(not_found, |asset| page(&asset)),
            Handler::Hook => not_found(),
            Handler::InvokeTool => match body::read(body).await {
                Ok(body) => invoke_tool(&body),
                Err(refused) => refused,
            },
        }
    }
}

/// What an operator may know of the Gateway beyond its status.
fn detail(status: &mut serde_json::Value, front: &Front, caller: Option<&AdmittedRequest>) {
    if caller.is_none() {
        return;
    }
    let hub = &front.control.hub;
    let (sessions, nodes) = hub.session_counts();
    status["version"] = control::VERSION.into();
    status["uptimeMs"] = hub.uptime_ms().into();
    status["sessions"] = json!({"all": sessions, "nodes": nodes});
    status["beforeAuthentication"] = (front.preauth.len() + front.preauth_proxied.len()).into();
    status["listeners"] = json!(front.control.listeners(false));
}

/// No tool is offered over HTTP, whoever asks (H4). The answer is the reference's for a tool that its policy leaves out.
fn invoke_tool(body: &[u8]) -> Answer {
    let request = serde_json::from_slice::<serde_json::Value>(body).ok();
    let named = |key: &str| {
        let name = request.as_ref()?.get(key)?.as_str()?.trim();
        (!name.is_empty()).then_some(())
    };
    let (status, kind, message) = match named("name").or(named("tool")) {
        Some(()) => (StatusCode::NOT_FOUND, "not_found", "Tool not available"),
        None => (
            StatusCode::BAD_REQUEST,
            "invalid_request",
            "tools.invoke requires a JSON body with name",
        ),
    };
    json(
        status,
        &json!({"ok": false, "error": {"type": kind, "message": message}}),
    )
}

fn page(asset: &ui::Asset) -> Answer {
    let mut answer = answer(StatusCode::OK, asset.content_type, asset.bytes);
    for (name, value) in ui::headers() {
        answer.headers_mut().insert(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h1_every_route_names_who_may_use_it() {
        for route in ROUTES {
            let open = match route.handler {
                Handler::Live | Handler::Ready => Access::Health(Scope::Read),
                Handler::Page | Handler::Hook => Access::Open,
                Handler::InvokeTool => Access::Operator(Scope::Write),
            };
            assert_eq!(route.access, open, "{}", route.path);
            let twins = ROUTES.iter().filter(|other| other.path == route.path);
            assert_eq!(twins.count(), 1, "{}", route.path);
            let example = route.path.replace('*', "x");
            let found = find(&example, true);
            let page = route.handler == Handler::Page;
            assert!(
                found.is_some_and(|it| it.path == route.path) || (page && !cfg!(feature = "ui"))
            );
            assert_eq!(find(&example, false).is_none(), page, "{}", route.path);
        }
        // The page has no file that the table leaves out.
        for path in ["/", "/index.html", "/app.js", "/style.css"] {
            assert_eq!(find(path, true).is_some(), ui::asset(path).is_some());
        }
    }

    #[test]
    fn w6_no_spelling_of_a_path_is_another_path() {
        for path in [
            "/tools/invoke/",
            "//tools/invoke",
            "/tools//invoke",
            "/Tools/Invoke",
            "/tools/%69nvoke",
            "/tools%2finvoke",
            "/tools/./invoke",
            "/x/../tools/invoke",
            "/tools/invoke;x",
            "/tools\\invoke",
            "tools/invoke",
            "",
            "*",
            "/healthz/",
            "/hooks/",
            "/hooks/..",
            "/hooks/.",
            "/hooks/a/b",
            "/hooks/a%2fb",
            "/hooks/../tools/invoke",
            "/hooks/%2e%2e",
            "/hooks//x",
        ] {
            assert!(find(path, true).is_none(), "{path}");
        }
        assert!(find("/hooks/telegram", true).is_some());
    }
}
