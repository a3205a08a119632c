//! A secret field of any form: a text is a reference only if it is exactly `$NAME` or `${NAME}`, an object is never a
//! literal, and the printed form of a reference leads back to it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::config::{SecretInput, SecretRef, parse_secret};
use serde_json::json;

const SETTING: &str = "gateway.auth.token";

fn is_name(name: &str) -> bool {
    let tail = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    name.len() <= 128
        && name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.chars().all(tail)
}

fn leads_back(reference: &SecretRef) {
    let shown = reference.to_string();
    let mut parts = shown.splitn(3, ':');
    let object = json!({"source": parts.next(), "provider": parts.next(), "id": parts.next()});
    let Ok(SecretInput::Ref(again)) = parse_secret(SETTING, &object.to_string()) else {
        panic!("{shown} does not lead back");
    };
    assert!(again == *reference);
}

fuzz_target!(|input: &str| {
    let _ = parse_secret(SETTING, input);

    let inner = input.strip_prefix('$').map(|rest| {
        let braced = rest
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'));
        braced.unwrap_or(rest)
    });
    match parse_secret(SETTING, &json!(input).to_string()) {
        Ok(SecretInput::Unset) => assert!(input.trim().is_empty()),
        Ok(SecretInput::Literal(secret)) => {
            assert!(
                !inner.is_some_and(is_name),
                "a reference was taken for a literal"
            );
            assert_eq!(secret.expose(), input.replace("$${", "${").as_bytes());
        }
        Ok(SecretInput::Ref(reference)) => {
            assert_eq!(
                Some(reference.id.as_str()),
                inner,
                "a literal was taken for a reference"
            );
            assert!(is_name(&reference.id));
            leads_back(&reference);
        }
        Err(_) => assert!(input.contains("${")),
    }

    let mut lines = input.lines();
    let object = json!({"source": lines.next(), "provider": lines.next(), "id": lines.next()});
    match parse_secret(SETTING, &object.to_string()) {
        Ok(SecretInput::Ref(reference)) => leads_back(&reference),
        Ok(_) => panic!("an object was taken for a literal"),
        Err(_) => {}
    }
});
