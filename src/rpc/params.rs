//! A method's parameters, checked against its type.
//!
//! In: raw JSON that `scan` has accepted. Out: the method's type, or one sentence in the words that clients of the
//! reference know: `at /client/id: must be equal to one of the allowed values`.
//! Attacker controls: every byte. Bounds: the sentence holds no value of the peer's, only names of keys, escaped and
//! cut. Errors: `ParamsError`.

use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::rpc::error::ErrorShape;

/// Characters of a peer's key that an answer may repeat.
const SHOWN_CHARS_MAX: usize = 64;

/// Why parameters were not accepted, as one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamsError {
    reason: String,
}

impl ParamsError {
    pub fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
        }
    }

    /// The answer to the request, and for `connect` also the close reason.
    pub fn for_method(&self, method: &str) -> ErrorShape {
        ErrorShape::invalid_request(format!("invalid {method} params: {self}"))
    }
}

impl fmt::Display for ParamsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for ParamsError {}

/// Reads parameters. Absent ones count as an empty object, as probes send them.
pub fn decode_params<T: DeserializeOwned>(params: Option<&RawValue>) -> Result<T, ParamsError> {
    let text = params.map_or("{}", RawValue::get);
    // Derived structs would also take an array of their fields in order; the protocol does not.
    if !text.trim_ascii_start().starts_with('{') {
        return Err(ParamsError::new("must be object"));
    }
    serde_json::from_str(text).map_err(|error| ParamsError::new(reason(text, &error)))
}

/// A peer's word as an answer may repeat it: escaped, and cut to `SHOWN_CHARS_MAX` characters.
pub(crate) fn shown(word: &str) -> String {
    word.escape_debug().take(SHOWN_CHARS_MAX).collect()
}

/// Puts serde's complaint into the schema's words. What serde quotes of the peer's values is dropped.
fn reason(text: &str, error: &serde_json::Error) -> String {
    let at = byte_offset(text, error.line(), error.column());
    let full = error.to_string();
    let complaint = full
        .rsplit_once(" at line ")
        .map_or(full.as_str(), |(complaint, _)| complaint);

    if let Some(rest) = complaint.strip_prefix("missing field `") {
        let field = shown(rest.trim_end_matches('`'));
        let path = Path::of(text, at).object_that_ended();
        return if path.is_empty() {
            format!("must have required property '{field}'")
        } else {
            format!("at {path}: must have required property '{field}'")
        };
    }
    if let Some(rest) = complaint.strip_prefix("unknown field `") {
        let end = rest
            .rfind("`, expected ")
            .or_else(|| rest.rfind("`, there are no fields"))
            .unwrap_or(rest.len());
        let field = shown(rest.get(..end).unwrap_or_default());
        let path = Path::of(text, at).container();
        let place = if path.is_empty() { "root" } else { &path };
        return format!("at {place}: unexpected property '{field}'");
    }

    let rule = if complaint.starts_with("unknown variant ") {
        "must be equal to one of the allowed values".to_owned()
    } else if complaint.starts_with("invalid type: ") || complaint.starts_with("invalid value: ") {
        let expected = complaint.rsplit_once(", expected ").map(|(_, what)| what);
        format!("must be {}", schema_type(expected.unwrap_or_default()))
    } else {
        // Our own rules, and syntax that only readers of the field refuse, such as lone surrogates.
        complaint.to_owned()
    };
    let path = Path::of(text, at).value();
    if path.is_empty() {
        rule
    } else {
        format!("at {path}: {rule}")
    }
}

/// JSON Schema's name for what serde expected. Anything else is a type of ours, which is an object.
fn schema_type(expected: &str) -> &str {
    match expected {
        "a string" | "string" | "a borrowed string" => "string",
        "a boolean" => "boolean",
        "a sequence" => "array",
        "u8" | "u16" | "u32" | "u64" | "i32" | "i64" | "usize" => "integer",
        "f32" | "f64" => "number",
        rule if rule.starts_with("struct ") || rule == "a map" => "object",
        rule => rule,
    }
}

/// serde_json counts lines and bytes of the last line, both from 1.
fn byte_offset(text: &str, line: usize, column: usize) -> usize {
    let before: usize = text
        .split_inclusive('\n')
        .take(line.saturating_sub(1))
        .map(str::len)
        .sum();
    before.saturating_add(column).min(text.len())
}

/// Where in the parameters serde stopped. It stops right behind the value, key or object that it refuses.
struct Path {
    /// One step for each container that is open: where in it the walk is.
    open: Vec<Step>,
    /// The last thing read was the end of a container, whose place is then the last step.
    ended: bool,
}

enum Step {
    Key(Option<String>),
    Index(usize),
}

impl Path {
    /// Walks over `text[..at]`, which serde_json has already found to be well-formed.
    fn of(text: &str, at: usize) -> Self {
        let mut path = Self {
            open: Vec::new(),
            ended: false,
        };
        let mut bytes = text.as_bytes().get(..at).unwrap_or_default();
        let mut key_due = false;
        while let [first, rest @ ..] = bytes {
            bytes = rest;
            let was_key_due = key_due;
            key_due = false;
            match first {
                b' ' | b'\t' | b'\n' | b'\r' | b':' => {
                    key_due = was_key_due;
                    continue;
                }
                b'{' => {
                    path.open.push(Step::Key(None));
                    key_due = true;
                }
                b'[' => path.open.push(Step::Index(0)),
                b'}' | b']' => {
                    path.open.pop();
                    path.ended = true;
                    continue;
                }
                b',' => match path.open.last_mut() {
                    Some(Step::Index(index)) => *index = index.saturating_add(1),
                    Some(step) => {
                        *step = Step::Key(None);
                        key_due = true;
                    }
                    None => {}
                },
                b'"' => {
                    let (literal, behind) = split_string(rest);
                    bytes = behind;
                    if was_key_due && let Some(step) = path.open.last_mut() {
                        *step = Step::Key(Some(shown(&String::from_utf8_lossy(literal))));
                    }
                }
                _ => {}
            }
            path.ended = false;
        }
        path
    }

    /// The value that was just read.
    fn value(&self) -> String {
        pointer(&self.open)
    }

    /// The object that lacked something when it ended.
    fn object_that_ended(&self) -> String {
        if self.ended {
            pointer(&self.open)
        } else {
            self.container()
        }
    }

    /// The object or array around the key or value that was just read.
    fn container(&self) -> String {
        let around = self.open.len().saturating_sub(1);
        pointer(self.open.get(..around).unwrap_or_default())
    }
}

/// A JSON pointer (RFC 6901), for people to read.
fn pointer(steps: &[Step]) -> String {
    let mut pointer = String::new();
    for step in steps {
        match step {
            Step::Key(Some(key)) => {
                pointer.push('/');
                pointer.push_str(key);
            }
            Step::Index(index) => {
                pointer.push('/');
                pointer.push_str(&index.to_string());
            }
            Step::Key(None) => {}
        }
    }
    pointer
}

/// A string's body, and what stands behind its closing quote.
fn split_string(bytes: &[u8]) -> (&[u8], &[u8]) {
    let mut escaped = false;
    let end = bytes.iter().position(|byte| {
        let closes = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        closes
    });
    match end {
        Some(end) => {
            let (body, rest) = bytes.split_at(end);
            (body, rest.get(1..).unwrap_or_default())
        }
        None => (bytes, &[]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::to_raw_value;

    use super::*;
    use crate::rpc::types::NoParams;
    use crate::rpc::types::connect::ConnectParams;
    use crate::rpc::types::node::{NodeIdParams, NodeInvokeParams};

    fn refusal_of<T: DeserializeOwned>(text: &str) -> String {
        let raw = RawValue::from_string(text.to_owned()).expect("the test's JSON");
        match decode_params::<T>(Some(&raw)) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    /// Good parameters of `connect`, with one value replaced or (by `null`) a key removed.
    fn connect_with(pointer: &str, value: serde_json::Value) -> String {
        let mut params = serde_json::json!({
            "minProtocol": 4, "maxProtocol": 4,
            "client": {"id": "cli", "version": "1", "platform": "linux", "mode": "cli"},
            "caps": ["a", "b"], "role": "operator", "scopes": ["operator.read"],
            "auth": {"token": "t"},
            "device": {"id": "d", "publicKey": "k", "signature": "s", "signedAt": 1, "nonce": "n"},
        });
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        let parent = params.pointer_mut(parent).expect("a parent");
        match (parent, value) {
            (serde_json::Value::Object(object), serde_json::Value::Null) => {
                object.remove(key);
            }
            (serde_json::Value::Object(object), value) => {
                object.insert(key.to_owned(), value);
            }
            (serde_json::Value::Array(array), value) => {
                let index: usize = key.parse().expect("an index");
                array[index] = value;
            }
            _ => panic!("{pointer}"),
        }
        params.to_string()
    }

    #[test]
    fn refusals_read_like_the_reference() {
        use serde_json::json;
        // The first four are in the recordings `d_extra_prop`, `d_missing_client`, `d_nonce_missing` and
        // `d_invalid_client_id`.
        let cases = [
            ("/bogus", json!(1), "at root: unexpected property 'bogus'"),
            (
                "/client",
                json!(null),
                "must have required property 'client'",
            ),
            (
                "/device/nonce",
                json!(null),
                "at /device: must have required property 'nonce'",
            ),
            (
                "/client/id",
                json!("my-own-client"),
                "at /client/id: must be equal to one of the allowed values",
            ),
            (
                "/client/mode",
                json!("operator"),
                "at /client/mode: must be equal to one of the allowed values",
            ),
            (
                "/client/bogus",
                json!(1),
                "at /client: unexpected property 'bogus'",
            ),
            (
                "/auth/secret",
                json!("x"),
                "at /auth: unexpected property 'secret'",
            ),
            (
                "/client/version",
                json!(""),
                "at /client/version: must NOT have fewer than 1 characters",
            ),
            (
                "/client/version",
                json!(7),
                "at /client/version: must be string",
            ),
            (
                "/minProtocol",
                json!("4"),
                "at /minProtocol: must be integer",
            ),
            (
                "/minProtocol",
                json!(4.5),
                "at /minProtocol: must be integer",
            ),
            ("/minProtocol", json!(0), "at /minProtocol: must be >= 1"),
            ("/minProtocol", json!(-1), "at /minProtocol: must be >= 1"),
            (
                "/device/signedAt",
                json!(-1),
                "at /device/signedAt: must be integer",
            ),
            (
                "/scopes/0",
                json!({"a": "b"}),
                "at /scopes/0: must be string",
            ),
            (
                "/caps/1",
                json!(""),
                "at /caps/1: must NOT have fewer than 1 characters",
            ),
            (
                "/scopes",
                json!("operator.read"),
                "at /scopes: must be array",
            ),
            (
                "/client",
                json!([["cli", "1"]]),
                "at /client: must be object",
            ),
            ("/client", json!("cli"), "at /client: must be object"),
            (
                "/device",
                json!(["d", "k", "s", 1, "n"]),
                "at /device: must be object",
            ),
            ("/auth/token", json!(5), "at /auth/token: must be string"),
            (
                "/role",
                json!(""),
                "at /role: must NOT have fewer than 1 characters",
            ),
        ];
        for (pointer, value, expected) in cases {
            let params = connect_with(pointer, value);
            assert_eq!(refusal_of::<ConnectParams>(&params), expected, "{params}");
        }
        assert_eq!(
            refusal_of::<ConnectParams>(&connect_with("/locale", json!("en"))),
            "accepted"
        );
        assert_eq!(refusal_of::<NoParams>("[]"), "must be object");
        assert_eq!(
            refusal_of::<NodeInvokeParams>(r#"{"nodeId":"x","command":"y"}"#),
            "must have required property 'idempotencyKey'"
        );
    }

    #[test]
    fn null_is_not_absent_in_connect() {
        let params = connect_with("/locale", serde_json::json!("en")).replace("\"en\"", "null");
        assert_eq!(
            refusal_of::<ConnectParams>(&params),
            "at /locale: must be string"
        );
    }

    #[test]
    fn refusals_repeat_no_values_of_the_peer() {
        let secret = "hunter2, expected `x`, there are no fields at line 3";
        for pointer in [
            "/client/id",
            "/minProtocol",
            "/scopes",
            "/client",
            "/device/signedAt",
            "/caps",
        ] {
            let params = connect_with(pointer, secret.into());
            let refusal = refusal_of::<ConnectParams>(&params);
            assert!(!refusal.contains("hunter2"), "{refusal}");
        }
    }

    #[test]
    fn keys_of_the_peer_are_cut_and_escaped() {
        let long = "k".repeat(1000);
        let refusal = refusal_of::<NodeIdParams>(&format!(r#"{{"{long}":1}}"#));
        assert_eq!(
            refusal,
            format!("at root: unexpected property '{}'", "k".repeat(64))
        );
        let refusal = refusal_of::<NodeIdParams>(r#"{"a`, expected \n\u0000":1}"#);
        assert_eq!(refusal, r"at root: unexpected property 'a`, expected \n\0'");
    }

    #[test]
    fn lone_surrogates_are_refused_only_where_read() {
        let read = refusal_of::<NodeIdParams>(r#"{"nodeId":"\ud800"}"#);
        assert!(read.starts_with("at /nodeId: "), "{read}");
        let relayed =
            r#"{"nodeId":"n","command":"c","idempotencyKey":"i","params":{"x":"\ud800"}}"#;
        assert_eq!(refusal_of::<NodeInvokeParams>(relayed), "accepted");
    }

    #[test]
    fn absent_params_are_an_empty_object() {
        assert_eq!(decode_params::<NoParams>(None), Ok(NoParams {}));
        let raw = to_raw_value(&serde_json::json!({"a": 1})).expect("JSON");
        let error = decode_params::<NoParams>(Some(&raw)).expect_err("an unknown key");
        assert_eq!(
            error.for_method("health").message,
            "invalid health params: at root: unexpected property 'a'"
        );
    }
}
