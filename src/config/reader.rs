//! Typed looks into the tree: absent, right, or a refusal that names the setting.

use std::net::IpAddr;

use super::error::ConfigError;
use super::tree::Tree;
use crate::ingress::cidr::{Cidr, CidrError};

/// Items of one list. Longer ones are a mistake or an attack on whoever reads the file.
const LIST_ITEMS_MAX: usize = 1024;
/// Characters of a wrong value that a refusal repeats.
const SHOWN_CHARS_MAX: usize = 40;

#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) tree: &'a Tree,
}

fn shown(text: &str) -> String {
    format!(
        "\"{}\"",
        text.escape_debug()
            .take(SHOWN_CHARS_MAX)
            .collect::<String>()
    )
}

impl<'a> Reader<'a> {
    /// A text that is not a secret. Blank counts as absent.
    pub(super) fn text(self, setting: &str) -> Result<Option<&'a str>, ConfigError> {
        match self.tree.at(setting) {
            None => Ok(None),
            Some(Tree::Text(text)) => Ok(Some(text.trim()).filter(|text| !text.is_empty())),
            Some(other) => Err(ConfigError::bad(setting, other.kind(), "a string")),
        }
    }

    pub(super) fn flag(self, setting: &str) -> Result<Option<bool>, ConfigError> {
        match self.tree.at(setting) {
            None => Ok(None),
            Some(Tree::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(ConfigError::bad(setting, other.kind(), "true or false")),
        }
    }

    pub(super) fn flag_or(self, setting: &str, default: bool) -> Result<bool, ConfigError> {
        Ok(self.flag(setting)?.unwrap_or(default))
    }

    /// A whole number within the bounds, both included.
    pub(super) fn whole(
        self,
        setting: &str,
        (least, most): (u64, u64),
    ) -> Result<Option<u64>, ConfigError> {
        let want = || format!("a whole number from {least} to {most}");
        match self.tree.at(setting) {
            None => Ok(None),
            Some(Tree::Number(number)) => Tree::whole(*number, least, most)
                .map(Some)
                .ok_or_else(|| ConfigError::bad(setting, number.to_string(), want())),
            Some(other) => Err(ConfigError::bad(setting, other.kind(), want())),
        }
    }

    pub(super) fn port(self, setting: &str) -> Result<Option<u16>, ConfigError> {
        let port = self.whole(setting, (1, 65535))?;
        Ok(port.and_then(|port| u16::try_from(port).ok()))
    }

    /// One address, without brackets, port or name.
    pub(super) fn address(self, setting: &str) -> Result<Option<IpAddr>, ConfigError> {
        let parse = |text: &str| {
            let address: Result<IpAddr, _> = text.parse();
            address
                .map(|address| address.to_canonical())
                .map_err(|_| ConfigError::bad(setting, shown(text), "an IP address"))
        };
        self.text(setting)?.map(parse).transpose()
    }

    /// One of a closed list of words, exactly spelled.
    pub(super) fn one_of<T: Copy>(
        self,
        setting: &str,
        words: &[(&str, T)],
    ) -> Result<Option<T>, ConfigError> {
        let Some(text) = self.text(setting)? else {
            return Ok(None);
        };
        word(setting, text, words).map(Some)
    }

    pub(super) fn texts(self, setting: &str) -> Result<Option<Vec<String>>, ConfigError> {
        let items = match self.tree.at(setting) {
            None => return Ok(None),
            Some(Tree::List(items)) => items,
            Some(other) => {
                return Err(ConfigError::bad(setting, other.kind(), "a list of strings"));
            }
        };
        if items.len() > LIST_ITEMS_MAX {
            return Err(ConfigError::bad(
                setting,
                format!("a list of {} items", items.len()),
                format!("a list of at most {LIST_ITEMS_MAX}"),
            ));
        }
        items
            .iter()
            .map(|item| match item {
                Tree::Text(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
                other => Err(ConfigError::bad(
                    setting,
                    format!("a list that holds {}", other.kind()),
                    "a list of strings that are not blank",
                )),
            })
            .collect::<Result<Vec<_>, _>>()
            .map(Some)
    }

    /// The same; a list that is not there is empty.
    pub(super) fn list(self, setting: &str) -> Result<Vec<String>, ConfigError> {
        Ok(self.texts(setting)?.unwrap_or_default())
    }

    pub(super) fn cidrs(self, setting: &str) -> Result<Vec<Cidr>, ConfigError> {
        self.list(setting)?
            .iter()
            .map(|text| {
                Cidr::parse(text).map_err(|error| {
                    let want = match &error {
                        CidrError::HostBits { meant } => format!("{meant}, or another range"),
                        _ => "a list of addresses or ranges such as 10.0.0.0/8".to_owned(),
                    };
                    ConfigError::bad(setting, shown(text), want)
                })
            })
            .collect()
    }
}

/// A header's name (RFC 9110 §5.1), in lower case.
pub(super) fn header_name(setting: &str, name: &str) -> Result<String, ConfigError> {
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if !name.bytes().all(is_token) {
        return Err(ConfigError::bad(
            setting,
            shown(name),
            "the name of a header",
        ));
    }
    Ok(name.to_ascii_lowercase())
}

/// Finds `text` in a closed list.
pub(super) fn word<T: Copy>(
    setting: &str,
    text: &str,
    words: &[(&str, T)],
) -> Result<T, ConfigError> {
    words
        .iter()
        .find(|(name, _)| *name == text)
        .map(|(_, value)| *value)
        .ok_or_else(|| {
            let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
            ConfigError::bad(setting, shown(text), format!("one of {}", names.join(", ")))
        })
}
