//! A Gateway as its users run it: the release binary, a process of its own, a state directory.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::peer::PASSWORD;

const BINARY: &str = env!("CARGO_BIN_EXE_portcullis");

pub(crate) struct Gateway {
    child: Child,
    pub(crate) port: u16,
    /// From before the process was made to the answer of `/healthz`.
    pub(crate) started_in: Duration,
    state: Option<TempDir>,
}

impl Gateway {
    /// With a state of its own.
    pub(crate) fn start() -> Self {
        Self::start_on(tempfile::tempdir().expect("a directory"))
    }

    /// With the state that an earlier one has left.
    pub(crate) fn start_on(state: TempDir) -> Self {
        let port = free_port();
        let began = Instant::now();
        let child = spawn(state.path(), port);
        while !is_healthy(port) {
            assert!(began.elapsed() < Duration::from_secs(20), "no /healthz");
            std::thread::sleep(Duration::from_micros(200));
        }
        Self {
            child,
            port,
            started_in: began.elapsed(),
            state: Some(state),
        }
    }

    /// Resident memory, in bytes.
    pub(crate) fn resident_bytes(&self) -> usize {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<usize>().ok());
        kib.expect("a size in kB") * 1024
    }

    /// Processor time of all its threads, in nanoseconds: it tells more than a clock on a machine that others use.
    pub(crate) fn cpu_nanos(&self) -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let of_thread = |path: std::path::PathBuf| {
            let text = std::fs::read_to_string(path.join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        };
        tasks
            .expect("a running process")
            .filter_map(|task| of_thread(task.ok()?.path()))
            .sum()
    }

    /// Ends it and returns its state.
    pub(crate) fn stop(mut self) -> TempDir {
        self.end();
        self.state.take().expect("taken once")
    }

    fn end(&mut self) {
        let _ = Command::new("kill")
            .arg(self.child.id().to_string())
            .status();
        let _ = self.child.wait();
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if self.state.is_some() {
            self.end();
        }
    }
}

fn spawn(state: &Path, port: u16) -> Child {
    Command::new(BINARY)
        .args(["gateway", "run", "--port", &port.to_string()])
        .env_clear()
        .env("OPENCLAW_STATE_DIR", state)
        .env("OPENCLAW_GATEWAY_PASSWORD", PASSWORD)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the portcullis binary")
}

/// What it takes to make any process of this binary at all.
pub(crate) fn process_time() -> Duration {
    let began = Instant::now();
    let _ = Command::new(BINARY)
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    began.elapsed()
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("its address").port()
}

fn is_healthy(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else {
        return false;
    };
    let request = format!("GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n");
    let mut answer = [0; 12];
    stream.write_all(request.as_bytes()).is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && answer == *b"HTTP/1.1 200"
}
