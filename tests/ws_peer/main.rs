//! Our WebSocket code beside tungstenite's, as reader, as writer and over a socket.

#![allow(clippy::unwrap_used)] // all of it is tests, helpers too

mod peer;

use std::convert::Infallible;
use std::os::unix::net::UnixStream as StdUnixStream;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use portcullis::http::upgrade;
use portcullis::net::WsIo;
use portcullis::ws::frame::{Header, Opcode};
use portcullis::ws::handshake::ClientHandshake;
use portcullis::ws::{Connection, Event, Limits, Role, mask};
use tungstenite::protocol::WebSocket;
use tungstenite::{Bytes as TheirBytes, Message};

/// One frame as a peer might send it, right or nearly so.
#[derive(Clone, Debug)]
struct Sent {
    header: Header,
    /// XORed into the first byte: reserved bits and undefined opcodes.
    first_spoilt: u8,
    /// The length takes a longer form than it needs.
    length_spoilt: bool,
    payload: Vec<u8>,
}

impl Sent {
    fn bytes(mut self) -> Vec<u8> {
        self.header.payload_bytes = self.payload.len() as u64;
        let mut bytes = self.header.encode().as_slice().to_vec();
        bytes[0] ^= self.first_spoilt;
        if self.length_spoilt {
            let short = bytes[1] & 0x7f;
            if short < 126 {
                bytes[1] |= 126;
                bytes.splice(2..2, [0, short]);
            }
        }
        if let Some(key) = self.header.mask {
            mask::apply(&mut self.payload, key);
        }
        bytes.extend(self.payload);
        bytes
    }
}

fn opcodes() -> impl Strategy<Value = Opcode> {
    use Opcode::*;
    prop::sample::select(vec![
        Continuation,
        Continuation,
        Text,
        Binary,
        Close,
        Ping,
        Pong,
    ])
}

fn payloads() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => any::<String>().prop_map(String::into_bytes),
        // Text cut inside a character, or spoilt.
        2 => (any::<String>(), 0usize..8, 0usize..8).prop_map(|(text, from, to)| {
            let bytes = text.into_bytes();
            let from = from.min(bytes.len());
            let to = bytes.len().saturating_sub(to).max(from);
            bytes[from..to].to_vec()
        }),
        2 => prop::collection::vec(any::<u8>(), 0..140),
        2 => (prop_oneof![990u16..1020, 2990u16..3010, 4990u16..5010], "[a-zé]{0,9}").prop_map(
            |(code, reason)| [&code.to_be_bytes(), reason.as_bytes()].concat()
        ),
        1 => prop::collection::vec(any::<u8>(), 65_500..65_600),
        1 => (0usize..80_000).prop_map(|len| vec![b'x'; len]),
    ]
}

fn frames(role: Role) -> impl Strategy<Value = Vec<u8>> {
    let key = any::<[u8; 4]>();
    // The wrong masking is rare.
    let mask = (key, prop::bool::weighted(0.02))
        .prop_map(move |(key, wrong)| ((role == Role::Server) != wrong).then_some(key));
    let spoilt = (
        prop_oneof![19 => Just(0u8), 1 => any::<u8>()],
        prop::bool::weighted(0.02),
    );
    let frame = (
        prop::bool::weighted(0.7),
        opcodes(),
        mask,
        spoilt,
        payloads(),
    );
    let frame = frame.prop_map(
        |(fin, opcode, mask, (first_spoilt, length_spoilt), payload)| {
            let mut payload = payload;
            if opcode.is_control() {
                payload.truncate(126);
            }
            let header = Header {
                fin: fin || opcode.is_control(),
                opcode,
                mask,
                payload_bytes: 0,
            };
            Sent {
                header,
                first_spoilt,
                length_spoilt,
                payload,
            }
            .bytes()
        },
    );
    // A last frame may be cut off.
    (
        prop::collection::vec(frame, 0..7),
        prop_oneof![Just(0), 0usize..200],
    )
        .prop_map(|(frames, cut)| {
            let mut bytes = frames.concat();
            bytes.truncate(bytes.len().saturating_sub(cut));
            bytes
        })
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        Just(vec![]),
        prop::collection::vec(1usize..20, 1..4),
        prop::collection::vec(1usize..9000, 1..4)
    ]
}

fn messages() -> impl Strategy<Value = Vec<Message>> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..126).prop_map(TheirBytes::from);
    let message = prop_oneof![
        any::<String>().prop_map(|text| Message::Text(text.into())),
        bytes().prop_map(Message::Binary),
        prop::sample::select(vec![125, 126, 65_535, 65_536])
            .prop_map(|len| Message::Binary(vec![0xaa; len].into())),
        bytes().prop_map(Message::Ping),
        bytes().prop_map(Message::Pong),
    ];
    prop::collection::vec(message, 0..8)
}

fn event(message: &Message) -> Event {
    match message {
        Message::Text(text) => Event::Text(text.as_str().to_owned()),
        Message::Binary(bytes) => Event::Binary(bytes.to_vec()),
        Message::Ping(bytes) => Event::Ping(bytes.to_vec()),
        Message::Pong(bytes) => Event::Pong(bytes.to_vec()),
        other => unreachable!("{other:?}"),
    }
}

fn other(role: Role) -> Role {
    match role {
        Role::Server => Role::Client,
        Role::Client => Role::Server,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_server_reads_what_tungstenite_reads(bytes in frames(Role::Server), a in cuts(), b in cuts()) {
        peer::compare(Role::Server, &bytes, &a, &b);
    }

    #[test]
    fn a_client_reads_what_tungstenite_reads(bytes in frames(Role::Client), a in cuts(), b in cuts()) {
        peer::compare(Role::Client, &bytes, &a, &b);
    }

    #[test]
    fn what_tungstenite_writes_we_read(messages in messages(), as_client: bool, cuts in cuts()) {
        let writer = if as_client { Role::Client } else { Role::Server };
        let stream = peer::Pieces::new(&[], &[]);
        let mut socket =
            WebSocket::from_raw_socket(stream, peer::their_role(writer), Some(peer::config()));
        for message in &messages {
            socket.write(message.clone()).unwrap();
            socket.flush().unwrap();
        }
        socket.close(None).unwrap();
        let read = peer::ours(other(writer), &socket.get_ref().written, &cuts);
        let closed = Event::Close { code: None, reason: String::new() };
        let expected: Vec<_> = messages.iter().map(event).chain([closed]).collect();
        prop_assert_eq!(read.events, expected);
    }

    #[test]
    fn what_we_write_tungstenite_reads(
        messages in messages(), as_client: bool, keys: [u8; 4], cuts in cuts(),
        code in prop_oneof![1000u16..=1003, 1007u16..=1013, 3000u16..=4999], reason in "\\PC{0,60}",
    ) {
        let writer = if as_client { Role::Client } else { Role::Server };
        let mut connection = Connection::new(writer, Limits::new(0));
        let mut wire = Vec::new();
        for message in &messages {
            let (opcode, payload): (_, &[u8]) = match message {
                Message::Text(text) => (Opcode::Text, text.as_bytes()),
                Message::Binary(bytes) => (Opcode::Binary, bytes),
                Message::Ping(bytes) => (Opcode::Ping, bytes),
                Message::Pong(bytes) => (Opcode::Pong, bytes),
                other => unreachable!("{other:?}"),
            };
            connection.encode(opcode, payload, keys, &mut wire);
        }
        connection.close(Some(code), &reason, keys, &mut wire);
        let read = peer::theirs(other(writer), &wire, &cuts);
        let reason = reason[..reason.floor_char_boundary(123)].to_owned();
        let closed = Event::Close { code: Some(code), reason };
        let expected: Vec<_> = messages.iter().map(event).chain([closed]).collect();
        prop_assert_eq!(read.events, expected);
    }
}

#[test]
fn the_written_differences_are_real() {
    let server = |bytes: &[u8]| {
        peer::compare(Role::Server, bytes, &[], &[]);
        (
            peer::ours(Role::Server, bytes, &[]),
            peer::theirs(Role::Server, bytes, &[]),
        )
    };
    // 1: five bytes in the 16-bit form.
    let (ours, theirs) = server(b"\x81\xfe\x00\x05\0\0\0\0Hello");
    assert!(ours.events.is_empty());
    assert_eq!(theirs.events, [Event::Text("Hello".into())]);
    // 2: invalid UTF-8 in a frame that is not whole; a header's first byte.
    for bytes in [&b"\x81\x89\0\0\0\0a\xff"[..], b"\xf1"] {
        let (ours, theirs) = server(bytes);
        assert!(matches!(ours.end, peer::End::Refused(_)));
        assert_eq!(theirs.end, peer::End::Open);
    }
    // 3: close codes 1005 and 1014.
    let (ours, theirs) = server(b"\x88\x82\0\0\0\0\x03\xed");
    assert!(matches!(ours.end, peer::End::Refused(_)));
    assert_eq!(theirs.end, peer::End::Closed);
    let (ours, theirs) = server(b"\x88\x82\0\0\0\0\x03\xf6");
    assert_eq!(
        ours.events,
        [Event::Close {
            code: Some(1014),
            reason: String::new()
        }]
    );
    assert_ne!(ours.events, theirs.events);
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(future)
}

fn tokio_end(stream: StdUnixStream) -> UnixStream {
    stream.set_nonblocking(true).unwrap();
    UnixStream::from_std(stream).unwrap()
}

#[test]
fn tungstenites_client_talks_to_our_server_through_hyper() {
    let (near, far) = StdUnixStream::pair().unwrap();
    let client = std::thread::spawn(move || {
        let (mut socket, response) = tungstenite::client("ws://localhost/x", far).unwrap();
        assert_eq!(response.status(), 101);
        assert!(response.headers().get("sec-websocket-extensions").is_none());
        for message in [Message::text("grüße"), Message::binary(vec![1; 200_000])] {
            socket.send(message.clone()).unwrap();
            assert_eq!(socket.read().unwrap(), message);
        }
        socket.close(None).unwrap();
        assert!(matches!(socket.read(), Ok(Message::Close(None))));
        assert!(matches!(
            socket.read(),
            Err(tungstenite::Error::ConnectionClosed)
        ));
    });
    block_on(async {
        let service = service_fn(|mut request: Request<Incoming>| async move {
            let accept = upgrade::check(&request).unwrap();
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let taken = upgrade::take_back::<UnixStream>(upgraded.await.unwrap());
                let (stream, leftover) = taken.unwrap();
                let mut ws = WsIo::server(stream, leftover, Limits::new(1 << 20));
                loop {
                    match ws.receive().await.unwrap() {
                        Event::Text(text) => ws.queue_text(text.as_bytes()),
                        Event::Binary(bytes) => ws.queue_binary_owned(bytes),
                        _ => return,
                    }
                }
            });
            Ok::<_, Infallible>(upgrade::accept_response::<Empty<Bytes>>(&accept))
        });
        let stream = TokioIo::new(tokio_end(near));
        upgrade::server()
            .serve_connection(stream, service)
            .with_upgrades()
            .await
            .unwrap();
        tokio::task::spawn_blocking(move || client.join().unwrap())
            .await
            .unwrap();
    });
}

#[test]
fn our_client_talks_to_tungstenites_server() {
    let (near, far) = StdUnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        let mut socket = tungstenite::accept(far).unwrap();
        while let Ok(message) = socket.read() {
            if !message.is_close() && !message.is_ping() {
                socket.send(message).unwrap();
            }
        }
    });
    block_on(async {
        let mut stream = tokio_end(near);
        let handshake = ClientHandshake::new([3; 16]);
        stream
            .write_all(&handshake.request("localhost", "/", &[]).unwrap())
            .await
            .unwrap();
        let mut head = Vec::new();
        let end = loop {
            stream.read_buf(&mut head).await.unwrap();
            if let Some(end) = handshake.response(&head).unwrap() {
                break end;
            }
        };
        let leftover = Bytes::from(head).slice(end..);
        let mut ws = WsIo::client(stream, leftover, Limits::new(1 << 20));
        ws.queue_ping();
        assert_eq!(ws.receive().await.unwrap(), Event::Pong(vec![]));
        let text = "é".repeat(50_000);
        ws.queue_text_owned(text.clone());
        assert_eq!(ws.receive().await.unwrap(), Event::Text(text));
        ws.close(1000, "done");
        let closed = Event::Close {
            code: Some(1000),
            reason: "done".into(),
        };
        assert_eq!(ws.receive().await.unwrap(), closed);
    });
    server.join().unwrap();
}
