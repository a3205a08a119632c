//! One line of the log and its place in the chain.
//!
//! A line is `{"seq":7,"ts":1795225804986,"event":{…},"hash":"<64 hex>"}` and a line feed. Its hash is SHA-256 over the
//! 32 bytes of the hash before it and the line's own bytes up to `,"hash"`. So a script can check the chain
//! without parsing JSON: the last 75 bytes of a line are always the same shape.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::event::Event;
use crate::base::ids::{hex_decode, hex_lower};

/// The longest line, line feed included. `PeerText` and the few lists keep records well below it.
pub const LINE_BYTES_MAX: usize = 256 * 1024;

/// `,"hash":"` + 64 digits + `"}`.
const SUFFIX_BYTES: usize = 75;

/// The state of the chain after a record: its number and its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    pub seq: u64,
    pub hash: [u8; 32],
}

impl Link {
    /// Before the first record.
    pub const START: Self = Self {
        seq: 0,
        hash: [0; 32],
    };
}

#[derive(Serialize)]
struct Body<'a> {
    seq: u64,
    ts: u64,
    event: &'a Event,
}

/// A line as it was read back.
#[derive(Debug, Deserialize)]
pub struct Record {
    pub seq: u64,
    /// Unix milliseconds.
    pub ts: u64,
    pub event: Box<RawValue>,
    /// Lower-case hexadecimal.
    pub hash: String,
}

impl Record {
    /// The kind of the event. The log writes it first, and it needs no escapes.
    pub fn kind(&self) -> Option<&str> {
        let rest = self.event.get().strip_prefix("{\"kind\":\"")?;
        rest.split_once('"').map(|(kind, _)| kind)
    }

    /// The line as it stands in the log, without its line feed.
    pub fn line(&self) -> String {
        let Self {
            seq,
            ts,
            event,
            hash,
        } = self;
        format!("{{\"seq\":{seq},\"ts\":{ts},\"event\":{event},\"hash\":\"{hash}\"}}")
    }
}

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineError {
    /// It is not a record at all.
    Form,
    /// Its number does not follow.
    Sequence { expected: u64, found: u64 },
    /// It or its predecessor was changed.
    Hash,
}

/// Writes the record that follows `previous`; gives its line (with line feed) and its link.
pub fn line(
    previous: Link,
    now_ms: u64,
    event: &Event,
) -> Result<(Vec<u8>, Link), serde_json::Error> {
    let seq = previous.seq.saturating_add(1);
    let mut line = serde_json::to_vec(&Body {
        seq,
        ts: now_ms,
        event,
    })?;
    line.pop();
    let hash = hash(&previous.hash, &line);
    line.extend_from_slice(b",\"hash\":\"");
    line.extend_from_slice(hex_lower(&hash).as_bytes());
    line.extend_from_slice(b"\"}\n");
    Ok((line, Link { seq, hash }))
}

/// Checks a line (without line feed) against the link before it.
pub fn check(previous: Link, line: &[u8]) -> Result<(Record, Link), LineError> {
    let body = line
        .len()
        .checked_sub(SUFFIX_BYTES)
        .and_then(|end| line.get(..end))
        .ok_or(LineError::Form)?;
    let record: Record = serde_json::from_slice(line).map_err(|_| LineError::Form)?;
    let link = Link {
        seq: record.seq,
        hash: hash(&previous.hash, body),
    };
    let expected = previous.seq.saturating_add(1);
    if record.seq != expected {
        return Err(LineError::Sequence {
            expected,
            found: record.seq,
        });
    }
    if line
        != [
            body,
            b",\"hash\":\"",
            hex_lower(&link.hash).as_bytes(),
            b"\"}",
        ]
        .concat()
    {
        return Err(LineError::Hash);
    }
    Ok((record, link))
}

/// The link that a line (without line feed) claims to be, unchecked.
pub fn claimed(line: &[u8]) -> Option<Link> {
    let record: Record = serde_json::from_slice(line).ok()?;
    Some(Link {
        seq: record.seq,
        hash: hash_from_hex(&record.hash)?,
    })
}

pub(super) fn hash_from_hex(hex: &str) -> Option<[u8; 32]> {
    hex_decode(hex)?.try_into().ok()
}

fn hash(previous: &[u8; 32], body: &[u8]) -> [u8; 32] {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(previous);
    context.update(body);
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped(reason: &str) -> Event {
        Event::Stopped {
            reason: reason.into(),
        }
    }

    #[test]
    fn a_line_is_checked_against_its_predecessor() {
        let (first, link) = line(Link::START, 1, &stopped("a")).unwrap();
        let (second, _) = line(link, 2, &stopped("b")).unwrap();
        let first = first.strip_suffix(b"\n").unwrap();
        let second = second.strip_suffix(b"\n").unwrap();
        assert_eq!(check(Link::START, first).unwrap().1, link);
        assert_eq!(claimed(first), Some(link));
        let record = check(link, second).unwrap().0;
        assert_eq!((record.ts, record.kind()), (2, Some("gateway.stopped")));
        assert_eq!(record.line().as_bytes(), second);
        assert_eq!(
            check(Link::START, second).unwrap_err(),
            LineError::Sequence {
                expected: 1,
                found: 2
            }
        );
        let other = Link {
            hash: [1; 32],
            ..link
        };
        assert_eq!(check(other, second).unwrap_err(), LineError::Hash);
        assert_eq!(check(link, b"{}").unwrap_err(), LineError::Form);
        assert_eq!(check(link, b"").unwrap_err(), LineError::Form);
    }

    #[test]
    fn every_changed_byte_is_found() {
        let (bytes, _) = line(Link::START, 1, &stopped("reason")).unwrap();
        let bytes = bytes.strip_suffix(b"\n").unwrap();
        for index in 0..bytes.len() {
            for flip in [1, 0x20, 0x80] {
                let mut changed = bytes.to_vec();
                changed[index] ^= flip;
                assert!(check(Link::START, &changed).is_err(), "byte {index}");
            }
        }
        // White space that JSON would overlook.
        let spaced = [bytes, b" "].concat();
        assert!(check(Link::START, &spaced).is_err());
    }
}
