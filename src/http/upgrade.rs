//! From HTTP to WebSocket: hyper reads the request and writes the 101, then the socket is taken back from it, so that
//! nothing stands between the socket and the codec.
//!
//! In: a request that hyper has parsed within the bounds of [`server`]. Out: the 101 or the refusal, and then the stream
//! with the bytes that arrived early. Attacker controls: the whole request. Bounds: `limits::HTTP_HEAD_BYTES_MAX`,
//! `HTTP_HEADERS_MAX`, `HANDSHAKE_TIMEOUT`. Errors: `ws::handshake::RequestError`, and [`TakeBackError`] for our own.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::base::{Refusal, limits};
use crate::ws::handshake::{self, Accept, RequestError, RequestLine};

/// hyper's HTTP/1 server with every bound set, since it calls its defaults unstable.
///
/// Serve with `.serve_connection(TokioIo::new(stream), service).with_upgrades()`.
pub fn server() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HANDSHAKE_TIMEOUT)
        .max_buf_size(limits::HTTP_HEAD_BYTES_MAX)
        .max_headers(limits::HTTP_HEADERS_MAX)
        .half_close(false)
        .keep_alive(true)
        .pipeline_flush(false);
    builder
}

/// Whether a request asks for a WebSocket, and so is to be answered by [`check`].
pub fn is_asked_for<B>(request: &Request<B>) -> bool {
    handshake::is_asked_for(pairs(request))
}

/// The server's check of the opening handshake (RFC 6455 §4.2.1).
pub fn check<B>(request: &Request<B>) -> Result<Accept, RequestError> {
    let line = RequestLine {
        method: request.method().as_str(),
        http_1_1: request.version() == Version::HTTP_11,
    };
    handshake::check_request(line, pairs(request))
}

/// The 101. Call [`hyper::upgrade::on`] with the request before returning it.
pub fn accept_response<B: Default>(accept: &Accept) -> Response<B> {
    response(StatusCode::SWITCHING_PROTOCOLS, &accept.headers())
}

/// The header lines that a refusal must have, on the answer that explains it.
pub fn explained<B>(error: RequestError, answer: Response<B>) -> Response<B> {
    with_lines(answer, error.headers())
}

impl Refusal for RequestError {
    fn code(&self) -> &'static str {
        "invalid_request"
    }

    fn http_status(&self) -> u16 {
        Self::http_status(*self)
    }

    fn log_field(&self) -> &'static str {
        match self {
            Self::MethodNotGet => "upgrade_method",
            Self::VersionNotHttp11 => "upgrade_http_version",
            Self::UpgradeMissing | Self::ConnectionMissing => "upgrade_header_missing",
            Self::VersionUnsupported => "upgrade_version",
            Self::KeyMissing | Self::KeyInvalid => "upgrade_key",
            Self::Duplicate(_) => "upgrade_header_repeated",
            Self::BodyAnnounced => "upgrade_body",
        }
    }

    fn public(&self) -> Cow<'static, str> {
        self.to_string().into()
    }

    fn remedy(&self) -> Cow<'static, str> {
        "the client must send the handshake of RFC 6455 §4.1, and a proxy pass its Upgrade and Connection headers on".into()
    }
}

/// hyper did not hold the stream that it was given. Never seen; told apart from a panic all the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TakeBackError;

impl fmt::Display for TakeBackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the upgraded stream is not the one that was served")
    }
}

impl std::error::Error for TakeBackError {}

/// Takes the stream back from hyper, with the bytes that arrived behind the request. `S` is the type that was served.
pub fn take_back<S>(upgraded: Upgraded) -> Result<(S, Bytes), TakeBackError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let parts = upgraded
        .downcast::<TokioIo<S>>()
        .map_err(|_| TakeBackError)?;
    Ok((parts.io.into_inner(), parts.read_buf))
}

fn pairs<B>(request: &Request<B>) -> impl Iterator<Item = (&str, &[u8])> {
    request
        .headers()
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
}

fn response<B: Default>(status: StatusCode, headers: &[(&'static str, &str)]) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = status;
    with_lines(response, headers)
}

fn with_lines<B>(mut response: Response<B>, headers: &[(&'static str, &str)]) -> Response<B> {
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            response
                .headers_mut()
                .insert(HeaderName::from_static(name), value);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::Empty;
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::sync::mpsc;

    use super::*;
    use crate::net::WsIo;
    use crate::ws::handshake::ClientHandshake;
    use crate::ws::{Event, Limits};

    /// Serves one connection; returns all that it answered and what was taken back.
    async fn serve(bytes: &[u8]) -> (String, Option<Event>) {
        let (near, mut far) = duplex(1 << 20);
        far.write_all(bytes).await.unwrap();
        let (send, mut taken) = mpsc::channel(1);
        let service = service_fn(move |mut request: Request<Incoming>| {
            let send = send.clone();
            async move {
                let accept = match check(&request) {
                    Ok(accept) => accept,
                    Err(error) => {
                        let status = StatusCode::from_u16(error.http_status()).unwrap();
                        return Ok(response(status, error.headers()));
                    }
                };
                let upgrade = hyper::upgrade::on(&mut request);
                tokio::spawn(async move {
                    let (stream, leftover) =
                        take_back::<tokio::io::DuplexStream>(upgrade.await.unwrap()).unwrap();
                    let mut ws = WsIo::server(stream, leftover, Limits::new(1000));
                    send.send(ws.receive().await.unwrap()).await.unwrap();
                });
                Ok::<_, Infallible>(accept_response::<Empty<Bytes>>(&accept))
            }
        });
        let connection = server()
            .serve_connection(TokioIo::new(near), service)
            .with_upgrades();
        let serving = tokio::spawn(connection);
        let mut answer = Vec::new();
        far.read_to_end(&mut answer).await.unwrap();
        let _ = serving.await;
        (String::from_utf8(answer).unwrap(), taken.recv().await)
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            // hyper keeps a refused connection open until the next head is late.
            tokio::time::pause();
            future.await
        })
    }

    #[test]
    fn frames_sent_with_the_request_are_not_lost() {
        let handshake = ClientHandshake::new([7; 16]);
        let mut bytes = handshake.request("h", "/", &[]).unwrap();
        bytes.extend(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58");
        let (answer, event) = block_on(serve(&bytes));
        assert!(
            matches!(handshake.response(answer.as_bytes()), Ok(Some(_))),
            "{answer}"
        );
        assert_eq!(event, Some(Event::Text("Hello".into())));
    }

    #[test]
    fn refusals_reach_the_wire() {
        let (answer, _) = block_on(serve(
            b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 8\r\n\r\n",
        ));
        assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
        assert!(answer.contains("sec-websocket-version: 13\r\n"), "{answer}");
        let (answer, _) = block_on(serve(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }

    #[test]
    fn a_head_over_our_bounds_is_refused() {
        let many = "A: b\r\n".repeat(limits::HTTP_HEADERS_MAX + 1);
        let (answer, _) = block_on(serve(format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes()));
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        let long = "x".repeat(limits::HTTP_HEAD_BYTES_MAX);
        let (answer, _) = block_on(serve(
            format!("GET / HTTP/1.1\r\nA: {long}\r\n\r\n").as_bytes(),
        ));
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }

    #[test]
    fn w2_a_slow_head_is_cut_off() {
        block_on(async {
            let (near, mut far) = duplex(1000);
            let service = service_fn(|request: Request<Incoming>| async move {
                drop(request);
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            });
            let serving = tokio::spawn(server().serve_connection(TokioIo::new(near), service));
            far.write_all(b"GET / HT").await.unwrap();
            let began = tokio::time::Instant::now();
            far.read_to_end(&mut Vec::new()).await.unwrap();
            assert!(serving.await.unwrap().is_err());
            assert_eq!(
                began.elapsed().as_secs(),
                limits::HANDSHAKE_TIMEOUT.as_secs()
            );
        });
    }
}
