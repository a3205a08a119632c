//! The program under test, as a process of its own with a home of its own.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::PATIENCE;

/// The shared secret of every Gateway here.
pub(crate) const PASSWORD: &str = "correct horse battery staple";

const PROGRAM: &str = env!("CARGO_BIN_EXE_portcullis");
/// Another process may take a port between our choice and the Gateway's bind.
const PORT_ATTEMPTS: u32 = 5;

/// How a Gateway is to be started.
#[derive(Default)]
pub(crate) struct Setup {
    config: Option<String>,
    env: Vec<(String, String)>,
    files: Vec<(String, String)>,
    wrapper: Vec<String>,
}

impl Setup {
    /// The text of `openclaw.json`.
    pub(crate) fn config(mut self, text: &str) -> Self {
        self.config = Some(text.to_owned());
        self
    }

    #[allow(dead_code)]
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A private file in the home directory.
    pub(crate) fn file(mut self, name: &str, text: &str) -> Self {
        self.files.push((name.to_owned(), text.to_owned()));
        self
    }

    /// A program that executes the Gateway as its last arguments say.
    pub(crate) fn wrapper(mut self, words: &[&str]) -> Self {
        self.wrapper = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    pub(crate) fn start(self) -> Gateway {
        let home = TempDir::new().unwrap();
        fs::create_dir(home.path().join("state")).unwrap();
        if let Some(config) = &self.config {
            write_private(&home.path().join("state/openclaw.json"), config);
        }
        for (name, text) in &self.files {
            write_private(&home.path().join(name), text);
        }
        for _ in 0..PORT_ATTEMPTS {
            let port = free_port();
            match Running::start(home.path(), port, &self.env, &self.wrapper) {
                Ok(running) => {
                    return Gateway {
                        home,
                        port,
                        env: self.env,
                        wrapper: self.wrapper,
                        running: Some(running),
                    };
                }
                Err(ended) if ended.code == Some(75) && ended.stderr.contains("port") => {}
                Err(ended) => panic!("the gateway did not start: {ended:?}"),
            }
        }
        panic!("no free port in {PORT_ATTEMPTS} attempts");
    }
}

/// Puts a private file in place as a whole.
pub(crate) fn write_private(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(&new, path).unwrap();
}

/// A port that nobody listens on, on either loopback address.
pub(crate) fn free_port() -> u16 {
    loop {
        let four = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = four.local_addr().unwrap().port();
        match TcpListener::bind(("::1", port)) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            _ => return port,
        }
    }
}

/// How a program ended that was to stay.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stderr: String,
}

/// A Gateway and the directory that is its whole world. Killed when dropped.
pub(crate) struct Gateway {
    home: TempDir,
    port: u16,
    env: Vec<(String, String)>,
    wrapper: Vec<String>,
    running: Option<Running>,
}

impl Gateway {
    /// In password mode, with nothing configured.
    pub(crate) fn start() -> Self {
        Setup::default().start()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.running.as_ref().unwrap().child.id()
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// The directory of Portcullis's own state.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.home.path().join("state/portcullis")
    }

    /// What it wrote to its standard error so far.
    pub(crate) fn stderr(&self) -> String {
        self.running
            .as_ref()
            .map_or_else(String::new, Running::stderr)
    }

    /// A new connection whose reads give up after `PATIENCE`.
    pub(crate) fn dial(&self) -> TcpStream {
        dial(self.address())
    }

    /// SIGKILL, as a power cut would end it.
    pub(crate) fn kill(&mut self) {
        drop(self.running.take());
    }

    /// SIGTERM, as a supervisor would end it.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        let mut running = self.running.take().unwrap();
        let pid = Pid::from_raw(running.child.id().try_into().unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        running.wait()
    }

    /// Starts it again on the same state and the same port.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.running =
            Some(Running::start(self.home.path(), self.port, &self.env, &self.wrapper).unwrap());
    }

    /// Starts a second Gateway on this state, which is expected to end by itself.
    pub(crate) fn second(&self, port: u16) -> Ended {
        match Running::start(self.home.path(), port, &self.env, &self.wrapper) {
            Ok(_) => panic!("a second gateway runs on the same state"),
            Err(ended) => ended,
        }
    }

    /// A command of the program in this Gateway's home; it finds the admin socket there.
    pub(crate) fn cli(&self, args: &[&str]) -> Output {
        program(self.home.path(), &[]).args(args).output().unwrap()
    }

    /// A command that must succeed, and the JSON that it prints.
    pub(crate) fn cli_json(&self, args: &[&str]) -> Value {
        let output = self.cli(&[args, &["--json"]].concat());
        assert!(output.status.success(), "{args:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The records of the audit log, one JSON text a line.
    pub(crate) fn audit(&self) -> String {
        let dir = self.state_dir().join("audit");
        let mut logs: Vec<PathBuf> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|it| it == "jsonl"))
            .collect();
        logs.sort();
        logs.iter()
            .map(|path| fs::read_to_string(path).unwrap())
            .collect()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("stderr of the gateway:\n{}", self.stderr());
        }
    }
}

/// A new connection whose reads give up after `PATIENCE`.
pub(super) fn dial(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// The program with nothing of this process's environment.
pub(crate) fn program(home: &Path, env: &[(String, String)]) -> Command {
    wrapped(&[], home, env)
}

fn wrapped(wrapper: &[String], home: &Path, env: &[(String, String)]) -> Command {
    let program = PROGRAM.to_owned();
    let mut words = wrapper.iter().chain([&program]);
    let mut command = Command::new(words.next().unwrap());
    command
        .args(words)
        .env_clear()
        .env("HOME", home)
        .env("PATH", "/usr/bin:/bin")
        .env("OPENCLAW_STATE_DIR", home.join("state"))
        .envs(env.iter().map(|(name, value)| (name, value)))
        .current_dir(home)
        .stdin(Stdio::null());
    command
}

struct Running {
    child: Child,
    stderr: Arc<Mutex<String>>,
    lines: Receiver<()>,
}

impl Running {
    /// Returns when `/readyz` says so, or with how the program ended instead.
    fn start(
        home: &Path,
        port: u16,
        env: &[(String, String)],
        wrapper: &[String],
    ) -> Result<Self, Ended> {
        let mut command = wrapped(wrapper, home, env);
        if !env
            .iter()
            .any(|(name, _)| name.starts_with("OPENCLAW_GATEWAY_"))
        {
            command.env("OPENCLAW_GATEWAY_PASSWORD", PASSWORD);
        }
        let mut child = command
            .args(["gateway", "run", "--port", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Neither a TLS listener nor one elsewhere than on loopback can be asked; there the program's own word counts.
        let config = fs::read_to_string(home.join("state/openclaw.json")).unwrap_or_default();
        let by_word = config.contains("tls:") || config.contains("bind:");
        let stderr = Arc::new(Mutex::new(String::new()));
        let (tell, lines) = channel();
        let pipe = child.stderr.take().unwrap();
        let kept = Arc::clone(&stderr);
        thread::spawn(move || {
            for line in BufReader::new(pipe).lines() {
                let Ok(line) = line else { break };
                let mut kept = kept.lock().unwrap();
                kept.push_str(&line);
                kept.push('\n');
                let _ = tell.send(());
            }
        });
        let mut running = Self {
            child,
            stderr,
            lines,
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match running.lines.recv_timeout(left) {
                Ok(())
                    if by_word && running.stderr().lines().any(|line| line.ends_with("ready")) =>
                {
                    return Ok(running);
                }
                Ok(())
                    if !by_word
                        && is_ready(port)
                        && running.child.try_wait().unwrap().is_none() =>
                {
                    return Ok(running);
                }
                Ok(()) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let code = running.wait().code();
                    let stderr = running.stderr();
                    return Err(Ended { code, stderr });
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("no gateway within {PATIENCE:?}: {}", running.stderr())
                }
            }
        }
    }

    fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the gateway does not end");
            thread::park_timeout(Duration::from_millis(2));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks this very port; another program's answer would not be ours.
fn is_ready(port: u16) -> bool {
    let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    let request =
        format!("GET /readyz HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let asked = std::io::Write::write_all(&mut &stream, request.as_bytes());
    asked.is_ok()
        && (&stream).read_to_string(&mut answer).is_ok()
        && answer.starts_with("HTTP/1.1 200 ")
        && answer.ends_with("{\"ready\":true}")
}
