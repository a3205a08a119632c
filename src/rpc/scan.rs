//! One pass over JSON text that proves it safe to hand on, without building a tree.
//!
//! In: text. Out: yes, or the first reason against it. It accepts what RFC 8259 calls JSON text, less nesting beyond
//! `limits::JSON_DEPTH_MAX` and objects that repeat a key (§4 leaves their meaning open, so two readers could see
//! two different requests). Keys are compared as the characters that they name: `role` and `r\u006fle` are one key.
//! Attacker controls: every byte. Bounds: memory is that of the keys of the objects that are open at once.
//! Errors: `ScanError`.

use std::borrow::Cow;
use std::fmt;

use crate::base::limits;

/// Why text was not accepted. Offsets are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanError {
    /// The text is not JSON.
    NotJson { offset: usize },
    /// Arrays and objects are nested deeper than `limit`.
    TooDeep { offset: usize, limit: usize },
    /// The object that ends at `offset` names a key twice.
    DuplicateKey { offset: usize },
    /// An object has more than `limit` keys.
    TooManyKeys { offset: usize, limit: usize },
}

impl fmt::Display for ScanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotJson { offset } => write!(f, "not JSON at byte {offset}"),
            Self::TooDeep { offset, limit } => {
                write!(f, "nested deeper than {limit} levels at byte {offset}")
            }
            Self::DuplicateKey { offset } => {
                write!(f, "duplicate key in the object that ends at byte {offset}")
            }
            Self::TooManyKeys { offset, limit } => {
                write!(f, "more than {limit} keys in one object at byte {offset}")
            }
        }
    }
}

impl std::error::Error for ScanError {}

/// Accepts `text` if it is one JSON value, not too deep, and no object in it repeats a key.
pub fn scan(text: &str) -> Result<(), ScanError> {
    Scanner {
        text: text.as_bytes(),
        at: 0,
        levels: Vec::new(),
        keys: Vec::new(),
    }
    .run()
}

/// A key as the bytes that it names. Lone surrogates have no UTF-8, so an escaped key is kept in WTF-8.
type Key<'a> = Cow<'a, [u8]>;

/// An array or object that has begun and not ended.
#[derive(Clone, Copy)]
enum Level {
    Array,
    /// Its keys are those from here to the end of `Scanner::keys`.
    Object {
        keys_from: usize,
    },
}

struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
    levels: Vec<Level>,
    keys: Vec<Key<'a>>,
}

impl<'a> Scanner<'a> {
    fn run(mut self) -> Result<(), ScanError> {
        loop {
            let ended = self.begin_value()?;
            if ended && !self.end_value()? {
                return Ok(());
            }
        }
    }

    /// Reads a scalar, or the opening of a container up to its first value; false when a value is due next.
    fn begin_value(&mut self) -> Result<bool, ScanError> {
        self.skip_blanks();
        match self.peek() {
            Some(b'"') => self.string().map(|_| true),
            Some(b'{') => {
                let keys_from = self.keys.len();
                self.open(Level::Object { keys_from })?;
                if self.peek() == Some(b'}') {
                    self.close()?;
                    return Ok(true);
                }
                self.key().map(|()| false)
            }
            Some(b'[') => {
                self.open(Level::Array)?;
                if self.peek() == Some(b']') {
                    self.close()?;
                    return Ok(true);
                }
                Ok(false)
            }
            Some(b'-' | b'0'..=b'9') => self.number().map(|()| true),
            Some(b't') => self.literal(b"true").map(|()| true),
            Some(b'f') => self.literal(b"false").map(|()| true),
            Some(b'n') => self.literal(b"null").map(|()| true),
            _ => Err(self.not_json()),
        }
    }

    /// Closes what the value just read completes; true when another value is due, false at the end of the text.
    fn end_value(&mut self) -> Result<bool, ScanError> {
        loop {
            self.skip_blanks();
            let Some(level) = self.levels.last().copied() else {
                return match self.peek() {
                    None => Ok(false),
                    Some(_) => Err(self.not_json()),
                };
            };
            match (level, self.peek()) {
                (Level::Array, Some(b',')) => {
                    self.advance(1);
                    return Ok(true);
                }
                (Level::Object { .. }, Some(b',')) => {
                    self.advance(1);
                    self.skip_blanks();
                    self.key()?;
                    return Ok(true);
                }
                (Level::Array, Some(b']')) | (Level::Object { .. }, Some(b'}')) => self.close()?,
                _ => return Err(self.not_json()),
            }
        }
    }

    fn open(&mut self, level: Level) -> Result<(), ScanError> {
        if self.levels.len() >= limits::JSON_DEPTH_MAX {
            return Err(ScanError::TooDeep {
                offset: self.at,
                limit: limits::JSON_DEPTH_MAX,
            });
        }
        self.levels.push(level);
        self.advance(1);
        self.skip_blanks();
        Ok(())
    }

    /// Ends the innermost container. An object's keys are sorted here, so that finding a repeated one takes
    /// O(n log n) whatever the keys are; a hash table would need randomness to promise that.
    fn close(&mut self) -> Result<(), ScanError> {
        self.advance(1);
        let Some(Level::Object { keys_from }) = self.levels.pop() else {
            return Ok(());
        };
        let keys = self.keys.get_mut(keys_from..).unwrap_or_default();
        keys.sort_unstable_by(|a, b| a.len().cmp(&b.len()).then_with(|| a.cmp(b)));
        let repeated = keys
            .array_windows::<2>()
            .any(|[first, second]| first == second);
        self.keys.truncate(keys_from);
        if repeated {
            return Err(ScanError::DuplicateKey { offset: self.at });
        }
        Ok(())
    }

    /// Reads a key and its colon.
    fn key(&mut self) -> Result<(), ScanError> {
        if self.peek() != Some(b'"') {
            return Err(self.not_json());
        }
        let offset = self.at;
        let string = self.string()?;
        self.skip_blanks();
        if self.peek() != Some(b':') {
            return Err(self.not_json());
        }
        self.advance(1);
        let keys_from = match self.levels.last() {
            Some(Level::Object { keys_from }) => *keys_from,
            _ => 0,
        };
        if self.keys.len().saturating_sub(keys_from) >= limits::JSON_KEYS_MAX {
            return Err(ScanError::TooManyKeys {
                offset,
                limit: limits::JSON_KEYS_MAX,
            });
        }
        self.keys.push(if string.escaped {
            Cow::Owned(unescape(string.body))
        } else {
            Cow::Borrowed(string.body)
        });
        Ok(())
    }

    fn string(&mut self) -> Result<RawString<'a>, ScanError> {
        self.advance(1);
        let start = self.at;
        let mut escaped = false;
        loop {
            let rest = self.text.get(self.at..).unwrap_or_default();
            self.advance(plain_bytes(rest));
            match self.peek() {
                Some(b'"') => {
                    let body = self.text.get(start..self.at).unwrap_or_default();
                    self.advance(1);
                    return Ok(RawString { body, escaped });
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                // A control character (RFC 8259 §7), or the end of the text.
                _ => return Err(self.not_json()),
            }
        }
    }

    fn escape(&mut self) -> Result<(), ScanError> {
        self.advance(1);
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.advance(1);
                Ok(())
            }
            Some(b'u') => {
                self.advance(1);
                for _ in 0..4 {
                    if !self.peek().is_some_and(|b| b.is_ascii_hexdigit()) {
                        return Err(self.not_json());
                    }
                    self.advance(1);
                }
                Ok(())
            }
            _ => Err(self.not_json()),
        }
    }

    /// A number (RFC 8259 §6); its size is the reader's business.
    fn number(&mut self) -> Result<(), ScanError> {
        if self.peek() == Some(b'-') {
            self.advance(1);
        }
        match self.peek() {
            Some(b'0') => self.advance(1),
            _ => self.digits()?,
        }
        if self.peek() == Some(b'.') {
            self.advance(1);
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.advance(1);
            if let Some(b'+' | b'-') = self.peek() {
                self.advance(1);
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), ScanError> {
        if !self.peek().is_some_and(|b| b.is_ascii_digit()) {
            return Err(self.not_json());
        }
        while self.peek().is_some_and(|b| b.is_ascii_digit()) {
            self.advance(1);
        }
        Ok(())
    }

    fn literal(&mut self, word: &[u8]) -> Result<(), ScanError> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        if !rest.starts_with(word) {
            return Err(self.not_json());
        }
        self.advance(word.len());
        Ok(())
    }

    fn skip_blanks(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.advance(1);
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn advance(&mut self, bytes: usize) {
        self.at = self.at.saturating_add(bytes);
    }

    fn not_json(&self) -> ScanError {
        ScanError::NotJson { offset: self.at }
    }
}

/// A string as written, without its quotes.
struct RawString<'a> {
    body: &'a [u8],
    escaped: bool,
}

/// How many bytes from the start of `bytes` are neither a quote, a backslash nor a control character.
///
/// Most bytes of a large frame stand in a few long strings, so this decides the speed of the whole pass: words that
/// tell the exact byte, since JSON inside a string has an escape every few bytes, and in long runs blocks that the
/// compiler turns into vector compares.
fn plain_bytes(bytes: &[u8]) -> usize {
    let (near, far) = bytes.split_at_checked(32).unwrap_or((bytes, &[]));
    let plain = plain_words(near);
    if plain < near.len() {
        return plain;
    }
    let (blocks, _) = far.as_chunks::<64>();
    let plain_blocks = blocks
        .iter()
        .take_while(|block| {
            !block
                .iter()
                .fold(false, |special, byte| special | is_special(*byte))
        })
        .count();
    let plain = plain.saturating_add(plain_blocks.saturating_mul(64));
    let rest = bytes.get(plain..).unwrap_or_default();
    plain.saturating_add(plain_words(rest))
}

fn plain_words(bytes: &[u8]) -> usize {
    let mut plain: usize = 0;
    let (words, tail) = bytes.as_chunks::<8>();
    for word in words {
        let marks = special_marks(u64::from_le_bytes(*word));
        if marks != 0 {
            return plain.saturating_add(first_marked_byte(marks));
        }
        plain = plain.saturating_add(word.len());
    }
    let in_tail = tail.iter().take_while(|byte| !is_special(**byte)).count();
    plain.saturating_add(in_tail)
}

fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// The high bit of every special byte of a word; marks above the lowest one may be false.
fn special_marks(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 0xff;
    const HIGH_BITS: u64 = ONES << 7;
    let is_below = |bound: u64, word: u64| word.wrapping_sub(ONES.wrapping_mul(bound)) & !word;
    let equals = |byte: u8| is_below(1, word ^ ONES.wrapping_mul(u64::from(byte)));
    (is_below(0x20, word) | equals(b'"') | equals(b'\\')) & HIGH_BITS
}

fn first_marked_byte(marks: u64) -> usize {
    usize::try_from(marks.trailing_zeros() / 8).unwrap_or(0)
}

/// The bytes that an escaped string names. `body` has passed `Scanner::string`.
fn unescape(body: &[u8]) -> Vec<u8> {
    let mut named = Vec::with_capacity(body.len());
    let mut rest = body;
    loop {
        rest = match rest {
            [] => return named,
            [b'\\', b'u', a, b, c, d, tail @ ..] => {
                let unit = code_unit([*a, *b, *c, *d]);
                match tail {
                    [b'\\', b'u', e, f, g, h, after @ ..] => {
                        match surrogate_pair(unit, code_unit([*e, *f, *g, *h])) {
                            Some(character) => {
                                push_code_point(&mut named, character);
                                after
                            }
                            None => {
                                push_code_point(&mut named, unit);
                                tail
                            }
                        }
                    }
                    _ => {
                        push_code_point(&mut named, unit);
                        tail
                    }
                }
            }
            [b'\\', letter, tail @ ..] => {
                named.push(match letter {
                    b'b' => 0x08,
                    b'f' => 0x0c,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    other => *other,
                });
                tail
            }
            [byte, tail @ ..] => {
                named.push(*byte);
                tail
            }
        };
    }
}

/// The UTF-16 code unit that four hexadecimal digits name.
fn code_unit(digits: [u8; 4]) -> u32 {
    digits.iter().fold(0, |unit, digit| {
        (unit << 4) | char::from(*digit).to_digit(16).unwrap_or(0)
    })
}

fn surrogate_pair(high: u32, low: u32) -> Option<u32> {
    let is_pair = matches!(high, 0xd800..=0xdbff) && matches!(low, 0xdc00..=0xdfff);
    is_pair.then_some(0x1_0000_u32.saturating_add(((high & 0x3ff) << 10) | (low & 0x3ff)))
}

/// Appends UTF-8, or for a lone surrogate the three bytes that UTF-8 would give it, which no text contains.
fn push_code_point(named: &mut Vec<u8>, code_point: u32) {
    match char::from_u32(code_point) {
        Some(character) => {
            let mut buffer = [0; 4];
            named.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes());
        }
        None => {
            let [_, _, high, low] = code_point.to_be_bytes();
            named.extend_from_slice(&[
                0xe0 | (high >> 4),
                0x80 | ((high & 0x0f) << 2) | (low >> 6),
                0x80 | (low & 0x3f),
            ]);
        }
    }
}

#[cfg(test)]
mod tests;
