//! Any header lines from a trusted proxy, from a stranger, or from this host: a request is local only if nothing speaks
//! of a proxy or a page, a client behind a proxy is the one untrusted address of its chain, and never a loopback one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::ingress::{
    Cidr, Client, ListenerClass, Peer, Request, Settings, attribute, forwarded,
};

const PEERS: [&str; 3] = ["10.0.0.1:1", "127.0.0.1:1", "203.0.113.7:1"];

fuzz_target!(|input: &str| {
    let mut lines = input.lines();
    let choice = lines.next().map_or(0, str::len);
    let listener = [
        ListenerClass::Main,
        ListenerClass::Serve,
        ListenerClass::Proxy,
    ][choice / 3 % 3];
    let peer = PEERS[choice % 3].parse().expect("an address");
    let mut headers: Vec<(&str, &[u8])> = vec![("host", b"localhost")];
    headers.extend(
        lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name, value.as_bytes())),
    );
    let settings = Settings {
        trusted_proxies: vec![Cidr::parse("10.0.0.0/24").expect("a range")],
        allow_real_ip: choice % 2 == 0,
        ..Settings::default()
    };
    let request = Request {
        listener,
        peer: Peer::Tcp(peer),
        local: None,
        tls: false,
        headers: &headers,
        own_addresses: None,
    };
    let values = |wanted: &str| -> Vec<&[u8]> {
        let same = headers
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
        same.map(|(_, value)| *value).collect()
    };
    let Ok(it) = attribute(&request, &settings) else {
        return;
    };
    let speaks_of_proxy = headers.iter().any(|(name, _)| {
        let name = name.to_ascii_lowercase();
        name.starts_with("x-forwarded")
            || name.starts_with("tailscale-")
            || ["forwarded", "via", "x-real-ip"].contains(&&*name)
    });
    if it.is_direct_local() {
        assert!(listener == ListenerClass::Main && peer.ip().is_loopback());
        assert!(!speaks_of_proxy && values("origin").is_empty());
    }
    let Client::Ip(client) = it.client() else {
        panic!("a TCP peer is no local user");
    };
    if client == peer.ip() {
        // Nobody was named; only whoever is not a remote proxy may pass like that.
        assert!(
            !speaks_of_proxy
                || listener == ListenerClass::Serve
                || peer.ip() != client
                || peer.ip().is_loopback()
        );
        return;
    }
    assert!(!client.is_loopback() && !client.is_unspecified());
    let chain = match (&values("x-forwarded-for")[..], &values("forwarded")[..]) {
        ([line], _) => forwarded::x_forwarded_for([*line].into_iter()),
        ([], [line]) => forwarded::forwarded([*line].into_iter()),
        _ => return assert_eq!(values("x-real-ip").len(), 1),
    };
    let chain = chain.expect("it was read before").expect("it is there");
    assert_eq!(chain[0], client);
    assert!(
        chain[1..]
            .iter()
            .all(|hop| Cidr::any_contains(&settings.trusted_proxies, *hop))
    );
});
