//! From the first frame to the last.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::decision::Decision;
use super::door::{Door, address, path_of};
use super::handshake::{self, Ended, malformed};
use super::preauth::PreauthPermit;
use crate::auth::permission::Forbidden;
use crate::base::{ConnId, limits};
use crate::control::{Answer, Control};
use crate::hub::{Caller, Farewell, Outbox, OutboxReader, Taken};
use crate::ingress::Attributed;
use crate::machine;
use crate::net::WsIo;
use crate::rpc::{self, ErrorShape, Frame, encode};
use crate::ws::Event;

/// Serves one upgraded socket until it ends, whoever ends it.
///
/// The place among connections that have not authenticated is given back as soon as this one has. `attributed_by` is the
/// number of the rules by which its client was found.
pub async fn run<S>(
    mut io: WsIo<S>,
    attributed: Attributed,
    attributed_by: u64,
    door: Arc<Door>,
    control: Arc<Control>,
    place: PreauthPermit,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let id = ConnId::from_random(machine::random());
    let deadline = Instant::now() + limits::HANDSHAKE_TIMEOUT;
    let mut evicted = false;
    let (client, via) = (address(attributed.client()), path_of(&attributed));
    let handshake = async {
        tokio::select! {
            () = place.evicted() => {
                evicted = true;
                Err(Ended::quietly(1013, "too many connections before authentication"))
            }
            ended = timeout_at(deadline, handshake::perform(&mut io, &id, attributed, attributed_by, &door, &control)) => {
                // A silent caller is closed as the reference does it: 1000, without a reason.
                ended.unwrap_or_else(|_| Err(Ended::quietly(1000, "")))
            }
        }
    }
    .await;
    match handshake {
        Ok(opened) => {
            drop(place);
            io.set_message_bytes_max(limits::MESSAGE_BYTES_MAX);
            let reason = converse(
                &mut io,
                &opened.caller,
                &opened.outbox,
                opened.reader,
                &control,
            )
            .await;
            control.hub.close_session(&opened.caller, &reason);
            tracing::info!(conn = %id, %reason, "session ended");
        }
        Err(ended) => {
            if let Some(frame) = ended.frame {
                io.queue_text(frame.as_bytes());
            }
            io.close(ended.code, &ended.reason);
            if !ended.logged {
                let decision = Decision::of("handshake");
                if decision.logged {
                    let left_out = decision.left_out;
                    tracing::info!(conn = %id, code = ended.code, reason = %ended.reason, %client, %via, left_out, "connect refused");
                }
            }
            if evicted {
                // Its place is another's already: what the socket takes at once is all that it hears.
                let _ = tokio::time::timeout(Duration::ZERO, io.flush()).await;
                return;
            }
            // A stranger keeps its place until its socket is gone, or somebody needs it.
            tokio::select! {
                () = drain(&mut io) => {}
                () = place.evicted() => {}
            }
            return;
        }
    }
    drain(&mut io).await;
}

/// Writes what is queued and waits for the peer's half of the close handshake, for a bounded time.
async fn drain<S: AsyncRead + AsyncWrite + Unpin>(io: &mut WsIo<S>) {
    let end = async {
        if io.flush().await.is_ok() {
            while !matches!(io.receive().await, Ok(Event::Close { .. }) | Err(_)) {}
            let _ = io.flush().await;
        }
    };
    let _ = tokio::time::timeout(limits::CLOSE_TIMEOUT, end).await;
}

/// The authenticated part. Ends with the reason, for the record.
async fn converse<S>(
    io: &mut WsIo<S>,
    caller: &Caller,
    outbox: &Outbox,
    reader: OutboxReader,
    control: &Arc<Control>,
) -> String
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // Whoever waits here ends with the connection.
    let mut calls = JoinSet::new();
    let mut next_ping = Instant::now() + limits::PING_INTERVAL;
    let mut forbidden = Forbidden::default();
    let mut backlog: Option<Backlog> = None;
    // When a slow reader had read most of what waited.
    let mut read_at = None;
    loop {
        // While a slow reader has this much to read, only its own frames are attended to, and its dismissal.
        if io.buffered_bytes() >= WRITE_AHEAD_BYTES {
            let backlog = backlog.get_or_insert_with(|| Backlog::new(read_at));
            let judged_at = backlog.judged_at(io.heard_at());
            tokio::select! {
                event = io.receive_or_room(WRITE_AHEAD_BYTES) => match event {
                    Ok(Some(event)) => {
                        if let Err(reason) = attend(event, caller, outbox, control, &mut calls, &mut forbidden) {
                            return reason;
                        }
                    }
                    Ok(None) => {}
                    Err(error) => return format!("socket: {error}"),
                },
                farewell = reader.farewell() => return dismiss(io, &farewell),
                () = sleep_until(judged_at) => {
                    if backlog.is_abandoned(io.heard_at(), io.buffered_bytes()) {
                        io.close(1001, "no sign of life");
                        return "no sign of life".to_owned();
                    }
                }
            }
            continue;
        }
        if backlog.take().is_some_and(|backlog| backlog.left.is_some()) {
            read_at = Some(Instant::now());
        }
        let silent_at =
            read_at.unwrap_or(io.heard_at()).max(io.heard_at()) + limits::SILENCE_TIMEOUT;
        tokio::select! {
            event = io.receive() => match event {
                Ok(event) => {
                    if let Err(reason) = attend(event, caller, outbox, control, &mut calls, &mut forbidden) {
                        return reason;
                    }
                }
                Err(error) => return format!("socket: {error}"),
            },
            taken = reader.take() => match taken {
                Taken::Frames(frames) => {
                    for frame in frames {
                        io.queue_text_owned(frame);
                    }
                }
                Taken::Close(farewell) => return dismiss(io, &farewell),
            },
            () = sleep_until(next_ping.min(silent_at)) => {
                // A pong is a sign of life, and so is part of a long message, which no event shows.
                if silent_at.max(io.heard_at() + limits::SILENCE_TIMEOUT) <= Instant::now() {
                    io.close(1001, "no sign of life");
                    return "no sign of life".to_owned();
                }
                if next_ping <= Instant::now() {
                    io.queue_ping();
                    next_ping = Instant::now() + limits::PING_INTERVAL;
                }
            }
        }
    }
}

/// Closes as we were told to; the reason is for the record.
fn dismiss<S>(io: &mut WsIo<S>, farewell: &Farewell) -> String
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    io.close(farewell.code, &farewell.reason);
    format!("closed by us ({}): {}", farewell.code, farewell.reason)
}

/// Handles one event. An error ends the session, with the reason for the record.
fn attend(
    event: Event,
    caller: &Caller,
    outbox: &Outbox,
    control: &Arc<Control>,
    calls: &mut JoinSet<()>,
    forbidden: &mut Forbidden,
) -> Result<(), String> {
    match event {
        // A caller that was dismissed has no say, even if it does not read that it was (K1).
        Event::Text(_) if outbox.is_closing() => {}
        Event::Text(text) => {
            let accepted = dispatch(&text, caller, outbox, control, calls) == Accepted::Yes;
            if forbidden.count(accepted) {
                let (code, reason) = Forbidden::CLOSE;
                outbox.close(code, reason);
            }
        }
        Event::Binary(_) => outbox.close(1003, "binary frames are not part of the protocol"),
        Event::Ping(_) | Event::Pong(_) => {}
        Event::Close { code, .. } => {
            return Err(format!("closed by peer ({})", code.unwrap_or(1005)));
        }
    }
    Ok(())
}

/// What waits for a slow reader, and whether it reads. It gets no ping meanwhile, for that would wait behind the rest; so
/// that it takes what is written counts as a sign of life, if it takes `WRITE_AHEAD_BYTES` in the time that a silent peer
/// has.
struct Backlog {
    begun_at: Instant,
    /// What waited when this was last looked at; first when the system's buffers have taken what they take of anybody.
    left: Option<usize>,
    /// When it had last taken enough; at first, of what waited before this.
    taken_at: Option<Instant>,
}

impl Backlog {
    const SETTLED: Duration = Duration::from_secs(1);

    fn new(taken_at: Option<Instant>) -> Self {
        Self {
            begun_at: Instant::now(),
            left: None,
            taken_at,
        }
    }

    fn judged_at(&self, heard_at: Instant) -> Instant {
        match self.left {
            None => self.begun_at + Self::SETTLED,
            Some(_) => {
                self.taken_at.map_or(heard_at, |at| at.max(heard_at)) + limits::SILENCE_TIMEOUT
            }
        }
    }

    fn is_abandoned(&mut self, heard_at: Instant, buffered: usize) -> bool {
        if Instant::now() < self.judged_at(heard_at) {
            return false;
        }
        let taken = self.left.map(|left| left.saturating_sub(buffered));
        if taken.is_some_and(|taken| taken < WRITE_AHEAD_BYTES) {
            return true;
        }
        self.taken_at = taken.map(|_| Instant::now()).or(self.taken_at);
        self.left = Some(buffered);
        false
    }
}

/// What may wait inside the codec before the outbox is read again, in bytes.
const WRITE_AHEAD_BYTES: usize = 256 * 1024;

/// Whether a frame was one that this caller may send.
#[derive(PartialEq, Eq)]
enum Accepted {
    Yes,
    No,
}

/// Answers one frame now, or starts the call that will answer it through the outbox.
fn dispatch(
    text: &str,
    caller: &Caller,
    outbox: &Outbox,
    control: &Arc<Control>,
    calls: &mut JoinSet<()>,
) -> Accepted {
    let request = match rpc::decode(text) {
        Ok(Frame::Request(request)) => request,
        Ok(Frame::Response(_) | Frame::Event(_)) => {
            let error = ErrorShape::invalid_request(
                "invalid request frame: at /type: must be equal to constant",
            );
            outbox.send(encode::refusal("invalid", &error));
            return Accepted::No;
        }
        Err(error) => {
            outbox.send(malformed(&error));
            return Accepted::No;
        }
    };
    while calls.try_join_next().is_some() {}
    match control.call(caller, &request, calls.len()) {
        Answer::Now(frame) => {
            outbox.send(frame);
            Accepted::Yes
        }
        Answer::Unauthorized(frame) => {
            outbox.send(frame);
            Accepted::No
        }
        Answer::Later(call) => {
            calls.spawn(call.run());
            Accepted::Yes
        }
    }
}
