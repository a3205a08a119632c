//! One process, its group, and its end.
//!
//! In: a program, its surroundings and a time. Out: how it ended and the head of its output.
//! Attacker controls: what the program does: it may flood, hang, ignore signals, fork, leave its group, close its
//! output. Bounds: `EXEC_OUTPUT_BYTES_MAX` of output, the time, and `EXEC_DRAIN_GRACE` after its end. Nothing of its
//! group outlives the answer; what left the group (`setsid`) does, and holds up nothing.
//! Errors: `std::io::Error` if it could not be started.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, sleep_until};

use super::Cancelled;
use crate::base::limits::{EXEC_DRAIN_GRACE, EXEC_OUTPUT_BYTES_MAX};
use crate::exec::output::{Capture, Output, Stream};

/// What a pipe holds on Linux; one read empties it.
const READ_BYTES: usize = 64 * 1024;

#[derive(Debug)]
pub struct Spec {
    /// The file to execute; absolute.
    pub program: PathBuf,
    /// The whole argument vector, the program's name as it was given first.
    pub argv: Vec<String>,
    pub cwd: PathBuf,
    /// All that the process inherits.
    pub env: Vec<(OsString, OsString)>,
    pub timeout: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    Exited(ExitStatus),
    TimedOut,
    Cancelled,
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

/// Runs one process to its end, its time or its cancellation.
pub async fn run(spec: Spec, mut cancelled: Cancelled) -> io::Result<(End, Output)> {
    let mut command = tokio::process::Command::new(&spec.program);
    if let Some((name, args)) = spec.argv.split_first() {
        command.arg0(name).args(args);
    }
    command
        .current_dir(&spec.cwd)
        .env_clear()
        .envs(spec.env)
        .stdin(Stdio::null())
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

    let mut capture = Capture::new(EXEC_OUTPUT_BYTES_MAX);
    let mut stdout_piece = vec![0; READ_BYTES];
    let mut stderr_piece = vec![0; READ_BYTES];
    let mut stopped = None;
    let mut has_exited = false;
    let mut deadline = spec
        .timeout
        .and_then(|timeout| Instant::now().checked_add(timeout));
    while !(has_exited && stdout.is_none() && stderr.is_none()) {
        let is_ending = has_exited || stopped.is_some();
        tokio::select! {
            read = read_piece(&mut stdout, &mut stdout_piece), if stdout.is_some() => match read {
                0 => stdout = None,
                bytes => capture.push(Stream::Stdout, &stdout_piece[..bytes]),
            },
            read = read_piece(&mut stderr, &mut stderr_piece), if stderr.is_some() => match read {
                0 => stderr = None,
                bytes => capture.push(Stream::Stderr, &stderr_piece[..bytes]),
            },
            _ = &mut exit, if !has_exited => {
                has_exited = true;
                deadline = Some(Instant::now() + EXEC_DRAIN_GRACE);
            }
            () = cancelled.wait(), if !is_ending => {
                stopped = Some(End::Cancelled);
                group.kill();
                deadline = Some(Instant::now() + EXEC_DRAIN_GRACE);
            }
            () = until(deadline) => {
                if is_ending {
                    break;
                }
                stopped = Some(End::TimedOut);
                group.kill();
                deadline = Some(Instant::now() + EXEC_DRAIN_GRACE);
            }
        }
    }
    group.kill();
    group.0 = None;
    // A leader that even SIGKILL has not ended by now (it changed its user, or hangs in the kernel) is left to the
    // runtime, which reaps it when it can.
    let end = match stopped {
        Some(stopped) if has_exited => {
            child.wait().await?;
            stopped
        }
        Some(stopped) => stopped,
        None => End::Exited(child.wait().await?),
    };
    Ok((end, capture.finish()))
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
