use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::rpc::encode;

fn request(text: &str) -> Result<(String, String, Option<String>), EnvelopeError> {
    match decode(text)? {
        Frame::Request(request) => Ok((
            request.id.into_owned(),
            request.method.into_owned(),
            request.params.map(|raw| raw.get().to_owned()),
        )),
        other => panic!("{other:?}"),
    }
}

fn fault(text: &str) -> (Option<String>, String) {
    match decode(text) {
        Err(EnvelopeError::NotAFrame { id, fault }) => (id, fault.to_string()),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn requests_keep_their_params_raw() {
    let text = r#" {"id":"1","params": {"b":[1, 2.50 ],"a":"\ud800"} ,"method":"node.invoke","type":"req"}"#;
    let (id, method, params) = request(text).expect("a request");
    assert_eq!((id.as_str(), method.as_str()), ("1", "node.invoke"));
    assert_eq!(params.as_deref(), Some(r#"{"b":[1, 2.50 ],"a":"\ud800"}"#));
}

#[test]
fn absent_and_null_params_are_none() {
    for text in [
        r#"{"type":"req","id":"1","method":"health"}"#,
        r#"{"type":"req","id":"1","method":"health","params":null}"#,
        r#"{"type":"req","id":"1","method":"health","traceparent":"00-ab"}"#,
    ] {
        assert_eq!(request(text).expect("a request").2, None);
    }
}

#[test]
fn names_may_be_escaped_and_hold_nul() {
    let text = r#"{"t\u0079pe":"r\u0065q","id":"\u0000","method":"a\/b"}"#;
    let (id, method, _) = request(text).expect("a request");
    assert_eq!((id.as_str(), method.as_str()), ("\0", "a/b"));
}

/// The session answers these three differently (`DEVICE_AUTH.md`, rows 2 to 4).
#[test]
fn kinds_of_refusal_are_kept_apart() {
    assert_eq!(
        decode("this is not json").err(),
        Some(EnvelopeError::NotJson { offset: 0 })
    );
    for text in ["1", "[]", r#"[{"type":"req"}]"#, "\"req\"", "null"] {
        assert_eq!(fault(text), (None, "must be object".to_owned()));
    }
    assert!(matches!(
        decode(r#"{"type":"req","id":"1","method":"x","params":{"role":1,"role":2}}"#),
        Err(EnvelopeError::Unsafe(ScanError::DuplicateKey { .. }))
    ));
    assert!(matches!(
        decode(&format!(
            r#"{{"type":"req","id":"1","method":"x","params":{}"#,
            "[".repeat(10_000)
        )),
        Err(EnvelopeError::Unsafe(ScanError::TooDeep { .. }))
    ));
}

/// `INVARIANTS.md` W4: none of these may reach a handler, or panic.
#[test]
fn w4_hostile_json_is_refused_or_harmless() {
    let params =
        |params: &str| format!(r#"{{"type":"req","id":"1","method":"x","params":{params}}}"#);
    let deep = params(&format!("{}{}", "[".repeat(10_000), "]".repeat(10_000)));
    for text in [
        &deep,
        &params(r#"{"role":"node","role":"operator"}"#),
        &params(r#"{"role":"node","r\u006fle":"operator"}"#),
    ] {
        assert!(matches!(decode(text), Err(EnvelopeError::Unsafe(_))));
    }
    // Relayed text may hold a NUL or a lone surrogate; a field that we read may hold only the former.
    assert!(decode(&params(r#"{"a":"\u0000","b":"\ud800"}"#)).is_ok());
    assert!(decode(r#"{"type":"req","id":"\ud800","method":"x"}"#).is_err());
    assert!(decode(&params("\"\0\"")).is_err());
}

#[test]
fn refused_frames_say_why_and_keep_an_id_to_answer_to() {
    let some = |id: &str| Some(id.to_owned());
    let cases = [
        (
            r#"{"type":"req","id":"q1"}"#,
            some("q1"),
            "must have required property 'method'",
        ),
        (
            r#"{"type":"banana"}"#,
            None,
            "at /type: must be equal to constant",
        ),
        (
            r#"{"id":"q","method":"x"}"#,
            some("q"),
            "at /type: must be equal to constant",
        ),
        (
            r#"{"type":["req"],"id":"q","method":"x"}"#,
            some("q"),
            "at /type: must be equal to constant",
        ),
        (
            r#"{"type":"req","method":"x"}"#,
            None,
            "must have required property 'id'",
        ),
        (
            r#"{"type":"req","id":1,"method":"x"}"#,
            None,
            "at /id: must be string",
        ),
        (
            r#"{"type":"req","id":"\ud800","method":"x"}"#,
            None,
            "at /id: must be string",
        ),
        (
            r#"{"type":"req","id":"","method":"x"}"#,
            None,
            "at /id: must NOT have fewer than 1 characters",
        ),
        (
            r#"{"type":"req","id":"q","method":""}"#,
            some("q"),
            "at /method: must NOT have fewer than 1 characters",
        ),
        (
            r#"{"type":"req","id":"q","method":"x","bogus":1}"#,
            some("q"),
            "at root: unexpected property 'bogus'",
        ),
        (
            r#"{"type":"req","id":"q","method":"x","ok":true}"#,
            some("q"),
            "at root: unexpected property 'ok'",
        ),
        (
            r#"{"type":"req","id":"q","method":"x","traceparent":1}"#,
            some("q"),
            "at /traceparent: must be string",
        ),
        (
            r#"{"type":"res","id":"q"}"#,
            some("q"),
            "must have required property 'ok'",
        ),
        (
            r#"{"type":"res","id":"q","ok":1}"#,
            some("q"),
            "at /ok: must be boolean",
        ),
        (
            r#"{"type":"res","id":"q","ok":false,"error":"x"}"#,
            some("q"),
            "at /error: must be object",
        ),
        (
            r#"{"type":"event"}"#,
            None,
            "must have required property 'event'",
        ),
        (
            r#"{"type":"event","event":"tick","seq":-1}"#,
            None,
            "at /seq: must be integer",
        ),
    ];
    for (text, id, message) in cases {
        assert_eq!(fault(text), (id, message.to_owned()), "{text}");
    }
}

#[test]
fn ids_and_names_are_bounded() {
    let frame = |id: usize, method: usize, trace: usize| {
        json!({"type": "req", "id": "i".repeat(id), "method": "m".repeat(method), "traceparent": "é".repeat(trace)})
            .to_string()
    };
    let (id, method) = (limits::RPC_ID_BYTES_MAX, limits::RPC_METHOD_BYTES_MAX);
    assert!(decode(&frame(id, method, 128)).is_ok());
    assert_eq!(fault(&frame(id + 1, method, 1)).0, None);
    assert!(fault(&frame(1, method + 1, 1)).1.starts_with("at /method"));
    assert!(fault(&frame(1, 1, 129)).1.starts_with("at /traceparent"));
}

#[test]
fn answers_and_events_may_say_more_than_we_know() {
    let text = r#"{"type":"event","event":"agent","payload":{"a":1},"seq":3,"recipientProfileId":"x",
        "stateVersion":{"presence":1,"health":2}}"#;
    let Ok(Frame::Event(event)) = decode(text) else {
        panic!("an event");
    };
    assert_eq!(&*event.event, "agent");
    assert_eq!(event.seq, Some(3));
    assert_eq!(
        event.state_version,
        Some(StateVersion {
            presence: 1,
            health: 2
        })
    );
    assert_eq!(event.payload.map(RawValue::get), Some(r#"{"a":1}"#));

    let text = r#"{"type":"res","id":"2","ok":false,"payload":null,"more":[],
        "error":{"code":"UNAVAILABLE","message":"m","retryable":true,"retryAfterMs":5,"details":{"code":"C"}}}"#;
    let Ok(Frame::Response(response)) = decode(text) else {
        panic!("an answer");
    };
    let error = response.error.expect("an error");
    assert_eq!(error.detail_code(), Some("C"));
    assert_eq!(
        (error.retryable, error.retry_after_ms),
        (Some(true), Some(5))
    );
    assert_eq!(response.payload.map(RawValue::get), Some("null"));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..5)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

fn parsed(raw: Option<&RawValue>) -> Value {
    serde_json::from_str(raw.expect("a payload").get()).expect("JSON")
}

proptest! {
    #[test]
    fn requests_come_back(id in ".{1,60}", method in ".{1,30}", params in any_json()) {
        let text = encode::request(&id, &method, &params);
        let Ok(Frame::Request(back)) = decode(&text) else {
            panic!("{text}");
        };
        prop_assert_eq!(&*back.id, &id);
        prop_assert_eq!(&*back.method, &method);
        prop_assert_eq!(back.params.is_none(), params.is_null());
        if !params.is_null() {
            prop_assert_eq!(parsed(back.params), params);
        }
    }

    #[test]
    fn answers_come_back(id in ".{1,60}", payload in any_json()) {
        let text = encode::response(&id, &payload);
        let Ok(Frame::Response(back)) = decode(&text) else {
            panic!("{text}");
        };
        prop_assert_eq!(&*back.id, &id);
        prop_assert!(back.ok && back.error.is_none());
        prop_assert_eq!(parsed(back.payload), payload);
    }

    #[test]
    fn refusals_come_back(id in ".{1,60}", message in any::<String>(), details in any_json(), after in any::<u64>()) {
        let mut error = ErrorShape::unavailable(message).with_retry_after_ms(after);
        // An error's `details: null` counts as none.
        if !details.is_null() {
            error = error.with_details(details);
        }
        let text = encode::failure(&id, &error, Some(&json!({"status": "error"})));
        let Ok(Frame::Response(back)) = decode(&text) else {
            panic!("{text}");
        };
        prop_assert!(!back.ok);
        prop_assert_eq!(back.error, Some(error));
        prop_assert_eq!(parsed(back.payload), json!({"status": "error"}));
    }

    #[test]
    fn events_come_back(
        name in ".{1,30}", payload in any_json(), seq in any::<Option<u64>>(), version in any::<Option<(u64, u64)>>(),
    ) {
        let version = version.map(|(presence, health)| StateVersion { presence, health });
        let text = encode::event(&name, &payload, seq, version);
        let Ok(Frame::Event(back)) = decode(&text) else {
            panic!("{text}");
        };
        prop_assert_eq!(&*back.event, &name);
        prop_assert_eq!((back.seq, back.state_version), (seq, version));
        prop_assert_eq!(parsed(back.payload), payload);
    }

    #[test]
    fn decode_never_panics(text in any::<String>()) {
        if decode(&text).is_ok() {
            prop_assert!(serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok());
        }
    }
}
