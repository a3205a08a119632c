//! Every door: which listener lets whom in, and what refuses to start (rows A4, O, H, P, T and U3).

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    ADMIN, Answer, Connect, Device, Gateway, PASSWORD, PATIENCE, Peer, Setup, free_port,
    in_own_network, program, upgrade_request,
};

/// What Tailscale Serve adds to a request.
const SERVE: [(&str, &str); 4] = [
    ("x-forwarded-for", "100.64.0.9"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "gw.tail.ts.net"),
    ("tailscale-user-login", "alice@example.com"),
];

/// The sample of `docs/CONFIG.md` with this name.
fn baseline(name: &str) -> &'static str {
    let text = include_str!("../../docs/CONFIG.md");
    let start = text.split(&format!("```json5 {name}\n")).nth(1).unwrap();
    start.split("```").next().unwrap()
}

/// The local command line without a secret.
fn nobody() -> Connect {
    Connect::as_client("cli", "cli").scopes(ADMIN)
}

fn open(port: u16, headers: &[(&str, &str)]) -> Peer {
    Peer::open_at(port, headers).unwrap_or_else(|answer| panic!("{headers:?}: {answer:?}"))
}

fn refused(port: u16, headers: &[(&str, &str)]) -> Answer {
    match Peer::open_at(port, headers) {
        Ok(_) => panic!("{headers:?} was let in"),
        Err(answer) => answer,
    }
}

/// How a connect without a device by these headers is refused.
fn detail(port: u16, headers: &[(&str, &str)], connect: &Connect) -> String {
    let error = open(port, headers).connect(connect).unwrap_err();
    error.detail().to_owned()
}

/// Admitted at most, and without any right: no device, no silent pairing.
fn is_nobody_local(gateway: &Gateway, port: u16, headers: &[(&str, &str)]) {
    let hello = open(port, headers).connect(&Connect::cli()).unwrap();
    assert_eq!(hello["auth"]["scopes"], json!([]), "{headers:?}");
    let device = Device::new();
    let error = open(port, headers)
        .connect_as(&Connect::cli(), &device)
        .unwrap_err();
    assert_eq!(error.detail(), "PAIRING_REQUIRED", "{headers:?}");
    let paired = &gateway.cli_json(&["devices", "list"])["paired"];
    assert_eq!(paired, &json!([]));
}

/// Waits for this in what the Gateway writes to its standard error.
fn says(gateway: &Gateway, part: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !gateway.stderr().contains(part) {
        assert!(Instant::now() < deadline, "{part}: {}", gateway.stderr());
        thread::park_timeout(Duration::from_millis(2));
    }
}

// Baselines.

#[test]
fn t1_baseline_b_asks_everybody_on_main_for_the_password() {
    let gateway = Setup::default().config(baseline("baseline-b")).start();
    let port = gateway.port();
    let blank = Connect::cli().password(" ");
    assert_eq!(detail(port, &[], &blank), "AUTH_PASSWORD_MISSING");
    for wrong in ["wrong", "correct horse battery stapl", "undefined"] {
        let connect = Connect::cli().password(wrong);
        assert_eq!(detail(port, &[], &connect), "AUTH_PASSWORD_MISMATCH");
    }
    for (header, status) in [
        (("host", "evil.example"), 421),
        (("origin", "https://evil.example"), 403),
        (("x-forwarded-for", "127.0.0.1"), 403),
        (("via", "1.1 proxy"), 403),
    ] {
        assert_eq!(refused(port, &[header]).status, status, "{header:?}");
    }
    let forged = refused(port, &SERVE);
    assert_eq!(
        (forged.status, forged.code().as_deref()),
        (403, Some("proxy_attribution_required"))
    );
    says(&gateway, "gateway.tailscale.mode: serve");
    // The password opens it, for a program on this host.
    let hello = open(port, &[]).connect(&Connect::cli()).unwrap();
    assert_eq!(
        hello["auth"]["scopes"].as_array().unwrap().len(),
        ADMIN.len()
    );
}

#[test]
fn p2_baseline_b_asks_for_the_password_behind_serve_and_nobody_is_local_there() {
    let gateway = Setup::default().config(baseline("baseline-b")).start();
    let port = gateway.port() + 1;
    let command = format!("tailscale serve --bg http://127.0.0.1:{port}");
    says(&gateway, &command);
    assert_eq!(detail(port, &SERVE, &nobody()), "AUTH_PASSWORD_MISSING");
    let wrong = Connect::cli().password("wrong");
    assert_eq!(detail(port, &SERVE, &wrong), "AUTH_PASSWORD_MISMATCH");
    is_nobody_local(&gateway, port, &SERVE);
    // A process of this host that leaves the headers out gains nothing by it.
    is_nobody_local(&gateway, port, &[]);
    assert_eq!(detail(port, &[], &nobody()), "DEVICE_IDENTITY_REQUIRED");
    assert!(gateway.audit().contains("\"serve\""), "{}", gateway.audit());
}

#[test]
fn o1_o3_h1_the_serve_listener_keeps_the_rules_of_main() {
    let gateway = Setup::default().config(baseline("baseline-b")).start();
    let port = gateway.port() + 1;
    let with = |header| refused(port, &[&SERVE[..], &[header]].concat()).status;
    assert_eq!(with(("origin", "https://evil.example")), 403);
    assert_eq!(with(("origin", "null")), 403);
    let own = format!("http://127.0.0.1:{port}");
    assert_eq!(
        with(("origin", &own)),
        403,
        "O4: behind a proxy nobody is on loopback"
    );
    assert_eq!(with(("host", "evil.example")), 421);
    assert_eq!(with(("x-forwarded-for", "127.0.0.1, 100.64.0.9")), 403);
    assert_eq!(with(("x-forwarded-for", "garbage")), 403);
    assert_eq!(with(("tailscale-funnel-request", "?1")), 403, "T5");
    for path in ["/tools/invoke", "/v1/models", "/api/channels", "/config"] {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Forwarded-For: 100.64.0.9\r\n\
             Tailscale-User-Login: alice@example.com\r\nConnection: close\r\n\r\n"
        );
        let status = said(port, &request);
        assert!(matches!(status, 401 | 403 | 404), "{path}: {status}");
    }
}

/// The status of the answer to these bytes at another port than the main one.
fn said(port: u16, request: &str) -> u16 {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    crate::support::read_answer(&mut stream).unwrap().status
}

#[test]
fn a4_baseline_a_without_a_secret_admits_nobody_but_by_whois() {
    let gateway = Setup::default()
        .config(baseline("baseline-a"))
        .env("OPENCLAW_GATEWAY_PASSWORD", "")
        .start();
    let main = gateway.port();
    for guess in ["undefined", "null", PASSWORD] {
        let connect = nobody().with("auth", json!({"token": guess}));
        assert_eq!(
            detail(main, &[], &connect),
            "AUTH_TOKEN_NOT_CONFIGURED",
            "{guess}"
        );
        assert_eq!(
            detail(main + 1, &SERVE, &connect),
            "AUTH_TOKEN_NOT_CONFIGURED"
        );
    }
    assert_eq!(refused(main, &SERVE).status, 403, "T1");
    // No daemon vouches for Alice here.
    assert_eq!(
        detail(main + 1, &SERVE, &nobody()),
        "AUTH_TAILSCALE_WHOIS_FAILED"
    );
    let hello = gateway.cli_json(&["gateway", "call", "health"]);
    assert_eq!(hello["ok"], json!(true), "the admin socket serves its user");
}

// Mode none.

#[test]
fn p2_mode_none_serves_programs_of_this_host_and_no_page_and_no_proxy() {
    let config = "{gateway: {auth: {mode: 'none'}}}";
    let gateway = Setup::default().config(config).start();
    let port = gateway.port();
    let hello = open(port, &[]).connect(&nobody()).unwrap();
    assert_eq!(
        hello["auth"]["scopes"].as_array().unwrap().len(),
        ADMIN.len()
    );
    for origin in [
        "https://evil.example",
        "null",
        "http://localhost.evil.example",
    ] {
        assert_eq!(refused(port, &[("origin", origin)]).status, 403, "{origin}");
    }
    assert_eq!(refused(port, &[("host", "evil.example")]).status, 421);
    for header in [
        SERVE[0],
        SERVE[3],
        ("forwarded", "for=127.0.0.1"),
        ("via", "1.1 x"),
    ] {
        assert_eq!(refused(port, &[header]).status, 403, "{header:?}");
    }
    // The own page waits for its approval like every page.
    let origin = format!("http://127.0.0.1:{port}");
    let error = open(port, &[("origin", &origin)])
        .connect_as(&nobody(), &Device::new())
        .unwrap_err();
    assert_eq!(error.detail(), "PAIRING_REQUIRED");
}

// A proxy.

/// Trusted-proxy mode with a listener for the proxy, `more` beside its header.
fn with_proxy_users(more: &str) -> (Gateway, u16) {
    let port = free_port();
    let config = format!(
        "{{gateway: {{proxy: {{port: {port}}}, auth: {{mode: 'trusted-proxy',\
         trustedProxy: {{userHeader: 'X-Forwarded-User'{more}}}}}}}}}"
    );
    (Setup::default().config(&config).start(), port)
}

const ALICE: [(&str, &str); 3] = [
    ("x-forwarded-for", "203.0.113.9"),
    ("x-forwarded-user", "alice"),
    ("x-proxy-key", "k"),
];

#[test]
fn p6_the_proxys_word_counts_from_the_proxy_alone() {
    let (gateway, port) = with_proxy_users(
        ", requiredHeaders: ['X-Proxy-Key'], allowUsers: ['alice'], allowLoopback: true",
    );
    let hello = open(port, &ALICE).connect(&nobody()).unwrap();
    assert_eq!(hello["auth"]["scopes"], json!([]), "S2");
    let error = open(port, &ALICE)
        .connect_as(&nobody(), &Device::new())
        .unwrap_err();
    assert_eq!(error.detail(), "PAIRING_REQUIRED", "P2");
    let said = |part: &str| says(&gateway, part);
    for (headers, detail_code, reason) in [
        (
            &ALICE[..2],
            "AUTH_IDENTITY_HEADER_REQUIRED",
            "trusted_proxy_missing_header",
        ),
        (
            &[ALICE[0], ALICE[2]],
            "AUTH_IDENTITY_HEADER_REQUIRED",
            "trusted_proxy_user_missing",
        ),
        (
            &[ALICE[0], ALICE[2], ("x-forwarded-user", "bob")],
            "AUTH_UNAUTHORIZED",
            "trusted_proxy_user_not_allowed",
        ),
    ] {
        assert_eq!(detail(port, headers, &nobody()), detail_code, "{headers:?}");
        said(reason);
    }
    // On main nobody is a proxy, whatever the headers say.
    assert_eq!(refused(gateway.port(), &ALICE).status, 403);
    assert_eq!(refused(gateway.port(), &[ALICE[1]]).status, 403);
    said("trusted_proxy_untrusted_source");
    // A5, O2: neither a role nor an origin comes with the identity.
    let mut node = Connect::node();
    node.params["auth"] = Value::Null;
    let node = node
        .without("auth")
        .with_client("id", json!("openclaw-control-ui"));
    let from_page = [&ALICE[..], &[("origin", "https://evil.example")]].concat();
    assert_eq!(refused(port, &from_page).status, 403);
    let error = open(port, &ALICE).connect(&node).unwrap_err();
    assert!(
        ["DEVICE_IDENTITY_REQUIRED", "CONTROL_UI_ORIGIN_NOT_ALLOWED"].contains(&error.detail()),
        "{error:?}"
    );
    // The password beside it is for programs on this host, and not for the proxy's users.
    let hello = open(gateway.port(), &[]).connect(&Connect::cli()).unwrap();
    assert_ne!(hello["auth"]["scopes"], json!([]));
    let without_user = [ALICE[0], ALICE[2]];
    assert_eq!(
        detail(port, &without_user, &Connect::cli()),
        "AUTH_IDENTITY_HEADER_REQUIRED"
    );
}

#[test]
fn p6_a_proxy_on_this_host_must_be_allowed() {
    let (gateway, port) = with_proxy_users("");
    assert_eq!(detail(port, &ALICE, &nobody()), "AUTH_UNAUTHORIZED");
    says(&gateway, "trusted_proxy_loopback_source");
}

#[test]
fn p2_the_proxy_listener_is_for_its_proxy_and_makes_nobody_local() {
    let port = free_port();
    let config = format!("{{gateway: {{proxy: {{port: {port}}}}}}}");
    let gateway = Setup::default().config(&config).start();
    let forwarded = [("x-forwarded-for", "203.0.113.9")];
    is_nobody_local(&gateway, port, &forwarded);
    assert_eq!(
        refused(port, &[]).status,
        403,
        "a proxy that does not name its client"
    );
    assert_eq!(
        detail(port, &forwarded, &nobody()),
        "DEVICE_IDENTITY_REQUIRED"
    );
    for header in [
        ("origin", "https://evil.example"),
        ("x-forwarded-for", "127.0.0.1, 203.0.113.9"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-real-ip", "203.0.113.9"),
        ("host", "evil.example"),
    ] {
        let status = refused(port, &[header]).status;
        assert_eq!(
            status,
            if header.0 == "host" { 421 } else { 403 },
            "{header:?}"
        );
    }
    let named = format!("proxy 127.0.0.1:{port}");
    let status = gateway.cli_json(&["gateway", "call", "status"]);
    let listeners = status["listeners"].as_array().unwrap();
    assert!(listeners.contains(&json!(named)), "{listeners:?}");
    says(&gateway, &named);
    assert!(gateway.audit().contains(&named));
    let shown = gateway.cli(&["status"]);
    assert!(String::from_utf8(shown.stdout).unwrap().contains(&named));
}

#[test]
fn p2_a_proxys_socket_is_private_and_no_way_around_the_secret() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("proxy.sock");
    let config = format!("{{gateway: {{proxy: {{socket: '{}'}}}}}}", path.display());
    let mut gateway = Setup::default().config(&config).start();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let ask = |headers: &[&str]| {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
            .write_all(&upgrade_request("localhost", headers))
            .unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        String::from_utf8(head.to_vec()).unwrap()
    };
    assert_eq!(
        ask(&[]),
        "HTTP/1.1 403",
        "a proxy that does not name its client"
    );
    assert_eq!(ask(&["X-Forwarded-For: 127.0.0.1"]), "HTTP/1.1 403");
    assert_eq!(
        ask(&[
            "X-Forwarded-For: 203.0.113.9",
            "Origin: https://evil.example"
        ]),
        "HTTP/1.1 403"
    );
    let admitted = through_socket(&path, &Connect::cli());
    assert_eq!(admitted["payload"]["auth"]["scopes"], json!([]));
    let strange = through_socket(&path, &nobody());
    assert_eq!(
        strange["error"]["details"]["code"],
        "DEVICE_IDENTITY_REQUIRED"
    );
    let audit = gateway.audit();
    let admitted = audit.lines().find(|line| line.contains("\"proxy")).unwrap();
    assert!(!admitted.contains("\"admin\""), "{admitted}");
    assert!(gateway.terminate().success());
    assert!(!path.exists(), "taken away with its gateway");
}

/// The answer to `connect` by way of a proxy that speaks over its socket.
fn through_socket(path: &Path, connect: &Connect) -> Value {
    use tungstenite::Message;
    use tungstenite::client::IntoClientRequest;
    let mut request = "ws://localhost/".into_client_request().unwrap();
    let client = "203.0.113.9".parse().unwrap();
    request.headers_mut().insert("x-forwarded-for", client);
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut socket, _) = tungstenite::client(request, stream).unwrap();
    socket.read().unwrap();
    let frame = json!({"type": "req", "id": "1", "method": "connect", "params": connect.params});
    socket.send(Message::text(frame.to_string())).unwrap();
    serde_json::from_str(socket.read().unwrap().to_text().unwrap()).unwrap()
}

// What does not start.

/// The exit code and the last words of a Gateway that must not run.
fn not_started(config: &str, args: &[&str]) -> (i32, String) {
    let home = TempDir::new().unwrap();
    fs::create_dir(home.path().join("state")).unwrap();
    let file = home.path().join("state/openclaw.json");
    fs::write(&file, config).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let port = free_port().to_string();
    let mut child = program(home.path(), &[])
        .args(["gateway", "run", "--port", &port])
        .args(args)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() < deadline => thread::park_timeout(Duration::from_millis(2)),
            None => {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("it runs: {config} {args:?}");
            }
        }
    };
    let mut stderr = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .unwrap();
    (status.code().unwrap(), stderr)
}

#[test]
fn a4_p2_p7_t6_t7_u3_what_would_expose_it_does_not_start() {
    const PW: &str = "auth: {mode: 'password', password: 'correct horse battery staple'}";
    const TOKEN: &str = "auth: {mode: 'token', token: 'correct horse battery staple'}";
    for (inside, args, named) in [
        ("", &["--bind", "lan"][..], "no secret is configured"),
        (
            "bind: 'custom', customBindHost: '0.0.0.0'",
            &[],
            "no secret is configured",
        ),
        (
            "remote: {password: 'correct horse battery staple'}",
            &[],
            "no secret is configured",
        ),
        (
            "auth: {mode: 'none'}",
            &["--bind", "lan"],
            "gateway.bind: \"loopback\"",
        ),
        (
            "auth: {mode: 'none'}, proxy: {port: 9}",
            &[],
            "remove gateway.proxy",
        ),
        (
            "tailscale: {mode: 'serve'}",
            &["--auth", "none"],
            "gateway.tailscale.mode: \"off\"",
        ),
        (TOKEN, &["--tailscale", "funnel"], "set it to \"password\""),
        (
            PW,
            &["--tailscale", "serve", "--bind", "tailnet"],
            "gateway.bind",
        ),
        (
            PW,
            &["--tailscale", "funnel", "--bind", "auto"],
            "gateway.bind",
        ),
        (
            "trustedProxies: ['127.0.0.1'], tailscale: {mode: 'serve'}, \
             auth: {allowTailscale: true, token: 'correct horse battery staple'}",
            &[],
            "gateway.auth.allowTailscale",
        ),
        (
            "trustedProxies: ['10.0.0.1'], auth: {mode: 'trusted-proxy', token: 'correct horse battery staple', \
             trustedProxy: {userHeader: 'x-forwarded-user'}}",
            &[],
            "gateway.auth.token",
        ),
        (
            "trustedProxies: ['10.0.0.1']",
            &["--auth", "trusted-proxy"],
            "trustedProxy.userHeader",
        ),
        (
            "bind: 'lan', controlUi: {dangerouslyDisableDeviceAuth: true}, \
             auth: {password: 'correct horse battery staple'}",
            &[],
            "dangerouslyDisableDeviceAuth",
        ),
        (PW, &["--bind", "0.0.0.0"], "--bind"),
        (PW, &["--nonsense"], "--nonsense"),
        (
            "publicHosts: ['*'], auth: {password: 'correct horse battery staple'}",
            &[],
            "gateway.publicHosts: \"*\" cannot be read; it must be a name such as gateway.example",
        ),
        (
            "controlUi: {allowedOrigins: ['*']}, auth: {password: 'correct horse battery staple'}",
            &[],
            "it must be an origin as browsers send it, such as https://chat.example",
        ),
    ] {
        let config = format!("{{gateway: {{{inside}}}}}");
        let (code, stderr) = not_started(&config, args);
        assert_eq!(code, 78, "{config} {args:?}: {stderr}");
        assert!(stderr.contains(named), "{config} {args:?}: {stderr}");
        assert!(!stderr.contains("correct horse"), "{stderr}");
    }
    // An address that may come: another try may succeed.
    let away = format!("{{gateway: {{{PW}, bind: 'custom', customBindHost: '203.0.113.7'}}}}");
    let (code, stderr) = not_started(&away, &[]);
    assert_eq!(code, 75, "{stderr}");
    assert!(stderr.contains("gateway.customBindHost"), "{stderr}");
}

#[test]
fn a_command_line_that_cannot_be_read_ends_with_78() {
    let home = TempDir::new().unwrap();
    for (line, code) in [
        ("gateway run --port 0", 78),
        ("node run --port 65536", 78),
        ("nonsense", 78),
        ("--help", 0),
        ("--version", 0),
    ] {
        let mut command = program(home.path(), &[]);
        let output = command.args(line.split(' ')).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{line}: {output:?}");
    }
}

#[test]
fn a_port_or_socket_that_another_has_is_named() {
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port();
    let pw = "auth: {password: 'correct horse battery staple'}";
    for (inside, setting) in [
        (
            format!("tailscale: {{mode: 'serve', servePort: {port}}}"),
            "gateway.tailscale.servePort",
        ),
        (format!("proxy: {{port: {port}}}"), "gateway.proxy.port"),
    ] {
        let (code, stderr) = not_started(&format!("{{gateway: {{{pw}, {inside}}}}}"), &[]);
        assert_eq!(code, 75, "{stderr}");
        assert!(
            stderr.contains(setting) && stderr.contains("pid"),
            "{stderr}"
        );
    }
    let dir = TempDir::new().unwrap();
    let mine = dir.path().join("mine");
    fs::write(&mine, "text").unwrap();
    let inside = format!("{pw}, proxy: {{socket: '{}'}}", mine.display());
    let (code, stderr) = not_started(&format!("{{gateway: {{{inside}}}}}"), &[]);
    assert_eq!(
        (code, fs::read_to_string(&mine).unwrap().as_str()),
        (78, "text"),
        "{stderr}"
    );
}

// Beyond loopback, in a network of its own.

#[test]
fn d2_a_tailnet_bind_listens_there_alone_and_takes_secrets_within_the_tailnet() {
    in_own_network(
        "listeners::d2_a_tailnet_bind_listens_there_alone_and_takes_secrets_within_the_tailnet",
        &["100.64.0.9/32", "10.0.0.7/32"],
        || {
            let gateway = Setup::default()
                .config("{gateway: {bind: 'tailnet'}}")
                .start();
            let port = gateway.port();
            assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
            assert!(std::net::TcpStream::connect(("10.0.0.7", port)).is_err());
            let mut peer = Peer::open_on("100.64.0.9", port, &[]).ok().unwrap();
            let hello = peer.connect(&Connect::cli()).unwrap();
            assert_eq!(hello["auth"]["scopes"], json!([]), "not local");
            assert!(
                gateway.audit().contains("\"tailnet\""),
                "{}",
                gateway.audit()
            );
            says(&gateway, &format!("main 100.64.0.9:{port}"));
            // The admin socket still serves this host's own command line.
            gateway.cli_json(&["gateway", "call", "health"]);
        },
    );
}

#[test]
fn a_tailnet_bind_waits_for_its_address() {
    in_own_network(
        "listeners::a_tailnet_bind_waits_for_its_address",
        &["10.0.0.7/32"],
        || {
            let pw = "{gateway: {auth: {password: 'correct horse battery staple'}}}";
            let (code, stderr) = not_started(pw, &["--bind", "tailnet"]);
            assert_eq!(code, 75, "{stderr}");
            assert!(stderr.contains("100.64.0.0/10"), "{stderr}");
        },
    );
}

#[test]
fn d2_a_lan_bind_takes_no_secret_in_the_clear_but_from_listed_addresses() {
    in_own_network(
        "listeners::d2_a_lan_bind_takes_no_secret_in_the_clear_but_from_listed_addresses",
        &["10.0.0.7/32", "10.0.0.8/32", "fd00::7/128"],
        || {
            let config = "{gateway: {bind: 'lan', allowPlaintextFrom: ['10.0.0.8', 'fd00::7']}}";
            let gateway = Setup::default().config(config).start();
            let port = gateway.port();
            says(&gateway, "warning: the main listener is plaintext");
            let at = |host: &str| Peer::open_on(host, port, &[]).ok().unwrap();
            for secret in [PASSWORD, "wrong"] {
                let error = at("10.0.0.7")
                    .connect(&Connect::cli().password(secret))
                    .unwrap_err();
                assert_eq!(error.detail(), "AUTH_UNAUTHORIZED", "before it is compared");
            }
            for host in ["10.0.0.8", "fd00::7"] {
                let hello = at(host).connect(&Connect::cli()).unwrap();
                assert_eq!(hello["auth"]["scopes"], json!([]), "{host}: not local");
            }
            assert!(gateway.audit().contains("\"lan\""));
            // Loopback is part of it, and local as ever.
            let hello = at("127.0.0.1").connect(&Connect::cli()).unwrap();
            assert_ne!(hello["auth"]["scopes"], json!([]));
            // O4: a page from loopback that comes by another address.
            let origin = format!("http://127.0.0.1:{port}");
            let answer = Peer::open_on("10.0.0.7", port, &[("origin", &origin)]);
            assert_eq!(answer.err().unwrap().status, 403);
        },
    );
}

#[test]
fn p6_an_address_of_this_host_is_no_proxy() {
    in_own_network(
        "listeners::p6_an_address_of_this_host_is_no_proxy",
        &["10.0.0.7/32", "10.0.0.8/32"],
        || {
            let config = "{gateway: {bind: 'lan', trustedProxies: ['10.0.0.7'], \
                 auth: {mode: 'trusted-proxy', trustedProxy: {userHeader: 'x-forwarded-user'}}}}";
            let gateway = Setup::default().config(config).start();
            let mut spoof = Peer::open_on("10.0.0.7", gateway.port(), &ALICE[..2])
                .ok()
                .unwrap();
            let error = spoof.connect(&nobody()).unwrap_err();
            assert_eq!(error.detail(), "AUTH_UNAUTHORIZED");
            let reason = "trusted_proxy_local_interface_source";
            says(&gateway, reason);
            let untrusted = Peer::open_on("10.0.0.8", gateway.port(), &ALICE[..2]);
            assert_eq!(untrusted.err().unwrap().status, 403);
        },
    );
}

#[test]
fn auto_is_loopback_where_there_is_one_and_lan_elsewhere() {
    in_own_network(
        "listeners::auto_is_loopback_where_there_is_one_and_lan_elsewhere",
        &["10.0.0.7/32"],
        || {
            let config = "{gateway: {bind: 'auto'}}";
            let gateway = Setup::default().config(config).start();
            says(&gateway, "main 127.0.0.1:");
            assert!(std::net::TcpStream::connect(("10.0.0.7", gateway.port())).is_err());
        },
    );
}
