//! What waits to be written to one connection, bounded in bytes.
//!
//! A call's effect usually goes to another session, so effects reach sockets through these handles: anyone may put
//! a frame in, one session task takes frames out. A peer that reads too slowly is cut off, never waited for.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::audit::Receipt;
use crate::base::limits;

/// Why and how the session must end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Farewell {
    pub code: u16,
    pub reason: String,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<String>,
    /// Of these frames, and of those that were taken last: until its session asks for more, they may not be written.
    bytes: usize,
    taken: usize,
    farewell: Option<Farewell>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    ready: Notify,
}

impl Queue {
    fn settle(&mut self) {
        self.bytes = self.bytes.saturating_sub(std::mem::take(&mut self.taken));
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // The queue is whole after every statement, so a panic elsewhere does not spoil it.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end that anyone may write to.
#[derive(Clone, Default)]
pub struct Outbox(Arc<Shared>);

impl Outbox {
    /// Queues one text frame. Over `limits::OUTBOX_BYTES_MAX` the session is ended instead, with 1008.
    pub fn send(&self, frame: String) {
        let mut queue = self.0.queue();
        if queue.farewell.is_some() {
            return;
        }
        if queue.bytes.saturating_add(frame.len()) > limits::OUTBOX_BYTES_MAX {
            queue.frames.clear();
            queue.bytes = 0;
            queue.farewell = Some(Farewell {
                code: 1008,
                reason: "slow consumer".to_owned(),
            });
        } else {
            queue.bytes += frame.len();
            queue.frames.push_back(frame);
        }
        drop(queue);
        self.0.ready.notify_one();
    }

    /// Queues a frame that may be missing, if little waits before it; false if it was dropped. It never ends a session.
    pub fn offer(&self, frame: String) -> bool {
        let mut queue = self.0.queue();
        let fits = queue.bytes.saturating_add(frame.len()) <= limits::OUTBOX_OFFERED_BYTES_MAX;
        if queue.farewell.is_some() || !fits {
            return false;
        }
        queue.bytes += frame.len();
        queue.frames.push_back(frame);
        drop(queue);
        self.0.ready.notify_one();
        true
    }

    /// How long a relayed frame may be now, in bytes, so that neither its peer nor this queue refuses it.
    pub fn room(&self) -> usize {
        let left = limits::OUTBOX_RELAYED_BYTES_MAX.saturating_sub(self.0.queue().bytes);
        left.min(limits::MESSAGE_BYTES_MAX)
    }

    /// Queues a frame that has an effect on a node. The receipt shows that it is on record.
    pub fn send_recorded(&self, frame: String, _receipt: &Receipt) {
        self.send(frame);
    }

    /// Ends the session after what is queued has been written. The first reason stands.
    pub fn close(&self, code: u16, reason: &str) {
        self.0.queue().farewell.get_or_insert_with(|| Farewell {
            code,
            reason: reason.to_owned(),
        });
        self.0.ready.notify_one();
    }

    /// Whether the session is being ended: from then on nothing that its peer says counts.
    pub fn is_closing(&self) -> bool {
        self.0.queue().farewell.is_some()
    }

    /// The reading end; there is one per session.
    pub fn reader(&self) -> OutboxReader {
        OutboxReader(Arc::clone(&self.0))
    }
}

/// What a session found in its outbox.
#[derive(PartialEq, Eq, Debug)]
pub enum Taken {
    Frames(Vec<String>),
    Close(Farewell),
}

/// The end that the session task reads.
pub struct OutboxReader(Arc<Shared>);

impl OutboxReader {
    /// Everything queued, or the farewell once the queue is empty. Cancel-safe.
    pub async fn take(&self) -> Taken {
        self.0.queue().settle();
        loop {
            if let Some(taken) = self.try_take() {
                return taken;
            }
            self.0.ready.notified().await;
        }
    }

    /// The farewell as soon as it is said, whatever is still queued: a peer that reads nothing must go, too. Cancel-safe.
    pub async fn farewell(&self) -> Farewell {
        loop {
            if let Some(farewell) = self.0.queue().farewell.clone() {
                return farewell;
            }
            self.0.ready.notified().await;
        }
    }

    /// The same as `take` without waiting, and without asking for more.
    pub fn try_take(&self) -> Option<Taken> {
        let mut queue = self.0.queue();
        if !queue.frames.is_empty() {
            queue.taken = queue.bytes;
            return Some(Taken::Frames(std::mem::take(&mut queue.frames).into()));
        }
        queue.farewell.clone().map(Taken::Close)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_leave_in_order_and_the_farewell_comes_last() {
        let outbox = Outbox::default();
        let reader = outbox.reader();
        outbox.send("a".to_owned());
        outbox.close(1000, "bye");
        outbox.close(1008, "too late to say");
        outbox.send("never".to_owned());
        assert_eq!(reader.take().await, Taken::Frames(vec!["a".to_owned()]));
        assert_eq!(
            reader.take().await,
            Taken::Close(Farewell {
                code: 1000,
                reason: "bye".to_owned()
            })
        );
    }

    #[tokio::test]
    async fn k1_a_farewell_is_heard_before_what_is_queued_is_taken() {
        let outbox = Outbox::default();
        let reader = outbox.reader();
        outbox.send("unread".to_owned());
        assert!(!outbox.is_closing());
        outbox.close(4001, "device removed");
        assert!(outbox.is_closing());
        assert_eq!(reader.farewell().await.code, 4001);
    }

    #[tokio::test]
    async fn w7_what_may_be_missing_is_dropped_before_it_costs_the_session() {
        let outbox = Outbox::default();
        let reader = outbox.reader();
        let frame = "x".repeat(limits::OUTBOX_OFFERED_BYTES_MAX / 2);
        let taken: Vec<bool> = (0..1000).map(|_| outbox.offer(frame.clone())).collect();
        assert_eq!(taken.iter().filter(|taken| **taken).count(), 2);
        outbox.send("answer".to_owned());
        let Taken::Frames(frames) = reader.take().await else {
            panic!("it was ended");
        };
        assert_eq!((frames.len(), frames[2].as_str()), (3, "answer"));
        assert!(!outbox.offer(frame.clone()), "they may still be unread");
        let more = tokio::time::timeout(std::time::Duration::ZERO, reader.take());
        assert!(more.await.is_err());
        assert!(outbox.offer(frame));
    }

    #[tokio::test]
    async fn w7_a_slow_consumer_is_cut_off_and_its_queue_is_freed() {
        let outbox = Outbox::default();
        let reader = outbox.reader();
        let frame = "x".repeat(limits::OUTBOX_BYTES_MAX / 4);
        for _ in 0..5 {
            outbox.send(frame.clone());
        }
        assert_eq!(outbox.0.queue().bytes, 0);
        assert!(matches!(
            reader.take().await,
            Taken::Close(Farewell { code: 1008, .. })
        ));
    }

    #[tokio::test]
    async fn w7_what_a_session_took_counts_until_it_asks_for_more() {
        let outbox = Outbox::default();
        let reader = outbox.reader();
        let frame = "x".repeat(limits::OUTBOX_BYTES_MAX * 2 / 5);
        let take = || tokio::time::timeout(std::time::Duration::ZERO, reader.take());
        let fill = async || {
            outbox.send(frame.clone());
            outbox.send(frame.clone());
            assert!(matches!(take().await, Ok(Taken::Frames(_))));
            assert!(outbox.room() < frame.len());
        };
        fill().await;
        assert!(take().await.is_err(), "there is no more");
        assert_eq!(outbox.room(), limits::MESSAGE_BYTES_MAX);
        fill().await;
        outbox.send(frame.clone());
        assert!(outbox.is_closing(), "more than its peer may leave unread");
    }

    #[test]
    fn relayed_frames_leave_room_for_all_others() {
        let outbox = Outbox::default();
        assert_eq!(outbox.room(), limits::MESSAGE_BYTES_MAX);
        outbox.send("x".repeat(outbox.room()));
        assert!(outbox.room() < limits::MESSAGE_BYTES_MAX);
        outbox.send("x".repeat(outbox.room()));
        assert_eq!(outbox.room(), 0);
        outbox.send("a tick".to_owned());
        assert!(!outbox.is_closing());
    }
}
