//! A client that is inside while strangers crowd at the door: silent, slow, deaf and guessing ones.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Gateway, PASSWORD, Peer, read_answer, upgrade_request};

/// Answers come in milliseconds; a machine that is busy with other tests may take longer, but not this long.
const LATENCY_MAX: Duration = Duration::from_secs(2);

fn ask(peer: &mut Peer) {
    let asked = Instant::now();
    for _ in 0..20 {
        assert_eq!(peer.call("health", &json!({})).unwrap()["ok"], true);
    }
    assert!(asked.elapsed() < 20 * LATENCY_MAX, "{:?}", asked.elapsed());
}

#[test]
fn w1_who_is_inside_is_answered_while_strangers_crowd_in() {
    let gateway = Gateway::start();
    let mut inside = Peer::operator(&gateway);
    ask(&mut inside);
    let host = format!("Host: 127.0.0.1:{}\r\n", gateway.port());
    let upgrade = upgrade_request(&format!("127.0.0.1:{}", gateway.port()), &[]);
    let body = "POST /tools/invoke HTTP/1.1\r\nContent-Length: 100000\r\n";
    let bearer = format!("Authorization: Bearer {PASSWORD}\r\n");
    let kinds: [Vec<u8>; 7] = [
        Vec::new(),
        upgrade,
        b"GET / HTTP/1.1\r\nX: ".to_vec(),
        format!("{body}{host}\r\n").into_bytes(),
        format!("{body}{host}{bearer}\r\n").into_bytes(),
        format!("GET /app.js HTTP/1.1\r\n{host}\r\n").into_bytes(),
        format!("GET /x HTTP/1.1\r\n{host}Authorization: Bearer wrong\r\n\r\n").into_bytes(),
    ];
    for kind in &kinds {
        // More than one client may have; those over the bound are shut out.
        let mut crowd: Vec<TcpStream> = (0..50).map(|_| gateway.dial()).collect();
        for stranger in &mut crowd {
            let _ = stranger.write_all(kind);
        }
        ask(&mut inside);
        for stranger in &mut crowd {
            let _ = stranger.write_all(b"x");
        }
        ask(&mut inside);
    }
    // The door is open again for whoever knocks properly.
    let deadline = Instant::now() + crate::support::PATIENCE;
    loop {
        let mut stream = gateway.dial();
        let request = format!("GET /healthz HTTP/1.1\r\n{host}\r\n");
        let _ = stream.write_all(request.as_bytes());
        if read_answer(&mut stream).is_some_and(|answer| answer.status == 200) {
            break;
        }
        assert!(Instant::now() < deadline, "places are not given back");
    }
}
