//! A client whose WebSocket is tungstenite's, so that ours is not judged by itself.

use std::collections::VecDeque;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::http::{HeaderName, HeaderValue};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Error, HandshakeError, Message, WebSocket};

use super::gateway::dial;
use super::http::Answer;
use super::{Connect, Device, Gateway, PATIENCE};

/// Larger than any limit of the Gateway, so that it is never this peer who refuses.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What came from the Gateway.
#[derive(Debug)]
pub(crate) enum Received {
    Frame(Value),
    /// A close frame; 1005 if it held no code.
    Close(u16, String),
    /// The connection ended without one.
    Lost(String),
}

/// `error` of a response.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct WireError(pub(crate) Value);

impl WireError {
    pub(crate) fn code(&self) -> &str {
        self.0["code"].as_str().unwrap_or_default()
    }

    pub(crate) fn message(&self) -> &str {
        self.0["message"].as_str().unwrap_or_default()
    }

    /// `details.code`.
    pub(crate) fn detail(&self) -> &str {
        self.0["details"]["code"].as_str().unwrap_or_default()
    }
}

/// One WebSocket to the Gateway, past its challenge.
pub(crate) struct Peer {
    socket: WebSocket<TcpStream>,
    pub(crate) nonce: String,
    pub(crate) challenged_at: u64,
    calls: u64,
    /// Frames that came while another was waited for.
    aside: VecDeque<Value>,
}

impl Peer {
    /// Upgrades and reads the challenge.
    pub(crate) fn open(gateway: &Gateway) -> Self {
        Self::open_with(gateway, &[]).unwrap_or_else(|answer| panic!("no upgrade: {answer:?}"))
    }

    /// The same with further headers; one that the handshake has by itself is replaced. A refusal is the HTTP answer.
    pub(crate) fn open_with(gateway: &Gateway, headers: &[(&str, &str)]) -> Result<Self, Answer> {
        Self::open_at(gateway.port(), headers)
    }

    /// The same to whoever listens on this port.
    pub(crate) fn open_at(port: u16, headers: &[(&str, &str)]) -> Result<Self, Answer> {
        Self::open_on("127.0.0.1", port, headers)
    }

    /// What waits unread in its socket is no more than this, however much the system would give it.
    pub(crate) fn takes_little(&self) {
        rustix::net::sockopt::set_socket_recv_buffer_size(self.socket.get_ref(), 64 * 1024)
            .unwrap();
    }

    /// The same at another address of this host.
    pub(crate) fn open_on(host: &str, port: u16, headers: &[(&str, &str)]) -> Result<Self, Answer> {
        let address = SocketAddr::new(host.parse().unwrap(), port);
        let url = format!("ws://{address}/");
        let mut request = url.into_client_request().unwrap();
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            let value = HeaderValue::from_str(value).unwrap();
            request.headers_mut().insert(name, value);
        }
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let upgraded =
            tungstenite::client::client_with_config(request, dial(address), Some(config));
        let socket = match upgraded {
            Ok((socket, _)) => socket,
            Err(HandshakeError::Failure(Error::Http(response))) => {
                let head = response
                    .headers()
                    .iter()
                    .map(|(name, value)| format!("\r\n{name}: {}", value.to_str().unwrap()))
                    .collect();
                let body = response.body().clone().unwrap_or_default();
                return Err(Answer {
                    status: response.status().as_u16(),
                    head,
                    body: String::from_utf8(body).unwrap(),
                });
            }
            Err(error) => panic!("the upgrade failed: {error}"),
        };
        let mut peer = Self {
            socket,
            nonce: String::new(),
            challenged_at: 0,
            calls: 0,
            aside: VecDeque::new(),
        };
        let challenge = peer.event("connect.challenge");
        peer.nonce = challenge["nonce"].as_str().unwrap().to_owned();
        peer.challenged_at = challenge["ts"].as_u64().unwrap();
        Ok(peer)
    }

    /// An admitted local operator with every scope.
    pub(crate) fn operator(gateway: &Gateway) -> Self {
        let mut peer = Self::open(gateway);
        peer.connect(&Connect::cli()).unwrap();
        peer
    }

    /// An admitted peer and its `hello-ok`.
    pub(crate) fn admitted(gateway: &Gateway, connect: &Connect, device: &Device) -> (Self, Value) {
        let mut peer = Self::open(gateway);
        let hello = peer.connect_as(connect, device).unwrap();
        (peer, hello)
    }

    /// Sends `connect` as it is and returns `hello-ok` or the refusal.
    pub(crate) fn connect(&mut self, connect: &Connect) -> Result<Value, WireError> {
        self.call("connect", &connect.params)
    }

    /// Signs `connect` for this connection's challenge, sends it and returns `hello-ok` or the refusal.
    pub(crate) fn connect_as(
        &mut self,
        connect: &Connect,
        device: &Device,
    ) -> Result<Value, WireError> {
        let signed = connect
            .clone()
            .signed(device, &self.nonce, self.challenged_at);
        self.connect(&signed)
    }

    /// A request and its payload or error; other frames are kept for `event`.
    pub(crate) fn call(&mut self, method: &str, params: &Value) -> Result<Value, WireError> {
        let id = self.request(method, params);
        self.answer(&id)
    }

    /// Sends a request and returns its id.
    pub(crate) fn request(&mut self, method: &str, params: &Value) -> String {
        self.calls += 1;
        let id = format!("call-{}", self.calls);
        self.send(&json!({"type": "req", "id": id, "method": method, "params": params}));
        id
    }

    /// The response to a request that was sent.
    pub(crate) fn answer(&mut self, id: &str) -> Result<Value, WireError> {
        let mut frame = self.frame(|frame| frame["type"] == "res" && frame["id"] == id);
        if frame["ok"] == true {
            Ok(frame["payload"].take())
        } else {
            Err(WireError(frame["error"].take()))
        }
    }

    /// The payload of the next event of this name.
    pub(crate) fn event(&mut self, name: &str) -> Value {
        self.frame(|frame| frame["type"] == "event" && frame["event"] == name)["payload"].take()
    }

    /// Whether such an event came while something else was waited for.
    pub(crate) fn has_heard(&self, name: &str) -> bool {
        self.aside
            .iter()
            .any(|frame| frame["type"] == "event" && frame["event"] == name)
    }

    /// The next frame that is wanted; others are kept.
    pub(crate) fn frame(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        if let Some(at) = self.aside.iter().position(&wanted) {
            return self.aside.remove(at).unwrap();
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "not said: {:?}", self.aside);
            match self.receive() {
                Received::Frame(frame) if wanted(&frame) => return frame,
                Received::Frame(frame) => self.aside.push_back(frame),
                end => panic!("the connection ended: {end:?}; before: {:?}", self.aside),
            }
        }
    }

    /// The next thing that arrives.
    pub(crate) fn receive(&mut self) -> Received {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => {
                    return Received::Frame(serde_json::from_str(text.as_str()).unwrap());
                }
                Ok(Message::Close(None)) => return Received::Close(1005, String::new()),
                Ok(Message::Close(Some(frame))) => {
                    return Received::Close(frame.code.into(), frame.reason.as_str().to_owned());
                }
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                Ok(other) => panic!("unexpected: {other:?}"),
                Err(error) => return Received::Lost(error.to_string()),
            }
        }
    }

    /// Reads to the close frame. Frames before it are kept for `frame`.
    pub(crate) fn closed(&mut self) -> (u16, String) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "not closed: {:?}", self.aside);
            match self.receive() {
                Received::Frame(frame) => self.aside.push_back(frame),
                Received::Close(code, reason) => {
                    // Answers the close, and lets the Gateway end the connection.
                    let _ = self.socket.flush();
                    return (code, reason);
                }
                Received::Lost(why) => panic!("no close frame: {why}"),
            }
        }
    }

    pub(crate) fn send(&mut self, frame: &Value) {
        self.send_text(&frame.to_string());
    }

    pub(crate) fn send_text(&mut self, text: &str) {
        self.send_message(Message::text(text));
    }

    /// The Gateway may have closed already; what it said stays readable.
    pub(crate) fn send_message(&mut self, message: Message) {
        let _ = self.socket.send(message);
    }

    /// Bytes past the WebSocket layer.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        let _ = self.socket.get_mut().write_all(bytes);
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        self.socket.get_ref()
    }

    /// Closes properly and waits until the Gateway has seen it.
    pub(crate) fn leave(mut self) {
        let _ = self.socket.close(None);
        while self.socket.read().is_ok() {}
    }
}
