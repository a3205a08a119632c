//! A header that parses is the header that we would write, no prefix of it has another meaning, and its bytes decide
//! alone.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::ws::Role;
use portcullis::ws::frame::{HEADER_BYTES_MAX, parse};

fuzz_target!(|bytes: &[u8]| {
    for role in [Role::Server, Role::Client] {
        match parse(bytes, role) {
            Ok(Some((header, header_bytes))) => {
                let written = header.encode();
                assert_eq!(written.as_slice(), &bytes[..header_bytes]);
                assert_eq!(header.mask.is_some(), role == Role::Server);
                for cut in 0..header_bytes {
                    assert_eq!(
                        parse(&bytes[..cut], role),
                        Ok(None),
                        "an answer from {cut} bytes"
                    );
                }
            }
            Ok(None) => assert!(bytes.len() < HEADER_BYTES_MAX),
            // More bytes never make a refusal good.
            Err(error) => assert_eq!(parse(&[bytes, &[0; 14]].concat(), role), Err(error)),
        }
    }
});
