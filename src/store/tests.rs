use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension};

use super::*;
use crate::audit::{AuditLog, Durability, Event, Settings};
use crate::auth::admission::ApprovedVia;
use crate::auth::scope::{Role, Scope};
use crate::auth::secret_eq::TokenDigest;
use crate::base::DeviceId;
use crate::pairing::{Change, Device, Surface, SurfaceFacts, SurfaceRequest, Token, TurnedAway};

fn temporary() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("portcullis");
    (dir, state)
}

/// A receipt as only the audit log makes it.
fn receipt(dir: &Path) -> Receipt {
    AuditLog::open(&dir.join("audit"), Settings::default())
        .unwrap()
        .append(
            &Event::Stopped {
                reason: "test".into(),
            },
            Durability::Grouped,
        )
        .unwrap()
}

fn device(number: u8) -> Device {
    Device {
        id: DeviceId::from_digest([number; 32]),
        public_key: "key".to_owned(),
        display_name: Some("a \"name\"".to_owned()),
        label: None,
        platform: "linux".to_owned(),
        device_family: "linux".to_owned(),
        platform_shown: None,
        device_family_shown: None,
        client_id: "cli".to_owned(),
        client_mode: "cli".to_owned(),
        roles: vec![Role::Operator],
        scopes: [Scope::Read, Scope::Write].into_iter().collect(),
        tokens: vec![Token {
            role: Role::Operator,
            scopes: [Scope::Read].into_iter().collect(),
            digest: TokenDigest::from_bytes([9; 32]),
            created_at_ms: 1,
            rotated_at_ms: None,
            revoked_at_ms: None,
        }],
        approved_via: ApprovedVia::Owner,
        created_at_ms: 1,
        approved_at_ms: 2,
        last_seen_at_ms: None,
        last_seen_reason: None,
    }
}

fn surface_facts(number: u8) -> SurfaceFacts {
    SurfaceFacts {
        node: DeviceId::from_digest([number; 32]),
        display_name: None,
        platform: "linux".to_owned(),
        device_family: None,
        version: "1".to_owned(),
        client_id: "node-host".to_owned(),
        client_mode: "node".to_owned(),
        caps: vec!["system".to_owned()],
        commands: vec!["system.run".to_owned()],
        silent: false,
        remote_ip: None,
        path: "loopback".to_owned(),
    }
}

fn surface(number: u8) -> Surface {
    Surface {
        facts: surface_facts(number),
        declared: Vec::new(),
        created_at_ms: 1,
        approved_at_ms: 2,
    }
}

fn surface_request(number: u8) -> SurfaceRequest {
    SurfaceRequest {
        request_id: format!("request-{number}"),
        facts: surface_facts(number),
        ts_ms: 5,
    }
}

fn session() -> ChatSession {
    ChatSession {
        key: "agent:main:main".to_owned(),
        session_id: "s1".to_owned(),
        agent_id: "main".to_owned(),
        created_at_ms: 1,
        updated_at_ms: 1,
    }
}

fn message(text: &str, key: Option<&str>) -> NewMessage {
    NewMessage {
        session_key: session().key,
        run_id: Some("run".to_owned()),
        role: "user".to_owned(),
        content: serde_json::to_string(text).unwrap(),
        ts_ms: 7,
        idempotency_key: key.map(str::to_owned),
    }
}

impl NewInvoke {
    fn name(&self) -> InvokeName<'_> {
        InvokeName {
            caller: &self.caller,
            node: &self.node,
            key: &self.key,
            invoke_id: &self.invoke_id,
        }
    }
}

fn invoke(key: &str, created_at_ms: u64) -> NewInvoke {
    NewInvoke {
        caller: "operator".to_owned(),
        node: "node".to_owned(),
        key: key.to_owned(),
        invoke_id: format!("invoke-{key}-{created_at_ms}"),
        command: "system.run".to_owned(),
        params_sha256: [3; 32],
        created_at_ms,
    }
}

#[test]
fn pairing_records_survive_a_restart() {
    let (_guard, dir) = temporary();
    let store = Store::open(&dir).unwrap();
    let receipt = receipt(&dir);
    store
        .change(&receipt, |changes| {
            changes.pairing(&Change::Device(device(1)))?;
            changes.pairing(&Change::Device(device(2)))?;
            changes.pairing(&Change::Surface(surface(1)))?;
            changes.pairing(&Change::SurfaceRequest(surface_request(2)))?;
            for device in [device(2).id, device(3).id] {
                changes.pairing(&Change::TurnedAway(TurnedAway { device, at_ms: 7 }))?;
            }
            changes.pairing(&Change::TurnedAwayGone(device(3).id))?;
            changes.pairing(&Change::DeviceGone(device(2).id))
        })
        .unwrap();
    store
        .record(|records| records.device_seen(&device(1).id, 99, "connect"))
        .unwrap();
    drop(store);
    let changes = Store::open(&dir).unwrap().load_pairing().unwrap();
    assert_eq!(changes.len(), 4);
    let Change::Device(found) = &changes[0] else {
        panic!("a device comes first")
    };
    assert_eq!(found.id, device(1).id);
    assert_eq!(found.display_name.as_deref(), Some("a \"name\""));
    assert_eq!(found.tokens[0].digest.as_bytes(), &[9; 32]);
    assert_eq!(
        (found.last_seen_at_ms, found.last_seen_reason.as_deref()),
        (Some(99), Some("connect"))
    );
    assert!(matches!(&changes[1], Change::TurnedAway(it) if it.device == device(2).id));
    assert!(matches!(&changes[2], Change::Surface(s) if s.facts.commands == ["system.run"]));
    assert!(matches!(&changes[3], Change::SurfaceRequest(r) if r.request_id == "request-2"));
}

#[test]
fn a_failed_change_leaves_nothing() {
    let (_guard, dir) = temporary();
    let store = Store::open(&dir).unwrap();
    let result: Result<(), _> = store.change(&receipt(&dir), |changes| {
        changes.pairing(&Change::Device(device(1)))?;
        Err(StoreError::Limit {
            what: "tests",
            limit: 1,
        })
    });
    assert!(result.is_err());
    assert!(store.load_pairing().unwrap().is_empty());
}

#[test]
fn a_record_that_cannot_be_read_is_an_error_not_an_absence() {
    let (_guard, dir) = temporary();
    let store = Store::open(&dir).unwrap();
    store
        .change(&receipt(&dir), |changes| {
            changes.put(Kind::Device, "x", &serde_json::json!({"id": "x"}))
        })
        .unwrap();
    assert!(matches!(
        store.load_pairing(),
        Err(StoreError::Record { kind: "device", id, .. }) if id == "x"
    ));
}

#[test]
fn no_token_stands_in_the_file() {
    let (_guard, dir) = temporary();
    let store = Store::open(&dir).unwrap();
    let token = "a-device-token-in-the-clear";
    let mut record = device(1);
    record.tokens[0].digest = TokenDigest::from_bytes(crate::audit::Digest::of(token.as_bytes()).0);
    store
        .change(&receipt(&dir), |changes| {
            changes.pairing(&Change::Device(record))
        })
        .unwrap();
    drop(store);
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let bytes = fs::read(&path).unwrap();
            assert!(!bytes.windows(token.len()).any(|w| w == token.as_bytes()));
        }
    }
}

#[test]
fn transcripts_keep_order_and_take_a_key_once() {
    let (_guard, dir) = temporary();
    let store = Store::open(&dir).unwrap();
    store
        .record(|records| {
            records.put_session(&session())?;
            for index in 0..10 {
                records.append_message(&message(&format!("m{index}"), None))?;
            }
            Ok(())
        })
        .unwrap();
    let append = |key| {
        store
            .record(|records| records.append_message(&message("once", Some(key))))
            .unwrap()
    };
    let Appended::New(id) = append("k") else {
        panic!("new")
    };
    assert_eq!(append("k"), Appended::Known(id));
    let key = session().key;
    let all = store.message_page(&key, 100, 0).unwrap().0;
    assert_eq!(all.len(), 11);
    assert_eq!(all[0].content, "\"m0\"");
    assert_eq!(all[10].id, id);
    let page = store.message_page(&key, 2, 6).unwrap().0;
    assert_eq!(page, &all[3..5]);
    assert_eq!(store.load_sessions().unwrap()[0].updated_at_ms, 7);
    // A session that does not exist, content that is no JSON, and too much of it.
    let mut stray = message("x", None);
    stray.session_key = "nowhere".to_owned();
    assert!(store.record(|r| r.append_message(&stray)).is_err());
    let mut plain = message("x", None);
    plain.content = "not json".to_owned();
    assert!(store.record(|r| r.append_message(&plain)).is_err());
    let long = message(&"x".repeat(chat::MESSAGE_BYTES_MAX), None);
    assert!(matches!(
        store.record(|r| r.append_message(&long)),
        Err(StoreError::Limit { .. })
    ));
}

#[test]
fn a_transcript_is_bounded() {
    let (_guard, dir) = temporary();
    let store = Store::open(&dir).unwrap();
    let count = chat::MESSAGES_PER_SESSION_MAX + 200;
    store
        .record(|records| {
            records.put_session(&session())?;
            for index in 0..count {
                records.append_message(&message(&index.to_string(), None))?;
            }
            Ok(())
        })
        .unwrap();
    let kept = store.message_page(&session().key, usize::MAX, 0).unwrap().0;
    assert_eq!(kept.len(), chat::MESSAGES_PER_SESSION_MAX);
    assert_eq!(kept.last().unwrap().content, format!("\"{}\"", count - 1));
    let rows: i64 = store
        .read(|c| c.query_row("SELECT count(*) FROM chat_messages", [], |row| row.get(0)))
        .unwrap();
    assert!(rows < i64::try_from(chat::MESSAGES_PER_SESSION_MAX).unwrap() + 64);
}

fn found(store: &Store, caller: &str, node: &str, key: &str) -> Option<InvokeRecord> {
    let columns = invokes::COLUMNS;
    let sql = format!("SELECT {columns} FROM invokes WHERE caller = ? AND node = ? AND key = ?");
    store
        .read(|c| {
            c.query_row(&sql, [caller, node, key], invokes::read)
                .optional()
        })
        .unwrap()
}

#[test]
fn n12_a_key_is_sent_once_and_its_outcome_kept() {
    let (_guard, dir) = temporary();
    let store = Store::open(&dir).unwrap();
    let first = invoke("k", 1000);
    let begin = |store: &Store, invoke: &NewInvoke| {
        store
            .record(|records| records.begin_invoke(invoke))
            .unwrap()
    };
    assert_eq!(begin(&store, &first), Begun::New);
    let Begun::Known(known) = begin(&store, &invoke("k", 2000)) else {
        panic!("the key is known")
    };
    assert_eq!((&known.invoke, &known.finished), (&first, &None));
    // A clock that was set back does not free a key; only a day does.
    for now_ms in [0, 999, 1000 + invokes::KEPT_MS] {
        assert!(matches!(
            begin(&store, &invoke("k", now_ms)),
            Begun::Known(_)
        ));
    }
    // The process ends here: nobody knows what happened.
    drop(store);
    let store = Store::open(&dir).unwrap();
    assert_eq!(
        store
            .load_unsettled_invokes("failed", "failed by node")
            .unwrap(),
        [*known]
    );
    let finish = |invoke: &NewInvoke, text: &str, late| {
        let outcome = Outcome::Kept(text.to_owned());
        store
            .record(|records| records.finish_invoke(&invoke.name(), 3000, &outcome, late))
            .unwrap()
    };
    assert!(!finish(&invoke("k", 2000), "\"of another invoke\"", false));
    assert!(finish(&first, "{\"timedOut\":true}", false));
    assert!(!finish(&first, "{\"ok\":false}", false));
    for (failed, by_node, count) in [
        ("{\"timed", "{\"ok", 1),
        ("{\"ok", "x", 0),
        ("{\"", "{\"t", 0),
    ] {
        let open = store.load_unsettled_invokes(failed, by_node).unwrap();
        assert_eq!(open.len(), count, "{failed}");
    }
    // What the node says after all is the truth.
    assert!(finish(&first, "{\"ok\":true}", true));
    let record = found(&store, "operator", "node", "k").unwrap();
    assert_eq!(
        record.finished,
        Some((3000, Outcome::Kept("{\"ok\":true}".to_owned())))
    );
    // Other callers and nodes have keys of their own; after a day the key is free.
    for other in [
        NewInvoke {
            caller: "other".to_owned(),
            ..invoke("k", 2000)
        },
        NewInvoke {
            node: "other".to_owned(),
            ..invoke("k", 2000)
        },
        invoke("k", 1001 + invokes::KEPT_MS),
    ] {
        assert_eq!(begin(&store, &other), Begun::New);
    }
    let never_sent = invoke("n", 5000);
    assert_eq!(begin(&store, &never_sent), Begun::New);
    store
        .record(|r| r.forget_invoke(&never_sent.name()))
        .unwrap();
    assert_eq!(begin(&store, &never_sent), Begun::New);
}

/// What the audit log syncs along must be the file that records go to, at every start.
#[test]
fn the_journal_is_the_file_that_records_go_to() {
    use std::os::unix::fs::MetadataExt as _;
    let (_guard, dir) = temporary();
    for start in 0..2 {
        let store = Store::open(&dir).unwrap();
        let journal = store.journal().unwrap();
        let before = journal.metadata().unwrap().len();
        for index in 0..200 {
            let new = invoke(&format!("{start} {index}"), 1000);
            store.record(|r| r.begin_invoke(&new)).unwrap();
        }
        assert!(journal.metadata().unwrap().len() > before);
        let named = fs::metadata(dir.join("state.sqlite-wal")).unwrap();
        assert_eq!(journal.metadata().unwrap().ino(), named.ino());
    }
}

#[test]
fn the_table_of_invokes_is_bounded() {
    let (_guard, dir) = temporary();
    let store = Store::open(&dir).unwrap();
    let name = |index: u64| format!("k{index:03}");
    store
        .record(|records| {
            for index in 0..100 {
                let invoke = invoke(&name(index), 1000 + index);
                records.begin_invoke(&invoke)?;
                if index != 0 {
                    let outcome = Outcome::Kept("x".repeat(10));
                    records.finish_invoke(&invoke.name(), 2000, &outcome, false)?;
                }
            }
            records.cut(2000, 50, 100)
        })
        .unwrap();
    let find = |index| found(&store, "operator", "node", &name(index));
    assert_eq!(find(0).unwrap().finished, None, "under way, so it stays");
    assert!(find(1).is_none() && find(50).is_none());
    assert_eq!(
        find(51).unwrap().finished,
        Some((2000, Outcome::Dropped { bytes: 10 }))
    );
    assert!(matches!(
        find(99).unwrap().finished,
        Some((2000, Outcome::Kept(_)))
    ));
    store
        .record(|r| {
            r.cut(
                2000 + invokes::KEPT_MS,
                invokes::ROWS_MAX,
                invokes::OUTCOMES_BYTES_MAX,
            )
        })
        .unwrap();
    assert!(find(99).is_none());
    // One outcome that is too long: its key stays.
    let long = invoke("long", 9_000_000_000);
    store
        .record(|records| {
            records.begin_invoke(&long)?;
            records.finish_invoke(
                &long.name(),
                9_000_000_001,
                &Outcome::Kept("x".repeat(invokes::OUTCOME_BYTES_MAX + 1)),
                false,
            )
        })
        .unwrap();
    let record = found(&store, "operator", "node", "long").unwrap();
    assert!(matches!(
        record.finished,
        Some((_, Outcome::Dropped { bytes })) if bytes > invokes::OUTCOME_BYTES_MAX
    ));
}

#[test]
fn invokes_of_an_older_file_are_kept_in_the_order_of_their_age() {
    let (_guard, dir) = temporary();
    let path = write_private(&dir, b"");
    let older = Connection::open(&path).unwrap();
    older.execute_batch(schema::MIGRATIONS[0]).unwrap();
    older
        .execute_batch(&format!(
            "PRAGMA application_id = {}; PRAGMA user_version = 1;
             INSERT INTO invokes VALUES
                 ('operator', 'node', 'a', 'i2', 'c', zeroblob(32), 2000, 2001, '{{}}', 2),
                 ('operator', 'node', 'b', 'i1', 'c', zeroblob(32), 1000, NULL, NULL, 0);",
            schema::APPLICATION_ID
        ))
        .unwrap();
    drop(older);
    let store = Store::open(&dir).unwrap();
    let open = store
        .load_unsettled_invokes("failed", "failed by node")
        .unwrap();
    assert_eq!(open.len(), 1);
    assert_eq!(open[0].invoke.invoke_id, "i1");
    let known = found(&store, "operator", "node", "a").unwrap();
    let outcome = Outcome::Kept("{}".to_owned());
    assert_eq!(known.finished, Some((2001, outcome)));
    // The older one goes first, whatever it is called.
    store
        .record(|r| {
            r.cut(
                2000 + invokes::KEPT_MS,
                invokes::ROWS_MAX,
                invokes::OUTCOMES_BYTES_MAX,
            )
        })
        .unwrap();
    assert!(
        store
            .load_unsettled_invokes("failed", "failed by node")
            .unwrap()
            .is_empty()
    );
    assert!(found(&store, "operator", "node", "a").is_some());
}

#[test]
fn one_process_owns_the_state_and_is_named() {
    let (_guard, dir) = temporary();
    let store = Store::open(&dir).unwrap();
    let error = Store::open(&dir).err().unwrap();
    assert!(error.is_temporary());
    let pid = std::process::id();
    assert!(
        error
            .to_string()
            .ends_with(&format!("is in use by process {pid}")),
        "{error}"
    );
    drop(store);
    Store::open(&dir).unwrap();
}

#[test]
fn c3_the_files_are_private_and_must_be() {
    let (_guard, dir) = temporary();
    let store = Store::open(&dir).unwrap();
    store.record(|r| r.put_session(&session())).unwrap();
    let mut files = 0;
    for entry in fs::read_dir(&dir).unwrap() {
        let metadata = entry.unwrap().metadata().unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
        files += 1;
    }
    assert!(files >= 3, "database, log and lock");
    drop(store);
    let path = dir.join(FILE_NAME);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let error = Store::open(&dir).err().unwrap();
    assert!(!error.is_temporary());
    assert!(error.to_string().contains("mode 0644 but must have 0600"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o750)).unwrap();
    let error = Store::open(&dir).err().unwrap();
    assert!(error.to_string().contains("mode 0750 but must have 0700"));
}

fn write_private(dir: &Path, bytes: &[u8]) -> PathBuf {
    files::ensure_dir(dir).unwrap();
    let path = dir.join(FILE_NAME);
    files::replace(&path, bytes).unwrap();
    path
}

#[test]
fn foreign_newer_and_damaged_files_are_refused_and_left_alone() {
    // No database at all.
    let (_guard, dir) = temporary();
    let path = write_private(&dir, &b"this is not a database ".repeat(100));
    let before = fs::read(&path).unwrap();
    assert!(matches!(Store::open(&dir), Err(StoreError::Corrupt { .. })));
    assert_eq!(fs::read(&path).unwrap(), before);

    // Another program's database.
    let (_guard, dir) = temporary();
    let path = write_private(&dir, b"");
    Connection::open(&path)
        .unwrap()
        .execute_batch("CREATE TABLE theirs (x)")
        .unwrap();
    let before = fs::read(&path).unwrap();
    assert!(matches!(Store::open(&dir), Err(StoreError::NotOurs { .. })));
    assert_eq!(fs::read(&path).unwrap(), before);

    // A newer program's.
    let (_guard, dir) = temporary();
    drop(Store::open(&dir).unwrap());
    let path = dir.join(FILE_NAME);
    Connection::open(&path)
        .unwrap()
        .pragma_update(None, "user_version", schema::VERSION + 1)
        .unwrap();
    let error = Store::open(&dir).err().unwrap();
    assert!(matches!(error, StoreError::TooNew { found, supported, .. } if found == supported + 1));
    assert!(!error.is_temporary());

    // Damaged in the middle: whatever is read is right or refused, and `check` finds it.
    let (_guard, dir) = temporary();
    let store = Store::open(&dir).unwrap();
    store
        .record(|records| {
            records.put_session(&session())?;
            for _ in 0..500 {
                records.append_message(&message(&"x".repeat(200), None))?;
            }
            Ok(())
        })
        .unwrap();
    drop(store);
    let path = dir.join(FILE_NAME);
    let mut bytes = fs::read(&path).unwrap();
    let pages = bytes.len() / 4096;
    for byte in &mut bytes[4096 * (pages / 2)..4096 * (pages / 2 + 4)] {
        *byte ^= 0x55;
    }
    fs::write(&path, bytes).unwrap();
    let store = Store::open(&dir).unwrap();
    assert!(matches!(check(&store), Err(StoreError::Corrupt { .. })));
    assert!(matches!(
        store.message_page(&session().key, 1000, 0),
        Err(StoreError::Corrupt { .. })
    ));
}

/// Reads the whole file for damage.
fn check(store: &Store) -> Result<(), StoreError> {
    let detail: String =
        store.read(|c| c.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)))?;
    match detail.as_str() {
        "ok" => Ok(()),
        _ => Err(StoreError::Corrupt {
            path: store.path.clone(),
            detail,
        }),
    }
}

#[test]
fn a_sound_file_passes_its_check() {
    let (_guard, dir) = temporary();
    check(&Store::open(&dir).unwrap()).unwrap();
}

#[test]
fn threads_share_a_store() {
    let (_guard, dir) = temporary();
    let store = Arc::new(Store::open(&dir).unwrap());
    store.record(|r| r.put_session(&session())).unwrap();
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let store = Arc::clone(&store);
            std::thread::spawn(move || {
                for index in 0..50 {
                    let text = format!("{thread} {index}");
                    store
                        .record(|r| r.append_message(&message(&text, Some(&text))))
                        .unwrap();
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(
        store.message_page(&session().key, 1000, 0).unwrap().0.len(),
        200
    );
}

/// The child of the next test; alone it does nothing. It says what has been acknowledged.
#[test]
fn child_writes_until_killed() {
    let Some(dir) = std::env::var_os("PORTCULLIS_TEST_DIR").map(PathBuf::from) else {
        return;
    };
    let store = Store::open(&dir).unwrap();
    let audit = AuditLog::open(&dir.join("audit"), Settings::default()).unwrap();
    store.record(|r| r.put_session(&session())).unwrap();
    let start = u64::from(std::process::id()) << 20;
    for number in start.. {
        let name = number.to_string();
        if number % 4 == 0 {
            let receipt = audit
                .append(&Event::Stopped { reason: "x".into() }, Durability::Synced)
                .unwrap();
            let approval = serde_json::json!({ "name": name });
            store
                .change(&receipt, |c| c.put(Kind::Surface, &name, &approval))
                .unwrap();
            println!("\nack approval {name}");
        } else {
            store
                .record(|records| {
                    records.append_message(&message(&name, Some(&name)))?;
                    records.begin_invoke(&invoke(&name, 1000))
                })
                .unwrap();
            println!("\nack record {name}");
        }
    }
}

#[test]
fn sigkill_loses_nothing_that_was_acknowledged() {
    let (_guard, dir) = temporary();
    let mut approvals = Vec::new();
    let mut records = Vec::new();
    for _ in 0..10 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "store::tests::child_writes_until_killed",
                "--nocapture",
                "--test-threads=1",
            ])
            .env("PORTCULLIS_TEST_DIR", &dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stop_after = 1 + usize::from(crate::machine::random::<1>()[0]);
        let mut seen = 0;
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while output.read_line(&mut line).unwrap() > 0 {
            if let Some(ack) = line.strip_suffix('\n').and_then(|l| l.strip_prefix("ack ")) {
                match ack.split_once(' ').unwrap() {
                    ("approval", name) => approvals.push(name.to_owned()),
                    (_, name) => records.push(name.to_owned()),
                }
                seen += 1;
                if seen == stop_after {
                    child.kill().unwrap();
                }
            }
            line.clear();
        }
        child.wait().unwrap();
        let store = Store::open(&dir).unwrap();
        check(&store).unwrap();
        let surfaces: Vec<serde_json::Value> = store.load(Kind::Surface).unwrap();
        for name in &approvals {
            assert!(
                surfaces.iter().any(|f| f["name"] == name.as_str()),
                "{name}"
            );
        }
        let messages = store.message_page(&session().key, usize::MAX, 0).unwrap().0;
        for name in &records {
            assert!(
                messages
                    .iter()
                    .any(|m| m.idempotency_key.as_ref() == Some(name)),
                "{name}"
            );
            assert!(found(&store, "operator", "node", name).is_some());
        }
    }
    assert!(!approvals.is_empty() && !records.is_empty());
    crate::audit::verify(&dir.join("audit")).unwrap();
}
