//! Frames on their way out: one `String` each, written in one pass.
//!
//! In: our own values and relayed raw JSON. Out: the text of one message. Attacker controls: what relayed JSON says,
//! which `scan` has accepted. Bounds: none here; the outbox counts bytes.
//! Errors: none. The payloads are derived structs, raw JSON and maps with string keys, which always serialise; should
//! one fail all the same, a response becomes a refusal and a request or event goes out without it.

use serde::Serialize;

use crate::rpc::error::{ErrorShape, code};
use crate::rpc::types::presence::StateVersion;

#[derive(Serialize)]
struct RequestText<'a, T> {
    r#type: &'static str,
    id: &'a str,
    method: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<&'a T>,
}

#[derive(Serialize)]
struct ResponseText<'a, T> {
    r#type: &'static str,
    id: &'a str,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a ErrorShape>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EventText<'a, T> {
    r#type: &'static str,
    event: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_version: Option<StateVersion>,
}

/// The answer to a request that was done.
pub fn response(id: &str, payload: &impl Serialize) -> String {
    text(&ResponseText {
        r#type: "res",
        id,
        ok: true,
        payload: Some(payload),
        error: None,
    })
    .unwrap_or_else(|| {
        let error = ErrorShape::new(code::UNAVAILABLE, "the answer could not be written");
        refusal(id, &error)
    })
}

/// The answer to a request that was refused or failed.
pub fn refusal(id: &str, error: &ErrorShape) -> String {
    failure(id, error, None::<&()>)
}

/// A refusal that also says how far the call came, as `agent` does for a run that failed.
pub fn failure(id: &str, error: &ErrorShape, payload: Option<&impl Serialize>) -> String {
    text(&ResponseText {
        r#type: "res",
        id,
        ok: false,
        payload,
        error: Some(error),
    })
    .unwrap_or_default()
}

/// A call of the peer's method, as our client makes it.
pub fn request(id: &str, method: &str, params: &impl Serialize) -> String {
    let params = Some(params);
    let frame = RequestText {
        r#type: "req",
        id,
        method,
        params,
    };
    text(&frame)
        .or_else(|| {
            text(&RequestText::<()> {
                r#type: "req",
                id,
                method,
                params: None,
            })
        })
        .unwrap_or_default()
}

/// An event. Only broadcast events are counted with `seq`; those meant for one connection have none.
pub fn event(
    name: &str,
    payload: &impl Serialize,
    seq: Option<u64>,
    state_version: Option<StateVersion>,
) -> String {
    let frame = EventText {
        r#type: "event",
        event: name,
        payload: Some(payload),
        seq,
        state_version,
    };
    text(&frame)
        .or_else(|| {
            text(&EventText::<()> {
                r#type: "event",
                event: name,
                payload: None,
                seq,
                state_version,
            })
        })
        .unwrap_or_default()
}

fn text(frame: &impl Serialize) -> Option<String> {
    serde_json::to_string(frame).ok()
}
