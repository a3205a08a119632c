//! `node.invoke` from an operator's socket to a node's and back, beside the same bytes through a bare relay.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::peer::{Device, Peer, frame};
use super::process::Gateway;
use super::{runtime, verdict};
use portcullis::auth::scope::Role;

const ROUND: Duration = Duration::from_millis(400);
const WARM_UP: Duration = Duration::from_millis(100);
/// Bytes that a relay moves at once.
const RELAY_BYTES: usize = 64 * 1024;
/// Digits of a request's id and of an invocation's: written into the frames where they stand.
const ID: &str = "0000000000000001";
const INVOKE_ID: &str = "00000000-0000-4000-8000-000000000000";

static NEXT_KEY: AtomicU64 = AtomicU64::new(1);

struct Case {
    name: &'static str,
    payload_bytes: usize,
    in_flight: usize,
    budget: Option<f64>,
}

const CASES: &[Case] = &[
    Case {
        name: "invoke 16 B",
        payload_bytes: 16,
        in_flight: 1,
        budget: Some(1.5),
    },
    Case {
        name: "invoke 4 KiB",
        payload_bytes: 4 << 10,
        in_flight: 1,
        budget: Some(1.5),
    },
    Case {
        name: "invoke 64 KiB",
        payload_bytes: 64 << 10,
        in_flight: 1,
        budget: None,
    },
    Case {
        name: "invoke 1 MiB",
        payload_bytes: 1 << 20,
        in_flight: 1,
        budget: Some(4.0),
    },
    Case {
        name: "invoke 16 B, 16 in flight",
        payload_bytes: 16,
        in_flight: 16,
        budget: None,
    },
    Case {
        name: "invoke 16 B, 64 in flight",
        payload_bytes: 16,
        in_flight: 64,
        budget: None,
    },
];

/// The frames of one case.
struct Frames {
    request: Vec<u8>,
    result: Vec<u8>,
}

pub(crate) fn run(only: &str, rounds: usize) {
    let cases: Vec<&Case> = CASES
        .iter()
        .filter(|case| case.name.contains(only))
        .collect();
    if cases.is_empty() {
        return;
    }
    let gateway = Gateway::start();
    let load = runtime();
    let node = Device::new();
    let (mut operator_end, mut node_end) = load.block_on(approved_node(&gateway, &node));
    let relay = start_relay();
    println!(
        "{:<28} {:>10} {:>10} {:>10} {:>10} {:>7} {:>7} {:>7}",
        "node.invoke", "relay /s", "gateway /s", "relay us", "p50 us", "CPU us", "ratio", "budget"
    );
    for case in cases {
        let frames = frames(case.payload_bytes, &node.id);
        let mut figures: Vec<(f64, f64, f64, f64)> = (0..rounds)
            .map(|_| {
                let relayed = load.block_on(through_relay(relay, &frames, case.in_flight));
                let before = gateway.cpu_nanos();
                let invoked = load.block_on(through_gateway(
                    &mut operator_end,
                    &mut node_end,
                    &frames,
                    case.in_flight,
                ));
                let cpu_us = (gateway.cpu_nanos() - before) as f64 / 1e3;
                (
                    relayed.per_second / invoked.per_second,
                    relayed.per_second,
                    invoked.per_second,
                    cpu_us / invoked.asked as f64,
                )
            })
            .collect();
        figures.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (ratio, relay, invoked, cpu_us) = figures[figures.len() / 2];
        let micros = |per_second: f64| 1e6 * case.in_flight as f64 / per_second;
        println!(
            "{:<28} {relay:>10.0} {invoked:>10.0} {:>10.0} {:>10.0} {cpu_us:>7.1} {ratio:>7.2} {}",
            case.name,
            micros(relay),
            micros(invoked),
            verdict(ratio, case.budget),
        );
    }
}

/// An operator, and a node whose commands it has approved.
async fn approved_node(gateway: &Gateway, device: &Device) -> (Peer, Peer) {
    let node = Peer::connect(gateway.port, Role::Node, Some(device)).await;
    let mut operator = Peer::connect(gateway.port, Role::Operator, None).await;
    let list = json!({"type": "req", "id": "list", "method": "node.pair.list", "params": {}});
    let list = operator.call(&list).await;
    if let Some(request) = list["payload"]["pending"][0]["requestId"].as_str() {
        let approve = json!({"type": "req", "id": "yes", "method": "node.pair.approve", "params": {"requestId": request}});
        let approved = operator.call(&approve).await;
        assert_eq!(approved["ok"], true, "{approved}");
    }
    (operator, node)
}

/// Text as commands print it: lines, and now and then a quote.
fn sample(bytes: usize) -> String {
    const LINE: &str = "drwxr-xr-x 2 root root 4096 Nov 21 04:33 \"a name with blanks\"\n";
    LINE.chars().cycle().take(bytes).collect()
}

fn frames(payload_bytes: usize, node: &str) -> Frames {
    let payload = json!({"title": sample(payload_bytes)});
    let request = json!({
        "type": "req", "id": ID, "method": "node.invoke",
        "params": {"nodeId": node, "command": "device.info", "params": payload, "idempotencyKey": ID},
    });
    let result = json!({
        "type": "req", "id": INVOKE_ID, "method": "node.invoke.result",
        "params": {"id": INVOKE_ID, "nodeId": node, "ok": true, "payloadJSON": payload.to_string()},
    });
    Frames {
        request: frame(&request.to_string()),
        result: frame(&result.to_string()),
    }
}

/// Where a text stands in a frame.
fn places(frame: &[u8], text: &str) -> Vec<usize> {
    (0..frame.len().saturating_sub(text.len()))
        .filter(|at| frame[*at..].starts_with(text.as_bytes()))
        .collect()
}

struct Measured {
    per_second: f64,
    /// With those of the warm-up.
    asked: u64,
}

async fn through_gateway(
    operator: &mut Peer,
    node: &mut Peer,
    frames: &Frames,
    in_flight: usize,
) -> Measured {
    let begin = Instant::now() + WARM_UP;
    let end = begin + ROUND;
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let serve = async {
        let mut result = frames.result.clone();
        let ids = places(&result, INVOKE_ID);
        loop {
            tokio::select! {
                biased;
                message = node.message() => {
                    if let Some(id) = invoke_id(message) {
                        let mut own = [0; INVOKE_ID.len()];
                        own.copy_from_slice(id);
                        for at in &ids {
                            result[*at..*at + own.len()].copy_from_slice(&own);
                        }
                        node.write(&result).await;
                    }
                }
                _ = &mut stopped => return,
            }
        }
    };
    let ask = async {
        let mut request = frames.request.clone();
        let ids = places(&request, ID);
        let (mut under_way, mut counted, mut asked) = (0_usize, 0_u64, 0_u64);
        loop {
            while under_way < in_flight && Instant::now() < end {
                // Never the same key twice: it would be answered from the record.
                let next = NEXT_KEY.fetch_add(1, Ordering::Relaxed);
                for at in &ids {
                    request[*at..*at + ID.len()].copy_from_slice(format!("{next:016}").as_bytes());
                }
                operator.write(&request).await;
                under_way += 1;
                asked += 1;
            }
            if under_way == 0 {
                let _ = stop.send(());
                return (counted, asked);
            }
            let message = operator.message().await;
            if message.starts_with(b"{\"type\":\"res\"") {
                if !contains(&message[..message.len().min(200)], b"\"ok\":true") {
                    panic!("{}", String::from_utf8_lossy(message));
                }
                under_way -= 1;
                let now = Instant::now();
                counted += u64::from(now >= begin && now < end);
            }
        }
    };
    let ((counted, asked), ()) = tokio::join!(ask, serve);
    Measured {
        per_second: counted as f64 / ROUND.as_secs_f64(),
        asked,
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// The id of a `node.invoke.request`, which stands near the beginning.
fn invoke_id(message: &[u8]) -> Option<&[u8]> {
    let near = &message[..message.len().min(200)];
    if !contains(near, b"\"node.invoke.request\"") {
        return None;
    }
    let key = b"\"id\":\"";
    let at = near.windows(key.len()).position(|window| window == key)? + key.len();
    near.get(at..at + INVOKE_ID.len())
}

/// A relay on a thread of its own: two sockets at a time, whatever comes on one goes out on the other.
fn start_relay() -> SocketAddr {
    let relay = runtime();
    let (listener, address) = relay.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a port");
        let address = listener.local_addr().expect("its address");
        (listener, address)
    });
    std::thread::spawn(move || {
        relay.block_on(async {
            loop {
                let (operator, _) = listener.accept().await.expect("an operator");
                let (node, _) = listener.accept().await.expect("a node");
                for stream in [&operator, &node] {
                    stream.set_nodelay(true).expect("an option of TCP");
                }
                let (from_operator, to_operator) = operator.into_split();
                let (from_node, to_node) = node.into_split();
                tokio::spawn(pump(from_operator, to_node));
                tokio::spawn(pump(from_node, to_operator));
            }
        });
    });
    address
}

async fn pump(mut from: tokio::net::tcp::OwnedReadHalf, mut to: tokio::net::tcp::OwnedWriteHalf) {
    let mut buffer = vec![0; RELAY_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

async fn through_relay(relay: SocketAddr, frames: &Frames, in_flight: usize) -> Measured {
    let begin = Instant::now() + WARM_UP;
    let end = begin + ROUND;
    let mut operator = TcpStream::connect(relay).await.expect("the relay");
    let mut node = TcpStream::connect(relay).await.expect("the relay");
    for stream in [&operator, &node] {
        stream.set_nodelay(true).expect("an option of TCP");
    }
    let serve = async {
        let mut buffer = vec![0; frames.request.len() + 4096];
        let mut partial = 0;
        loop {
            match node.read(&mut buffer).await {
                Ok(count @ 1..) => partial += count,
                _ => return,
            }
            while partial >= frames.request.len() {
                partial -= frames.request.len();
                node.write_all(&frames.result).await.expect("the relay");
            }
        }
    };
    let ask = async {
        let mut buffer = vec![0; frames.result.len() + 4096];
        let (mut under_way, mut partial, mut counted) = (0, 0, 0_u64);
        loop {
            while under_way < in_flight && Instant::now() < end {
                operator
                    .write_all(&frames.request)
                    .await
                    .expect("the relay");
                under_way += 1;
            }
            if under_way == 0 {
                return counted;
            }
            partial += operator.read(&mut buffer).await.expect("the relay");
            while partial >= frames.result.len() {
                partial -= frames.result.len();
                under_way -= 1;
                let now = Instant::now();
                counted += u64::from(now >= begin && now < end);
            }
        }
    };
    let counted = tokio::select! {
        counted = ask => counted,
        () = serve => panic!("the relay hung up"),
    };
    Measured {
        per_second: counted as f64 / ROUND.as_secs_f64(),
        asked: counted,
    }
}
