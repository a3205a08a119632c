//! `system.run.prepare`: says exactly what `system.run` would do, so that it can be approved.
//!
//! In: a command as somebody wrote it. Out: a plan: program and directory as they are on this machine, a digest of
//! the files that decide what runs, the policy of the moment. Attacker controls: the parameters, and files that the user may write.
//! Bounds: `EXEC_OPERAND_NAMES_MAX` names are looked up, in `EXEC_GLOB_ENTRIES_MAX` places;  `EXEC_OPERANDS_MAX` files and `EXEC_OPERAND_BYTES_MAX` of them are
//! hashed. Errors: `NodeError`.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ring::digest::{Context as Digest, SHA256};
use ring::hmac;
use serde::Serialize;

use super::execute::{Params, absolute_cwd};
use super::{Cancelled, Context, Host, NodeError, blocking, payload, which};
use crate::base::ids::hex_lower;
use crate::base::limits::{
    EXEC_GLOB_ENTRIES_MAX, EXEC_GLOB_FILES_MAX, EXEC_OPERAND_BYTES_MAX, EXEC_OPERAND_NAMES_MAX,
    EXEC_OPERANDS_MAX,
};
use crate::exec::allowlist::{self, Rule};
use crate::exec::env::Overrides;
use crate::exec::words::{self, Name};
use crate::exec::{FileOperand, Mode, Plan, PolicySnapshot, argv_text, shell};

/// How machine code begins: ELF, and Mach-O for one machine or several.
const MACHINE_CODE: &[&[u8]] = &[b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe"];

/// The longest pattern for one name: as long as Linux's longest name.
const FILE_NAME_MAX: usize = 255;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    plan: Plan,
    exec_policy: ExecPolicy,
    allow_always_coverage: Coverage,
}

#[derive(Serialize)]
struct ExecPolicy {
    security: &'static str,
    ask: &'static str,
}

/// The rule that an allow-always would keep, if one can cover the command.
#[derive(Serialize)]
struct Coverage {
    complete: bool,
    patterns: Vec<Rule>,
}

pub(super) async fn prepare(params_json: &str, context: &Context) -> Result<String, NodeError> {
    let params = Params::parse(params_json)?;
    let argv = params.command()?;
    let asked = match (&params.security, &params.ask) {
        (None, None) => Mode::Full,
        (security, ask) => Mode::from_legacy(security.as_deref(), ask.as_deref(), None)
            .map_err(|error| NodeError::invalid(format!("INVALID_REQUEST: {error}")))?,
    };
    let slot = context.host.slot()?;
    let context = context.clone();
    blocking(move || {
        // Hashing goes on for a moment when nobody waits any more.
        let _slot = slot;
        answer(&context, &params, argv, asked)
    })
    .await?
}

/// The plan names the program and its files even where nobody needs to be asked here: the Gateway may ask, and what it
/// then sends is held to the plan.
fn answer(
    context: &Context,
    params: &Params,
    mut argv: Vec<String>,
    asked: Mode,
) -> Result<String, NodeError> {
    let host = &context.host;
    let policy = host.policy(params.agent_id.as_deref());
    let mode = policy.mode.merge(asked);
    if mode == Mode::Deny {
        let own = policy.mode == Mode::Deny;
        let reason = own.then(|| host.deny_reason());
        return Err(NodeError::denied(reason.unwrap_or("security=deny")));
    }
    let cwd = absolute_cwd(host, params.cwd.as_deref());
    let cwd = fs::canonicalize(cwd)
        .ok()
        .filter(|cwd| cwd.is_dir())
        .and_then(|cwd| cwd.into_os_string().into_string().ok())
        .ok_or_else(|| {
            NodeError::invalid("SYSTEM_RUN_DENIED: approval requires an existing canonical cwd")
        })?;
    let preview = shell::inline_text(&argv).map(str::to_owned);
    // A program that is not there stays as written; running it will say so.
    if let Some(program) = host
        .find_program(&argv[0], Path::new(&cwd))
        .and_then(|path| path.into_os_string().into_string().ok())
    {
        argv[0] = program;
    }
    let bound = match host.bind(&argv, params.env(), Path::new(&cwd), &context.cancelled) {
        // It runs as long as no approval is claimed for it.
        Err(_) if mode == Mode::Full => Bound {
            operand: None,
            exact: None,
            may_keep: false,
        },
        bound => bound?,
    };
    // Rules cover a command as it is, without variables that somebody sets.
    let exact = bound.exact.filter(|_| params.sets_nothing());
    let allowing = |rule: &&Rule| {
        let exact = exact.as_ref();
        exact.is_some_and(|(exact, name)| rule.allows(exact, name))
    };
    // A rule's digest goes out keyed like the plan's.
    let keyed = |rule: &Rule| Rule {
        arg_pattern: rule.arg_pattern.as_deref().map(|it| host.keyed(it)),
        ..rule.clone()
    };
    let rules = policy.rules.iter().filter(allowing);
    let rules: Vec<_> = rules.map(|rule| serde_json::json!(keyed(rule))).collect();
    let may_keep = bound.may_keep || !rules.is_empty();
    let patterns: Vec<Rule> = exact
        .iter()
        .filter(|_| may_keep)
        .map(|(rule, _)| keyed(rule))
        .collect();
    let (security, ask) = mode.legacy();
    payload(&Answer {
        plan: Plan {
            command_text: argv_text::render(&argv),
            argv,
            cwd: Some(cwd),
            command_preview: preview,
            agent_id: params.agent_id.clone(),
            session_key: params.session_key.clone(),
            mutable_file_operand: bound.operand,
            policy_snapshot: Some(PolicySnapshot {
                allowlist_rules: rules,
                ..PolicySnapshot::of(policy.mode)
            }),
        },
        exec_policy: ExecPolicy { security, ask },
        allow_always_coverage: Coverage {
            complete: !patterns.is_empty(),
            patterns,
        },
    })
}

/// What an approval of a command holds to.
pub(super) struct Bound {
    /// For the plan. Its digest is keyed, so that nobody who plans learns what a file holds.
    pub operand: Option<FileOperand>,
    /// The rule that covers exactly this command, and the name that its program is called by.
    pub exact: Option<(Rule, String)>,
    /// The program is machine code; a script needs an interpreter, and a look each time.
    pub may_keep: bool,
}

impl Host {
    /// The files whose content decides what argv does: the program, the shell or wrapper around it, and whatever its
    /// arguments and variables name, since which of it runs is for the program to say (`bash --rcfile README.md evil.sh`).
    /// Of what a shell's text does not name outright, only a pattern's files are found; `words::warning` says so.
    ///
    /// A file that cannot be read or is too large has no digest. An interpreter with such a file cannot be approved; for
    /// others it stands by its number, size and time of change.
    pub(super) fn bind(
        &self,
        argv: &[String],
        env: Option<&Overrides>,
        cwd: &Path,
        cancelled: &Cancelled,
    ) -> Result<Bound, NodeError> {
        let inner = allowlist::inner(argv);
        let words = allowlist::words(argv);
        let text = shell::inline_text(argv);
        let may_stamp = text.is_some() || allowlist::is_plain(&words[0]);
        let program = self.find_program(&words[0], cwd);
        let real = program.as_ref().and_then(|it| fs::canonicalize(it).ok());
        let takes_data = |path: &PathBuf| path.to_str().is_some_and(allowlist::takes_data_only);
        let mut names = Names {
            // What a plain command calls is its program.
            of_programs: inner.is_none(),
            of_patterns: !text.is_some_and(words::only_looks),
            ..Names::default()
        };
        if !program.as_ref().is_some_and(takes_data) {
            for (index, word) in words.iter().enumerate() {
                names.take(index, word, cancelled)?;
            }
            names.of_programs = false;
            for value in env.into_iter().flat_map(Overrides::values) {
                names.take(0, value, cancelled)?;
            }
        }
        let files = self.files(program.as_deref(), &names, cwd, cancelled)?;
        let mut left = EXEC_OPERAND_BYTES_MAX;
        let mut may_keep = false;
        let mut line = |file: &Named| {
            let path = file.path.as_path();
            let is_program = Some(path) == program.as_deref();
            let hashed = match file.is_matched {
                true => None,
                false => content(path, &mut left, cancelled),
            };
            let digest = match hashed {
                Some((sha256, is_machine_code)) => {
                    may_keep |= is_program && is_machine_code;
                    sha256
                }
                None if cancelled.is_set() => return Err(NodeError::cancelled()),
                None if may_stamp || file.is_matched => stamp(path).ok_or_else(unbound)?,
                None => return Err(unbound()),
            };
            // The program's path stands in the rule and in the plan.
            let path = path.to_str().ok_or_else(unbound)?;
            let path = if is_program { "" } else { path };
            Ok(format!("{} {digest} {path}\n", file.index))
        };
        let mut list = files.iter().map(&mut line).collect::<Result<String, _>>()?;
        // The shell or wrapper around it is bound, and is no part of a rule for what is inside.
        let around = self
            .find_program(&argv[0], cwd)
            .filter(|it| files.iter().all(|known| known.path != *it))
            .map(Named::program);
        let around_line = around.as_ref().map(line).transpose()?;
        let exact = || {
            let inner = inner.as_ref()?;
            let real = real
                .as_ref()?
                .to_str()
                .filter(|it| allowlist::is_plain(it))?;
            let rule = Rule::exact(real, &list, inner, cwd.to_str()?);
            Some((rule, inner[0].clone()))
        };
        let exact = exact();
        list.extend(around_line);
        // The first file that is not the program stands for all of them.
        let operand = files
            .iter()
            .find(|file| Some(&file.path) != program.as_ref())
            .or(files.first())
            .or(around.as_ref())
            .map(|file| FileOperand {
                argv_index: argv
                    .iter()
                    .position(|arg| arg.contains(&words[file.index]))
                    .unwrap_or(0),
                path: file.path.display().to_string(),
                sha256: self.keyed(&list),
            });
        Ok(Bound {
            operand,
            exact,
            may_keep,
        })
    }

    /// The files that these names stand for on this machine, the program first, each once.
    fn files(
        &self,
        program: Option<&Path>,
        names: &Names,
        cwd: &Path,
        cancelled: &Cancelled,
    ) -> Result<Vec<Named>, NodeError> {
        let mut files: Vec<Named> = program.map(Named::program).into_iter().collect();
        let mut add = |index: usize, path: PathBuf, is_matched: bool| {
            if path.is_file() && files.iter().all(|known| known.path != path) {
                files.push(Named {
                    index,
                    path,
                    is_matched,
                });
            }
            (files.len() <= EXEC_OPERANDS_MAX)
                .then_some(())
                .ok_or_else(unbound)
        };
        let home = self.env_text("HOME");
        for (index, name) in &names.literals {
            if let Some((name, home)) = name.strip_prefix("~/").zip(home.as_ref()) {
                add(*index, Path::new(home).join(name), false)?;
            }
            add(*index, cwd.join(name), false)?;
        }
        let mut entries_left = EXEC_GLOB_ENTRIES_MAX;
        for (index, pattern) in &names.patterns {
            let (from, pattern) = match pattern.strip_prefix("~/").zip(home.as_ref()) {
                Some((rest, home)) => (Path::new(home), rest),
                None => (cwd, pattern.as_str()),
            };
            for path in matching(from, pattern, &mut entries_left, cancelled).unwrap_or_default() {
                add(*index, path, true)?;
            }
        }
        for (index, name) in &names.bare {
            let programs = self.find_program(name, cwd).into_iter();
            // `. FILE` and `sh FILE` look there for a file that need not be executable.
            for path in programs.chain(which::first(name, &self.path, Path::is_file)) {
                add(*index, path, false)?;
            }
        }
        Ok(files)
    }

    /// As only this host, until it ends, can say it again.
    fn keyed(&self, text: &str) -> String {
        hex_lower(hmac::sign(&self.key, text.as_bytes()).as_ref())
    }
}

fn unbound() -> NodeError {
    NodeError::denied("approval cannot safely bind this file")
}

/// A file that a command names.
struct Named {
    /// Of the word that names it.
    index: usize,
    path: PathBuf,
    /// A pattern stands for it: its content is not bound, only what it looks like from outside.
    is_matched: bool,
}

impl Named {
    fn program(path: impl Into<PathBuf>) -> Self {
        Self {
            index: 0,
            path: path.into(),
            is_matched: false,
        }
    }
}

/// What a command may name, each name once, in the order in which it does.
#[derive(Default)]
struct Names {
    of_programs: bool,
    of_patterns: bool,
    known: HashSet<(u8, String)>,
    literals: Vec<(usize, String)>,
    bare: Vec<(usize, String)>,
    patterns: Vec<(usize, String)>,
}

impl Names {
    fn take(&mut self, index: usize, word: &str, cancelled: &Cancelled) -> Result<(), NodeError> {
        words::each_name(word, &mut |name| {
            if cancelled.is_set() {
                return Err(NodeError::cancelled());
            }
            let (kind, list, name) = match name {
                Name::Literal(name) => (0, &mut self.literals, name),
                Name::Bare(name) if self.of_programs => (1, &mut self.bare, name),
                Name::Pattern(name) if self.of_patterns => (2, &mut self.patterns, name),
                Name::Bare(_) | Name::Pattern(_) => return Ok(()),
            };
            if !self.known.insert((kind, name.to_owned())) {
                return Ok(());
            }
            list.push((index, name.to_owned()));
            let has_room = list.len() <= EXEC_OPERAND_NAMES_MAX;
            has_room.then_some(()).ok_or_else(unbound)
        })
    }
}

/// The files that a shell's pattern stands for, if they and what is looked through are not too many.
fn matching(
    from: &Path,
    pattern: &str,
    entries_left: &mut usize,
    cancelled: &Cancelled,
) -> Option<Vec<PathBuf>> {
    let root = if pattern.starts_with('/') {
        Path::new("/")
    } else {
        from
    };
    let mut paths = vec![root.to_owned()];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        let tokens = words::tokens(part);
        let mut next = Vec::new();
        for dir in paths {
            *entries_left = entries_left.checked_sub(1)?;
            if let Some(name) = words::plain_name(&tokens) {
                next.push(dir.join(name));
                continue;
            }
            for entry in fs::read_dir(&dir).into_iter().flatten() {
                *entries_left = entries_left.checked_sub(1)?;
                let entry = entry.ok()?;
                let name = entry.file_name();
                if tokens.len() > FILE_NAME_MAX || cancelled.is_set() {
                    return None;
                }
                if allowlist::matches(&tokens, name.to_str()?) {
                    next.push(entry.path());
                }
            }
        }
        paths = next;
    }
    paths.retain(|path| path.is_file());
    paths.sort();
    (paths.len() <= EXEC_GLOB_FILES_MAX).then_some(paths)
}

/// A file's digest, and whether it is machine code, if all of it is among the bytes that are left.
fn content(path: &Path, left: &mut u64, cancelled: &Cancelled) -> Option<(String, bool)> {
    // Without `NONBLOCK` a FIFO that was put in the file's place would hold the thread for ever.
    let mut file: File = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .ok()?;
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || metadata.len() > *left {
        return None;
    }
    let mut digest = Digest::new(&SHA256);
    let mut piece = vec![0; 64 * 1024];
    let mut is_machine_code = None;
    while !cancelled.is_set() {
        match file.read(&mut piece) {
            Ok(0) => {
                let is_machine_code = is_machine_code.unwrap_or(false);
                return Some((hex_lower(digest.finish().as_ref()), is_machine_code));
            }
            Ok(bytes) => {
                let begins = |magic: &&[u8]| piece[..bytes].starts_with(magic);
                is_machine_code.get_or_insert_with(|| MACHINE_CODE.iter().any(begins));
                digest.update(&piece[..bytes]);
                *left = left.checked_sub(bytes as u64)?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    None
}

/// Changes with each writing of the file, and no user can set it back.
fn stamp(path: &Path) -> Option<String> {
    let it = path.metadata().ok()?;
    let (dev, ino, size) = (it.dev(), it.ino(), it.size());
    Some(format!(
        "{dev}.{ino}.{size}.{}.{}",
        it.ctime(),
        it.ctime_nsec()
    ))
}
