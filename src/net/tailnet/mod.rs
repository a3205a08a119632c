//! What the local Tailscale daemon knows: whose node an address is, and this host's name in the tailnet.
//!
//! In: an address of the tailnet. Out: the daemon's own word through its LocalAPI (HTTP over a Unix socket), or through
//! `tailscale whois` on a host where the daemon has no such socket.
//! Attacker controls: which addresses are asked about, if it is a local process; never the answer, because the socket's
//! owner must be root or this user, and the program root's or this user's.
//! Bounds: `limits::TAILNET_*`. Errors: `TailnetError`; for admission each of them is `Whois::Failed`.

pub mod answer;

pub use answer::http as http_answer;
#[cfg(test)]
pub(crate) mod stand_in;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::{Instant, timeout};

use crate::auth::whois::Whois;
use crate::base::limits;
use crate::ingress::Host;

/// Where the daemon listens on Linux.
const SOCKET: &str = "/var/run/tailscale/tailscaled.sock";
/// Where its command is found. The caller's `PATH` is not asked.
const PROGRAMS: [&str; 4] = [
    "/usr/bin/tailscale",
    "/usr/local/bin/tailscale",
    "/opt/homebrew/bin/tailscale",
    "/Applications/Tailscale.app/Contents/MacOS/Tailscale",
];

/// Why the daemon could not be asked or understood.
#[derive(Debug)]
pub enum TailnetError {
    /// No socket there, and no `tailscale` command that may be trusted either.
    Absent(PathBuf),
    Socket(io::Error),
    /// Whoever listens at the socket is neither root nor this user.
    Stranger {
        uid: u32,
    },
    TimedOut,
    TooLong,
    /// The daemon refused.
    Status(u16),
    /// The command failed.
    Command(Option<i32>),
    Malformed,
}

impl fmt::Display for TailnetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(socket) => write!(f, "no Tailscale daemon at {}", socket.display()),
            Self::Socket(error) => write!(f, "the Tailscale daemon cannot be reached: {error}"),
            Self::Stranger { uid } => {
                write!(f, "user {uid} listens at the Tailscale daemon's socket")
            }
            Self::TimedOut => f.write_str("the Tailscale daemon did not answer in time"),
            Self::TooLong => f.write_str("the Tailscale daemon's answer is too long"),
            Self::Status(status) => write!(f, "the Tailscale daemon answered {status}"),
            Self::Command(Some(code)) => write!(f, "the tailscale command ended with {code}"),
            Self::Command(None) => f.write_str("the tailscale command was killed"),
            Self::Malformed => f.write_str("the Tailscale daemon's answer cannot be understood"),
        }
    }
}

impl std::error::Error for TailnetError {}

/// The local daemon.
pub struct Tailnet {
    socket: PathBuf,
    programs: Vec<PathBuf>,
    asked: Mutex<HashMap<IpAddr, Asked>>,
    places: Semaphore,
}

/// A question that was put at `at`, and its answer as soon as there is one. Whoever asks meanwhile waits for the same.
#[derive(Clone)]
struct Asked {
    at: Instant,
    answer: Arc<OnceCell<Whois>>,
}

/// What the daemon is asked, in the two languages.
struct Question {
    target: String,
    arguments: Vec<String>,
}

impl Tailnet {
    /// The daemon behind this socket; without one the platform's, or its command if that has no socket.
    pub fn new(socket: Option<PathBuf>) -> Self {
        let programs: &[&str] = if socket.is_some() { &[] } else { &PROGRAMS };
        Self {
            socket: socket.unwrap_or_else(|| SOCKET.into()),
            programs: programs.iter().map(PathBuf::from).collect(),
            asked: Mutex::default(),
            places: Semaphore::new(limits::TAILNET_QUESTIONS_MAX),
        }
    }

    /// Whose node has this address, as the daemon said at most `limits::TAILNET_ANSWER_AGE` ago. Only a user's login is
    /// remembered: whoever was refused is asked about anew.
    pub async fn whois(&self, address: IpAddr) -> Whois {
        let asked = self.remembered(address);
        let ask = || async {
            self.ask_whois(address).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "a tailnet identity could not be checked");
                Whois::Failed
            })
        };
        let answer = asked.answer.get_or_init(ask).await.clone();
        if !matches!(answer, Whois::Found { .. }) {
            let mut all = self.asked();
            let same = |it: &Asked| Arc::ptr_eq(&it.answer, &asked.answer);
            if all.get(&address).is_some_and(same) {
                all.remove(&address);
            }
        }
        answer
    }

    async fn ask_whois(&self, address: IpAddr) -> Result<Whois, TailnetError> {
        // Only whose node it is counts, so any port does.
        let question = Question {
            target: format!("/localapi/v0/whois?addr={}", SocketAddr::new(address, 0)),
            arguments: vec!["whois".into(), "--json".into(), address.to_string()],
        };
        match self.ask(&question).await {
            Ok(body) => answer::whois(&body).ok_or(TailnetError::Malformed),
            Err(TailnetError::Status(404)) => Ok(Whois::NotFound),
            Err(error) => Err(error),
        }
    }

    /// This host's MagicDNS name.
    pub async fn name(&self) -> Result<Host, TailnetError> {
        let question = Question {
            target: "/localapi/v0/status?peers=false".to_owned(),
            arguments: vec!["status".into(), "--json".into(), "--peers=false".into()],
        };
        answer::name(&self.ask(&question).await?).ok_or(TailnetError::Malformed)
    }

    async fn ask(&self, question: &Question) -> Result<Vec<u8>, TailnetError> {
        let asking = async {
            let _place = self.places.acquire().await;
            match UnixStream::connect(&self.socket).await {
                Ok(stream) => over_socket(stream, &question.target).await,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let program = self.programs.iter().find(|path| is_trusted(path));
                    let program =
                        program.ok_or_else(|| TailnetError::Absent(self.socket.clone()))?;
                    by_command(program, &question.arguments).await
                }
                Err(error) => Err(TailnetError::Socket(error)),
            }
        };
        timeout(limits::TAILNET_TIMEOUT, asking)
            .await
            .unwrap_or(Err(TailnetError::TimedOut))
    }

    /// The question about this address that is not too old, or a new one. The oldest gives way.
    fn remembered(&self, address: IpAddr) -> Asked {
        let now = Instant::now();
        let mut all = self.asked();
        all.retain(|_, asked| now.duration_since(asked.at) < limits::TAILNET_ANSWER_AGE);
        if all.len() >= limits::TAILNET_ANSWERS_MAX
            && !all.contains_key(&address)
            && let Some(oldest) = all.iter().min_by_key(|(_, asked)| asked.at)
        {
            let oldest = *oldest.0;
            all.remove(&oldest);
        }
        let new = || Asked {
            at: now,
            answer: Arc::default(),
        };
        all.entry(address).or_insert_with(new).clone()
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<IpAddr, Asked>> {
        // Each change is one step, so a panic elsewhere does not spoil it.
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn over_socket(mut stream: UnixStream, target: &str) -> Result<Vec<u8>, TailnetError> {
    let uid = stream.peer_cred().map_err(TailnetError::Socket)?.uid();
    if !is_own(uid) {
        return Err(TailnetError::Stranger { uid });
    }
    let head = format!(
        "GET {target} HTTP/1.1\r\nHost: local-tailscaled.sock\r\nConnection: close\r\n\r\n"
    );
    let written = stream.write_all(head.as_bytes()).await;
    written.map_err(TailnetError::Socket)?;
    let bytes = read_to_end(&mut stream).await?;
    match answer::http(&bytes).ok_or(TailnetError::Malformed)? {
        (200, body) => Ok(body),
        (status, _) => Err(TailnetError::Status(status)),
    }
}

/// Without a shell and without our environment; killed when nobody waits for it any more.
async fn by_command(program: &Path, arguments: &[String]) -> Result<Vec<u8>, TailnetError> {
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(TailnetError::Socket)?;
    let mut output = child.stdout.take().ok_or(TailnetError::Malformed)?;
    let bytes = read_to_end(&mut output).await?;
    let status = child.wait().await.map_err(TailnetError::Socket)?;
    match status.success() {
        true => Ok(bytes),
        false => Err(TailnetError::Command(status.code())),
    }
}

async fn read_to_end(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, TailnetError> {
    let mut bytes = Vec::new();
    let mut stream = stream.take(limits::TAILNET_ANSWER_BYTES_MAX + 1);
    let read = stream.read_to_end(&mut bytes).await;
    read.map_err(TailnetError::Socket)?;
    match stream.limit() {
        0 => Err(TailnetError::TooLong),
        _ => Ok(bytes),
    }
}

/// Nobody but root and this user can have put it there.
fn is_trusted(program: &Path) -> bool {
    std::fs::metadata(program).is_ok_and(|it| {
        it.is_file() && is_own(it.uid()) && it.mode() & 0o022 == 0 && it.mode() & 0o111 != 0
    })
}

fn is_own(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}
