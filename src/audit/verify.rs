//! Proof that a log is whole, and a reader of its records.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

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
    /// The last line is unfinished: a process was stopped, or is writing right now.
    TornEnd { file: u32, line: u64 },
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
            Self::TornEnd { file, line } => write!(
                f,
                "file {file}, line {line}: unfinished; it is put aside when the Gateway starts"
            ),
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
    let mut reading = Reading {
        link: Link::START,
        head,
        head_seen: false,
        torn: 0,
        shortened: 0,
        record: &mut record,
    };
    let numbers = file_numbers(dir)?;
    for (expected, &number) in (1..).zip(&numbers) {
        if number != expected {
            return Err(Broken::FileMissing { number: expected });
        }
        reading.file(dir, number, numbers.last() == Some(&number))?;
    }
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
        files: u32::try_from(numbers.len()).unwrap_or(u32::MAX),
        records: last.seq,
        last,
        torn: reading.torn,
        shortened: reading.shortened,
    })
}

struct Reading<'a> {
    link: Link,
    head: Head,
    head_seen: bool,
    torn: u64,
    shortened: u64,
    record: &'a mut dyn FnMut(Record),
}

impl Reading<'_> {
    fn file(&mut self, dir: &Path, number: u32, is_last: bool) -> Result<(), Broken> {
        let path = file_path(dir, number);
        let file = files::open(&path)
            .map_err(AuditError::from)?
            .ok_or(Broken::FileMissing { number })?;
        let mut reader = BufReader::with_capacity(64 * 1024, file);
        let mut bytes = Vec::new();
        for line in 1.. {
            bytes.clear();
            (&mut reader)
                .take(LINE_BYTES_MAX as u64)
                .read_until(b'\n', &mut bytes)
                .map_err(|source| AuditError::Io {
                    path: path.clone(),
                    doing: "read",
                    source,
                })?;
            if bytes.is_empty() {
                // An empty file in the middle would hide that its records are gone; the sequence shows it.
                break;
            }
            let Some(text) = bytes.strip_suffix(b"\n") else {
                if bytes.len() == LINE_BYTES_MAX {
                    return Err(Broken::LineTooLong { file: number, line });
                }
                if is_last {
                    return Err(Broken::TornEnd { file: number, line });
                }
                return Err(Broken::Line {
                    file: number,
                    line,
                    error: LineError::Form,
                });
            };
            let (record, link) = chain::check(self.link, text).map_err(|error| Broken::Line {
                file: number,
                line,
                error,
            })?;
            self.link = link;
            self.head_seen |= self.head == Head::At(link);
            match kind(&record) {
                Some("log.torn") => self.torn += 1,
                Some("log.shortened" | "log.headLost") => self.shortened += 1,
                _ => {}
            }
            (self.record)(record);
        }
        Ok(())
    }
}

/// The kind of an event. The log writes it first, and it needs no escapes.
fn kind(record: &Record) -> Option<&str> {
    let rest = record.event.get().strip_prefix("{\"kind\":\"")?;
    rest.split_once('"').map(|(kind, _)| kind)
}
