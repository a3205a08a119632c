//! Both sides of the opening handshake over any bytes: our server accepts no request that lacks what RFC 6455 §4.2.1
//! demands, our client takes no response but the one that answers its key, and whatever tungstenite's parser refuses as
//! an HTTP response our client does not take either.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::base::limits;
use portcullis::ws::handshake::{ClientHandshake, RequestLine, accept_key, check_request};
use tungstenite::handshake::client::Response;
use tungstenite::handshake::machine::TryParse;

fuzz_target!(|input: &[u8]| {
    server(input);
    client(input);
});

fn server(input: &[u8]) {
    // Lines of `name: value`, as hyper would hand them over; the first is the method.
    let text = String::from_utf8_lossy(input);
    let mut lines = text.lines();
    let line = RequestLine {
        method: lines.next().unwrap_or_default(),
        http_1_1: true,
    };
    let headers: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(": ")).collect();
    let pairs = headers
        .iter()
        .map(|(name, value)| (*name, value.as_bytes()));
    let Ok(accept) = check_request(line, pairs) else {
        return;
    };
    let values = |wanted: &str| -> Vec<&str> {
        let same = headers
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
        same.map(|(_, value)| value.trim()).collect()
    };
    assert_eq!(line.method, "GET");
    assert_eq!(values("sec-websocket-version"), ["13"]);
    let [key] = values("sec-websocket-key")[..] else {
        panic!("not one key");
    };
    assert_eq!(key.len(), 24);
    assert_eq!(accept.accept_key, accept_key(key));
    assert!(
        values("upgrade")
            .join(",")
            .to_lowercase()
            .contains("websocket")
    );
    assert!(
        values("connection")
            .join(",")
            .to_lowercase()
            .contains("upgrade")
    );
}

fn client(input: &[u8]) {
    let handshake = ClientHandshake::new(*b"the sample nonce");
    let answer = handshake.response(input);
    // What arrives later changes no verdict.
    if let Err(error) = &answer {
        assert_eq!(
            handshake.response(&[input, b"\r\n\r\n"].concat()).as_ref(),
            Err(error)
        );
    }
    let Ok(Some(head_bytes)) = answer else {
        return;
    };
    assert!(head_bytes <= limits::HTTP_HEAD_BYTES_MAX);
    let head = &input[..head_bytes];
    let text = std::str::from_utf8(head).expect("a head that was read as text");
    assert!(text.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    match Response::try_parse(head) {
        Ok(Some((bytes, response))) => {
            assert_eq!((bytes, response.status().as_u16()), (head_bytes, 101));
        }
        other => panic!("tungstenite reads {other:?}"),
    }
}
