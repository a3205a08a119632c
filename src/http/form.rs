//! The form of a request, beyond what hyper insists on: one reading for us and for whatever stands in front of us.
//!
//! hyper forgives bare line feeds, drops a repeated `Content-Length` and one beside `Transfer-Encoding`, and cuts a
//! fragment off the target. So the bytes of the head are looked at as well as what was parsed of them.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING};
use hyper::{Method, Request};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use zeroize::Zeroizing;

use crate::base::{Refusal, limits};

/// Why a request is not read any further.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BadForm {
    /// A line that ends without a carriage return (RFC 9112 §2.2 allows it; two readers may see two heads).
    BareLineFeed,
    /// Neither a path nor an `http` URL: `*`, `host:port`, another scheme, a fragment (RFC 9112 §3.2).
    Target,
    /// A header that decides something stands there twice.
    Repeated(&'static str),
    /// A body without a length. No route needs one, and every smuggled request does (RFC 9112 §11.2).
    TransferEncoding,
    /// A `GET` or `HEAD` with a body.
    BodyUnexpected,
    /// An expectation other than `100-continue` (RFC 9110 §10.1.1).
    Expectation,
}

impl Refusal for BadForm {
    fn code(&self) -> &'static str {
        "invalid_request"
    }

    fn http_status(&self) -> u16 {
        match self {
            Self::TransferEncoding => 411,
            Self::Expectation => 417,
            _ => 400,
        }
    }

    fn log_field(&self) -> &'static str {
        match self {
            Self::BareLineFeed => "bare_line_feed",
            Self::Target => "request_target",
            Self::Repeated(_) => "header_repeated",
            Self::TransferEncoding => "transfer_encoding",
            Self::BodyUnexpected => "body_unexpected",
            Self::Expectation => "expectation",
        }
    }

    fn public(&self) -> Cow<'static, str> {
        match self {
            Self::BareLineFeed => "a line of the request ends without a carriage return".into(),
            Self::Target => "the request target is neither a path nor this gateway's URL".into(),
            Self::Repeated(name) => format!("{name} stands there more than once").into(),
            Self::TransferEncoding => "send the body with a Content-Length".into(),
            Self::BodyUnexpected => "this method takes no body".into(),
            Self::Expectation => "that expectation cannot be met".into(),
        }
    }

    fn remedy(&self) -> Cow<'static, str> {
        "the client, or a proxy in front of it, sends requests that two readers may read differently".into()
    }
}

/// Checks a parsed request against the bytes that it came in.
pub(super) fn check<B>(head: &[u8], request: &Request<B>) -> Result<(), BadForm> {
    let mut lengths = 0;
    let mut lines = head.split_inclusive(|byte| *byte == b'\n');
    // Empty lines may stand before the request (RFC 9112 §2.2).
    let mut line = lines.find(|line| *line != b"\r\n").unwrap_or_default();
    let target = line.split(|byte| *byte == b' ').nth(1);
    if target.is_none_or(|target| target.contains(&b'#')) {
        return Err(BadForm::Target);
    }
    while line != b"\r\n" {
        if !line.ends_with(b"\r\n") {
            return Err(BadForm::BareLineFeed);
        }
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        lengths += usize::from(name.eq_ignore_ascii_case(CONTENT_LENGTH.as_str().as_bytes()));
        line = lines.next().unwrap_or(b"\r\n");
    }
    let headers = request.headers();
    if headers.contains_key(TRANSFER_ENCODING) {
        return Err(BadForm::TransferEncoding);
    }
    if lengths > 1 {
        return Err(BadForm::Repeated("Content-Length"));
    }
    if headers.get_all(AUTHORIZATION).iter().nth(1).is_some() {
        return Err(BadForm::Repeated("Authorization"));
    }
    let uri = request.uri();
    let is_url = uri
        .scheme_str()
        .is_none_or(|scheme| matches!(scheme, "http" | "https"));
    if *request.method() == Method::CONNECT || !uri.path().starts_with('/') || !is_url {
        return Err(BadForm::Target);
    }
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    if is_read
        && headers
            .get(CONTENT_LENGTH)
            .is_some_and(|length| length != "0")
    {
        return Err(BadForm::BodyUnexpected);
    }
    let mut expectations = headers.get_all(EXPECT).iter();
    if expectations.any(|it| !it.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Err(BadForm::Expectation);
    }
    Ok(())
}

/// Whether a path could mean another one to another reader: dot or empty segments, encoded slashes, dots or percent
/// signs, odd escapes. No route has such a path; a caller with rights is told so, anyone else learns nothing (W5, W6).
pub(super) fn is_ambiguous(path: &str) -> bool {
    let odd_escape = path.split('%').skip(1).any(|rest| {
        let digits = rest
            .get(..2)
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        digits.is_none_or(|byte| byte < 0x20 || matches!(byte, b'/' | b'\\' | b'.' | b'%' | 0x7f))
    });
    let odd_segment = |segment: &str| matches!(segment, "." | ".." | "");
    let mut inner = path.split('/').skip(1).peekable();
    let mut odd = false;
    while let Some(segment) = inner.next() {
        // The last may be empty: a trailing slash.
        odd |= odd_segment(segment) && !(segment.is_empty() && inner.peek().is_none());
    }
    odd || odd_escape || path.contains('\\')
}

/// The bytes of one head, as they came. Wiped when dropped, since a secret may stand in it.
#[derive(Clone, Default)]
pub(super) struct Head(Arc<Mutex<Option<Zeroizing<Vec<u8>>>>>);

impl Head {
    /// What has come so far; from now on nothing is kept.
    pub(super) fn take(&self) -> Zeroizing<Vec<u8>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.take().unwrap_or_default()
    }

    fn keep(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = kept.as_mut() {
            let room = limits::HTTP_HEAD_BYTES_MAX.saturating_sub(kept.len());
            kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    }
}

/// A stream whose head is kept, and which is closed so that the last answer arrives.
pub(super) struct Watched<S> {
    stream: S,
    head: Head,
    drained: usize,
    /// Runs from the moment at which our side is closed.
    linger: Option<Pin<Box<Sleep>>>,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S) -> (Self, Head) {
        let head = Head(Arc::new(Mutex::new(Some(Zeroizing::default()))));
        let watched = Self {
            stream,
            head: head.clone(),
            drained: 0,
            linger: None,
        };
        (watched, head)
    }

    pub(super) fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.head.keep(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    /// Closes our side, then reads what the peer still sends: a socket that is closed with unread bytes is reset, and
    /// takes the answer with it.
    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.linger.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
            self.linger = Some(Box::pin(tokio::time::sleep(limits::HTTP_LINGER)));
        }
        let mut scratch = [0; 4096];
        while self.drained < limits::HTTP_DRAIN_BYTES_MAX {
            if self
                .linger
                .as_mut()
                .is_some_and(|linger| linger.as_mut().poll(context).is_ready())
            {
                break;
            }
            let mut buffer = ReadBuf::new(&mut scratch);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
            match buffer.filled().len() {
                0 => break,
                read => self.drained += read,
            }
        }
        Poll::Ready(Ok(()))
    }
}
