//! Requests and handshakes that somebody made wrong on purpose (`tests/vectors/http`): each gets the one answer that
//! stands beside it, and then the connection ends.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;

use crate::support::{Answer, Gateway, PASSWORD, Peer, get};

struct Case {
    name: &'static str,
    /// Statuses, or `cut`.
    expected: Vec<&'static str>,
    request: Vec<u8>,
}

fn cases(file: &'static str, gateway: &Gateway) -> Vec<Case> {
    let port = gateway.port();
    let host = format!("Host: 127.0.0.1:{port}\r\n");
    let hidden = format!("GET /app.js HTTP/1.1\r\n{host}\r\n");
    let short = [
        ("{S}", hidden.as_str()),
        ("{H}", &host),
        ("{A}", &format!("Authorization: Bearer {PASSWORD}\r\n")),
        ("{P}", &port.to_string()),
        ("{C}", "Connection: Upgrade\r\n"),
        ("{U}", "Upgrade: websocket\r\n"),
        ("{V}", "Sec-WebSocket-Version: 13\r\n"),
        ("{K}", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
    ];
    file.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let mut parts = line.splitn(3, " | ");
            let mut part = || parts.next().unwrap_or_else(|| panic!("{line:?}"));
            let (name, expected, request) = (part(), part(), part());
            let mut text = unescape(request);
            for (mark, meaning) in short {
                text = replace(&text, mark.as_bytes(), meaning.as_bytes());
            }
            Case {
                name,
                expected: expected.split(',').collect(),
                request: text,
            }
        })
        .collect()
}

/// The bytes that `\r \n \t \0 \\ \xNN` stand for.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'\\' => match rest.next() {
                Some(b'r') => b'\r',
                Some(b'n') => b'\n',
                Some(b't') => b'\t',
                Some(b'0') => 0,
                Some(b'\\') => b'\\',
                Some(b'x') => {
                    let digits = [rest.next().unwrap(), rest.next().unwrap()];
                    u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
                }
                other => panic!("{other:?} in {text:?}"),
            },
            byte => byte,
        });
    }
    bytes
}

fn replace(text: &[u8], mark: &[u8], meaning: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.windows(mark.len()).position(|here| here == mark) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(meaning);
        rest = &rest[at + mark.len()..];
    }
    out.extend_from_slice(rest);
    out
}

/// All that is answered until the connection ends, or until the 101.
fn answered(gateway: &Gateway, case: &Case) -> Vec<u8> {
    let mut stream = gateway.dial();
    let _ = stream.write_all(&case.request);
    if case.expected.contains(&"cut") {
        // Nothing more comes, so what is no whole head need not be waited for.
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return bytes,
            Ok(got) => bytes.extend_from_slice(&piece[..got]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return bytes,
            Err(error) => panic!("{}: neither answer nor end: {error}", case.name),
        }
        if Answer::parse(&bytes).is_some_and(|answer| answer.status == 101) {
            return bytes;
        }
    }
}

fn run(file: &'static str) -> usize {
    let gateway = Gateway::start();
    let cases = cases(file, &gateway);
    let mut wrong = Vec::new();
    for case in &cases {
        let bytes = answered(&gateway, case);
        let text = String::from_utf8_lossy(&bytes);
        let got = match Answer::parse(&bytes) {
            Some(answer) => answer.status.to_string(),
            None if text.starts_with("HTTP/1.0 ") => text[9..12].to_owned(),
            None => "cut".to_owned(),
        };
        // A refusal's sentence may name a version, too; a status line goes on behind it.
        let answers = text.matches("HTTP/1.1 ").count() + text.matches("HTTP/1.0 ").count();
        if !case.expected.contains(&got.as_str()) || answers > 1 {
            wrong.push(format!(
                "{}: {got}, {answers} answers, not {:?}",
                case.name, case.expected
            ));
        }
        assert!(!text.contains("access-control"), "{}", case.name);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(get(&gateway, "/healthz", &[]).status, 200);
    Peer::operator(&gateway);
    let mut names: Vec<_> = cases.iter().map(|case| case.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), cases.len(), "a name stands twice");
    cases.len()
}

#[test]
fn w5_every_request_of_the_corpus_gets_its_one_answer() {
    assert!(run(include_str!("../vectors/http/requests.txt")) >= 60);
}

#[test]
fn every_handshake_of_the_corpus_gets_its_one_answer() {
    assert!(run(include_str!("../vectors/http/upgrades.txt")) >= 40);
}
