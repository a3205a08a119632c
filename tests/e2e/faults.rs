//! What holds when something breaks: processes are killed, links fall silent, disks fill up, everybody comes back at once.
//!
//! The commands append to a file, so that what really ran is counted where it ran.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::nodes::Node;
use crate::run::{Lab, Leash, NodeHost};
use crate::support::{Connect, Device, Gateway, PASSWORD, PATIENCE, Peer, Setup, WireError};

const FULL: &str = "{tools: {exec: {mode: 'full'}}}";

fn full_home() -> TempDir {
    let home = TempDir::new().unwrap();
    fs::create_dir(home.path().join("state")).unwrap();
    fs::write(home.path().join("state/openclaw.json"), FULL).unwrap();
    home
}

/// A Gateway and a node host, both of which run what an operator may write.
fn full_lab() -> (Lab, String) {
    let gateway = Setup::default().config(FULL).start();
    let node = NodeHost::start(full_home(), gateway.port(), Some(PASSWORD));
    let lab = Lab::approved(gateway, node);
    let id = node_id(&lab.gateway);
    (lab, id)
}

fn node_id(gateway: &Gateway) -> String {
    let list = Peer::operator(gateway)
        .call("node.list", &json!({}))
        .unwrap();
    list["nodes"][0]["nodeId"].as_str().unwrap().to_owned()
}

fn run(operator: &mut Peer, node: &str, key: &str, script: &str, timeout_ms: u64) -> String {
    let params = json!({"command": ["/bin/sh", "-c", script]});
    operator.request(
        "node.invoke",
        &json!({
            "nodeId": node, "command": "system.run", "params": params,
            "timeoutMs": timeout_ms, "idempotencyKey": key,
        }),
    )
}

fn node_error(error: &WireError) -> &str {
    error.0["details"]["nodeError"]["code"]
        .as_str()
        .unwrap_or_default()
}

fn times_run(file: &Path, key: &str) -> usize {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().filter(|line| *line == key).count()
}

/// Asks a Gateway until it says so, or fails.
fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn audit_is_whole(gateway: &Gateway) {
    let output = gateway.cli(&["audit", "verify"]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_node_that_could_not_be_entered_is_not_there() {
    let mut gateway = Gateway::start();
    let connect = Connect::node().with("commands", json!(["system.which"]));
    let device = Device::new();
    let plain = Connect::node().with("commands", json!([]));
    Peer::admitted(&gateway, &plain, &device).0.leave();
    gateway.terminate();
    let files = fs::read_dir(gateway.state_dir()).unwrap();
    let database = files
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            path.extension()
                .is_some_and(|it| it == "sqlite" || it == "db")
        })
        .unwrap();
    rusqlite::Connection::open(database)
        .unwrap()
        .execute_batch(
            "CREATE TRIGGER full BEFORE INSERT ON documents WHEN NEW.kind = 'surface-request'
             BEGIN SELECT RAISE(ABORT, 'full'); END;",
        )
        .unwrap();
    gateway.restart();
    let mut peer = Peer::open(&gateway);
    peer.connect_as(&connect, &device).unwrap_err();
    let list = Peer::operator(&gateway)
        .call("device.pair.list", &json!({}))
        .unwrap();
    assert_eq!(list["paired"][0]["deviceId"], device.id);
    assert_eq!(list["paired"][0]["connected"], false, "{list}");
}

/// The stages of an invoke: not sent, sent, running, its result on the way, answered.
#[test]
fn a_gateway_killed_at_any_stage_runs_nothing_twice_and_loses_no_result() {
    let (mut lab, node) = full_lab();
    let file = lab.path("ran");
    for (round, delay_ms) in [0, 4, 20, 120].into_iter().enumerate() {
        let key = format!("k{round}");
        let script = format!("echo {key} >> {}; sleep 0.04; echo out", file.display());
        let mut operator = Peer::operator(&lab.gateway);
        run(&mut operator, &node, &key, &script, 30_000);
        thread::sleep(Duration::from_millis(delay_ms));
        lab.gateway.kill();
        lab.gateway.restart();
        audit_is_whole(&lab.gateway);
        lab.node.process.line("connected to");
        let mut operator = Peer::operator(&lab.gateway);
        until("the node has delivered what it has", || {
            let id = run(&mut operator, &node, &key, &script, 30_000);
            match operator.answer(&id) {
                Ok(answer) => {
                    assert_eq!(answer["payload"]["stdout"], "out\n");
                    assert_eq!(times_run(&file, &key), 1, "{key}");
                    Some(())
                }
                Err(error) => {
                    assert_eq!(node_error(&error), "INTERRUPTED", "{error:?}");
                    assert_eq!(error.0["details"]["dispatched"], "unknown");
                    // It was noted, but never left.
                    (times_run(&file, &key) == 0).then_some(())
                }
            }
        });
        assert!(times_run(&file, &key) <= 1, "{key}");
    }
    audit_is_whole(&lab.gateway);
}

#[test]
fn a_killed_node_leaves_its_command_unknown_and_it_is_not_run_again() {
    let (lab, node) = full_lab();
    let file = lab.path("ran");
    let script = format!("echo k >> {}; exec sleep 2", file.display());
    let mut operator = Peer::operator(&lab.gateway);
    let id = run(&mut operator, &node, "k", &script, 30_000);
    until("it runs", || (times_run(&file, "k") == 1).then_some(()));
    let Lab {
        gateway,
        node: host,
    } = lab;
    host.process.signal(Signal::KILL);
    let error = operator.answer(&id).unwrap_err();
    assert_eq!(node_error(&error), "DISCONNECTED");
    assert_eq!(error.0["details"]["dispatched"], "unknown");
    let NodeHost { home, process } = host;
    drop(process);
    let host = NodeHost::start(home, gateway.port(), None);
    let id = run(&mut operator, &node, "k", &script, 30_000);
    // What is on record has no times.
    let mut kept = error;
    kept.0["details"].as_object_mut().unwrap().remove("timing");
    assert_eq!(operator.answer(&id).unwrap_err(), kept);
    // The node serves, under another key.
    let id = run(&mut operator, &node, "other", "echo hi", 30_000);
    assert_eq!(operator.answer(&id).unwrap()["payload"]["stdout"], "hi\n");
    assert_eq!(times_run(&file, "k"), 1);
    drop(host);
    audit_is_whole(&gateway);
}

/// A TCP relay that can fall silent without closing anything.
struct Link {
    port: u16,
    is_silent: Arc<AtomicBool>,
}

impl Link {
    fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let link = Self {
            port: listener.local_addr().unwrap().port(),
            is_silent: Arc::default(),
        };
        let is_silent = Arc::clone(&link.is_silent);
        thread::spawn(move || {
            for near in listener.incoming() {
                let near = near.unwrap();
                let Ok(far) = TcpStream::connect(("127.0.0.1", port)) else {
                    continue;
                };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let is_silent = Arc::clone(&is_silent);
                    thread::spawn(move || {
                        let mut buffer = [0; 4096];
                        while let Ok(count @ 1..) = from.read(&mut buffer) {
                            // What arrives now is gone, as on a cable that was cut.
                            if !is_silent.load(Ordering::SeqCst)
                                && to.write_all(&buffer[..count]).is_err()
                            {
                                break;
                            }
                        }
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        link
    }

    fn fall_silent(&self) {
        self.is_silent.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_silent_link_holds_up_nobody_beyond_the_deadline_and_the_node_ends_the_command_by_itself() {
    let gateway = Setup::default().config(FULL).start();
    let link = Link::to(gateway.port());
    let host = NodeHost::start(full_home(), link.port, Some(PASSWORD));
    let lab = Lab::approved(gateway, host);
    let node = node_id(&lab.gateway);
    let leash = Leash::new(lab.path("leash"));
    let script = format!("{}; sleep 600", leash.take());
    let mut operator = Peer::operator(&lab.gateway);
    let id = run(&mut operator, &node, "k", &script, 4000);
    leash.wait_until_held();
    link.fall_silent();
    let error = operator.answer(&id).unwrap_err();
    assert_eq!(error.message(), "TIMEOUT: node invoke timed out");
    assert_eq!(error.0["details"]["dispatched"], "yes");
    // The cancel does not reach it; it was told the time.
    leash.wait_until_free();
    audit_is_whole(&lab.gateway);
}

/// The machine's clock is not ours to set, so the Gateway alone sees another: a library that stands in for it is loaded
/// before the system's.
#[test]
fn a_clock_that_is_set_amid_a_command_ends_nothing_and_runs_nothing_twice() {
    let lib = TempDir::new().unwrap();
    let (shim, step) = (lib.path().join("clock.so"), lib.path().join("step"));
    let source = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/e2e/support/clock_step.c"
    );
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&shim)
        .args([source, "-ldl"])
        .status();
    assert!(built.unwrap().success());
    let set = |seconds: i64| fs::write(&step, seconds.to_string()).unwrap();
    set(0);
    let gateway = Setup::default()
        .config(FULL)
        .env("LD_PRELOAD", shim.to_str().unwrap())
        .env("CLOCK_STEP", step.to_str().unwrap())
        .start();
    let host = NodeHost::start(full_home(), gateway.port(), Some(PASSWORD));
    let lab = Lab::approved(gateway, host);
    let node = node_id(&lab.gateway);
    let file = lab.path("ran");
    let mut operator = Peer::operator(&lab.gateway);
    const HOUR_S: i64 = 3600;
    for (key, seconds) in [("ahead", 30 * HOUR_S), ("back", -30 * HOUR_S)] {
        let script = format!("sleep 1; echo {key} >> {}", file.display());
        let id = run(&mut operator, &node, key, &script, 10_000);
        operator.call("health", &json!({})).unwrap();
        let before = operator.call("node.list", &json!({})).unwrap();
        set(seconds);
        let after = operator.call("node.list", &json!({})).unwrap();
        let ts = |list: &Value| list["ts"].as_i64().unwrap();
        let moved_s = (ts(&after) - ts(&before)) / 1000;
        assert!(
            (moved_s - seconds).abs() < 10,
            "the clock was not set: {moved_s}"
        );
        let answer = operator.answer(&id).unwrap();
        let total_ms = answer["timing"]["totalMs"].as_u64().unwrap();
        assert!((1000..10_000).contains(&total_ms), "{answer}");
        assert_eq!(after["nodes"][0]["connected"], true);
        let id = run(&mut operator, &node, key, &script, 10_000);
        assert_eq!(operator.answer(&id).unwrap()["payload"], answer["payload"]);
        assert_eq!(times_run(&file, key), 1);
        audit_is_whole(&lab.gateway);
        set(0);
    }
}

#[test]
fn a_caller_that_leaves_ends_the_whole_process_tree() {
    let (lab, node) = full_lab();
    let leash = Leash::new(lab.path("leash"));
    let script = format!("{}; sleep 600 & sleep 600", leash.take());
    let mut operator = Peer::operator(&lab.gateway);
    run(&mut operator, &node, "k", &script, 600_000);
    leash.wait_until_held();
    operator.leave();
    leash.wait_until_free();
}

/// A small file system for the state, where the host lets us make one; else nothing is shown here, and the audit log's
/// own test stands in with a limit on file sizes.
fn small_disk() -> Option<Setup> {
    let may = Command::new("unshare").args(["-Urm", "true"]).output();
    if !may.is_ok_and(|output| output.status.success()) {
        eprintln!("no user and mount namespaces here: left out");
        return None;
    }
    let mount = "d=\"$OPENCLAW_STATE_DIR/portcullis\"; mkdir -p \"$d\" && \
                 mount -t tmpfs -o size=12m,mode=700 tmpfs \"$d\" && exec \"$@\"";
    Some(Setup::default().wrapper(&["unshare", "-Urm", "/bin/sh", "-c", mount, "sh"]))
}

#[test]
fn a_full_disk_stops_dispatch_and_pairing_and_both_go_on_by_themselves() {
    let Some(setup) = small_disk() else { return };
    let gateway = setup.start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &["system.which"]);
    node.serves(&mut operator, "system.which");
    let disk = format!(
        "/proc/{}/root{}",
        gateway.pid(),
        gateway.state_dir().display()
    );
    let filler = format!("{disk}/filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    while file.write_all(&[0]).is_ok() {}

    let mut served = 0;
    let refused = until("the disk is full", || {
        // The node does not answer these; one that was sent ends at its deadline.
        let id = node.ask_within(&mut operator, "system.which", &json!({}), 50);
        let error = operator.answer(&id).unwrap_err();
        if error.0["details"]["dispatched"] == "yes" {
            served += 1;
            return None;
        }
        Some(error)
    });
    assert_eq!(refused.code(), "UNAVAILABLE");
    assert_eq!(refused.detail(), "AUDIT_UNAVAILABLE");
    assert_eq!(refused.0["retryable"], true);
    assert_eq!(refused.0["details"]["dispatched"], "no");
    assert_eq!(refused.0["details"]["category"], "network");
    for _ in 0..served {
        node.taken();
    }
    node.heard_nothing();
    // Nobody new is paired, and the refusal says that it passes.
    let stranger = Device::new();
    let error = Peer::open(&gateway)
        .connect_as(&Connect::cli(), &stranger)
        .unwrap_err();
    assert_eq!(error.code(), "UNAVAILABLE", "{error:?}");
    // Who is here is answered; a message that could not be written down is not accepted, and says so.
    operator.call("health", &json!({})).unwrap();
    let history = json!({"sessionKey": "main"});
    operator.call("chat.history", &history).unwrap();
    let message =
        |key: &str| json!({"sessionKey": "main", "message": "/help", "idempotencyKey": key});
    let error = operator.call("chat.send", &message("full")).unwrap_err();
    assert_eq!(
        (error.code(), &error.0["retryable"]),
        ("UNAVAILABLE", &json!(true))
    );

    fs::remove_file(&filler).unwrap();
    drop(file);
    node.serves(&mut operator, "system.which");
    Peer::admitted(&gateway, &Connect::cli(), &stranger);
    // Nothing of it was kept: the same again is new, and stands there once.
    operator.call("chat.send", &message("full")).unwrap();
    let kept = operator.call("chat.history", &history).unwrap();
    let messages = kept["messages"].as_array().unwrap();
    let said = messages.iter().filter(|it| it["role"] == "user");
    assert_eq!(said.count(), 1, "{kept}");
    let output = gateway.cli(&["audit", "verify", "--dir", &format!("{disk}/audit")]);
    assert!(output.status.success(), "{output:?}");
}

/// How many come at once; `.ci/soak` asks for more.
fn crowd() -> usize {
    let many = std::env::var("PORTCULLIS_SOAK_CONNECTS").ok();
    many.map_or(200, |many| many.parse().unwrap())
}

/// Resident memory, in KiB.
fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.unwrap().split_ascii_whitespace().nth(1);
    number.unwrap().parse().unwrap()
}

/// Everybody connects, all hold their connection, and all leave, half of them without a word.
fn storm(gateway: &Gateway, devices: &[Device], times: usize) {
    let (share, port) = (times.div_ceil(16), gateway.port());
    thread::scope(|scope| {
        for thread in 0..16 {
            scope.spawn(move || {
                let mut peers = Vec::new();
                for index in (thread * share..times).take(share) {
                    let device = &devices[index % devices.len()];
                    let connect = Connect::node();
                    let mut peer = Peer::open_at(port, &[]).unwrap();
                    peer.connect_as(&connect, device).unwrap();
                    peers.push(peer);
                }
                for (index, peer) in peers.into_iter().enumerate() {
                    if index % 2 == 0 {
                        peer.leave();
                    }
                }
            });
        }
    });
}

fn connected(operator: &mut Peer) -> usize {
    let list = operator.call("node.list", &json!({})).unwrap();
    let nodes = list["nodes"].as_array().unwrap();
    nodes
        .iter()
        .filter(|node| node["connected"] == true)
        .count()
}

#[test]
fn n9_many_reconnects_at_once_leave_one_session_a_device_and_no_memory_behind() {
    let gateway = Gateway::start();
    // Operators come and go in between: one that reads nothing meanwhile would have everybody's presence queued for it.
    let only_are_left = |count: usize| {
        let mut operator = Peer::operator(&gateway);
        until("the others have gone", || {
            (connected(&mut operator) == count).then_some(())
        });
    };
    let many: Vec<Device> = (0..crowd()).map(|_| Device::new()).collect();
    let one = [Device::new()];
    // The first time pairs them all, and fills the allocator's pools.
    storm(&gateway, &many, many.len());
    storm(&gateway, &one, many.len());
    only_are_left(0);
    // Pairing a thousand takes longer than a peer that answers no ping may be silent, so this one comes after.
    let mut node = Node::approved(&gateway, &mut Peer::operator(&gateway), &["system.which"]);
    let before = resident_kib(gateway.pid());
    for _ in 0..2 {
        storm(&gateway, &many, many.len());
        storm(&gateway, &one, many.len());
        // The one that stayed is served all along.
        node.serves(&mut Peer::operator(&gateway), "system.which");
    }
    only_are_left(1);
    let after = resident_kib(gateway.pid());
    println!("{before} KiB, then {after} KiB");
    // Under 1 MiB when measured; the rest is for other allocators.
    let margin = 8 * 1024;
    assert!(after <= before + margin, "{before} KiB grew to {after} KiB");
    let mut operator = Peer::operator(&gateway);
    let list: Value = operator.call("node.list", &json!({})).unwrap();
    assert_eq!(list["nodes"].as_array().unwrap().len(), many.len() + 2);
    audit_is_whole(&gateway);
}
