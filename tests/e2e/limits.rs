//! What one peer can take from the others: places, memory, time.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    Connect, Device, Gateway, PASSWORD, PATIENCE, Peer, read_answer, upgrade_request,
};

/// Sockets of one client that have not authenticated.
const PLACES: usize = 32;

/// Whether the Gateway closed this connection without a word.
fn was_shut_out(mut stream: TcpStream) -> bool {
    let mut byte = [0];
    matches!(stream.read(&mut byte), Ok(0)) || {
        let error = stream.read(&mut byte).err().map(|error| error.kind());
        error == Some(ErrorKind::ConnectionReset)
    }
}

/// Peak resident memory in KiB, where the system tells it.
fn peak_kib(gateway: &Gateway) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", gateway.pid())).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn w1_a_client_holds_at_most_32_places_before_authentication() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    // The readiness question of the start may still hold a place for a moment, so places are filled until one is refused.
    let mut silent = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while silent.len() < PLACES {
        assert!(Instant::now() < deadline);
        let mut stream = gateway.dial();
        let host = format!("127.0.0.1:{}", gateway.port());
        let upgraded = stream.write_all(&upgrade_request(&host, &[])).is_ok()
            && matches!(read_answer_or_end(&mut stream), Some(101));
        if upgraded {
            silent.push(stream);
        }
    }
    for _ in 0..8 {
        assert!(was_shut_out(gateway.dial()));
    }
    // Who is inside notices nothing, nor does the admin socket.
    assert_eq!(operator.call("health", &json!({})).unwrap()["ok"], true);
    assert!(gateway.cli(&["health"]).status.success());
    // Another client has places of its own.
    let other = TcpStream::connect(("::1", gateway.port()));
    if let Ok(mut other) = other {
        other.set_read_timeout(Some(PATIENCE)).unwrap();
        let host = format!("[::1]:{}", gateway.port());
        other.write_all(&upgrade_request(&host, &[])).unwrap();
        assert_eq!(read_answer(&mut other).unwrap().status, 101);
    }
    // A place is free again when its holder goes.
    silent.clear();
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "places are not given back");
        let mut stream = gateway.dial();
        let host = format!("127.0.0.1:{}", gateway.port());
        let _ = stream.write_all(&upgrade_request(&host, &[]));
        if read_answer_or_end(&mut stream) == Some(101) {
            break;
        }
    }
}

/// The status of an answer; `None` if the connection ended instead.
fn read_answer_or_end(stream: &mut TcpStream) -> Option<u16> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return None,
        }
    }
    std::str::from_utf8(&head).ok()?.get(9..12)?.parse().ok()
}

#[test]
fn w1_an_authenticated_connection_needs_no_place() {
    let gateway = Gateway::start();
    let mut inside: Vec<Peer> = Vec::new();
    for _ in 0..(PLACES + 8) {
        inside.push(Peer::operator(&gateway));
    }
    for peer in &mut inside {
        assert_eq!(peer.call("health", &json!({})).unwrap()["ok"], true);
    }
}

#[test]
fn w1_the_whole_house_is_bounded_and_the_oldest_stranger_gives_way() {
    let gateway = Gateway::start();
    // All of 127/8 is loopback, so one host can be many clients.
    let Ok(first) = from(&gateway, 2) else {
        return;
    };
    let mut crowd = vec![first];
    for client in 2..34_u8 {
        let wanted = if client == 2 { PLACES - 1 } else { PLACES };
        for _ in 0..wanted / 2 {
            crowd.push(from(&gateway, client).unwrap());
        }
        for _ in wanted / 2..wanted {
            let mut slow_head = from(&gateway, client).unwrap();
            slow_head.write_all(b"GET / HTTP/1.1\r\n").unwrap();
            crowd.push(slow_head);
        }
    }
    // Twice as many as there are places: the older half is out, whatever it had said.
    let mut operator = Peer::operator(&gateway);
    assert_eq!(operator.call("health", &json!({})).unwrap()["ok"], true);
    for stream in &mut crowd[..PLACES] {
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let mut byte = [0];
        let read = stream.read(&mut byte);
        let gone = matches!(read, Ok(0))
            || read.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
        assert!(gone, "an old stranger still has its place");
    }
}

/// A connection whose client address is 127.0.0.`client`.
fn from(gateway: &Gateway, client: u8) -> std::io::Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let own = std::net::SocketAddr::from(([127, 0, 0, client], 0));
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    bind(&socket, &own)?;
    connect(&socket, &gateway.address())?;
    Ok(TcpStream::from(socket))
}

/// Puts a long message into the main session, so that its history is a long answer.
fn long_history(peer: &mut Peer) {
    for number in 0..4 {
        let message = "x".repeat(60_000);
        let params = json!({"sessionKey": "main", "message": message, "idempotencyKey": format!("fill-{number}")});
        peer.call("chat.send", &params).unwrap();
        peer.frame(|frame| frame["event"] == "chat" && frame["payload"]["state"] == "final");
    }
}

fn ask_for_history(peer: &mut Peer) {
    peer.send(&json!({"type": "req", "id": "h", "method": "chat.history", "params": {"sessionKey": "main"}}));
}

/// Writes until the Gateway has closed the connection; it must not take for ever.
fn write_until_cut_off(peer: &mut Peer) {
    let deadline = Instant::now() + PATIENCE;
    let ping = [0x89, 0x80, 0, 0, 0, 0];
    let mut stream = peer.stream();
    while stream.write_all(&ping).is_ok() {
        assert!(Instant::now() < deadline, "still connected");
        std::thread::yield_now();
    }
}

#[test]
fn w7_a_slow_reader_is_cut_off_and_memory_stays_bounded() {
    let gateway = Gateway::start();
    let mut slow = Peer::operator(&gateway);
    long_history(&mut slow);
    let mut answer = Value::Null;
    ask_for_history(&mut slow);
    while answer["id"] != "h" {
        answer = slow.frame(|_| true);
    }
    let bytes = answer.to_string().len();
    assert!(bytes > 10_000, "{bytes}");
    // More than the outbox, the codec and the kernel may hold together.
    for _ in 0..(120_000_000 / bytes) {
        ask_for_history(&mut slow);
    }
    write_until_cut_off(&mut slow);
    let mut operator = Peer::operator(&gateway);
    assert_eq!(operator.call("health", &json!({})).unwrap()["ok"], true);
    let peak = peak_kib(&gateway);
    assert!(peak.is_none_or(|peak| peak < 200 * 1024), "{peak:?} KiB");
}

#[test]
fn k1_a_removed_device_that_does_not_read_has_no_say() {
    let gateway = Gateway::start();
    let (device, victim) = (Device::new(), Device::new());
    let (mut deaf, _) = Peer::admitted(&gateway, &Connect::cli(), &device);
    let (_victim, _) = Peer::admitted(&gateway, &Connect::cli(), &victim);
    long_history(&mut deaf);
    // Some MiB that nobody reads: less than what cuts a slow reader off, more than sockets hold.
    for _ in 0..150 {
        ask_for_history(&mut deaf);
    }
    let mut operator = Peer::operator(&gateway);
    operator
        .call("device.pair.remove", &json!({"deviceId": device.id}))
        .unwrap();
    for _ in 0..3 {
        deaf.request(
            "device.pair.rename",
            &json!({"deviceId": victim.id, "label": "mine"}),
        );
    }
    write_until_cut_off(&mut deaf);
    let list = operator.call("device.pair.list", &json!({})).unwrap();
    assert_eq!(list["paired"][0]["deviceId"], victim.id);
    assert_eq!(list["paired"][0].get("label"), None, "{list}");
}

#[test]
fn r8_a_wrong_secret_is_answered_later_each_time() {
    let gateway = Gateway::start();
    for late_ms in [250, 500, 1000] {
        let mut peer = Peer::open(&gateway);
        let asked = Instant::now();
        let error = peer.connect(&Connect::cli().password("wrong")).unwrap_err();
        assert_eq!(error.detail(), "AUTH_PASSWORD_MISMATCH");
        assert!(
            asked.elapsed() >= Duration::from_millis(late_ms),
            "{:?}",
            asked.elapsed()
        );
    }
}

#[test]
fn r8_only_the_sender_of_a_wrong_secret_waits() {
    let gateway = Gateway::start();
    let mut guessers: Vec<Peer> = (0..6).map(|_| Peer::open(&gateway)).collect();
    for guesser in &mut guessers {
        guesser.request("connect", &Connect::cli().password("wrong").params);
    }
    let mut operator = Peer::operator(&gateway);
    let (mut device, _) = Peer::admitted(&gateway, &Connect::cli(), &Device::new());
    assert_eq!(operator.call("health", &json!({})).unwrap()["ok"], true);
    assert_eq!(device.call("health", &json!({})).unwrap()["ok"], true);
    // The guessers can go; what waits for them goes, too.
    for guesser in &guessers {
        guesser.stream().shutdown(Shutdown::Both).unwrap();
    }
    assert_eq!(operator.call("health", &json!({})).unwrap()["ok"], true);
}

#[test]
fn r2_guesses_from_a_page_lock_it_out_and_no_program() {
    let config = "{gateway: {auth: {rateLimit: {maxAttempts: 2}}}}";
    let gateway = crate::support::Setup::default().config(config).start();
    let origin = format!("http://127.0.0.1:{}", gateway.port());
    let page = [("origin", origin.as_str())];
    let mut details = Vec::new();
    for _ in 0..3 {
        let mut peer = Peer::open_with(&gateway, &page).unwrap();
        let error = peer.connect(&Connect::cli().password("wrong")).unwrap_err();
        details.push(error.detail().to_owned());
    }
    assert_eq!(
        details,
        [
            "AUTH_PASSWORD_MISMATCH",
            "AUTH_PASSWORD_MISMATCH",
            "AUTH_RATE_LIMITED"
        ]
    );
    // Not even the right one is compared now.
    let error = Peer::open_with(&gateway, &page)
        .unwrap()
        .connect(&Connect::cli())
        .unwrap_err();
    assert_eq!(error.detail(), "AUTH_RATE_LIMITED");
    assert_eq!(error.0["retryable"], true);
    assert!(error.0["retryAfterMs"].as_u64().unwrap() <= 300_000);
    Peer::operator(&gateway);
}

/// What became of five connects from a page, and then of one with nothing but the right secret.
fn guess_as_a_page(gateway: &Gateway, device: &Device, connect: &Connect) -> (Vec<String>, String) {
    let origin = format!("http://127.0.0.1:{}", gateway.port());
    let attempt = |connect: &Connect| {
        let mut peer = Peer::open_with(gateway, &[("origin", origin.as_str())]).unwrap();
        match peer.connect_as(connect, device) {
            Ok(_) => "admitted".to_owned(),
            Err(error) => error.detail().to_owned(),
        }
    };
    let guesses = (0..5).map(|_| attempt(connect)).collect();
    (guesses, attempt(&Connect::cli().scopes(&["operator.read"])))
}

#[test]
fn r1_a_guess_at_the_secret_is_counted_beside_a_sign_in_link() {
    let config = "{gateway: {auth: {rateLimit: {maxAttempts: 3}}}}";
    let gateway = crate::support::Setup::default().config(config).start();
    let auth = json!({"password": "wrong", "bootstrapToken": "x"});
    let (guesses, right) =
        guess_as_a_page(&gateway, &Device::new(), &Connect::cli().with("auth", auth));
    assert_eq!(guesses[..3], ["AUTH_BOOTSTRAP_TOKEN_INVALID"; 3]);
    assert_eq!(guesses[3..], ["AUTH_RATE_LIMITED"; 2]);
    assert_eq!(right, "AUTH_RATE_LIMITED");
}

#[test]
fn r1_a_paired_devices_guesses_at_the_secret_are_counted_and_it_stays_welcome() {
    let config = "{gateway: {auth: {rateLimit: {maxAttempts: 3}}}}";
    let gateway = crate::support::Setup::default().config(config).start();
    let device = Device::new();
    let read = Connect::cli().scopes(&["operator.read"]);
    let (_peer, hello) = Peer::admitted(&gateway, &read, &device);
    let token = hello["auth"]["deviceToken"].as_str().unwrap();
    let auth = |secret: &str| json!({"token": secret, "deviceToken": token});
    let (guesses, right) = guess_as_a_page(&gateway, &device, &read.with("auth", auth("stale")));
    assert_eq!(guesses, ["admitted"; 5]);
    let log = gateway.stderr();
    let line = log
        .lines()
        .find(|line| line.contains("wrong secret beside"));
    assert!(line.is_some_and(|line| line.contains(&device.id)), "{log}");
    assert!(!log.contains("stale"), "{log}");
    assert_eq!(right, "AUTH_RATE_LIMITED");
    // Of what it may not ask for it learns nothing more about the secret.
    for secret in ["wrong", PASSWORD] {
        let connect = Connect::cli().with("auth", auth(secret));
        let (guesses, _) = guess_as_a_page(&gateway, &device, &connect);
        assert_eq!(guesses, ["AUTH_SCOPE_MISMATCH"; 5]);
    }
}

#[test]
fn r1_missing_secrets_lock_nobody_out() {
    let config = "{gateway: {auth: {rateLimit: {maxAttempts: 2}}}}";
    let gateway = crate::support::Setup::default().config(config).start();
    let origin = format!("http://127.0.0.1:{}", gateway.port());
    let page = [("origin", origin.as_str())];
    for _ in 0..10 {
        let mut peer = Peer::open_with(&gateway, &page).unwrap();
        let error = peer.connect(&Connect::cli().password("")).unwrap_err();
        assert_eq!(error.detail(), "AUTH_PASSWORD_MISSING");
    }
    Peer::open_with(&gateway, &page)
        .unwrap()
        .connect(&Connect::cli())
        .unwrap();
}

#[test]
fn r4_a_limit_of_nothing_does_not_start() {
    for (setting, value) in [
        ("maxAttempts", "0"),
        ("windowMs", "-1"),
        ("lockoutMs", "0.5"),
        ("maxAttempts", "NaN"),
    ] {
        let home = tempfile::TempDir::new().unwrap();
        fs::create_dir(home.path().join("state")).unwrap();
        let config = format!("{{gateway: {{auth: {{rateLimit: {{{setting}: {value}}}}}}}}}");
        fs::write(home.path().join("state/openclaw.json"), config).unwrap();
        let env = [("OPENCLAW_GATEWAY_PASSWORD".to_owned(), PASSWORD.to_owned())];
        let port = crate::support::free_port().to_string();
        let output = crate::support::program(home.path(), &env)
            .args(["gateway", "run", "--port", &port])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(78), "{setting}: {output:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(setting), "{text}");
    }
}
