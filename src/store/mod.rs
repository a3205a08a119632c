//! What must outlive the process: one SQLite file in a private directory, owned by one process.
//!
//! In: records, and for whatever grants or takes rights the receipt of their audit record. Out: the same records at the
//! next start. Attacker controls: texts inside records, never SQL; every statement is constant.
//! Bounds: `chat::*_MAX` and `invokes::*_MAX`; pairing is bounded by `pairing`.
//! Errors: `StoreError`. A file that is not ours, is damaged or is newer than this program is refused, not repaired.
//!
//! All functions block. A grouped write costs tens of microseconds and survives the end of the process; a synced one waits
//! for the disk and survives the loss of power (`DECISIONS.md` 20).

pub mod chat;
pub mod invokes;
pub mod lock;
pub mod pairing;
mod schema;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::audit::Receipt;
use crate::machine::files::{self, FileError};

pub use chat::{Appended, ChatMessage, ChatSession, NewMessage};
pub use invokes::{Begun, InvokeName, InvokeRecord, NewInvoke, Outcome};
pub use lock::StateLock;
pub use pairing::Kind;

/// The name of the file in the state directory.
pub const FILE_NAME: &str = "state.sqlite";

/// The state, open. Share it in an `Arc`.
pub struct Store {
    inner: Mutex<Inner>,
    path: PathBuf,
    _lock: StateLock,
}

struct Inner {
    connection: Connection,
    /// What `PRAGMA synchronous` stands at.
    synced: bool,
    /// What came into the table of invokes since it was last cut.
    invoke_growth: Cell<invokes::Growth>,
}

/// Writes that are acknowledged before they are on the disk: transcripts, invokes, when a device was last seen.
pub struct Records<'a> {
    connection: &'a Connection,
    invoke_growth: &'a Cell<invokes::Growth>,
}

/// Writes that grant or take rights. Made only for the holder of an audit receipt, and synced.
pub struct Changes<'a> {
    records: Records<'a>,
}

impl<'a> std::ops::Deref for Changes<'a> {
    type Target = Records<'a>;

    fn deref(&self) -> &Records<'a> {
        &self.records
    }
}

impl Store {
    /// Opens the state of a directory, making both if need be, and brings an older file up to date.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        files::ensure_dir(dir)?;
        let lock = StateLock::take(dir, lock::FILE_NAME)?;
        let path = dir.join(FILE_NAME);
        // SQLite would make the file with the process's umask, and would follow a link.
        drop(files::open_or_create(&path)?);
        let connection = Connection::open_with_flags(
            &path,
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )
        .map_err(|error| StoreError::sqlite(&path, error))?;
        schema::prepare(&connection, &path)?;
        Ok(Self {
            inner: Mutex::new(Inner {
                connection,
                synced: true,
                invoke_growth: Cell::default(),
            }),
            path,
            _lock: lock,
        })
    }

    /// Writes what grants or takes rights: all of it or nothing, on the disk when this returns.
    ///
    /// The receipt shows that the audit log has it already.
    pub fn change<T>(
        &self,
        _receipt: &Receipt,
        write: impl FnOnce(&Changes<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.transaction(true, |records| write(&Changes { records }))
    }

    /// Writes what needs no audit record: all of it or nothing, safe from the end of the process when this returns.
    pub fn record<T>(
        &self,
        write: impl FnOnce(&Records<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.transaction(false, |records| write(&records))
    }

    /// The file that holds what was recorded last (SQLite's write-ahead log), for whoever syncs it in groups: until then
    /// a record survives the end of the process, not the loss of power.
    pub fn journal(&self) -> Result<File, StoreError> {
        // It is made with the first access, and kept as long as the connection: SQLite cuts it, but never replaces it.
        self.read(|connection| {
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
        })?;
        let mut path = self.path.clone().into_os_string();
        path.push("-wal");
        let path = PathBuf::from(path);
        files::open(&path)?.ok_or(StoreError::Corrupt {
            path,
            detail: "there is no write-ahead log".to_owned(),
        })
    }

    fn transaction<T>(
        &self,
        synced: bool,
        write: impl FnOnce(Records<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let sqlite = |error| StoreError::sqlite(&self.path, error);
        let mut inner = self.lock();
        if inner.synced != synced {
            // In WAL mode NORMAL leaves the sync of a commit to the next FULL commit or checkpoint.
            let mode = if synced { "FULL" } else { "NORMAL" };
            inner
                .connection
                .pragma_update(None, "synchronous", mode)
                .map_err(sqlite)?;
            inner.synced = synced;
        }
        let Inner {
            connection,
            invoke_growth,
            ..
        } = &mut *inner;
        let transaction = connection.transaction().map_err(sqlite)?;
        let value = write(Records {
            connection: &transaction,
            invoke_growth,
        })
        .map_err(|error| error.at(&self.path))?;
        transaction.commit().map_err(sqlite)?;
        Ok(value)
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        read(&self.lock().connection).map_err(|error| StoreError::sqlite(&self.path, error))
    }

    /// A panic inside a transaction rolls it back, so a poisoned lock guards a sound connection.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why the state could not be opened, read or written.
#[derive(Debug)]
pub enum StoreError {
    /// The directory or a file is not private, or cannot be used.
    File(FileError),
    /// Another process owns the state.
    InUse { path: PathBuf, pid: Option<i32> },
    /// A newer program wrote it.
    TooNew {
        path: PathBuf,
        found: i64,
        supported: i64,
    },
    /// It is a database of another program.
    NotOurs { path: PathBuf },
    /// It is damaged, or no database at all.
    Corrupt { path: PathBuf, detail: String },
    /// No space is left.
    DiskFull { path: PathBuf },
    /// A record cannot be read as what it should be.
    Record {
        kind: &'static str,
        id: String,
        detail: String,
    },
    /// A table holds as much as it may, or a record is larger than one may be.
    Limit { what: &'static str, limit: usize },
    /// SQLite refused for another reason.
    Sqlite(rusqlite::Error),
}

impl StoreError {
    fn sqlite(path: &Path, error: rusqlite::Error) -> Self {
        let path = path.to_owned();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Corrupt {
                path,
                detail: error.to_string(),
            },
            Some(ErrorCode::DiskFull) => Self::DiskFull { path },
            _ => Self::Sqlite(error),
        }
    }

    /// Sorts what a statement inside a transaction has met.
    fn at(self, path: &Path) -> Self {
        match self {
            Self::Sqlite(error) => Self::sqlite(path, error),
            other => other,
        }
    }

    /// Whether a restart can cure it (exit code 75), as against what an operator must change (78).
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::File(error) => !error.is_permission(),
            Self::InUse { .. } | Self::DiskFull { .. } | Self::Limit { .. } | Self::Sqlite(_) => {
                true
            }
            Self::TooNew { .. }
            | Self::NotOurs { .. }
            | Self::Corrupt { .. }
            | Self::Record { .. } => false,
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<FileError> for StoreError {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(error) => error.fmt(f),
            Self::InUse { path, pid } => {
                write!(f, "the state in {} is in use", path.display())?;
                match pid {
                    Some(pid) => write!(f, " by process {pid}"),
                    None => Ok(()),
                }
            }
            Self::TooNew {
                path,
                found,
                supported,
            } => write!(
                f,
                "{} has schema {found}, but this program knows only up to {supported}: run the newer program, or restore a backup",
                path.display()
            ),
            Self::NotOurs { path } => write!(
                f,
                "{} is a database of another program: move it aside",
                path.display()
            ),
            Self::Corrupt { path, detail } => write!(
                f,
                "{} is damaged ({detail}): restore a backup, or move it aside and pair again",
                path.display()
            ),
            Self::DiskFull { path } => {
                write!(f, "no space left to write {}", path.display())
            }
            Self::Record { kind, id, detail } => {
                write!(f, "the {kind} record {id} cannot be read: {detail}")
            }
            Self::Limit { what, limit } => write!(f, "more than {limit} {what}"),
            Self::Sqlite(error) => write!(f, "the state cannot be used: {error}"),
        }
    }
}

impl std::error::Error for StoreError {}
