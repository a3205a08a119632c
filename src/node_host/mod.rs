//! The node host: executes on this machine what the Gateway sends, within this machine's own policy.
//!
//! In: a command's name and its parameters as JSON text. Out: the result as JSON text, or the node's error.
//! Attacker controls: both, if the Gateway is not what it should be; the mode here holds whatever the Gateway says.
//! Bounds: `EXEC_*` and `BROWSER_*` of `base::limits`: commands at once, output, arguments, environment, names.
//! Errors: `NodeError`, in the reference's codes and words. A command that ran and failed is a result, not an error.

pub mod browser;
pub mod connect;
pub mod execute;
mod policy;
mod prepare;
pub mod retry;
pub mod which;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use ring::hmac;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::base::limits::EXEC_RUNS_MAX;
use crate::exec::{self, Mode};
use crate::machine;

/// The commands of every node host, for its declaration.
pub const COMMANDS: &[&str] = &[
    "system.execApprovals.get",
    "system.execApprovals.set",
    "system.run",
    "system.run.prepare",
    "system.which",
];

/// What the operator of this machine has set.
#[derive(Clone, Debug)]
pub struct Settings {
    pub mode: Mode,
    /// This machine's own exec policy file; it tightens the mode, and holds the allowlists.
    pub policy_path: Option<PathBuf>,
    /// Where commands run when they name no directory; absolute.
    pub cwd: PathBuf,
    /// The environment that commands inherit, before `exec::env` takes out what they must not see.
    pub env: Vec<(OsString, OsString)>,
    /// The browsers that `browser.proxy` reaches; without it that command is not declared.
    pub browser: Option<browser::Profiles>,
}

impl Settings {
    /// This process's own directory and environment.
    pub fn of_process(mode: Mode) -> std::io::Result<Self> {
        Ok(Self {
            mode,
            policy_path: None,
            cwd: std::env::current_dir()?,
            env: std::env::vars_os().collect(),
            browser: None,
        })
    }
}

/// What all commands of one node share.
#[derive(Debug)]
pub struct Host {
    mode: Mode,
    policy_path: Option<PathBuf>,
    /// Held from reading the policy file to writing it.
    writing: Mutex<()>,
    cwd: PathBuf,
    env: Vec<(OsString, OsString)>,
    path: OsString,
    slots: Arc<Semaphore>,
    /// Under which digests of files leave this host.
    key: hmac::Key,
    browser: Option<browser::Profiles>,
    /// The commands that it serves, of those that it knows.
    offered: Vec<&'static str>,
}

impl Host {
    pub fn new(settings: Settings) -> Self {
        // A name that is not UTF-8 cannot be judged, so it is not handed on.
        let env: Vec<_> = settings
            .env
            .into_iter()
            .filter(|(name, _)| name.to_str().is_some_and(exec::env::is_inherited))
            .collect();
        let path = env.iter().find(|(name, _)| name == "PATH");
        let mut offered = COMMANDS.to_vec();
        offered.extend(settings.browser.as_ref().map(|_| browser::COMMAND));
        Self {
            mode: settings.mode,
            policy_path: settings.policy_path,
            writing: Mutex::new(()),
            cwd: settings.cwd,
            path: path.map_or_else(|| which::PATH_DEFAULT.into(), |(_, path)| path.clone()),
            env,
            slots: Arc::new(Semaphore::new(EXEC_RUNS_MAX)),
            key: hmac::Key::new(hmac::HMAC_SHA256, &machine::random::<32>()),
            browser: settings.browser,
            offered,
        }
    }

    /// The same with no more than these commands; the error is one that it does not know.
    pub fn offering(mut self, commands: &[String]) -> Result<Self, String> {
        let known = |name: &String| self.offered.iter().find(|known| *known == name).copied();
        self.offered = commands
            .iter()
            .map(|name| known(name).ok_or_else(|| name.clone()))
            .collect::<Result<_, _>>()?;
        Ok(self)
    }

    /// A name as the host finds it in its `PATH`, or a path against a command's directory.
    fn find_program(&self, program: &str, cwd: &std::path::Path) -> Option<PathBuf> {
        if program.contains('/') {
            let path = cwd.join(program);
            return which::is_executable(&path).then_some(path);
        }
        which::find(program, &self.path)
    }

    /// A variable of the host's own environment.
    fn env_text(&self, name: &str) -> Option<String> {
        let found = self.env.iter().find(|(known, _)| known == name);
        found.and_then(|(_, value)| value.to_str().map(str::to_owned))
    }

    fn slot(&self) -> Result<tokio::sync::OwnedSemaphorePermit, NodeError> {
        Arc::clone(&self.slots).try_acquire_owned().map_err(|_| {
            NodeError::new(
                "UNAVAILABLE",
                format!("node is busy: {EXEC_RUNS_MAX} commands are under way"),
            )
        })
    }
}

/// One invocation's surroundings.
#[derive(Clone, Debug)]
pub struct Context {
    pub host: Arc<Host>,
    pub cancelled: Cancelled,
    /// Takes what a command prints while it runs, if somebody listens.
    pub progress: Option<mpsc::Sender<String>>,
}

/// Ends an invocation by being dropped: one that nobody waits for does not go on.
pub type Canceller = watch::Sender<()>;

/// Learns that an invocation was ended.
#[derive(Clone, Debug)]
pub struct Cancelled(watch::Receiver<()>);

/// One invocation's two ends of cancellation.
pub fn cancellation() -> (Canceller, Cancelled) {
    let (canceller, receiver) = watch::channel(());
    (canceller, Cancelled(receiver))
}

impl Cancelled {
    /// Cancel-safe. Returns at once if it has happened already.
    pub async fn wait(&mut self) {
        // Nothing is ever sent: an error means that the `Canceller` is gone.
        let _ = self.0.changed().await;
    }

    fn is_set(&self) -> bool {
        self.0.has_changed().is_err()
    }
}

/// The error of a `node.invoke.result`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeError {
    pub code: &'static str,
    pub message: String,
}

impl NodeError {
    /// The code after `cancel`; the reference then sends nothing.
    pub const CANCELLED: &'static str = "CANCELLED";

    fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    fn invalid(message: impl Into<String>) -> Self {
        Self::new("INVALID_REQUEST", message)
    }

    /// The node's own policy says no.
    fn denied(reason: &str) -> Self {
        Self::new("SYSTEM_RUN_DENIED", format!("SYSTEM_RUN_DENIED: {reason}"))
    }

    fn cancelled() -> Self {
        Self::new(Self::CANCELLED, "node invoke cancelled")
    }
}

/// Executes one command. Dropping the future ends what it started, as `Canceller` does.
pub async fn handle(
    command: &str,
    params_json: Option<&str>,
    context: &Context,
) -> Result<String, NodeError> {
    if !context.host.offered.contains(&command) {
        return Err(NodeError::new("UNAVAILABLE", "command not supported"));
    }
    let params_json = params_json
        .ok_or_else(|| NodeError::invalid("Error: INVALID_REQUEST: paramsJSON required"))?;
    match command {
        browser::COMMAND => browser::proxy(params_json, &context.host).await,
        "system.execApprovals.get" => policy::get(params_json, &context.host).await,
        "system.execApprovals.set" => policy::set(params_json, &context.host).await,
        "system.run" => execute::run(params_json, context).await,
        "system.run.prepare" => prepare::prepare(params_json, context).await,
        _ => which::answer(params_json, &context.host).await,
    }
}

/// Work that may block on the disk, away from the sockets.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NodeError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| NodeError::new("UNAVAILABLE", "node host is stopping"))
}

fn payload(value: &impl serde::Serialize) -> Result<String, NodeError> {
    serde_json::to_string(value)
        .map_err(|_| NodeError::new("UNAVAILABLE", "result is not representable as JSON"))
}

#[cfg(test)]
mod tests;
