//! `node install|uninstall|status|stop|identity`: the node host as a service of this user, and the one that runs.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::args::{NodeInstallArgs, NodeRunArgs};
use super::exit::{Exit, Failure};
use super::output;
use super::session::Context;
use crate::client::{Identity, identity};
use crate::machine::files;
use crate::store::{StateLock, StoreError};

/// Held by the node host of a profile while it runs.
pub const LOCK: &str = "node.lock";
/// What the node host that runs said last of its connection.
const STATE: &str = "node.state";
const STATE_BYTES_MAX: u64 = 4096;
const UNIT: &str = "portcullis-node.service";
/// A unit file without this first line is somebody else's.
const MARK: &str =
    "# Written by `portcullis node install`; `portcullis node uninstall` removes it.";
const ENV_FILE: &str = "node.env";
const ENV_TEXT: &str =
    "# Read by the node service, for nobody else to see:\n# OPENCLAW_GATEWAY_PASSWORD=\n";
/// How long a node host may take to end.
const STOP_TIME: Duration = Duration::from_secs(10);

pub fn identity(context: &Context) -> Result<(), Failure> {
    let dir = context.settings.paths.identity_dir();
    let identity = Identity::load_or_create(&dir)?;
    // The device id is the SHA-256 of the public key: what an operator sees in the pairing queue.
    let facts = [
        ("deviceId", identity.id().to_string()),
        ("publicKey", identity.public_key().to_wire()),
        ("fingerprint", format!("sha256:{}", identity.id())),
        ("path", dir.join(identity::KEY_FILE).display().to_string()),
    ];
    show(context, &facts.map(|(name, value)| (name, json!(value))));
    Ok(())
}

pub fn status(context: &Context) -> Result<(), Failure> {
    let pid = holder(context)?;
    let unit = unit_path(context).ok().filter(|path| path.exists());
    let unit = unit.map(|path| path.display().to_string());
    let facts = [
        ("running", json!(pid.is_some())),
        ("pid", json!(pid)),
        (
            "state",
            json!(pid.and_then(|pid| state(&context.settings.paths.own, pid))),
        ),
        ("unit", json!(unit)),
    ];
    show(context, &facts);
    match pid {
        Some(_) => Ok(()),
        None => Err(Failure::new(
            Exit::Refused,
            "no node host runs with this profile",
        )),
    }
}

/// Keeps what a running node host says of its connection, for `node status`. It runs as well without.
pub fn keep_state(own: &Path, sentence: &str) {
    let state = json!({"pid": std::process::id(), "state": sentence});
    let _ = files::replace(&own.join(STATE), state.to_string().as_bytes());
}

/// What this process said last; what one before it said counts no more.
fn state(own: &Path, pid: i32) -> Option<String> {
    let bytes = files::read(&own.join(STATE), STATE_BYTES_MAX).ok()??;
    let state: Value = serde_json::from_slice(&bytes).ok()?;
    let is_its_own = state["pid"] == pid;
    is_its_own.then(|| state["state"].as_str().map(str::to_owned))?
}

/// Ends the node host that holds the lock, and no other process.
#[cfg(target_os = "linux")]
pub fn stop(context: &Context) -> Result<(), Failure> {
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

    let none = || Failure::new(Exit::Refused, "no node host runs with this profile");
    let pid = holder(context)?.ok_or_else(none)?;
    let raw = Pid::from_raw(pid).ok_or_else(none)?;
    let process = pidfd_open(raw, PidfdFlags::empty()).map_err(|_| none())?;
    // From here on the descriptor names one process for good; it is the right one if it still holds the lock.
    if holder(context)? != Some(pid) {
        return Err(none());
    }
    pidfd_send_signal(&process, Signal::TERM).map_err(|error| {
        Failure::new(
            Exit::Config,
            format!("process {pid} cannot be told to stop: {error}"),
        )
    })?;
    let deadline = Instant::now() + STOP_TIME;
    while holder(context)? == Some(pid) {
        if Instant::now() >= deadline {
            let sentence = format!(
                "process {pid} has not ended within {} s",
                STOP_TIME.as_secs()
            );
            return Err(Failure::new(Exit::Temporary, sentence));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    output::line(&format!("stopped process {pid}"));
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub fn stop(_: &Context) -> Result<(), Failure> {
    Err(only_linux("node stop"))
}

/// Takes the profile's lock for a node host.
pub fn lock(context: &Context) -> Result<StateLock, Failure> {
    let own = &context.settings.paths.own;
    files::ensure_dir(own).map_err(|error| stored(error.into()))?;
    StateLock::take(own, LOCK).map_err(stored)
}

fn holder(context: &Context) -> Result<Option<i32>, Failure> {
    StateLock::holder(&context.settings.paths.own, LOCK).map_err(stored)
}

pub fn install(context: &Context, args: &NodeInstallArgs) -> Result<(), Failure> {
    if !cfg!(target_os = "linux") {
        return Err(only_linux("node install"));
    }
    let common = &context.common;
    if common.url.is_some() || common.token.is_some() || common.password.is_some() {
        let sentence = "node install takes no --url, --token or --password: a unit file is for everyone to read";
        let env = context.settings.paths.own.join(ENV_FILE);
        return Err(Failure::new(Exit::Config, sentence).with_remedy(format!(
            "say --host, --port and --tls, and put the secret into {}",
            env.display()
        )));
    }
    let program = std::env::current_exe().map_err(|error| {
        Failure::new(Exit::Software, format!("this program has no path: {error}"))
    })?;
    let text = unit(context, &program, &args.run)?;
    if args.print {
        output::line(text.trim_end());
        return Ok(());
    }
    let path = unit_path(context)?;
    check_ours(&path)?;
    let own = &context.settings.paths.own;
    files::ensure_dir(own).map_err(|error| stored(error.into()))?;
    let env = own.join(ENV_FILE);
    if !env.exists() {
        let mut file = files::create_new(&env).map_err(|error| stored(error.into()))?;
        file.write_all(ENV_TEXT.as_bytes())
            .map_err(|error| broken(&env, &error))?;
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(|error| broken(folder, &error))?;
    let beside = path.with_extension("service.new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o644);
    options
        .open(&beside)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&beside, &path))
        .map_err(|error| broken(&path, &error))?;
    output::line(&format!("wrote {}", path.display()));
    output::line(&format!("secrets go into {} (mode 0600)", env.display()));
    output::line(&format!(
        "next: systemctl --user daemon-reload && systemctl --user enable --now {UNIT}"
    ));
    Ok(())
}

pub fn uninstall(context: &Context) -> Result<(), Failure> {
    if !cfg!(target_os = "linux") {
        return Err(only_linux("node uninstall"));
    }
    let path = unit_path(context)?;
    if !check_ours(&path)? {
        return Err(Failure::new(
            Exit::Refused,
            format!("{} is not there", path.display()),
        ));
    }
    fs::remove_file(&path).map_err(|error| broken(&path, &error))?;
    output::line(&format!("removed {}", path.display()));
    output::line(&format!(
        "a service that runs goes on until: systemctl --user disable --now {UNIT}"
    ));
    Ok(())
}

/// The systemd unit. Exit code 78 says that a restart cures nothing (decision 17).
fn unit(context: &Context, program: &Path, args: &NodeRunArgs) -> Result<String, Failure> {
    let mut words = vec![program.display().to_string()];
    let common = &context.common;
    words.extend(
        common
            .profile
            .iter()
            .flat_map(|name| ["--profile".to_owned(), name.clone()]),
    );
    let pin = common.tls_fingerprint.iter();
    words.extend(pin.flat_map(|pin| ["--tls-fingerprint".to_owned(), pin.clone()]));
    words.extend(["node", "run", "--host"].map(str::to_owned));
    words.push(args.host.clone());
    words.extend(
        args.port
            .iter()
            .flat_map(|port| ["--port".to_owned(), port.to_string()]),
    );
    words.extend(args.tls.then(|| "--tls".to_owned()));
    words.extend(args.no_tls.then(|| "--no-tls".to_owned()));
    let name = args.display_name.iter();
    words.extend(name.flat_map(|name| ["--display-name".to_owned(), name.clone()]));
    let commands = args.commands.iter();
    words.extend(commands.flat_map(|list| ["--commands".to_owned(), list.join(",")]));
    let exec: Vec<String> = words
        .iter()
        .map(|word| quoted(word))
        .collect::<Result<_, _>>()?;
    let mut places = String::new();
    for name in ["OPENCLAW_STATE_DIR", "OPENCLAW_CONFIG_PATH"] {
        if let Some(place) = context.settings.env.path(name) {
            let setting = quoted(&format!("{name}={}", place.display()))?;
            places.push_str(&format!("Environment={setting}\n"));
        }
    }
    let env = context.settings.paths.own.join(ENV_FILE);
    let env = env.display().to_string().replace('%', "%%");
    Ok(format!(
        "{MARK}\n[Unit]\nDescription=Portcullis node host\nWants=network-online.target\nAfter=network-online.target\n\n\
         [Service]\nExecStart={}\n{places}EnvironmentFile=-{env}\nRestart=on-failure\nRestartSec=5\n\
         RestartPreventExitStatus=78\nKillMode=mixed\nUMask=0077\n\n[Install]\nWantedBy=default.target\n",
        exec.join(" ")
    ))
}

/// A word as systemd.syntax(7) reads it back: no specifiers, no variables, no escapes.
fn quoted(word: &str) -> Result<String, Failure> {
    if word.chars().any(char::is_control) {
        let sentence = format!("{word:?} cannot stand in a unit file");
        return Err(Failure::new(Exit::Config, sentence));
    }
    let escaped = word
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('%', "%%")
        .replace('$', "$$");
    Ok(format!("\"{escaped}\""))
}

fn unit_path(context: &Context) -> Result<PathBuf, Failure> {
    let env = &context.settings.env;
    let home = context.settings.paths.home.as_ref();
    let config = env
        .path("XDG_CONFIG_HOME")
        .or_else(|| home.map(|home| home.join(".config")));
    let config = config.ok_or_else(|| Failure::new(Exit::Config, "there is no home directory"))?;
    Ok(config.join("systemd/user").join(UNIT))
}

/// Whether our unit is there. One that we did not write, or a link, is refused.
fn check_ours(path: &Path) -> Result<bool, Failure> {
    let foreign = || {
        Failure::new(
            Exit::Config,
            format!("{} is not ours; nothing was changed", path.display()),
        )
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(broken(path, &error)),
        Ok(found) if !found.is_file() => Err(foreign()),
        Ok(_) => {
            let text = fs::read_to_string(path).map_err(|error| broken(path, &error))?;
            if text.starts_with(MARK) {
                Ok(true)
            } else {
                Err(foreign())
            }
        }
    }
}

/// A lock that is held may be free at the next try.
#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn stored(error: StoreError) -> Failure {
    let exit = if error.is_temporary() {
        Exit::Temporary
    } else {
        Exit::Config
    };
    Failure::new(exit, error.to_string())
}

fn only_linux(what: &str) -> Failure {
    Failure::new(Exit::Config, format!("{what} is served on Linux only"))
        .with_remedy("run `portcullis node run` under a supervisor of your own")
}

fn broken(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Config, format!("{}: {error}", path.display()))
}

fn show(context: &Context, facts: &[(&str, Value)]) {
    if context.common.json {
        let object: serde_json::Map<String, Value> = facts
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect();
        output::line(&format!("{:#}", Value::Object(object)));
        return;
    }
    for (name, value) in facts {
        let text = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        output::line(&format!("{name:<12}{text}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_of_a_unit_is_read_back_as_it_was() {
        assert_eq!(
            quoted("a b\"c\\d%h$HOME").unwrap(),
            "\"a b\\\"c\\\\d%%h$$HOME\""
        );
        assert!(quoted("a\nExecStartPre=/bin/sh").is_err());
    }
}
