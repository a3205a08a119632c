use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use super::*;
use crate::audit::chain::LineError;
use crate::audit::verify::{Broken, for_each, verify};

const SMALL: u64 = 2048;

fn small() -> Settings {
    Settings {
        file_bytes_max: SMALL,
        sync_always: false,
    }
}

fn event(reason: &str) -> Event {
    Event::Stopped {
        reason: reason.into(),
    }
}

fn temporary() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let audit = dir.path().join("audit");
    (dir, audit)
}

fn filled(dir: &Path, count: usize) {
    let log = AuditLog::open(dir, small()).unwrap();
    for index in 0..count {
        log.append(&event(&format!("event {index}")), Durability::Grouped)
            .unwrap();
    }
}

fn last(log: &AuditLog) -> Link {
    log.shared.lock().link
}

fn lines(path: &Path) -> Vec<Vec<u8>> {
    let bytes = fs::read(path).unwrap();
    bytes
        .split_inclusive(|&b| b == b'\n')
        .map(<[u8]>::to_vec)
        .collect()
}

fn reasons(dir: &Path) -> Vec<String> {
    let mut reasons = Vec::new();
    for_each(dir, |record| {
        let event: serde_json::Value = serde_json::from_str(record.event.get()).unwrap();
        if event["kind"] == "gateway.stopped" {
            reasons.push(event["reason"].as_str().unwrap().to_owned());
        }
    })
    .unwrap();
    reasons
}

#[test]
fn records_are_whole_across_rotations_and_restarts() {
    let (_guard, dir) = temporary();
    filled(&dir, 30);
    filled(&dir, 30);
    let verified = verify(&dir).unwrap();
    assert!(verified.files > 3, "{verified:?}");
    assert_eq!(verified.records, 60 + u64::from(verified.files));
    assert_eq!((verified.torn, verified.shortened), (0, 0));
    assert_eq!(reasons(&dir).len(), 60);
    for number in 1..=verified.files {
        let bytes = fs::metadata(file_path(&dir, number)).unwrap().len();
        assert!(bytes <= SMALL, "file {number} has {bytes} bytes");
    }
}

#[test]
fn records_follow_each_other() {
    let (_guard, dir) = temporary();
    let log = AuditLog::open(&dir, Settings::default()).unwrap();
    log.append(&event("a"), Durability::Grouped).unwrap();
    assert_eq!(last(&log).seq, 2);
    log.append(&event("b"), Durability::Synced).unwrap();
    let second = last(&log);
    assert_eq!(second.seq, 3);
    assert!(!log.shared.lock().sync_failed);
    drop(log);
    assert_eq!(verify(&dir).unwrap().last, second);
}

#[test]
fn every_tampering_is_found() {
    let (_guard, dir) = temporary();
    filled(&dir, 30);
    let files = verify(&dir).unwrap().files;
    for number in 1..=files {
        let path = file_path(&dir, number);
        let good = fs::read(&path).unwrap();
        let split = lines(&path);
        for index in 0..split.len() {
            let mut tamperings = Vec::new();
            let mut changed = split.clone();
            let middle = changed[index].len() / 2;
            changed[index][middle] ^= 1;
            tamperings.push(("changed", changed));
            let mut removed = split.clone();
            removed.remove(index);
            tamperings.push(("removed", removed));
            let mut doubled = split.clone();
            doubled.insert(index, split[index].clone());
            tamperings.push(("doubled", doubled));
            if index > 0 {
                let mut swapped = split.clone();
                swapped.swap(index, index - 1);
                tamperings.push(("swapped", swapped));
            }
            for (what, lines) in tamperings {
                fs::write(&path, lines.concat()).unwrap();
                assert!(verify(&dir).is_err(), "{what}: file {number}, line {index}");
            }
        }
        fs::write(&path, &good).unwrap();
        let aside = dir.join("aside");
        fs::rename(&path, &aside).unwrap();
        assert!(verify(&dir).is_err(), "file {number} removed");
        fs::rename(&aside, &path).unwrap();
    }
    verify(&dir).unwrap();
}

#[test]
fn faults_are_named() {
    let (_guard, dir) = temporary();
    filled(&dir, 30);
    let path = file_path(&dir, 2);
    let good = lines(&path);
    fs::write(&path, [&good[0][..], &good[2][..]].concat()).unwrap();
    assert!(matches!(
        verify(&dir),
        Err(Broken::Line {
            file: 2,
            line: 2,
            error: LineError::Sequence { .. }
        })
    ));
    fs::remove_file(&path).unwrap();
    assert!(matches!(
        verify(&dir),
        Err(Broken::FileMissing { number: 2 })
    ));
}

#[test]
fn a_torn_line_is_put_aside_and_noted() {
    let (_guard, dir) = temporary();
    filled(&dir, 3);
    let path = file_path(&dir, 1);
    let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"{\"seq\":5,\"ts\":17").unwrap();
    drop(file);
    let verified = verify(&dir).unwrap();
    assert!(verified.torn_end);
    assert_eq!(verified.records, 4);
    // The same look is tampering if the line was whole once: its record is known.
    let whole = fs::read(&path).unwrap();
    let cut = fs::OpenOptions::new().write(true).open(&path).unwrap();
    cut.set_len(whole.len() as u64 - 30).unwrap();
    assert!(matches!(
        verify(&dir),
        Err(Broken::Shortened {
            known_seq: 4,
            found_seq: 3
        })
    ));
    fs::write(&path, &whole).unwrap();
    filled(&dir, 1);
    let verified = verify(&dir).unwrap();
    assert_eq!((verified.torn, verified.shortened), (1, 0));
    assert_eq!(reasons(&dir).len(), 4);
    let kept: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .filter_map(|entry| entry.ok())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("torn-"))
        .collect();
    assert_eq!(kept.len(), 1);
    assert_eq!(fs::read(kept[0].path()).unwrap(), b"{\"seq\":5,\"ts\":17");
}

#[test]
fn a_reader_goes_on_where_it_stopped_and_into_the_next_file() {
    let (_guard, dir) = temporary();
    let log = AuditLog::open(&dir, small()).unwrap();
    let mut reader = crate::audit::Reader::new(&dir);
    let mut found = Vec::new();
    for round in 0..40 {
        log.append(&event("r"), Durability::Grouped).unwrap();
        let before = found.len();
        reader.read(&mut |record| found.push(record.seq)).unwrap();
        assert!(found.len() > before, "round {round}");
        assert_eq!(found.last(), Some(&last(&log).seq));
    }
    assert!(
        found
            .iter()
            .zip(1..)
            .all(|(seq, expected)| *seq == expected)
    );
    assert!(file_numbers(&dir).unwrap().len() > 1);
}

#[test]
fn a_crash_while_a_file_is_begun_is_recovered() {
    for begun in [&b""[..], b"{\"seq\":"] {
        let (_guard, dir) = temporary();
        filled(&dir, 3);
        files::replace(&file_path(&dir, 2), begun).unwrap();
        filled(&dir, 1);
        let verified = verify(&dir).unwrap();
        assert_eq!(verified.files, 2);
        assert_eq!(reasons(&dir).len(), 4);
    }
}

#[test]
fn lines_cut_off_the_end_are_missed() {
    let (_guard, dir) = temporary();
    filled(&dir, 3);
    let path = file_path(&dir, 1);
    let good = lines(&path);
    fs::write(&path, good[..2].concat()).unwrap();
    assert!(matches!(
        verify(&dir),
        Err(Broken::Shortened {
            known_seq: 4,
            found_seq: 2
        })
    ));
    // The next start goes on, and says so in the chain.
    filled(&dir, 1);
    assert_eq!(verify(&dir).unwrap().shortened, 1);
    fs::remove_file(head_path(&dir)).unwrap();
    assert!(matches!(verify(&dir), Err(Broken::HeadUnreadable)));
    filled(&dir, 1);
    assert_eq!(verify(&dir).unwrap().shortened, 2);
}

#[test]
fn a_changed_last_record_stops_the_start() {
    let (_guard, dir) = temporary();
    filled(&dir, 3);
    let path = file_path(&dir, 1);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("event 2", "event 9")).unwrap();
    assert!(matches!(
        AuditLog::open(&dir, small()),
        Err(AuditError::Broken { .. })
    ));
}

#[test]
fn one_process_holds_a_log_and_it_is_private() {
    let (_guard, dir) = temporary();
    let log = AuditLog::open(&dir, small()).unwrap();
    assert!(matches!(
        AuditLog::open(&dir, small()),
        Err(AuditError::InUse { .. })
    ));
    drop(log);
    let path = file_path(&dir, 1);
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    assert!(matches!(
        AuditLog::open(&dir, small()),
        Err(AuditError::File(FileError::Mode { mode: 0o640, .. }))
    ));
}

#[test]
fn a_record_beyond_the_line_limit_is_refused_and_leaves_nothing() {
    let (_guard, dir) = temporary();
    let log = AuditLog::open(&dir, Settings::default()).unwrap();
    let huge = Event::Started {
        version: "x".repeat(LINE_BYTES_MAX),
        pid: 1,
        listeners: vec![],
    };
    assert!(matches!(
        log.append(&huge, Durability::Synced),
        Err(AuditError::TooLarge { .. })
    ));
    log.append(&event("after"), Durability::Synced).unwrap();
    assert_eq!(verify(&dir).unwrap().records, 2);
}

/// Runs this test binary again as a child that does only `test`, with `PORTCULLIS_TEST_DIR` set.
fn child(test: &str, dir: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("PORTCULLIS_TEST_DIR", dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn child_dir() -> Option<PathBuf> {
    std::env::var_os("PORTCULLIS_TEST_DIR").map(PathBuf::from)
}

/// The child of the next test; alone it does nothing.
#[test]
fn child_appends_until_killed() {
    let Some(dir) = child_dir() else { return };
    let log = AuditLog::open(&dir, small()).unwrap();
    for index in 0.. {
        let durability = if index % 16 == 0 {
            Durability::Synced
        } else {
            Durability::Grouped
        };
        log.append(&event("x"), durability).unwrap();
        let Link { seq, hash } = last(&log);
        println!("\nack {seq} {}", hex_lower(&hash));
    }
}

#[test]
fn sigkill_loses_nothing_that_was_acknowledged() {
    let (_guard, dir) = temporary();
    for round in 0..12_u8 {
        let mut process = child("audit::log::tests::child_appends_until_killed", &dir);
        let stop_after = 1 + usize::from(crate::machine::random::<1>()[0]) * 2;
        let mut acknowledged = Vec::new();
        let output = BufReader::new(process.stdout.take().unwrap());
        for line in output.lines() {
            let line = line.unwrap();
            let Some(ack) = line.strip_prefix("ack ") else {
                continue;
            };
            if let Some((seq, hash)) = ack.split_once(' ')
                && hash.len() == 64
            {
                acknowledged.push((seq.parse::<u64>().unwrap(), hash.to_owned()));
            }
            if acknowledged.len() == stop_after {
                process.kill().unwrap();
            }
        }
        process.wait().unwrap();
        assert!(acknowledged.len() >= stop_after, "round {round}");
        drop(AuditLog::open(&dir, small()).unwrap());
        let mut found = Vec::new();
        let verified = for_each(&dir, |record| found.push((record.seq, record.hash))).unwrap();
        assert_eq!(verified.shortened, 0, "round {round}");
        for ack in &acknowledged {
            let at = usize::try_from(ack.0).unwrap() - 1;
            assert_eq!(&found[at], ack, "round {round}");
        }
    }
}

/// The child of the next test: a file size limit stands for a full disk; it too lets a write end halfway.
#[test]
fn child_fills_its_disk() {
    let Some(dir) = child_dir() else { return };
    // SIGXFSZ would end the process; with a handler the write fails with EFBIG instead.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let guard = runtime.enter();
    let _handler =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::from_raw(25)).unwrap();
    drop(guard);
    let log = AuditLog::open(&dir, Settings::default()).unwrap();
    let limit = |bytes| {
        let old = rustix::process::getrlimit(rustix::process::Resource::Fsize);
        rustix::process::setrlimit(
            rustix::process::Resource::Fsize,
            rustix::process::Rlimit {
                current: bytes,
                ..old
            },
        )
        .unwrap();
    };
    limit(Some(4070));
    let mut appended = 0;
    let mut failed = 0;
    for index in 0..60 {
        let durability = if index % 2 == 0 {
            Durability::Synced
        } else {
            Durability::Grouped
        };
        match log.append(&event(&format!("full {index}")), durability) {
            Ok(_) => appended += 1,
            Err(_) => failed += 1,
        }
    }
    assert!(appended > 5 && failed > 5, "{appended} {failed}");
    let left = fs::read(file_path(&dir, 1)).unwrap();
    assert_eq!(left.last(), Some(&b'\n'), "half a line is left");
    limit(None);
    for _ in 0..5 {
        log.append(&event("space again"), Durability::Grouped)
            .unwrap();
        appended += 1;
    }
    drop(log);
    println!("\nappended {appended}");
}

#[test]
fn a_full_disk_refuses_and_recovers_without_half_lines() {
    let (_guard, dir) = temporary();
    let process = child("audit::log::tests::child_fills_its_disk", &dir);
    let output = process.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let appended: usize = text
        .lines()
        .find_map(|line| line.strip_prefix("appended "))
        .unwrap_or_else(|| panic!("{text}"))
        .parse()
        .unwrap();
    assert_eq!(reasons(&dir).len(), appended);
    assert_eq!(verify(&dir).unwrap().torn, 0);
}
