//! A whole Gateway without listeners, and a peer that reaches it through the managed Serve listener.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::timeout;

use super::{GatewaySettings, Parts};
use crate::auth::admission::Mode;
use crate::base::{Secret, limits};
use crate::http::{self, Arrival};
use crate::ingress::{ListenerClass, Peer};
use crate::net::tailnet::stand_in::{Reply, StandIn};
use crate::net::{Tailnet, WsIo};
use crate::ws::{self, Event};

const PATIENCE: Duration = Duration::from_secs(20);

/// What Serve adds for a user of the tailnet.
const ALICE: [(&str, &str); 4] = [
    ("tailscale-user-login", "alice@x.example"),
    ("x-forwarded-for", "100.64.0.9"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "gw.tail.ts.net"),
];

pub(super) fn gateway() -> (Parts, StandIn, TempDir) {
    let home = TempDir::new().unwrap();
    let daemon = StandIn::start(home.path());
    let tailnet = Tailnet::new(Some(daemon.socket.clone()));
    let own = home.path().join("own");
    let settings = GatewaySettings::on_loopback(own, 0, &Secret::new("the gateway's own secret"));
    let mut settings = settings.unwrap();
    settings.admission.mode = Mode::Token;
    settings.admission.allow_tailscale = true;
    settings.tailnet = Some(Arc::new(tailnet));
    let parts = Parts::open(settings);
    (parts.unwrap(), daemon, home)
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

#[tokio::test]
async fn an_identity_is_waited_for_only_as_long_as_its_caller_stays() {
    let (parts, daemon, _home) = gateway();
    daemon.say("100.64.0.9", Reply::Silence);
    let mut peer = upgraded(&parts, ListenerClass::Serve, &ALICE).await;
    send_connect(&mut peer).await;
    let asked = tokio::task::spawn_blocking(move || {
        daemon.wait_until_asked("100.64.0.9", 1);
        daemon
    });
    let daemon = asked.await.unwrap();
    assert_eq!(parts.front.preauth.len(), 1);
    // Somebody else is not held up by it.
    let mut other = upgraded(&parts, ListenerClass::Serve, &ALICE[1..]).await;
    send_connect(&mut other).await;
    assert_eq!(frame(&mut other).await["ok"], false);
    let before = Instant::now();
    drop((peer, other));
    tokio::task::spawn_blocking(move || daemon.wait_until_left())
        .await
        .unwrap();
    assert!(before.elapsed() < limits::TAILNET_TIMEOUT * 2 / 3);
    assert_eq!(parts.hub.session_counts().0, 0);
}
