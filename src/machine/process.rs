//! One process, its group, and its end.
//!
//! In: a program, its surroundings and a time. Out: how it ended; its output as it comes, to the caller's bound.
//! Attacker controls: what the program does: it may flood, hang, ignore signals, fork, leave its group, close its
//! output, never read its input. Bounds: the times, and `EXEC_DRAIN_GRACE` after its end. Nothing of its group
//! outlives the answer; what left the group (`setsid`) does, and holds up nothing.
//! Errors: `std::io::Error` if it could not be started.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep_until};

use zeroize::Zeroizing;

use crate::base::limits::EXEC_DRAIN_GRACE;
use crate::exec::output::Stream;

/// What a pipe holds on Linux; one read empties it.
const READ_BYTES: usize = 64 * 1024;

pub struct Spec {
    /// The file to execute; absolute.
    pub program: PathBuf,
    /// The whole argument vector, the program's name as it was given first.
    pub argv: Vec<String>,
    pub cwd: PathBuf,
    /// All that the process inherits.
    pub env: Vec<(OsString, OsString)>,
    /// What it reads; `None` is `/dev/null`.
    pub stdin: Option<Vec<u8>>,
    pub timeout: Option<Duration>,
    /// How long it may write nothing.
    pub silence: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    Exited(ExitStatus),
    TimedOut,
    Silent,
    /// The caller had enough of it.
    Stopped,
}

/// Kills the group when it goes out of scope, so that a dropped future leaves nothing behind.
///
/// It must do so before the leader is reaped: until then the leader's zombie keeps the number from naming others.
struct Group(Option<Pid>);

impl Group {
    fn kill(&self) {
        if let Some(leader) = self.0 {
            // ESRCH: all are gone already.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs one process to its end, its time, or the end of `stop`. `take` gets its output and says whether to go on.
pub async fn run(
    spec: Spec,
    stop: impl Future<Output = ()>,
    mut take: impl FnMut(Stream, &[u8]) -> bool,
) -> io::Result<End> {
    let mut command = tokio::process::Command::new(&spec.program);
    if let Some((name, args)) = spec.argv.split_first() {
        command.arg0(name).args(args);
    }
    command
        .current_dir(&spec.cwd)
        .env_clear()
        .envs(spec.env)
        .stdin(if spec.stdin.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command.spawn()?;
    // Declared after the child and so dropped before it: the group dies while the leader is unreaped.
    let leader = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let mut group = Group(leader);
    let mut stdout = child.stdout.take();
    let mut stderr = child.stderr.take();
    // `NOWAIT` leaves the leader unreaped. One blocked thread per command, of which `EXEC_RUNS_MAX` exist.
    let mut exit = tokio::task::spawn_blocking(move || {
        if let Some(leader) = leader {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            while matches!(
                waitid(WaitId::Pid(leader), options),
                Err(rustix::io::Errno::INTR)
            ) {}
        }
    });

    // Dropping the pipe ends the program's input.
    let pipe = child.stdin.take().zip(spec.stdin);
    let mut is_fed = pipe.is_none();
    let mut feed = pin!(async move {
        if let Some((mut pipe, text)) = pipe {
            let _ = pipe.write_all(&text).await;
        }
    });
    let mut stop = pin!(stop);
    let mut stdout_piece = Zeroizing::new(vec![0; READ_BYTES]);
    let mut stderr_piece = Zeroizing::new(vec![0; READ_BYTES]);
    let mut stopped = None;
    let mut goes_on = true;
    let mut has_exited = false;
    let after = |time: Option<Duration>| time.and_then(|time| Instant::now().checked_add(time));
    let mut deadline = after(spec.timeout);
    let mut silent_at = after(spec.silence);
    while !(has_exited && stdout.is_none() && stderr.is_none()) {
        let is_ending = has_exited || stopped.is_some();
        tokio::select! {
            read = read_piece(&mut stdout, &mut stdout_piece), if stdout.is_some() => {
                silent_at = after(spec.silence);
                match read {
                    0 => stdout = None,
                    bytes => goes_on &= take(Stream::Stdout, &stdout_piece[..bytes]),
                }
            }
            read = read_piece(&mut stderr, &mut stderr_piece), if stderr.is_some() => {
                silent_at = after(spec.silence);
                match read {
                    0 => stderr = None,
                    bytes => goes_on &= take(Stream::Stderr, &stderr_piece[..bytes]),
                }
            }
            () = &mut feed, if !is_fed => is_fed = true,
            _ = &mut exit, if !has_exited => {
                has_exited = true;
                deadline = Some(Instant::now() + EXEC_DRAIN_GRACE);
            }
            () = &mut stop, if !is_ending => goes_on = false,
            () = until(silent_at), if !is_ending => stopped = Some(End::Silent),
            () = until(deadline) => {
                if is_ending {
                    break;
                }
                stopped = Some(End::TimedOut);
            }
        }
        if !goes_on && !is_ending {
            stopped = Some(End::Stopped);
        }
        if stopped.is_some() && !is_ending {
            group.kill();
            deadline = after(Some(EXEC_DRAIN_GRACE));
        }
    }
    group.kill();
    group.0 = None;
    // A leader that even SIGKILL has not ended by now (it changed its user, or hangs in the kernel) is left to the
    // runtime, which reaps it when it can.
    Ok(match stopped {
        Some(stopped) if has_exited => {
            child.wait().await?;
            stopped
        }
        Some(stopped) => stopped,
        None => End::Exited(child.wait().await?),
    })
}

/// Cancel-safe. 0 at the end; a pipe that fails has ended too.
async fn read_piece(pipe: &mut Option<impl AsyncRead + Unpin>, piece: &mut [u8]) -> usize {
    match pipe {
        Some(pipe) => pipe.read(piece).await.unwrap_or(0),
        None => 0,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
