//! Whatever a provider's program prints: a secret comes out only if an independent reader finds that very text under that
//! very id in a reply of version 1 without an error for it, or if plain text was allowed and this is no object.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::config::parse_reply;
use serde_json::Value;

const ID: &str = "a/b";

fuzz_target!(|input: &[u8]| {
    let Some((choice, printed)) = input.split_first() else {
        return;
    };
    let json_only = choice % 2 == 0;
    let Ok(secret) = parse_reply(printed, ID, json_only) else {
        return;
    };
    let secret = std::str::from_utf8(secret.expose()).expect("text");
    assert!(!secret.trim().is_empty());
    let text = std::str::from_utf8(printed).expect("text");
    if !json_only && !text.trim_start().starts_with('{') {
        assert!(
            text.starts_with(secret)
                && text[secret.len()..]
                    .trim_end_matches(['\r', '\n'])
                    .is_empty()
        );
        return;
    }
    let reply: Value = serde_json::from_str(text).expect("JSON");
    assert_eq!(reply["protocolVersion"].as_f64(), Some(1.0));
    assert_eq!(reply["values"][ID].as_str(), Some(secret));
    assert!(reply["errors"].get(ID).is_none());
});
