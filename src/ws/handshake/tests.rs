use proptest::prelude::*;

use super::*;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const GET: RequestLine<'_> = RequestLine {
    method: "GET",
    http_1_1: true,
};

fn headers() -> Vec<(&'static str, &'static [u8])> {
    vec![
        ("host", b"server.example.com"),
        ("upgrade", b"websocket"),
        ("connection", b"Upgrade"),
        ("sec-websocket-key", KEY.as_bytes()),
        ("sec-websocket-version", b"13"),
    ]
}

/// The answer to the RFC's request with one header replaced, or left out.
fn with(name: &str, value: Option<&'static [u8]>) -> Result<Accept, RequestError> {
    let mut headers = headers();
    headers.retain(|(other, _)| *other != name);
    let name = name.to_owned();
    let extra = value.map(|value| (name.as_str(), value));
    check_request(GET, headers.into_iter().chain(extra))
}

#[test]
fn rfc_example() {
    // §1.3.
    assert_eq!(accept_key(KEY), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    let accept = check_request(GET, headers()).unwrap();
    assert_eq!(
        accept.headers()[2],
        ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    );
}

#[test]
fn what_browsers_and_proxies_vary_is_accepted() {
    assert!(with("upgrade", Some(b"WebSocket")).is_ok());
    assert!(with("upgrade", Some(b"h2c, websocket")).is_ok());
    assert!(with("connection", Some(b"keep-alive, Upgrade")).is_ok());
    assert!(with("sec-websocket-extensions", Some(b"permessage-deflate")).is_ok());
    assert!(with("content-length", Some(b"0")).is_ok());
    let upper = headers()
        .into_iter()
        .map(|(name, value)| (name.to_uppercase(), value));
    let upper: Vec<_> = upper.collect();
    assert!(
        check_request(
            GET,
            upper.iter().map(|(name, value)| (name.as_str(), *value))
        )
        .is_ok()
    );
}

#[test]
fn refusals_of_the_server() {
    let post = RequestLine {
        method: "POST",
        ..GET
    };
    assert_eq!(
        check_request(post, headers()),
        Err(RequestError::MethodNotGet)
    );
    let old = RequestLine {
        http_1_1: false,
        ..GET
    };
    assert_eq!(
        check_request(old, headers()),
        Err(RequestError::VersionNotHttp11)
    );
    let rows: &[(&str, Option<&'static [u8]>, RequestError, u16)] = &[
        ("upgrade", None, RequestError::UpgradeMissing, 400),
        (
            "upgrade",
            Some(b"websockets"),
            RequestError::UpgradeMissing,
            400,
        ),
        ("connection", None, RequestError::ConnectionMissing, 400),
        (
            "connection",
            Some(b"keep-alive"),
            RequestError::ConnectionMissing,
            400,
        ),
        (
            "sec-websocket-version",
            None,
            RequestError::VersionUnsupported,
            426,
        ),
        (
            "sec-websocket-version",
            Some(b"8"),
            RequestError::VersionUnsupported,
            426,
        ),
        (
            "sec-websocket-version",
            Some(b"13, 8"),
            RequestError::VersionUnsupported,
            426,
        ),
        ("sec-websocket-key", None, RequestError::KeyMissing, 400),
        (
            "sec-websocket-key",
            Some(b""),
            RequestError::KeyInvalid,
            400,
        ),
        (
            "sec-websocket-key",
            Some(b"dGhlIHNhbXBsZSBub25jZQ"),
            RequestError::KeyInvalid,
            400,
        ),
        (
            "sec-websocket-key",
            Some(b"dGhlIHNhbXBsZSBub25jZSE="),
            RequestError::KeyInvalid,
            400,
        ),
        (
            "sec-websocket-key",
            Some(b"dGhlIHNhbXBsZSBub25jZSEh"),
            RequestError::KeyInvalid,
            400,
        ),
        (
            "sec-websocket-key",
            Some(b"dGhlIHNhbXBsZSBub25j!Q=="),
            RequestError::KeyInvalid,
            400,
        ),
        (
            "sec-websocket-key",
            Some(b"\xff"),
            RequestError::KeyInvalid,
            400,
        ),
        (
            "content-length",
            Some(b"5"),
            RequestError::BodyAnnounced,
            400,
        ),
        (
            "transfer-encoding",
            Some(b"chunked"),
            RequestError::BodyAnnounced,
            400,
        ),
    ];
    for (name, value, error, status) in rows {
        assert_eq!(with(name, *value), Err(*error), "{name} {value:?}");
        assert_eq!(error.http_status(), *status);
    }
    for name in ["sec-websocket-key", "sec-websocket-version"] {
        let twice = headers().into_iter().filter(|(other, _)| *other == name);
        let twice: Vec<_> = headers().into_iter().chain(twice).collect();
        assert!(
            matches!(check_request(GET, twice), Err(RequestError::Duplicate(_))),
            "{name}"
        );
    }
    assert!(
        RequestError::VersionUnsupported
            .headers()
            .contains(&("sec-websocket-version", "13"))
    );
}

#[test]
fn only_an_upgrade_to_websocket_is_ours() {
    assert!(is_asked_for(headers()));
    assert!(!is_asked_for([
        ("upgrade", &b"h2c"[..]),
        ("x", b"websocket")
    ]));
}

fn handshake() -> ClientHandshake {
    ClientHandshake::new(*b"the sample nonce")
}

const RESPONSE: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
     Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

#[test]
fn the_clients_request() {
    let bytes = handshake()
        .request("h:1", "/x", &[("Origin", "http://h")])
        .unwrap();
    let text = String::from_utf8(bytes).unwrap();
    assert_eq!(
        text,
        format!(
            "GET /x HTTP/1.1\r\nHost: h:1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\nOrigin: http://h\r\n\r\n"
        )
    );
    for (host, target, name, value) in [
        ("h\r\nX: y", "/", "a", "b"),
        ("", "/", "a", "b"),
        ("h", "/ HTTP/1.1", "a", "b"),
        ("h", "/\n", "a", "b"),
        ("h", "/", "a:", "b"),
        ("h", "/", "a", "b\r\nc: d"),
    ] {
        let refused = handshake().request(host, target, &[(name, value)]);
        assert_eq!(refused, Err(ClientRequestError::Unprintable));
    }
    let long = "x".repeat(limits::HTTP_HEAD_BYTES_MAX);
    let refused = handshake().request("h", "/", &[("a", &long)]);
    assert!(matches!(refused, Err(ClientRequestError::TooLarge { .. })));
}

#[test]
fn the_servers_response() {
    let response = |text: &str| handshake().response(text.as_bytes());
    assert_eq!(response(RESPONSE), Ok(Some(RESPONSE.len())));
    assert_eq!(
        response(&format!("{RESPONSE}\u{1}frames")),
        Ok(Some(RESPONSE.len()))
    );
    for cut in 0..RESPONSE.len() {
        assert_eq!(response(&RESPONSE[..cut]), Ok(None));
    }
    let rows: &[(&str, &str, ResponseError)] = &[
        (
            "101 Switching Protocols",
            "403 Forbidden",
            ResponseError::Status(403),
        ),
        ("101 Switching Protocols", "200", ResponseError::Status(200)),
        ("Switching", "Swi\0tching", ResponseError::Malformed),
        (
            "Upgrade: w",
            "Up@grade: x\r\nUpgrade: w",
            ResponseError::Malformed,
        ),
        ("HTTP/1.1", "HTTP/1.0", ResponseError::Malformed),
        ("101", "1010", ResponseError::Malformed),
        ("101", "+101", ResponseError::Malformed),
        (
            "Upgrade: websocket",
            "Upgrade: h2c",
            ResponseError::UpgradeMissing,
        ),
        (
            "Connection: Upgrade",
            "Connection: close",
            ResponseError::ConnectionMissing,
        ),
        (
            "Connection: Upgrade",
            "Connection",
            ResponseError::Malformed,
        ),
        (
            "Connection: Upgrade",
            "Connection : Upgrade",
            ResponseError::Malformed,
        ),
        ("s3p", "S3P", ResponseError::AcceptWrong),
        ("Sec-WebSocket-Accept", "X", ResponseError::AcceptWrong),
        (
            "Upgrade: w",
            "Sec-WebSocket-Extensions: x\r\nUpgrade: w",
            ResponseError::ExtensionUnasked,
        ),
        (
            "Upgrade: w",
            "Sec-WebSocket-Protocol: x\r\nUpgrade: w",
            ResponseError::ProtocolUnasked,
        ),
        (
            "Upgrade: w",
            "Sec-WebSocket-Accept: x\r\nUpgrade: w",
            ResponseError::AcceptWrong,
        ),
    ];
    for (from, to, error) in rows {
        assert_eq!(
            response(&RESPONSE.replacen(from, to, 1)),
            Err(error.clone()),
            "{to}"
        );
    }
}

#[test]
fn a_response_is_bounded() {
    let limit = limits::HTTP_HEAD_BYTES_MAX;
    let endless = "HTTP/1.1 101 x\r\nA: ".to_owned() + &"x".repeat(limit);
    assert_eq!(
        handshake().response(endless.as_bytes()),
        Err(ResponseError::HeadTooLarge { limit })
    );
    let many = "HTTP/1.1 101 x\r\n".to_owned() + &"A: x\r\n".repeat(65) + "\r\n";
    assert_eq!(
        handshake().response(many.as_bytes()),
        Err(ResponseError::HeadersTooMany { limit: 64 })
    );
}

proptest! {
    #[test]
    fn our_own_request_is_accepted_and_its_answer_too(random: [u8; 16]) {
        let client = ClientHandshake::new(random);
        let bytes = client.request("h", "/", &[]).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let lines = text.trim_end().split("\r\n").skip(1);
        let headers = lines.map(|line| line.split_once(": ").unwrap());
        let accept = check_request(GET, headers.map(|(name, value)| (name, value.as_bytes()))).unwrap();
        let mut answer = "HTTP/1.1 101 Switching Protocols\r\n".to_owned();
        for (name, value) in accept.headers() {
            answer.extend([name, ": ", value, "\r\n"]);
        }
        answer.push_str("\r\n");
        prop_assert_eq!(client.response(answer.as_bytes()), Ok(Some(answer.len())));
    }
}
