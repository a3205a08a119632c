//! Any bytes as an HTTP request: one answer at most, never a 5xx, a 101 only for what the handshake check says yes to, and
//! a 200 only from the names that are open. Nobody knows the secret here, so all else is 4xx or the end.
//!
//! An input that does not end its head has it ended, so that most inputs are requests.
#![no_main]

#[path = "../house.rs"]
mod house;

use libfuzzer_sys::fuzz_target;
use portcullis::ws::handshake::{RequestLine, check_request};

const OPEN: [&[u8]; 9] = [
    b"/",
    b"/index.html",
    b"/app.js",
    b"/style.css",
    b"/health",
    b"/healthz",
    b"/live",
    b"/ready",
    b"/readyz",
];

fuzz_target!(|input: &[u8]| {
    let end: &[u8] = match input.windows(4).any(|four| four == b"\r\n\r\n") {
        true => b"",
        false => b"\r\n\r\n",
    };
    let answer = house::exchange(&[&input[..input.len().min(20_000)], end]);
    if answer.is_empty() {
        return;
    }
    let status = answer.get(9..12).expect("a status");
    assert!(
        answer.starts_with(b"HTTP/1.") && matches!(status[0], b'1'..=b'4'),
        "{status:?}"
    );
    let answers = answer
        .windows(9)
        .filter(|nine| *nine == b"\r\nHTTP/1." || nine.ends_with(b"}HTTP/1."));
    assert_eq!(answers.count(), 0, "a second request was answered");
    let head = answer.to_ascii_lowercase();
    assert!(
        !head.windows(15).any(|it| it == b"\r\naccess-control"),
        "CORS is closed"
    );

    // What was accepted is read again here, without the parser.
    let mut lines = input
        .split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let line = lines.find(|line| !line.is_empty()).unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let target = words.get(1).copied().unwrap_or_default();
    let path = target
        .split(|byte| *byte == b'?')
        .next()
        .unwrap_or_default();
    // A URL of ours has its path behind the third slash.
    let path = match path.starts_with(b"/") {
        true => path,
        false => path
            .splitn(4, |byte| *byte == b'/')
            .nth(3)
            .map_or(&b"/"[..], |rest| &path[path.len() - rest.len() - 1..]),
    };
    match status {
        b"101" => {
            let headers: Vec<(&str, &[u8])> = lines
                .take_while(|line| !line.is_empty())
                .filter_map(|line| {
                    let colon = line.iter().position(|byte| *byte == b':')?;
                    Some((
                        std::str::from_utf8(&line[..colon]).ok()?,
                        line[colon + 1..].trim_ascii(),
                    ))
                })
                .collect();
            let method = std::str::from_utf8(words[0]).expect("a method");
            let line = RequestLine {
                method,
                http_1_1: words.last() == Some(&&b"HTTP/1.1"[..]),
            };
            assert!(
                check_request(line, headers).is_ok(),
                "an upgrade out of form"
            );
            assert_eq!(path, b"/");
        }
        b"200" => assert!(OPEN.contains(&path), "{:?}", String::from_utf8_lossy(path)),
        _ => {}
    }
});
