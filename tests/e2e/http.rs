//! What answers over HTTP, to whom, and how little.

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{
    Answer, Connect, Device, Gateway, PASSWORD, Peer, Setup, exchange, get, read_answer,
    upgrade_request,
};

const HEALTH: [(&str, &str); 5] = [
    ("/health", "{\"ok\":true,\"status\":\"live\"}"),
    ("/healthz", "{\"ok\":true,\"status\":\"live\"}"),
    ("/live", "{\"ok\":true,\"status\":\"live\"}"),
    ("/ready", "{\"ready\":true}"),
    ("/readyz", "{\"ready\":true}"),
];

fn still_serves(gateway: &Gateway) {
    assert_eq!(get(gateway, "/healthz", &[]).status, 200);
}

/// Paths that nobody serves, of which some exist in the reference.
const NOWHERE: [&str; 26] = [
    "/api",
    "/api/channels",
    "/api/channels/x/send",
    "/v1/models",
    "/v1/chat/completions",
    "/v1/responses",
    "/sessions/main/kill",
    "/sessions/main/history",
    "/hooks",
    "/metrics",
    "/openapi.json",
    "/config",
    "/admin",
    "/canvas",
    "/__openclaw__/a2ui",
    "/control-ui-config.json",
    "/ws",
    "/rpc",
    "/favicon.ico",
    "/.env",
    "/openclaw.json",
    "/healthz/",
    "/healthz/x",
    "/Healthz",
    "/index.html/",
    "/debug/pprof",
];

fn bearer(secret: &str) -> String {
    format!("Authorization: Bearer {secret}")
}

#[test]
fn h1_without_a_bearer_every_path_but_the_open_ones_is_401() {
    let gateway = Gateway::start();
    for path in NOWHERE.into_iter().chain(["/tools/invoke"]) {
        let answer = get(&gateway, path, &[]);
        assert_eq!(answer.status, 401, "{path}");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{path}");
        assert_eq!(
            answer.code().as_deref(),
            Some("AUTH_PASSWORD_MISSING"),
            "{path}"
        );
    }
    // A channel's hook will bear its own signature; there is none yet.
    assert_eq!(get(&gateway, "/hooks/x", &[]).status, 405);
    let hook = post(&gateway, "/hooks/x", &[], b"{}").unwrap();
    assert_eq!(hook.status, 404);
    // Whoever may come in is told what is not there.
    for path in NOWHERE {
        let answer = get(&gateway, path, &[&bearer(PASSWORD)]);
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(answer.header("www-authenticate"), None);
    }
}

#[test]
fn h2_a_secret_counts_only_where_it_belongs() {
    let gateway = Gateway::start();
    let basic = "Authorization: Basic Z2F0ZXdheTpjb3JyZWN0IGhvcnNl";
    let cookie = format!("Cookie: token={PASSWORD}");
    for path in ["/api/channels", "/v1/models", "/tools/invoke"] {
        for header in [
            basic,
            &cookie,
            "Authorization: correct horse battery staple",
            "Authorization: Bearer",
            "X-Api-Key: correct horse battery staple",
            "Proxy-Authorization: Bearer correct horse battery staple",
        ] {
            assert_eq!(
                get(&gateway, path, &[header]).status,
                401,
                "{path} {header}"
            );
        }
        let query = format!("{path}?token=correct+horse+battery+staple&access_token=x");
        assert_eq!(get(&gateway, &query, &[]).status, 401);
        // Two are one too many, whatever they say.
        let twice = [bearer(PASSWORD), bearer(PASSWORD)];
        assert_eq!(get(&gateway, path, &[&twice[0], &twice[1]]).status, 400);
    }
    let target = "/?token=correct+horse&password=correct+horse";
    let request = String::from_utf8(upgrade_request(
        &format!("127.0.0.1:{}", gateway.port()),
        &[basic, &cookie],
    ));
    let request = request
        .unwrap()
        .replacen("GET / ", &format!("GET {target} "), 1);
    assert_eq!(exchange(&gateway, request.as_bytes()).unwrap().status, 101);
    let headers = [
        ("authorization", "Bearer correct horse battery staple"),
        ("cookie", "token=x"),
    ];
    let mut peer = Peer::open_with(&gateway, &headers).unwrap();
    let error = peer.connect(&Connect::cli().password("")).unwrap_err();
    assert_eq!(error.detail(), "AUTH_PASSWORD_MISSING");
}

#[test]
fn h2_a_device_token_is_a_bearer_until_it_is_revoked() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let device = Device::new();
    let reader = Connect::cli().scopes(&["operator.read"]);
    let (_peer, hello) = Peer::admitted(&gateway, &reader, &device);
    let token = bearer(hello["auth"]["deviceToken"].as_str().unwrap());
    let detail = get(&gateway, "/readyz", &[&token]);
    assert!(detail.body.contains("uptimeMs"), "{detail:?}");
    // Reading is not writing, and a header widens nothing (H5).
    for more in ["X-Y: z", "x-openclaw-scopes: operator.admin"] {
        let answer = post(
            &gateway,
            "/tools/invoke",
            &[&token, more],
            b"{\"name\":\"x\"}",
        )
        .unwrap();
        assert_eq!(answer.status, 403, "{more}");
        assert_eq!(answer.code().as_deref(), Some("MISSING_SCOPE"));
    }
    let narrow = ["x-openclaw-scopes: operator.pairing", &token];
    assert_eq!(get(&gateway, "/readyz", &narrow).status, 403);
    let params = json!({"deviceId": device.id, "role": "operator"});
    operator.call("device.token.revoke", &params).unwrap();
    assert_eq!(get(&gateway, "/readyz", &[&token]).status, 401);
}

#[test]
fn h4_no_tool_is_invoked_over_http() {
    let gateway = Gateway::start();
    let right = bearer(PASSWORD);
    for tool in [
        "exec",
        "node",
        "nodes",
        "gateway",
        "cron",
        "sessions_spawn",
        "sessions_send",
        "shell",
        "system.run",
        "read",
        "",
    ] {
        let body = json!({"tool": tool, "args": {}}).to_string();
        let answer = post(&gateway, "/tools/invoke", &[&right], body.as_bytes()).unwrap();
        let status = if tool.is_empty() { 400 } else { 404 };
        assert_eq!(answer.status, status, "{tool}: {answer:?}");
        assert!(answer.body.contains("\"ok\":false"));
        let stranger = post(&gateway, "/tools/invoke", &[], body.as_bytes()).unwrap();
        assert_eq!(stranger.status, 401, "{tool}");
    }
    for nonsense in [&b""[..], b"x", b"[]", b"{\"tool\": 5}", &[0xff; 9]] {
        let answer = post(&gateway, "/tools/invoke", &[&right], nonsense).unwrap();
        assert_eq!(answer.status, 400);
    }
    assert_eq!(get(&gateway, "/tools/invoke", &[&right]).status, 405);
    // Too large: announced, refused unread; and nobody is asked to go on sending.
    let large = vec![b' '; 2 * 1024 * 1024 + 1];
    assert_eq!(
        post(&gateway, "/tools/invoke", &[&right], &large)
            .unwrap()
            .status,
        413
    );
    assert_eq!(
        post(&gateway, "/tools/invoke", &[], &large).unwrap().status,
        401
    );
    let announced = ["Content-Length: 2097153", "Expect: 100-continue", &right];
    let answer = send(&gateway, "POST /tools/invoke HTTP/1.1", &announced, b"").unwrap();
    assert_eq!(answer.status, 413);
    let announced = ["Content-Length: 12", "Expect: 100-continue", &right];
    let answer = send(&gateway, "POST /tools/invoke HTTP/1.1", &announced, b"").unwrap();
    assert_eq!(answer.status, 100);
}

#[test]
fn r8_a_wrong_bearer_is_answered_ever_later_and_other_refusals_at_once() {
    let gateway = Gateway::start();
    // One series over HTTP and WebSocket.
    for (late_ms, over_http) in [(250, true), (500, false), (1000, true), (2000, false)] {
        let asked = Instant::now();
        if over_http {
            let answer = get(&gateway, "/v1/models", &[&bearer("wrong")]);
            assert_eq!(answer.status, 401);
            assert_eq!(answer.code().as_deref(), Some("AUTH_PASSWORD_MISMATCH"));
        } else {
            let mut peer = Peer::open(&gateway);
            peer.connect(&Connect::cli().password("wrong")).unwrap_err();
        }
        assert!(
            asked.elapsed() >= Duration::from_millis(late_ms),
            "{:?}",
            asked.elapsed()
        );
    }
    // Nobody else waits for whoever waits now.
    let mut waiting = gateway.dial();
    let request = request_head(&gateway, "GET /v1/models HTTP/1.1", &[&bearer("wrong")]);
    waiting.write_all(request.as_bytes()).unwrap();
    let asked = Instant::now();
    assert_eq!(get(&gateway, "/v1/models", &[]).status, 401);
    assert_eq!(
        get(&gateway, "/v1/models", &[&bearer(PASSWORD)]).status,
        404
    );
    Peer::operator(&gateway);
    assert!(
        asked.elapsed() < Duration::from_millis(4000),
        "{:?}",
        asked.elapsed()
    );
    assert_eq!(read_answer(&mut waiting).unwrap().status, 401);
}

#[test]
fn r2_guesses_from_a_page_are_locked_out_over_http() {
    let config = "{gateway: {auth: {rateLimit: {maxAttempts: 2}}}}";
    let gateway = Setup::default().config(config).start();
    let page = format!("Origin: http://127.0.0.1:{}", gateway.port());
    // Missing ones are not counted (R1).
    for _ in 0..5 {
        assert_eq!(get(&gateway, "/v1/models", &[&page]).status, 401);
    }
    for _ in 0..2 {
        assert_eq!(
            get(&gateway, "/v1/models", &[&page, &bearer("wrong")]).status,
            401
        );
    }
    let locked = get(&gateway, "/v1/models", &[&page, &bearer(PASSWORD)]);
    assert_eq!(locked.status, 429);
    assert_eq!(locked.code().as_deref(), Some("AUTH_RATE_LIMITED"));
    let wait: u64 = locked.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=300).contains(&wait), "{wait}");
    // The same series on the WebSocket; a program of this host is not shut out.
    let origin = [("origin", page.trim_start_matches("Origin: "))];
    let mut peer = Peer::open_with(&gateway, &origin).unwrap();
    assert_eq!(
        peer.connect(&Connect::cli()).unwrap_err().detail(),
        "AUTH_RATE_LIMITED"
    );
    assert_eq!(
        get(&gateway, "/v1/models", &[&bearer(PASSWORD)]).status,
        404
    );
}

#[test]
fn o1_o3_o4_an_authenticated_path_is_closed_to_foreign_pages_hosts_and_proxies() {
    let gateway = Gateway::start();
    let right = bearer(PASSWORD);
    for path in ["/v1/models", "/tools/invoke", "/", "/nowhere"] {
        for origin in [
            "https://evil.example",
            "null",
            &format!("http://127.0.0.1:{}.evil.example", gateway.port()),
        ] {
            let origin = format!("Origin: {origin}");
            let answer = get(&gateway, path, &[&origin, &right]);
            assert_eq!(answer.status, 403, "{path} {origin}");
            assert_eq!(
                answer.code().as_deref(),
                Some("CONTROL_UI_ORIGIN_NOT_ALLOWED")
            );
        }
        let foreign = ["Host: evil.example", "Origin: http://evil.example", &right];
        assert_eq!(get(&gateway, path, &foreign).status, 421, "{path}");
        let own = format!("Origin: http://127.0.0.1:{}", gateway.port());
        let proxied = ["X-Forwarded-For: 203.0.113.9", &own, &right];
        assert_eq!(get(&gateway, path, &proxied).status, 403, "{path}");
    }
    // The log has what came and the line that would allow it.
    let log = gateway.stderr();
    assert!(log.contains("https://evil.example"), "{log}");
    assert!(log.contains("gateway.controlUi.allowedOrigins"), "{log}");
}

#[test]
fn cors_is_closed() {
    let gateway = Gateway::start();
    let own = format!("Origin: http://127.0.0.1:{}", gateway.port());
    for path in ["/", "/healthz", "/v1/models", "/tools/invoke"] {
        for origin in [own.as_str(), "Origin: https://evil.example", "X-Y: z"] {
            for method in ["OPTIONS", "GET", "POST"] {
                let headers = [
                    origin,
                    "Access-Control-Request-Method: POST",
                    "Access-Control-Request-Headers: authorization",
                    "Content-Length: 0",
                ];
                let line = format!("{method} {path} HTTP/1.1");
                let answer = send(&gateway, &line, &headers, b"").unwrap();
                assert!(
                    method != "OPTIONS" || answer.status >= 400,
                    "{path} {origin}"
                );
                let head = answer.head.to_ascii_lowercase();
                assert!(!head.contains("access-control"), "{head}");
            }
        }
    }
}

#[test]
fn a_connection_carries_one_request() {
    let gateway = Gateway::start();
    let first = request_head(
        &gateway,
        "GET /healthz HTTP/1.1",
        &["Connection: keep-alive"],
    );
    let mut stream = gateway.dial();
    stream.write_all(first.repeat(2).as_bytes()).unwrap();
    let answer = read_answer(&mut stream).unwrap();
    assert_eq!(
        (answer.status, answer.header("connection")),
        (200, Some("close"))
    );
    assert!(read_answer(&mut stream).is_none());
}

#[test]
fn w8_no_secret_reaches_the_log_and_peer_text_is_shown_not_obeyed() {
    let gateway = Setup::default()
        .env("OPENCLAW_GATEWAY_PASSWORD", PASSWORD)
        .env("OPENCLAW_LOG_LEVEL", "trace")
        .start();
    // What hyper itself refuses is told at the level of debugging.
    assert_eq!(exchange(&gateway, b"\0\0\r\n\r\n").unwrap().status, 400);
    let right = bearer(PASSWORD);
    let long = format!("User-Agent: {}", "long".repeat(2000));
    for agent in [
        "User-Agent: a\t[INFO] ok \u{9b}31mred \u{202e}gnp",
        &long,
        "User-Agent: caf\u{e9}",
    ] {
        for headers in [
            &[agent, "Authorization: Bearer guess-of-a-secret"][..],
            &[agent, &right, "Origin: https://evil.example"],
            &[agent, &right, "X-Forwarded-For: 1.2.3.4"],
            &[agent, &right, "Host: evil.example"],
            &[agent, &right, "Expect: wonders"],
            &[agent, &right, &right],
            &[agent, &right, "Transfer-Encoding: chunked"],
            &[agent, &right],
        ] {
            let answer = get(&gateway, "/v1/models/\u{e9}%0d%0a", headers);
            assert!((400..500).contains(&answer.status), "{answer:?}");
            let said = format!("{}{}", answer.head, answer.body);
            assert!(!said.contains(PASSWORD) && !said.contains("guess-of-a-secret"));
        }
    }
    Peer::operator(&gateway);
    let mut wrong = Peer::open(&gateway);
    wrong
        .connect(&Connect::cli().password("guess-of-a-secret"))
        .unwrap_err();
    let log = gateway.stderr();
    assert!(log.contains("TRACE") || log.contains("DEBUG"), "{log}");
    assert!(log.contains("request refused"), "{log}");
    assert!(
        !log.contains(PASSWORD) && !log.contains("guess-of-a-secret"),
        "{log}"
    );
    for raw in ['\u{9b}', '\u{202e}', '\u{1b}', '\r'] {
        assert!(!log.contains(raw), "{raw:?} in {log}");
    }
    assert!(
        log.lines()
            .all(|line| line.len() < 2000 && !line.starts_with("[INFO]"))
    );
}

/// The head of a request whose `Host` is right, unless the header lines have their own.
fn request_head(gateway: &Gateway, line: &str, headers: &[&str]) -> String {
    let host = format!("Host: 127.0.0.1:{}", gateway.port());
    let has_host = headers.iter().any(|line| line.starts_with("Host:"));
    let mut lines = vec![line.to_owned()];
    lines.extend((!has_host).then_some(host));
    lines.extend(headers.iter().map(|line| (*line).to_owned()));
    lines.push("\r\n".to_owned());
    lines.join("\r\n")
}

fn send(gateway: &Gateway, line: &str, headers: &[&str], body: &[u8]) -> Option<Answer> {
    let mut request = request_head(gateway, line, headers).into_bytes();
    request.extend_from_slice(body);
    exchange(gateway, &request)
}

fn post(gateway: &Gateway, path: &str, headers: &[&str], body: &[u8]) -> Option<Answer> {
    let length = format!("Content-Length: {}", body.len());
    let headers = [headers, &[length.as_str()]].concat();
    send(gateway, &format!("POST {path} HTTP/1.1"), &headers, body)
}

#[test]
fn h8_health_says_only_how_it_is() {
    let gateway = Gateway::start();
    for (path, body) in HEALTH {
        for headers in [
            &[][..],
            &["Host: evil.example"],
            &["X-Forwarded-For: 203.0.113.9"],
            &["Origin: https://evil.example"],
            &["Authorization: Basic eDp5"],
        ] {
            let answer = get(&gateway, path, headers);
            assert_eq!(answer.status, 200, "{path} {headers:?}");
            assert_eq!(answer.body, body);
            assert_eq!(answer.header("server"), None);
        }
    }
}

#[test]
fn h8_an_operator_reads_more_and_a_guesser_nothing() {
    let gateway = Gateway::start();
    let _inside = Peer::operator(&gateway);
    for (path, _) in HEALTH {
        let answer = get(&gateway, path, &[&bearer(PASSWORD)]);
        let detail: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(detail["version"], env!("CARGO_PKG_VERSION"), "{path}");
        assert!(detail["uptimeMs"].is_u64());
        assert_eq!(detail["sessions"], json!({"all": 1, "nodes": 0}));
        let main = json!(format!("main 127.0.0.1:{}", gateway.port()));
        assert!(
            detail["listeners"].as_array().unwrap().contains(&main),
            "{detail}"
        );
    }
    let right = bearer(PASSWORD);
    assert_eq!(
        get(&gateway, "/healthz", &["Host: evil.example", &right]).status,
        421
    );
    assert_eq!(
        get(&gateway, "/healthz", &["X-Real-IP: 1.2.3.4", &right]).status,
        403
    );
    // A wrong bearer is a guess here as everywhere.
    assert_eq!(get(&gateway, "/healthz", &[&bearer("wrong")]).status, 401);
}

#[test]
fn every_answer_carries_the_headers_that_protect_it() {
    let gateway = Gateway::start();
    for path in ["/", "/app.js", "/healthz", "/nowhere"] {
        let answer = get(&gateway, path, &[]);
        assert_eq!(
            answer.header("x-content-type-options"),
            Some("nosniff"),
            "{path}"
        );
        assert_eq!(
            answer.header("referrer-policy"),
            Some("no-referrer"),
            "{path}"
        );
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
    }
    let page = get(&gateway, "/", &[]);
    let policy = page.header("content-security-policy").unwrap();
    assert!(
        policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"),
        "{policy}"
    );
}

#[test]
fn another_method_is_not_allowed() {
    let gateway = Gateway::start();
    let port = gateway.port();
    for path in ["/", "/app.js", "/healthz", "/readyz"] {
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "BREW"] {
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
            );
            let answer = exchange(&gateway, request.as_bytes()).unwrap();
            assert_eq!(answer.status, 405, "{method} {path}");
            assert_eq!(answer.header("allow"), Some("GET, HEAD"));
        }
    }
    let request = format!("HEAD / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
    let answer = exchange(&gateway, request.as_bytes()).unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
}

#[test]
fn u4_no_path_leads_out_of_the_page() {
    let gateway = Gateway::start();
    for path in [
        "/../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/..;/etc/passwd",
        "/./",
        "/app.js/..",
        "/%61pp.js",
        "/app%2ejs",
        "/app.js%00",
        "/APP.JS",
        "//app.js",
        "/\\..\\etc",
        "/app.js;x",
    ] {
        let answer = get(&gateway, path, &[]);
        assert!(
            matches!(answer.status, 400 | 401),
            "{path}: {}",
            answer.status
        );
        let answer = get(&gateway, path, &[&bearer(PASSWORD)]);
        assert!(
            matches!(answer.status, 400 | 404),
            "{path}: {}",
            answer.status
        );
    }
    assert_eq!(get(&gateway, "/app.js?v=1", &[]).status, 200);
}

#[test]
fn w5_a_malformed_target_is_refused_and_nothing_ends() {
    let gateway = Gateway::start();
    let host = format!("Host: 127.0.0.1:{}", gateway.port());
    for target in [
        "//%zz",
        "http://[::1",
        "*",
        "foo",
        "http://",
        "/\u{7f}",
        "/a b",
        "evil.example:443",
        "/é",
        "/<script>",
        "",
    ] {
        let request = format!("GET {target} HTTP/1.1\r\n{host}\r\nConnection: close\r\n\r\n");
        if let Some(answer) = exchange(&gateway, request.as_bytes()) {
            assert!(
                matches!(answer.status, 400 | 401 | 404),
                "{target:?}: {}",
                answer.status
            );
        }
        still_serves(&gateway);
    }
}

#[test]
fn w5_a_target_that_names_another_host_is_refused() {
    let gateway = Gateway::start();
    let host = format!("127.0.0.1:{}", gateway.port());
    for target in [
        "http://evil.example/",
        "http://evil.example/app.js",
        "https://evil.example/",
        "ftp://evil.example/",
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = exchange(&gateway, request.as_bytes()).unwrap();
        assert!(
            matches!(answer.status, 400 | 401 | 421),
            "{target}: {}",
            answer.status
        );
        let upgrade = String::from_utf8(upgrade_request(&host, &[])).unwrap();
        let upgrade = upgrade.replacen("GET / ", &format!("GET {target} "), 1);
        let answer = exchange(&gateway, upgrade.as_bytes()).unwrap();
        assert!(
            matches!(answer.status, 400 | 401 | 421),
            "{target}: {}",
            answer.status
        );
    }
    // Its own name is no other host.
    let request =
        format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    assert_eq!(exchange(&gateway, request.as_bytes()).unwrap().status, 200);
}

#[test]
fn w6_spellings_of_a_path_get_the_same_answer() {
    let gateway = Gateway::start();
    let right = bearer(PASSWORD);
    for (path, ambiguous) in [
        ("/api/channels", false),
        ("/api/%63hannels/x", false),
        ("/API/channels", false),
        ("/api//channels/x", true),
        ("/api/channels%2f..%2f", true),
        ("/api/channels%2F..%2F", true),
        ("/api/channels%5cx", true),
        ("//api/channels", true),
        ("/api/./channels", true),
        ("/api/../channels", true),
        ("/api/%2e%2e/channels", true),
        ("/api/channels/", false),
        ("/api/%2525252563hannels", true),
        ("/%61%70%69/channels", false),
        ("/api%2fchannels", true),
        ("/api/channels%00", true),
        ("/api/channels%0d%0ax", true),
        ("/api/channels%zz", true),
        ("/api/channels%", true),
        ("/app.js/../api/channels", true),
        ("/hooks/../api/channels", true),
        ("/hooks/%2e%2e/api/channels", true),
        ("/healthz/../api/channels", true),
        ("/api/channels;x=/healthz", false),
        ("/api/channels?/healthz", false),
        ("//%zz", true),
    ] {
        assert_eq!(get(&gateway, path, &[]).status, 401, "{path}");
        let status = if ambiguous { 400 } else { 404 };
        assert_eq!(get(&gateway, path, &[&right]).status, status, "{path}");
    }
}

#[test]
fn w8_a_head_has_bounds() {
    let gateway = Gateway::start();
    let many: Vec<String> = (0..65).map(|number| format!("X-{number}: y")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(get(&gateway, "/", &many).status, 431);
    assert_eq!(get(&gateway, "/", &many[..40]).status, 200);
    let long = format!("User-Agent: {}", "a".repeat(64 * 1024));
    assert_eq!(get(&gateway, "/", &[&long]).status, 431);
    let target = format!("/{}", "a".repeat(70_000));
    assert!(matches!(get(&gateway, &target, &[]).status, 414 | 431));
    still_serves(&gateway);
}

#[test]
fn w8_a_header_cannot_hold_a_line() {
    let gateway = Gateway::start();
    for header in [
        "User-Agent: a\n[INFO] ok",
        "User-Agent: a\0b",
        "User Agent: x",
        ": x",
        " folded",
        "X\u{0}: y",
    ] {
        let answer = get(&gateway, "/", &[header]);
        assert_eq!(answer.status, 400, "{header:?}");
    }
    assert_eq!(get(&gateway, "/", &["User-Agent: a\u{1b}[2Jb"]).status, 400);
    assert!(!gateway.stderr().contains('\u{1b}'));
}

#[test]
fn an_upgrade_is_strict() {
    let gateway = Gateway::start();
    let host = format!("127.0.0.1:{}", gateway.port());
    let right = String::from_utf8(upgrade_request(&host, &[])).unwrap();
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let version = "Sec-WebSocket-Version: 13\r\n";
    let cases: [(&str, &str, u16); 17] = [
        ("HTTP/1.1", "HTTP/1.1", 101),
        (version, "", 426),
        (version, "Sec-WebSocket-Version: 8\r\n", 426),
        (version, "Sec-WebSocket-Version: 13, 8\r\n", 426),
        (
            version,
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 13\r\n",
            400,
        ),
        (key, "", 400),
        (key, "Sec-WebSocket-Key: short\r\n", 400),
        (key, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ\r\n", 400),
        (key, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZR==\r\n", 400),
        (
            key,
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
            400,
        ),
        ("Connection: Upgrade\r\n", "", 400),
        ("Connection: Upgrade\r\n", "Connection: close\r\n", 400),
        ("GET", "POST", 400),
        ("GET", "HEAD", 400),
        ("HTTP/1.1", "HTTP/1.0", 400),
        (
            key,
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nContent-Length: 5\r\n",
            400,
        ),
        (
            key,
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nTransfer-Encoding: chunked\r\n",
            411,
        ),
    ];
    for (part, instead, status) in cases {
        let request = right.replacen(part, instead, 1);
        let mut stream = gateway.dial();
        stream.write_all(request.as_bytes()).unwrap();
        let head = read_answer_head(&mut stream);
        let got: u16 = head[9..12].parse().unwrap();
        assert_eq!(got, status, "{instead:?}: {head}");
        if status == 426 {
            assert!(
                head.to_ascii_lowercase()
                    .contains("sec-websocket-version: 13\r\n"),
                "{head}"
            );
        }
    }
    // The accept key of RFC 6455 §1.3, and nothing that was offered is taken up.
    let offered = upgrade_request(
        &host,
        &[
            "Sec-WebSocket-Extensions: permessage-deflate",
            "Sec-WebSocket-Protocol: chat",
        ],
    );
    let answer = exchange(&gateway, &offered).unwrap();
    assert_eq!(
        answer.header("sec-websocket-accept"),
        Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    );
    assert_eq!(answer.header("sec-websocket-extensions"), None);
    assert_eq!(answer.header("sec-websocket-protocol"), None);
}

fn read_answer_head(stream: &mut std::net::TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && std::io::Read::read(stream, &mut byte).unwrap() == 1 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

#[test]
fn a_request_hidden_in_another_is_not_answered() {
    let gateway = Gateway::start();
    let host = format!("127.0.0.1:{}", gateway.port());
    let hidden = format!("GET /app.js HTTP/1.1\r\nHost: {host}\r\n\r\n");
    for framing in [
        "Content-Length: 0\r\nTransfer-Encoding: chunked".to_owned(),
        format!(
            "Transfer-Encoding: chunked\r\nContent-Length: {}",
            hidden.len()
        ),
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity".to_owned(),
        "Transfer-Encoding: xchunked".to_owned(),
        "Transfer-Encoding : chunked".to_owned(),
        format!("Content-Length: {}\r\nContent-Length: 0", hidden.len()),
        "Content-Length: +5".to_owned(),
        "Content-Length: 0x5".to_owned(),
        "Content-Length: 5, 5".to_owned(),
        "Content-Length: 99999999999999999999".to_owned(),
    ] {
        let request =
            format!("POST /nowhere HTTP/1.1\r\nHost: {host}\r\n{framing}\r\n\r\n{hidden}");
        let mut stream = gateway.dial();
        stream.write_all(request.as_bytes()).unwrap();
        let Some(first) = read_answer(&mut stream) else {
            continue;
        };
        assert!(first.status >= 400, "{framing}: {}", first.status);
        let second = read_answer(&mut stream);
        assert!(
            second.is_none_or(|answer| answer.status >= 400),
            "{framing}"
        );
    }
    still_serves(&gateway);
}

#[test]
fn a_refused_upgrade_is_not_a_tunnel() {
    let gateway = Gateway::start();
    let host = format!("127.0.0.1:{}", gateway.port());
    let mut request = upgrade_request(&host, &["Origin: https://evil.example"]);
    // A proxy that takes this for a tunnel would hand the next caller's bytes to us.
    request.extend(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58");
    let mut stream = gateway.dial();
    stream.write_all(&request).unwrap();
    assert_eq!(read_answer(&mut stream).unwrap().status, 403);
    let next = read_answer(&mut stream);
    assert!(next.is_none(), "{next:?}");
}

/// The line of the log that has this, once it is there.
fn logged(gateway: &Gateway, part: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let log = gateway.stderr();
        if let Some(line) = log.lines().find(|line| line.contains(part)) {
            return line.to_owned();
        }
        assert!(Instant::now() < deadline, "{part} in {log}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// The answer's `error.decisionId`, and the log's line under it.
fn decision(gateway: &Gateway, answer: &Answer) -> String {
    let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    let id = body["error"]["decisionId"].as_str().unwrap();
    assert_eq!(id.len(), 12);
    logged(gateway, &format!("decision={id}"))
}

#[test]
fn o1_a_refusal_names_its_decision_and_the_log_has_what_was_received() {
    let gateway = Gateway::start();
    for (header, status, parts) in [
        (
            "Origin: null",
            403,
            ["reason=\"origin_invalid\"", "origin=null"],
        ),
        (
            "Origin: https://a.example/",
            403,
            ["origin_invalid", "origin=https://a.example/"],
        ),
        (
            "Origin: https://a.example",
            403,
            ["origin_foreign", "allowedOrigins: [\"https://a.example\"]"],
        ),
        ("Origin: \u{202e}", 403, ["origin_invalid", "202e"]),
        (
            "Host: evil.example",
            421,
            ["host_foreign", "host=evil.example"],
        ),
        (
            "Tailscale-User-Login: a",
            403,
            [
                "tailscale_untrusted_source",
                "gateway.tailscale.mode: serve",
            ],
        ),
    ] {
        let host = if header.starts_with("Host") {
            header
        } else {
            "Host: localhost"
        };
        let more = if header == host { "X: y" } else { header };
        let request = format!("GET / HTTP/1.1\r\n{host}\r\n{more}\r\n\r\n");
        let answer = exchange(&gateway, request.as_bytes()).unwrap();
        assert_eq!(answer.status, status, "{header}");
        let line = decision(&gateway, &answer);
        for part in parts {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(
            !answer.body.contains("remedy") && !answer.body.contains("evil"),
            "{answer:?}"
        );
    }
    let long = "a".repeat(60).repeat(20);
    for header in [
        format!("Host: {long}.example"),
        format!("Origin: {long}://x"),
    ] {
        let answer = get(&gateway, "/", &[&header]);
        assert!(decision(&gateway, &answer).len() < 1200);
    }
}

#[test]
fn a_malformed_upgrade_is_told_why() {
    let gateway = Gateway::start();
    for (from, to, status, says, reason) in [
        (
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Version: 8",
            426,
            "Sec-WebSocket-Version must be 13",
            "upgrade_version",
        ),
        (
            "Sec-WebSocket-Key: ",
            "Sec-WebSocket-Key: x",
            400,
            "base64 of 16 bytes",
            "upgrade_key",
        ),
        ("GET ", "POST ", 400, "is a GET", "upgrade_method"),
    ] {
        let request = String::from_utf8(upgrade_request("localhost", &[])).unwrap();
        assert!(request.contains(from), "{request}");
        let answer = exchange(&gateway, request.replacen(from, to, 1).as_bytes()).unwrap();
        assert_eq!(answer.status, status);
        assert!(answer.body.contains(says), "{answer:?}");
        assert_eq!(
            answer.header("sec-websocket-version"),
            (status == 426).then_some("13")
        );
        assert!(decision(&gateway, &answer).contains(reason));
    }
}

#[test]
fn o3_health_too_wants_one_host_that_can_be_read() {
    let gateway = Gateway::start();
    for (line, hosts, status) in [
        ("GET /healthz HTTP/1.1", "", 400),
        (
            "GET /healthz HTTP/1.1",
            "Host: localhost\r\nHost: localhost\r\n",
            400,
        ),
        ("GET /healthz HTTP/1.1", "Host: a b\r\n", 400),
        ("GET http://a/healthz HTTP/1.1", "Host: b\r\n", 400),
        // A load balancer knows an address, and HAProxy asks in HTTP/1.0 without a Host.
        ("GET /healthz HTTP/1.1", "Host: 10.1.2.3:80\r\n", 200),
        ("GET /healthz HTTP/1.0", "", 200),
        ("GET /healthz HTTP/1.0", "Host: a b\r\n", 400),
    ] {
        let answer = exchange(&gateway, format!("{line}\r\n{hosts}\r\n").as_bytes());
        let head = answer.as_ref().map_or(0, |answer| answer.status);
        assert_eq!(head, status, "{line} {hosts:?}: {answer:?}");
    }
}

#[test]
fn a_wrong_secret_leaves_the_clients_address_in_the_log() {
    let gateway = Setup::default()
        .config("{gateway: {trustedProxies: ['127.0.0.1']}}")
        .start();
    let headers = [("x-forwarded-for", "203.0.113.9")];
    let mut peer = Peer::open_at(gateway.port(), &headers).unwrap();
    let error = peer
        .connect(&Connect::cli().password("a wrong one"))
        .unwrap_err();
    let id = error.0["details"]["decisionId"].as_str().unwrap();
    let line = logged(&gateway, &format!("decision={id}"));
    let host = "Host: localhost";
    let wrong = bearer("a wrong one");
    let answer = get(
        &gateway,
        "/v1/models",
        &[host, &wrong, "X-Forwarded-For: 203.0.113.9"],
    );
    for line in [line, decision(&gateway, &answer)] {
        for part in ["client=", "203.0.113.9", "via=", "proxy 127.0.0.1"] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
    // Another kind of refusal before anybody asks who it is.
    let mut silly = Peer::open_at(gateway.port(), &headers).unwrap();
    silly.send_text("{}");
    let line = logged(&gateway, "invalid request frame");
    assert!(
        line.contains("203.0.113.9") && line.contains("proxy 127.0.0.1"),
        "{line}"
    );
}
