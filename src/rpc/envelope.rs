//! The three kinds of frame: `req`, `res` and `event`.
//!
//! In: the text of one message. Out: a `Frame` that borrows from it; payloads and parameters stay raw JSON.
//! Attacker controls: every byte. Bounds: those of `scan`; ids and names are bounded by `limits::RPC_*`.
//! Errors: `EnvelopeError`, which keeps apart what a session answers differently: text that is not JSON, JSON that is
//! not safe to hand on, and JSON that is not a frame.

use std::borrow::{Borrow, Cow};
use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::base::limits;
use crate::rpc::error::ErrorShape;
use crate::rpc::params::shown;
use crate::rpc::scan::{ScanError, scan};
use crate::rpc::types::presence::StateVersion;

/// A trace context is carried by some clients and not used here (schema: `traceparent`, at most 128 characters).
const TRACEPARENT_CHARS_MAX: usize = 128;
/// The keys that a request may have.
const REQUEST_KEYS: [&str; 5] = ["type", "id", "method", "params", "traceparent"];

/// One frame, borrowed from the text of its message.
#[derive(Debug)]
pub enum Frame<'a> {
    Request(Request<'a>),
    Response(Response<'a>),
    Event(EventFrame<'a>),
}

/// A call of a method. `params` is absent when the frame has none or `null`.
#[derive(Debug)]
pub struct Request<'a> {
    pub id: Cow<'a, str>,
    pub method: Cow<'a, str>,
    pub params: Option<&'a RawValue>,
}

/// The answer to the request of the same id. A failed `agent` run has both a payload and an error.
#[derive(Debug)]
pub struct Response<'a> {
    pub id: Cow<'a, str>,
    pub ok: bool,
    pub payload: Option<&'a RawValue>,
    pub error: Option<ErrorShape>,
}

/// A message that answers nothing. `seq` counts the broadcast events of one connection.
#[derive(Debug)]
pub struct EventFrame<'a> {
    pub event: Cow<'a, str>,
    pub payload: Option<&'a RawValue>,
    pub seq: Option<u64>,
    pub state_version: Option<StateVersion>,
}

/// Why a message is not a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvelopeError {
    /// Not JSON. Before `connect` the session closes with 1000 and no reason, as the reference does.
    NotJson { offset: usize },
    /// JSON, but too deep, or an object that repeats a key or has too many.
    Unsafe(ScanError),
    /// JSON, but not a frame. `id` is the request's id, when it has one to answer to.
    NotAFrame {
        id: Option<String>,
        fault: FrameFault,
    },
}

impl fmt::Display for EnvelopeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotJson { offset } => write!(f, "not JSON at byte {offset}"),
            Self::Unsafe(error) => error.fmt(f),
            Self::NotAFrame { fault, .. } => fault.fmt(f),
        }
    }
}

impl std::error::Error for EnvelopeError {}

/// The rule of the frame schema that a message breaks; the text is the one that clients of the reference know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameFault {
    NotAnObject,
    /// `type` is absent or none of `req`, `res` and `event`.
    UnknownType,
    Missing(&'static str),
    /// The field has another JSON type, or text that cannot be read.
    WrongType {
        field: &'static str,
        expected: &'static str,
    },
    Empty(&'static str),
    TooLong {
        field: &'static str,
        limit: usize,
    },
    /// A request has a key that the schema does not know; the key is escaped and cut.
    UnknownKey(String),
}

impl fmt::Display for FrameFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnObject => f.write_str("must be object"),
            Self::UnknownType => f.write_str("at /type: must be equal to constant"),
            Self::Missing(field) => write!(f, "must have required property '{field}'"),
            Self::WrongType { field, expected } => write!(f, "at /{field}: must be {expected}"),
            Self::Empty(field) => {
                write!(f, "at /{field}: must NOT have fewer than 1 characters")
            }
            Self::TooLong { field, limit } => {
                write!(f, "at /{field}: must NOT have more than {limit} characters")
            }
            Self::UnknownKey(key) => write!(f, "at root: unexpected property '{key}'"),
        }
    }
}

/// Reads one message. The whole text is scanned for depth and repeated keys before anything is taken from it.
pub fn decode(text: &str) -> Result<Frame<'_>, EnvelopeError> {
    scan(text).map_err(|error| match error {
        ScanError::NotJson { offset } => EnvelopeError::NotJson { offset },
        unsafe_json => EnvelopeError::Unsafe(unsafe_json),
    })?;
    let not_a_frame = |fault| EnvelopeError::NotAFrame { id: None, fault };
    if !text.trim_ascii_start().starts_with('{') {
        return Err(not_a_frame(FrameFault::NotAnObject));
    }
    let fields: Fields<'_> =
        serde_json::from_str(text).map_err(|_| not_a_frame(FrameFault::NotAnObject))?;
    let kind = fields.get("type").and_then(|raw| string(raw, "type").ok());
    let frame = match kind.as_deref() {
        Some("req") => fields.request().map(Frame::Request),
        Some("res") => fields.response().map(Frame::Response),
        Some("event") => fields.event().map(Frame::Event),
        _ => Err(FrameFault::UnknownType),
    };
    frame.map_err(|fault| EnvelopeError::NotAFrame {
        id: fields.id().ok().map(Cow::into_owned),
        fault,
    })
}

/// The top-level keys and their values, each still raw: what they must be depends on `type`.
#[derive(Deserialize)]
struct Fields<'a>(#[serde(borrow)] BTreeMap<Text<'a>, &'a RawValue>);

impl<'a> Fields<'a> {
    fn request(&self) -> Result<Request<'a>, FrameFault> {
        let id = self.id()?;
        let method = self.name("method", limits::RPC_METHOD_BYTES_MAX)?;
        if let Some(raw) = self.get("traceparent") {
            let (field, limit) = ("traceparent", TRACEPARENT_CHARS_MAX);
            if string(raw, field)?.chars().count() > limit {
                return Err(FrameFault::TooLong { field, limit });
            }
        }
        // The schema closes the request frame; answers and events of newer Gateways may say more.
        if let Some(Text(key)) = self.0.keys().find(|key| !REQUEST_KEYS.contains(&&*key.0)) {
            return Err(FrameFault::UnknownKey(shown(key)));
        }
        Ok(Request {
            id,
            method,
            params: self.get("params").filter(|raw| raw.get() != "null"),
        })
    }

    fn response(&self) -> Result<Response<'a>, FrameFault> {
        Ok(Response {
            id: self.id()?,
            ok: self
                .value("ok", "boolean")?
                .ok_or(FrameFault::Missing("ok"))?,
            payload: self.get("payload"),
            error: self.value("error", "object")?,
        })
    }

    fn event(&self) -> Result<EventFrame<'a>, FrameFault> {
        Ok(EventFrame {
            event: self.name("event", limits::RPC_METHOD_BYTES_MAX)?,
            payload: self.get("payload"),
            seq: self.value("seq", "integer")?,
            state_version: self.value("stateVersion", "object")?,
        })
    }

    fn get(&self, field: &str) -> Option<&'a RawValue> {
        self.0.get(field).copied()
    }

    fn id(&self) -> Result<Cow<'a, str>, FrameFault> {
        self.name("id", limits::RPC_ID_BYTES_MAX)
    }

    /// A required string of 1 to `limit` bytes.
    fn name(&self, field: &'static str, limit: usize) -> Result<Cow<'a, str>, FrameFault> {
        let text = string(self.get(field).ok_or(FrameFault::Missing(field))?, field)?;
        if text.is_empty() {
            return Err(FrameFault::Empty(field));
        }
        if text.len() > limit {
            return Err(FrameFault::TooLong { field, limit });
        }
        Ok(text)
    }

    /// An optional value of a fixed type.
    fn value<T: Deserialize<'a>>(
        &self,
        field: &'static str,
        expected: &'static str,
    ) -> Result<Option<T>, FrameFault> {
        self.get(field)
            .map(|raw| serde_json::from_str(raw.get()))
            .transpose()
            .map_err(|_| FrameFault::WrongType { field, expected })
    }
}

/// A string that borrows when it has no escapes.
#[derive(PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Borrow<str> for Text<'_> {
    fn borrow(&self) -> &str {
        &self.0
    }
}

fn string<'a>(raw: &'a RawValue, field: &'static str) -> Result<Cow<'a, str>, FrameFault> {
    let expected = "string";
    let text = serde_json::from_str::<Text<'_>>(raw.get());
    text.map(|text| text.0)
        .map_err(|_| FrameFault::WrongType { field, expected })
}

#[cfg(test)]
mod tests;
