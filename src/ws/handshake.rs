//! The opening handshake, both roles (RFC 6455 §4).
//!
//! In: a request's method, version and header lines (server), or the bytes of a response (client).
//! Out: what to answer, or the refusal. Attacker controls: every value. Bounds: the server's are those of the HTTP
//! parser; the client reads at most `limits::HTTP_HEAD_BYTES_MAX` and `limits::HTTP_HEADERS_MAX`.
//! Errors: [`RequestError`], answered by 400 or 426, and [`ResponseError`].
//!
//! The sixteen random bytes of a client's key are an argument. Extensions and subprotocols are never offered; a server
//! that selects one all the same is refused.

use std::fmt;
use std::str;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest;

use crate::base::limits;

/// The only version of the protocol (§4.1).
pub const VERSION: &str = "13";
/// What RFC 6455 §1.3 appends to the key.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key` (§4.2.2).
pub fn accept_key(key: &str) -> String {
    let mut sha1 = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    sha1.update(key.as_bytes());
    sha1.update(GUID);
    STANDARD.encode(sha1.finish())
}

/// A request line's facts.
#[derive(Clone, Copy, Debug)]
pub struct RequestLine<'a> {
    pub method: &'a str,
    /// Whether the request is HTTP/1.1.
    pub http_1_1: bool,
}

/// A request that may be answered by 101.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Accept {
    /// The value of `Sec-WebSocket-Accept`.
    pub accept_key: String,
}

impl Accept {
    /// The header lines of the 101.
    pub fn headers(&self) -> [(&'static str, &str); 3] {
        [
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-accept", &self.accept_key),
        ]
    }
}

/// Why a request is not a WebSocket handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequestError {
    MethodNotGet,
    VersionNotHttp11,
    /// No `Upgrade` header names `websocket`.
    UpgradeMissing,
    /// No `Connection` header names `upgrade`.
    ConnectionMissing,
    /// `Sec-WebSocket-Version` is missing or not 13; answered by 426 that names 13 (§4.2.2).
    VersionUnsupported,
    KeyMissing,
    /// The key is not the base64 of sixteen bytes.
    KeyInvalid,
    /// A header that may stand once stands again.
    Duplicate(&'static str),
    /// A request with a body cannot become a WebSocket.
    BodyAnnounced,
}

impl RequestError {
    pub fn http_status(self) -> u16 {
        match self {
            Self::VersionUnsupported => 426,
            _ => 400,
        }
    }

    /// Header lines that the refusal must carry.
    pub fn headers(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::VersionUnsupported => &[
                ("sec-websocket-version", VERSION),
                ("upgrade", "websocket"),
                ("connection", "Upgrade"),
            ],
            _ => &[],
        }
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MethodNotGet => f.write_str("a WebSocket handshake is a GET"),
            Self::VersionNotHttp11 => f.write_str("a WebSocket handshake is HTTP/1.1"),
            Self::UpgradeMissing => f.write_str("no Upgrade: websocket"),
            Self::ConnectionMissing => f.write_str("no Connection: Upgrade"),
            Self::VersionUnsupported => f.write_str("Sec-WebSocket-Version must be 13"),
            Self::KeyMissing => f.write_str("no Sec-WebSocket-Key"),
            Self::KeyInvalid => f.write_str("Sec-WebSocket-Key is not the base64 of 16 bytes"),
            Self::Duplicate(name) => write!(f, "more than one {name}"),
            Self::BodyAnnounced => f.write_str("a WebSocket handshake has no body"),
        }
    }
}

impl std::error::Error for RequestError {}

/// Whether a request asks for a WebSocket at all, and so should be given to [`check_request`].
pub fn is_asked_for<'a>(headers: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> bool {
    headers
        .into_iter()
        .any(|(name, value)| name.eq_ignore_ascii_case("upgrade") && has_token(value, "websocket"))
}

/// The server's check of a request (§4.2.1).
///
/// Offered extensions and subprotocols are ignored, which declines them.
pub fn check_request<'a>(
    line: RequestLine<'_>,
    headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
) -> Result<Accept, RequestError> {
    if line.method != "GET" {
        return Err(RequestError::MethodNotGet);
    }
    if !line.http_1_1 {
        return Err(RequestError::VersionNotHttp11);
    }
    let (mut upgrade, mut connection, mut body) = (false, false, false);
    let (mut key, mut version) = (None, None);
    for (name, value) in headers {
        if name.eq_ignore_ascii_case("upgrade") {
            upgrade |= has_token(value, "websocket");
        } else if name.eq_ignore_ascii_case("connection") {
            connection |= has_token(value, "upgrade");
        } else if name.eq_ignore_ascii_case("sec-websocket-key") {
            if key.replace(value).is_some() {
                return Err(RequestError::Duplicate("Sec-WebSocket-Key"));
            }
        } else if name.eq_ignore_ascii_case("sec-websocket-version") {
            if version.replace(value).is_some() {
                return Err(RequestError::Duplicate("Sec-WebSocket-Version"));
            }
        } else if name.eq_ignore_ascii_case("content-length") {
            body |= value.trim_ascii() != b"0";
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            body = true;
        }
    }
    if !upgrade {
        return Err(RequestError::UpgradeMissing);
    }
    if !connection {
        return Err(RequestError::ConnectionMissing);
    }
    if version.is_none_or(|version| version.trim_ascii() != VERSION.as_bytes()) {
        return Err(RequestError::VersionUnsupported);
    }
    let key = key.ok_or(RequestError::KeyMissing)?;
    let key = str::from_utf8(key.trim_ascii()).map_err(|_| RequestError::KeyInvalid)?;
    let mut nonce = [0; 18];
    // 24 characters decode to at most 18 bytes, so the slice is never the reason to fail.
    let is_nonce = key.len() == 24 && STANDARD.decode_slice(key, &mut nonce).ok() == Some(16);
    if !is_nonce {
        return Err(RequestError::KeyInvalid);
    }
    // What follows the head must be frames: a body would be taken for them.
    if body {
        return Err(RequestError::BodyAnnounced);
    }
    Ok(Accept {
        accept_key: accept_key(key),
    })
}

/// Whether a comma-separated list holds `token`, whatever its case.
fn has_token(list: &[u8], token: &str) -> bool {
    list.split(|byte| *byte == b',')
        .any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// The client's side of one handshake.
pub struct ClientHandshake {
    key: String,
}

/// Why a client cannot send its request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientRequestError {
    /// Target, host or a header holds a byte that could end its line or its word.
    Unprintable,
    /// The request would exceed the limit, in bytes.
    TooLarge { got: usize, limit: usize },
}

impl fmt::Display for ClientRequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unprintable => f.write_str("request line or header holds a control character"),
            Self::TooLarge { got, limit } => write!(f, "request of {got} bytes, limit {limit}"),
        }
    }
}

impl std::error::Error for ClientRequestError {}

/// Why a response is not the end of a handshake.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ResponseError {
    /// The head does not end within the limit, in bytes.
    HeadTooLarge {
        limit: usize,
    },
    /// More header lines than the limit.
    HeadersTooMany {
        limit: usize,
    },
    /// Not an HTTP/1.1 response.
    Malformed,
    /// The server answered, but not with 101.
    Status(u16),
    UpgradeMissing,
    ConnectionMissing,
    /// `Sec-WebSocket-Accept` is missing, repeated or not that of our key.
    AcceptWrong,
    /// The server selected an extension though none was offered (§4.1).
    ExtensionUnasked,
    /// The server selected a subprotocol though none was offered (§4.1).
    ProtocolUnasked,
}

impl fmt::Display for ResponseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeadTooLarge { limit } => write!(f, "response head over {limit} bytes"),
            Self::HeadersTooMany { limit } => write!(f, "response with over {limit} header lines"),
            Self::Malformed => f.write_str("not an HTTP/1.1 response"),
            Self::Status(status) => write!(f, "HTTP status {status} instead of 101"),
            Self::UpgradeMissing => f.write_str("response without Upgrade: websocket"),
            Self::ConnectionMissing => f.write_str("response without Connection: Upgrade"),
            Self::AcceptWrong => f.write_str("Sec-WebSocket-Accept does not answer our key"),
            Self::ExtensionUnasked => f.write_str("server selected an extension unasked"),
            Self::ProtocolUnasked => f.write_str("server selected a subprotocol unasked"),
        }
    }
}

impl std::error::Error for ResponseError {}

impl ClientHandshake {
    pub fn new(random: [u8; 16]) -> Self {
        Self {
            key: STANDARD.encode(random),
        }
    }

    /// The bytes of the request (§4.1). `host` is the `Host` header's value, `target` begins with a slash.
    pub fn request(
        &self,
        host: &str,
        target: &str,
        headers: &[(&str, &str)],
    ) -> Result<Vec<u8>, ClientRequestError> {
        let word = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        let printable = word(host)
            && word(target)
            && headers
                .iter()
                .all(|(name, value)| is_token(name) && is_printable(value));
        if !printable {
            return Err(ClientRequestError::Unprintable);
        }
        let mut text = format!(
            "GET {target} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {}\r\nSec-WebSocket-Version: {VERSION}\r\n",
            self.key
        );
        for (name, value) in headers {
            text.extend([name, ": ", value, "\r\n"]);
        }
        text.push_str("\r\n");
        let (got, limit) = (text.len(), limits::HTTP_HEAD_BYTES_MAX);
        if got > limit {
            return Err(ClientRequestError::TooLarge { got, limit });
        }
        Ok(text.into_bytes())
    }

    /// Reads a response from the front of `input`. `None`: its head has not ended yet. Otherwise the head's length;
    /// what follows it is frames.
    pub fn response(&self, input: &[u8]) -> Result<Option<usize>, ResponseError> {
        let limit = limits::HTTP_HEAD_BYTES_MAX;
        let head = input.get(..limit).unwrap_or(input);
        let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") else {
            return if input.len() >= limit {
                Err(ResponseError::HeadTooLarge { limit })
            } else {
                Ok(None)
            };
        };
        let head = head.get(..end).unwrap_or_default();
        let head = str::from_utf8(head).map_err(|_| ResponseError::Malformed)?;
        let mut lines = head.split("\r\n");
        match status(lines.next().unwrap_or_default()) {
            Some(101) => {}
            Some(status) => return Err(ResponseError::Status(status)),
            None => return Err(ResponseError::Malformed),
        }
        self.check_headers(lines)?;
        Ok(Some(end.saturating_add(4)))
    }

    fn check_headers<'a>(&self, lines: impl Iterator<Item = &'a str>) -> Result<(), ResponseError> {
        let limit = limits::HTTP_HEADERS_MAX;
        let (mut upgrade, mut connection) = (false, false);
        let mut accept = None;
        for (count, line) in lines.enumerate() {
            if count >= limit {
                return Err(ResponseError::HeadersTooMany { limit });
            }
            let (name, value) = line.split_once(':').ok_or(ResponseError::Malformed)?;
            if !is_token(name) || !is_printable(value) {
                return Err(ResponseError::Malformed);
            }
            let value = value.trim_ascii();
            if name.eq_ignore_ascii_case("upgrade") {
                upgrade = value.eq_ignore_ascii_case("websocket");
            } else if name.eq_ignore_ascii_case("connection") {
                connection |= has_token(value.as_bytes(), "upgrade");
            } else if name.eq_ignore_ascii_case("sec-websocket-accept") {
                if accept.replace(value).is_some() {
                    return Err(ResponseError::AcceptWrong);
                }
            } else if name.eq_ignore_ascii_case("sec-websocket-extensions") {
                return Err(ResponseError::ExtensionUnasked);
            } else if name.eq_ignore_ascii_case("sec-websocket-protocol") {
                return Err(ResponseError::ProtocolUnasked);
            }
        }
        if !upgrade {
            return Err(ResponseError::UpgradeMissing);
        }
        if !connection {
            return Err(ResponseError::ConnectionMissing);
        }
        if accept != Some(accept_key(&self.key).as_str()) {
            return Err(ResponseError::AcceptWrong);
        }
        Ok(())
    }
}

/// Whether `name` is a token (RFC 9110 §5.6.2), as every header name is.
fn is_token(name: &str) -> bool {
    let is_token_byte = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !name.is_empty() && name.bytes().all(is_token_byte)
}

/// Whether `value` may stand in a header or a status line: nothing that could end its line.
fn is_printable(value: &str) -> bool {
    value.bytes().all(|b| b == b'\t' || !b.is_ascii_control())
}

/// The status of an HTTP/1.1 status line.
fn status(line: &str) -> Option<u16> {
    let rest = line.strip_prefix("HTTP/1.1 ")?;
    let (digits, reason) = rest.split_once(' ').unwrap_or((rest, ""));
    let well_formed =
        digits.len() == 3 && digits.bytes().all(|b| b.is_ascii_digit()) && is_printable(reason);
    digits.parse().ok().filter(|_| well_formed)
}

#[cfg(test)]
mod tests;
