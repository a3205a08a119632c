//! Answers over HTTP: bodies, and the headers that every answer carries.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::base::Refusal;

pub(super) type Answer = Response<Full<Bytes>>;

const PERMISSIONS_POLICY: HeaderName = HeaderName::from_static("permissions-policy");

/// An answer with the headers that none goes without.
pub(super) fn answer(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(
        PERMISSIONS_POLICY,
        HeaderValue::from_static("camera=(), microphone=(), geolocation=()"),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

pub(super) fn text(status: StatusCode, body: &'static str) -> Answer {
    answer(status, "text/plain; charset=utf-8", body)
}

pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    match serde_json::to_vec(body) {
        Ok(body) => answer(status, "application/json; charset=utf-8", body),
        Err(_) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the answer could not be written",
        ),
    }
}

pub(super) fn not_found() -> Answer {
    text(StatusCode::NOT_FOUND, "Not Found")
}

/// The methods of a route that exists.
pub(super) fn method_not_allowed(allow: &'static str) -> Answer {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allow));
    response
}

/// A refusal as `{"error":{"code","message"}}` under its own status. Only the public sentence goes out.
pub(super) fn refusal(refusal: &dyn Refusal) -> Answer {
    #[derive(Serialize)]
    struct Body {
        error: Reason,
    }
    #[derive(Serialize)]
    struct Reason {
        code: &'static str,
        message: String,
    }
    let status = StatusCode::from_u16(refusal.http_status()).unwrap_or(StatusCode::FORBIDDEN);
    let code = refusal.detail_code().unwrap_or_else(|| refusal.code());
    json(
        status,
        &Body {
            error: Reason {
                code,
                message: refusal.public().into_owned(),
            },
        },
    )
}
