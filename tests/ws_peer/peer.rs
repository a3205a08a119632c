//! Our codec beside an independent one, tungstenite: whatever a peer sends, in any split, both must make the same of it.
//!
//! The whole list of differences, each of which [`compare`] knows:
//!
//! 1. A payload length that is not in its shortest form: we refuse it (RFC 6455 §5.2: "MUST"), tungstenite reads it.
//! 2. When a refusal comes: we refuse at the first byte that decides, in a header or amid a text; tungstenite when the
//!    frame is whole. Until then it waits; given the frame's rest it must refuse too, and deliver nothing before.
//! 3. A close code that may not be sent (1005, 1006, 1015 …): we refuse it with 1002 (§7.4), tungstenite reports a normal
//!    close with 1002 and the reason "Protocol violation". It also does so for 1014, which has been registered since and which we accept.
//! 4. We bound the number of a message's frames, and of its empty ones; tungstenite does not. (Not reached here.)
//!
//! Which violation is named when a frame holds several is not compared.

use std::io::{self, Read, Write};

use portcullis::ws::{Connection, Error, Event, Limits, Role};
use tungstenite::protocol::{self, WebSocket, WebSocketConfig};

/// Messages up to this size, so that streams of the usual test size can exceed it.
pub(crate) const MESSAGE_BYTES_MAX: usize = 70_000;

#[derive(PartialEq, Eq, Debug)]
pub(crate) enum End<E> {
    /// More input is awaited.
    Open,
    /// The peer's close frame was the last event.
    Closed,
    Refused(E),
}

/// All that a codec made of a stream.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Reading<E> {
    pub(crate) events: Vec<Event>,
    pub(crate) end: End<E>,
}

/// Cuts `bytes` into pieces whose sizes repeat `cuts`.
fn pieces<'a>(mut bytes: &'a [u8], cuts: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut sizes = cuts.iter().copied().filter(|cut| *cut > 0).cycle();
    std::iter::from_fn(move || {
        let size = sizes.next().unwrap_or(usize::MAX).min(bytes.len());
        let (piece, rest) = bytes.split_at(size);
        bytes = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

pub(crate) fn ours(role: Role, bytes: &[u8], cuts: &[usize]) -> Reading<Error> {
    let mut limits = Limits::new(MESSAGE_BYTES_MAX);
    limits.fragments_empty_max = u32::MAX;
    let mut connection = Connection::new(role, limits);
    let mut events = Vec::new();
    for piece in pieces(bytes, cuts) {
        let mut piece = piece.to_vec();
        let mut rest = piece.as_mut_slice();
        while !rest.is_empty() {
            let progress = match connection.receive(rest) {
                Ok(progress) => progress,
                Err(error) => {
                    return Reading {
                        events,
                        end: End::Refused(error),
                    };
                }
            };
            assert!(progress.consumed == rest.len() || progress.event.is_some());
            assert!(connection.held_bytes() <= MESSAGE_BYTES_MAX);
            let closed = matches!(progress.event, Some(Event::Close { .. }));
            events.extend(progress.event);
            if closed {
                return Reading {
                    events,
                    end: End::Closed,
                };
            }
            rest = &mut rest[progress.consumed..];
        }
    }
    Reading {
        events,
        end: End::Open,
    }
}

/// A stream that yields pieces, then blocks; what is written to it is kept.
pub(crate) struct Pieces<'a> {
    rest: Box<dyn Iterator<Item = &'a [u8]> + 'a>,
    now: &'a [u8],
    pub(crate) written: Vec<u8>,
}

impl<'a> Pieces<'a> {
    pub(crate) fn new(bytes: &'a [u8], cuts: &'a [usize]) -> Self {
        Self {
            rest: Box::new(pieces(bytes, cuts)),
            now: &[],
            written: Vec::new(),
        }
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        if self.now.is_empty() {
            self.now = self.rest.next().ok_or(io::ErrorKind::WouldBlock)?;
        }
        self.now.read(space)
    }
}

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.written.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
        .read_buffer_size(4096)
}

pub(crate) fn their_role(role: Role) -> protocol::Role {
    match role {
        Role::Server => protocol::Role::Server,
        Role::Client => protocol::Role::Client,
    }
}

pub(crate) fn theirs(role: Role, bytes: &[u8], cuts: &[usize]) -> Reading<String> {
    let stream = Pieces::new(bytes, cuts);
    let mut socket = WebSocket::from_raw_socket(stream, their_role(role), Some(config()));
    let mut events = Vec::new();
    loop {
        let message = match socket.read() {
            Ok(message) => message,
            Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                return Reading {
                    events,
                    end: End::Open,
                };
            }
            Err(error) => {
                return Reading {
                    events,
                    end: End::Refused(error.to_string()),
                };
            }
        };
        events.push(match message {
            tungstenite::Message::Text(text) => Event::Text(text.as_str().to_owned()),
            tungstenite::Message::Binary(bytes) => Event::Binary(bytes.to_vec()),
            tungstenite::Message::Ping(bytes) => Event::Ping(bytes.to_vec()),
            tungstenite::Message::Pong(bytes) => Event::Pong(bytes.to_vec()),
            tungstenite::Message::Close(close) => {
                events.push(Event::Close {
                    code: close.as_ref().map(|close| close.code.into()),
                    reason: close.map_or(String::new(), |close| close.reason.as_str().to_owned()),
                });
                return Reading {
                    events,
                    end: End::Closed,
                };
            }
            tungstenite::Message::Frame(_) => unreachable!("never read"),
        });
    }
}

/// What tungstenite makes of a close code that it does not allow.
fn rewritten() -> Event {
    Event::Close {
        code: Some(1002),
        reason: "Protocol violation".to_owned(),
    }
}

/// Panics unless both codecs agree on `bytes`, cut as each list says.
pub(crate) fn compare(role: Role, bytes: &[u8], our_cuts: &[usize], their_cuts: &[usize]) {
    let ours = ours(role, bytes, our_cuts);
    let mut theirs = theirs(role, bytes, their_cuts);
    match &ours.end {
        End::Open => assert!(
            theirs.end == End::Open && ours.events == theirs.events,
            "{ours:?} {theirs:?}"
        ),
        End::Closed => {
            // Difference 3, for 1014.
            if matches!(
                ours.events.last(),
                Some(Event::Close {
                    code: Some(1014),
                    ..
                })
            ) {
                assert_eq!(theirs.events.pop(), Some(rewritten()));
                theirs.events.extend(ours.events.last().cloned());
            }
            assert!(
                theirs.end == End::Closed && ours.events == theirs.events,
                "{ours:?} {theirs:?}"
            );
        }
        // Difference 1. A control frame's length in a longer form is refused for that form, whatever it says.
        End::Refused(Error::LengthNotMinimal | Error::ControlTooLong) => {
            assert!(
                theirs.events.starts_with(&ours.events),
                "{ours:?} {theirs:?}"
            );
        }
        End::Refused(error) => {
            if theirs.end == End::Open {
                // Difference 2: give it the rest of any frame that it may be waiting for.
                let rest = vec![0; MESSAGE_BYTES_MAX + 14];
                theirs = self::theirs(role, &[bytes, &rest].concat(), their_cuts);
            }
            // Difference 3.
            if matches!(error, Error::CloseCodeInvalid(_)) && theirs.end == End::Closed {
                assert_eq!(theirs.events.pop(), Some(rewritten()), "{ours:?}");
            } else {
                assert!(matches!(theirs.end, End::Refused(_)), "{ours:?} {theirs:?}");
            }
            assert_eq!(ours.events, theirs.events, "{error}");
        }
    }
}
