//! What answers over HTTP, to whom, and how little.

use std::io::Write;

use crate::support::{
    Connect, Gateway, PASSWORD, Peer, exchange, get, read_answer, upgrade_request,
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

#[test]
fn h1_whatever_is_not_named_is_not_there() {
    let gateway = Gateway::start();
    for path in [
        "/api",
        "/api/channels",
        "/api/channels/x/send",
        "/v1/models",
        "/v1/chat/completions",
        "/v1/responses",
        "/tools/invoke",
        "/sessions/main/kill",
        "/sessions/main/history",
        "/hooks/x",
        "/hooks",
        "/metrics",
        "/openapi.json",
        "/config",
        "/admin",
        "/canvas",
        "/__openclaw__/a2ui",
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
    ] {
        let answer = get(&gateway, path, &[]);
        assert!(
            matches!(answer.status, 401 | 403 | 404),
            "{path}: {}",
            answer.status
        );
    }
}

#[test]
fn h2_a_secret_counts_only_where_it_belongs() {
    let gateway = Gateway::start();
    let basic = "Authorization: Basic Z2F0ZXdheTpjb3JyZWN0IGhvcnNl";
    let cookie = format!("Cookie: token={PASSWORD}");
    for header in [basic, &cookie] {
        for path in ["/api/channels", "/v1/models", "/tools/invoke"] {
            let answer = get(&gateway, path, &[header]);
            assert!(
                matches!(answer.status, 401 | 404),
                "{path}: {}",
                answer.status
            );
        }
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
fn h8_health_says_only_how_it_is() {
    let gateway = Gateway::start();
    let bearer = format!("Authorization: Bearer {PASSWORD}");
    for (path, body) in HEALTH {
        for headers in [
            &[][..],
            &["Host: evil.example"],
            &["X-Forwarded-For: 203.0.113.9"],
            &[bearer.as_str()],
        ] {
            let answer = get(&gateway, path, headers);
            assert_eq!(answer.status, 200, "{path} {headers:?}");
            assert_eq!(answer.body, body);
            assert_eq!(answer.header("server"), None);
        }
    }
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
    let plain = get(&gateway, "/api/channels", &[]).status;
    assert!(matches!(plain, 401 | 404));
    for path in [
        "/api/%63hannels/x",
        "/API/channels",
        "/api//channels/x",
        "/api/channels%2f..%2f",
        "//api/channels",
        "/api/./channels",
        "/api/channels/",
        "/api/%25252563hannels",
        "/%61%70%69/channels",
        "/api%2fchannels",
        "/app.js/../api/channels",
        "/api/channels;x=/healthz",
        "/api/channels?/healthz",
    ] {
        assert_eq!(get(&gateway, path, &[]).status, plain, "{path}");
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
            400,
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
    assert!(next.is_none_or(|answer| answer.status == 400));
}
