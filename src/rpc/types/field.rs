//! Rules of the schema that derived readers do not know.
//!
//! Each is a visitor, so that serde knows the place of a refused value.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Unexpected, Visitor};
use serde::ser::Serializer;

use crate::base::Secret;

/// A string of at least one character (`minLength: 1`).
struct NonEmpty(String);

impl<'de> Deserialize<'de> for NonEmpty {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_string(NonEmptyVisitor).map(Self)
    }
}

struct NonEmptyVisitor;

impl Visitor<'_> for NonEmptyVisitor {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        self.visit_string(text.to_owned())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<String, E> {
        if text.is_empty() {
            return Err(E::custom("must NOT have fewer than 1 characters"));
        }
        Ok(text)
    }
}

pub(super) fn non_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    NonEmpty::deserialize(deserializer).map(|text| text.0)
}

/// An optional string that is neither empty nor `null` when it is there.
pub(super) fn non_empty_option<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    non_empty(deserializer).map(Some)
}

pub(super) fn non_empty_list<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<String>, D::Error> {
    Vec::<NonEmpty>::deserialize(deserializer)
        .map(|texts| texts.into_iter().map(|text| text.0).collect())
}

pub(super) fn non_empty_list_option<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<String>>, D::Error> {
    non_empty_list(deserializer).map(Some)
}

/// An optional value that is not `null` when it is there.
pub(super) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A whole number from 1.
pub(super) fn at_least_one<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    struct AtLeastOne;

    impl Visitor<'_> for AtLeastOne {
        type Value = u32;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("u32")
        }

        fn visit_u64<E: Error>(self, number: u64) -> Result<u32, E> {
            match u32::try_from(number) {
                Ok(0) => Err(E::custom("must be >= 1")),
                Ok(number) => Ok(number),
                Err(_) => Err(E::invalid_value(Unexpected::Unsigned(number), &self)),
            }
        }

        fn visit_i64<E: Error>(self, number: i64) -> Result<u32, E> {
            u64::try_from(number)
                .map_err(|_| E::custom("must be >= 1"))
                .and_then(|number| self.visit_u64(number))
        }
    }

    deserializer.deserialize_u32(AtLeastOne)
}

/// An object. Derived structs alone would also take an array of their fields in order.
pub(super) fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    struct Object<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map))
        }
    }

    deserializer.deserialize_map(Object(PhantomData))
}

pub(super) fn object_option<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    object(deserializer).map(Some)
}

/// A secret that is text on the wire and never printable here.
pub(super) mod secret_option {
    use super::{Deserialize, Deserializer, Secret, Serializer};

    pub(in crate::rpc::types) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Secret>, D::Error> {
        String::deserialize(deserializer).map(|text| Some(Secret::new(text)))
    }

    pub(in crate::rpc::types) fn serialize<S: Serializer>(
        secret: &Option<Secret>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match secret.as_ref().map(Secret::expose_str) {
            Some(Some(text)) => serializer.serialize_str(text),
            Some(None) => Err(serde::ser::Error::custom("a secret is not text")),
            None => serializer.serialize_none(),
        }
    }
}

/// What a `Debug` output shows in place of a secret.
pub(super) fn masked(secret: Option<&Secret>) -> Option<&'static str> {
    secret.map(|_| "…")
}
