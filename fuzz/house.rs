//! A Gateway in memory, its clock turned by hand, for the targets that knock at its door.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use portcullis::base::Secret;
use portcullis::cli::serve::{GatewaySettings, Parts};
use portcullis::http::{Arrival, serve};
use portcullis::ingress::{ListenerClass, Peer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::runtime::{Builder, Runtime};

pub static HOUSE: LazyLock<(Runtime, Parts, tempfile::TempDir)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory");
    let password = Secret::new("a-password-that-no-input-holds");
    let settings = GatewaySettings::on_loopback(dir.path().join("state"), 0, &password);
    let parts = Parts::open(settings.expect("a password")).expect("a house");
    // The clock is turned by the runtime: it jumps to the next timer when nothing else can happen.
    let runtime = Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    (runtime, parts, dir)
});

/// Sends bytes from this host to the main listener, and nothing after them; returns all that comes back. The connection must
/// end.
pub fn exchange(pieces: &[&[u8]]) -> Vec<u8> {
    let (runtime, parts, _dir) = &*HOUSE;
    runtime.block_on(async {
        let (near, mut far) = duplex(1 << 20);
        let arrival = Arrival {
            class: ListenerClass::Main,
            peer: Peer::Tcp("127.0.0.1:40000".parse().expect("an address")),
            local: Some("127.0.0.1:18789".parse().expect("an address")),
            tls: false,
        };
        let place = parts.front.preauth.enter(None).expect("a place");
        let served = tokio::spawn(serve(near, arrival, place, Arc::clone(&parts.front)));
        for piece in pieces {
            let _ = far.write_all(piece).await;
        }
        let _ = far.shutdown().await;
        let mut answer = Vec::new();
        let reading = far.read_to_end(&mut answer);
        let ended = tokio::time::timeout(Duration::from_secs(120), reading).await;
        assert!(ended.is_ok(), "the connection did not end");
        let _ = served.await;
        answer
    })
}
