//! TLS at the main listener, seen by rustls in a configuration of its own and by our own clients (rows D2, D3, D4).

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rcgen::{CertificateParams, KeyPair};
use ring::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring as provider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, ProtocolVersion, SignatureScheme,
    StreamOwned, SupportedProtocolVersion, version,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tungstenite::{Message, WebSocket};

use crate::support::{Answer, Connect, Gateway, PASSWORD, PATIENCE, Process, Setup, program};

const ON: &str = "{gateway:{tls:{enabled:true}}}";

/// Believes every certificate and remembers it; the signatures are checked.
#[derive(Debug)]
struct Witness {
    seen: Mutex<Vec<u8>>,
    provider: CryptoProvider,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        *self.seen.lock().unwrap() = leaf.to_vec();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, leaf, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// One connection with this version of the protocol, and the fingerprint that it was shown.
fn tls(gateway: &Gateway, version: &'static SupportedProtocolVersion) -> (Tls, String) {
    let witness = Arc::new(Witness {
        seen: Mutex::default(),
        provider: provider::default_provider(),
    });
    let config = ClientConfig::builder_with_provider(Arc::new(provider::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&witness) as _)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut socket = gateway.dial();
    while client.is_handshaking() {
        client.complete_io(&mut socket).unwrap();
    }
    let fingerprint = fingerprint(&witness.seen.lock().unwrap());
    (StreamOwned::new(client, socket), fingerprint)
}

fn fingerprint(der: &[u8]) -> String {
    let digest = digest(&SHA256, der);
    let pairs: Vec<String> = digest.as_ref().iter().map(|b| format!("{b:02X}")).collect();
    pairs.join(":")
}

fn get(gateway: &Gateway, path: &str) -> Answer {
    let (mut stream, _) = tls(gateway, &version::TLS13);
    let host = gateway.port();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{host}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    Answer::parse(&bytes).unwrap()
}

/// An operator's session.
struct Session(WebSocket<Tls>);

impl Session {
    fn open(gateway: &Gateway, version: &'static SupportedProtocolVersion) -> Self {
        let (stream, _) = tls(gateway, version);
        let url = format!("wss://127.0.0.1:{}/", gateway.port());
        let (socket, answer) = tungstenite::client(url, stream).unwrap();
        assert!(answer.headers().get("strict-transport-security").is_none());
        let mut session = Self(socket);
        let hello = session.call("connect", &Connect::cli().params);
        assert_eq!(hello["type"], "hello-ok");
        session
    }

    fn call(&mut self, method: &str, params: &Value) -> Value {
        let request = json!({"type": "req", "id": method, "method": method, "params": params});
        self.0.send(Message::text(request.to_string())).unwrap();
        loop {
            let frame = self.0.read().unwrap();
            let Message::Text(text) = frame else { continue };
            let mut frame: Value = serde_json::from_str(&text).unwrap();
            if frame["id"] == method {
                assert_eq!(frame["ok"], true, "{frame}");
                return frame["payload"].take();
            }
        }
    }
}

/// Writes a new certificate and its key, and returns its fingerprint.
fn write_pair(dir: &Path) -> String {
    let key = KeyPair::generate().unwrap();
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let certificate = CertificateParams::new(names).unwrap();
    let certificate = certificate.self_signed(&key).unwrap();
    fs::write(dir.join("c.pem"), certificate.pem()).unwrap();
    fs::write(dir.join("k.pem"), key.serialize_pem()).unwrap();
    fs::set_permissions(dir.join("k.pem"), fs::Permissions::from_mode(0o600)).unwrap();
    fingerprint(certificate.der())
}

fn config(dir: &Path) -> String {
    let dir = dir.display();
    format!("{{gateway:{{tls:{{enabled:true,certPath:'{dir}/c.pem',keyPath:'{dir}/k.pem'}}}}}}")
}

#[test]
fn both_versions_serve_and_the_fingerprint_is_told() {
    let mut gateway = Setup::default().config(ON).start();
    for (version, named) in [
        (&version::TLS12, ProtocolVersion::TLSv1_2),
        (&version::TLS13, ProtocolVersion::TLSv1_3),
    ] {
        let (stream, seen) = tls(&gateway, version);
        assert_eq!(stream.conn.protocol_version(), Some(named));
        assert!(gateway.stderr().contains(&format!("sha256:{seen}")));
        let mut session = Session::open(&gateway, version);
        // Larger than one TLS record and than what a socket takes at once.
        let long = "x".repeat(300_000);
        let echo = session.call("health", &json!({ "ignored": long }));
        assert_eq!(echo["tlsFingerprint"], seen);
    }
    let (_, seen) = tls(&gateway, &version::TLS13);
    assert_eq!(gateway.cli_json(&["health"])["tlsFingerprint"], seen);
    let status = gateway.cli(&["gateway", "status"]);
    assert!(String::from_utf8(status.stdout).unwrap().contains(&seen));
    gateway.restart();
    assert_eq!(tls(&gateway, &version::TLS13).1, seen, "kept");
}

/// Waits for a line of the log, which comes by another way than an answer does.
fn logged(gateway: &Gateway, words: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !gateway.stderr().contains(words) {
        assert!(Instant::now() < deadline, "{words}: {}", gateway.stderr());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn plain_http_is_not_answered_and_hsts_goes_over_tls_only() {
    let hsts = "http:{securityHeaders:{strictTransportSecurity:'max-age=300'}}";
    let gateway = Setup::default()
        .config(&format!("{{gateway:{{tls:{{enabled:true}},{hsts}}}}}"))
        .start();
    let mut plain = gateway.dial();
    let _ = plain.write_all(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    for (path, status) in [("/healthz", 200), ("/", 200), ("/nowhere", 401)] {
        let answer = get(&gateway, path);
        assert_eq!(answer.status, status);
        assert_eq!(
            answer.header("strict-transport-security"),
            Some("max-age=300")
        );
    }
    logged(&gateway, "no TLS handshake");
}

#[test]
fn w1_a_handshake_holds_its_place_before_authentication() {
    let gateway = Setup::default().config(ON).start();
    let held: Vec<TcpStream> = (0..32).map(|_| gateway.dial()).collect();
    let mut refused = gateway.dial();
    let mut byte = [0];
    // Closed without a byte, while those before it are waited for.
    assert!(matches!(refused.read(&mut byte), Ok(0) | Err(_)));
    logged(&gateway, "too many connections");
    drop(held);
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(gateway.address()).is_ok_and(|stream| {
        stream.set_nonblocking(true).unwrap();
        matches!((&stream).read(&mut [0]), Ok(0))
    }) {
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn a_replaced_certificate_is_served_while_a_session_goes_on() {
    let files = TempDir::new().unwrap();
    let old = write_pair(files.path());
    let gateway = Setup::default().config(&config(files.path())).start();
    assert_eq!(tls(&gateway, &version::TLS12).1, old);
    let mut session = Session::open(&gateway, &version::TLS13);
    let new = write_pair(files.path());
    let deadline = Instant::now() + PATIENCE;
    while tls(&gateway, &version::TLS13).1 != new {
        assert!(Instant::now() < deadline, "{}", gateway.stderr());
    }
    assert_eq!(session.call("health", &json!({}))["tlsFingerprint"], new);
    fs::write(files.path().join("c.pem"), "broken").unwrap();
    while !gateway.stderr().contains("the one before stays") {
        assert!(Instant::now() < deadline, "{}", gateway.stderr());
        assert_eq!(tls(&gateway, &version::TLS13).1, new);
    }
}

#[test]
fn c3_a_key_that_others_can_read_refuses_to_start() {
    let files = TempDir::new().unwrap();
    write_pair(files.path());
    fs::set_permissions(
        files.path().join("k.pem"),
        fs::Permissions::from_mode(0o640),
    )
    .unwrap();
    let home = TempDir::new().unwrap();
    fs::create_dir(home.path().join("state")).unwrap();
    fs::write(
        home.path().join("state/openclaw.json"),
        config(files.path()),
    )
    .unwrap();
    let refused = program(home.path(), &[])
        .env("OPENCLAW_GATEWAY_PASSWORD", PASSWORD)
        .args(["gateway", "run"])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(78));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("k.pem has mode 0640"), "{said}");
}

/// A command of the program, and what became of it: its exit code and all that it said.
fn cli(home: &Path, env: &[(&str, &Path)], args: &[&str]) -> (Option<i32>, String) {
    let output = program(home, &[])
        .envs(env.iter().copied())
        .args(args)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

const OTHER: &str = "0000000000000000000000000000000000000000000000000000000000000000";

#[test]
fn d3_the_command_line_connects_to_the_pinned_certificate_and_to_no_other() {
    let gateway = Setup::default().config(ON).start();
    let (_, pin) = tls(&gateway, &version::TLS13);
    let elsewhere = TempDir::new().unwrap();
    let ask = |host: &str, more: &[&str]| {
        let url = format!("wss://{host}:{}", gateway.port());
        let args = ["health", "--url", &url, "--password", PASSWORD];
        cli(elsewhere.path(), &[], &[&args[..], more].concat())
    };
    for host in ["127.0.0.1", "localhost"] {
        let form = pin.to_lowercase().replace(':', "");
        let (code, said) = ask(host, &["--tls-fingerprint", &format!("sha256:{form}")]);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("Gateway ok"), "{said}");
    }
    let (code, said) = ask("127.0.0.1", &["--tls-fingerprint", OTHER]);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains(&format!("received: sha256:{pin}")), "{said}");
    assert!(said.contains("pinned:   sha256:00:00:"), "{said}");
    let (code, said) = ask("127.0.0.1", &[]);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("certificate is not trusted"), "{said}");
    let (code, said) = ask("127.0.0.1", &["--tls-fingerprint", "12:34"]);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("--tls-fingerprint"), "{said}");

    // A configured pin holds for its origin, however that is named.
    let url = format!("wss://127.0.0.1:{}", gateway.port());
    fs::create_dir(elsewhere.path().join("state")).unwrap();
    for (configured, code) in [(pin.as_str(), 0), (OTHER, 78)] {
        let config = format!(
            "{{gateway:{{mode:'remote',remote:{{url:'{url}',tlsFingerprint:'{configured}'}}}}}}"
        );
        fs::write(elsewhere.path().join("state/openclaw.json"), config).unwrap();
        let (got, said) = ask("127.0.0.1", &[]);
        assert_eq!(got, Some(code), "{said}");
        let (got, said) = cli(elsewhere.path(), &[], &["health", "--password", PASSWORD]);
        assert_eq!(got, Some(code), "{said}");
    }
}

#[test]
fn without_a_pin_the_systems_roots_decide() {
    let files = TempDir::new().unwrap();
    let dir = files.path();
    let write = |from: i32, to: i32| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(to, 1, 1);
        let certificate = params.self_signed(&key).unwrap();
        fs::write(dir.join("c.pem"), certificate.pem()).unwrap();
        fs::write(dir.join("k.pem"), key.serialize_pem()).unwrap();
        fs::set_permissions(dir.join("k.pem"), fs::Permissions::from_mode(0o600)).unwrap();
        fingerprint(certificate.der())
    };
    write(2020, 4000);
    let mut gateway = Setup::default().config(&config(dir)).start();
    let trusted = dir.join("c.pem");
    let ask = |port: u16, host: &str, more: &[&str]| {
        let url = format!("wss://{host}:{port}");
        let args = ["health", "--url", &url, "--password", PASSWORD];
        let env = [("SSL_CERT_FILE", trusted.as_path())];
        cli(dir, &env, &[&args[..], more].concat())
    };
    let port = gateway.port();
    let (code, said) = ask(port, "localhost", &[]);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = ask(port, "127.0.0.1", &[]);
    assert_eq!(code, Some(78), "another name: {said}");
    assert!(said.contains("not trusted"), "{said}");
    let pin = write(2020, 2021);
    gateway.restart();
    let (code, said) = ask(port, "localhost", &[]);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("expired"), "{said}");
    let (code, said) = ask(port, "localhost", &["--tls-fingerprint", &pin]);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn d3_a_node_host_stops_for_good_when_the_pinned_certificate_changes() {
    let files = TempDir::new().unwrap();
    let old = write_pair(files.path());
    let mut gateway = Setup::default().config(&config(files.path())).start();
    let url = format!("wss://127.0.0.1:{}", gateway.port());
    let elsewhere = TempDir::new().unwrap();
    let args = ["node", "run", "--url", &url, "--tls-fingerprint", &old];
    // Without a secret of its own it says so and sends nothing (D4).
    let (code, said) = cli(elsewhere.path(), &[], &args);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("--token"), "{said}");
    let mut command = program(elsewhere.path(), &[]);
    let mut node = Process::spawn(command.args(args).args(["--password", PASSWORD]));
    node.line(&format!("connected to {url}"));
    let new = write_pair(files.path());
    gateway.restart();
    node.line("is not the pinned one");
    assert!(node.line("pinned:").contains(&old));
    assert!(node.line("received:").contains(&new));
    assert_eq!(node.wait().code(), Some(78));
}

#[test]
fn d4_an_address_without_a_secret_gets_no_byte_and_a_plain_listener_no_secret() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("wss://{}", listener.local_addr().unwrap());
    let home = TempDir::new().unwrap();
    let env = [("OPENCLAW_GATEWAY_PASSWORD", Path::new(PASSWORD))];
    for command in [&["health"][..], &["node", "run"]] {
        let (code, said) = cli(home.path(), &env, &[command, &["--url", &url]].concat());
        assert_eq!(code, Some(78), "{said}");
        assert!(listener.accept().is_err(), "it was dialled");
    }
    let gateway = Gateway::start();
    let url = format!("wss://127.0.0.1:{}", gateway.port());
    let args = ["health", "--url", &url, "--password", PASSWORD];
    let (code, said) = cli(home.path(), &[], &args);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("no TLS connection"), "{said}");
}
