//! The writer of the log. One process holds a log at a time.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::chain::{self, LINE_BYTES_MAX, Link};
use super::event::{Digest, Event};
use crate::base::ids::hex_lower;
use crate::machine::files::{self, FileError};
use crate::machine::now_ms;

/// How long a grouped record may wait for its sync.
pub const SYNC_DELAY: Duration = Duration::from_millis(50);

/// The note of the last record: 20 digits, a space, 64 hexadecimal digits, a line feed.
const HEAD_BYTES: usize = 86;
/// How much of the end of a file is read when a log is opened: the last two lines.
const TAIL_BYTES: u64 = 2 * LINE_BYTES_MAX as u64;

/// How a log is kept.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// A file is closed and the next one begun when it would grow beyond this.
    pub file_bytes_max: u64,
    /// Every record is synced before it is acknowledged (`audit.sync: "always"`).
    pub sync_always: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            file_bytes_max: 32 * 1024 * 1024,
            sync_always: false,
        }
    }
}

/// What a record must survive before it counts as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Power loss: synced before `append` returns.
    Synced,
    /// The end of this process; synced within `SYNC_DELAY`.
    Grouped,
}

/// Proof that something was recorded. Only the log makes one, and an effect takes it.
#[derive(Debug)]
pub struct Receipt(());

/// Why something could not be recorded.
#[derive(Debug)]
pub enum AuditError {
    /// The directory or a file is not private, or cannot be used.
    File(FileError),
    /// Another process holds the log.
    InUse { dir: PathBuf },
    /// The file system is full.
    DiskFull { path: PathBuf },
    /// Writing or syncing failed.
    Io {
        path: PathBuf,
        doing: &'static str,
        source: io::Error,
    },
    /// The last record is not what was written: verify the log, then move it aside.
    Broken { path: PathBuf },
    /// A record does not fit one line.
    TooLarge { bytes: usize, limit: usize },
    /// An event cannot be written as JSON.
    Encode(serde_json::Error),
}

impl AuditError {
    fn io(path: &Path, doing: &'static str, source: io::Error) -> Self {
        if matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        ) {
            return Self::DiskFull {
                path: path.to_owned(),
            };
        }
        Self::Io {
            path: path.to_owned(),
            doing,
            source,
        }
    }
}

impl From<FileError> for AuditError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Io {
                path,
                doing,
                source,
            } => Self::io(&path, doing, source),
            other => Self::File(other),
        }
    }
}

impl fmt::Display for AuditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(error) => error.fmt(f),
            Self::InUse { dir } => write!(
                f,
                "the audit log in {} is held by another process",
                dir.display()
            ),
            Self::DiskFull { path } => write!(
                f,
                "no space left to record in {}: free some, and recording goes on by itself",
                path.display()
            ),
            Self::Io {
                path,
                doing,
                source,
            } => write!(f, "cannot {doing} {}: {source}", path.display()),
            Self::Broken { path } => write!(
                f,
                "the last record of {} was changed: run `portcullis audit verify`, then move the audit directory aside",
                path.display()
            ),
            Self::TooLarge { bytes, limit } => {
                write!(f, "a record of {bytes} bytes is longer than {limit}")
            }
            Self::Encode(error) => write!(f, "an event cannot be written as JSON: {error}"),
        }
    }
}

impl std::error::Error for AuditError {}

/// The log of one directory, open for appending. Share it in an `Arc`.
pub struct AuditLog {
    shared: Arc<Shared>,
    sync_always: bool,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    writer: Mutex<Writer>,
    wake: Condvar,
    along: OnceLock<File>,
}

impl Shared {
    fn sync_along(&self) -> io::Result<()> {
        self.along.get().map_or(Ok(()), File::sync_data)
    }

    /// A panic while holding the lock leaves at most a tail that `mend` repairs, so poisoning is no reason to stop.
    fn lock(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AuditLog {
    /// Opens the log of `dir`, making it if there is none, and repairs what an interrupted write has left.
    pub fn open(dir: &Path, settings: Settings) -> Result<Self, AuditError> {
        let sync_always = settings.sync_always;
        let writer = Writer::open(dir, settings.file_bytes_max)?;
        let shared = Arc::new(Shared {
            writer: Mutex::new(writer),
            wake: Condvar::new(),
            along: OnceLock::new(),
        });
        let thread = std::thread::Builder::new()
            .name("audit-sync".to_owned())
            .stack_size(128 * 1024)
            .spawn({
                let shared = Arc::clone(&shared);
                move || sync_in_groups(&shared)
            })
            .map_err(|error| AuditError::io(dir, "start the sync thread of", error))?;
        Ok(Self {
            shared,
            sync_always,
            thread: Some(thread),
        })
    }

    /// Names a file whose records precede those of `Grouped` appends: it is synced with them, before they count as such.
    /// The first one stays.
    pub fn sync_along(&self, file: File) {
        let _ = self.shared.along.set(file);
    }

    /// Records an event. On an error nothing was recorded, and what was to be recorded must not happen.
    ///
    /// `Grouped` costs a write of a few hundred bytes; `Synced` waits for the disk and blocks its thread.
    pub fn append(&self, event: &Event, durability: Durability) -> Result<Receipt, AuditError> {
        let mut writer = self.shared.lock();
        if self.sync_always && durability == Durability::Grouped {
            self.shared
                .sync_along()
                .map_err(|error| AuditError::io(&writer.dir, "sync what belongs to", error))?;
        }
        if self.sync_always || durability == Durability::Synced {
            return writer.append_synced(event);
        }
        let receipt = writer.append(event)?;
        if !writer.sync_wanted {
            writer.sync_wanted = true;
            self.shared.wake.notify_one();
        }
        Ok(receipt)
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            // The thread only syncs; if it panicked there is nothing left to do for it.
            let _ = thread.join();
        }
    }
}

/// Syncs what `Grouped` appends have written, once per `SYNC_DELAY`, outside the lock.
fn sync_in_groups(shared: &Shared) {
    let mut writer = shared.lock();
    loop {
        while !writer.sync_wanted && !writer.closing {
            writer = shared
                .wake
                .wait(writer)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if !writer.sync_wanted {
            return;
        }
        if !writer.closing {
            drop(writer);
            // Half the delay: the sync itself takes time too, and must end within the whole of it.
            std::thread::sleep(SYNC_DELAY / 2);
            writer = shared.lock();
        }
        writer.sync_wanted = false;
        let (file, number, written) = (Arc::clone(&writer.file), writer.number, writer.written);
        drop(writer);
        let synced = shared.sync_along().and_then(|()| file.sync_data());
        writer = shared.lock();
        // After a rotation the file in hand was synced by `rotate`.
        if writer.number == number {
            match synced {
                Ok(()) => writer.synced = writer.synced.max(written),
                Err(_) => writer.sync_failed = true,
            }
        }
    }
}

struct Writer {
    dir: PathBuf,
    file_bytes_max: u64,
    /// Locked for as long as the log is open.
    head: File,
    file: Arc<File>,
    path: PathBuf,
    number: u32,
    /// The end of the last whole record.
    written: u64,
    /// Up to where the file is known to be on the disk.
    synced: u64,
    link: Link,
    /// Where the last record begins, and the link before it: what `take_back` returns to.
    last_start: u64,
    last_previous: Link,
    /// A failed write may have left bytes after `written`.
    tail_dirty: bool,
    sync_wanted: bool,
    sync_failed: bool,
    closing: bool,
}

impl Writer {
    fn open(dir: &Path, file_bytes_max: u64) -> Result<Self, AuditError> {
        files::ensure_dir(dir)?;
        let head_path = head_path(dir);
        let head = files::open_or_create(&head_path)?;
        rustix::fs::flock(&head, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(
            |errno| {
                if errno == rustix::io::Errno::WOULDBLOCK {
                    AuditError::InUse {
                        dir: dir.to_owned(),
                    }
                } else {
                    AuditError::io(&head_path, "lock", errno.into())
                }
            },
        )?;
        let known = read_head(&head).map_err(|error| AuditError::io(&head_path, "read", error))?;

        // A crash between making a file and writing its first record leaves it without one; the chain then
        // ends in the file before it.
        let mut numbers = file_numbers(dir)?;
        let (mut end, mut emptied) = (None, None);
        while let Some(number) = numbers.pop() {
            let path = file_path(dir, number);
            let found = read_end(&path)?;
            if found.link.is_none() && emptied.is_none() {
                emptied = Some((number, found));
                continue;
            }
            end = Some((number, path, found));
            break;
        }
        let link = match &end {
            None => Link::START,
            Some((_, path, found)) => found
                .link
                .ok_or_else(|| AuditError::Broken { path: path.clone() })?,
        };
        let (number, path, found) = match (emptied, end) {
            (Some((number, found)), _) => (number, file_path(dir, number), found),
            (None, Some(end)) => end,
            (None, None) => {
                let path = file_path(dir, 1);
                files::create_new(&path)?;
                files::sync_dir(dir)?;
                (1, path, End::default())
            }
        };
        let file = files::open_or_create(&path)?;
        let mut writer = Self {
            dir: dir.to_owned(),
            file_bytes_max,
            head,
            file: Arc::new(file),
            path,
            number,
            written: found.whole_bytes,
            synced: 0,
            link,
            last_start: found.whole_bytes,
            last_previous: link,
            tail_dirty: false,
            sync_wanted: false,
            sync_failed: false,
            closing: false,
        };
        let torn = writer.put_torn_aside(&found.torn)?;
        if writer.written == 0 {
            writer.append_line(&Event::LogFile {
                number,
                previous_sha256: Digest(link.hash),
            })?;
        }
        if let Some(torn) = torn {
            writer.append_line(&torn)?;
        }
        match known {
            Head::At(known) if known.seq > link.seq => {
                writer.append_line(&Event::LogShortened {
                    known_seq: known.seq,
                    found_seq: link.seq,
                })?;
            }
            Head::At(known) if known.seq == link.seq && known != link => {
                return Err(AuditError::Broken { path: writer.path });
            }
            Head::Unreadable if link.seq > 0 => {
                writer.append_line(&Event::LogHeadLost {
                    found_seq: link.seq,
                })?;
            }
            Head::At(_) | Head::Unreadable => {}
        }
        writer.write_head()?;
        writer.sync()?;
        Ok(writer)
    }

    /// Moves the bytes of an unfinished line into a file of their own and cuts them off.
    fn put_torn_aside(&mut self, torn: &[u8]) -> Result<Option<Event>, AuditError> {
        if torn.is_empty() {
            return Ok(None);
        }
        let name = format!("torn-{:08}-{:012}.txt", self.number, self.written);
        files::replace(&self.dir.join(&name), torn)?;
        self.file
            .set_len(self.written)
            .and_then(|()| self.file.sync_all())
            .map_err(|error| AuditError::io(&self.path, "cut", error))?;
        Ok(Some(Event::LogTorn {
            bytes: torn.len() as u64,
            sha256: Digest::of(torn),
            kept_as: name,
        }))
    }

    fn append(&mut self, event: &Event) -> Result<Receipt, AuditError> {
        self.mend()?;
        let receipt = self.append_line(event)?;
        if let Err(error) = self.write_head() {
            self.take_back();
            return Err(error);
        }
        Ok(receipt)
    }

    fn append_synced(&mut self, event: &Event) -> Result<Receipt, AuditError> {
        self.mend()?;
        let receipt = self.append_line(event)?;
        if let Err(error) = self.sync().and_then(|()| self.write_head()) {
            self.take_back();
            return Err(error);
        }
        Ok(receipt)
    }

    /// Removes the record just written: what it announces will not happen.
    fn take_back(&mut self) {
        self.written = self.last_start;
        self.synced = self.synced.min(self.written);
        self.link = self.last_previous;
        self.tail_dirty = true;
        // If this fails too, the next append tries again before it writes.
        let _ = self.cut_tail();
    }

    /// Makes up for what failed before: cuts a partial line, and writes again what a failed sync may have lost.
    fn mend(&mut self) -> Result<(), AuditError> {
        if self.tail_dirty {
            self.cut_tail()?;
        }
        if !self.sync_failed {
            return Ok(());
        }
        // After a failed fsync the kernel may hold pages as clean that never reached the disk; writing them
        // again marks them dirty, so that the next sync means what it says.
        let mut offset = self.synced;
        let mut buffer = vec![0; 64 * 1024];
        while offset < self.written {
            let want = usize::try_from(self.written - offset)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            let part = &mut buffer[..want];
            self.file
                .read_exact_at(part, offset)
                .and_then(|()| self.file.write_all_at(part, offset))
                .map_err(|error| AuditError::io(&self.path, "write again", error))?;
            offset += want as u64;
        }
        self.sync()
    }

    fn cut_tail(&mut self) -> Result<(), AuditError> {
        self.file
            .set_len(self.written)
            .map_err(|error| AuditError::io(&self.path, "cut", error))?;
        self.tail_dirty = false;
        Ok(())
    }

    fn append_line(&mut self, event: &Event) -> Result<Receipt, AuditError> {
        let (mut line, mut link) =
            chain::line(self.link, now_ms(), event).map_err(AuditError::Encode)?;
        if line.len() > LINE_BYTES_MAX {
            return Err(AuditError::TooLarge {
                bytes: line.len(),
                limit: LINE_BYTES_MAX,
            });
        }
        let is_full = self.written.saturating_add(line.len() as u64) > self.file_bytes_max;
        if is_full && self.written > 0 && !matches!(event, Event::LogFile { .. }) {
            self.rotate()?;
            (line, link) = chain::line(self.link, now_ms(), event).map_err(AuditError::Encode)?;
        }
        self.write_line(&line, link)?;
        Ok(Receipt(()))
    }

    fn write_line(&mut self, line: &[u8], link: Link) -> Result<(), AuditError> {
        if let Err(error) = self.file.write_all_at(line, self.written) {
            self.tail_dirty = true;
            // If this fails too, the next append tries again before it writes.
            let _ = self.cut_tail();
            return Err(AuditError::io(&self.path, "write", error));
        }
        (self.last_start, self.last_previous) = (self.written, self.link);
        self.written += line.len() as u64;
        self.link = link;
        Ok(())
    }

    /// Closes the file for good and begins the next one with a record that ties it to this one.
    fn rotate(&mut self) -> Result<(), AuditError> {
        self.sync()?;
        let number = self.number.saturating_add(1);
        let path = file_path(&self.dir, number);
        let (line, link) = chain::line(
            self.link,
            now_ms(),
            &Event::LogFile {
                number,
                previous_sha256: Digest(self.link.hash),
            },
        )
        .map_err(AuditError::Encode)?;
        // A file that an earlier attempt has left holds no record, so it can be begun again.
        let file = files::open_or_create(&path)?;
        let begun = file
            .set_len(0)
            .and_then(|()| file.write_all_at(&line, 0))
            .and_then(|()| file.sync_all());
        if let Err(error) = begun {
            // Nothing to add to the first error; an empty file is harmless.
            let _ = std::fs::remove_file(&path);
            return Err(AuditError::io(&path, "begin", error));
        }
        files::sync_dir(&self.dir)?;
        self.file = Arc::new(file);
        self.path = path;
        self.number = number;
        self.written = line.len() as u64;
        self.synced = self.written;
        self.link = link;
        (self.last_start, self.last_previous) = (self.written, link);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), AuditError> {
        match self.file.sync_data() {
            Ok(()) => {
                self.synced = self.written;
                self.sync_failed = false;
                Ok(())
            }
            Err(error) => {
                self.sync_failed = true;
                Err(AuditError::io(&self.path, "sync", error))
            }
        }
    }

    /// Notes the last record beside the log, so that lines cut off its end are missed.
    fn write_head(&mut self) -> Result<(), AuditError> {
        let text = format!("{:020} {}\n", self.link.seq, hex_lower(&self.link.hash));
        self.head
            .write_all_at(text.as_bytes(), 0)
            .map_err(|error| AuditError::io(&head_path(&self.dir), "write", error))
    }
}

/// What `audit.head` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    At(Link),
    /// Absent, empty or not in its form.
    Unreadable,
}

pub(super) fn read_head(file: &File) -> io::Result<Head> {
    let mut bytes = [0; HEAD_BYTES];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Head::Unreadable),
        Err(error) => return Err(error),
    }
    let parsed = std::str::from_utf8(&bytes).ok().and_then(|text| {
        let (seq, hash) = text.strip_suffix('\n')?.split_once(' ')?;
        Some(Link {
            seq: seq.parse().ok()?,
            hash: chain::hash_from_hex(hash)?,
        })
    });
    Ok(parsed.map_or(Head::Unreadable, Head::At))
}

pub(super) fn head_path(dir: &Path) -> PathBuf {
    dir.join("audit.head")
}

pub(super) fn file_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("audit-{number:08}.jsonl"))
}

/// The numbers of the log's files, in order.
pub(super) fn file_numbers(dir: &Path) -> Result<Vec<u32>, AuditError> {
    let entries = std::fs::read_dir(dir).map_err(|error| AuditError::io(dir, "list", error))?;
    let mut numbers = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| AuditError::io(dir, "list", error))?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("audit-")?.strip_suffix(".jsonl"))
            .and_then(|digits| digits.parse().ok());
        if let Some(number) = number
            && file_path(dir, number).file_name() == Some(&name)
        {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// How a file ends.
#[derive(Default)]
struct End {
    /// The bytes of whole lines.
    whole_bytes: u64,
    /// What follows the last line feed.
    torn: Vec<u8>,
    /// The last record, if there is one.
    link: Option<Link>,
}

fn read_end(path: &Path) -> Result<End, AuditError> {
    let broken = || AuditError::Broken {
        path: path.to_owned(),
    };
    let Some(file) = files::open(path)? else {
        return Err(broken());
    };
    let io = |error| AuditError::io(path, "read", error);
    let bytes = file.metadata().map_err(io)?.len();
    let start = bytes.saturating_sub(TAIL_BYTES);
    let mut tail = vec![0; usize::try_from(bytes - start).unwrap_or(0)];
    file.read_exact_at(&mut tail, start).map_err(io)?;
    let whole = tail
        .iter()
        .rposition(|&byte| byte == b'\n')
        .map_or(0, |at| at + 1);
    if whole == 0 && start > 0 {
        return Err(broken());
    }
    let torn = tail.split_off(whole);
    let mut lines = tail.rsplit(|&byte| byte == b'\n').skip(1);
    let link = match (lines.next(), lines.next()) {
        (None, _) => None,
        // The only record of a file cannot be checked against one before it here; `verify` does.
        (Some(last), None) => Some(chain::claimed(last).ok_or_else(broken)?),
        (Some(last), Some(before)) => {
            let before = chain::claimed(before).ok_or_else(broken)?;
            let (_, link) = chain::check(before, last).map_err(|_| broken())?;
            Some(link)
        }
    };
    Ok(End {
        whole_bytes: start + whole as u64,
        torn,
        link,
    })
}

#[cfg(test)]
mod tests;
