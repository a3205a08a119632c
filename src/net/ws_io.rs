//! The one driver between a byte stream and the WebSocket codec, for both roles.
//!
//! In: the stream's bytes and what the caller queues. Out: [`ws::Event`]s, and frames written to the stream.
//! Attacker controls: what arrives, when, and how fast it reads. Bounds: `ws::Limits` for what it sends; answers to its
//! pings are bounded here, answers of the caller's by the caller, who is told [`WsIo::buffered_bytes`]; the closing
//! handshake by `limits::CLOSE_TIMEOUT`. Errors: [`WsIoError`].
//!
//! Whatever is ready goes out in one write, and nothing ever waits for more to become ready. An idle connection holds
//! no buffer; a busy one borrows its thread's (`spare`).

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::base::limits;
use crate::ws::frame::Opcode;
use crate::ws::{self, Connection, Event, Role, close, mask};

mod outgoing;
mod spare;

use outgoing::Outgoing;

/// With this much waiting to be written, a write is tried before the next event is handed out.
const WRITE_EARLY_BYTES: usize = 64 * 1024;
/// With this much waiting to be written, pings are no longer answered one by one: only the latest is (§5.5.3).
const PONG_BACKLOG_BYTES: usize = 64 * 1024;
/// A payload of at least this size is sent from where it stands instead of being copied behind other frames.
const PAYLOAD_OWNED_BYTES_MIN: usize = 16 * 1024;

/// Why a connection is over without the peer's close frame.
#[derive(Debug)]
pub enum WsIoError {
    /// The stream failed.
    Io(io::Error),
    /// The stream ended without a close frame (§7.1.5: 1006).
    Eof,
    /// The peer broke the protocol; it has been told by a close frame.
    Protocol(ws::Error),
    /// The peer did not answer our close frame within `limits::CLOSE_TIMEOUT`.
    CloseTimeout,
    /// There is no randomness for masking keys.
    Random,
    /// `receive` or `flush` was called after the end.
    Over,
}

impl std::fmt::Display for WsIoError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(error) => write!(f, "stream failed: {error}"),
            Self::Eof => f.write_str("stream ended without a close frame"),
            Self::Protocol(error) => write!(f, "protocol violation: {error}"),
            Self::CloseTimeout => f.write_str("close frame not answered in time"),
            Self::Random => f.write_str("no randomness for masking keys"),
            Self::Over => f.write_str("connection is over"),
        }
    }
}

impl std::error::Error for WsIoError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::Protocol(error) => Some(error),
            _ => None,
        }
    }
}

/// A WebSocket connection over a stream, after the opening handshake.
///
/// Call [`receive`](Self::receive) until it returns `Event::Close` or an error, then drop it.
pub struct WsIo<S> {
    stream: S,
    connection: Connection,
    /// Bytes received and not yet decoded, because an event before them was handed out first.
    unread: Unread,
    out: Outgoing,
    /// The latest ping that could not be answered at once.
    pong_late: Option<Vec<u8>>,
    phase: Phase,
    deadline: Option<Pin<Box<Sleep>>>,
    heard_at: Instant,
    random_failed: bool,
}

enum Phase {
    Open,
    /// Both close frames are queued or seen, or the peer broke the protocol: write, then wait for the stream's end.
    Ending {
        outcome: Result<Event, WsIoError>,
        stage: Stage,
    },
    Over,
}

#[derive(PartialEq)]
enum Stage {
    Writing,
    Draining,
    Drained,
}

/// The part of a buffer that is not yet decoded.
#[derive(Default)]
struct Unread {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WsIo<S> {
    /// The server's end. `leftover` is what arrived behind the handshake.
    pub fn server(stream: S, leftover: Bytes, limits: ws::Limits) -> Self {
        Self::new(stream, leftover, Connection::server(limits))
    }

    /// The client's end. `leftover` is what arrived behind the handshake.
    pub fn client(stream: S, leftover: Bytes, limits: ws::Limits) -> Self {
        Self::new(stream, leftover, Connection::client(limits))
    }

    fn new(stream: S, leftover: Bytes, connection: Connection) -> Self {
        Self {
            stream,
            connection,
            heard_at: Instant::now(),
            unread: Unread {
                start: 0,
                end: leftover.len(),
                buffer: Vec::from(leftover),
            },
            out: Outgoing::default(),
            pong_late: None,
            phase: Phase::Open,
            deadline: None,
            random_failed: false,
        }
    }

    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Changes the size limit of messages, from the next frame on.
    pub fn set_message_bytes_max(&mut self, message_bytes_max: usize) {
        self.connection.set_message_bytes_max(message_bytes_max);
    }

    /// Bytes queued and not yet taken by the stream.
    pub fn buffered_bytes(&self) -> usize {
        self.out.len()
    }

    /// When the last bytes arrived: also those of a long message, which no event shows yet.
    pub fn heard_at(&self) -> Instant {
        self.heard_at
    }

    /// Queues a text message, copied once. `text` is UTF-8. Does nothing once we have sent a close frame.
    pub fn queue_text(&mut self, text: &[u8]) {
        self.queue(Opcode::Text, text);
    }

    /// Queues a text message; a large one is sent from where it stands.
    pub fn queue_text_owned(&mut self, text: String) {
        self.queue_owned(Opcode::Text, text.into_bytes());
    }

    /// Queues a binary message; a large one is sent from where it stands.
    pub fn queue_binary_owned(&mut self, bytes: Vec<u8>) {
        self.queue_owned(Opcode::Binary, bytes);
    }

    /// Queues an empty ping; its pong comes out of `receive`.
    pub fn queue_ping(&mut self) {
        self.queue(Opcode::Ping, &[]);
    }

    /// Begins the closing handshake, once. What was queued before still goes out; `receive` drops further messages and
    /// returns when the peer has answered or `limits::CLOSE_TIMEOUT` has passed.
    pub fn close(&mut self, code: u16, reason: &str) {
        self.queue_close(Some(code), reason);
    }

    /// The next event. Drives all pending output, answers pings and close frames. Cancel-safe.
    ///
    /// `Event::Close` and errors come when the close frames are exchanged and the stream has ended (or the close timeout
    /// has passed), so the connection can be dropped at once.
    pub async fn receive(&mut self) -> Result<Event, WsIoError> {
        poll_fn(|cx| self.poll_receive(cx)).await
    }

    /// As `receive`, but ends with `None` as soon as less than `bytes` are queued. Cancel-safe.
    pub async fn receive_or_room(&mut self, bytes: usize) -> Result<Option<Event>, WsIoError> {
        poll_fn(|cx| match self.poll_receive(cx) {
            Poll::Ready(received) => Poll::Ready(received.map(Some)),
            Poll::Pending if self.out.len() < bytes => Poll::Ready(Ok(None)),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// Waits for the stream's end, while the answer to a message is being worked out. Drives pending output. What arrives
    /// meanwhile is kept for `receive`; after one buffer of it no more is read, and the end stays unnoticed. Cancel-safe.
    pub async fn gone(&mut self) -> WsIoError {
        let outcome = poll_fn(|cx| self.poll_gone(cx)).await;
        outcome.map_or_else(|error| error, |never| match never {})
    }

    /// Writes all that is queued. Cancel-safe.
    pub async fn flush(&mut self) -> Result<(), WsIoError> {
        poll_fn(|cx| self.poll_write_all(cx)).await
    }

    fn queue(&mut self, opcode: Opcode, payload: &[u8]) {
        let key = self.key();
        let connection = &self.connection;
        self.out.append(payload.len(), |out| {
            connection.encode(opcode, payload, key, out);
        });
    }

    fn queue_owned(&mut self, opcode: Opcode, mut payload: Vec<u8>) {
        if payload.len() < PAYLOAD_OWNED_BYTES_MIN {
            return self.queue(opcode, &payload);
        }
        let key = self.key();
        let Some(header) = self.connection.header(opcode, payload.len(), key) else {
            return;
        };
        if self.connection.role() == Role::Client {
            mask::apply(&mut payload, key);
        }
        self.out
            .append(0, |out| out.extend_from_slice(header.as_slice()));
        self.out.push(payload);
    }

    fn queue_close(&mut self, code: Option<u16>, reason: &str) {
        if self.connection.close_sent() {
            return;
        }
        let key = self.key();
        let connection = &mut self.connection;
        self.out.append(close::REASON_BYTES_MAX, |out| {
            connection.close(code, reason, key, out);
        });
        self.pong_late = None;
    }

    fn queue_pong(&mut self, payload: &[u8]) {
        if self.out.len() < PONG_BACKLOG_BYTES {
            self.pong_late = None;
            self.queue(Opcode::Pong, payload);
        } else {
            self.pong_late = Some(payload.to_vec());
        }
    }

    /// A masking key that the application cannot foresee (§5.3). A server masks nothing.
    fn key(&mut self) -> mask::Key {
        if self.connection.role() == Role::Server {
            return [0; 4];
        }
        random_key().unwrap_or_else(|| {
            self.random_failed = true;
            [0; 4]
        })
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, WsIoError>> {
        loop {
            if !matches!(self.phase, Phase::Open) {
                return self.poll_end(cx);
            }
            if self.connection.close_sent() && self.deadline_passed(cx) {
                return self.over(WsIoError::CloseTimeout);
            }
            if self.out.len() >= WRITE_EARLY_BYTES
                && let Poll::Ready(Err(error)) = self.poll_write_all(cx)
            {
                return self.over(error);
            }
            let Some(event) = self.decode_unread() else {
                match ready!(self.poll_fill(cx)) {
                    Ok(()) => continue,
                    Err(error) => return self.over(error),
                }
            };
            if let Some(event) = self.react(event) {
                return Poll::Ready(Ok(event));
            }
        }
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Result<Infallible, WsIoError>> {
        loop {
            if !matches!(self.phase, Phase::Open) {
                return Poll::Ready(Err(WsIoError::Over));
            }
            let kept = self.unread.start < self.unread.end;
            let done = match kept {
                true => ready!(self.poll_write_all(cx)),
                false => ready!(self.poll_fill(cx)),
            };
            match done {
                Ok(()) if kept => return Poll::Pending,
                Ok(()) => {}
                Err(error) => return self.over(error),
            }
        }
    }

    /// Decodes the next event from what was read earlier. The buffer is given back when it is used up.
    fn decode_unread(&mut self) -> Option<Result<Event, ws::Error>> {
        let Unread { buffer, start, end } = &mut self.unread;
        if start == end {
            return None;
        }
        let result = self.connection.receive(&mut buffer[*start..*end]);
        *start += result.as_ref().map_or(0, |progress| progress.consumed);
        if start == end {
            spare::give_read(std::mem::take(&mut self.unread).buffer);
        }
        match result {
            Ok(progress) => progress.event.map(Ok),
            Err(error) => Some(Err(error)),
        }
    }

    /// With nothing left to decode: writes what is queued, then reads. The end of the stream is an error.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WsIoError>> {
        // A peer that does not read may still be read from.
        if let Poll::Ready(written) = self.poll_write_all(cx) {
            written?;
        }
        let mut buffer = spare::take_read();
        let mut space = ReadBuf::new(&mut buffer);
        let read = Pin::new(&mut self.stream).poll_read(cx, &mut space);
        let end = space.filled().len();
        match read {
            Poll::Ready(Ok(())) if end > 0 => {
                self.heard_at = Instant::now();
                self.unread = Unread {
                    buffer,
                    start: 0,
                    end,
                };
                Poll::Ready(Ok(()))
            }
            other => {
                spare::give_read(buffer);
                other.map(|read| Err(read.map_or_else(WsIoError::Io, |()| WsIoError::Eof)))
            }
        }
    }

    /// Answers what is ours to answer; returns what the caller should see now.
    fn react(&mut self, event: Result<Event, ws::Error>) -> Option<Event> {
        match event {
            Ok(Event::Close { code, reason }) => {
                // The answer repeats the code (§5.5.1).
                self.queue_close(code, "");
                self.begin_end(Ok(Event::Close { code, reason }));
                None
            }
            Err(error) => {
                self.queue_close(Some(error.close_code()), &error.to_string());
                self.begin_end(Err(WsIoError::Protocol(error)));
                None
            }
            Ok(event) => {
                if self.connection.close_sent() {
                    return None;
                }
                if let Event::Ping(payload) = &event {
                    self.queue_pong(payload);
                }
                Some(event)
            }
        }
    }

    fn begin_end(&mut self, outcome: Result<Event, WsIoError>) {
        self.unread = Unread::default();
        self.phase = Phase::Ending {
            outcome,
            stage: Stage::Writing,
        };
    }

    fn over<T>(&mut self, error: WsIoError) -> Poll<Result<T, WsIoError>> {
        self.phase = Phase::Over;
        self.out = Outgoing::default();
        Poll::Ready(Err(error))
    }

    fn deadline_passed(&mut self, cx: &mut Context<'_>) -> bool {
        let deadline = self
            .deadline
            .get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + limits::CLOSE_TIMEOUT)));
        deadline.as_mut().poll(cx).is_ready()
    }

    /// Writes the last frames, ends our side, and waits for the peer to end its side. Dropping the stream earlier could
    /// make the kernel answer the peer's last bytes by a reset that overtakes our close frame.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, WsIoError>> {
        if matches!(self.phase, Phase::Over) {
            return Poll::Ready(Err(WsIoError::Over));
        }
        if !self.deadline_passed(cx) {
            ready!(self.poll_last_words(cx));
        }
        self.out = Outgoing::default();
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Ending { outcome, .. } => Poll::Ready(outcome),
            _ => Poll::Ready(Err(WsIoError::Over)),
        }
    }

    /// Ready when the stream has ended or failed, which is the same by now.
    fn poll_last_words(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if ready!(self.poll_write_all(cx)).is_err() {
            return Poll::Ready(());
        }
        let Phase::Ending { outcome, stage } = &mut self.phase else {
            return Poll::Ready(());
        };
        if *stage == Stage::Writing {
            // After a whole closing handshake the server ends the stream first (§7.1.1).
            let peer_first = self.connection.role() == Role::Client && outcome.is_ok();
            if !peer_first && ready!(Pin::new(&mut self.stream).poll_shutdown(cx)).is_err() {
                return Poll::Ready(());
            }
            *stage = Stage::Draining;
        }
        let mut space = [const { MaybeUninit::<u8>::uninit() }; 4096];
        while *stage == Stage::Draining {
            let mut buffer = ReadBuf::uninit(&mut space);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                *stage = Stage::Drained;
            }
        }
        // A second time does no harm to a stream whose end was ours to begin.
        Pin::new(&mut self.stream).poll_shutdown(cx).map(|_| ())
    }

    fn poll_write_all(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WsIoError>> {
        if matches!(self.phase, Phase::Over) {
            return Poll::Ready(Err(WsIoError::Over));
        }
        if self.random_failed {
            return Poll::Ready(Err(WsIoError::Random));
        }
        if self.out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        loop {
            while !self.out.is_empty() {
                let Poll::Ready(written) = self.poll_write(cx) else {
                    self.out.shrink();
                    return Poll::Pending;
                };
                let written = written.map_err(WsIoError::Io)?;
                if written == 0 {
                    return Poll::Ready(Err(WsIoError::Io(io::ErrorKind::WriteZero.into())));
                }
                self.out.advance(written);
            }
            match self.pong_late.take() {
                Some(payload) => self.queue_pong(&payload),
                None => break,
            }
        }
        Pin::new(&mut self.stream)
            .poll_flush(cx)
            .map_err(WsIoError::Io)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.stream);
        if self.out.is_one() || !stream.is_write_vectored() {
            return stream.poll_write(cx, self.out.first());
        }
        let mut slices = [IoSlice::new(&[]); 16];
        let count = self.out.slices(&mut slices);
        stream.poll_write_vectored(cx, &slices[..count])
    }
}

/// Masking keys are taken from a block of random bytes a thread, since a system call a frame would cost more than the
/// frame.
fn random_key() -> Option<mask::Key> {
    const BLOCK: usize = 256;
    thread_local! {
        static KEYS: RefCell<([u8; BLOCK], usize)> = const { RefCell::new(([0; BLOCK], BLOCK)) };
    }
    KEYS.with_borrow_mut(|(block, used)| {
        if *used >= BLOCK {
            getrandom::fill(block).ok()?;
            *used = 0;
        }
        let key = block.get(*used..)?.first_chunk::<4>().copied();
        *used += 4;
        key
    })
}

#[cfg(test)]
mod tests;
