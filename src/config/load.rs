//! Where the config and the state stand, and reading the file.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::env::Env;
use super::error::ConfigError;
use super::tree::{self, Tree};

/// No config written by hand comes near this.
const CONFIG_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The places that belong to one profile.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Paths {
    /// The JSON5 file; it need not exist.
    pub config: PathBuf,
    /// Shared with OpenClaw; nothing in it is ours but `own`.
    pub state: PathBuf,
    /// Portcullis's own state: `portcullis/` inside the state directory.
    pub own: PathBuf,
    pub home: Option<PathBuf>,
}

impl Paths {
    /// Follows OPENCLAW_CONFIG_PATH, OPENCLAW_STATE_DIR, `--profile` or OPENCLAW_PROFILE, then `~/.openclaw`.
    ///
    /// As in the reference, a state directory named in the environment wins over a profile.
    pub fn find(env: &Env, profile: Option<&str>) -> Result<Self, ConfigError> {
        let home = env.path("OPENCLAW_HOME").or_else(|| env.path("HOME"));
        let profile = profile
            .map(str::to_owned)
            .or_else(|| env.text("OPENCLAW_PROFILE"));
        let folder = match profile.as_deref() {
            None => ".openclaw".to_owned(),
            Some(name) if !is_profile_name(name) => {
                return Err(ConfigError::bad(
                    "--profile",
                    "not a name",
                    "1 to 64 letters, digits, _ or -, a letter or digit first",
                ));
            }
            Some(name) if name.eq_ignore_ascii_case("default") => ".openclaw".to_owned(),
            Some(name) => format!(".openclaw-{name}"),
        };
        let state = match env.path("OPENCLAW_STATE_DIR") {
            Some(dir) => dir,
            None => home.as_ref().ok_or(ConfigError::NoHome)?.join(folder),
        };
        let config = env
            .path("OPENCLAW_CONFIG_PATH")
            .unwrap_or_else(|| state.join("openclaw.json"));
        let own = state.join("portcullis");
        Ok(Self {
            config,
            state,
            own,
            home,
        })
    }

    /// The Unix socket through which the local CLI administers the Gateway.
    pub fn admin_socket(&self) -> PathBuf {
        self.own.join("admin.sock")
    }

    /// The node host's identity and its device token.
    pub fn identity_dir(&self) -> PathBuf {
        self.own.join("identity")
    }

    /// The node host's own exec policy.
    pub fn exec_approvals_file(&self) -> PathBuf {
        self.own.join("exec-approvals.json")
    }

    pub fn audit_dir(&self) -> PathBuf {
        self.own.join("audit")
    }
}

fn is_profile_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// What the file holds, and whether others may read it.
pub(super) struct Document {
    pub(super) tree: Tree,
    /// The mode, if group or others can read the file.
    pub(super) readable_by_others: Option<u32>,
}

/// Reads the config file. A missing one is an empty one.
pub(super) fn read(path: &Path) -> Result<Document, ConfigError> {
    let unreadable = |error: std::io::Error| ConfigError::Unreadable {
        path: path.to_owned(),
        why: error.to_string(),
    };
    // A fifo in its place must not hang us before its kind is seen. Unlike private files it may be a symbolic link.
    let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(nonblock)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Document {
                tree: Tree::empty(),
                readable_by_others: None,
            });
        }
        Err(error) => return Err(unreadable(error)),
    };
    let facts = file.metadata().map_err(unreadable)?;
    let exposed = |why: String| ConfigError::Exposed {
        path: path.to_owned(),
        why,
    };
    if !facts.is_file() {
        return Err(exposed("it is not a regular file".to_owned()));
    }
    let ours = rustix::process::geteuid().as_raw();
    if facts.uid() != ours && facts.uid() != 0 {
        return Err(exposed(format!("it belongs to user {}", facts.uid())));
    }
    let mode = facts.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(exposed(format!(
            "its mode {mode:04o} lets others write to it"
        )));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(CONFIG_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    if text.len() as u64 > CONFIG_BYTES_MAX {
        return Err(ConfigError::TooLarge {
            path: path.to_owned(),
            got: facts.len(),
            limit: CONFIG_BYTES_MAX,
        });
    }
    let tree = parse(path, &text)?;
    Ok(Document {
        tree,
        readable_by_others: (mode & 0o044 != 0).then_some(mode),
    })
}

pub(super) fn parse(path: &Path, text: &str) -> Result<Tree, ConfigError> {
    let tree = tree::parse(text).map_err(|why| ConfigError::Malformed {
        path: path.to_owned(),
        why,
    })?;
    if !matches!(tree, Tree::Map(_)) {
        return Err(ConfigError::Malformed {
            path: path.to_owned(),
            why: format!("the whole is {}, not an object", tree.kind()),
        });
    }
    Ok(tree)
}
