//! What was dispatched under which idempotency key (decision 21), so that one key means one execution.
//!
//! A record is written before its command is sent. One without an outcome after a crash means that nobody knows
//! whether the command ran: it is answered `dispatched: unknown` and never sent again.

use rusqlite::{OptionalExtension, Row, params};

use super::{Records, Store, StoreError};
use crate::base::limits::INVOKES_FINISHED_MAX;

/// How long a key is remembered, in milliseconds of the records' own clock.
pub const KEPT_MS: u64 = 24 * 60 * 60 * 1000;
/// Keys that are remembered; beyond this the oldest finished ones give way.
pub const ROWS_MAX: usize = 100_000;
/// One outcome, in bytes of JSON. A longer one is not kept; its key and length are.
pub const OUTCOME_BYTES_MAX: usize = 256 * 1024;
/// All outcomes; beyond this the oldest are dropped, and their keys stay.
pub const OUTCOMES_BYTES_MAX: usize = 128 * 1024 * 1024;
/// The outcome of a command of which nobody knows more: a word and the command's name.
const FAILURE_BYTES_MAX: i64 = 4096;
/// How far the table may grow beyond its bounds before it is cut.
const SLACK_ROWS: usize = 4096;
const SLACK_BYTES: usize = 32 * 1024 * 1024;

/// What came in since the table was last cut.
#[derive(Clone, Copy, Default)]
pub(super) struct Growth {
    rows: usize,
    bytes: usize,
}

/// A command that is about to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewInvoke {
    pub caller: String,
    pub node: String,
    pub key: String,
    pub invoke_id: String,
    pub command: String,
    /// The same key with other params is refused.
    pub params_sha256: [u8; 32],
    /// By the records' own clock, which no setting of the system's moves.
    pub created_at_ms: u64,
}

/// Which command an outcome belongs to.
#[derive(Clone, Copy, Debug)]
pub struct InvokeName<'a> {
    pub caller: &'a str,
    pub node: &'a str,
    pub key: &'a str,
    pub invoke_id: &'a str,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// JSON, as the caller was answered.
    Kept(String),
    /// It was too long, or old outcomes needed the space.
    Dropped { bytes: usize },
}

/// A command that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvokeRecord {
    pub invoke: NewInvoke,
    /// When, by the same clock, and what came of it; `None` while it is under way, and after a crash.
    pub finished: Option<(u64, Outcome)>,
}

/// Whether a key was new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    New,
    /// It must not be sent again.
    Known(Box<InvokeRecord>),
}

pub(super) const COLUMNS: &str = "caller, node, key, invoke_id, command, params_sha256, created_at_ms, \
                       finished_at_ms, outcome, outcome_bytes";

pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<InvokeRecord> {
    let finished_at_ms: Option<i64> = row.get(7)?;
    let outcome: Option<String> = row.get(8)?;
    let bytes = usize::try_from(row.get::<_, i64>(9)?).unwrap_or(usize::MAX);
    Ok(InvokeRecord {
        invoke: NewInvoke {
            caller: row.get(0)?,
            node: row.get(1)?,
            key: row.get(2)?,
            invoke_id: row.get(3)?,
            command: row.get(4)?,
            params_sha256: row.get(5)?,
            created_at_ms: row.get::<_, i64>(6)?.cast_unsigned(),
        },
        finished: finished_at_ms.map(|at| {
            let outcome = outcome.map_or(Outcome::Dropped { bytes }, Outcome::Kept);
            (at.cast_unsigned(), outcome)
        }),
    })
}

impl Store {
    /// When the newest was begun, where there is one: there the records' clock goes on.
    pub fn newest_invoke_ms(&self) -> Result<Option<u64>, StoreError> {
        self.read(|connection| {
            connection
                .query_row(
                    "SELECT created_at_ms FROM invokes ORDER BY id DESC LIMIT 1",
                    [],
                    |row| row.get::<_, i64>(0),
                )
                .optional()
        })
        .map(|newest| newest.map(i64::cast_unsigned))
    }

    /// The newest that a crash left without an outcome, or whose outcome begins with `failed` and not with `by_node`: of
    /// these a node may still have more to say. The oldest comes first.
    pub fn load_unsettled_invokes(
        &self,
        failed: &str,
        by_node: &str,
    ) -> Result<Vec<InvokeRecord>, StoreError> {
        let limit = i64::try_from(INVOKES_FINISHED_MAX).unwrap_or(i64::MAX);
        self.read(|connection| {
            connection
                .prepare_cached(&format!(
                    "SELECT * FROM (
                         SELECT {COLUMNS}, id FROM invokes
                         WHERE finished_at_ms IS NULL OR (outcome_bytes <= ?
                             AND outcome LIKE ? || '%' AND outcome NOT LIKE ? || '%')
                         ORDER BY id DESC LIMIT ?)
                     ORDER BY id"
                ))?
                .query_map(params![FAILURE_BYTES_MAX, failed, by_node, limit], read)?
                .collect()
        })
    }
}

impl Records<'_> {
    /// Notes a command before it is sent, unless its key is known.
    pub fn begin_invoke(&self, invoke: &NewInvoke) -> Result<Begun, StoreError> {
        let insert = |or: &str| {
            self.connection
                .prepare_cached(&format!(
                    "INSERT OR {or} INTO invokes
                     (caller, node, key, invoke_id, command, params_sha256, created_at_ms)
                     VALUES (?, ?, ?, ?, ?, ?, ?)"
                ))?
                .execute(params![
                    invoke.caller,
                    invoke.node,
                    invoke.key,
                    invoke.invoke_id,
                    invoke.command,
                    invoke.params_sha256,
                    invoke.created_at_ms.cast_signed(),
                ])
        };
        if insert("IGNORE")? == 0 {
            let known = self
                .connection
                .prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM invokes WHERE caller = ? AND node = ? AND key = ?"
                ))?
                .query_row([&invoke.caller, &invoke.node, &invoke.key], read)?;
            if known.invoke.created_at_ms.saturating_add(KEPT_MS) >= invoke.created_at_ms {
                return Ok(Begun::Known(Box::new(known)));
            }
            insert("REPLACE")?;
        }
        self.grow(1, 0, invoke.created_at_ms)?;
        Ok(Begun::New)
    }

    /// Keeps what came of a command. The first outcome stays, unless what comes now is what the node had to say after
    /// all (`late`); another changes nothing and gives false.
    pub fn finish_invoke(
        &self,
        invoke: &InvokeName<'_>,
        finished_at_ms: u64,
        outcome: &Outcome,
        late: bool,
    ) -> Result<bool, StoreError> {
        let (kept, bytes) = match outcome {
            Outcome::Kept(text) if text.len() <= OUTCOME_BYTES_MAX => (Some(text), text.len()),
            Outcome::Kept(text) => (None, text.len()),
            Outcome::Dropped { bytes } => (None, *bytes),
        };
        let finished = self
            .connection
            .prepare_cached(
                "UPDATE invokes SET finished_at_ms = ?5, outcome = ?6, outcome_bytes = ?7
                 WHERE caller = ?1 AND node = ?2 AND key = ?3 AND invoke_id = ?4
                     AND (finished_at_ms IS NULL OR ?8)",
            )?
            .execute(params![
                invoke.caller,
                invoke.node,
                invoke.key,
                invoke.invoke_id,
                finished_at_ms.cast_signed(),
                kept,
                i64::try_from(bytes).unwrap_or(i64::MAX),
                late,
            ])?;
        self.grow(0, kept.map_or(0, String::len), finished_at_ms)?;
        Ok(finished == 1)
    }

    /// Forgets a command that was never sent, so that its key can be used.
    pub fn forget_invoke(&self, invoke: &InvokeName<'_>) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "DELETE FROM invokes WHERE caller = ? AND node = ? AND key = ? AND invoke_id = ?",
            )?
            .execute([invoke.caller, invoke.node, invoke.key, invoke.invoke_id])?;
        Ok(())
    }

    fn grow(&self, rows: usize, bytes: usize, now_ms: u64) -> Result<(), StoreError> {
        let mut growth = self.invoke_growth.get();
        growth.rows = growth.rows.saturating_add(rows);
        growth.bytes = growth.bytes.saturating_add(bytes);
        self.invoke_growth.set(growth);
        if growth.rows < SLACK_ROWS && growth.bytes < SLACK_BYTES {
            return Ok(());
        }
        self.cut(now_ms, ROWS_MAX, OUTCOMES_BYTES_MAX)
    }

    /// Brings the table within its bounds.
    pub(super) fn cut(
        &self,
        now_ms: u64,
        rows_max: usize,
        bytes_max: usize,
    ) -> Result<(), StoreError> {
        self.invoke_growth.set(Growth::default());
        // In the order of their ids, which is that of their age.
        self.connection
            .prepare_cached(
                "DELETE FROM invokes WHERE id < coalesce(
                     (SELECT id FROM invokes WHERE created_at_ms >= ? ORDER BY id LIMIT 1), ?)",
            )?
            .execute([now_ms.saturating_sub(KEPT_MS).cast_signed(), i64::MAX])?;
        let rows: i64 = self
            .connection
            .prepare_cached("SELECT count(*) FROM invokes")?
            .query_row([], |row| row.get(0))?;
        let excess = rows.saturating_sub(i64::try_from(rows_max).unwrap_or(i64::MAX));
        if excess > 0 {
            // Never those under way: the calls that wait for them bound their number.
            self.connection
                .prepare_cached(
                    "DELETE FROM invokes WHERE id IN (
                         SELECT id FROM invokes WHERE finished_at_ms IS NOT NULL ORDER BY id LIMIT ?)",
                )?
                .execute([excess])?;
        }
        self.connection
            .prepare_cached(
                "UPDATE invokes SET outcome = NULL WHERE outcome IS NOT NULL
                     AND id <= (
                         SELECT max(id) FROM (
                             SELECT id, sum(outcome_bytes) OVER (ORDER BY id DESC) AS newer
                             FROM invokes WHERE outcome IS NOT NULL)
                         WHERE newer > ?)",
            )?
            .execute([i64::try_from(bytes_max).unwrap_or(i64::MAX)])?;
        Ok(())
    }
}
