//! Private files: readable by our own user only, never through a symbolic link, replaced as a whole.
//!
//! A secret that another user could have read, or a directory in which another user could have put a file, is
//! refused with its path, its mode and the right one (exit code 78): repairing it silently would hide that
//! it was open.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The mode of a private file.
pub const FILE_MODE: u32 = 0o600;
/// The mode of a file that others may read.
const PUBLIC_FILE_MODE: u32 = 0o644;
/// The mode of a private directory.
pub const DIR_MODE: u32 = 0o700;

/// Why a private file or directory could not be used.
#[derive(Debug)]
pub enum FileError {
    /// Group or others have rights on it.
    Mode {
        path: PathBuf,
        mode: u32,
        required: u32,
    },
    /// It belongs to another user.
    Owner {
        path: PathBuf,
        owner: u32,
        required: u32,
    },
    /// It is a symbolic link.
    Symlink { path: PathBuf },
    /// It is neither a regular file nor a directory where the other was needed.
    Kind {
        path: PathBuf,
        required: &'static str,
    },
    /// Others than we and root could exchange it.
    Exchangeable { path: PathBuf, why: String },
    /// It is longer than what the caller reads.
    TooLarge { path: PathBuf, limit: u64 },
    /// The system refused.
    Io {
        path: PathBuf,
        doing: &'static str,
        source: io::Error,
    },
}

impl FileError {
    fn io(path: &Path, doing: &'static str, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            doing,
            source,
        }
    }

    /// Whether a restart cannot cure it: the operator must change the file or name another (exit code 78).
    pub fn is_permission(&self) -> bool {
        use io::ErrorKind::{
            AlreadyExists, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem,
        };
        let Self::Io { source, .. } = self else {
            return true;
        };
        matches!(
            source.kind(),
            AlreadyExists | NotADirectory | NotFound | PermissionDenied | ReadOnlyFilesystem
        )
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mode {
                path,
                mode,
                required,
            } => write!(
                f,
                "{} has mode {mode:04o} but must have {required:04o}: chmod {required:04o} it, and replace what it holds if others could read it",
                path.display()
            ),
            Self::Owner {
                path,
                owner,
                required,
            } => write!(
                f,
                "{} belongs to user {owner} but must belong to user {required}, who runs this program",
                path.display()
            ),
            Self::Symlink { path } => write!(
                f,
                "{} is a symbolic link, which is not followed: put the file itself there",
                path.display()
            ),
            Self::Kind { path, required } => {
                write!(f, "{} must be a {required}", path.display())
            }
            Self::Exchangeable { path, why } => write!(f, "{} {why}", path.display()),
            Self::TooLarge { path, limit } => {
                write!(f, "{} is longer than {limit} bytes", path.display())
            }
            Self::Io {
                path,
                doing,
                source,
            } => write!(f, "cannot {doing} {}: {source}", path.display()),
        }
    }
}

impl std::error::Error for FileError {}

/// Makes a private directory, with its missing parents, or checks the one that is there.
pub fn ensure_dir(path: &Path) -> Result<(), FileError> {
    match DirBuilder::new()
        .recursive(true)
        .mode(DIR_MODE)
        .create(path)
    {
        Ok(()) => {}
        // What stands there is not a directory; `check_dir` names what it is.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(FileError::io(path, "create the directory", error)),
    }
    check_dir(path)
}

/// Checks that a directory is private, ours and no symbolic link.
pub fn check_dir(path: &Path) -> Result<(), FileError> {
    let metadata =
        std::fs::symlink_metadata(path).map_err(|error| FileError::io(path, "look at", error))?;
    if metadata.is_symlink() {
        return Err(FileError::Symlink {
            path: path.to_owned(),
        });
    }
    if !metadata.is_dir() {
        return Err(FileError::Kind {
            path: path.to_owned(),
            required: "directory",
        });
    }
    check_owner_and_mode(path, &metadata, DIR_MODE)
}

/// Opens a private file for reading and writing, making it empty if it is not there.
pub fn open_or_create(path: &Path) -> Result<File, FileError> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE);
    open_checked(path, &mut options)
}

/// Makes a private file that must not be there yet, for reading and writing.
pub fn create_new(path: &Path) -> Result<File, FileError> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create_new(true)
        .mode(FILE_MODE);
    open_checked(path, &mut options)
}

/// Opens a private file for reading; `None` if it is not there.
pub fn open(path: &Path) -> Result<Option<File>, FileError> {
    if_there(open_checked(path, OpenOptions::new().read(true)))
}

/// Reads a private file of at most `bytes_max` bytes; `None` if it is not there.
pub fn read(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, FileError> {
    read_all(path, open(path)?, bytes_max)
}

/// The same for a file that is no secret, such as a certificate: others may read it, and root may own it, but nobody
/// else may have written it.
pub fn read_public(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, FileError> {
    let opened = open_regular(path, OpenOptions::new().read(true)).and_then(|(file, metadata)| {
        if metadata.uid() != 0 {
            check_owner(path, &metadata)?;
        }
        check_mode(path, &metadata, 0o022, PUBLIC_FILE_MODE)?;
        Ok(file)
    });
    read_all(path, if_there(opened)?, bytes_max)
}

fn if_there(opened: Result<File, FileError>) -> Result<Option<File>, FileError> {
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_all(path: &Path, file: Option<File>, bytes_max: u64) -> Result<Option<Vec<u8>>, FileError> {
    let Some(file) = file else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    file.take(bytes_max.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| FileError::io(path, "read", error))?;
    if bytes.len() as u64 > bytes_max {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
            limit: bytes_max,
        });
    }
    Ok(Some(bytes))
}

/// Puts a private file in place as a whole: after a crash there is either the old content or the new.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    // An existing target that is a link or open to others is a sign of trouble, not something to write over.
    open(path)?;
    let dir = parent(path);
    let temporary = dir.join(format!(
        ".{}.{}",
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .trim_start_matches('.'),
        crate::base::ids::hex_lower(&super::random::<8>())
    ));
    let written = create_new(&temporary).and_then(|mut file| {
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(|error| FileError::io(&temporary, "write", error))?;
        std::fs::rename(&temporary, path).map_err(|error| FileError::io(path, "replace", error))?;
        sync_dir(dir)
    });
    if written.is_err() {
        // Nothing to add to the first error if the temporary file cannot be removed either.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Makes names that were added to or removed from a directory durable.
pub fn sync_dir(dir: &Path) -> Result<(), FileError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|error| FileError::io(dir, "sync", error))
}

/// Checks that none but us and root decide what this program is: it, and every directory from the root, or from one of
/// `trusted`, down to it, belongs to us or to root and is not for others to write. Top down, so that what was checked
/// cannot be exchanged while what is below it is looked at. With `trusted`, it must stand below one of them.
pub fn check_program(path: &Path, trusted: &[PathBuf]) -> Result<(), FileError> {
    let refuse = |path: &Path, why: String| FileError::Exchangeable {
        path: path.to_owned(),
        why,
    };
    let real =
        std::fs::canonicalize(path).map_err(|error| FileError::io(path, "look at", error))?;
    if real != path {
        let why = format!(
            "leads through a symbolic link: name {} itself",
            real.display()
        );
        return Err(refuse(path, why));
    }
    let above: Vec<&Path> = path.ancestors().collect();
    let first = if trusted.is_empty() {
        above.last()
    } else {
        above
            .iter()
            .skip(1)
            .rfind(|dir| trusted.iter().any(|it| it == **dir))
    };
    let Some(first) = first.copied() else {
        return Err(refuse(path, "stands in none of trustedDirs".to_owned()));
    };
    let us = rustix::process::geteuid().as_raw();
    for place in above.into_iter().rev().skip_while(|place| *place != first) {
        let metadata = std::fs::symlink_metadata(place)
            .map_err(|error| FileError::io(place, "look at", error))?;
        let owner = metadata.uid();
        let mode = metadata.permissions().mode() & 0o7777;
        // In a directory with the sticky bit nobody exchanges what is another's.
        let shared = mode & 0o022 != 0 && !(metadata.is_dir() && mode & 0o1000 != 0);
        if owner != us && owner != 0 {
            return Err(refuse(
                place,
                format!("belongs to user {owner}, who is neither us nor root"),
            ));
        }
        if shared {
            return Err(refuse(
                place,
                format!("has mode {mode:04o}, so others can write to it: chmod go-w it"),
            ));
        }
        if place == path && !metadata.is_file() {
            return Err(refuse(place, "is not a regular file".to_owned()));
        }
    }
    Ok(())
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    }
}

fn open_checked(path: &Path, options: &mut OpenOptions) -> Result<File, FileError> {
    let (file, metadata) = open_regular(path, options)?;
    check_owner_and_mode(path, &metadata, FILE_MODE)?;
    Ok(file)
}

fn open_regular(
    path: &Path,
    options: &mut OpenOptions,
) -> Result<(File, std::fs::Metadata), FileError> {
    // O_NONBLOCK: a fifo put in the file's place must not hang us before its kind is seen.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    let file = options.custom_flags(flags).open(path).map_err(|error| {
        if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) {
            FileError::Symlink {
                path: path.to_owned(),
            }
        } else {
            FileError::io(path, "open", error)
        }
    })?;
    let metadata = file
        .metadata()
        .map_err(|error| FileError::io(path, "look at", error))?;
    if !metadata.is_file() {
        return Err(FileError::Kind {
            path: path.to_owned(),
            required: "regular file",
        });
    }
    Ok((file, metadata))
}

fn check_owner_and_mode(
    path: &Path,
    metadata: &std::fs::Metadata,
    required: u32,
) -> Result<(), FileError> {
    check_owner(path, metadata)?;
    check_mode(path, metadata, 0o077, required)
}

fn check_owner(path: &Path, metadata: &std::fs::Metadata) -> Result<(), FileError> {
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() != user {
        return Err(FileError::Owner {
            path: path.to_owned(),
            owner: metadata.uid(),
            required: user,
        });
    }
    Ok(())
}

fn check_mode(
    path: &Path,
    metadata: &std::fs::Metadata,
    forbidden: u32,
    required: u32,
) -> Result<(), FileError> {
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & forbidden != 0 {
        return Err(FileError::Mode {
            path: path.to_owned(),
            mode,
            required,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::symlink;

    fn private_dir() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(DIR_MODE)).unwrap();
        dir
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn c3_files_and_dirs_are_made_private() {
        let dir = private_dir();
        let nested = dir.path().join("a/b");
        ensure_dir(&nested).unwrap();
        assert_eq!(mode(&nested), 0o700);
        let file = nested.join("secret");
        replace(&file, b"one").unwrap();
        replace(&file, b"two").unwrap();
        assert_eq!(mode(&file), 0o600);
        assert_eq!(read(&file, 3).unwrap().unwrap(), b"two");
        assert_eq!(fs::read_dir(&nested).unwrap().count(), 1);
    }

    #[test]
    fn c3_a_readable_secret_is_refused_by_name_and_mode() {
        let dir = private_dir();
        let file = dir.path().join("secret");
        replace(&file, b"x").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        for error in [
            read(&file, 10).unwrap_err(),
            replace(&file, b"y").unwrap_err(),
            open_or_create(&file).unwrap_err(),
        ] {
            assert!(error.is_permission());
            let text = error.to_string();
            assert!(text.contains("secret has mode 0644 but must have 0600"));
        }
        assert_eq!(fs::read(&file).unwrap(), b"x");
    }

    #[test]
    fn what_no_restart_cures_is_told_from_what_one_may() {
        let dir = private_dir();
        let file = dir.path().join("file");
        replace(&file, b"x").unwrap();
        for error in [
            ensure_dir(&file.join("below")).unwrap_err(),
            create_new(&file).unwrap_err(),
            create_new(&dir.path().join("no/such")).unwrap_err(),
            FileError::io(&file, "open", io::ErrorKind::PermissionDenied.into()),
        ] {
            assert!(error.is_permission(), "{error}");
        }
        let full = FileError::io(&file, "write", io::ErrorKind::StorageFull.into());
        assert!(!full.is_permission());
    }

    #[test]
    fn a_public_file_may_be_read_by_others_and_written_by_none() {
        let dir = private_dir();
        let file = dir.path().join("certificate");
        assert!(read_public(&file, 10).unwrap().is_none());
        replace(&file, b"x").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(read_public(&file, 10).unwrap().unwrap(), b"x");
        let link = dir.path().join("link");
        symlink(&file, &link).unwrap();
        assert!(matches!(
            read_public(&link, 10),
            Err(FileError::Symlink { .. })
        ));
        for mode in [0o664, 0o646] {
            fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            assert!(matches!(
                read_public(&file, 10),
                Err(FileError::Mode {
                    required: 0o644,
                    ..
                })
            ));
        }
    }

    #[test]
    fn c3_an_open_directory_is_refused() {
        let dir = private_dir();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let error = ensure_dir(dir.path()).unwrap_err();
        assert!(matches!(
            error,
            FileError::Mode {
                mode: 0o755,
                required: 0o700,
                ..
            }
        ));
    }

    #[test]
    fn c3_links_are_not_followed() {
        let dir = private_dir();
        let real = dir.path().join("real");
        replace(&real, b"x").unwrap();
        let link = dir.path().join("link");
        symlink(&real, &link).unwrap();
        assert!(matches!(read(&link, 10), Err(FileError::Symlink { .. })));
        assert!(matches!(
            replace(&link, b"y"),
            Err(FileError::Symlink { .. })
        ));
        let dangling = dir.path().join("dangling");
        symlink(dir.path().join("nowhere"), &dangling).unwrap();
        assert!(matches!(
            open_or_create(&dangling),
            Err(FileError::Symlink { .. })
        ));
        let to_dir = dir.path().join("to-dir");
        symlink(dir.path(), &to_dir).unwrap();
        assert!(matches!(
            ensure_dir(&to_dir),
            Err(FileError::Symlink { .. })
        ));
        assert_eq!(fs::read(&real).unwrap(), b"x");
    }

    #[test]
    fn other_kinds_and_sizes_are_refused() {
        let dir = private_dir();
        assert!(matches!(read(dir.path(), 10), Err(FileError::Kind { .. })));
        let file = dir.path().join("f");
        replace(&file, b"12345").unwrap();
        assert!(matches!(ensure_dir(&file), Err(FileError::Kind { .. })));
        assert!(matches!(
            read(&file, 4),
            Err(FileError::TooLarge { limit: 4, .. })
        ));
        assert!(read(&dir.path().join("none"), 4).unwrap().is_none());
        assert!(create_new(&file).is_err());
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(matches!(read(&fifo, 10), Err(FileError::Kind { .. })));
    }

    #[test]
    fn another_users_file_is_refused() {
        let dir = private_dir();
        let file = dir.path().join("f");
        replace(&file, b"x").unwrap();
        // Only root can give a file away; elsewhere a root-owned file serves.
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&file, Some(12_345), None).unwrap();
            assert!(matches!(
                read(&file, 10),
                Err(FileError::Owner { owner: 12_345, .. })
            ));
        } else {
            assert!(matches!(
                open(Path::new("/etc/hostname")),
                Ok(None) | Err(FileError::Owner { owner: 0, .. })
            ));
        }
    }
}
