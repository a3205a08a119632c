//! The load's end of a connection: frames made beforehand, and no more work for each than finding where it ends.

use base64::Engine as _;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use portcullis::auth::device::{PublicKey, Signed, sign};
use portcullis::auth::scope::Role;
use portcullis::ws::frame::Opcode;
use portcullis::ws::{Connection, Limits};

pub(crate) const PASSWORD: &str = "bench-password-of-some-length-0123456789";
const TEXT: u8 = 0x81;

/// A client's text frame. Its mask is zero, so that ids can be written into the frame where they stand.
pub(crate) fn frame(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    Connection::client(Limits::new(0)).encode(Opcode::Text, text.as_bytes(), [0; 4], &mut out);
    out
}

/// A device that can sign.
pub(crate) struct Device {
    key: Ed25519KeyPair,
    pub(crate) id: String,
    public_key: PublicKey,
}

impl Device {
    pub(crate) fn new() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("randomness");
        let key = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).expect("a key just made");
        let bytes: [u8; 32] = key.public_key().as_ref().try_into().expect("32 bytes");
        let public_key = PublicKey::from_bytes(bytes);
        Self {
            id: public_key.device_id().to_string(),
            key,
            public_key,
        }
    }

    fn proof(&self, role: Role, challenge: &Value, client: &Value, scopes: &[String]) -> Value {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (nonce, ts) = (
            text(&challenge["nonce"]),
            challenge["ts"].as_u64().unwrap_or(0),
        );
        let signed = Signed {
            device_id: &self.id,
            client_id: &text(&client["id"]),
            client_mode: &text(&client["mode"]),
            role,
            scopes,
            signed_at_ms: ts,
            token: "",
            nonce: &nonce,
            platform: client["platform"].as_str(),
            device_family: None,
        };
        json!({
            "id": self.id, "publicKey": self.public_key.to_wire(), "nonce": nonce, "signedAt": ts,
            "signature": sign(&self.key, &signed.v3()),
        })
    }
}

/// One WebSocket client.
pub(crate) struct Peer {
    stream: TcpStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Peer {
    /// Connects and is admitted, with the shared password and, if it has one, a device.
    pub(crate) async fn connect(port: u16, role: Role, device: Option<&Device>) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port))
            .await
            .expect("the gateway");
        stream.set_nodelay(true).expect("an option of TCP");
        let mut peer = Self {
            stream,
            buffer: Vec::new(),
            start: 0,
            end: 0,
        };
        let key = base64::engine::general_purpose::STANDARD.encode([7; 16]);
        let head = format!(
            "GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        peer.write(head.as_bytes()).await;
        peer.skip_head().await;
        let challenge: Value = serde_json::from_slice(peer.message().await).expect("JSON");
        let connect = connect_params(role, device, &challenge["payload"]);
        let request =
            json!({"type": "req", "id": "connect", "method": "connect", "params": connect});
        let hello = peer.call(&request).await;
        assert_eq!(hello["ok"], true, "connect: {}", hello["error"]);
        // An idle peer holds nothing, so that ten thousand of them fit beside the Gateway.
        peer.buffer = Vec::new();
        peer.start = 0;
        peer.end = 0;
        peer
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.stream
            .write_all(bytes)
            .await
            .expect("a gateway that reads");
    }

    /// Sends one request and returns its answer.
    pub(crate) async fn call(&mut self, request: &Value) -> Value {
        self.write(&frame(&request.to_string())).await;
        loop {
            let answer: Value = serde_json::from_slice(self.message().await).expect("JSON");
            if answer["type"] == "res" && answer["id"] == request["id"] {
                return answer;
            }
        }
    }

    /// The next text message; control frames are passed over.
    pub(crate) async fn message(&mut self) -> &[u8] {
        loop {
            let (first, payload_start, frame_bytes) = loop {
                match header(&self.buffer[self.start..self.end]) {
                    Some((first, header, frame)) if frame <= self.end - self.start => {
                        break (first, self.start + header, frame);
                    }
                    Some((_, _, frame)) => self.fill(frame).await,
                    None => self.fill(16).await,
                }
            };
            let end = self.start + frame_bytes;
            self.start = end;
            if first == TEXT {
                return &self.buffer[payload_start..end];
            }
        }
    }

    async fn fill(&mut self, frame_bytes: usize) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.start + frame_bytes > self.buffer.len() || self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            let room = frame_bytes.max(4096) + 4096;
            if self.buffer.len() < room {
                self.buffer.resize(room, 0);
            }
        }
        match self.stream.read(&mut self.buffer[self.end..]).await {
            Ok(count @ 1..) => self.end += count,
            ended => panic!("the gateway hung up: {ended:?}"),
        }
    }

    async fn skip_head(&mut self) {
        loop {
            self.fill(1024).await;
            let head = &self.buffer[..self.end];
            if let Some(at) = head.windows(4).position(|four| four == b"\r\n\r\n") {
                assert!(head.starts_with(b"HTTP/1.1 101 "), "no upgrade");
                self.start = at + 4;
                return;
            }
        }
    }
}

/// First byte, bytes of the header, bytes of the frame.
fn header(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let (first, short) = (*bytes.first()?, *bytes.get(1)?);
    let (header, payload) = match short {
        126 => (
            4,
            u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)),
        ),
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)),
        short => (2, u64::from(short)),
    };
    Some((first, header, header + usize::try_from(payload).ok()?))
}

fn connect_params(role: Role, device: Option<&Device>, challenge: &Value) -> Value {
    let scopes: Vec<String> = match role {
        Role::Operator => ["operator.read", "operator.write", "operator.pairing"]
            .map(str::to_owned)
            .to_vec(),
        Role::Node => Vec::new(),
    };
    let client = match role {
        Role::Operator => {
            json!({"id": "gateway-client", "mode": "backend", "version": "1", "platform": "linux"})
        }
        Role::Node => {
            json!({"id": "node-host", "mode": "node", "version": "1", "platform": "ios"})
        }
    };
    let mut params = json!({
        "minProtocol": 4, "maxProtocol": 4, "client": client, "role": role.as_str(), "scopes": scopes,
        "auth": {"password": PASSWORD},
    });
    if role == Role::Node {
        params["caps"] = json!(["device"]);
        params["commands"] = json!(["device.info", "device.status"]);
    }
    if let Some(device) = device {
        params["device"] = device.proof(role, challenge, &params["client"], &scopes);
    }
    params
}
