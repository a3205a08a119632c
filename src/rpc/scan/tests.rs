use std::collections::HashSet;
use std::fmt::Write as _;

use proptest::prelude::*;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use super::*;

/// An independent judge: serde_json's grammar, with depth and repeated keys counted by recursion over its events.
/// It says "unreadable" of valid JSON that has no Rust value: lone surrogates, and numbers beyond a double.
fn judge(text: &str) -> Result<(), &'static str> {
    struct Level(usize);

    impl<'de> DeserializeSeed<'de> for Level {
        type Value = ();
        fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
            deserializer.deserialize_any(self)
        }
    }

    impl<'de> Visitor<'de> for Level {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("JSON")
        }
        fn visit_unit<E>(self) -> Result<(), E> {
            Ok(())
        }
        fn visit_bool<E>(self, _: bool) -> Result<(), E> {
            Ok(())
        }
        fn visit_u64<E>(self, _: u64) -> Result<(), E> {
            Ok(())
        }
        fn visit_i64<E>(self, _: i64) -> Result<(), E> {
            Ok(())
        }
        fn visit_f64<E>(self, _: f64) -> Result<(), E> {
            Ok(())
        }
        fn visit_str<E>(self, _: &str) -> Result<(), E> {
            Ok(())
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
            if self.0 == limits::JSON_DEPTH_MAX {
                return Err(A::Error::custom("refused"));
            }
            while seq.next_element_seed(Level(self.0 + 1))?.is_some() {}
            Ok(())
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            if self.0 == limits::JSON_DEPTH_MAX {
                return Err(A::Error::custom("refused"));
            }
            let mut keys = HashSet::new();
            while let Some(key) = map.next_key::<String>()? {
                if !keys.insert(key) {
                    return Err(A::Error::custom("refused"));
                }
                map.next_value_seed(Level(self.0 + 1))?;
            }
            Ok(())
        }
    }

    if serde_json::from_str::<IgnoredAny>(text).is_err() {
        return Err("not JSON");
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    Level(0).deserialize(&mut deserializer).map_err(|error| {
        if error.to_string().starts_with("refused") {
            "refused"
        } else {
            "unreadable"
        }
    })
}

fn verdict(text: &str) -> Result<(), &'static str> {
    scan(text).map_err(|error| match error {
        ScanError::NotJson { .. } => "not JSON",
        _ => "refused",
    })
}

#[test]
fn grammar() {
    let good = [
        "null",
        " true ",
        "\tfalse\r\n",
        "0",
        "-0",
        "12.5e+3",
        "1E9",
        "1e999",
        "\"\"",
        "\"é😀\"",
        "[]",
        "[ ]",
        "{}",
        "{ }",
        "[1,[2,{}],\"x\"]",
        "{\"a\":{\"a\":[{\"a\":1}]},\"b\":1}",
        "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\"",
        "\"\\u0000\"",
        "\"\\ud800\"",
        "{\"a\" : 1 , \"b\" : [ 1 , 2 ] }",
    ];
    for text in good {
        assert_eq!(verdict(text), Ok(()), "{text}");
        assert!(serde_json::from_str::<IgnoredAny>(text).is_ok(), "{text}");
    }
    let bad = [
        "",
        " ",
        "nul",
        "nulll",
        "True",
        "01",
        "-",
        "+1",
        "1.",
        ".5",
        "1e",
        "1e+",
        "0x1",
        "NaN",
        "'a'",
        "\"a",
        "\"\\x\"",
        "\"\\u12g4\"",
        "\"\\u123\"",
        "\"a\nb\"",
        "\"\u{0}\"",
        "\"\u{1f}\"",
        "[1",
        "[1,]",
        "[,1]",
        "[1 2]",
        "]",
        "{",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{,}",
        "{1:2}",
        "{a:1}",
        "{\"a\":1 \"b\":2}",
        "[}",
        "{]",
        "[1}",
        "{\"a\":1]",
        "1 2",
        "{} {}",
        "\u{feff}{}",
        "{\"a\":1}}",
        "[[]",
        "//",
        "\u{a0}1",
    ];
    for text in bad {
        assert_eq!(verdict(text), Err("not JSON"), "{text}");
        assert!(serde_json::from_str::<IgnoredAny>(text).is_err(), "{text}");
    }
}

#[test]
fn nesting_is_bounded_not_recursive() {
    let nested = |open: &str, close: &str, levels: usize| {
        format!("{}{}", open.repeat(levels), close.repeat(levels))
    };
    let limit = limits::JSON_DEPTH_MAX;
    assert_eq!(scan(&nested("[", "]", limit)), Ok(()));
    assert_eq!(
        scan(&nested("[", "]", limit + 1)),
        Err(ScanError::TooDeep {
            offset: limit,
            limit
        })
    );
    assert_eq!(
        scan(&"[".repeat(10_000)),
        Err(ScanError::TooDeep {
            offset: limit,
            limit
        })
    );
    let objects = format!("{}1{}", "{\"a\":".repeat(limit), "}".repeat(limit));
    assert_eq!(scan(&objects), Ok(()));
    assert!(matches!(
        scan(&format!("{{\"a\":{objects}}}")),
        Err(ScanError::TooDeep { .. })
    ));
}

#[test]
fn repeated_keys_are_refused_at_every_level() {
    let repeated = [
        r#"{"role":"node","role":"operator"}"#,
        r#"{"role":1,"r\u006fle":2}"#,
        r#"{"r\u006Fle":1,"\u0072ole":2}"#,
        r#"[[{"x":[{"a":1,"b":2,"a":3}]}]]"#,
        r#"{"a":{"b":1},"c":{"b":2,"d":{"e":1,"e":1}}}"#,
        r#"{"":1,"":2}"#,
        r#"{"\/":1,"/":2}"#,
        r#"{"😀":1,"\ud83d\ude00":2}"#,
        "{\"\\udbff\\udfff\":1,\"\u{10ffff}\":2}",
        "{\"\\ud800\\udc00\":1,\"\u{10000}\":2}",
        r#"{"\ud800":1,"\uD800":2}"#,
        r#"{"\ud800\ud83d\ude00":1,"\ud800😀":2}"#,
        r#"{"a\tb":1,"a\u0009b":2}"#,
    ];
    for text in repeated {
        assert!(
            matches!(scan(text), Err(ScanError::DuplicateKey { .. })),
            "{text}"
        );
    }
    let distinct = [
        r#"{"role":1,"Role":2,"role ":3}"#,
        r#"{"a":{"a":{"a":1}},"b":{"a":1}}"#,
        r#"{"\ud800":1,"\ud801":2,"\udc00":3,"\ud800\udc00":4}"#,
        r#"{"\\u0061":1,"a":2}"#,
        r#"{"e\u0301":1,"é":2}"#,
        r#"[{"a":1},{"a":1}]"#,
    ];
    for text in distinct {
        assert_eq!(scan(text), Ok(()), "{text}");
    }
}

#[test]
fn keys_of_one_object_are_bounded() {
    let object = |keys: usize| {
        let mut text = String::from("{");
        for key in 0..keys {
            write!(text, "\"{key}\":0,").expect("a string");
        }
        text.pop();
        text.push('}');
        text
    };
    let limit = limits::JSON_KEYS_MAX;
    assert_eq!(scan(&object(limit)), Ok(()));
    assert!(matches!(
        scan(&object(limit + 1)),
        Err(ScanError::TooManyKeys { limit: 4096, .. })
    ));
    let mut repeated = object(limit - 1);
    repeated.pop();
    repeated.push_str(",\"17\":0}");
    assert!(matches!(
        scan(&repeated),
        Err(ScanError::DuplicateKey { .. })
    ));
}

/// The vector and word paths must find the same byte as a plain search, wherever it stands.
#[test]
fn special_bytes_are_found_at_every_place() {
    for length in 0..200 {
        for place in 0..length {
            for special in [b'"', b'\\', 0x00, 0x1f, b'\n'] {
                let mut bytes = vec![b'x'; length];
                bytes[place] = special;
                assert_eq!(plain_bytes(&bytes), place, "{special} of {length}");
            }
        }
        // The neighbours of special bytes, and bytes with the high bit, are plain.
        for plain in [0x20, 0x21, 0x23, 0x5b, 0x5d, 0x7f, 0x80, 0xa2, 0xdc, 0xff] {
            assert_eq!(plain_bytes(&vec![plain; length]), length);
        }
    }
}

/// A value with few kinds of keys, so that repeated ones happen.
fn json_value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        any::<i32>().prop_map(|number| number.to_string()),
        any::<f64>().prop_filter_map("finite", |number| {
            number.is_finite().then(|| number.to_string())
        }),
        any::<String>().prop_map(|text| serde_json::to_string(&text).expect("a string")),
    ];
    let key = prop_oneof![
        Just("a".to_owned()),
        Just("\\u0061".to_owned()),
        Just("b".to_owned()),
        "[c-z]{0,3}",
        Just("\\ud83d\\ude00".to_owned()),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5)
                .prop_map(|items| format!("[{}]", items.join(" , "))),
            prop::collection::vec((key.clone(), inner), 0..5).prop_map(|entries| {
                let entries: Vec<String> = entries
                    .iter()
                    .map(|(key, value)| format!("\"{key}\" :{value}"))
                    .collect();
                format!("{{{}}}", entries.join(",\n"))
            }),
        ]
    })
}

proptest! {
    #[test]
    fn agrees_with_the_judge_on_values(text in json_value()) {
        prop_assert_eq!(verdict(&text), judge(&text));
    }

    /// Nearly-JSON: a value with one character removed, doubled or replaced.
    #[test]
    fn agrees_with_the_judge_on_damaged_values(
        text in json_value(), place in any::<prop::sample::Index>(),
        new in prop::sample::select(vec!["", "\"", "\\", "{", "}", "[", "]", ",", ":", "0", "e", "\n", "\u{1}", "é"]),
    ) {
        let characters: Vec<char> = text.chars().collect();
        let place = place.index(characters.len());
        let mut damaged: String = characters[..place].iter().collect();
        damaged.push_str(new);
        damaged.extend(&characters[place + 1..]);
        if judge(&damaged) != Err("unreadable") {
            // The scan stops at the first fault, so a text with two may be called by either.
            prop_assert_eq!(verdict(&damaged).is_ok(), judge(&damaged).is_ok(), "{}", damaged);
        }
        if verdict(&damaged) == Err("not JSON") {
            prop_assert_eq!(judge(&damaged), Err("not JSON"), "{}", damaged);
        }
    }

    #[test]
    fn agrees_with_the_judge_on_any_text(text in any::<String>()) {
        prop_assert_eq!(verdict(&text).is_ok(), judge(&text).is_ok());
    }
}
