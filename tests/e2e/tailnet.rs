//! The tailnet's identities behind `tailscale serve`: a header is only a question, and the local daemon answers it.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;

use crate::support::tailscaled::{Reply, StandIn};
use crate::support::{
    ADMIN, Answer, Connect, Device, Gateway, PASSWORD, PATIENCE, Peer, Setup, WireError, free_port,
    read_answer,
};

const ALICE: &str = "alice@x.example";
const SOURCE: &str = "100.64.0.9";
/// What Serve adds for alice.
const HEADERS: [(&str, &str); 4] = [
    ("tailscale-user-login", ALICE),
    ("x-forwarded-for", SOURCE),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "gw.tail1234.ts.net"),
];

/// A Gateway behind Serve, and the daemon of its host.
struct Host {
    gateway: Gateway,
    serve_port: u16,
    daemon: StandIn,
    dir: TempDir,
}

impl Host {
    /// Baseline A: loopback, Serve, identities allowed, no secret at all.
    fn baseline_a() -> Self {
        Self::start("{allowTailscale: true}", "")
    }

    fn start(auth: &str, password: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let daemon = StandIn::start(dir.path());
        daemon.say(SOURCE, Reply::User(ALICE));
        let serve_port = free_port();
        let config = format!(
            "{{gateway: {{bind: 'loopback', auth: {auth}, \
             tailscale: {{mode: 'serve', servePort: {serve_port}, socket: '{}'}}}}}}",
            daemon.socket.display()
        );
        let gateway = Setup::default()
            .config(&config)
            .env("OPENCLAW_GATEWAY_PASSWORD", password)
            .start();
        Self {
            gateway,
            serve_port,
            daemon,
            dir,
        }
    }

    fn open(&self, headers: &[(&str, &str)]) -> Result<Peer, Answer> {
        Peer::open_at(self.serve_port, headers)
    }

    /// Connects without credential and device.
    fn connect(&self, headers: &[(&str, &str)]) -> Result<Peer, WireError> {
        let mut peer = self.open(headers).unwrap();
        peer.connect(&cli()).map(|_| peer)
    }

    fn wait_for_log(&self, words: &str) {
        let since = Instant::now();
        while !self.gateway.stderr().contains(words) {
            assert!(since.elapsed() < PATIENCE, "not told: {words}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn refusal(&self, headers: &[(&str, &str)]) -> String {
        match self.connect(headers) {
            Ok(_) => "admitted".to_owned(),
            Err(error) => error.detail().to_owned(),
        }
    }
}

fn cli() -> Connect {
    Connect::as_client("cli", "cli").scopes(ADMIN)
}

/// `HEADERS` with one in the place of its namesake.
fn with<'a>(name: &str, value: &'a str) -> Vec<(&'static str, &'a str)> {
    let replace = |(it, old)| (it, if it == name { value } else { old });
    HEADERS.into_iter().map(replace).collect()
}

fn without(name: &str) -> Vec<(&'static str, &'static str)> {
    HEADERS.into_iter().filter(|(it, _)| *it != name).collect()
}

#[test]
fn t2_whom_the_daemon_names_comes_in_and_holds_no_scope() {
    let host = Host::baseline_a();
    let mut peer = host.open(&HEADERS).unwrap();
    let hello = peer.connect(&cli()).unwrap();
    // S2: whoever shows no device holds nothing that it asks for.
    assert_eq!(hello["auth"]["scopes"], json!([]), "{hello}");
    let error = peer.call("health", &json!({})).unwrap_err();
    assert_eq!(error.detail(), "MISSING_SCOPE");
    assert!(host.gateway.audit().contains(ALICE), "the record says who");
    // The name is compared whole, and only its letters' case is overlooked.
    assert!(
        host.connect(&with("tailscale-user-login", "Alice@X.example"))
            .is_ok()
    );
    // Two connections within seconds are one question.
    assert_eq!(host.daemon.asked_about(SOURCE), 1);
}

#[test]
fn t2_whom_the_daemon_does_not_name_stays_outside() {
    let host = Host::baseline_a();
    for claimed in [
        "bob@x.example",
        "lice@x.example",
        "alice@x.example.evil",
        "tagged-devices",
        "*",
    ] {
        let refusal = host.refusal(&with("tailscale-user-login", claimed));
        assert_eq!(refusal, "AUTH_TAILSCALE_IDENTITY_MISMATCH", "{claimed}");
    }
    // A process of this host that forges every header, for an address that is somebody else's or nobody's.
    host.daemon.say("100.64.0.7", Reply::User("bob@x.example"));
    host.daemon.say("100.64.0.8", Reply::Tagged);
    for address in ["100.64.0.7", "100.64.0.8"] {
        assert_eq!(
            host.refusal(&with("x-forwarded-for", address)),
            "AUTH_TAILSCALE_IDENTITY_MISMATCH"
        );
    }
    let tagged = [
        ("tailscale-user-login", "tagged-devices"),
        ("x-forwarded-for", "100.64.0.8"),
        HEADERS[2],
        HEADERS[3],
    ];
    assert_eq!(host.refusal(&tagged), "AUTH_TAILSCALE_IDENTITY_MISMATCH");
    for (at, reply) in [
        Reply::Status(404),
        Reply::Status(500),
        Reply::Silence,
        Reply::Bytes(b"garbage".to_vec()),
        Reply::Bytes(vec![b'a'; 1 << 20]),
        Reply::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{\"Node\":{},".to_vec()),
    ]
    .into_iter()
    .enumerate()
    {
        let address = format!("100.64.1.{at}");
        host.daemon.say(&address, reply);
        assert_eq!(
            host.refusal(&with("x-forwarded-for", &address)),
            "AUTH_TAILSCALE_WHOIS_FAILED",
            "{at}"
        );
    }
    // Nobody else waited for the silent one, and it counts again as soon as the daemon does.
    assert!(host.connect(&HEADERS).is_ok());
}

#[test]
fn t2_a_login_that_changed_counts_within_seconds() {
    let host = Host::baseline_a();
    assert!(host.connect(&HEADERS).is_ok());
    host.daemon.say(SOURCE, Reply::Status(404));
    let since = Instant::now();
    while host.refusal(&HEADERS) == "admitted" {
        assert!(
            since.elapsed() < PATIENCE,
            "a logged-out user still comes in"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn t3_a_claim_lacks_nothing_and_has_one_hop() {
    let host = Host::baseline_a();
    for name in ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"] {
        assert_eq!(
            host.refusal(&without(name)),
            "AUTH_TAILSCALE_PROXY_MISSING",
            "{name}"
        );
    }
    assert_eq!(
        host.refusal(&without("tailscale-user-login")),
        "DEVICE_IDENTITY_REQUIRED"
    );
    for chain in [
        "100.64.0.9, 100.64.0.9",
        "100.64.0.7, 100.64.0.9",
        "100.64.0.9, 127.0.0.1",
        "alice",
        "",
    ] {
        let answer = host.open(&with("x-forwarded-for", chain)).err().unwrap();
        assert_eq!(answer.status, 403, "{chain}: {answer:?}");
    }
    // Nothing at all: Serve would have said who it is.
    assert_eq!(host.refusal(&[]), "DEVICE_IDENTITY_REQUIRED");
    assert_eq!(host.daemon.asked_about(SOURCE), 0);
}

#[test]
fn t4_an_identity_opens_no_http_api() {
    let host = Host::baseline_a();
    for (method, path) in [
        ("POST", "/tools/invoke"),
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/api/channels"),
        ("POST", "/api/channels/x/send"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
    ] {
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n");
        for (name, value) in HEADERS {
            request += &format!("{name}: {value}\r\n");
        }
        let mut stream = TcpStream::connect(("127.0.0.1", host.serve_port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all((request + "\r\n").as_bytes()).unwrap();
        let status = read_answer(&mut stream).unwrap().status;
        assert_eq!(status, 401, "{method} {path}");
    }
    assert_eq!(host.daemon.asked_about(SOURCE), 0);
}

#[test]
fn t5_funnel_is_the_internet_and_nobody_in_it_is_alice() {
    let host = Host::baseline_a();
    for funnel in ["?1", "?0", ""] {
        let mut headers = HEADERS.to_vec();
        headers.push(("tailscale-funnel-request", funnel));
        let answer = host.open(&headers).err().unwrap();
        assert_eq!(answer.status, 403, "{answer:?}");
        headers.remove(0);
        assert_eq!(host.refusal(&headers), "DEVICE_IDENTITY_REQUIRED");
    }
    assert_eq!(host.daemon.asked_about(SOURCE), 0);
}

#[test]
fn t1_the_same_headers_on_the_main_listener_are_refused() {
    let host = Host::baseline_a();
    let answer = Peer::open_with(&host.gateway, &HEADERS).err().unwrap();
    assert_eq!(answer.status, 403, "{answer:?}");
    assert_eq!(answer.code().as_deref(), Some("proxy_attribution_required"));
    host.wait_for_log("set gateway.tailscale.mode: serve");
    assert_eq!(host.daemon.asked_about(SOURCE), 0);
}

#[test]
fn p2_a_device_behind_serve_waits_for_an_operator() {
    let host = Host::baseline_a();
    for connect in [cli(), Connect::node().without("auth")] {
        let mut peer = host.open(&HEADERS).unwrap();
        let device = Device::new();
        let error = peer.connect_as(&connect, &device).unwrap_err();
        assert_eq!(error.detail(), "PAIRING_REQUIRED", "{error:?}");
    }
    let list = host.gateway.cli_json(&["devices", "list"]);
    assert_eq!(list["paired"], json!([]));
    assert_eq!(list["pending"].as_array().map(Vec::len), Some(2));
}

#[test]
fn baseline_b_behind_serve_asks_for_the_password_always() {
    let host = Host::start("{mode: 'password', allowTailscale: false}", PASSWORD);
    assert_eq!(host.refusal(&HEADERS), "AUTH_PASSWORD_MISSING");
    let mut peer = host.open(&HEADERS).unwrap();
    let error = peer.connect_as(&cli(), &Device::new()).unwrap_err();
    assert_eq!(error.detail(), "AUTH_PASSWORD_MISSING");
    let mut peer = host.open(&HEADERS).unwrap();
    let hello = peer.connect(&cli().password(PASSWORD)).unwrap();
    assert_eq!(hello["auth"]["scopes"], json!([]));
    assert_eq!(host.daemon.asked_about(SOURCE), 0);
}

#[test]
fn the_daemon_names_the_host_as_soon_as_it_is_there() {
    let host = Host::baseline_a();
    let name = "gw.tail1234.ts.net";
    let mut headers = HEADERS.to_vec();
    headers.push(("host", name));
    // It knows no name yet, and the operator is told what is missing.
    assert_eq!(
        host.open(&headers).err().map(|answer| answer.status),
        Some(421)
    );
    host.wait_for_log("name its socket in gateway.tailscale.socket");
    host.daemon.call_itself("gw.tail1234.ts.net.");
    let since = Instant::now();
    while host.open(&headers).is_err() {
        assert!(since.elapsed() < PATIENCE, "{}", host.gateway.stderr());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(host.connect(&headers).is_ok());
    // Reading the configuration again, which does not hold it, neither forgets it nor ends what came in by it.
    let mut peer = host.connect(&headers).unwrap();
    let pid = Pid::from_raw(host.gateway.pid().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::HUP).unwrap();
    host.wait_for_log("the configuration was reloaded");
    assert!(host.connect(&headers).is_ok());
    let error = peer.call("health", &json!({})).unwrap_err();
    assert_eq!(error.detail(), "MISSING_SCOPE");
    // Its page, which Serve always shows over TLS, is one of ours.
    headers.push(("origin", "https://gw.tail1234.ts.net"));
    assert!(host.open(&headers).is_ok());
    headers.pop();
    headers.push(("origin", "http://gw.tail1234.ts.net"));
    assert_eq!(
        host.open(&headers).err().map(|answer| answer.status),
        Some(403)
    );
    // The main listener has no such name.
    let answer = Peer::open_with(&host.gateway, &[("host", name)])
        .err()
        .unwrap();
    assert_eq!(answer.status, 421);
}

#[test]
fn without_a_daemon_the_listener_serves_and_believes_nobody() {
    let host = Host::baseline_a();
    let Host {
        gateway,
        serve_port,
        daemon,
        dir,
    } = host;
    drop(daemon);
    let mut peer = Peer::open_at(serve_port, &HEADERS).unwrap();
    let error = peer.connect(&cli()).unwrap_err();
    assert_eq!(error.detail(), "AUTH_TAILSCALE_WHOIS_FAILED");
    let daemon = StandIn::start(dir.path());
    daemon.say(SOURCE, Reply::User(ALICE));
    let mut peer = Peer::open_at(serve_port, &HEADERS).unwrap();
    assert!(peer.connect(&cli()).is_ok(), "{}", gateway.stderr());
}
