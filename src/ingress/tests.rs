use super::trusted_proxy::Evidence::{Forwarding, Identity, Tailscale};
use super::*;
use crate::base::Refusal as _;

/// A request, changed by hand from an honest local one.
struct Case {
    listener: ListenerClass,
    peer: Peer,
    local: &'static str,
    tls: bool,
    headers: Vec<(&'static str, &'static str)>,
    own: Option<Vec<IpAddr>>,
    settings: Settings,
}

fn tcp(address: &str) -> Peer {
    Peer::Tcp(SocketAddr::new(address.parse().unwrap(), 50_000))
}

fn case() -> Case {
    Case {
        listener: ListenerClass::Main,
        peer: tcp("127.0.0.1"),
        local: "127.0.0.1:18789",
        tls: false,
        headers: vec![("Host", "127.0.0.1:18789")],
        own: Some(vec![]),
        settings: Settings::default(),
    }
}

fn behind_proxy(peer: &str, trusted: &[&str]) -> Case {
    let mut it = case();
    it.peer = tcp(peer);
    it.local = "10.0.0.7:18789";
    it.headers = vec![("host", "10.0.0.7:18789")];
    it.settings.trusted_proxies = trusted
        .iter()
        .map(|text| Cidr::parse(text).unwrap())
        .collect();
    it
}

fn serve() -> Case {
    let mut it = case();
    it.listener = ListenerClass::Serve;
    it.settings.tailnet_name = Host::parse("gw.example.ts.net");
    it.headers = vec![
        ("Host", "gw.example.ts.net"),
        ("X-Forwarded-For", "100.64.0.9"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "gw.example.ts.net"),
        ("Tailscale-User-Login", "alice@example.com"),
    ];
    it
}

impl Case {
    fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(line, _)| *line != name);
        self
    }

    fn run(&self) -> Result<Attributed, IngressRefusal> {
        let headers: Vec<_> = self
            .headers
            .iter()
            .map(|(name, value)| (*name, value.as_bytes()))
            .collect();
        let request = Request {
            listener: self.listener,
            peer: self.peer,
            local: self.local.parse().ok(),
            tls: self.tls,
            headers: &headers,
            own_addresses: self.own.as_deref(),
        };
        attribute(&request, &self.settings)
    }

    fn refused(&self) -> IngressRefusal {
        self.run().unwrap_err()
    }

    fn client(&self) -> String {
        match self.run().unwrap().client() {
            Client::Ip(address) => address.to_string(),
            Client::Local => "local".into(),
        }
    }
}

#[test]
fn a_plain_loopback_program_is_direct_local() {
    for host in ["127.0.0.1:18789", "localhost:9999", "[::1]", "127.0.0.5"] {
        let mut it = case();
        it.headers = vec![("host", host)];
        let it = it.run().unwrap();
        assert!(it.is_direct_local() && it.is_private() && !it.via_proxy());
        assert_eq!(it.client(), Client::Ip("127.0.0.1".parse().unwrap()));
    }
    let mut mapped = case();
    mapped.peer = tcp("::ffff:127.0.0.1");
    assert!(mapped.run().unwrap().is_direct_local(), "P8");
    let mut remote = case();
    remote.peer = tcp("10.0.0.5");
    let remote = remote.run().unwrap();
    assert!(!remote.is_direct_local() && !remote.is_private());
}

#[test]
fn o3_a_foreign_host_is_misdirected() {
    for host in [
        "evil.example",
        "127.0.0.1.evil.example",
        "0.0.0.0",
        "10.0.0.9",
    ] {
        let mut it = case();
        it.headers = vec![("Host", host), ("Origin", "http://evil.example")];
        assert_eq!(it.refused(), IngressRefusal::HostForeign);
        assert_eq!(it.refused().http_status(), 421);
    }
    let mut none = case();
    none.headers.clear();
    assert_eq!(none.refused(), IngressRefusal::HostMissing);
    assert_eq!(
        case().with("HOST", "localhost").refused(),
        IngressRefusal::HostRepeated
    );
    let mut bad = case();
    bad.headers = vec![("Host", "a b")];
    assert_eq!(bad.refused().http_status(), 400);
}

#[test]
fn o3_hosts_of_decision_12() {
    let mut it = case();
    it.settings.public_hosts = vec![Host::parse("gw.example").unwrap()];
    it.settings.allowed_origins = vec![Origin::parse("https://ui.example").unwrap()];
    it.settings.tailnet_name = Host::parse("gw.example.ts.net");
    for (host, ok) in [
        ("gw.example:443", true),
        ("GW.example.", true),
        ("ui.example", true),
        ("gw.example.ts.net", false),
        ("sub.gw.example", false),
    ] {
        it.headers = vec![("Host", host)];
        assert_eq!(it.run().is_ok(), ok, "{host}");
    }
    it.local = "10.0.0.7:18789";
    it.headers = vec![("Host", "10.0.0.7:18789")];
    assert!(it.run().is_ok(), "the address that the client reached");
    assert!(serve().run().is_ok(), "the MagicDNS name under Serve");
}

#[test]
fn p1_any_forwarding_evidence_from_an_untrusted_peer_is_403() {
    for header in [
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "x-forwarded-anything",
        "X-Real-IP",
        "Forwarded",
        "CF-Connecting-IP",
        "True-Client-IP",
        "Via",
    ] {
        for peer in ["127.0.0.1", "::1", "10.9.9.9"] {
            let mut it = case().with(header, "127.0.0.1");
            it.peer = tcp(peer);
            assert_eq!(
                it.refused(),
                IngressRefusal::Unattributed(Forwarding),
                "{header}"
            );
            assert_eq!(it.refused().code(), "proxy_attribution_required");
            assert_eq!(it.refused().http_status(), 403);
            assert!(
                it.refused()
                    .public()
                    .contains("Proxy client attribution is required")
            );
        }
    }
}

#[test]
fn t1_tailscale_headers_on_main_are_403_and_name_the_remedy() {
    let it = case()
        .with("tailscale-user-login", "alice@x")
        .with("x-forwarded-for", "100.64.0.9");
    assert_eq!(it.refused(), IngressRefusal::Unattributed(Tailscale));
    assert!(
        it.refused()
            .remedy()
            .contains("gateway.tailscale.mode: serve")
    );
    let trusted = behind_proxy("10.0.0.1", &["10.0.0.1"])
        .with("tailscale-user-login", "alice@x")
        .with("x-forwarded-for", "100.64.0.9");
    let it = trusted.run().unwrap();
    assert_eq!(
        it.tailscale(),
        None,
        "ignored, so the caller needs a secret"
    );
}

#[test]
fn p3_the_client_is_the_rightmost_untrusted_hop() {
    let one = || behind_proxy("10.0.0.1", &["10.0.0.1"]);
    let two = || behind_proxy("10.0.0.1", &["10.0.0.1", "10.0.0.2"]);
    assert_eq!(
        one().with("X-Forwarded-For", "203.0.113.9").client(),
        "203.0.113.9"
    );
    assert!(
        !one()
            .with("X-Forwarded-For", "203.0.113.9")
            .run()
            .unwrap()
            .is_direct_local()
    );
    for appended in ["127.0.0.1, 203.0.113.9", "198.51.100.7, 203.0.113.9"] {
        let refusal = one().with("X-Forwarded-For", appended).refused();
        let proxy = Some("10.0.0.1".parse().unwrap());
        assert_eq!(refusal, IngressRefusal::ChainAppended { proxy });
        let remedy = refusal.remedy();
        for word in [
            "10.0.0.1",
            "$remote_addr",
            "{remote_host}",
            "%[src]",
            "Traefik",
        ] {
            assert!(remedy.contains(word), "{remedy}");
        }
    }
    assert_eq!(
        two()
            .with("X-Forwarded-For", "203.0.113.9, 10.0.0.2")
            .client(),
        "203.0.113.9"
    );
    assert_eq!(
        two()
            .with("X-Forwarded-For", "1.1.1.1, 203.0.113.9, 10.0.0.2")
            .refused(),
        IngressRefusal::ChainAppended {
            proxy: Some("10.0.0.2".parse().unwrap())
        }
    );
    assert_eq!(
        one()
            .with("X-Forwarded-For", "203.0.113.9, 127.0.0.1")
            .refused(),
        IngressRefusal::ClientUnattributable
    );
    assert_eq!(
        behind_proxy("10.0.0.1", &["10.0.0.1", "127.0.0.1"])
            .with("X-Forwarded-For", "203.0.113.9, 127.0.0.1")
            .client(),
        "203.0.113.9"
    );
    for none in [
        "127.0.0.1",
        "::1",
        "0.0.0.0",
        "10.0.0.1",
        "::ffff:127.0.0.1",
    ] {
        assert_eq!(
            one().with("X-Forwarded-For", none).refused(),
            IngressRefusal::ClientUnattributable,
            "{none}"
        );
    }
}

#[test]
fn p4_malformed_disagreeing_or_repeated_headers_are_403_without_fallback() {
    let one = || behind_proxy("10.0.0.1", &["10.0.0.1"]);
    assert!(matches!(
        one().with("X-Forwarded-For", "garbage").refused(),
        IngressRefusal::Malformed(_)
    ));
    let repeated = one()
        .with("X-Forwarded-For", "203.0.113.9")
        .with("x-forwarded-for", "203.0.113.9");
    assert!(matches!(
        repeated.refused(),
        IngressRefusal::ChainAppended { proxy: Some(_) }
    ));
    let agreeing = one()
        .with("X-Forwarded-For", "203.0.113.9")
        .with("Forwarded", "for=203.0.113.9;proto=https");
    assert_eq!(agreeing.client(), "203.0.113.9");
    let disagreeing = one()
        .with("X-Forwarded-For", "203.0.113.9")
        .with("Forwarded", "for=203.0.113.8");
    assert_eq!(disagreeing.refused(), IngressRefusal::HeadersDisagree);
    assert_eq!(
        one().with("Forwarded", "for=203.0.113.9").client(),
        "203.0.113.9"
    );
    assert_eq!(one().refused(), IngressRefusal::ClientMissing);
    assert_eq!(
        one().with("Via", "1.1 x").refused(),
        IngressRefusal::ClientMissing
    );
}

#[test]
fn p5_x_real_ip_is_ignored_unless_opted_in() {
    let mut it = behind_proxy("10.0.0.1", &["10.0.0.1"]).with("X-Real-IP", "203.0.113.9");
    assert_eq!(it.refused(), IngressRefusal::ClientMissing);
    it.settings.allow_real_ip = true;
    assert_eq!(it.client(), "203.0.113.9");
    assert_eq!(
        it.with("X-Forwarded-For", "203.0.113.8").refused(),
        IngressRefusal::HeadersDisagree
    );
    let mut local = behind_proxy("10.0.0.1", &["10.0.0.1"]).with("X-Real-IP", "127.0.0.1");
    local.settings.allow_real_ip = true;
    assert_eq!(local.refused(), IngressRefusal::ClientUnattributable);
}

#[test]
fn p6_identity_only_from_the_trusted_source() {
    let proxied = |peer: &str, allow_loopback: bool| {
        let mut it = behind_proxy(peer, &["10.0.0.0/8", "127.0.0.1"])
            .with("X-Forwarded-For", "203.0.113.9")
            .with("x-proxy", "1");
        it.settings.proxy_user = Some(ProxyUserSettings {
            user_header: "x-auth-user".into(),
            required_headers: vec!["x-proxy".into()],
            allow_users: vec!["alice".into()],
            allow_loopback,
        });
        it.own = Some(vec!["10.0.0.7".parse().unwrap()]);
        it
    };
    let user = |it: Case| it.run().unwrap().proxy_user().cloned().unwrap();
    let alice = || ("x-auth-user", "alice");
    let named = |peer: &str, loopback| proxied(peer, loopback).with(alice().0, alice().1);

    assert_eq!(user(named("10.0.0.1", false)), Ok("alice".into()));
    assert_eq!(
        user(named("127.0.0.1", false)),
        Err(ProxyUserRefusal::LoopbackSource)
    );
    assert_eq!(user(named("127.0.0.1", true)), Ok("alice".into()));
    assert_eq!(
        user(named("10.0.0.7", false)),
        Err(ProxyUserRefusal::LocalInterfaceSource)
    );
    let mut unknown = named("10.0.0.1", false);
    unknown.own = None;
    assert_eq!(
        user(unknown),
        Err(ProxyUserRefusal::LocalInterfaceCheckFailed)
    );
    assert_eq!(
        user(proxied("10.0.0.1", false)),
        Err(ProxyUserRefusal::UserMissing)
    );
    assert_eq!(
        user(named("10.0.0.1", false).without("x-proxy")),
        Err(ProxyUserRefusal::MissingHeader("x-proxy".into()))
    );
    assert_eq!(
        user(proxied("10.0.0.1", false).with("x-auth-user", "mallory")),
        Err(ProxyUserRefusal::UserNotAllowed)
    );
    assert_eq!(
        user(named("10.0.0.1", false).with("X-Auth-User", "mallory")),
        Err(ProxyUserRefusal::UserMissing),
        "twice is not once"
    );
    let mut untrusted = named("11.9.9.9", false);
    untrusted.settings.trusted_proxies = vec![Cidr::parse("10.0.0.1").unwrap()];
    assert_eq!(untrusted.refused(), IngressRefusal::Unattributed(Identity));
    assert_eq!(
        untrusted.refused().log_field(),
        "trusted_proxy_untrusted_source"
    );
}

#[test]
fn p8_a_mapped_proxy_address_is_trusted_like_the_plain_one() {
    let it = behind_proxy("::ffff:10.0.0.1", &["10.0.0.0/8"])
        .with("X-Forwarded-For", "::ffff:203.0.113.9");
    assert_eq!(it.client(), "203.0.113.9");
}

#[test]
fn decision_6_listed_loopback_is_admitted_but_never_local() {
    let mut it = case();
    it.settings.trusted_proxies = vec![Cidr::parse("127.0.0.1").unwrap()];
    let plain = it.run().unwrap();
    assert!(!plain.is_direct_local() && plain.via_proxy());
    assert_eq!(
        it.with("X-Forwarded-For", "203.0.113.9").client(),
        "203.0.113.9"
    );
}

#[test]
fn p2_exposed_listeners_are_never_local() {
    let plain = serve().run().unwrap();
    assert!(!plain.is_direct_local());
    let bare = serve()
        .without("X-Forwarded-For")
        .without("X-Forwarded-Proto")
        .without("X-Forwarded-Host")
        .without("Tailscale-User-Login");
    assert!(!bare.run().unwrap().is_direct_local());
    let mut proxy = case().with("X-Forwarded-For", "203.0.113.9");
    proxy.listener = ListenerClass::Proxy;
    assert!(!proxy.run().unwrap().is_direct_local());
    let mut bare = case();
    bare.listener = ListenerClass::Proxy;
    assert_eq!(bare.refused(), IngressRefusal::ClientMissing);
    let mut listed = behind_proxy("127.0.0.1", &["127.0.0.1"]);
    listed.listener = ListenerClass::Proxy;
    assert_eq!(listed.refused(), IngressRefusal::ClientMissing);
    let mut stranger = case();
    stranger.listener = ListenerClass::Proxy;
    stranger.peer = tcp("10.0.0.5");
    assert_eq!(stranger.refused(), IngressRefusal::NotTheProxy);
}

#[test]
fn t3_serve_claims_need_all_three_headers_and_one_hop() {
    let claim = |it: Case| it.run().unwrap().tailscale().cloned().unwrap();
    assert_eq!(claim(serve()).source, Some("100.64.0.9".parse().unwrap()));
    for header in ["X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"] {
        assert_eq!(claim(serve().without(header)).source, None, "{header}");
    }
    let two = serve()
        .without("X-Forwarded-For")
        .with("X-Forwarded-For", "100.64.0.9, 100.64.0.8");
    assert!(matches!(
        two.refused(),
        IngressRefusal::ChainAppended { .. }
    ));
    let mut remote = serve();
    remote.peer = tcp("10.0.0.5");
    assert_eq!(remote.refused(), IngressRefusal::Unattributed(Tailscale));
}

#[test]
fn t5_a_funnel_request_with_an_identity_is_refused() {
    let forged = serve().with("Tailscale-Funnel-Request", "?1");
    assert_eq!(forged.refused(), IngressRefusal::FunnelIdentity);
    let plain = forged.without("Tailscale-User-Login");
    assert!(plain.run().unwrap().tailscale().unwrap().funnel);
}

#[test]
fn o1_foreign_origins_are_403_whatever_else_is_said() {
    for origin in [
        "https://evil.example",
        "http://127.0.0.1.evil.example:18789",
        "http://127.0.0.1",
        "https://127.0.0.1:18789",
        "http://localhost:18789",
        "http://127.0.0.1:3000",
    ] {
        let it = case().with("Origin", origin).refused();
        assert!(matches!(it, IngressRefusal::OriginForeign(_)), "{origin}");
        assert_eq!(it.http_status(), 403);
        assert_eq!(it.detail_code(), Some("CONTROL_UI_ORIGIN_NOT_ALLOWED"));
    }
    for invalid in ["null", "", "http://127.0.0.1:18789.evil.example"] {
        assert_eq!(
            case().with("Origin", invalid).refused(),
            IngressRefusal::OriginInvalid
        );
    }
    let twice = case()
        .with("Origin", "http://127.0.0.1:18789")
        .with("origin", "http://127.0.0.1:18789");
    assert_eq!(twice.refused(), IngressRefusal::OriginInvalid);
    let refusal = case().with("Origin", "https://evil.example").refused();
    assert!(
        refusal
            .remedy()
            .contains("allowedOrigins: [\"https://evil.example\"]")
    );
}

#[test]
fn o1_the_gateways_own_page_and_listed_origins_are_allowed() {
    let own = case()
        .with("Origin", "http://127.0.0.1:18789")
        .run()
        .unwrap();
    assert!(
        !own.is_direct_local(),
        "A6: a browser is never a local program"
    );
    assert_eq!(own.origin().unwrap().to_string(), "http://127.0.0.1:18789");
    let mut listed = case().with("Origin", "https://UI.example:443");
    listed.settings.allowed_origins = vec![Origin::parse("https://ui.example").unwrap()];
    assert!(listed.run().is_ok());
    assert!(
        serve()
            .with("Origin", "https://gw.example.ts.net")
            .run()
            .is_ok()
    );
    assert!(
        serve()
            .with("Origin", "http://gw.example.ts.net")
            .run()
            .is_err()
    );
}

#[test]
fn o2_proxy_headers_never_switch_the_origin_check_off() {
    let it = behind_proxy("10.0.0.1", &["10.0.0.1"])
        .with("X-Forwarded-For", "10.0.0.9")
        .with("Origin", "https://evil.example");
    assert!(it.refused().http_status() == 403);
    let trusted = behind_proxy("10.0.0.1", &["10.0.0.1"])
        .with("X-Forwarded-For", "203.0.113.9")
        .with("Origin", "https://evil.example");
    assert!(matches!(
        trusted.refused(),
        IngressRefusal::OriginForeign(_)
    ));
}

#[test]
fn o4_the_loopback_origin_needs_a_loopback_socket_and_no_proxy() {
    let own_page = ("Origin", "http://127.0.0.1:18789");
    let mut remote = case().with(own_page.0, own_page.1);
    remote.peer = tcp("10.0.0.5");
    assert!(matches!(remote.refused(), IngressRefusal::OriginForeign(_)));
    let mut proxied = case()
        .with(own_page.0, own_page.1)
        .with("X-Forwarded-For", "203.0.113.9");
    assert!(matches!(proxied.refused(), IngressRefusal::Unattributed(_)));
    proxied.settings.trusted_proxies = vec![Cidr::parse("127.0.0.1").unwrap()];
    assert!(matches!(
        proxied.refused(),
        IngressRefusal::OriginForeign(_)
    ));
    let mut listed = case().with(own_page.0, own_page.1);
    listed.settings.trusted_proxies = vec![Cidr::parse("127.0.0.1").unwrap()];
    assert!(matches!(listed.refused(), IngressRefusal::OriginForeign(_)));
    let mut lan = case();
    lan.peer = tcp("10.0.0.5");
    lan.local = "10.0.0.7:18789";
    lan.headers = vec![
        ("Host", "10.0.0.7:18789"),
        ("Origin", "http://10.0.0.7:18789"),
    ];
    assert!(
        matches!(lan.refused(), IngressRefusal::OriginForeign(_)),
        "O3: the Host is no oracle"
    );
}

#[test]
fn decision_11_order_is_host_then_evidence_then_origin() {
    let mut it = case()
        .with("Via", "x")
        .with("Origin", "https://evil.example");
    assert_eq!(it.refused(), IngressRefusal::Unattributed(Forwarding));
    it.headers[0].1 = "evil.example";
    assert_eq!(it.refused(), IngressRefusal::HostForeign);
}

#[test]
fn the_admin_socket_serves_one_user_and_no_proxy() {
    let mut it = case();
    it.listener = ListenerClass::Admin;
    it.peer = Peer::Unix { uid: 1000 };
    it.settings.admin_uid = 1000;
    let local = it.run().unwrap();
    assert!(local.is_direct_local() && local.client() == Client::Local);
    it.settings.admin_uid = 0;
    assert_eq!(it.refused(), IngressRefusal::AdminUser { uid: 1000 });
    it.settings.admin_uid = 1000;
    let it = it.with("X-Forwarded-For", "1.2.3.4");
    assert!(matches!(it.refused(), IngressRefusal::Unattributed(_)));
}

#[test]
fn d2_which_plaintext_connections_may_carry_a_secret() {
    let mut lan = case();
    lan.peer = tcp("10.0.0.5");
    assert!(!lan.run().unwrap().is_private());
    lan.tls = true;
    assert!(lan.run().unwrap().is_private());
    lan.tls = false;
    lan.settings.allow_plaintext_from = vec![Cidr::parse("10.0.0.0/24").unwrap()];
    assert!(lan.run().unwrap().is_private());
    let mut tailnet = case();
    tailnet.peer = tcp("100.64.0.9");
    assert!(
        !tailnet.run().unwrap().is_private(),
        "our end is no tailnet address"
    );
    tailnet.local = "100.64.0.1:18789";
    tailnet.headers = vec![("Host", "100.64.0.1:18789")];
    assert!(
        !tailnet.run().unwrap().is_private(),
        "a carrier uses this range, too"
    );
    tailnet.settings.tailnet_bind = true;
    assert!(tailnet.run().unwrap().is_private());
}

#[test]
fn what_is_in_the_clear_or_comes_by_funnel_is_public() {
    let public = |it: &Case| it.run().unwrap().is_public();
    assert!(!public(&case()));
    let mut lan = case();
    lan.peer = tcp("10.0.0.5");
    assert!(public(&lan));
    lan.settings.allow_plaintext_from = vec![Cidr::parse("10.0.0.0/24").unwrap()];
    assert!(
        public(&lan) && lan.run().unwrap().is_private(),
        "what may carry a secret is no less public"
    );
    lan.tls = true;
    assert!(!public(&lan));
    let funnel = serve().without("Tailscale-User-Login");
    assert!(!public(&funnel));
    let mut funnel = funnel.with("Tailscale-Funnel-Request", "?1");
    assert!(public(&funnel));
    funnel.tls = true;
    assert!(public(&funnel));
    let mut tailnet = case();
    tailnet.peer = tcp("100.64.0.9");
    tailnet.local = "100.64.0.1:18789";
    tailnet.headers = vec![("Host", "100.64.0.1:18789")];
    assert!(public(&tailnet));
    tailnet.settings.tailnet_bind = true;
    assert!(!public(&tailnet));
}

#[test]
fn h5_the_scopes_header_is_a_cap() {
    let cap = |it: Case| it.run().unwrap().scopes_cap().map(<[String]>::to_vec);
    assert_eq!(cap(case()), None);
    let header = "x-openclaw-scopes";
    assert_eq!(
        cap(case().with(header, "operator.read, operator.write")),
        Some(vec!["operator.read".into(), "operator.write".into()])
    );
    assert_eq!(cap(case().with(header, "")), Some(vec![]));
    assert_eq!(
        cap(case()
            .with(header, "operator.read")
            .with(header, "operator.admin")),
        Some(vec![]),
        "twice caps everything"
    );
}
