use proptest::prelude::*;

use super::*;
use crate::ws::close::{INVALID_PAYLOAD, POLICY, PROTOCOL, TOO_LARGE};

const MIB: usize = 1 << 20;

fn end(role: Role) -> Connection {
    Connection::new(role, Limits::new(MIB))
}

/// All events of a byte stream in pieces of `step`, and the violation that ended it.
fn feed(connection: &mut Connection, bytes: &[u8], step: usize) -> (Vec<Event>, Option<Error>) {
    let mut events = Vec::new();
    for piece in bytes.chunks(step.max(1)) {
        let mut piece = piece.to_vec();
        let mut rest = piece.as_mut_slice();
        while !rest.is_empty() {
            match connection.receive(rest) {
                Ok(Progress { consumed, event }) => {
                    assert!(event.is_some() || consumed == rest.len());
                    assert!(consumed > 0);
                    events.extend(event);
                    rest = &mut rest[consumed..];
                }
                Err(error) => return (events, Some(error)),
            }
        }
    }
    (events, None)
}

/// The only answer of a fresh end of ours to `bytes`, however they are split.
fn answer(role: Role, bytes: &[u8]) -> (Vec<Event>, Option<Error>) {
    let whole = feed(&mut end(role), bytes, bytes.len());
    for step in 1..bytes.len().min(12) {
        assert_eq!(
            feed(&mut end(role), bytes, step),
            whole,
            "in pieces of {step}"
        );
    }
    whole
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    // A server's frame: no mask.
    let mut out = vec![first];
    match payload.len() {
        short @ 0..=125 => out.push(u8::try_from(short).unwrap()),
        long @ 126..=65_535 => {
            out.push(126);
            out.extend(u16::try_from(long).unwrap().to_be_bytes());
        }
        huge => {
            out.push(127);
            out.extend((huge as u64).to_be_bytes());
        }
    }
    out.extend(payload);
    out
}

#[test]
fn rfc_examples() {
    // §5.7, in its order.
    let hello = || vec![Event::Text("Hello".into())];
    let client = |bytes: &[u8]| answer(Role::Client, bytes);
    assert_eq!(client(b"\x81\x05Hello"), (hello(), None));
    let masked = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
    assert_eq!(answer(Role::Server, masked), (hello(), None));
    assert_eq!(client(b"\x01\x03Hel\x80\x02lo"), (hello(), None));
    assert_eq!(
        client(b"\x89\x05Hello"),
        (vec![Event::Ping(b"Hello".to_vec())], None)
    );
    let pong = b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
    assert_eq!(
        answer(Role::Server, pong),
        (vec![Event::Pong(b"Hello".to_vec())], None)
    );
    let bytes = vec![0xab; 256];
    assert_eq!(
        client(&frame(0x82, &bytes)),
        (vec![Event::Binary(bytes)], None)
    );
    let bytes = vec![0xcd; 65_536];
    let sent = frame(0x82, &bytes);
    assert_eq!(sent[..10], *b"\x82\x7f\0\0\0\0\0\x01\0\0");
    assert_eq!(
        feed(&mut end(Role::Client), &sent, 4096),
        (vec![Event::Binary(bytes)], None)
    );
}

#[test]
fn what_we_send_is_what_the_rfc_shows() {
    let mut out = Vec::new();
    assert!(end(Role::Server).encode(Opcode::Text, b"Hello", [9; 4], &mut out));
    assert_eq!(out, b"\x81\x05Hello");
    out.clear();
    let key = [0x37, 0xfa, 0x21, 0x3d];
    assert!(end(Role::Client).encode(Opcode::Text, b"Hello", key, &mut out));
    assert_eq!(out, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58");
}

#[test]
fn control_frames_stand_between_fragments() {
    let bytes = b"\x01\x03Hel\x89\x01?\x00\x00\x8a\x00\x80\x02lo";
    let events = vec![
        Event::Ping(b"?".to_vec()),
        Event::Pong(Vec::new()),
        Event::Text("Hello".into()),
    ];
    assert_eq!(answer(Role::Client, bytes), (events, None));
}

#[test]
fn violations_and_their_close_codes() {
    let rows: &[(&[u8], Error, u16)] = &[
        (b"\xc1\x05Hello", Error::ReservedBits, PROTOCOL),
        (b"\xa1\x05Hello", Error::ReservedBits, PROTOCOL),
        (b"\x91\x05Hello", Error::ReservedBits, PROTOCOL),
        (b"\x83\x00", Error::UnknownOpcode(3), PROTOCOL),
        (b"\x8b\x00", Error::UnknownOpcode(11), PROTOCOL),
        (b"\x81\x85\x01\x02\x03\x04Hello", Error::Masked, PROTOCOL),
        (b"\x09\x00", Error::ControlFragmented, PROTOCOL),
        (b"\x89\x7e\x00\x7e", Error::ControlTooLong, PROTOCOL),
        (b"\x82\x7e\x00\x05Hello", Error::LengthNotMinimal, PROTOCOL),
        (
            b"\x82\x7f\x80\0\0\0\0\0\0\0",
            Error::LengthTooLarge,
            PROTOCOL,
        ),
        (b"\x80\x05Hello", Error::ContinuationUnexpected, PROTOCOL),
        (b"\x01\x01H\x81\x01i", Error::ContinuationExpected, PROTOCOL),
        (b"\x01\x01H\x02\x01i", Error::ContinuationExpected, PROTOCOL),
        (b"\x88\x01\x03", Error::CloseBodyTooShort, PROTOCOL),
        (b"\x88\x02\x03\xed", Error::CloseCodeInvalid(1005), PROTOCOL),
        (
            b"\x88\x04\x03\xe8\xc3\x28",
            Error::CloseReasonNotUtf8,
            INVALID_PAYLOAD,
        ),
        (b"\x81\x02\xc3\x28", Error::TextNotUtf8, INVALID_PAYLOAD),
        (b"\x81\x01\xc3", Error::TextNotUtf8, INVALID_PAYLOAD),
    ];
    for (bytes, error, code) in rows {
        assert_eq!(
            answer(Role::Client, bytes),
            (vec![], Some(*error)),
            "{bytes:x?}"
        );
        assert_eq!(error.close_code(), *code);
    }
    assert_eq!(
        answer(Role::Server, b"\x81\x05Hello"),
        (vec![], Some(Error::Unmasked))
    );
}

#[test]
fn text_fails_in_the_middle_of_a_frame() {
    // 5 of 1000 announced bytes have come.
    let mut bytes = b"\x81\x7e\x03\xe8ok\xed\xa0\x80".to_vec();
    assert_eq!(
        end(Role::Client).receive(&mut bytes),
        Err(Error::TextNotUtf8)
    );
}

#[test]
fn a_character_may_be_cut_by_fragments_and_pings() {
    let bytes = b"\x01\x01\xe2\x89\x00\x00\x01\x82\x80\x01\xac";
    let events = vec![Event::Ping(vec![]), Event::Text("€".into())];
    assert_eq!(answer(Role::Client, bytes), (events, None));
}

#[test]
fn size_is_judged_by_headers() {
    let limits = |bytes| Limits {
        message_bytes_max: bytes,
        ..Limits::new(0)
    };
    let too_large = |got, limit| Err(Error::MessageTooLarge { got, limit });
    let mut connection = Connection::client(limits(1000));
    assert_eq!(
        connection.receive(&mut b"\x82\x7e\x03\xe9".to_vec()),
        too_large(1001, 1000)
    );
    assert_eq!(connection.held_bytes(), 0);
    let huge = b"\x81\x7f\x7f\xff\xff\xff\xff\xff\xff\xff";
    assert_eq!(
        Connection::client(limits(1000)).receive(&mut huge.to_vec()),
        too_large((1 << 63) - 1, 1000)
    );
    assert_eq!(
        Error::MessageTooLarge { got: 2, limit: 1 }.close_code(),
        TOO_LARGE
    );
    // In fragments, the first of which would be allowed; the unfinished character counts.
    let mut connection = Connection::client(limits(3));
    let mut bytes = b"\x01\x03ab\xc3\x80\x01\xa4".to_vec();
    assert_eq!(connection.receive(&mut bytes), too_large(4, 3));
    // Exactly the limit passes, and a raised limit holds from the next frame on.
    let mut connection = Connection::client(limits(3));
    assert_eq!(
        feed(&mut connection, b"\x81\x03abc", 5).0,
        [Event::Text("abc".into())]
    );
    connection.set_message_bytes_max(4);
    assert_eq!(
        feed(&mut connection, b"\x81\x04abcd", 6).0,
        [Event::Text("abcd".into())]
    );
}

#[test]
fn w3_64_kib_and_one_byte_in_a_thousand_fragments() {
    let mut connection = Connection::client(Limits::new(limits::PREAUTH_MESSAGE_BYTES_MAX));
    let mut sent = 0;
    let error = (0..1000).find_map(|index| {
        let mut bytes = frame(if index == 0 { 0x01 } else { 0x00 }, &[b'x'; 66]);
        sent += 66;
        connection.receive(&mut bytes).err()
    });
    assert_eq!(error.unwrap().close_code(), TOO_LARGE);
    assert!(sent > limits::PREAUTH_MESSAGE_BYTES_MAX);
}

#[test]
fn fragments_are_counted() {
    let limits = Limits {
        message_bytes_max: 9,
        fragments_max: 4,
        fragments_empty_max: 2,
    };
    let many = b"\x01\x01a\x00\x01b\x00\x01c\x00\x01d\x80\x01e";
    let (_, error) = feed(&mut Connection::client(limits), many, 100);
    assert_eq!(error, Some(Error::FragmentsTooMany { limit: 4 }));
    let empty = b"\x01\x00\x00\x00\x00\x00";
    let (_, error) = feed(&mut Connection::client(limits), empty, 100);
    assert_eq!(error, Some(Error::FragmentsEmptyTooMany { limit: 2 }));
    assert_eq!(error.unwrap().close_code(), POLICY);
    // The count begins anew with each message; an empty last frame is no waste.
    let fine = b"\x01\x00\x00\x00\x80\x00\x01\x00\x00\x00\x80\x00\x82\x00";
    let (events, error) = feed(&mut Connection::client(limits), fine, 100);
    assert_eq!((events.len(), error), (3, None));
}

#[test]
fn nothing_is_taken_after_the_end() {
    for ending in [&b"\x88\x00"[..], b"\xff"] {
        let mut connection = end(Role::Client);
        let _ = connection.receive(&mut ending.to_vec());
        assert!(connection.input_ended());
        let after = connection.receive(&mut b"\x81\x05Hello".to_vec());
        assert_eq!(
            after,
            Ok(Progress {
                consumed: 7,
                event: None
            })
        );
    }
}

#[test]
fn nothing_is_sent_after_close() {
    let mut connection = end(Role::Server);
    let mut out = Vec::new();
    assert!(connection.close(Some(1001), "bye", [0; 4], &mut out));
    assert_eq!(out, b"\x88\x05\x03\xe9bye");
    assert!(!connection.encode(Opcode::Text, b"late", [0; 4], &mut out));
    assert!(!connection.close(Some(1000), "", [0; 4], &mut out));
    assert_eq!(out.len(), 7);
}

#[test]
fn an_announced_length_takes_no_memory() {
    let mut connection = Connection::client(Limits::new(1 << 30));
    connection
        .receive(&mut b"\x82\x7f\0\0\0\0\x3f\xff\xff\xffx".to_vec())
        .unwrap();
    let Some(Message {
        body: Body::Binary(bytes),
        ..
    }) = &connection.message
    else {
        panic!("no message");
    };
    assert!(bytes.capacity() <= GROWTH_BYTES);
}

/// What one end says in a test.
#[derive(Clone, Debug)]
enum Say {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
}

fn say() -> impl Strategy<Value = Say> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..300);
    prop_oneof![
        any::<String>().prop_map(Say::Text),
        bytes().prop_map(Say::Binary),
        prop::collection::vec(any::<u8>(), 65_500..65_600).prop_map(Say::Binary),
        prop::collection::vec(any::<u8>(), 0..126).prop_map(Say::Ping),
        prop::collection::vec(any::<u8>(), 0..126).prop_map(Say::Pong),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn two_ends_understand_each_other_in_any_split(
        said in prop::collection::vec((say(), any::<[u8; 4]>()), 0..8),
        code in prop_oneof![Just(None), (1000u16..1004).prop_map(Some), (3000u16..5000).prop_map(Some)],
        client_speaks: bool,
        step in 1usize..3000,
    ) {
        let (speaker, listener) =
            if client_speaks { (Role::Client, Role::Server) } else { (Role::Server, Role::Client) };
        let (mut from, mut to) = (end(speaker), end(listener));
        let (mut wire, mut expected) = (Vec::new(), Vec::new());
        for (say, key) in said {
            let (opcode, payload, event) = match say {
                Say::Text(text) => (Opcode::Text, text.clone().into_bytes(), Event::Text(text)),
                Say::Binary(bytes) => (Opcode::Binary, bytes.clone(), Event::Binary(bytes)),
                Say::Ping(bytes) => (Opcode::Ping, bytes.clone(), Event::Ping(bytes)),
                Say::Pong(bytes) => (Opcode::Pong, bytes.clone(), Event::Pong(bytes)),
            };
            from.encode(opcode, &payload, key, &mut wire);
            expected.push(event);
        }
        from.close(code, "", [1, 2, 3, 4], &mut wire);
        expected.push(Event::Close { code, reason: String::new() });
        prop_assert_eq!(feed(&mut to, &wire, step), (expected, None));
    }

    #[test]
    fn noise_has_one_meaning_in_any_split_and_no_message_over_the_limit(
        bytes in noise(), step in 1usize..40, limit in 0usize..200,
    ) {
        for role in [Role::Server, Role::Client] {
            let limits = Limits { message_bytes_max: limit, fragments_max: 5, fragments_empty_max: 2 };
            let mut whole = Connection::new(role, limits);
            let (events, error) = feed(&mut whole, &bytes, bytes.len());
            let mut split = Connection::new(role, limits);
            prop_assert_eq!(feed(&mut split, &bytes, step), (events.clone(), error));
            prop_assert!(whole.held_bytes() <= limit);
            for event in events {
                let len = match event {
                    Event::Text(text) => text.len(),
                    Event::Binary(bytes) => bytes.len(),
                    _ => 0,
                };
                prop_assert!(len <= limit);
            }
        }
    }
}

/// Byte streams that look like frames often enough to get far.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![
        8 => prop::sample::select(vec![0x00u8, 0x01, 0x02, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8a]),
        1 => any::<u8>(),
    ];
    let payload = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..20),
        any::<String>().prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 100..200),
    ];
    let one = (
        first,
        payload,
        prop::option::weighted(0.5, any::<[u8; 4]>()),
    )
        .prop_map(|(first, mut payload, key)| {
            if let Some(key) = key {
                mask::apply(&mut payload, key);
            }
            let mut bytes = frame(first, &payload);
            if let Some(key) = key {
                bytes[1] |= 0x80;
                let at = bytes.len() - payload.len();
                bytes.splice(at..at, key);
            }
            bytes
        });
    prop::collection::vec(one, 0..6).prop_map(|frames| frames.concat())
}
