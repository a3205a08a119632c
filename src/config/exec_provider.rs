//! Secrets that a program prints.
//!
//! In: a provider and a reference's id; then the program's reply. Out: a `Secret`. Attacker controls: whatever the
//! program prints. Bounds: the provider's `timeoutMs`, `noOutputTimeoutMs` and `maxOutputBytes`; no shell, no
//! environment but what is named, and nothing of its process group outlives the answer. Errors: sentences that hold
//! nothing of what was printed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use zeroize::Zeroizing;

use super::env::Env;
use super::error::ConfigError;
use super::reader::Reader;
use super::secret_ref::{self, SecretRef};
use super::tree::Tree;
use crate::base::Secret;
use crate::exec::output::Stream;
use crate::machine::files;
use crate::machine::process::{self, End, Spec};

/// The one version of the protocol.
const PROTOCOL_VERSION: f64 = 1.0;
/// What the reference waits for at most, and for how long if nothing is said.
const TIMEOUT_MS: (u64, u64) = (1, 120_000);
const TIMEOUT_MS_DEFAULT: u64 = 5000;
const OUTPUT_BYTES: (u64, u64) = (1, 20 * 1024 * 1024);
const OUTPUT_BYTES_DEFAULT: u64 = 1024 * 1024;
const ARGS_MAX: usize = 128;

/// One entry of `secrets.providers` with source `exec`.
#[derive(Clone, Debug)]
pub(super) struct ExecProvider {
    command: PathBuf,
    args: Vec<String>,
    timeout: Duration,
    silence: Duration,
    output_bytes_max: usize,
    json_only: bool,
    env: Vec<(String, String)>,
    pass_env: Vec<String>,
    trusted_dirs: Vec<PathBuf>,
}

impl ExecProvider {
    /// `None` for a provider of a plugin, of which there are none here.
    pub(super) fn parse(
        prefix: &str,
        tree: &Tree,
        home: Option<&Path>,
    ) -> Result<Option<Self>, ConfigError> {
        let reader = Reader { tree };
        let named = |key: &str| format!("{prefix}.{key}");
        let bad =
            |key: &str, want: &str| ConfigError::bad(&named(key), "missing or malformed", want);
        if tree.at(&named("pluginIntegration")).is_some() {
            return Ok(None);
        }
        let path = |text: &str| secret_ref::expand_home(text, home);
        let command = reader.text(&named("command"))?.map(path);
        let command = command
            .filter(|path| path.is_absolute())
            .ok_or_else(|| bad("command", "the absolute path of a program"))?;
        // As they are written: a space may matter.
        let args = match tree.at(&named("args")) {
            None => Some(Vec::new()),
            Some(Tree::List(items)) if items.len() <= ARGS_MAX => items.iter().map(text).collect(),
            Some(_) => None,
        };
        let env = match tree.at(&named("env")) {
            None => Some(Vec::new()),
            Some(Tree::Map(entries)) => entries.iter().map(variable).collect(),
            Some(_) => None,
        };
        let pass_env = reader.list(&named("passEnv"))?;
        if !pass_env.iter().all(|name| secret_ref::is_env_name(name)) {
            let want = "a list of names of A-Z, 0-9 and _, a letter first";
            return Err(bad("passEnv", want));
        }
        let dirs = reader.list(&named("trustedDirs"))?;
        let trusted_dirs: Vec<PathBuf> = dirs.iter().map(|dir| path(dir)).collect();
        if !trusted_dirs.iter().all(|dir| dir.is_absolute()) {
            return Err(bad("trustedDirs", "a list of absolute paths"));
        }
        let whole = |key, range| reader.whole(&named(key), range);
        let timeout_ms = whole("timeoutMs", TIMEOUT_MS)?.unwrap_or(TIMEOUT_MS_DEFAULT);
        let silence_ms = whole("noOutputTimeoutMs", TIMEOUT_MS)?.unwrap_or(timeout_ms);
        let output_bytes = whole("maxOutputBytes", OUTPUT_BYTES)?.unwrap_or(OUTPUT_BYTES_DEFAULT);
        Ok(Some(Self {
            command,
            args: args.ok_or_else(|| bad("args", "at most 128 texts"))?,
            timeout: Duration::from_millis(timeout_ms),
            silence: Duration::from_millis(silence_ms),
            output_bytes_max: usize::try_from(output_bytes).unwrap_or(usize::MAX),
            json_only: reader.flag_or(&named("jsonOnly"), true)?,
            env: env.ok_or_else(|| {
                bad(
                    "env",
                    "an object of texts without ${…}; passEnv passes variables on",
                )
            })?,
            pass_env,
            trusted_dirs,
        }))
    }

    /// Runs the program and reads its reply. Blocks for at most the provider's time.
    pub(super) fn fetch(&self, reference: &SecretRef, env: &Env) -> Result<Secret, String> {
        files::check_program(&self.command, &self.trusted_dirs)
            .map_err(|error| error.to_string())?;
        let request = json!({
            "protocolVersion": 1, "provider": reference.provider, "ids": [reference.id],
        });
        let passed = self
            .pass_env
            .iter()
            .filter_map(|name| Some((name.clone(), env.text(name)?)));
        let variables = passed.chain(self.env.iter().cloned());
        let name = self.command.to_string_lossy().into_owned();
        let spec = Spec {
            program: self.command.clone(),
            argv: std::iter::once(name)
                .chain(self.args.iter().cloned())
                .collect(),
            cwd: PathBuf::from("/"),
            env: variables
                .map(|(name, value)| (OsString::from(name), OsString::from(value)))
                .collect(),
            stdin: Some(request.to_string().into_bytes()),
            timeout: Some(self.timeout),
            silence: Some(self.silence),
        };
        let (end, printed) = self.run(spec)?;
        match end {
            End::Exited(status) if status.success() => {
                parse_reply(&printed, &reference.id, self.json_only).map_err(|why| why.to_string())
            }
            End::Exited(status) => Err(format!("its program failed ({status})")),
            End::TimedOut => Err(format!("its program took longer than {:?}", self.timeout)),
            End::Silent => Err(format!(
                "its program printed nothing for {:?}",
                self.silence
            )),
            End::Stopped => Err(format!(
                "its program printed more than {} bytes",
                self.output_bytes_max
            )),
        }
    }

    /// On a thread and a runtime of its own: callers are not always asynchronous, and providers run rarely.
    fn run(&self, spec: Spec) -> Result<(End, Zeroizing<Vec<u8>>), String> {
        let work = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let mut left = self.output_bytes_max;
            let mut printed = Zeroizing::new(Vec::with_capacity(4096));
            // What it says of its troubles may hold the secret too: counted, and not kept.
            let take = |stream, bytes: &[u8]| {
                let fits = bytes.len() <= left;
                left = left.saturating_sub(bytes.len());
                if fits && stream == Stream::Stdout {
                    printed.extend_from_slice(bytes);
                }
                fits
            };
            let end = runtime.block_on(process::run(spec, std::future::pending(), take));
            // A program that cannot be killed is given up; waiting for it here would be waiting for ever.
            runtime.shutdown_background();
            std::io::Result::Ok((end?, printed))
        };
        std::thread::scope(|scope| scope.spawn(work).join())
            .map_err(|_| "its program could not be watched".to_owned())?
            .map_err(|error| format!("its program could not be run: {error}"))
    }
}

fn text(value: &Tree) -> Option<String> {
    match value {
        Tree::Text(text) if !text.contains('\0') => Some(text.clone()),
        _ => None,
    }
}

fn variable((name, value): &(String, Tree)) -> Option<(String, String)> {
    let is_name = !name.is_empty() && !name.contains(['=', '\0']);
    let value = text(value).filter(|value| is_name && !value.contains("${"))?;
    Some((name.clone(), value))
}

/// Why a reply is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplyError {
    NotUtf8,
    /// Not a JSON object, or one that two readers could read differently.
    NotJson,
    Version,
    /// The provider's own word, if it is one that is known to hold no secret.
    Refused(Option<&'static str>),
    Missing,
    NotText,
    Empty,
}

impl std::fmt::Display for ReplyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotUtf8 => "its program's reply is not UTF-8",
            Self::NotJson => "its program's reply is not a JSON object without repeated keys",
            Self::Version => "its program's reply has not protocolVersion 1",
            Self::Refused(Some(code)) => return write!(f, "its program says {code}"),
            Self::Refused(None) => "its program reports an error",
            Self::Missing => "its program's reply has no value for it",
            Self::NotText => "its program's value for it is not a string",
            Self::Empty => "its program's value for it is empty",
        })
    }
}

impl std::error::Error for ReplyError {}

/// The value of one id in what a provider printed. Unless `json_only`, what is not a JSON object is the value itself,
/// without the end of its line.
pub fn parse_reply(printed: &[u8], id: &str, json_only: bool) -> Result<Secret, ReplyError> {
    let text = std::str::from_utf8(printed).map_err(|_| ReplyError::NotUtf8)?;
    let secret = |text: &str| {
        let blank = text.trim().is_empty();
        (!blank)
            .then(|| Secret::new(text.as_bytes()))
            .ok_or(ReplyError::Empty)
    };
    if !json_only && !text.trim_start().starts_with('{') {
        let line = text.strip_suffix('\n').unwrap_or(text);
        return secret(line.strip_suffix('\r').unwrap_or(line));
    }
    let reply: Tree = serde_json::from_str(text).map_err(|_| ReplyError::NotJson)?;
    if !matches!(reply, Tree::Map(_)) {
        return Err(ReplyError::NotJson);
    }
    if !matches!(
        reply.key("protocolVersion"),
        Some(Tree::Number(PROTOCOL_VERSION))
    ) {
        return Err(ReplyError::Version);
    }
    if let Some(error) = reply.key("errors").and_then(|errors| errors.key(id)) {
        let known = ["NOT_FOUND", "AMBIGUOUS_DUPLICATE_KEY"];
        return Err(ReplyError::Refused(match error.key("code") {
            Some(Tree::Text(code)) => known.into_iter().find(|known| known == code),
            _ => None,
        }));
    }
    match reply.key("values").and_then(|values| values.key(id)) {
        None => Err(ReplyError::Missing),
        Some(Tree::Text(text)) => secret(text),
        Some(_) => Err(ReplyError::NotText),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(text: &str) -> Result<String, ReplyError> {
        let secret = parse_reply(text.as_bytes(), "a/b", true)?;
        Ok(String::from_utf8(secret.expose().to_vec()).unwrap())
    }

    #[test]
    fn only_a_whole_reply_for_this_id_counts() {
        let good = r#"{"protocolVersion":1,"values":{"a/b":"s3","c":"x"},"note":7}"#;
        assert_eq!(reply(good), Ok("s3".to_owned()));
        for (text, why) in [
            ("", ReplyError::NotJson),
            ("s3", ReplyError::NotJson),
            ("[]", ReplyError::NotJson),
            (
                r#"{"protocolVersion":1,"values":{"a/b":"x","a/b":"y"}}"#,
                ReplyError::NotJson,
            ),
            (
                r#"{"protocolVersion":1,"values":{"a/b":"x"}} x"#,
                ReplyError::NotJson,
            ),
            (r#"{"values":{"a/b":"x"}}"#, ReplyError::Version),
            (
                r#"{"protocolVersion":"1","values":{"a/b":"x"}}"#,
                ReplyError::Version,
            ),
            (
                r#"{"protocolVersion":2,"values":{"a/b":"x"}}"#,
                ReplyError::Version,
            ),
            (
                r#"{"protocolVersion":1,"values":{"c":"x"}}"#,
                ReplyError::Missing,
            ),
            (
                r#"{"protocolVersion":1,"values":["x"]}"#,
                ReplyError::Missing,
            ),
            (
                r#"{"protocolVersion":1,"values":{"a/b":5}}"#,
                ReplyError::NotText,
            ),
            (
                r#"{"protocolVersion":1,"values":{"a/b":" "}}"#,
                ReplyError::Empty,
            ),
            (
                r#"{"protocolVersion":1,"values":{"a/b":"x"},"errors":{"a/b":{"code":"NOT_FOUND"}}}"#,
                ReplyError::Refused(Some("NOT_FOUND")),
            ),
            (
                r#"{"protocolVersion":1,"errors":{"a/b":{"code":"s3cret","message":"s3cret"}}}"#,
                ReplyError::Refused(None),
            ),
        ] {
            assert_eq!(reply(text), Err(why), "{text}");
            assert!(!why.to_string().contains("s3cret"));
        }
        assert_eq!(
            parse_reply(b"\xff", "a", false).err(),
            Some(ReplyError::NotUtf8)
        );
    }

    #[test]
    fn plain_text_counts_only_where_it_was_allowed() {
        let plain =
            |text: &str| parse_reply(text.as_bytes(), "a", false).map(|it| it.expose().to_vec());
        assert_eq!(plain("s3\r\n"), Ok(b"s3".to_vec()));
        assert_eq!(plain("12345"), Ok(b"12345".to_vec()));
        assert_eq!(plain("\n"), Err(ReplyError::Empty));
        // An object is a reply, whatever was allowed.
        assert_eq!(plain("{\"token\":\"x\"}"), Err(ReplyError::Version));
    }
}
