//! The tables, and how a file comes to have them.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::StoreError;

/// Marks a database as ours (`PRAGMA application_id`): "PCLS".
pub(super) const APPLICATION_ID: i64 = 0x5043_4c53;

/// Each entry brings a file from the version that is its index to the next. Entries are never changed once released.
pub(super) const MIGRATIONS: &[&str] = &[
    // Pairing records and approvals are documents: their fields change with the protocol, and they are all read at the start.
    "CREATE TABLE documents (
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        json TEXT NOT NULL CHECK (json_valid(json)),
        PRIMARY KEY (kind, id)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE chat_sessions (
        key TEXT NOT NULL PRIMARY KEY,
        session_id TEXT NOT NULL,
        agent_id TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL,
        updated_at_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE chat_messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        session_key TEXT NOT NULL REFERENCES chat_sessions (key) ON DELETE CASCADE,
        run_id TEXT,
        role TEXT NOT NULL,
        content TEXT NOT NULL CHECK (json_valid(content)),
        ts_ms INTEGER NOT NULL,
        idempotency_key TEXT
    ) STRICT;
    CREATE INDEX chat_messages_in_order ON chat_messages (session_key, id);
    CREATE UNIQUE INDEX chat_messages_once ON chat_messages (session_key, idempotency_key)
        WHERE idempotency_key IS NOT NULL;

    CREATE TABLE invokes (
        caller TEXT NOT NULL,
        node TEXT NOT NULL,
        key TEXT NOT NULL,
        invoke_id TEXT NOT NULL,
        command TEXT NOT NULL,
        params_sha256 BLOB NOT NULL CHECK (length(params_sha256) = 32),
        created_at_ms INTEGER NOT NULL,
        finished_at_ms INTEGER,
        outcome TEXT,
        outcome_bytes INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (caller, node, key)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX invokes_by_age ON invokes (created_at_ms);",
    // Rows in the order of their age: no index for that, and no outcome is read when keys are compared. The outcome comes
    // last, so that nothing is looked for behind it.
    "CREATE TABLE invokes_in_order (
        id INTEGER PRIMARY KEY,
        caller TEXT NOT NULL,
        node TEXT NOT NULL,
        key TEXT NOT NULL,
        invoke_id TEXT NOT NULL,
        command TEXT NOT NULL,
        params_sha256 BLOB NOT NULL CHECK (length(params_sha256) = 32),
        created_at_ms INTEGER NOT NULL,
        finished_at_ms INTEGER,
        outcome_bytes INTEGER NOT NULL DEFAULT 0,
        outcome TEXT,
        UNIQUE (caller, node, key)
    ) STRICT;
    INSERT INTO invokes_in_order (caller, node, key, invoke_id, command, params_sha256,
                                  created_at_ms, finished_at_ms, outcome_bytes, outcome)
        SELECT caller, node, key, invoke_id, command, params_sha256,
               created_at_ms, finished_at_ms, outcome_bytes, outcome
        FROM invokes ORDER BY created_at_ms;
    DROP TABLE invokes;
    ALTER TABLE invokes_in_order RENAME TO invokes;",
];

/// The version that this program writes.
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

/// Checks that a file is ours and not newer, sets the connection up, and runs the missing migrations.
pub(super) fn prepare(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let sqlite = |error| StoreError::sqlite(path, error);
    // Before anything is written, even the journal mode: the file may be another program's.
    let version = judge(connection, path)?;
    // The journal's limit holds the 4096 pages after which it is begun anew, so that its space is used again.
    connection
        .execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE;
             PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             PRAGMA foreign_keys = ON;
             PRAGMA trusted_schema = OFF;
             PRAGMA cell_size_check = ON;
             PRAGMA secure_delete = FAST;
             PRAGMA cache_size = -512;
             PRAGMA wal_autocheckpoint = 4096;
             PRAGMA journal_size_limit = 17825792;",
        )
        .map_err(sqlite)?;
    for (index, migration) in (0..)
        .zip(MIGRATIONS)
        .skip_while(|&(index, _)| index < version)
    {
        let transaction =
            rusqlite::Transaction::new_unchecked(connection, TransactionBehavior::Immediate)
                .map_err(sqlite)?;
        transaction.execute_batch(migration).map_err(sqlite)?;
        transaction
            .pragma_update(None, "application_id", APPLICATION_ID)
            .and_then(|()| transaction.pragma_update(None, "user_version", index + 1))
            .and_then(|()| transaction.commit())
            .map_err(sqlite)?;
    }
    Ok(())
}

/// The file's version: 0 if it is new.
fn judge(connection: &Connection, path: &Path) -> Result<i64, StoreError> {
    let number = |sql| {
        connection
            .query_row(sql, [], |row| row.get::<_, i64>(0))
            .map_err(|error| StoreError::sqlite(path, error))
    };
    let application = number("PRAGMA application_id")?;
    let version = number("PRAGMA user_version")?;
    let objects = number("SELECT count(*) FROM sqlite_schema")?;
    let is_new = application == 0 && version == 0 && objects == 0;
    if application != APPLICATION_ID && !is_new {
        return Err(StoreError::NotOurs {
            path: path.to_owned(),
        });
    }
    if version > VERSION {
        return Err(StoreError::TooNew {
            path: path.to_owned(),
            found: version,
            supported: VERSION,
        });
    }
    if version < 0 || (version == 0) != is_new {
        return Err(StoreError::Corrupt {
            path: path.to_owned(),
            detail: format!("schema {version} does not exist"),
        });
    }
    Ok(version)
}
