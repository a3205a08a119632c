//! `system.run.prepare`: says exactly what `system.run` would do, so that it can be approved.
//!
//! In: a command as somebody wrote it. Out: a plan: program and directory as they are on this machine, the digest of the
//! file that runs, the policy of the moment. Attacker controls: the parameters, and files that the user may write.
//! Bounds: `EXEC_OPERANDS_MAX` files and `EXEC_OPERAND_BYTES_MAX` of them are hashed. Errors: `NodeError`.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::digest::{Context as Digest, SHA256};
use serde::Serialize;

use super::execute::{Params, absolute_cwd};
use super::{Host, NodeError, blocking, payload};
use crate::base::ids::hex_lower;
use crate::base::limits::{EXEC_OPERAND_BYTES_MAX, EXEC_OPERANDS_MAX};
use crate::exec::allowlist::{self, Rule};
use crate::exec::{FileOperand, Mode, Plan, PolicySnapshot, argv_text, shell};

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

pub(super) async fn prepare(params_json: &str, host: &Arc<Host>) -> Result<String, NodeError> {
    let params = Params::parse(params_json)?;
    let argv = params.command()?;
    let asked = match (&params.security, &params.ask) {
        (None, None) => Mode::Full,
        (security, ask) => Mode::from_legacy(security.as_deref(), ask.as_deref(), None)
            .map_err(|error| NodeError::invalid(format!("INVALID_REQUEST: {error}")))?,
    };
    let _slot = host.slot()?;
    let host = Arc::clone(host);
    blocking(move || answer(&host, &params, argv, asked)).await?
}

fn answer(
    host: &Host,
    params: &Params,
    argv: Vec<String>,
    asked: Mode,
) -> Result<String, NodeError> {
    let policy = host.policy(params.agent_id.as_deref());
    let mode = policy.mode.merge(asked);
    if mode == Mode::Deny {
        let own = policy.mode == Mode::Deny;
        let reason = own.then(|| host.deny_reason());
        return Err(NodeError::denied(reason.unwrap_or("security=deny")));
    }
    let mut plan = plan(host, params, argv, mode)?;
    // Rules cover a command as it is, without variables that somebody sets.
    let cwd = plan.cwd.as_deref().map(Path::new);
    let exact = cwd
        .filter(|_| params.sets_nothing())
        .and_then(|cwd| host.exact_rule(&plan.argv, cwd, None));
    let allowing = |rule: &&Rule| {
        let exact = exact.as_ref();
        exact.is_some_and(|(exact, name)| rule.allows(exact, name))
    };
    let rules = policy.rules.iter().filter(allowing);
    plan.policy_snapshot = Some(PolicySnapshot {
        allowlist_rules: rules.map(|rule| serde_json::json!(rule)).collect(),
        ..PolicySnapshot::of(policy.mode)
    });
    let (security, ask) = mode.legacy();
    payload(&Answer {
        plan,
        exec_policy: ExecPolicy { security, ask },
        allow_always_coverage: Coverage {
            complete: exact.is_some(),
            patterns: exact.into_iter().map(|(rule, _)| rule).collect(),
        },
    })
}

/// The plan names the program and its file even where nobody needs to be asked here: the Gateway may ask, and what it
/// then sends is held to the plan.
fn plan(
    host: &Host,
    params: &Params,
    mut argv: Vec<String>,
    mode: Mode,
) -> Result<Plan, NodeError> {
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
    let operand = match file_operand(&argv, Path::new(&cwd)) {
        // It runs as long as no approval is claimed for it.
        Err(_) if mode == Mode::Full => None,
        operand => operand?,
    };
    Ok(Plan {
        command_text: argv_text::render(&argv),
        argv,
        cwd: Some(cwd),
        command_preview: preview,
        agent_id: params.agent_id.clone(),
        session_key: params.session_key.clone(),
        mutable_file_operand: operand,
        policy_snapshot: None,
    })
}

/// The file whose content decides what argv does: the program behind plain wrappers; for an interpreter, or wrappers that
/// are not followed, the program and every file among its arguments, since which of them it runs is for its options to
/// say (`bash --rcfile README.md evil.sh`).
///
/// Another `sh -c TEXT` has none, as the text is all there is. A file that cannot be read or is too large has no digest,
/// so what runs it cannot be approved.
pub(super) fn file_operand(argv: &[String], cwd: &Path) -> Result<Option<FileOperand>, NodeError> {
    let files: Vec<(usize, PathBuf)> =
        if let Some([program, ..]) = allowlist::inner(argv).as_deref() {
            let index = argv.iter().position(|arg| arg.contains(program));
            let path = cwd.join(program);
            path.is_file()
                .then_some((index.unwrap_or(0), path))
                .into_iter()
                .collect()
        } else if shell::inline_text(argv).is_some() && allowlist::is_system(&argv[0]) {
            return Ok(None);
        } else {
            argv.iter()
                .enumerate()
                .flat_map(|(index, arg)| file_names(arg).map(move |name| (index, cwd.join(name))))
                .filter(|(_, path)| path.is_file())
                .take(EXEC_OPERANDS_MAX + 1)
                .collect()
        };
    let unbound = || NodeError::denied("approval cannot safely bind this file");
    let bytes = files
        .iter()
        .map(|(_, path)| path.metadata().map_or(0, |metadata| metadata.len()));
    if files.len() > EXEC_OPERANDS_MAX || bytes.sum::<u64>() > EXEC_OPERAND_BYTES_MAX {
        return Err(unbound());
    }
    // The first file that is not the program stands for all of them.
    let Some((argv_index, path)) = files.get(1).or(files.first()) else {
        return Ok(None);
    };
    let digests = files.iter().map(|(index, path)| {
        let sha256 = file_sha256(path).ok_or_else(unbound)?;
        Ok(format!("{index} {sha256} {}\n", path.display()))
    });
    let sha256 = if files.len() == 1 {
        file_sha256(path).ok_or_else(unbound)?
    } else {
        let list = digests.collect::<Result<String, NodeError>>()?;
        hex_lower(ring::digest::digest(&SHA256, list.as_bytes()).as_ref())
    };
    let path = path.to_str().ok_or_else(unbound)?.to_owned();
    Ok(Some(FileOperand {
        argv_index: *argv_index,
        path,
        sha256,
    }))
}

/// What of an argument may name a file: all of it, `FILE` in `--name=FILE`, and `FILE` in `-fFILE`.
fn file_names(arg: &str) -> impl Iterator<Item = &str> {
    let after_equals = arg.split_once('=').map(|(_, name)| name);
    let after_letter = arg.strip_prefix('-').and_then(|it| {
        let mut letters = it.chars();
        letters.next().map(|_| letters.as_str())
    });
    [Some(arg), after_equals, after_letter]
        .into_iter()
        .flatten()
}

pub(super) fn file_sha256(path: &Path) -> Option<String> {
    // Without `NONBLOCK` a FIFO that was put in the file's place would hold the thread for ever.
    let file: File = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut digest = Digest::new(&SHA256);
    let mut piece = vec![0; 64 * 1024];
    let mut file = file.take(EXEC_OPERAND_BYTES_MAX + 1);
    let mut total: u64 = 0;
    loop {
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(bytes) => {
                digest.update(&piece[..bytes]);
                total += bytes as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    (total <= EXEC_OPERAND_BYTES_MAX).then(|| hex_lower(digest.finish().as_ref()))
}
