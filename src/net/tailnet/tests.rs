use std::fs;
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::answer;
use super::stand_in::{Reply, StandIn, in_chunks, node, with_length};
use super::*;

const ALICE: &str = "alice@x.example";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn found(login: &str) -> Whois {
    Whois::Found {
        login: login.to_owned(),
    }
}

fn daemon() -> (StandIn, Tailnet, TempDir) {
    let dir = TempDir::new().unwrap();
    let daemon = StandIn::start(dir.path());
    let tailnet = Tailnet::new(Some(daemon.socket.clone()));
    (daemon, tailnet, dir)
}

#[tokio::test]
async fn t2_whatever_is_no_whole_answer_vouches_for_nobody() {
    let (daemon, tailnet, _dir) = daemon();
    let whole = in_chunks(&node(ALICE, ""));
    let cases = [
        (Reply::User(ALICE), found(ALICE)),
        (Reply::User("bob@x.example"), found("bob@x.example")),
        (Reply::Bytes(with_length(&node(ALICE, ""))), found(ALICE)),
        (Reply::User(""), Whois::Failed),
        (Reply::Tagged, Whois::Tagged),
        (Reply::Status(404), Whois::NotFound),
        (Reply::Status(403), Whois::Failed),
        (Reply::Status(500), Whois::Failed),
        (Reply::Bytes(Vec::new()), Whois::Failed),
        (
            Reply::Bytes(b"\0\xff garbage\r\n\r\n".to_vec()),
            Whois::Failed,
        ),
        (Reply::Bytes(with_length("{}")), Whois::Failed),
        (Reply::Bytes(with_length("null")), Whois::Failed),
        // Half an answer, in every way that it can be cut.
        (Reply::Bytes(whole[..40].to_vec()), Whois::Failed),
        (
            Reply::Bytes(whole[..whole.len() / 2].to_vec()),
            Whois::Failed,
        ),
        (
            Reply::Bytes(whole[..whole.len() - 5].to_vec()),
            Whois::Failed,
        ),
        (Reply::Bytes(vec![b'a'; 1 << 20]), Whois::Failed),
        (
            Reply::Bytes(in_chunks(&node(
                ALICE,
                &format!("\"Name\": \"{}\",", "a".repeat(1 << 20)),
            ))),
            Whois::Failed,
        ),
    ];
    for (at, (reply, expected)) in cases.into_iter().enumerate() {
        let address = format!("100.64.1.{at}");
        daemon.say(&address, reply);
        assert_eq!(tailnet.whois(ip(&address)).await, expected, "case {at}");
    }
    daemon.say("fd7a:115c:a1e0::9", Reply::User(ALICE));
    assert_eq!(tailnet.whois(ip("fd7a:115c:a1e0::9")).await, found(ALICE));
    assert_eq!(tailnet.whois(ip("100.64.9.9")).await, Whois::NotFound);
}

#[tokio::test]
async fn a_daemon_that_does_not_answer_costs_a_bounded_time() {
    let (daemon, tailnet, _dir) = daemon();
    daemon.say("100.64.0.9", Reply::Silence);
    let before = Instant::now();
    assert_eq!(tailnet.whois(ip("100.64.0.9")).await, Whois::Failed);
    assert!(before.elapsed() < limits::TAILNET_TIMEOUT * 2);
    daemon.wait_until_left();
    // Nothing of it is remembered.
    daemon.say("100.64.0.9", Reply::User(ALICE));
    assert_eq!(tailnet.whois(ip("100.64.0.9")).await, found(ALICE));
}

#[tokio::test]
async fn a_login_is_believed_for_seconds_and_a_refusal_not_at_all() {
    let (daemon, mut tailnet, _dir) = daemon();
    let address = ip("100.64.0.9");
    assert_eq!(tailnet.whois(address).await, Whois::NotFound);
    daemon.say("100.64.0.9", Reply::User(ALICE));
    assert_eq!(tailnet.whois(address).await, found(ALICE));
    daemon.say("100.64.0.9", Reply::User("bob@x.example"));
    assert_eq!(tailnet.whois(address).await, found(ALICE));
    assert_eq!(daemon.asked_about("100.64.0.9"), 2);
    // As if the time had passed.
    let all = tailnet.asked.get_mut().unwrap();
    all.get_mut(&address).unwrap().at -= limits::TAILNET_ANSWER_AGE;
    assert_eq!(tailnet.whois(address).await, found("bob@x.example"));
}

#[tokio::test]
async fn who_asks_meanwhile_waits_for_the_same_answer() {
    let (daemon, tailnet, _dir) = daemon();
    let tailnet = Arc::new(tailnet);
    let address = ip("100.64.0.9");
    daemon.say("100.64.0.9", Reply::Silence);
    let ask = || {
        let tailnet = Arc::clone(&tailnet);
        tokio::spawn(async move { tailnet.whois(address).await })
    };
    let asking: Vec<_> = (0..20).map(|_| ask()).collect();
    for answer in asking {
        assert_eq!(answer.await.unwrap(), Whois::Failed);
    }
    assert_eq!(daemon.asked_about("100.64.0.9"), 1);
    // One who leaves does not take the answer away from the others.
    let first = ask();
    tokio::task::yield_now().await;
    let second = ask();
    let waited = tokio::task::spawn_blocking(move || {
        daemon.wait_until_asked("100.64.0.9", 2);
        daemon
    });
    let daemon = waited.await.unwrap();
    daemon.say("100.64.0.9", Reply::User(ALICE));
    first.abort();
    assert_eq!(second.await.unwrap(), found(ALICE));
}

#[tokio::test]
async fn what_is_remembered_is_bounded() {
    let (daemon, tailnet, _dir) = daemon();
    let first = u32::from(std::net::Ipv4Addr::new(100, 64, 0, 0));
    let many = u32::try_from(limits::TAILNET_ANSWERS_MAX).unwrap() + 20;
    for n in 0..many {
        tailnet.remembered(IpAddr::V4((first + n).into()));
    }
    assert_eq!(tailnet.asked().len(), limits::TAILNET_ANSWERS_MAX);
    daemon.say("100.64.0.0", Reply::User(ALICE));
    assert_eq!(tailnet.whois(ip("100.64.0.0")).await, found(ALICE));
}

#[tokio::test]
async fn the_name_of_this_host_and_an_absent_daemon() {
    let (daemon, tailnet, dir) = daemon();
    assert!(matches!(
        tailnet.name().await,
        Err(TailnetError::Status(404))
    ));
    daemon.call_itself("gw.tail1234.ts.net.");
    assert_eq!(
        tailnet.name().await.unwrap().to_string(),
        "gw.tail1234.ts.net"
    );
    daemon.call_itself("");
    assert!(matches!(tailnet.name().await, Err(TailnetError::Malformed)));
    daemon.call_itself("100.64.0.1");
    assert!(matches!(tailnet.name().await, Err(TailnetError::Malformed)));
    drop(daemon);
    assert!(matches!(tailnet.name().await, Err(TailnetError::Absent(_))));
    assert_eq!(tailnet.whois(ip("100.64.0.9")).await, Whois::Failed);
    // A file that nobody listens at.
    fs::write(dir.path().join("tailscaled.sock"), "").unwrap();
    assert!(matches!(tailnet.name().await, Err(TailnetError::Socket(_))));
}

/// The command in place of a socket, as on a host whose daemon has none.
fn command(dir: &TempDir, script: &str, mode: u32) -> Tailnet {
    let program = dir.path().join("tailscale");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(mode)).unwrap();
    Tailnet {
        programs: vec!["/nowhere/tailscale".into(), program],
        ..Tailnet::new(Some(dir.path().join("no-socket")))
    }
}

#[tokio::test]
async fn the_command_answers_where_there_is_no_socket() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("answer"), node(ALICE, "")).unwrap();
    let answers = format!(
        "[ \"$*\" = 'whois --json 100.64.0.9' ] && [ -z \"$HOME$CARGO\" ] && /bin/cat '{}/answer'",
        dir.path().display()
    );
    let address = ip("100.64.0.9");
    assert_eq!(
        command(&dir, &answers, 0o755).whois(address).await,
        found(ALICE)
    );
    assert_eq!(
        command(&dir, &answers, 0o755).whois(ip("100.64.0.8")).await,
        Whois::Failed
    );
    // Others could have written it, or it is not to be run.
    for mode in [0o775, 0o757, 0o644] {
        assert_eq!(
            command(&dir, &answers, mode).whois(address).await,
            Whois::Failed
        );
    }
    for script in [
        format!("{answers}; exit 1"),
        "echo '{'".to_owned(),
        "exec /bin/cat /dev/zero".to_owned(),
        "kill -9 $$".to_owned(),
    ] {
        let tailnet = command(&dir, &script, 0o755);
        assert_eq!(tailnet.whois(address).await, Whois::Failed, "{script}");
    }
}

#[tokio::test]
async fn a_command_that_hangs_is_killed() {
    let dir = TempDir::new().unwrap();
    let pid = dir.path().join("pid");
    let script = format!("echo $$ > '{}'; exec /bin/sleep 600", pid.display());
    let tailnet = command(&dir, &script, 0o755);
    assert_eq!(tailnet.whois(ip("100.64.0.9")).await, Whois::Failed);
    let pid = fs::read_to_string(pid).unwrap();
    let gone = async {
        // Once it is reaped, or a zombie that waits for it, it runs no more.
        while fs::read_to_string(format!("/proc/{}/cmdline", pid.trim()))
            .is_ok_and(|it| !it.is_empty())
        {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    timeout(std::time::Duration::from_secs(20), gone)
        .await
        .unwrap();
}

#[test]
fn only_root_and_this_user_may_be_the_daemon() {
    assert!(is_own(0) && is_own(rustix::process::geteuid().as_raw()));
    assert!(!is_own(65_534) || rustix::process::geteuid().as_raw() == 65_534);
}

#[test]
fn an_answer_ends_where_it_says() {
    let http = |head: &str, body: &str| {
        answer::http(format!("HTTP/1.1 200 OK\r\n{head}\r\n{body}").as_bytes())
    };
    let body = |text: &str| Some((200, text.as_bytes().to_vec()));
    assert_eq!(http("Content-Length: 2\r\n", "{}"), body("{}"));
    assert_eq!(
        http(
            "transfer-encoding: Chunked\r\n",
            "1\r\n{\r\n1;x=y\r\n}\r\n0\r\n\r\n"
        ),
        body("{}")
    );
    for (head, rest) in [
        ("", "{}"),
        ("Content-Length: 3\r\n", "{}"),
        ("Content-Length: 1\r\n", "{}"),
        ("Content-Length: +2\r\n", "{}"),
        ("Content-Length: \r\n", "{}"),
        ("Content-Length: 99999999999999999999\r\n", "{}"),
        ("Content-Length: 2\r\nContent-Length: 2\r\n", "{}"),
        (
            "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
            "2\r\n{}\r\n0\r\n\r\n",
        ),
        (
            "Transfer-Encoding: gzip, chunked\r\n",
            "2\r\n{}\r\n0\r\n\r\n",
        ),
        ("Transfer-Encoding: chunked\r\n", "2\r\n{}\r\n"),
        ("Transfer-Encoding: chunked\r\n", "2\r\n{}\r\n0\r\n"),
        ("Transfer-Encoding: chunked\r\n", "2\r\n{}0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "2\r\n{}\r\n0\r\n\r\nmore"),
        (
            "Transfer-Encoding: chunked\r\n",
            "ffffffffffffffff\r\n{}\r\n0\r\n\r\n",
        ),
        ("Transfer-Encoding: chunked\r\n", "-1\r\n{}\r\n0\r\n\r\n"),
    ] {
        assert_eq!(http(head, rest), None, "{head}{rest}");
    }
}

#[test]
fn a_login_is_what_stands_at_its_place_and_nowhere_else() {
    let whois = |text: &str| answer::whois(text.as_bytes());
    assert_eq!(
        whois(r#"{"Node":{},"UserProfile":{"LoginName":"a@x"}}"#),
        Some(found("a@x"))
    );
    assert_eq!(
        whois(r#"{"Node":{"Tags":null},"UserProfile":{"LoginName":"a@x"}}"#),
        Some(found("a@x"))
    );
    assert_eq!(
        whois(r#"{"Node":{"Tags":[]},"UserProfile":{"LoginName":"a\u0040x"}}"#),
        Some(found("a@x"))
    );
    assert_eq!(
        whois(r#"{"Node":{"Tags":["tag:a"]},"UserProfile":{"LoginName":"a@x"}}"#),
        Some(Whois::Tagged)
    );
    let long = format!(
        r#"{{"Node":{{}},"UserProfile":{{"LoginName":"{}"}}}}"#,
        "a".repeat(5000)
    );
    for bad in [
        r#"{"Node":null,"UserProfile":{"LoginName":"a@x"}}"#,
        r#"{"UserProfile":{"LoginName":"a@x"}}"#,
        r#"{"Node":{}}"#,
        r#"{"Node":{},"UserProfile":null}"#,
        r#"{"Node":{},"UserProfile":{}}"#,
        r#"{"Node":{},"UserProfile":{"LoginName":null}}"#,
        r#"{"Node":{},"UserProfile":{"LoginName":["a@x"]}}"#,
        r#"{"Node":{},"UserProfile":{"loginName":"a@x"}}"#,
        r#"{"Node":{},"LoginName":"a@x"}"#,
        r#"{"Node":{},"UserProfile":{"LoginName":"a@x","LoginName":"b@x"}}"#,
        r#"{"Node":{},"UserProfile":{"LoginName":"a@x","\u004coginName":"b@x"}}"#,
        r#"{"Node":{},"UserProfile":{"LoginName":"a@x"},"UserProfile":{"LoginName":"b@x"}}"#,
        r#"{"Node":{"Tags":"tag:a"},"UserProfile":{"LoginName":"a@x"}}"#,
        r#"{"Node":{},"UserProfile":{"LoginName":"a@x"}} {}"#,
        r#"{"Node":{},"UserProfile":{"LoginName":"\ud800"}}"#,
        &long,
    ] {
        assert_eq!(whois(bad), None, "{bad}");
    }
    assert_eq!(answer::whois(b"\xff"), None);
}
