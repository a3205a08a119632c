//! A header that parses is the header that we would write, no prefix of it has another meaning, and its bytes decide
//! alone.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::ws::Role;
use portcullis::ws::frame::{HEADER_BYTES_MAX, Parsed, parse};

fuzz_target!(|bytes: &[u8]| {
    for role in [Role::Server, Role::Client] {
        match parse(bytes, role) {
            Ok(Parsed::Header {
                header,
                header_bytes,
            }) => {
                let written = header.encode();
                assert_eq!(written.as_slice(), &bytes[..header_bytes]);
                assert_eq!(header.mask.is_some(), role == Role::Server);
                for cut in 0..header_bytes {
                    let Ok(Parsed::Short { header_bytes_min }) = parse(&bytes[..cut], role) else {
                        panic!("an answer from {cut} of {header_bytes} bytes");
                    };
                    assert!(cut < header_bytes_min && header_bytes_min <= header_bytes);
                }
            }
            Ok(Parsed::Short { header_bytes_min }) => {
                assert!(bytes.len() < header_bytes_min && header_bytes_min <= HEADER_BYTES_MAX);
            }
            // More bytes never make a refusal good.
            Err(error) => assert_eq!(parse(&[bytes, &[0; 14]].concat(), role), Err(error)),
        }
    }
});
