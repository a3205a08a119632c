//! What starting, idling and connecting cost.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::peer::{Device, Peer};
use super::process::{Gateway, process_time};
use super::{median, runtime, verdict};
use portcullis::auth::scope::Role;

const MIB: f64 = 1024.0 * 1024.0;
/// Connects under way at once; one client may have 32 that have not authenticated.
const AT_ONCE: usize = 16;
const SESSIONS_MAX: usize = 10_000;
/// At most 4,096 devices may be paired.
const NODES_MAX: usize = 4_000;
/// Descriptors of the load that are not sessions.
const SPARE_DESCRIPTORS: usize = 200;
const CONNECTS: usize = 2_000;

pub(crate) fn start(rounds: usize, label: &str, mut state: TempDir) {
    let processes = median((0..rounds).map(|_| process_time().as_secs_f64() * 1e3));
    let mut times = Vec::new();
    for _ in 0..rounds {
        let gateway = Gateway::start_on(state);
        times.push(gateway.started_in.as_secs_f64() * 1e3);
        state = gateway.stop();
    }
    let started = median(times.into_iter());
    println!(
        "{:<44} {started:>9.1} ms, a process that only prints its version {processes:.1} ms {}",
        format!("start to /healthz, {label}"),
        verdict(started, Some(20.0)),
    );
}

pub(crate) fn idle() {
    let gateway = Gateway::start();
    std::thread::sleep(Duration::from_secs(1));
    let idle = gateway.resident_bytes() as f64 / MIB;
    println!(
        "{:<44} {idle:>9.2} MiB {}",
        "resident, idle",
        verdict(idle, Some(10.0))
    );
}

/// Resident memory of a session of each kind; returns the state of the one with many nodes.
pub(crate) fn memory(role: Role, budget_kib: f64) -> (TempDir, usize) {
    let free = descriptors().saturating_sub(SPARE_DESCRIPTORS);
    let count = match role {
        Role::Operator => SESSIONS_MAX,
        Role::Node => NODES_MAX,
    }
    .min(free);
    let load = runtime();
    let gateway = Gateway::start();
    let port = gateway.port;
    let devices: Vec<Option<Arc<Device>>> = (0..count)
        .map(|_| (role == Role::Node).then(|| Arc::new(Device::new())))
        .collect();
    let before = gateway.resident_bytes();
    let sessions = load.block_on(connect_all(port, role, &devices));
    // The last answers and timers of the handshakes.
    std::thread::sleep(Duration::from_secs(2));
    let each = (gateway.resident_bytes() - before) as f64 / count as f64 / 1024.0;
    println!(
        "{:<44} {each:>9.2} KiB {}",
        format!(
            "resident, per idle {role}, of {count}",
            role = role.as_str()
        ),
        verdict(each, Some(budget_kib)),
    );
    drop(sessions);
    (gateway.stop(), count)
}

pub(crate) fn connects() {
    let load = runtime();
    let gateway = Gateway::start();
    let port = gateway.port;
    let raw = start_raw();
    let began = Instant::now();
    load.block_on(raw_connects(raw));
    let raw = CONNECTS as f64 / began.elapsed().as_secs_f64();
    let strangers: Vec<_> = (0..CONNECTS).map(|_| None).collect();
    let device = Arc::new(Device::new());
    let paired: Vec<_> = (0..CONNECTS).map(|_| Some(Arc::clone(&device))).collect();
    let _paired = load.block_on(Peer::connect(port, Role::Operator, Some(&device)));
    for (name, devices, reference) in [
        ("shared secret", &strangers, 505),
        ("device signature, paired operator", &paired, 100),
    ] {
        let began = Instant::now();
        let sessions = load.block_on(connect_all(port, Role::Operator, devices));
        let rate = CONNECTS as f64 / began.elapsed().as_secs_f64();
        println!(
            "{:<44} {rate:>9.0} /s, bare TCP connect and one byte {raw:.0} /s, the reference {reference} /s",
            format!("connects, {name}"),
        );
        drop(sessions);
    }
}

async fn connect_all(port: u16, role: Role, devices: &[Option<Arc<Device>>]) -> Vec<Peer> {
    let chunk = devices.len().div_ceil(AT_ONCE).max(1);
    let tasks: Vec<_> = devices
        .chunks(chunk)
        .map(|devices| {
            let devices = devices.to_vec();
            tokio::spawn(async move {
                let mut peers = Vec::with_capacity(devices.len());
                for device in devices {
                    peers.push(Peer::connect(port, role, device.as_deref()).await);
                }
                peers
            })
        })
        .collect();
    let mut peers = Vec::new();
    for task in tasks {
        peers.extend(task.await.expect("a load task"));
    }
    peers
}

fn start_raw() -> SocketAddr {
    let server = runtime();
    let (listener, address) = server.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a port");
        let address = listener.local_addr().expect("its address");
        (listener, address)
    });
    std::thread::spawn(move || {
        server.block_on(async {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut byte = [0];
                    let _ = stream.read_exact(&mut byte).await;
                    let _ = stream.write_all(&byte).await;
                });
            }
        });
    });
    address
}

async fn raw_connects(address: SocketAddr) {
    let tasks: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            tokio::spawn(async move {
                for _ in 0..CONNECTS / AT_ONCE {
                    let mut stream = TcpStream::connect(address).await.expect("the server");
                    stream.write_all(&[1]).await.expect("the server");
                    stream.read_exact(&mut [0]).await.expect("the server");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("a load task");
    }
}

/// How many descriptors this process and those that it starts may have; raised as far as it may be.
pub(crate) fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let _ = setrlimit(Resource::Nofile, raised);
}

fn descriptors() -> usize {
    use rustix::process::{Resource, getrlimit};
    let current = getrlimit(Resource::Nofile).current;
    current.map_or(SESSIONS_MAX * 2, |current| {
        usize::try_from(current).unwrap_or(usize::MAX)
    })
}
