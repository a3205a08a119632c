//! Parameters of `connect` that are accepted come back from what we write for them, and print no secret; a refusal is
//! one short printable sentence.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::rpc::types::connect::{ConnectAuth, ConnectParams};
use portcullis::rpc::{decode_params, scan};
use serde_json::value::{RawValue, to_raw_value};

fuzz_target!(|text: &str| {
    // The frame around them has been scanned before parameters are read.
    if scan(text).is_err() {
        return;
    }
    let Ok(raw) = RawValue::from_string(text.to_owned()) else {
        return;
    };
    match decode_params::<ConnectParams>(Some(&raw)) {
        Ok(mut params) => {
            let written = to_raw_value(&params).expect("our types serialise");
            let again: ConnectParams =
                decode_params(Some(&written)).expect("what we write we read");
            assert_eq!(to_raw_value(&again).expect("again").get(), written.get());
            assert!(params.min_protocol >= 1 && !params.client.version.is_empty());

            let printed = format!("{:?}", params.auth);
            if let Some(ConnectAuth {
                token: Some(token), ..
            }) = params.auth.take()
                && token.expose().len() > 24
            {
                let token = token.expose_str().expect("text");
                assert!(!printed.contains(token), "a secret in Debug");
            }
        }
        Err(error) => {
            let sentence = error.for_method("connect").message;
            assert!(sentence.len() <= 1024, "{} bytes", sentence.len());
            assert!(!sentence.contains(|c: char| c.is_control()), "{sentence:?}");
        }
    }
});
