//! A stand-in for the Tailscale daemon: LocalAPI over a Unix socket, as much of it as a Gateway asks.
//!
//! The end-to-end tests use this file too, so it knows nothing of the crate. Shapes, statuses and framing are those of the
//! real daemon: indented `WhoIsResponse` and `Status`, 403 for a foreign `Host`, 404 in words for an unknown address, and
//! chunks for whatever is longer than 2 KiB.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

/// How it answers about one address.
#[derive(Clone)]
pub(crate) enum Reply {
    User(&'static str),
    /// A node with a tag; the daemon names a login for it all the same.
    Tagged,
    Status(u16),
    /// Nothing, until the asker leaves.
    Silence,
    /// Exactly these bytes, then the end.
    Bytes(Vec<u8>),
}

#[derive(Default)]
struct State {
    replies: HashMap<String, Reply>,
    name: Option<&'static str>,
    targets: Vec<String>,
    /// Askers who left without an answer.
    left: usize,
}

/// Listens until it is dropped.
pub(crate) struct StandIn {
    pub(crate) socket: PathBuf,
    state: Arc<(Mutex<State>, Condvar)>,
}

impl StandIn {
    pub(crate) fn start(dir: &Path) -> Self {
        let socket = dir.join("tailscaled.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let state: Arc<(Mutex<State>, Condvar)> = Arc::default();
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            // Ends with the process: a test's stand-in costs one sleeping thread.
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { socket, state }
    }

    /// From now on, whose `address` is.
    pub(crate) fn say(&self, address: &str, reply: Reply) {
        let mut state = self.state.0.lock().unwrap();
        state.replies.insert(address.to_owned(), reply);
    }

    /// This host's MagicDNS name, with its closing dot.
    pub(crate) fn call_itself(&self, name: &'static str) {
        self.state.0.lock().unwrap().name = Some(name);
    }

    /// How often `address` was asked about.
    pub(crate) fn asked_about(&self, address: &str) -> usize {
        let target = whois_target(address);
        let state = self.state.0.lock().unwrap();
        state.targets.iter().filter(|it| **it == target).count()
    }

    /// Waits until `address` was asked about that often.
    pub(crate) fn wait_until_asked(&self, address: &str, times: usize) {
        let target = whois_target(address);
        self.wait(|state| state.targets.iter().filter(|it| **it == target).count() >= times);
    }

    /// Waits until an asker has left without an answer.
    pub(crate) fn wait_until_left(&self) {
        self.wait(|state| state.left > 0);
    }

    fn wait(&self, done: impl Fn(&State) -> bool) {
        let (state, changed) = &*self.state;
        let patience = Duration::from_secs(20);
        let waiting = changed
            .wait_timeout_while(state.lock().unwrap(), patience, |state| !done(state))
            .unwrap();
        assert!(!waiting.1.timed_out(), "asked: {:?}", waiting.0.targets);
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn whois_target(address: &str) -> String {
    let address = if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    };
    format!("/localapi/v0/whois?addr={address}:0")
}

fn serve(mut stream: UnixStream, shared: &(Mutex<State>, Condvar)) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            return;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let reply = {
        let mut state = shared.0.lock().unwrap();
        state.targets.push(target.clone());
        let found = state
            .replies
            .iter()
            .find(|(address, _)| target == whois_target(address))
            .map(|(_, reply)| reply.clone());
        match (found, state.name) {
            (Some(reply), _) => reply,
            (None, Some(name)) if target == "/localapi/v0/status?peers=false" => {
                Reply::Bytes(with_length(&status(name)))
            }
            (None, _) => Reply::Status(404),
        }
    };
    shared.1.notify_all();
    let own = head.starts_with("GET ") && head.contains("\r\nHost: local-tailscaled.sock\r\n");
    let answer = match reply {
        _ if !own => refusal(403),
        Reply::User(login) => in_chunks(&node(login, "")),
        Reply::Tagged => in_chunks(&node("tagged-devices", r#""Tags": ["tag:server"],"#)),
        Reply::Status(status) => refusal(status),
        Reply::Bytes(bytes) => bytes,
        Reply::Silence => {
            while stream.read(&mut byte).unwrap_or(0) > 0 {}
            shared.0.lock().unwrap().left += 1;
            shared.1.notify_all();
            return;
        }
    };
    let _ = stream.write_all(&answer);
}

pub(crate) fn with_length(body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes()
}

pub(crate) fn in_chunks(body: &str) -> Vec<u8> {
    let mut answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTailscale-Cap: 113\r\n\
        Tailscale-Version: 1.80.0\r\nX-Frame-Options: DENY\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        .to_vec();
    for chunk in body.as_bytes().chunks(2048) {
        answer.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        answer.extend(chunk);
        answer.extend(b"\r\n");
    }
    answer.extend(b"0\r\n\r\n");
    answer
}

fn refusal(status: u16) -> Vec<u8> {
    let (reason, body) = match status {
        403 => ("Forbidden", "invalid localapi request\n"),
        404 => ("Not Found", "no match for IP:port\n"),
        _ => ("Internal Server Error", "server has no local backend\n"),
    };
    let length = body.len();
    format!("HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// A whois that found a node, with capabilities enough to need chunks.
pub(crate) fn node(login: &str, more: &str) -> String {
    let capabilities: Vec<String> = (0..60)
        .map(|n| format!("\"https://tailscale.com/cap/feature-{n}\": null"))
        .collect();
    let capabilities = capabilities.join(",\n\t\t\t");
    format!(
        "{{\n\t\"Node\": {{\n\t\t\"ID\": 4711,\n\t\t\"StableID\": \"nABCDEF1CNTRL\",\n\t\t\"Name\": \"laptop.tail1234.ts.net.\",\n\t\t\
         \"User\": 12,\n\t\t\"Addresses\": [\"100.64.0.9/32\", \"fd7a:115c:a1e0::9/128\"],\n\t\t{more}\n\t\t\
         \"Hostinfo\": {{\"OS\": \"linux\", \"Hostname\": \"laptop\"}},\n\t\t\"CapMap\": {{\n\t\t\t{capabilities}\n\t\t}}\n\t}},\n\t\
         \"UserProfile\": {{\n\t\t\"ID\": 12,\n\t\t\"LoginName\": \"{login}\",\n\t\t\"DisplayName\": \"Somebody\",\n\t\t\
         \"ProfilePicURL\": \"\"\n\t}},\n\t\"CapMap\": null\n}}"
    )
}

fn status(name: &str) -> String {
    format!(
        "{{\n\t\"Version\": \"1.80.0\",\n\t\"BackendState\": \"Running\",\n\t\"Self\": {{\n\t\t\"HostName\": \"gw\",\n\t\t\
         \"DNSName\": \"{name}\",\n\t\t\"TailscaleIPs\": [\"100.64.0.1\"],\n\t\t\"Online\": true\n\t}},\n\t\"Peer\": null\n}}"
    )
}
