//! One connection's state: frames to messages, and messages to frames (RFC 6455 §5.4 to §5.6, §7).
//!
//! In: the peer's bytes, in any split, and what we want to say. Out: [`Event`]s, and frames in a buffer of the caller's.
//! Attacker controls: every byte received. Bounds: [`Limits`]; a message's buffer never holds more than
//! `message_bytes_max`, and grows with the bytes that arrive, not with those announced.
//! Errors: [`Error`]; after one, and after the peer's close frame, all further input is ignored.

use super::frame::{self, CONTROL_BYTES_MAX, Encoded, HEADER_BYTES_MAX, Header, Opcode};
use super::mask::{self, Key};
use super::utf8::Unfinished;
use super::{Error, Role, close};
use crate::base::limits;

/// A message's buffer is enlarged by at least this much, so that a large message takes few reallocations.
const GROWTH_BYTES: usize = 64 * 1024;
/// Payload is unmasked, checked and stored in blocks that stay in the first-level cache between the three.
const BLOCK_BYTES: usize = 8 * 1024;

/// What one message may cost us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Payload of one message, in bytes.
    pub message_bytes_max: usize,
    /// Frames of one message.
    pub fragments_max: u32,
    /// Frames of one message that carry nothing and do not end it.
    pub fragments_empty_max: u32,
}

impl Limits {
    /// The usual bounds on fragments, with a message size of the caller's.
    pub fn new(message_bytes_max: usize) -> Self {
        Self {
            message_bytes_max,
            fragments_max: limits::FRAGMENTS_MAX,
            fragments_empty_max: limits::FRAGMENTS_EMPTY_MAX,
        }
    }
}

/// Something whole that the peer said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    Text(String),
    Binary(Vec<u8>),
    /// To be answered by a pong with the same payload (§5.5.2).
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    /// The peer sends nothing more; to be answered by a close frame unless ours went first (§5.5.1).
    Close {
        code: Option<u16>,
        reason: String,
    },
}

/// What [`Connection::receive`] made of its input.
#[derive(PartialEq, Eq, Debug)]
pub struct Progress {
    /// Bytes taken from the front of the input.
    pub consumed: usize,
    /// `None`: all input is consumed and more is needed.
    pub event: Option<Event>,
}

/// One end of one WebSocket connection.
pub struct Connection {
    role: Role,
    limits: Limits,
    /// The beginning of a header whose rest has not arrived.
    header: [u8; HEADER_BYTES_MAX],
    header_len: usize,
    frame: Option<Frame>,
    message: Option<Message>,
    control: [u8; CONTROL_BYTES_MAX],
    control_len: usize,
    /// A violation or the peer's close frame was seen.
    input_ended: bool,
    close_sent: bool,
}

/// The frame whose payload is arriving.
struct Frame {
    opcode: Opcode,
    fin: bool,
    mask: Option<Key>,
    remaining: u64,
}

/// The data message whose frames are arriving.
struct Message {
    body: Body,
    fragments: u32,
    fragments_empty: u32,
}

enum Body {
    Text(String, Unfinished),
    Binary(Vec<u8>),
}

impl Connection {
    pub fn server(limits: Limits) -> Self {
        Self::new(Role::Server, limits)
    }

    pub fn client(limits: Limits) -> Self {
        Self::new(Role::Client, limits)
    }

    pub fn new(role: Role, limits: Limits) -> Self {
        Self {
            role,
            limits,
            header: [0; HEADER_BYTES_MAX],
            header_len: 0,
            frame: None,
            message: None,
            control: [0; CONTROL_BYTES_MAX],
            control_len: 0,
            input_ended: false,
            close_sent: false,
        }
    }

    pub fn role(&self) -> Role {
        self.role
    }

    /// Changes the size limit, from the next frame on.
    pub fn set_message_bytes_max(&mut self, message_bytes_max: usize) {
        self.limits.message_bytes_max = message_bytes_max;
    }

    /// Whether our close frame has been encoded; nothing may follow it (§5.5.1).
    pub fn close_sent(&self) -> bool {
        self.close_sent
    }

    /// Whether the peer's close frame or a violation has been seen, so that further input is ignored.
    pub fn input_ended(&self) -> bool {
        self.input_ended
    }

    /// Bytes of an unfinished message that are being held.
    pub fn held_bytes(&self) -> usize {
        self.message
            .as_ref()
            .map_or(0, |message| message.body.len())
    }

    /// Takes bytes from the front of `input`, up to the end of the first event. Payload is unmasked in place.
    pub fn receive(&mut self, input: &mut [u8]) -> Result<Progress, Error> {
        let input_bytes = input.len();
        if self.input_ended {
            return Ok(Progress {
                consumed: input_bytes,
                event: None,
            });
        }
        let result = self.take(input);
        match result {
            Ok((unread, event)) => {
                self.input_ended = matches!(event, Some(Event::Close { .. }));
                Ok(Progress {
                    consumed: input_bytes.saturating_sub(unread),
                    event,
                })
            }
            Err(error) => {
                self.input_ended = true;
                self.frame = None;
                self.message = None;
                Err(error)
            }
        }
    }

    /// Returns how much of `input` stays unread, and the first event.
    fn take(&mut self, input: &mut [u8]) -> Result<(usize, Option<Event>), Error> {
        let mut rest = input;
        loop {
            if self.frame.is_none() {
                let Some(header_bytes) = self.take_header(rest)? else {
                    return Ok((0, None));
                };
                rest = rest.get_mut(header_bytes..).unwrap_or_default();
            }
            let Some(frame) = &mut self.frame else {
                return Ok((rest.len(), None));
            };
            let now_bytes = usize::try_from(frame.remaining)
                .unwrap_or(usize::MAX)
                .min(rest.len());
            let (mut now, later) = rest.split_at_mut(now_bytes);
            rest = later;
            while !now.is_empty() {
                let (block, after) = now.split_at_mut(now.len().min(BLOCK_BYTES));
                now = after;
                if let Some(key) = &mut frame.mask {
                    *key = mask::apply(block, *key);
                }
                if frame.opcode.is_control() {
                    // `frame::parse` refuses control frames over the array's size.
                    let free = self.control.iter_mut().skip(self.control_len);
                    free.zip(block.iter())
                        .for_each(|(slot, byte)| *slot = *byte);
                    self.control_len = self.control_len.saturating_add(block.len());
                } else if let Some(message) = &mut self.message {
                    message.body.append(block, frame.remaining)?;
                }
                frame.remaining = frame.remaining.saturating_sub(block.len() as u64);
            }
            if frame.remaining > 0 {
                return Ok((0, None));
            }
            let (opcode, fin) = (frame.opcode, frame.fin);
            self.frame = None;
            let event = if opcode.is_control() {
                Some(self.finish_control(opcode)?)
            } else if fin {
                self.finish_message()?
            } else {
                None
            };
            if event.is_some() {
                return Ok((rest.len(), event));
            }
        }
    }

    /// Reads a header from the front of `input` after what earlier input left; returns how much of `input` it took,
    /// or `None` if it took all of it and needs more.
    fn take_header(&mut self, input: &[u8]) -> Result<Option<usize>, Error> {
        if self.header_len == 0 {
            if let Some((header, header_bytes)) = frame::parse(input, self.role)? {
                self.begin_frame(&header)?;
                return Ok(Some(header_bytes));
            }
            // Short, and so shorter than the array.
            self.header
                .iter_mut()
                .zip(input)
                .for_each(|(slot, byte)| *slot = *byte);
            self.header_len = input.len();
            return Ok(None);
        }
        let mut taken = 0usize;
        let mut unread = input.iter();
        loop {
            let so_far = self.header.get(..self.header_len).unwrap_or_default();
            if let Some((header, _)) = frame::parse(so_far, self.role)? {
                self.header_len = 0;
                self.begin_frame(&header)?;
                return Ok(Some(taken));
            }
            let slot = self.header.get_mut(self.header_len);
            let (Some(slot), Some(byte)) = (slot, unread.next()) else {
                return Ok(None);
            };
            *slot = *byte;
            self.header_len = self.header_len.saturating_add(1);
            taken = taken.saturating_add(1);
        }
    }

    /// Judges a frame by its header alone, before any of its payload is stored.
    fn begin_frame(&mut self, header: &Header) -> Result<(), Error> {
        match (header.opcode, &self.message) {
            (Opcode::Text | Opcode::Binary, Some(_)) => return Err(Error::ContinuationExpected),
            (Opcode::Continuation, None) => return Err(Error::ContinuationUnexpected),
            _ => {}
        }
        if header.opcode.is_control() {
            self.control_len = 0;
        } else {
            let got = (self.held_bytes() as u64).saturating_add(header.payload_bytes);
            if got > self.limits.message_bytes_max as u64 {
                return Err(Error::MessageTooLarge {
                    got,
                    limit: self.limits.message_bytes_max,
                });
            }
            let message = self.message.get_or_insert_with(|| Message {
                body: match header.opcode {
                    Opcode::Text => Body::Text(String::new(), Unfinished::default()),
                    _ => Body::Binary(Vec::new()),
                },
                fragments: 0,
                fragments_empty: 0,
            });
            message.count(header, &self.limits)?;
        }
        self.frame = Some(Frame {
            opcode: header.opcode,
            fin: header.fin,
            mask: header.mask,
            remaining: header.payload_bytes,
        });
        Ok(())
    }

    fn finish_control(&self, opcode: Opcode) -> Result<Event, Error> {
        let payload = self.control.get(..self.control_len).unwrap_or_default();
        match opcode {
            Opcode::Ping => Ok(Event::Ping(payload.to_vec())),
            Opcode::Pong => Ok(Event::Pong(payload.to_vec())),
            _ => {
                let (code, reason) = close::parse(payload)?;
                Ok(Event::Close { code, reason })
            }
        }
    }

    fn finish_message(&mut self) -> Result<Option<Event>, Error> {
        match self.message.take().map(|message| message.body) {
            Some(Body::Text(_, unfinished)) if !unfinished.is_empty() => Err(Error::TextNotUtf8),
            Some(Body::Text(text, _)) => Ok(Some(Event::Text(text))),
            Some(Body::Binary(bytes)) => Ok(Some(Event::Binary(bytes))),
            None => Ok(None),
        }
    }

    /// The header of one unfragmented frame of ours, or `None` if nothing may be sent any more.
    ///
    /// The payload follows it, in the client's role masked with `key` from its first byte.
    pub fn header(&self, opcode: Opcode, payload_bytes: usize, key: Key) -> Option<Encoded> {
        if self.close_sent {
            return None;
        }
        let mask = (self.role == Role::Client).then_some(key);
        let payload_bytes = payload_bytes as u64;
        Some(
            Header {
                fin: true,
                opcode,
                mask,
                payload_bytes,
            }
            .encode(),
        )
    }

    /// Encodes a whole message or control frame into `out`; returns whether it may still be sent.
    ///
    /// `payload` is UTF-8 if `opcode` is text, and at most 125 bytes (more are cut) if it is a ping or pong.
    pub fn encode(&self, opcode: Opcode, payload: &[u8], key: Key, out: &mut Vec<u8>) -> bool {
        let payload = if opcode.is_control() {
            payload.get(..CONTROL_BYTES_MAX).unwrap_or(payload)
        } else {
            payload
        };
        let Some(header) = self.header(opcode, payload.len(), key) else {
            return false;
        };
        out.extend_from_slice(header.as_slice());
        let start = out.len();
        out.extend_from_slice(payload);
        if self.role == Role::Client {
            mask::apply(out.get_mut(start..).unwrap_or_default(), key);
        }
        true
    }

    /// Encodes our close frame into `out`, once: later calls do nothing and return `false`.
    pub fn close(&mut self, code: Option<u16>, reason: &str, key: Key, out: &mut Vec<u8>) -> bool {
        let sent = self.encode(Opcode::Close, &close::body(code, reason), key, out);
        self.close_sent = true;
        sent
    }
}

impl Message {
    fn count(&mut self, header: &Header, limits: &Limits) -> Result<(), Error> {
        self.fragments = self.fragments.saturating_add(1);
        if self.fragments > limits.fragments_max {
            return Err(Error::FragmentsTooMany {
                limit: limits.fragments_max,
            });
        }
        if header.payload_bytes == 0 && !header.fin {
            self.fragments_empty = self.fragments_empty.saturating_add(1);
            if self.fragments_empty > limits.fragments_empty_max {
                return Err(Error::FragmentsEmptyTooMany {
                    limit: limits.fragments_empty_max,
                });
            }
        }
        Ok(())
    }
}

impl Body {
    /// Bytes received, those of an unfinished character included.
    fn len(&self) -> usize {
        match self {
            Self::Text(text, unfinished) => text.len().saturating_add(unfinished.len()),
            Self::Binary(bytes) => bytes.len(),
        }
    }

    /// Stores one block of a frame of which `remaining` bytes, this block included, were announced.
    fn append(&mut self, block: &[u8], remaining: u64) -> Result<(), Error> {
        let (len, capacity) = match self {
            Self::Text(text, _) => (text.len(), text.capacity()),
            Self::Binary(bytes) => (bytes.len(), bytes.capacity()),
        };
        if capacity.saturating_sub(len) < block.len() {
            // At most doubled, so that an announced length alone takes no memory.
            let announced = usize::try_from(remaining).unwrap_or(usize::MAX);
            let more = announced.min(len.max(GROWTH_BYTES)).max(block.len());
            match self {
                Self::Text(text, _) => text.reserve(more),
                Self::Binary(bytes) => bytes.reserve(more),
            }
        }
        match self {
            Self::Text(text, unfinished) => {
                unfinished
                    .push(text, block)
                    .map_err(|_| Error::TextNotUtf8)?;
            }
            Self::Binary(bytes) => bytes.extend_from_slice(block),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
