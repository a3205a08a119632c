//! Where a request comes from: `Origin`, `Host` and the marks of a proxy.

use serde_json::{Value, json};

use crate::support::{Connect, Device, Gateway, PASSWORD, Peer, exchange, get, upgrade_request};

/// Any of these on a loopback connection says that somebody else stands behind it.
const FORWARDING: [(&str, &str); 10] = [
    ("X-Forwarded-For", "203.0.113.9"),
    ("X-Forwarded-Host", "gateway.example"),
    ("X-Forwarded-Proto", "https"),
    ("X-Real-IP", "203.0.113.9"),
    ("Forwarded", "for=203.0.113.9"),
    ("CF-Connecting-IP", "203.0.113.9"),
    ("True-Client-IP", "203.0.113.9"),
    ("Via", "1.1 proxy.example"),
    ("Tailscale-User-Login", "alice@example.com"),
    ("X-Forwarded-User", "admin"),
];

fn nobody_was_paired(gateway: &Gateway) {
    let list = gateway.cli_json(&["devices", "list"]);
    assert_eq!(list, json!({"pending": [], "paired": []}));
}

#[test]
fn o1_a_foreign_origin_gets_no_upgrade() {
    let gateway = Gateway::start();
    let port = gateway.port();
    for origin in [
        "https://evil.example".to_owned(),
        "null".to_owned(),
        String::new(),
        format!("http://127.0.0.1:{port}.evil.example"),
        format!("http://127.0.0.1.evil.example:{port}"),
        format!("http://localhost.evil.example:{port}"),
        format!("http://evil.example:{port}"),
        format!("http://127.0.0.1:{port}@evil.example"),
        "file://".to_owned(),
        "chrome-extension://abcdefgh".to_owned(),
    ] {
        let answer = Peer::open_with(&gateway, &[("origin", &origin)])
            .err()
            .unwrap_or_else(|| panic!("{origin:?} was let in"));
        assert_eq!(answer.status, 403, "{origin:?}");
        assert_eq!(
            answer.code().as_deref(),
            Some("CONTROL_UI_ORIGIN_NOT_ALLOWED")
        );
    }
    nobody_was_paired(&gateway);
}

#[test]
fn o1_two_origins_are_none() {
    let gateway = Gateway::start();
    let host = format!("127.0.0.1:{}", gateway.port());
    let own = format!("Origin: http://{host}");
    let twice = upgrade_request(&host, &[&own, "Origin: https://evil.example"]);
    assert_eq!(exchange(&gateway, &twice).unwrap().status, 403);
}

#[test]
fn o1_the_own_page_may_upgrade() {
    let gateway = Gateway::start();
    for host in ["127.0.0.1", "localhost", "[::1]"] {
        let origin = format!("http://{host}:{}", gateway.port());
        let host = format!("{host}:{}", gateway.port());
        let headers = [("host", host.as_str()), ("origin", &origin)];
        assert!(Peer::open_with(&gateway, &headers).is_ok(), "{origin}");
    }
}

#[test]
fn o1_a_page_is_no_local_operator_whatever_it_calls_itself() {
    let gateway = Gateway::start();
    let origin = format!("http://127.0.0.1:{}", gateway.port());
    let mut peer = Peer::open_with(&gateway, &[("origin", &origin)]).unwrap();
    let hello = peer.connect(&Connect::cli()).unwrap();
    assert_eq!(hello["auth"]["scopes"], json!([]));
    let error = peer.call("device.pair.list", &json!({})).unwrap_err();
    assert_eq!(error.message(), "missing scope: operator.pairing");
}

#[test]
fn a_browser_client_without_an_origin_is_refused() {
    let gateway = Gateway::start();
    for (id, mode) in [
        ("openclaw-control-ui", "ui"),
        ("webchat", "webchat"),
        ("cli", "webchat"),
    ] {
        let connect = Connect::as_client(id, mode).password(PASSWORD);
        let error = Peer::open(&gateway).connect(&connect).unwrap_err();
        assert_eq!(
            error.detail(),
            "CONTROL_UI_ORIGIN_NOT_ALLOWED",
            "{id} {mode}"
        );
    }
}

#[test]
fn o3_a_foreign_host_is_misdirected() {
    let gateway = Gateway::start();
    let port = gateway.port();
    for host in [
        "evil.example".to_owned(),
        format!("evil.example:{port}"),
        format!("127.0.0.1.evil.example:{port}"),
        format!("localhost.evil.example:{port}"),
        format!("127.0.0.2.evil.example:{port}"),
        "0.0.0.0".to_owned(),
    ] {
        let rebinding = format!("Origin: http://{host}");
        let request = upgrade_request(&host, &[&rebinding]);
        let answer = exchange(&gateway, &request).unwrap();
        assert_eq!(answer.status, 421, "{host}");
        let page = get(&gateway, "/", &[&format!("Host: {host}")]);
        assert_eq!(page.status, 421, "{host}");
    }
}

#[test]
fn o3_one_readable_host_is_needed() {
    let gateway = Gateway::start();
    let host = format!("127.0.0.1:{}", gateway.port());
    let foreign_too = upgrade_request(&host, &["Host: evil.example"]);
    assert_eq!(exchange(&gateway, &foreign_too).unwrap().status, 400);
    for broken in [
        "",
        "a b",
        "127.0.0.1:99999",
        "127.0.0.1:",
        "user@127.0.0.1",
        "[::1",
    ] {
        let answer = exchange(&gateway, &upgrade_request(broken, &[]));
        let status = answer.unwrap().status;
        assert!(matches!(status, 400 | 421), "{broken:?}: {status}");
    }
    let without = b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    assert_eq!(exchange(&gateway, without).unwrap().status, 400);
}

#[test]
fn p1_every_mark_of_a_proxy_is_refused() {
    let gateway = Gateway::start();
    let host = format!("127.0.0.1:{}", gateway.port());
    for (name, value) in FORWARDING {
        for value in [value, "127.0.0.1", ""] {
            let line = format!("{name}: {value}");
            let answer = exchange(&gateway, &upgrade_request(&host, &[&line])).unwrap();
            assert_eq!(answer.status, 403, "{line}");
            assert_eq!(
                answer.code().as_deref(),
                Some("proxy_attribution_required"),
                "{line}"
            );
            assert_eq!(get(&gateway, "/", &[&line]).status, 403, "{line}");
        }
    }
    nobody_was_paired(&gateway);
}

#[test]
fn o2_proxy_marks_do_not_switch_the_origin_check_off() {
    let config = "{gateway: {trustedProxies: ['127.0.0.1']}}";
    let gateway = crate::support::Setup::default().config(config).start();
    let headers = [
        ("x-forwarded-for", "10.0.0.9"),
        ("origin", "https://evil.example"),
    ];
    let answer = Peer::open_with(&gateway, &headers).err().unwrap();
    assert_eq!(answer.status, 403);
    assert_eq!(
        answer.code().as_deref(),
        Some("CONTROL_UI_ORIGIN_NOT_ALLOWED")
    );
}

#[test]
fn o4_a_loopback_origin_counts_for_loopback_callers_only() {
    let config = "{gateway: {trustedProxies: ['127.0.0.1']}}";
    let gateway = crate::support::Setup::default().config(config).start();
    let origin = format!("http://localhost:{}", gateway.port());
    let headers = [("x-forwarded-for", "203.0.113.9"), ("origin", &origin)];
    let answer = Peer::open_with(&gateway, &headers).err().unwrap();
    assert_eq!(answer.status, 403);
}

#[test]
fn a6_behind_a_trusted_proxy_nobody_is_paired_silently() {
    let config = "{gateway: {trustedProxies: ['127.0.0.1']}}";
    let gateway = crate::support::Setup::default().config(config).start();
    let forwarded = [("x-forwarded-for", "203.0.113.9")];
    for headers in [&forwarded[..], &[]] {
        let mut peer = Peer::open_with(&gateway, headers).unwrap();
        let error = peer
            .connect_as(&Connect::cli(), &Device::new())
            .unwrap_err();
        assert_eq!(error.detail(), "PAIRING_REQUIRED", "{headers:?}");
    }
    // S2: nor does it get scopes without a device.
    let mut peer = Peer::open_with(&gateway, &forwarded).unwrap();
    let hello = peer.connect(&Connect::cli()).unwrap();
    assert_eq!(hello["auth"]["scopes"], json!([]));
    let list = gateway.cli_json(&["devices", "list"]);
    assert_eq!(list["paired"], json!([]));
    let addresses: Vec<&Value> = list["pending"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["remoteIp"])
        .collect();
    assert!(addresses.contains(&&json!("203.0.113.9")), "{addresses:?}");
}

#[test]
fn p3_p4_a_chain_that_cannot_be_relied_on_is_refused() {
    let config = "{gateway: {trustedProxies: ['127.0.0.1']}}";
    let gateway = crate::support::Setup::default().config(config).start();
    let host = format!("127.0.0.1:{}", gateway.port());
    let hops = vec!["203.0.113.9"; 200].join(", ");
    for lines in [
        &["X-Forwarded-For: 127.0.0.1, 203.0.113.9"][..],
        &["X-Forwarded-For: 198.51.100.7, 203.0.113.9"],
        &["X-Forwarded-For: 203.0.113.9, garbage"],
        &["X-Forwarded-For: garbage"],
        &["X-Forwarded-For: 1.2.3.4:80:9"],
        &["X-Forwarded-For: "],
        &[
            "X-Forwarded-For: 203.0.113.9",
            "X-Forwarded-For: 203.0.113.9",
        ],
        &[
            "X-Forwarded-For: 203.0.113.9",
            "Forwarded: for=198.51.100.7",
        ],
        &["X-Forwarded-For: 127.0.0.1"],
        &["X-Real-IP: 203.0.113.9"],
        &[&format!("X-Forwarded-For: {hops}")],
    ] {
        let answer = exchange(&gateway, &upgrade_request(&host, lines)).unwrap();
        assert_eq!(answer.status, 403, "{lines:?}");
        assert_eq!(
            answer.code().as_deref(),
            Some("proxy_attribution_required"),
            "{lines:?}"
        );
    }
}
