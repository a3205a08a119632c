//! What is accepted as a frame is JSON to another parser, within the depth, with no key repeated at any level; and
//! what we write for it is accepted again.
#![no_main]

use std::collections::HashSet;
use std::fmt;

use libfuzzer_sys::fuzz_target;
use portcullis::base::limits;
use portcullis::rpc::{Frame, decode, encode};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

fuzz_target!(|text: &str| {
    let Ok(frame) = decode(text) else { return };
    serde_json::from_str::<IgnoredAny>(text).expect("JSON to serde_json");
    // Errors of its own are about values that Rust has not: lone surrogates, numbers beyond a double.
    let _ = Level(1).deserialize(&mut serde_json::Deserializer::from_str(text));
    let again = match &frame {
        Frame::Request(request) => encode::request(&request.id, &request.method, &request.params),
        Frame::Response(response) => match &response.error {
            Some(error) => encode::failure(&response.id, error, response.payload.as_ref()),
            None => encode::response(&response.id, &response.payload),
        },
        Frame::Event(event) => {
            encode::event(&event.event, &event.payload, event.seq, event.state_version)
        }
    };
    decode(&again).expect("what we write we read");
});

/// Walks a value at this depth; panics on what the scan had to refuse.
struct Level(usize);

impl<'de> DeserializeSeed<'de> for Level {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        assert!(self.0 <= limits::JSON_DEPTH_MAX, "too deep");
        while seq.next_element_seed(Level(self.0 + 1))?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        assert!(self.0 <= limits::JSON_DEPTH_MAX, "too deep");
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            assert!(keys.insert(key), "a repeated key");
            map.next_value_seed(Level(self.0 + 1))?;
        }
        assert!(keys.len() <= limits::JSON_KEYS_MAX, "too many keys");
        Ok(())
    }
}
