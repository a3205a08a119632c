//! `system.run`: this machine's own word on a command, and its execution.
//!
//! In: parameters as the Gateway wrote them. Out: exit code and output, or a refusal. Attacker controls: all of the
//! parameters. Bounds: as `exec::plan`, `exec::env` and `process` say. Errors: `NodeError`; a program that cannot be
//! started is a result with `error` and without `exitCode`, as in the reference.

use std::convert::Infallible;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc};

use super::prepare::Bound;
use super::{Context, Host, NodeError, blocking, payload};
use crate::base::limits::{EXEC_OUTPUT_BYTES_MAX, INVOKE_TIMEOUT_MS_MAX, NODE_PROGRESS_BYTES_MAX};
use crate::exec::approvals_file::Policy;
use crate::exec::env::{self, Overrides};
use crate::exec::output::Capture;
use crate::exec::plan::check_argv;
use crate::exec::{Decision, Mode, Plan, PolicySnapshot, argv_text, shell};
use crate::machine::process::{self, End, Spec};

/// The exit code of a command whose time was up, as `timeout(1)` has it.
const EXIT_TIMED_OUT: i32 = 124;
/// Between two pieces of a command's output: at first, and after many.
const PROGRESS_PAUSE: Duration = Duration::from_millis(50);
const PROGRESS_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Parameters of `system.run` and `system.run.prepare`. Fields that we do not know are passed over.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Params {
    #[serde(default)]
    command: serde_json::Value,
    raw_command: Option<String>,
    system_run_plan: Option<Plan>,
    pub(super) cwd: Option<String>,
    #[serde(default)]
    env: Option<Overrides>,
    timeout_ms: Option<u64>,
    pub(super) agent_id: Option<String>,
    pub(super) session_key: Option<String>,
    pub(super) security: Option<String>,
    pub(super) ask: Option<String>,
    approved: Option<bool>,
    approval_decision: Option<String>,
    approval_source: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RunResult {
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    timed_out: bool,
    success: bool,
    stdout: String,
    stderr: String,
    error: Option<String>,
}

impl RunResult {
    fn not_started(error: String) -> Self {
        Self {
            exit_code: None,
            timed_out: false,
            success: false,
            stdout: String::new(),
            stderr: String::new(),
            error: Some(error),
        }
    }
}

impl Params {
    pub(super) fn env(&self) -> Option<&Overrides> {
        self.env.as_ref()
    }

    /// Whether the command gets this host's environment as it is.
    pub(super) fn sets_nothing(&self) -> bool {
        self.env.as_ref().is_none_or(Overrides::is_empty)
    }

    /// Whether the plan that the command comes with says that an allowlist names it.
    fn was_listed(&self) -> bool {
        let plan = self.system_run_plan.as_ref();
        plan.and_then(|plan| plan.policy_snapshot.as_ref())
            .is_some_and(|snapshot| !snapshot.allowlist_rules.is_empty())
    }

    pub(super) fn parse(params_json: &str) -> Result<Self, NodeError> {
        serde_json::from_str(params_json)
            .map_err(|_| NodeError::invalid("INVALID_REQUEST: params malformed"))
    }

    /// The argument vector, once it, its text and its environment are in order.
    pub(super) fn command(&self) -> Result<Vec<String>, NodeError> {
        let argv: Vec<String> = Deserialize::deserialize(&self.command)
            .map_err(|_| NodeError::invalid("INVALID_REQUEST: command required"))?;
        check_argv(&argv)
            .map_err(|error| NodeError::invalid(format!("INVALID_REQUEST: {error}")))?;
        if let Some(raw) = &self.raw_command {
            let is_inner = shell::inline_text(&argv) == Some(raw);
            if !is_inner && *raw != argv_text::render(&argv) {
                return Err(NodeError::invalid(
                    "INVALID_REQUEST: rawCommand does not match command",
                ));
            }
        }
        if let Some(overrides) = &self.env {
            env::check(overrides)
                .map_err(|refused| NodeError::invalid(format!("SYSTEM_RUN_DENIED: {refused}")))?;
        }
        Ok(argv)
    }
}

/// A command's directory: its own, against the host's if it is relative.
pub(super) fn absolute_cwd(host: &Host, cwd: Option<&str>) -> PathBuf {
    match cwd.filter(|cwd| !cwd.trim().is_empty()) {
        Some(cwd) => host.cwd.join(cwd),
        None => host.cwd.clone(),
    }
}

pub(super) async fn run(params_json: &str, context: &Context) -> Result<String, NodeError> {
    let params = Params::parse(params_json)?;
    let argv = params.command()?;
    let slot = context.host.slot()?;
    let (_slot, started) = {
        let context = context.clone();
        blocking(move || (slot, start(&context, params, argv))).await?
    };
    let spec = match started? {
        Ok(spec) => spec,
        Err(why) => return payload(&RunResult::not_started(why)),
    };
    let capture = Mutex::new(Capture::new(EXEC_OUTPUT_BYTES_MAX));
    let printed = Notify::new();
    let mut cancelled = context.cancelled.clone();
    let ended = process::run(spec, cancelled.wait(), |stream, bytes| {
        locked(&capture).push(stream, bytes);
        printed.notify_one();
        true
    });
    let ended = tokio::select! {
        ended = ended => ended,
        never = report(&capture, &printed, context.progress.as_ref()) => match never {},
    };
    let end = match ended {
        Ok(end) => end,
        Err(error) => return payload(&RunResult::not_started(error.to_string())),
    };
    let output = capture
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .finish();
    let (exit_code, error) = match end {
        End::Stopped => return Err(NodeError::cancelled()),
        End::TimedOut | End::Silent => (Some(EXIT_TIMED_OUT), None),
        End::Exited(status) => (status.code(), ended_by_signal(status)),
    };
    payload(&RunResult {
        exit_code,
        timed_out: end == End::TimedOut,
        success: exit_code == Some(0),
        stdout: output.stdout,
        stderr: output.stderr,
        error,
    })
}

fn locked(capture: &Mutex<Capture>) -> MutexGuard<'_, Capture> {
    capture.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands on what is printed, for as long as it is polled: what comes within a pause, or before the last piece was taken,
/// goes together. The pauses grow, so that a command that prints all day costs little.
async fn report(
    capture: &Mutex<Capture>,
    printed: &Notify,
    progress: Option<&mpsc::Sender<String>>,
) -> Infallible {
    let mut pause = PROGRESS_PAUSE;
    if let Some(progress) = progress {
        loop {
            tokio::time::sleep(pause).await;
            let Ok(place) = progress.reserve().await else {
                break;
            };
            let piece = locked(capture).next_piece(NODE_PROGRESS_BYTES_MAX);
            if piece.is_empty() {
                drop(place);
                printed.notified().await;
            } else {
                place.send(piece);
                pause = (pause + PROGRESS_PAUSE / 8).min(PROGRESS_PAUSE_MAX);
            }
        }
    }
    std::future::pending().await
}

fn ended_by_signal(status: std::process::ExitStatus) -> Option<String> {
    let signal = std::os::unix::process::ExitStatusExt::signal(&status)?;
    Some(format!("ended by signal {signal}"))
}

/// On what this machine lets a command run.
enum Permit {
    /// On its policy alone.
    Policy,
    /// On an approval; what it was for is looked at once more, and kept as a rule if `always`.
    Approval { always: bool },
}

/// Whether this machine lets the command run.
fn permit(
    policy: &Policy,
    params: &Params,
    argv: &[String],
    listed: impl Fn() -> bool,
) -> Result<Permit, NodeError> {
    let mode = policy.mode;
    let claims_approval = params.approved == Some(true) || params.approval_decision.is_some();
    if claims_approval && params.approval_source.is_some() {
        return Err(NodeError::invalid(
            "INVALID_REQUEST: approvalSource cannot be combined with an explicit approval",
        ));
    }
    match mode {
        Mode::Deny => return Err(NodeError::denied("security=deny")),
        Mode::Allowlist if !listed() => return Err(NodeError::denied("allowlist miss")),
        Mode::AskAlways if !claims_approval => return Err(NodeError::denied("approval required")),
        Mode::Ask if !claims_approval && !listed() => {
            return Err(NodeError::denied("approval required"));
        }
        // The Gateway may have asked nobody because the list held the command: then it still must.
        Mode::Full if !claims_approval && params.was_listed() && !listed() => {
            return Err(NodeError::denied("allowlist miss"));
        }
        _ if !claims_approval => return Ok(Permit::Policy),
        Mode::Allowlist | Mode::AskAlways | Mode::Ask | Mode::Full => {}
    }
    let decision = params.approval_decision.as_deref().map(Decision::parse);
    // `approved` without a decision says too little for a host that asks. A word that is no consent is a veto even
    // where nobody needs to be asked (the reference runs the command there).
    let consents = match decision {
        Some(decision) => decision.allows() && params.approved == Some(true),
        None => mode == Mode::Full,
    };
    if !consents {
        return Err(NodeError::denied("approval required"));
    }
    let plan = params
        .system_run_plan
        .as_ref()
        .filter(|plan| matches(plan, params, argv))
        .ok_or_else(|| {
            NodeError::invalid("INVALID_REQUEST: explicit approval requires matching systemRunPlan")
        })?;
    let Some(snapshot) = &plan.policy_snapshot else {
        return Err(NodeError::invalid(
            "INVALID_REQUEST: delayed approval requires a prepared policy snapshot",
        ));
    };
    // Rules that came or went since do not matter to what somebody approved.
    let words = PolicySnapshot {
        allowlist_rules: Vec::new(),
        ..snapshot.clone()
    };
    if words != PolicySnapshot::of(mode) {
        return Err(NodeError::denied(
            "exec approval policy changed; request approval again",
        ));
    }
    let always = decision == Some(Decision::AllowAlways) && mode != Mode::AskAlways;
    Ok(Permit::Approval { always })
}

fn matches(plan: &Plan, params: &Params, argv: &[String]) -> bool {
    plan.argv == argv
        && plan.command_text == argv_text::render(argv)
        && plan.cwd.is_some()
        && plan.cwd == params.cwd
        && plan.agent_id == params.agent_id
        && plan.session_key == params.session_key
}

/// Lets the command pass or not, and looks it up on the disk. The inner error is for a result that says why nothing was
/// started.
fn start(
    context: &Context,
    params: Params,
    argv: Vec<String>,
) -> Result<Result<Spec, String>, NodeError> {
    let host = &context.host;
    let policy = host.policy(params.agent_id.as_deref());
    let cwd = absolute_cwd(host, params.cwd.as_deref());
    let allows = |bound: &Bound| {
        let exact = bound.exact.as_ref().filter(|_| params.sets_nothing());
        exact.is_some_and(|(rule, name)| policy.allows(rule, name))
    };
    let listed = || {
        let cwd = std::fs::canonicalize(&cwd).ok();
        let bound = cwd.and_then(|cwd| {
            host.bind(&argv, params.env(), &cwd, &context.cancelled)
                .ok()
        });
        bound.is_some_and(|bound| allows(&bound))
    };
    if let Permit::Approval { always } = permit(&policy, &params, &argv, listed)? {
        let bound = check_files(context, &params, &argv, &cwd)?;
        let keep = always && bound.may_keep && params.sets_nothing() && !allows(&bound);
        if let Some((rule, _)) = bound.exact.filter(|_| keep) {
            host.keep_rule(params.agent_id.as_deref(), &rule);
        }
    }
    if !cwd.is_dir() {
        return Ok(Err(format!(
            "working directory does not exist: {}",
            cwd.display()
        )));
    }
    let Some(program) = host.find_program(&argv[0], &cwd) else {
        return Ok(Err(format!(
            "command not found or not executable: {}",
            argv_text::render(&argv[..1])
        )));
    };
    let mut env = host.env.clone();
    for (name, value) in params.env.unwrap_or_default() {
        env.push((OsString::from(name), OsString::from(value)));
    }
    // As in the reference, 0 is no limit of the command's own; the invocation's deadline stands.
    let timeout = params
        .timeout_ms
        .filter(|ms| *ms > 0)
        .map(|ms| Duration::from_millis(ms.min(INVOKE_TIMEOUT_MS_MAX)));
    Ok(Ok(Spec {
        program,
        argv,
        cwd,
        env,
        stdin: None,
        timeout,
        silence: None,
    }))
}

/// What was approved must still be what is on the disk: the directory not swapped for a link, the file not edited.
///
/// Between this and the start of the program lies a moment in which a file can still change; one who can write it then
/// needs no approval of ours to run things as this user.
fn check_files(
    context: &Context,
    params: &Params,
    argv: &[String],
    cwd: &Path,
) -> Result<Bound, NodeError> {
    if !argv[0].starts_with('/') {
        // A bare name that was nowhere when it was approved may be somewhere now.
        return Err(NodeError::denied("approval requires an absolute program"));
    }
    if std::fs::canonicalize(cwd).ok().as_deref() != Some(cwd) {
        return Err(NodeError::denied("approval cwd changed before execution"));
    }
    let plan = params.system_run_plan.as_ref();
    let approved = plan.and_then(|plan| plan.mutable_file_operand.as_ref());
    let present = context
        .host
        .bind(argv, params.env(), cwd, &context.cancelled)?;
    match (approved, &present.operand) {
        (None, Some(_)) => Err(NodeError::denied("approval missing script operand binding")),
        (approved, operand) if approved != operand.as_ref() => Err(NodeError::denied(
            "approval script operand changed before execution",
        )),
        _ => Ok(present),
    }
}
