//! Secrets in the config: the text itself, or a reference to where it stands.
//!
//! In: a config value; at resolution the environment, private files and programs. Out: a `Secret`. Controlled by
//! whoever may write the config, the environment or the file. Bounds: a secret file is read up to its provider's
//! `maxBytes`, a program as `exec_provider` says. Errors: `ConfigError`; an unresolved reference refuses and no other source is tried in its place.
//!
//! A `SecretRef` may be printed. The `Secret` that it resolves to cannot be.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::env::Env;
use super::error::ConfigError;
use super::exec_provider::ExecProvider;
use super::reader::Reader;
use super::tree::{self, Tree};
use crate::base::Secret;
use crate::base::names::names;
use crate::machine::files;

/// What a provider that names no `maxBytes` reads at most, as in the reference.
const FILE_BYTES_DEFAULT: u64 = 1024 * 1024;
/// The largest `maxBytes`.
const FILE_BYTES_MOST: u64 = 20 * 1024 * 1024;
/// The provider that needs no entry.
const DEFAULT_PROVIDER: &str = "default";

/// Words that stand in examples, that everybody tries first, or that a program wrote where it had nothing to write. In
/// lower case and with `-` for `_`; digits and marks behind them change nothing.
const WELL_KNOWN: &[&str] = &[
    "undefined",
    "placeholder",
    "example",
    "default",
    "administrator",
    "admin",
    "secret",
    "supersecret",
    "my-secret",
    "token",
    "secrettoken",
    "my-token",
    "long-random-token",
    "long-random-password",
    "long-random-secret",
    "long-random-value",
    "password",
    "passw0rd",
    "p@ssw0rd",
    "p@ssword",
    "my-password",
    "passwort",
    "qwerty",
    "qwertyuiop",
    "qwertz",
    "qwertzuiop",
    "1q2w3e4r",
    "1q2w3e4r5t",
    "asdfghjkl",
    "iloveyou",
    "letmein",
    "welcome",
    "sunshine",
    "princess",
    "trustno",
    "openclaw",
    "portcullis",
    "gateway",
    "gateway-token",
    "gateway-password",
    "openclaw-gateway-token",
    "openclaw-gateway-password",
    "--openclaw-redacted--",
    "[object object]",
];

/// How texts begin that say what should stand in their place.
const PLACEHOLDERS: &[&str] = &[
    "your-",
    "replace",
    "change-me",
    "changeme",
    "change-this",
    "insert-",
    "enter-",
    "put-",
    "todo",
];
/// Fewer are guessed (NIST SP 800-63B §3.1.1.2 asks for as many at least).
const SECRET_BYTES_MIN: usize = 8;

names! {
    /// Where a referenced secret stands.
    pub enum Source {
        Env = "env",
        File = "file",
        Exec = "exec",
        Store = "store",
    }
}

/// A reference to a secret; safe to print.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SecretRef {
    pub source: Source,
    pub provider: String,
    pub id: String,
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.source.as_str(), self.provider, self.id)
    }
}

/// A secret field of the config.
#[derive(Clone)]
pub enum SecretInput {
    /// Absent, empty or blank.
    Unset,
    Literal(Secret),
    Ref(SecretRef),
}

impl SecretInput {
    /// A reference counts as set even if it does not resolve.
    pub fn is_set(&self) -> bool {
        !matches!(self, Self::Unset)
    }
}

/// One entry of `secrets.providers`.
#[derive(Clone, Debug)]
enum Provider {
    Env {
        allowlist: Option<Vec<String>>,
    },
    File {
        path: PathBuf,
        whole: bool,
        bytes_max: u64,
    },
    /// `None`: a plugin's.
    Exec(Option<Box<ExecProvider>>),
    Store,
}

impl Provider {
    fn source(&self) -> Source {
        match self {
            Self::Env { .. } => Source::Env,
            Self::File { .. } => Source::File,
            Self::Exec(_) => Source::Exec,
            Self::Store => Source::Store,
        }
    }
}

/// Finds secrets. Cheap to copy about; every resolution reads afresh, so that rotation needs no restart.
#[derive(Clone, Debug, Default)]
pub struct Resolver {
    env: Env,
    providers: BTreeMap<String, Provider>,
    env_default: Option<String>,
}

/// Reads one secret field that is written in JSON5.
pub fn parse_secret(setting: &str, json5: &str) -> Result<SecretInput, ConfigError> {
    let tree = tree::parse(json5).map_err(|_| {
        ConfigError::bad(setting, "not JSON5", "a string or { source, provider, id }")
    })?;
    parse_input(setting, Some(&tree), &Resolver::default())
}

/// Reads one secret field.
pub(super) fn parse_input(
    setting: &str,
    value: Option<&Tree>,
    resolver: &Resolver,
) -> Result<SecretInput, ConfigError> {
    match value {
        None | Some(Tree::Null) => Ok(SecretInput::Unset),
        Some(Tree::Text(text)) => parse_text(setting, text, resolver),
        Some(Tree::Map(entries)) => parse_ref(setting, entries).map(SecretInput::Ref),
        Some(other) => Err(ConfigError::bad(
            setting,
            other.kind(),
            "a string or { source, provider, id }",
        )),
    }
}

fn parse_text(setting: &str, text: &str, resolver: &Resolver) -> Result<SecretInput, ConfigError> {
    if text.trim().is_empty() {
        return Ok(SecretInput::Unset);
    }
    if let Some(name) = shorthand(text) {
        return Ok(SecretInput::Ref(SecretRef {
            source: Source::Env,
            provider: resolver.env_default().to_owned(),
            id: name.to_owned(),
        }));
    }
    // The reference replaces `${…}` anywhere in a string. Here a secret is one or the other, or the literal would
    // protect less than it seems to.
    if text.replace("$${", "").contains("${") {
        return Err(ConfigError::BadValue {
            setting: setting.to_owned(),
            got: "a text that holds ${…} among other characters".to_owned(),
            want: "the secret itself (with $${ for a literal ${), or only \"${NAME}\" with NAME in capitals"
                .to_owned(),
        });
    }
    let literal = Zeroizing::new(text.replace("$${", "${"));
    Ok(SecretInput::Literal(Secret::new(literal.as_bytes())))
}

/// `${NAME}` or `$NAME`, alone.
fn shorthand(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('$')?;
    let name = match inner.strip_prefix('{') {
        Some(rest) => rest.strip_suffix('}')?,
        None => inner,
    };
    is_env_name(name).then_some(name)
}

fn parse_ref(setting: &str, entries: &[(String, Tree)]) -> Result<SecretRef, ConfigError> {
    let bad = |what: &str, want: &str| {
        ConfigError::bad(&format!("{setting}.{what}"), "missing or malformed", want)
    };
    if let Some((key, _)) = entries
        .iter()
        .find(|(key, _)| !matches!(key.as_str(), "source" | "provider" | "id"))
    {
        return Err(ConfigError::UnknownKey {
            setting: format!("{setting}.{}", key.escape_debug()),
            nearest: None,
        });
    }
    let text = |name: &str| {
        entries.iter().find_map(|(key, value)| match value {
            Tree::Text(text) if key == name => Some(text.as_str()),
            _ => None,
        })
    };
    let source = text("source")
        .and_then(Source::from_wire)
        .ok_or_else(|| bad("source", "one of env, file, exec, store"))?;
    let provider = text("provider")
        .filter(|name| is_alias(name))
        .ok_or_else(|| {
            bad(
                "provider",
                "a name of secrets.providers: a-z first, then a-z, 0-9, _ or -, at most 64",
            )
        })?;
    let id = text("id")
        .filter(|id| is_id(source, id))
        .ok_or_else(|| bad("id", id_rule(source)))?;
    Ok(SecretRef {
        source,
        provider: provider.to_owned(),
        id: id.to_owned(),
    })
}

fn is_id(source: Source, id: &str) -> bool {
    match source {
        Source::Env | Source::Store => is_env_name(id),
        Source::File => id == "value" || (id.starts_with('/') && id.len() <= 512),
        Source::Exec => {
            let mut bytes = id.bytes();
            bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
                && id.len() <= 256
                && bytes.all(|b| b.is_ascii_alphanumeric() || b"._:/#-".contains(&b))
                && !id.split('/').any(|part| part == "." || part == "..")
        }
    }
}

fn id_rule(source: Source) -> &'static str {
    match source {
        Source::Env | Source::Store => "a name of A-Z, 0-9 and _, a letter first, at most 128",
        Source::File => {
            "a JSON pointer such as /gateway/password, or \"value\" for a singleValue file"
        }
        Source::Exec => {
            "letters, digits and . _ : / # -, a letter or digit first, no . or .. between slashes"
        }
    }
}

pub(super) fn is_env_name(name: &str) -> bool {
    name.len() <= 128
        && name.starts_with(|c: char| c.is_ascii_uppercase())
        && name
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

fn is_alias(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
}

impl Resolver {
    /// Reads `secrets`. `home` is where a leading `~/` points.
    pub(super) fn from_config(
        tree: &Tree,
        env: Env,
        home: Option<&Path>,
    ) -> Result<Self, ConfigError> {
        let mut providers = BTreeMap::new();
        if let Some(Tree::Map(entries)) = tree.at("secrets.providers") {
            for (name, _) in entries {
                let setting = format!("secrets.providers.{}", name.escape_debug());
                if !is_alias(name) {
                    return Err(ConfigError::BadValue {
                        setting,
                        got: "not a provider's name".to_owned(),
                        want: "a-z first, then a-z, 0-9, _ or -, at most 64".to_owned(),
                    });
                }
                providers.insert(name.clone(), parse_provider(&setting, tree, home)?);
            }
        }
        let env_default = match tree.at("secrets.defaults.env") {
            Some(Tree::Text(name)) => Some(name.clone()),
            _ => None,
        };
        Ok(Self {
            env,
            providers,
            env_default,
        })
    }

    fn env_default(&self) -> &str {
        self.env_default.as_deref().unwrap_or(DEFAULT_PROVIDER)
    }

    /// Reads the secret now. `Ok(None)` only for an unset one; a weak one is refused under its setting's name.
    pub fn resolve(
        &self,
        setting: &str,
        input: &SecretInput,
    ) -> Result<Option<Secret>, ConfigError> {
        let secret = self.read(setting, input)?;
        if let Some(secret) = &secret {
            check_strength(setting, secret)?;
        }
        Ok(secret)
    }

    /// As `resolve`, without judging its strength: a client has to send what the other side has.
    pub fn read(&self, setting: &str, input: &SecretInput) -> Result<Option<Secret>, ConfigError> {
        match input {
            SecretInput::Unset => Ok(None),
            SecretInput::Literal(secret) => Ok(Some(secret.clone())),
            SecretInput::Ref(reference) => match self.fetch(reference) {
                Ok(secret) => Ok(Some(secret)),
                Err(why) => Err(ConfigError::UnresolvedSecret {
                    setting: setting.to_owned(),
                    why: format!("{reference}: {why}"),
                }),
            },
        }
    }

    fn fetch(&self, reference: &SecretRef) -> Result<Secret, String> {
        let provider = self
            .providers
            .get(&reference.provider)
            .filter(|provider| provider.source() == reference.source);
        let secret = match (reference.source, provider) {
            (Source::Exec, Some(Provider::Exec(Some(program)))) => {
                program.fetch(reference, &self.env)?
            }
            (Source::Exec, Some(Provider::Exec(None))) => {
                return Err(
                    "providers of plugins are not served; name the program itself as command"
                        .to_owned(),
                );
            }
            (Source::Store, _) => {
                return Err("the shared store is not served; use env or file".to_owned());
            }
            (Source::Env, Some(Provider::Env { allowlist })) => {
                if allowlist
                    .as_ref()
                    .is_some_and(|names| !names.contains(&reference.id))
                {
                    return Err(format!(
                        "secrets.providers.{}.allowlist does not name it",
                        reference.provider
                    ));
                }
                self.fetch_env(&reference.id)?
            }
            (Source::Env, _) if reference.provider == self.env_default() => {
                self.fetch_env(&reference.id)?
            }
            (
                Source::File,
                Some(Provider::File {
                    path,
                    whole,
                    bytes_max,
                }),
            ) => fetch_file(path, *whole, *bytes_max, &reference.id)?,
            _ => {
                return Err(format!(
                    "secrets.providers.{} with source \"{}\" is missing",
                    reference.provider,
                    reference.source.as_str()
                ));
            }
        };
        if secret.expose().trim_ascii().is_empty() {
            return Err("it is empty".to_owned());
        }
        Ok(secret)
    }

    /// When the file of a reference was last written, if it is one and is there.
    pub fn changed_at_ms(&self, reference: &SecretRef) -> Option<u64> {
        let Some(Provider::File { path, .. }) = self.providers.get(&reference.provider) else {
            return None;
        };
        let modified = std::fs::symlink_metadata(path).ok()?.modified().ok()?;
        let since = modified.duration_since(std::time::UNIX_EPOCH).ok()?;
        u64::try_from(since.as_millis()).ok()
    }

    fn fetch_env(&self, name: &str) -> Result<Secret, String> {
        self.env
            .secret(name)
            .ok_or_else(|| format!("the environment variable {name} is not set"))
    }
}

fn parse_provider(
    setting: &str,
    tree: &Tree,
    home: Option<&Path>,
) -> Result<Provider, ConfigError> {
    let reader = Reader { tree };
    let named = |key: &str| format!("{setting}.{key}");
    let bad = |key: &str, want: &str| ConfigError::bad(&named(key), "missing or malformed", want);
    let source = reader.text(&named("source"))?.and_then(Source::from_wire);
    match source.ok_or_else(|| bad("source", "one of env, file, exec, store"))? {
        Source::Env => {
            let allowlist = reader.texts(&named("allowlist"))?;
            Ok(Provider::Env { allowlist })
        }
        Source::File => {
            let path = reader.text(&named("path"))?;
            let path = path.ok_or_else(|| bad("path", "the path of a private file"))?;
            let modes = [("json", false), ("singleValue", true)];
            let whole = reader.one_of(&named("mode"), &modes)?;
            let bytes_max = reader.whole(&named("maxBytes"), (1, FILE_BYTES_MOST))?;
            Ok(Provider::File {
                path: expand_home(path, home),
                whole: whole.unwrap_or(false),
                bytes_max: bytes_max.unwrap_or(FILE_BYTES_DEFAULT),
            })
        }
        Source::Exec => {
            let program = ExecProvider::parse(setting, tree, home)?;
            Ok(Provider::Exec(program.map(Box::new)))
        }
        Source::Store => Ok(Provider::Store),
    }
}

/// Replaces a leading `~/`.
pub(super) fn expand_home(path: &str, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    }
}

fn fetch_file(path: &Path, whole: bool, bytes_max: u64, id: &str) -> Result<Secret, String> {
    let file = files::open(path)
        .map_err(|error| error.to_string())?
        .ok_or_else(|| format!("{} is not there", path.display()))?;
    let links = file.metadata().map_err(|error| error.to_string())?.nlink();
    if links != 1 {
        // Another name for the same file may stand where others can reach it.
        return Err(format!(
            "{} has {links} names (hard links); put a copy in its place",
            path.display()
        ));
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(bytes_max.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    if bytes.len() as u64 > bytes_max {
        return Err(format!(
            "{} is longer than {bytes_max} bytes",
            path.display()
        ));
    }
    if whole {
        if id != "value" {
            return Err("a singleValue file has only the id \"value\"".to_owned());
        }
        let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        return Ok(Secret::new(text.strip_suffix(b"\r").unwrap_or(text)));
    }
    let text =
        std::str::from_utf8(&bytes).map_err(|_| format!("{} is not UTF-8", path.display()))?;
    let document = tree::parse_secrets(text).map_err(|why| format!("{}: {why}", path.display()))?;
    match pointer(&document, id) {
        Some(Tree::Text(text)) => Ok(Secret::new(text.as_bytes())),
        Some(other) => Err(format!("{id} is {}, not a string", other.kind())),
        None => Err(format!("{} has nothing at {id}", path.display())),
    }
}

/// RFC 6901, over objects.
fn pointer<'a>(document: &'a Tree, pointer: &str) -> Option<&'a Tree> {
    let mut node = document;
    for token in pointer.strip_prefix('/')?.split('/') {
        node = node.key(&token.replace("~1", "/").replace("~0", "~"))?;
    }
    Some(node)
}

/// Refuses a secret that everyone knows. Not a measure of entropy: that is the operator's part.
pub fn check_strength(setting: &str, secret: &Secret) -> Result<(), ConfigError> {
    let weak = |why| ConfigError::WeakSecret {
        setting: setting.to_owned(),
        why,
    };
    let bytes = secret.expose();
    if bytes.trim_ascii().is_empty() {
        return Err(weak("is blank"));
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Err(weak("is not UTF-8, so no client could send it"));
    };
    let text = text.trim();
    if text.len() < SECRET_BYTES_MIN {
        return Err(weak("has fewer than 8 bytes"));
    }
    let word = Zeroizing::new(text.to_ascii_lowercase().replace('_', "-"));
    let wrapped = [
        ("<", ">"),
        ("${", "}"),
        ("{{", "}}"),
        ("$(", ")"),
        ("%", "%"),
    ]
    .iter()
    .any(|(open, close)| word.starts_with(open) && word.ends_with(close));
    if wrapped
        || shorthand(text).is_some()
        || PLACEHOLDERS.iter().any(|start| word.starts_with(start))
        || word.ends_with("-here")
    {
        return Err(weak("is a placeholder"));
    }
    let stem = word.trim_end_matches(|c: char| c.is_ascii_digit() || "!.?-".contains(c));
    if WELL_KNOWN.contains(&stem) || WELL_KNOWN.contains(&word.as_str()) {
        return Err(weak("is a well-known word"));
    }
    // Each byte follows the one before by the same step: aaaaaaaa, 12345678, 987654321, abcdefgh; 0 follows 9.
    let steps = |step: u8| {
        let follows = |pair: &[u8]| {
            pair[0].wrapping_add(step) == pair[1]
                || (step == 1 && (pair[0], pair[1]) == (b'9', b'0'))
        };
        word.as_bytes().windows(2).all(follows)
    };
    if [0, 1, u8::MAX].into_iter().any(steps) {
        return Err(weak("is a row of characters that everyone tries"));
    }
    Ok(())
}
