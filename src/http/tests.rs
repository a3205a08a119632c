//! One connection in memory, the clock turned by hand: what takes too long ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Arrival, serve};
use crate::base::{Secret, limits};
use crate::cli::serve::{GatewaySettings, Parts};
use crate::ingress::{ListenerClass, Peer};

struct House {
    parts: Parts,
    _dir: tempfile::TempDir,
}

impl House {
    fn open() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let settings = GatewaySettings::on_loopback(state, 0, &Secret::new("right"));
        let parts = Parts::open(settings.unwrap()).unwrap();
        Self { parts, _dir: dir }
    }

    /// A connection that holds this much on its way, from this host.
    fn dial(&self, bytes: usize) -> (DuplexStream, JoinHandle<()>) {
        let (near, far) = duplex(bytes);
        let arrival = Arrival {
            class: ListenerClass::Main,
            peer: Peer::Tcp("127.0.0.1:40000".parse().unwrap()),
            local: None,
            tls: false,
        };
        let front = &self.parts.front;
        let place = front.preauth.enter(None).unwrap();
        (
            far,
            tokio::spawn(serve(near, arrival, place, Arc::clone(front))),
        )
    }
}

/// Sends bytes, then a piece every second; returns what was answered and after how many seconds it ended.
async fn drip(house: &House, first: &str, piece: &str) -> (String, u64) {
    let (far, served) = house.dial(1 << 20);
    let began = Instant::now();
    let (mut read, mut write) = tokio::io::split(far);
    write.write_all(first.as_bytes()).await.unwrap();
    let piece = piece.to_owned();
    let dripping = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if write.write_all(piece.as_bytes()).await.is_err() {
                break;
            }
        }
    });
    let mut answer = String::new();
    let _ = read.read_to_string(&mut answer).await;
    served.await.unwrap();
    dripping.abort();
    (answer, began.elapsed().as_secs())
}

#[tokio::test(start_paused = true)]
async fn w2_whoever_takes_too_long_is_cut_off() {
    let house = House::open();
    let head = limits::HANDSHAKE_TIMEOUT.as_secs();
    // Silence, a head that never ends, and one that grows all the time.
    for (first, piece) in [
        ("", ""),
        ("GET / HTTP/1.1\r\n", ""),
        ("GET / HTTP/1.1\r\n", "X: y\r\n"),
    ] {
        let (answer, seconds) = drip(&house, first, piece).await;
        assert_eq!(
            (answer.as_str(), seconds),
            ("", head),
            "{first:?} {piece:?}"
        );
    }
    // A body that never ends: from a stranger it is not waited for, from a caller for so long.
    let body = "POST /tools/invoke HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n";
    let (answer, seconds) = drip(&house, &format!("{body}\r\n"), "x").await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    assert!(seconds <= limits::HTTP_LINGER.as_secs(), "{seconds}");
    let (answer, seconds) = drip(
        &house,
        &format!("{body}Authorization: Bearer right\r\n\r\n"),
        "x",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    let allowed = limits::HTTP_BODY_TIMEOUT + limits::HTTP_LINGER;
    assert!(seconds <= allowed.as_secs() + 1, "{seconds}");
    assert!(house.parts.front.preauth.is_empty());
}

#[tokio::test(start_paused = true)]
async fn w7_who_does_not_read_the_answer_is_cut_off() {
    let house = House::open();
    let (mut far, served) = house.dial(100);
    let began = Instant::now();
    let request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    far.write_all(request).await.unwrap();
    served.await.unwrap();
    assert_eq!(began.elapsed(), limits::HTTP_EXCHANGE_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn r8_who_hangs_up_before_a_late_answer_guesses_no_faster() {
    let house = House::open();
    let request = b"GET /x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer wrong\r\n\r\n";
    let ask = async |answer_ms: u64| {
        let (mut far, served) = house.dial(1 << 16);
        far.write_all(request).await.unwrap();
        let mut answer = String::new();
        let whole = far.read_to_string(&mut answer);
        let _ = tokio::time::timeout(Duration::from_millis(answer_ms), whole).await;
        drop(far);
        served.await.unwrap();
        answer
    };
    let mut unanswered = 0;
    let refused = loop {
        let answer = ask(10).await;
        if !answer.is_empty() {
            break answer;
        }
        unanswered += 1;
    };
    assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
    // Of the first answers of the series some have become due meanwhile.
    let waiting = limits::LATE_ANSWERS_PER_CLIENT_MAX;
    assert!((waiting..waiting + 6).contains(&unanswered), "{unanswered}");
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(ask(6000).await.starts_with("HTTP/1.1 401 "));
}

#[tokio::test(start_paused = true)]
async fn r8_who_waits_for_a_late_answer_gives_way_and_frees_the_place() {
    let house = House::open();
    let request = b"GET /x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer wrong\r\n\r\n";
    for late_ms in [250, 500, 1000, 2000, 4000, 5000] {
        let (mut far, served) = house.dial(1 << 16);
        let began = Instant::now();
        far.write_all(request).await.unwrap();
        let mut answer = String::new();
        far.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
        assert_eq!(began.elapsed().as_millis(), late_ms);
        drop(far);
        served.await.unwrap();
    }
    let (mut far, served) = house.dial(1 << 16);
    far.write_all(request).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let gate = &house.parts.front.preauth;
    assert_eq!(gate.len(), 1);
    let newer: Vec<_> = (0..limits::PREAUTH_CONNECTIONS_MAX)
        .map(|_| gate.enter(None).unwrap())
        .collect();
    served.await.unwrap();
    assert_eq!(gate.len(), newer.len());
}
