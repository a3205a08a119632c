//! Which path answers what. Whatever is not named here is not found.

use hyper::header::{HeaderName, HeaderValue};
use hyper::{Method, StatusCode};

use super::respond::{Answer, json, method_not_allowed, not_found};
use super::serve::Front;
use crate::ui;

/// A request that asks for no upgrade.
pub(super) fn route(front: &Front, method: &Method, path: &str) -> Answer {
    let reads = method == Method::GET || method == Method::HEAD;
    match path {
        "/health" | "/healthz" | "/live" if !reads => method_not_allowed("GET, HEAD"),
        "/ready" | "/readyz" if !reads => method_not_allowed("GET, HEAD"),
        // Status only: an outsider learns nothing else (row H8).
        "/health" | "/healthz" | "/live" => json(
            StatusCode::OK,
            &serde_json::json!({"ok": true, "status": "live"}),
        ),
        "/ready" | "/readyz" if front.is_ready() => {
            json(StatusCode::OK, &serde_json::json!({"ready": true}))
        }
        "/ready" | "/readyz" => json(
            StatusCode::SERVICE_UNAVAILABLE,
            &serde_json::json!({"ready": false}),
        ),
        _ => match ui::asset(path).filter(|_| front.serve_page) {
            Some(_) if !reads => method_not_allowed("GET, HEAD"),
            Some(asset) => page(&asset),
            None => not_found(),
        },
    }
}

/// Whether a path is one of the health names, which answer anyone from anywhere.
pub(super) fn is_health(path: &str) -> bool {
    matches!(
        path,
        "/health" | "/healthz" | "/live" | "/ready" | "/readyz"
    )
}

fn page(asset: &ui::Asset) -> Answer {
    let mut answer = super::respond::answer(StatusCode::OK, asset.content_type, asset.bytes);
    for (name, value) in ui::headers() {
        answer.headers_mut().insert(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
    }
    answer
}
