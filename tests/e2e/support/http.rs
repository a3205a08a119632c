//! HTTP as bytes, so that a request may be as odd as a test wants it.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use super::Gateway;

/// One answer, read to the end of the connection or of its body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The status line and the header lines.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (it, value) = line.split_once(':')?;
            it.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// `error.code` of a JSON body.
    pub(crate) fn code(&self) -> Option<String> {
        let body: serde_json::Value = serde_json::from_str(&self.body).ok()?;
        body["error"]["code"].as_str().map(str::to_owned)
    }

    /// Splits an answer that came as bytes.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?;
        Some(Self {
            status,
            head: head.to_owned(),
            body: body.to_owned(),
        })
    }
}

/// Sends bytes and reads one answer; `None` if the Gateway closed without one.
pub(crate) fn exchange(gateway: &Gateway, request: &[u8]) -> Option<Answer> {
    let mut stream = gateway.dial();
    // The Gateway may refuse before it has read all.
    let _ = stream.write_all(request);
    read_answer(&mut stream)
}

/// Reads to the end of one answer, as its `Content-Length` tells, or of the connection.
pub(crate) fn read_answer(stream: &mut TcpStream) -> Option<Answer> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let got = match stream.read(&mut piece) {
            Ok(got) => got,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
            Err(error) => panic!("no answer and no end: {error}"),
        };
        bytes.extend_from_slice(&piece[..got]);
        let answer = Answer::parse(&bytes);
        let is_whole = answer.as_ref().is_some_and(|answer| {
            let length = answer.header("content-length");
            answer.status == 101
                || length.is_some_and(|length| length.parse() == Ok(answer.body.len()))
        });
        if is_whole || got == 0 {
            return answer;
        }
    }
}

/// A plain request with this target and these further header lines.
pub(crate) fn get(gateway: &Gateway, target: &str, headers: &[&str]) -> Answer {
    let host = format!("Host: 127.0.0.1:{}", gateway.port());
    let mut lines = vec![format!("GET {target} HTTP/1.1")];
    if !headers
        .iter()
        .any(|line| line.to_ascii_lowercase().starts_with("host:"))
    {
        lines.push(host);
    }
    lines.extend(headers.iter().map(|line| (*line).to_owned()));
    lines.push("Connection: close\r\n\r\n".to_owned());
    exchange(gateway, lines.join("\r\n").as_bytes())
        .unwrap_or_else(|| panic!("no answer to {target:?} {headers:?}"))
}

/// The bytes of an opening handshake that is right but for these further header lines.
pub(crate) fn upgrade_request(host: &str, headers: &[&str]) -> Vec<u8> {
    let more: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    format!(
        "GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
    )
    .into_bytes()
}
