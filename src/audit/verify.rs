//! Proof that a log is whole, and a reader of its records.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::chain::{self, LINE_BYTES_MAX, LineError, Link, Record};
use super::log::{AuditError, Head, file_numbers, file_path, head_path, read_head};
use crate::machine::files;

/// A log that is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    pub files: u32,
    pub records: u64,
    pub last: Link,
    /// How often a start found an unfinished line and put it aside.
    pub torn: u64,
    /// How often a start found records missing at the end, or could not tell.
    pub shortened: u64,
    /// The log ends in the middle of a line that was never acknowledged: a process was stopped, or is writing right now.
    /// It is put aside when the Gateway starts. Had the line been whole once, the log would be `Broken::Shortened`.
    pub torn_end: bool,
}

/// The first thing that is wrong with a log.
#[derive(Debug)]
pub enum Broken {
    /// It cannot be read.
    Read(AuditError),
    /// A file between the first and the last is gone, or the first ones are.
    FileMissing { number: u32 },
    /// A line was changed, removed or moved: it, or what is between it and the line before it.
    Line {
        file: u32,
        line: u64,
        error: LineError,
    },
    /// A line is longer than any record.
    LineTooLong { file: u32, line: u64 },
    /// Records are missing at the end.
    Shortened { known_seq: u64, found_seq: u64 },
    /// The record that was noted as the last is another one.
    HeadDiffers { seq: u64 },
    /// The note of the last record is gone, so a cut at the end cannot be ruled out.
    HeadUnreadable,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) => error.fmt(f),
            Self::FileMissing { number } => write!(f, "file {number} is missing"),
            Self::Line { file, line, error } => {
                write!(f, "file {file}, line {line}: ")?;
                match error {
                    LineError::Form => f.write_str("not a record"),
                    LineError::Sequence { expected, found } => {
                        write!(f, "record {found} stands where {expected} belongs")
                    }
                    LineError::Hash => f.write_str("the hash does not follow: it was changed"),
                }
            }
            Self::LineTooLong { file, line } => {
                write!(f, "file {file}, line {line}: longer than any record")
            }
            Self::Shortened {
                known_seq,
                found_seq,
            } => write!(
                f,
                "the log ends with record {found_seq}, but record {known_seq} was written"
            ),
            Self::HeadDiffers { seq } => {
                write!(f, "record {seq} is not the one that was noted as the last")
            }
            Self::HeadUnreadable => f.write_str("the note of the last record is gone"),
        }
    }
}

impl std::error::Error for Broken {}

impl From<AuditError> for Broken {
    fn from(error: AuditError) -> Self {
        Self::Read(error)
    }
}

/// Checks every record of a log, across its files, and that none is missing at either end.
///
/// Somebody who may write the files can still compute a new chain; keep an exported hash elsewhere against that.
pub fn verify(dir: &Path) -> Result<Verified, Broken> {
    for_each(dir, |_| {})
}

/// Checks as `verify` does, and hands out each record once it is checked.
pub fn for_each(dir: &Path, mut record: impl FnMut(Record)) -> Result<Verified, Broken> {
    // First the note, then the log: what a running Gateway appends in between must not look like a fault.
    let head = match files::open(&head_path(dir)).map_err(AuditError::from)? {
        None => Head::Unreadable,
        Some(file) => read_head(&file).map_err(|source| AuditError::Io {
            path: head_path(dir),
            doing: "read",
            source,
        })?,
    };
    let mut reading = Reader::new(dir);
    reading.head = head;
    reading.read(&mut record)?;
    let last = reading.link;
    match head {
        Head::Unreadable => return Err(Broken::HeadUnreadable),
        Head::At(known) if known.seq > last.seq => {
            return Err(Broken::Shortened {
                known_seq: known.seq,
                found_seq: last.seq,
            });
        }
        Head::At(known) if !reading.head_seen => {
            return Err(Broken::HeadDiffers { seq: known.seq });
        }
        Head::At(_) => {}
    }
    Ok(Verified {
        files: reading.number,
        records: last.seq,
        last,
        torn: reading.torn,
        shortened: reading.shortened,
        torn_end: reading.torn_end,
    })
}

/// Reads and checks a log from its beginning, and what is appended later from where it stopped.
pub struct Reader {
    dir: PathBuf,
    /// The file that is read, from 1, and how far it was.
    number: u32,
    offset: u64,
    line: u64,
    link: Link,
    head: Head,
    head_seen: bool,
    torn: u64,
    shortened: u64,
    torn_end: bool,
}

impl Reader {
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            number: 0,
            offset: 0,
            line: 0,
            link: Link::START,
            head: Head::Unreadable,
            head_seen: false,
            torn: 0,
            shortened: 0,
            torn_end: false,
        }
    }

    /// Hands out every whole record that has not been read yet.
    pub fn read(&mut self, record: &mut dyn FnMut(Record)) -> Result<(), Broken> {
        let numbers = file_numbers(&self.dir)?;
        for (expected, &number) in (1..).zip(&numbers) {
            if number != expected {
                return Err(Broken::FileMissing { number: expected });
            }
            if number < self.number {
                continue;
            }
            if number > self.number {
                (self.number, self.offset, self.line) = (number, 0, 0);
            }
            self.file(numbers.last() == Some(&number), record)?;
        }
        Ok(())
    }

    fn file(&mut self, is_last: bool, record: &mut dyn FnMut(Record)) -> Result<(), Broken> {
        let number = self.number;
        let path = file_path(&self.dir, number);
        let io = |source| AuditError::Io {
            path: path.clone(),
            doing: "read",
            source,
        };
        let mut file = files::open(&path)
            .map_err(AuditError::from)?
            .ok_or(Broken::FileMissing { number })?;
        file.seek(SeekFrom::Start(self.offset)).map_err(io)?;
        let mut reader = BufReader::with_capacity(64 * 1024, file);
        let mut bytes = Vec::new();
        self.torn_end = false;
        loop {
            bytes.clear();
            (&mut reader)
                .take(LINE_BYTES_MAX as u64)
                .read_until(b'\n', &mut bytes)
                .map_err(io)?;
            if bytes.is_empty() {
                // An empty file in the middle would hide that its records are gone; the sequence shows it.
                return Ok(());
            }
            let line = self.line + 1;
            let Some(text) = bytes.strip_suffix(b"\n") else {
                if bytes.len() == LINE_BYTES_MAX {
                    return Err(Broken::LineTooLong { file: number, line });
                }
                if is_last {
                    self.torn_end = true;
                    return Ok(());
                }
                return Err(Broken::Line {
                    file: number,
                    line,
                    error: LineError::Form,
                });
            };
            let (found, link) = chain::check(self.link, text).map_err(|error| Broken::Line {
                file: number,
                line,
                error,
            })?;
            self.link = link;
            self.line = line;
            self.offset += bytes.len() as u64;
            self.head_seen |= self.head == Head::At(link);
            match found.kind() {
                Some("log.torn") => self.torn += 1,
                Some("log.shortened" | "log.headLost") => self.shortened += 1,
                _ => {}
            }
            record(found);
        }
    }
}
