//! What a newcomer sees: one command, and the whole way proved with real output.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;

use crate::support::{Connect, Device, PATIENCE, Peer, Process, WireError, free_port, program};

/// From the built program to the proof.
const PROOF_TIME: Duration = Duration::from_secs(30);

fn quickstart(home: &Path, port: u16) -> Command {
    let mut command = program(home, &[]);
    command.args(["quickstart", "--port", &port.to_string()]);
    command
}

/// `quickstart --once`, on a free port.
fn once(home: &Path) -> Output {
    let began = Instant::now();
    let output = quickstart(home, free_port())
        .arg("--once")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(began.elapsed() < PROOF_TIME, "{:?}", began.elapsed());
    output
}

/// What stands behind a label of the report.
fn labelled<'a>(report: &'a str, label: &str) -> Vec<&'a str> {
    let own = report.lines().filter_map(|line| {
        let text = line.strip_prefix("  ")?.strip_prefix(label)?;
        text.starts_with("  ").then(|| text.trim_start())
    });
    own.collect()
}

fn password(report: &str) -> &str {
    let line = labelled(report, "password")[0];
    line.split(' ').next().unwrap()
}

fn all_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            files.extend(all_files(&path));
        } else if kind.is_file() {
            files.push(path);
        }
    }
    files
}

/// The secret stands in none of these files, in no form that it is used in.
fn assert_nowhere(home: &Path, secret: &str) {
    assert!(secret.len() >= 32, "{secret}");
    let files = all_files(home);
    assert!(files.len() > 3, "{files:?}");
    for file in files {
        let bytes = fs::read(&file).unwrap();
        let found = bytes
            .windows(secret.len())
            .any(|it| it == secret.as_bytes());
        assert!(!found, "{}", file.display());
    }
}

/// A quickstart that goes on serving. Its node ends with it, however the test does.
struct Serving {
    process: Process,
    home: TempDir,
    port: u16,
    node: u32,
}

impl Serving {
    fn start() -> Self {
        let home = TempDir::new().unwrap();
        let port = free_port();
        let mut process = Process::spawn(&mut quickstart(home.path(), port));
        let line = process.line(", pid ");
        let pid = line.split(", pid ").nth(1).unwrap();
        let node = pid.split(')').next().unwrap().parse().unwrap();
        Self {
            process,
            home,
            port,
            node,
        }
    }

    /// The code of the sign-in link.
    fn link(&mut self) -> String {
        let line = self.process.line("#bootstrap=");
        let url = line.trim_start().strip_prefix("chat page").unwrap().trim();
        let address = format!("http://127.0.0.1:{}/#bootstrap=", self.port);
        url.strip_prefix(&address).unwrap().to_owned()
    }

    fn connect(&self, connect: &Connect, device: &Device) -> Result<Peer, WireError> {
        let origin = format!("http://127.0.0.1:{}", self.port);
        let mut peer = Peer::open_at(self.port, &[("Origin", &origin)]).unwrap();
        peer.connect_as(connect, device)?;
        Ok(peer)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Only if that number still names it: nobody else's state is in this home.
        let environ = fs::read(format!("/proc/{}/environ", self.node)).unwrap_or_default();
        if String::from_utf8_lossy(&environ).contains(self.home.path().to_str().unwrap()) {
            let node = Pid::from_raw(self.node.try_into().unwrap()).unwrap();
            let _ = kill_process(node, Signal::KILL);
        }
    }
}

/// Killed is killed, but who reaps it now is for the system to say.
fn wait_until_ended(pid: u32) {
    let deadline = Instant::now() + PATIENCE;
    while let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) {
        if status.contains("State:\tZ") {
            return;
        }
        assert!(Instant::now() < deadline, "{status}");
        thread::park_timeout(Duration::from_millis(2));
    }
}

fn browser(code: &str) -> Connect {
    Connect::as_client("webchat-ui", "webchat")
        .scopes(&["operator.read", "operator.write", "operator.approvals"])
        .with("auth", json!({"bootstrapToken": code}))
}

#[test]
fn quickstart_proves_the_whole_way_and_a_second_time_in_the_same_home() {
    let home = TempDir::new().unwrap();
    let uname = Command::new("uname").arg("-a").output().unwrap();
    let uname = String::from_utf8(uname.stdout).unwrap();
    let mut passwords = Vec::new();
    for _ in 0..2 {
        let output = once(home.path());
        let report = String::from_utf8(output.stdout).unwrap();
        assert_eq!(labelled(&report, "message"), ["/run uname -a"]);
        assert!(labelled(&report, "tool call")[0].starts_with("exec {"));
        assert!(labelled(&report, "tool call")[0].contains("uname -a"));
        assert!(labelled(&report, "routed to")[0].starts_with("quickstart-node (device "));
        let expected: Vec<&str> = uname.lines().map(str::trim_end).collect();
        let shown: Vec<&str> = labelled(&report, "output")
            .into_iter()
            .map(str::trim_end)
            .collect();
        assert_eq!(shown, expected);
        let time = labelled(&report, "time")[0];
        for part in ["queue ", "execution ", "total "] {
            let number = time.split(part).nth(1).unwrap().split(' ').next().unwrap();
            assert!(number.parse::<u64>().is_ok(), "{time}");
        }
        let password = password(&report).to_owned();
        assert_eq!(report.matches(&password).count(), 1);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!stderr.contains(&password), "{stderr}");
        assert_nowhere(home.path(), &password);
        passwords.push(password);
    }
    assert_ne!(passwords[0], passwords[1]);
}

#[test]
fn a_taken_port_names_who_holds_it_and_how_to_choose_another() {
    let home = TempDir::new().unwrap();
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let output = quickstart(home.path(), port)
        .arg("--once")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(75), "{output:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("hop 1"), "{stderr}");
    assert!(
        stderr.contains(&format!("(pid {})", std::process::id())),
        "{stderr}"
    );
    assert!(stderr.contains("--port"), "{stderr}");
    assert_eq!(
        labelled(&String::from_utf8(output.stdout).unwrap(), "password").len(),
        0
    );
}

#[test]
fn b1_b2_a_sign_in_link_signs_in_one_browser_once_and_is_not_the_password() {
    let mut quickstart = Serving::start();
    let code = quickstart.link();
    let device = Device::new();
    let mut page = quickstart.connect(&browser(&code), &device).unwrap();
    let sent =
        json!({"sessionKey": "main", "message": "/run echo from the page", "idempotencyKey": "k"});
    page.call("chat.send", &sent).unwrap();
    let end = page.frame(|frame| frame["payload"]["state"] == "final");
    let text = end["payload"]["message"]["content"][0]["text"]
        .as_str()
        .unwrap();
    assert!(text.contains("from the page"), "{text}");
    let error = page.call("device.pair.list", &json!({})).unwrap_err();
    assert_eq!(error.message(), "missing scope: operator.pairing");

    for other in [&Device::new(), &device] {
        let error = quickstart
            .connect(&browser(&code), other)
            .err()
            .expect("a link works once");
        assert_eq!(error.detail(), "AUTH_BOOTSTRAP_TOKEN_INVALID", "{error:?}");
    }
    assert_nowhere(quickstart.home.path(), &code);
    quickstart.process.signal(Signal::INT);
    let report = quickstart.process.rest().join("\n");
    assert!(!code.contains(password(&report)));
    assert_nowhere(quickstart.home.path(), password(&report));
}

#[test]
fn b2_a_sign_in_link_in_the_hands_of_a_node_is_burnt() {
    let mut quickstart = Serving::start();
    let code = quickstart.link();
    let node = Connect::node().with("auth", json!({"bootstrapToken": code}));
    let mut peer = Peer::open_at(quickstart.port, &[]).unwrap();
    let error = peer.connect_as(&node, &Device::new()).unwrap_err();
    assert_eq!(error.detail(), "AUTH_BOOTSTRAP_TOKEN_INVALID", "{error:?}");
    let error = quickstart
        .connect(&browser(&code), &Device::new())
        .err()
        .expect("a misused link is burnt");
    assert_eq!(error.detail(), "AUTH_BOOTSTRAP_TOKEN_INVALID", "{error:?}");
}

#[test]
fn b2_a_sign_in_link_does_not_give_more_than_it_holds() {
    let mut quickstart = Serving::start();
    let code = quickstart.link();
    let greedy = browser(&code).scopes(&["operator.read", "operator.admin", "operator.pairing"]);
    let refused = match quickstart.connect(&greedy, &Device::new()) {
        Err(error) => error.detail() == "AUTH_BOOTSTRAP_TOKEN_INVALID",
        Ok(_) => false,
    };
    assert!(refused, "more scopes than the link holds");
    let error = quickstart
        .connect(&browser(&code), &Device::new())
        .err()
        .expect("a misused link is burnt");
    assert_eq!(error.detail(), "AUTH_BOOTSTRAP_TOKEN_INVALID", "{error:?}");
}

#[test]
fn an_interrupt_ends_quickstart_and_its_node() {
    let mut quickstart = Serving::start();
    let node = PathBuf::from(format!("/proc/{}", quickstart.node));
    quickstart.process.line("Serving until Ctrl-C");
    assert!(node.exists());
    quickstart.process.signal(Signal::INT);
    assert_eq!(quickstart.process.wait().code(), Some(0));
    assert!(!node.exists(), "it was waited for");
}

#[test]
fn an_interrupt_before_the_proof_leaves_no_node_behind() {
    let mut quickstart = Serving::start();
    // The node has connected; its approval and the message are still to come, or just under way.
    quickstart.process.signal(Signal::TERM);
    quickstart.process.wait();
    wait_until_ended(quickstart.node);
}
