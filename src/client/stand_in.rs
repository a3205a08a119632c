//! A Gateway for tests: it speaks the opening handshake, the challenge and `hello-ok` over a real socket, and leaves the
//! rest to the test.

use std::path::Path;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};

use super::dial::{Endpoint, WsUrl};
use crate::net::WsIo;
use crate::ws::{self, Limits, handshake::accept_key};

pub(crate) const NONCE: &str = "6f1c9b1e-0000-4000-8000-000000000001";
pub(crate) const TS: u64 = 1_795_225_804_986;

pub(crate) trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Wire for S {}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

pub(crate) struct StandIn {
    listener: Listener,
}

impl StandIn {
    pub(crate) async fn tcp() -> (Self, Endpoint) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let listener = Listener::Tcp(listener);
        (
            Self { listener },
            Endpoint::Tcp(WsUrl::new("127.0.0.1", port)),
        )
    }

    pub(crate) fn unix(path: &Path) -> (Self, Endpoint) {
        let listener = Listener::Unix(UnixListener::bind(path).unwrap());
        (Self { listener }, Endpoint::Admin(path.to_owned()))
    }

    async fn stream(&self) -> Box<dyn Wire> {
        match &self.listener {
            Listener::Tcp(listener) => Box::new(listener.accept().await.unwrap().0),
            Listener::Unix(listener) => Box::new(listener.accept().await.unwrap().0),
        }
    }

    /// Answers one request with these bytes and hangs up; returns the request's head.
    pub(crate) async fn answer(&self, bytes: &[u8]) -> String {
        let mut stream = self.stream().await;
        let head = read_head(&mut stream).await;
        stream.write_all(bytes).await.unwrap();
        head
    }

    /// Upgrades one connection.
    pub(crate) async fn upgrade(&self) -> Session {
        let mut stream = self.stream().await;
        let head = read_head(&mut stream).await;
        let key = head
            .lines()
            .find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "))
            .unwrap();
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n",
            accept_key(key)
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
        let io = WsIo::server(stream, Bytes::new(), Limits::new(1 << 20));
        Session { io, head }
    }

    /// Upgrades, sends the challenge, and returns what `connect` said.
    pub(crate) async fn connect(&self) -> (Session, Value) {
        let mut session = self.upgrade().await;
        session.challenge().await;
        let connect = session.request().await;
        assert_eq!(connect["method"], "connect");
        (session, connect)
    }

    /// Lets one client in.
    pub(crate) async fn admit(&self, tick_ms: u64) -> (Session, Value) {
        let (mut session, connect) = self.connect().await;
        session.admit(&connect, tick_ms, None).await;
        (session, connect)
    }
}

async fn read_head(stream: &mut Box<dyn Wire>) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

pub(crate) struct Session {
    pub(crate) io: WsIo<Box<dyn Wire>>,
    pub(crate) head: String,
}

impl Session {
    pub(crate) async fn send(&mut self, frame: &Value) {
        self.send_text(&frame.to_string()).await;
    }

    pub(crate) async fn send_text(&mut self, text: &str) {
        self.io.queue_text(text.as_bytes());
        self.io.flush().await.unwrap();
    }

    pub(crate) async fn challenge(&mut self) {
        self.send(&json!({"type": "event", "event": "connect.challenge", "payload": {"nonce": NONCE, "ts": TS}}))
            .await;
    }

    pub(crate) async fn admit(&mut self, connect: &Value, tick_ms: u64, token: Option<&str>) {
        let mut auth =
            json!({"role": connect["params"]["role"], "scopes": connect["params"]["scopes"]});
        if let Some(token) = token {
            auth["deviceToken"] = json!(token);
        }
        let hello = json!({
            "type": "hello-ok", "protocol": 4, "server": {"version": "stand-in", "connId": "c1"},
            "auth": auth, "policy": {"maxPayload": 100_000, "maxBufferedBytes": 1, "tickIntervalMs": tick_ms},
        });
        self.respond(connect, &hello).await;
    }

    pub(crate) async fn respond(&mut self, request: &Value, payload: &Value) {
        self.send(&json!({"type": "res", "id": request["id"], "ok": true, "payload": payload}))
            .await;
    }

    pub(crate) async fn refuse(&mut self, request: &Value, error: &Value) {
        self.send(&json!({"type": "res", "id": request["id"], "ok": false, "error": error}))
            .await;
    }

    pub(crate) async fn event(&mut self, name: &str, payload: &Value) {
        self.send(&json!({"type": "event", "event": name, "payload": payload}))
            .await;
    }

    /// The next request.
    pub(crate) async fn request(&mut self) -> Value {
        loop {
            if let ws::Event::Text(text) = self.io.receive().await.unwrap() {
                return serde_json::from_str(&text).unwrap();
            }
        }
    }

    /// The next request of this method; others are answered with an empty object.
    pub(crate) async fn request_of(&mut self, method: &str) -> Value {
        loop {
            let request = self.request().await;
            if request["method"] == method {
                return request;
            }
            self.respond(&request, &json!({})).await;
        }
    }

    /// Closes, and waits for the client to answer.
    pub(crate) async fn close(mut self, code: u16, reason: &str) {
        self.io.close(code, reason);
        while !matches!(
            self.io.receive().await,
            Err(_) | Ok(ws::Event::Close { .. })
        ) {}
    }

    /// The close frame that the client sends.
    pub(crate) async fn closed(mut self) -> Option<u16> {
        loop {
            match self.io.receive().await {
                Ok(ws::Event::Close { code, .. }) => return code,
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }
}
