//! The three kinds of frame: `req`, `res` and `event`.
//!
//! In: the text of one message. Out: a `Frame` that borrows from it; payloads and parameters stay raw JSON.
//! Attacker controls: every byte. Bounds: those of `scan`; ids and names are bounded by `limits::RPC_*`.
//! Errors: `EnvelopeError`, which keeps apart what a session answers differently: text that is not JSON, JSON that is
//! not safe to hand on, and JSON that is not a frame.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::base::limits;
use crate::rpc::error::ErrorShape;
use crate::rpc::params::shown;
use crate::rpc::scan::{ScanError, scan};
use crate::rpc::types::presence::StateVersion;

/// A trace context is carried by some clients and not used here (schema: `traceparent`, at most 128 characters).
const TRACEPARENT_CHARS_MAX: usize = 128;

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
    let kind = fields.kind.and_then(text_of);
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

/// The known top-level keys, each still raw: what they must be depends on `type`.
#[derive(Default)]
struct Fields<'a> {
    kind: Option<&'a RawValue>,
    id: Option<&'a RawValue>,
    method: Option<&'a RawValue>,
    params: Option<&'a RawValue>,
    traceparent: Option<&'a RawValue>,
    ok: Option<&'a RawValue>,
    payload: Option<&'a RawValue>,
    error: Option<&'a RawValue>,
    event: Option<&'a RawValue>,
    seq: Option<&'a RawValue>,
    state_version: Option<&'a RawValue>,
    unknown: Option<String>,
}

impl<'a> Fields<'a> {
    fn id(&self) -> Result<Cow<'a, str>, FrameFault> {
        name(self.id, "id", limits::RPC_ID_BYTES_MAX)
    }

    fn request(&self) -> Result<Request<'a>, FrameFault> {
        let id = self.id()?;
        let method = name(self.method, "method", limits::RPC_METHOD_BYTES_MAX)?;
        if let Some(raw) = self.traceparent {
            let traceparent = text_of(raw).ok_or(FrameFault::WrongType {
                field: "traceparent",
                expected: "string",
            })?;
            if traceparent.chars().count() > TRACEPARENT_CHARS_MAX {
                return Err(FrameFault::TooLong {
                    field: "traceparent",
                    limit: TRACEPARENT_CHARS_MAX,
                });
            }
        }
        // The schema closes the request frame; answers and events of newer Gateways may say more.
        let foreign = [
            ("ok", self.ok),
            ("payload", self.payload),
            ("error", self.error),
            ("event", self.event),
            ("seq", self.seq),
            ("stateVersion", self.state_version),
        ];
        if let Some((key, _)) = foreign.iter().find(|(_, raw)| raw.is_some()) {
            return Err(FrameFault::UnknownKey((*key).to_owned()));
        }
        if let Some(key) = &self.unknown {
            return Err(FrameFault::UnknownKey(key.clone()));
        }
        Ok(Request {
            id,
            method,
            params: self.params.filter(|raw| raw.get() != "null"),
        })
    }

    fn response(&self) -> Result<Response<'a>, FrameFault> {
        Ok(Response {
            id: self.id()?,
            ok: value(self.ok, "ok", "boolean")?.ok_or(FrameFault::Missing("ok"))?,
            payload: self.payload,
            error: value(self.error, "error", "object")?,
        })
    }

    fn event(&self) -> Result<EventFrame<'a>, FrameFault> {
        Ok(EventFrame {
            event: name(self.event, "event", limits::RPC_METHOD_BYTES_MAX)?,
            payload: self.payload,
            seq: value(self.seq, "seq", "integer")?,
            state_version: value(self.state_version, "stateVersion", "object")?,
        })
    }
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a frame")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
        let mut fields = Fields::default();
        while let Some(Text(key)) = map.next_key()? {
            let raw: &RawValue = map.next_value()?;
            let field = match &*key {
                "type" => &mut fields.kind,
                "id" => &mut fields.id,
                "method" => &mut fields.method,
                "params" => &mut fields.params,
                "traceparent" => &mut fields.traceparent,
                "ok" => &mut fields.ok,
                "payload" => &mut fields.payload,
                "error" => &mut fields.error,
                "event" => &mut fields.event,
                "seq" => &mut fields.seq,
                "stateVersion" => &mut fields.state_version,
                other => {
                    fields.unknown.get_or_insert_with(|| shown(other));
                    continue;
                }
            };
            *field = Some(raw);
        }
        Ok(fields)
    }
}

/// A string that borrows when it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

fn text_of(raw: &RawValue) -> Option<Cow<'_, str>> {
    serde_json::from_str::<Text<'_>>(raw.get())
        .ok()
        .map(|text| text.0)
}

/// A required string of 1 to `bytes_max` bytes.
fn name<'a>(
    raw: Option<&'a RawValue>,
    field: &'static str,
    bytes_max: usize,
) -> Result<Cow<'a, str>, FrameFault> {
    let raw = raw.ok_or(FrameFault::Missing(field))?;
    let text = text_of(raw).ok_or(FrameFault::WrongType {
        field,
        expected: "string",
    })?;
    if text.is_empty() {
        return Err(FrameFault::Empty(field));
    }
    if text.len() > bytes_max {
        return Err(FrameFault::TooLong {
            field,
            limit: bytes_max,
        });
    }
    Ok(text)
}

/// An optional value of a fixed type.
fn value<'a, T: Deserialize<'a>>(
    raw: Option<&'a RawValue>,
    field: &'static str,
    expected: &'static str,
) -> Result<Option<T>, FrameFault> {
    raw.map(|raw| serde_json::from_str(raw.get()))
        .transpose()
        .map_err(|_| FrameFault::WrongType { field, expected })
}

#[cfg(test)]
mod tests;
