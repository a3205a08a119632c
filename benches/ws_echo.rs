//! WebSocket echo over loopback TCP beside a bare tokio TCP echo in the same run.
//!
//! `[CASE=TEXT] cargo bench --bench ws_echo [-- ROUNDS]`, TEXT being part of a row's name: prints messages per second of
//! both and their ratio, the median of the rounds, beside the budget. The server has one thread and so has the load. The
//! load sends frames made beforehand and counts the bytes that come back, so that it costs the same on both sides; the
//! raw load sends the same payloads.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

use portcullis::net::WsIo;
use portcullis::ws::frame::Opcode;
use portcullis::ws::{Connection, Event, Limits};

const ROUND: Duration = Duration::from_millis(250);
const WARM_UP: Duration = Duration::from_millis(60);

struct Case {
    name: &'static str,
    payload_bytes: usize,
    connections: usize,
    in_flight: usize,
    text: bool,
    budget: Option<f64>,
}

const fn case(name: &'static str, payload_bytes: usize, budget: Option<f64>) -> Case {
    Case {
        name,
        payload_bytes,
        connections: 64,
        in_flight: 1,
        text: true,
        budget,
    }
}

const CASES: &[Case] = &[
    case("16 B, one in flight", 16, Some(0.9)),
    case("1 KiB, one in flight", 1 << 10, Some(0.9)),
    case("64 KiB, one in flight", 64 << 10, Some(0.9)),
    case("1 MiB, one in flight", 1 << 20, None),
    Case {
        text: false,
        ..case("64 KiB binary, one in flight", 64 << 10, Some(0.9))
    },
    Case {
        connections: 8,
        in_flight: 256,
        ..case("16 B, pipelined 8 x 256", 16, None)
    },
    Case {
        connections: 8,
        in_flight: 256,
        ..case("1 KiB, pipelined 8 x 256", 1 << 10, Some(0.6))
    },
];

fn main() {
    let rounds = std::env::args()
        .filter_map(|arg| arg.parse().ok())
        .next()
        .unwrap_or(11);
    let servers = runtime();
    let raw = servers.block_on(listen(false));
    let ws = servers.block_on(listen(true));
    let server = std::thread::Builder::new().name("server".to_owned());
    server
        .spawn(move || servers.block_on(std::future::pending::<()>()))
        .expect("a thread");
    let load = runtime();
    println!(
        "{:<30} {:>12} {:>12} {:>7} {:>7}",
        "echo, messages per second", "raw TCP", "WebSocket", "ratio", "budget"
    );
    let only = std::env::var("CASE").unwrap_or_default();
    for case in CASES.iter().filter(|case| case.name.contains(&only)) {
        let mut figures: Vec<(f64, f64, f64)> = (0..rounds)
            .map(|_| {
                let raw = load.block_on(measure(raw, case, false));
                let ws = load.block_on(measure(ws, case, true));
                (ws / raw, raw, ws)
            })
            .collect();
        figures.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (ratio, raw, ws) = figures[figures.len() / 2];
        let budget = case.budget.map_or(String::new(), |budget| {
            format!(
                "{budget:>7.2} {}",
                if ratio >= budget { "held" } else { "MISSED" }
            )
        });
        println!(
            "{:<30} {raw:>12.0} {ws:>12.0} {ratio:>7.2} {budget}",
            case.name
        );
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

async fn listen(ws: bool) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a port");
    let address = listener.local_addr().expect("its address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).expect("an option of TCP");
            if ws {
                tokio::spawn(ws_echo(stream));
            } else {
                tokio::spawn(raw_echo(stream));
            }
        }
    });
    address
}

async fn raw_echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// As in `examples/ws_echo.rs`, after the upgrade.
async fn ws_echo(stream: TcpStream) {
    let mut ws = WsIo::server(stream, Bytes::new(), Limits::new(16 << 20));
    loop {
        match ws.receive().await {
            Ok(Event::Text(text)) => ws.queue_text_owned(text),
            Ok(Event::Binary(bytes)) => ws.queue_binary_owned(bytes),
            Ok(Event::Ping(_) | Event::Pong(_)) => {}
            Ok(Event::Close { .. }) | Err(_) => return,
        }
        if ws.buffered_bytes() > 1 << 20 && ws.flush().await.is_err() {
            return;
        }
    }
}

/// Messages per second.
async fn measure(server: SocketAddr, case: &Case, ws: bool) -> f64 {
    let payload = vec![b'x'; case.payload_bytes];
    let opcode = if case.text {
        Opcode::Text
    } else {
        Opcode::Binary
    };
    let (mut sent, mut answered) = (payload.clone(), payload.clone());
    if ws {
        let limits = Limits::new(0);
        sent.clear();
        Connection::client(limits).encode(opcode, &payload, [0x37, 0xfa, 0x21, 0x3d], &mut sent);
        answered.clear();
        Connection::server(limits).encode(opcode, &payload, [0; 4], &mut answered);
    }
    let burst = Arc::new(sent.repeat(case.in_flight));
    let answer_bytes = answered.len();
    let (start, end) = (Instant::now() + WARM_UP, Instant::now() + WARM_UP + ROUND);
    let tasks: Vec<_> = (0..case.connections)
        .map(|_| {
            let burst = burst.clone();
            let in_flight = case.in_flight;
            tokio::spawn(async move {
                let stream = TcpStream::connect(server).await.expect("the server");
                stream.set_nodelay(true).expect("an option of TCP");
                if in_flight == 1 {
                    one_in_flight(stream, &burst, answer_bytes, start, end).await
                } else {
                    pipelined(stream, burst, answer_bytes, in_flight, start, end).await
                }
            })
        })
        .collect();
    let mut messages = 0;
    for task in tasks {
        messages += task.await.expect("a load task");
    }
    messages as f64 / ROUND.as_secs_f64()
}

async fn one_in_flight(
    mut stream: TcpStream,
    message: &[u8],
    answer_bytes: usize,
    start: Instant,
    end: Instant,
) -> u64 {
    let mut buffer = vec![0; answer_bytes.min(256 * 1024)];
    let mut counted = 0;
    loop {
        stream
            .write_all(message)
            .await
            .expect("a server that reads");
        let mut missing = answer_bytes;
        while missing > 0 {
            let space = missing.min(buffer.len());
            match stream
                .read(&mut buffer[..space])
                .await
                .expect("a server that answers")
            {
                0 => panic!("the server hung up"),
                count => missing -= count,
            }
        }
        let now = Instant::now();
        if now >= end {
            return counted;
        }
        counted += u64::from(now >= start);
    }
}

/// Keeps `in_flight` messages under way: as many are sent anew as were answered whole.
async fn pipelined(
    stream: TcpStream,
    burst: Arc<Vec<u8>>,
    answer_bytes: usize,
    in_flight: usize,
    start: Instant,
    end: Instant,
) -> u64 {
    let message_bytes = burst.len() / in_flight;
    let (mut reader, mut writer) = stream.into_split();
    let mut buffer = vec![0; 256 * 1024];
    let (mut partial, mut counted) = (0, 0);
    writer.write_all(&burst).await.expect("a server that reads");
    loop {
        match reader
            .read(&mut buffer)
            .await
            .expect("a server that answers")
        {
            0 => panic!("the server hung up"),
            count => partial += count,
        }
        let whole = partial / answer_bytes;
        partial %= answer_bytes;
        let now = Instant::now();
        if now >= end {
            return counted;
        }
        if now >= start {
            counted += whole as u64;
        }
        if whole > 0 {
            let again = &burst[..whole.min(in_flight) * message_bytes];
            writer.write_all(again).await.expect("a server that reads");
        }
    }
}
