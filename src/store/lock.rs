//! One process owns a state directory.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::FlockOperation;

use super::StoreError;
use crate::machine::files::{self, FileError};

/// The name of the lock file. It stays when the process ends; the lock does not.
pub const FILE_NAME: &str = "state.lock";

/// The right to a state directory, held until it is dropped or the process ends.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

impl StateLock {
    /// Takes the lock of a private directory, or says which process holds it.
    pub fn acquire(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(FILE_NAME);
        let mut file = files::open_or_create(&path)?;
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
                let mut text = String::new();
                // The number helps the operator; without it the refusal stands all the same.
                let _ = file.by_ref().take(32).read_to_string(&mut text);
                return Err(StoreError::InUse {
                    path: dir.to_owned(),
                    pid: text.trim().parse().ok(),
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
