//! The environment, as a value that tests can make.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::base::Secret;

/// The process's environment, or a given one.
#[derive(Clone, Default)]
pub struct Env {
    given: Option<Arc<BTreeMap<String, String>>>,
}

/// The values may be secrets.
impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.given.is_some() {
            "Env(given)"
        } else {
            "Env(process)"
        })
    }
}

impl Env {
    pub fn process() -> Self {
        Self::default()
    }

    pub fn given<K: Into<String>, V: Into<String>>(
        variables: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let map = variables
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        Self {
            given: Some(Arc::new(map)),
        }
    }

    /// A variable's text. Unset, blank and not UTF-8 are all absent.
    pub fn text(&self, name: &str) -> Option<String> {
        let value = match &self.given {
            Some(given) => given.get(name).cloned(),
            None => std::env::var(name).ok(),
        };
        value.filter(|text| !text.trim().is_empty())
    }

    pub fn secret(&self, name: &str) -> Option<Secret> {
        self.text(name).map(|text| Secret::new(text.into_bytes()))
    }

    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(PathBuf::from)
    }
}
