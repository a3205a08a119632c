//! The whole way of a stranger: HTTP head, upgrade, frames, `connect`. Whatever it sends, nobody gets in, nothing is
//! paired, no answer is a 5xx, and the connection ends.
//!
//! An input that does not begin with a letter is put behind a good upgrade, so that frames are reached, too.
#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use portcullis::auth::admission;
use portcullis::auth::rate_limit::LimiterSettings;
use portcullis::auth::scope::ScopeSet;
use portcullis::base::Secret;
use portcullis::cli::serve::{GatewaySettings, Parts, Secrets};
use portcullis::exec::policy::Mode;
use portcullis::http::{Arrival, serve};
use portcullis::ingress::{self, ListenerClass, Peer};
use portcullis::net::Doors;
use portcullis::nodes::CommandPolicy;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::runtime::{Builder, Runtime};

const UPGRADE: &[u8] =
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1:18789\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";

static HOUSE: LazyLock<(Runtime, Parts, tempfile::TempDir)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory");
    let parts = Parts::open(GatewaySettings {
        state_dir: dir.path().join("state"),
        config_path: None,
        doors: Doors::loopback(0),
        audit_sync_always: false,
        admission: admission::Settings {
            mode: admission::Mode::Password,
            allow_tailscale: false,
            local_operator_scopes: ScopeSet::all(),
            auto_approve_local: true,
            auto_approve_cidrs: Vec::new(),
            control_ui_build: None,
        },
        secrets: Arc::new(
            Secrets::fixed(&Secret::new("a-password-that-no-input-holds")).expect("not empty"),
        ),
        tailnet: None,
        limiter: LimiterSettings::default(),
        ingress: ingress::Settings::default(),
        commands: CommandPolicy::default(),
        per_node: Vec::new(),
        exec_mode: Mode::Ask,
        serve_page: true,
        tls: portcullis::config::Tls::default(),
        exec_timeout: Duration::from_secs(1),
        turn_timeout: Duration::from_secs(1),
    })
    .expect("a house");
    // The clock is turned by the runtime: it jumps to the next timer when nothing else can happen.
    let runtime = Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    (runtime, parts, dir)
});

fuzz_target!(|input: &[u8]| {
    let (runtime, parts, _dir) = &*HOUSE;
    let behind_upgrade = !input.first().is_some_and(u8::is_ascii_alphabetic);
    let answer = runtime.block_on(async {
        let (near, mut far) = duplex(1 << 20);
        let address = "127.0.0.1:40000".parse().expect("an address");
        let local = "127.0.0.1:18789".parse().expect("an address");
        let arrival = Arrival {
            class: ListenerClass::Main,
            peer: Peer::Tcp(address),
            local: Some(local),
            tls: false,
        };
        let place = parts.front.preauth.enter(None).expect("a place");
        let served = tokio::spawn(serve(near, arrival, place, Arc::clone(&parts.front)));
        if behind_upgrade {
            far.write_all(UPGRADE).await.expect("room");
        }
        let _ = far.write_all(&input[..input.len().min(200_000)]).await;
        let _ = far.shutdown().await;
        let mut answer = Vec::new();
        let ended =
            tokio::time::timeout(Duration::from_secs(60), far.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "the connection did not end");
        let _ = served.await;
        answer
    });
    assert!(
        !answer.starts_with(b"HTTP/1.1 5"),
        "a stranger's bytes made a 5xx"
    );
    assert_eq!(parts.hub.session_counts(), (0, 0), "a stranger got in");
    assert_eq!(parts.hub.node_list().len(), 0, "a stranger was paired");
});
