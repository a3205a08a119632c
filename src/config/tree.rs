//! A JSON5 document as a tree.
//!
//! In: the config file's text. Out: a `Tree`. Controlled by whoever may write the config file.
//! Bounds: `DEPTH_MAX` levels; the caller bounds the bytes. Errors: a sentence with line and column, never a
//! value. A key that stands twice in one object is refused: two readers would see two different settings.

use std::collections::BTreeMap;
use std::fmt;

use ring::digest;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Nesting of a config file. The reference's deepest setting stands at level 9.
const DEPTH_MAX: usize = 32;

/// One value. It has no `Debug`, because any text in it may be a secret.
#[derive(Clone)]
pub(super) enum Tree {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Tree>),
    Map(Vec<(String, Tree)>),
}

impl Tree {
    /// An empty object: what a missing file amounts to.
    pub(super) fn empty() -> Self {
        Self::Map(Vec::new())
    }

    /// The value's kind, for a sentence that must not show the value.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Map(_) => "an object",
        }
    }

    /// A number without a fraction within the bounds, both included.
    pub(super) fn whole(number: f64, least: u64, most: u64) -> Option<u64> {
        let inside = number.fract() == 0.0 && (least as f64..=most as f64).contains(&number);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "whole, and within the bounds"
        )]
        let whole = number as u64;
        inside.then_some(whole)
    }

    /// The value of `key`, if this is an object that has it.
    pub(super) fn key(&self, key: &str) -> Option<&Self> {
        let Self::Map(entries) = self else {
            return None;
        };
        entries
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value)
    }

    /// The digest of each value by its dotted path, so that two readings are compared without keeping either.
    pub(super) fn digests(&self) -> BTreeMap<String, [u8; 32]> {
        let mut found = BTreeMap::new();
        self.collect("", &mut found);
        found
    }

    fn collect(&self, path: &str, found: &mut BTreeMap<String, [u8; 32]>) {
        if let Self::Map(entries) = self {
            for (key, value) in entries {
                let dot = if path.is_empty() { "" } else { "." };
                value.collect(&format!("{path}{dot}{key}"), found);
            }
            return;
        }
        let mut context = digest::Context::new(&digest::SHA256);
        self.feed(&mut context);
        let mut sum = [0; 32];
        sum.copy_from_slice(context.finish().as_ref());
        found.insert(path.to_owned(), sum);
    }

    fn feed(&self, context: &mut digest::Context) {
        context.update(self.kind().as_bytes());
        match self {
            Self::Null => {}
            Self::Bool(flag) => context.update(&[u8::from(*flag)]),
            Self::Number(number) => context.update(&number.to_be_bytes()),
            Self::Text(text) => {
                context.update(&text.len().to_be_bytes());
                context.update(text.as_bytes());
            }
            Self::List(items) => {
                context.update(&items.len().to_be_bytes());
                items.iter().for_each(|item| item.feed(context));
            }
            Self::Map(entries) => {
                context.update(&entries.len().to_be_bytes());
                for (key, value) in entries {
                    context.update(&key.len().to_be_bytes());
                    context.update(key.as_bytes());
                    value.feed(context);
                }
            }
        }
    }

    /// The value at a dotted path; `null` counts as absent.
    pub(super) fn at(&self, path: &str) -> Option<&Self> {
        let mut node = self;
        for key in path.split('.') {
            node = node.key(key)?;
        }
        (!matches!(node, Self::Null)).then_some(node)
    }
}

/// Parses a whole document.
pub(super) fn parse(text: &str) -> Result<Tree, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    json5::from_str(text).map_err(|error| error.to_string())
}

/// The same for a file of secrets: a key there may be one, so only the place and the kind of the fault are told.
pub(super) fn parse_secrets(text: &str) -> Result<Tree, String> {
    json5::from_str(text).map_err(|error| {
        let what = match error.code() {
            Some(code) => code.to_string(),
            None => "a key that stands twice, or too many levels, in what begins".to_owned(),
        };
        match error.position() {
            Some(place) => format!("{what} at {place}"),
            None => what,
        }
    })
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Level(0).deserialize(deserializer)
    }
}

/// Builds the value that stands at this depth.
#[derive(Clone, Copy)]
struct Level(usize);

impl Level {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        if self.0 >= DEPTH_MAX {
            return Err(E::custom(format_args!(
                "nested deeper than {DEPTH_MAX} levels"
            )));
        }
        Ok(Self(self.0 + 1))
    }
}

impl<'de> DeserializeSeed<'de> for Level {
    type Value = Tree;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON5 value")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Number(value as f64))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
        Ok(Tree::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Tree, E> {
        Ok(Tree::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        let level = self.deeper()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(level)? {
            list.push(item);
        }
        Ok(Tree::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Tree, A::Error> {
        let level = self.deeper()?;
        let mut map: Vec<(String, Tree)> = Vec::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.iter().any(|(known, _)| *known == key) {
                return Err(A::Error::custom(format_args!(
                    "the key `{}` stands twice in one object",
                    key.escape_debug()
                )));
            }
            let value = entries.next_value_seed(level)?;
            map.push((key, value));
        }
        Ok(Tree::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        parse(text).err().unwrap()
    }

    #[test]
    fn comments_and_trailing_commas_are_read() {
        let tree = parse("// a comment\n{ gateway: { port: 0x10, mode: 'local', }, }").unwrap();
        assert!(matches!(tree.at("gateway.port"), Some(Tree::Number(n)) if *n == 16.0));
        assert!(matches!(tree.at("gateway.mode"), Some(Tree::Text(t)) if t == "local"));
        assert!(tree.at("gateway.nothing").is_none());
    }

    #[test]
    fn a_key_that_stands_twice_is_refused() {
        assert!(refusal("{gateway:{port:1,\"port\":2}}").contains("`port` stands twice"));
    }

    #[test]
    fn a_fault_in_a_file_of_secrets_shows_no_key() {
        for (text, place) in [
            (
                "{in:\n  {hunter2: 'a', hunter2: 'b'}}",
                "begins at line 2 column 3",
            ),
            ("{\n  hunter2: 'a' hunter3: 'b'}", "line 2 column 16"),
            ("{\n  'hunter2' 1}", "line 2 column 13"),
        ] {
            let said = parse_secrets(text).err().unwrap();
            assert!(said.contains(place), "{said}");
            assert!(!said.contains("hunter"), "{said}");
        }
    }

    #[test]
    fn depth_is_bounded_before_the_stack_is() {
        let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
        assert!(refusal(&deep).contains("deeper than 32"));
    }

    #[test]
    fn a_syntax_error_names_its_place_and_shows_no_value() {
        let message = refusal("{gateway:{auth:{password:'hunter2' oops}}}");
        assert!(message.contains("line 1"), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
        assert!(!refusal("{} x").is_empty());
    }
}
