//! A whole Gateway without listeners, and a peer that reaches it through the managed Serve listener.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{GatewaySettings, Parts, Secrets};
use crate::auth::admission::{self, Mode};
use crate::auth::rate_limit::LimiterSettings;
use crate::auth::scope::ScopeSet;
use crate::auth::whois::Whois;
use crate::base::{Secret, limits};
use crate::exec::policy;
use crate::http::{self, Arrival};
use crate::ingress::{self, ListenerClass, Peer};
use crate::net::WsIo;
use crate::nodes::CommandPolicy;
use crate::session::WhoisSource;
use crate::ws::{self, Event};

const PATIENCE: Duration = Duration::from_secs(20);

/// What Serve adds for a user of the tailnet.
const ALICE: [(&str, &str); 4] = [
    ("tailscale-user-login", "alice@x.example"),
    ("x-forwarded-for", "100.64.0.9"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "gw.tail.ts.net"),
];

pub(super) fn gateway(whois: Option<Arc<dyn WhoisSource>>) -> (Parts, TempDir) {
    let home = TempDir::new().unwrap();
    let parts = Parts::open(GatewaySettings {
        audit_sync_always: false,
        state_dir: home.path().join("own"),
        config_path: None,
        doors: crate::net::Doors::loopback(0),
        admission: admission::Settings {
            mode: Mode::Token,
            allow_tailscale: true,
            local_operator_scopes: ScopeSet::all(),
            auto_approve_local: true,
            auto_approve_cidrs: Vec::new(),
            control_ui_build: None,
        },
        secrets: Arc::new(Secrets::fixed(&Secret::new("the gateway's own secret")).unwrap()),
        whois,
        limiter: LimiterSettings::default(),
        ingress: ingress::Settings::default(),
        commands: CommandPolicy::default(),
        per_node: Vec::new(),
        exec_mode: policy::Mode::Ask,
        serve_page: true,
        tls: crate::config::Tls::default(),
        exec_timeout: PATIENCE,
        turn_timeout: PATIENCE,
    });
    (parts.unwrap(), home)
}

/// Upgrades at `class` from a loopback peer and reads the challenge.
async fn upgraded(
    parts: &Parts,
    class: ListenerClass,
    headers: &[(&str, &str)],
) -> WsIo<DuplexStream> {
    let (ours, mut theirs) = duplex(1 << 20);
    let arrival = Arrival {
        class,
        peer: Peer::Tcp("127.0.0.1:50000".parse::<SocketAddr>().unwrap()),
        local: None,
        tls: false,
    };
    let place = parts.front.preauth.enter(None).unwrap();
    tokio::spawn(http::serve(ours, arrival, place, Arc::clone(&parts.front)));
    let mut head =
        "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            .to_owned();
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    theirs.write_all((head + "\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(theirs.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{answer:?}");
    let mut peer = WsIo::client(theirs, Bytes::new(), ws::Limits::new(1 << 20));
    assert_eq!(frame(&mut peer).await["event"], "connect.challenge");
    peer
}

async fn frame(peer: &mut WsIo<DuplexStream>) -> Value {
    match timeout(PATIENCE, peer.receive()).await.unwrap().unwrap() {
        Event::Text(text) => serde_json::from_str(&text).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// The command line without any credential.
async fn send_connect(peer: &mut WsIo<DuplexStream>) {
    let connect = json!({"type": "req", "id": "1", "method": "connect", "params": {
        "minProtocol": 4, "maxProtocol": 4,
        "client": {"id": "cli", "version": "1", "platform": "linux", "mode": "cli"},
        "role": "operator", "scopes": ["operator.admin"],
    }});
    peer.queue_text(connect.to_string().as_bytes());
    peer.flush().await.unwrap();
}

/// A daemon that never answers, and tells when it was asked and when the question was dropped.
struct Slow(mpsc::UnboundedSender<Seen>);

#[derive(PartialEq, Debug)]
enum Seen {
    Asked(IpAddr),
    Dropped,
}

impl WhoisSource for Slow {
    fn whois(&self, source: IpAddr) -> Pin<Box<dyn Future<Output = Whois> + Send + '_>> {
        struct Tell(mpsc::UnboundedSender<Seen>);
        impl Drop for Tell {
            fn drop(&mut self) {
                let _ = self.0.send(Seen::Dropped);
            }
        }
        Box::pin(async move {
            let _tell = Tell(self.0.clone());
            self.0.send(Seen::Asked(source)).unwrap();
            std::future::pending().await
        })
    }
}

/// Who belongs to every address.
struct Everyone(Whois);

impl WhoisSource for Everyone {
    fn whois(&self, _: IpAddr) -> Pin<Box<dyn Future<Output = Whois> + Send + '_>> {
        let answer = self.0.clone();
        Box::pin(async { answer })
    }
}

#[tokio::test]
async fn an_identity_is_waited_for_only_as_long_as_its_caller_stays() {
    let (asked, mut seen) = mpsc::unbounded_channel();
    let (parts, _home) = gateway(Some(Arc::new(Slow(asked))));
    let mut peer = upgraded(&parts, ListenerClass::Serve, &ALICE).await;
    send_connect(&mut peer).await;
    let source = "100.64.0.9".parse().unwrap();
    let next = timeout(PATIENCE, seen.recv()).await.unwrap();
    assert_eq!(next, Some(Seen::Asked(source)));
    assert_eq!(parts.front.preauth.len(), 1);
    // Somebody else is not held up by it.
    let mut other = upgraded(&parts, ListenerClass::Serve, &ALICE[1..]).await;
    send_connect(&mut other).await;
    assert_eq!(frame(&mut other).await["ok"], false);
    drop((peer, other));
    let next = timeout(limits::HANDSHAKE_TIMEOUT / 2, seen.recv())
        .await
        .unwrap();
    assert_eq!(next, Some(Seen::Dropped));
    assert_eq!(parts.hub.session_counts().0, 0);
}

#[tokio::test]
async fn t2_who_the_daemon_names_comes_in_without_scopes() {
    for (whois, code) in [
        (Some("alice@x.example"), ""),
        (Some("bob@x.example"), "AUTH_TAILSCALE_IDENTITY_MISMATCH"),
        (None, "AUTH_TAILSCALE_WHOIS_FAILED"),
    ] {
        let source = whois.map(|login| {
            let found = Whois::Found {
                login: login.to_owned(),
            };
            Arc::new(Everyone(found)) as Arc<dyn WhoisSource>
        });
        let (parts, _home) = gateway(source);
        let mut peer = upgraded(&parts, ListenerClass::Serve, &ALICE).await;
        send_connect(&mut peer).await;
        let answer = frame(&mut peer).await;
        let refused = answer["error"]["details"]["code"].as_str();
        assert_eq!(refused.unwrap_or_default(), code, "{answer}");
        if code.is_empty() {
            assert_eq!(answer["payload"]["auth"]["scopes"], json!([]), "{answer}");
        }
    }
}
