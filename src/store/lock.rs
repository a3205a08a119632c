//! One process owns a state directory.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::FlockOperation;

use super::StoreError;
use crate::machine::files::{self, FileError};

/// The name of the store's own lock file. It stays when the process ends; the lock does not.
pub const FILE_NAME: &str = "state.lock";

/// The right to a state directory, held until it is dropped or the process ends.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

impl StateLock {
    /// Which process holds a lock of this name, if any. Takes nothing, and writes nothing.
    pub fn holder(dir: &Path, name: &str) -> Result<Option<i32>, StoreError> {
        let Some(file) = files::open(&dir.join(name))? else {
            return Ok(None);
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(written(&file)),
            _ => Ok(None),
        }
    }

    /// Takes a lock of a private directory, or says which process holds it.
    pub fn take(dir: &Path, name: &str) -> Result<Self, StoreError> {
        let path = dir.join(name);
        let file = files::open_or_create(&path)?;
        let io = |doing, source| {
            StoreError::File(FileError::Io {
                path: path.clone(),
                doing,
                source,
            })
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(StoreError::InUse {
                    path: dir.to_owned(),
                    pid: written(&file),
                });
            }
            Err(errno) => return Err(io("lock", errno.into())),
        }
        file.set_len(0)
            .and_then(|()| file.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0))
            .map_err(|error| io("write", error))?;
        Ok(Self { _file: file })
    }
}

/// The process that a lock file names. The number helps the operator; a refusal stands without it.
fn written(file: &File) -> Option<i32> {
    let mut text = String::new();
    let _ = file.take(32).read_to_string(&mut text);
    text.trim().parse().ok()
}
