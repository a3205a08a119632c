//! Invocations under way: which session must answer which.

use std::collections::{HashMap, VecDeque};

use super::Refused;
use crate::base::{ConnId, DeviceId, limits};

/// What a caller's idempotency key is scoped to (decision 21).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Keyed {
    pub caller: String,
    pub node: String,
    pub key: String,
}

/// One invocation that waits for its result.
#[derive(Debug)]
pub struct Pending<W> {
    pub id: String,
    pub node: DeviceId,
    /// The session to which the request went; only its answer counts.
    pub conn: ConnId,
    pub command: String,
    /// Under which key its outcome is kept, if its caller can ask for it again.
    pub keyed: Option<Keyed>,
    /// The number of the next piece of progress.
    pub next_seq: u64,
    /// Whoever waits: the shell's own handle.
    pub waiter: W,
}

/// An invocation that ended without a result, and may still get one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    pub id: String,
    pub node: DeviceId,
    pub keyed: Option<Keyed>,
}

/// What a result from a node's session means.
#[derive(Debug)]
pub enum Settled<W> {
    /// The owner answered in time; the invocation has ended.
    Done(Pending<W>),
    /// The result names another node than the sender's own. Nothing changed.
    NodeMismatch,
    /// The id belongs to another session or to nobody: acknowledged as ignored.
    Ignored,
    /// It came from the right node after the deadline, a cancel, a disconnect or a restart: recorded, acknowledged as
    /// ignored. It may come over another session than the one that was asked: nobody waits for it any more.
    Late(Ended),
}

/// What a piece of progress from a node's session means.
#[derive(PartialEq, Eq, Debug)]
pub enum Progressed<'a, W> {
    /// The next one, from the session that was asked.
    Next(&'a W),
    /// A repeat, or one after a gap. Nothing changed.
    OutOfOrder { expected: u64 },
    /// The id belongs to another session or to nobody, or its invocation has ended.
    Ignored,
}

/// The table of invocations under way, bounded. Whoever waits keeps its deadline and abandons it then.
pub struct Invokes<W> {
    pending: HashMap<String, Pending<W>>,
    /// What ended without a result, oldest first, so that a late one is told from a forged one.
    abandoned: VecDeque<Ended>,
    /// The Gateway stops: nothing begins any more.
    stopped: bool,
}

impl<W> Default for Invokes<W> {
    fn default() -> Self {
        Self {
            pending: HashMap::new(),
            abandoned: VecDeque::new(),
            stopped: false,
        }
    }
}

impl<W> Invokes<W> {
    /// Refuses when the table is full, and when the Gateway stops.
    pub fn has_room(&self) -> Result<(), Refused> {
        let limit = limits::INVOKES_MAX;
        match self.pending.len() < limit {
            _ if self.stopped => Err(Refused::Cancelled { sent: false }),
            true => Ok(()),
            false => Err(Refused::Busy { limit }),
        }
    }

    pub fn begin(&mut self, pending: Pending<W>) {
        self.pending.insert(pending.id.clone(), pending);
    }

    /// The piece of progress `seq` arrived over `conn`. Pieces count from 0, each once and in order.
    pub fn progress(&mut self, id: &str, conn: &ConnId, seq: u64) -> Progressed<'_, W> {
        match self.pending.get_mut(id) {
            Some(pending) if pending.conn != *conn => Progressed::Ignored,
            Some(pending) if pending.next_seq == seq => {
                pending.next_seq = pending.next_seq.saturating_add(1);
                Progressed::Next(&pending.waiter)
            }
            Some(pending) => Progressed::OutOfOrder {
                expected: pending.next_seq,
            },
            None => Progressed::Ignored,
        }
    }

    /// A result arrived over `conn`, the session of `sender`, and claims to speak for `claimed`.
    pub fn settle(
        &mut self,
        id: &str,
        claimed: &str,
        sender: &DeviceId,
        conn: &ConnId,
    ) -> Settled<W> {
        if claimed != sender.as_str() {
            return Settled::NodeMismatch;
        }
        match self.pending.get(id) {
            Some(pending) if pending.node != *sender => Settled::NodeMismatch,
            Some(pending) if pending.conn != *conn => Settled::Ignored,
            Some(_) => match self.remove(id) {
                Some(pending) => Settled::Done(pending),
                None => Settled::Ignored,
            },
            None => {
                let late = |ended: &Ended| ended.id == id && ended.node == *sender;
                let at = self.abandoned.iter().position(late);
                at.and_then(|at| self.abandoned.remove(at))
                    .map_or(Settled::Ignored, Settled::Late)
            }
        }
    }

    /// Ends one invocation without a result.
    pub fn abandon(&mut self, id: &str) -> Option<Pending<W>> {
        let pending = self.remove(id)?;
        self.remember(Ended {
            id: pending.id.clone(),
            node: pending.node.clone(),
            keyed: pending.keyed.clone(),
        });
        Some(pending)
    }

    /// Ends every invocation that a closed session can no longer answer.
    pub fn disconnected(&mut self, conn: &ConnId) -> Vec<Pending<W>> {
        self.abandon_all(|pending| pending.conn == *conn)
    }

    /// Ends everything under way: the Gateway stops. What a node still delivers to it is late, and counts.
    pub fn interrupt(&mut self) -> Vec<Pending<W>> {
        self.stopped = true;
        self.abandon_all(|_| true)
    }

    fn abandon_all(&mut self, which: impl Fn(&Pending<W>) -> bool) -> Vec<Pending<W>> {
        let found = self.pending.values().filter(|pending| which(pending));
        let ids: Vec<String> = found.map(|pending| pending.id.clone()).collect();
        ids.iter().filter_map(|id| self.abandon(id)).collect()
    }

    /// Notes what ended without a result, here or before a restart.
    pub fn remember(&mut self, ended: Ended) {
        if self.abandoned.len() >= limits::INVOKES_FINISHED_MAX {
            self.abandoned.pop_front();
        }
        self.abandoned.push_back(ended);
    }

    pub fn pending(&self) -> impl Iterator<Item = &Pending<W>> {
        self.pending.values()
    }

    fn remove(&mut self, id: &str) -> Option<Pending<W>> {
        self.pending.remove(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(byte: u8) -> DeviceId {
        DeviceId::from_digest([byte; 32])
    }

    fn conn(byte: u8) -> ConnId {
        ConnId::from_random([byte; 16])
    }

    fn pending(id: &str) -> Pending<()> {
        Pending {
            id: id.to_owned(),
            node: node(1),
            conn: conn(1),
            command: "system.which".to_owned(),
            keyed: None,
            next_seq: 0,
            waiter: (),
        }
    }

    #[test]
    fn n4_only_the_owner_settles() {
        let mut invokes = Invokes::default();
        invokes.begin(pending("a"));
        let node_1 = node(1);
        assert!(matches!(
            invokes.settle("a", node(2).as_str(), &node(2), &conn(2)),
            Settled::NodeMismatch
        ));
        assert!(matches!(
            invokes.settle("a", "zzz", &node_1, &conn(1)),
            Settled::NodeMismatch
        ));
        assert!(matches!(
            invokes.settle("a", node_1.as_str(), &node_1, &conn(9)),
            Settled::Ignored
        ));
        assert!(matches!(
            invokes.settle("nope", node_1.as_str(), &node_1, &conn(1)),
            Settled::Ignored
        ));
        assert_eq!(invokes.pending.len(), 1);
        assert!(matches!(
            invokes.settle("a", node_1.as_str(), &node_1, &conn(1)),
            Settled::Done(_)
        ));
        assert!(matches!(
            invokes.settle("a", node_1.as_str(), &node_1, &conn(1)),
            Settled::Ignored
        ));
    }

    #[test]
    fn n4_progress_counts_from_its_owner_in_order_and_before_the_end() {
        let mut invokes = Invokes::default();
        invokes.begin(pending("a"));
        assert_eq!(invokes.progress("a", &conn(2), 0), Progressed::Ignored);
        assert_eq!(invokes.progress("b", &conn(1), 0), Progressed::Ignored);
        assert_eq!(invokes.progress("a", &conn(1), 0), Progressed::Next(&()));
        for seq in [0, 2, u64::MAX] {
            let refused = Progressed::OutOfOrder { expected: 1 };
            assert_eq!(invokes.progress("a", &conn(1), seq), refused);
        }
        assert_eq!(invokes.progress("a", &conn(1), 1), Progressed::Next(&()));
        invokes.settle("a", node(1).as_str(), &node(1), &conn(1));
        assert_eq!(invokes.progress("a", &conn(1), 2), Progressed::Ignored);
    }

    #[test]
    fn a_late_result_is_told_from_a_forged_one_and_counts_once() {
        let mut invokes = Invokes::default();
        invokes.begin(pending("slow"));
        assert!(invokes.abandon("slow").is_some());
        assert!(invokes.abandon("slow").is_none());
        let (node_1, node_2) = (node(1), node(2));
        assert!(matches!(
            invokes.settle("slow", node_2.as_str(), &node_2, &conn(1)),
            Settled::Ignored
        ));
        // The same node may have come back over another session meanwhile.
        assert!(matches!(
            invokes.settle("slow", node_1.as_str(), &node_1, &conn(2)),
            Settled::Late(ended) if ended.id == "slow"
        ));
        assert!(matches!(
            invokes.settle("slow", node_1.as_str(), &node_1, &conn(1)),
            Settled::Ignored
        ));
    }

    #[test]
    fn what_a_node_delivers_to_a_gateway_that_stops_is_late_and_nothing_begins() {
        let mut invokes = Invokes::default();
        invokes.begin(pending("a"));
        assert_eq!(invokes.interrupt().len(), 1);
        let settled = invokes.settle("a", node(1).as_str(), &node(1), &conn(1));
        assert!(matches!(settled, Settled::Late(ended) if ended.id == "a"));
        let refused = Err(Refused::Cancelled { sent: false });
        assert_eq!(invokes.has_room(), refused);
    }

    #[test]
    fn a_closed_session_ends_what_it_was_asked() {
        let mut invokes = Invokes::default();
        invokes.begin(pending("a"));
        invokes.begin(Pending {
            conn: conn(2),
            ..pending("b")
        });
        let ended = invokes.disconnected(&conn(1));
        assert_eq!(
            ended
                .iter()
                .map(|pending| pending.id.as_str())
                .collect::<Vec<_>>(),
            ["a"]
        );
        assert_eq!(invokes.pending.len(), 1);
    }

    #[test]
    fn the_table_is_bounded() {
        let mut invokes = Invokes::default();
        for n in 0..limits::INVOKES_MAX {
            assert!(invokes.has_room().is_ok());
            invokes.begin(pending(&n.to_string()));
        }
        assert_eq!(
            invokes.has_room(),
            Err(Refused::Busy {
                limit: limits::INVOKES_MAX
            })
        );
        assert_eq!(invokes.disconnected(&conn(1)).len(), limits::INVOKES_MAX);
        assert!(invokes.has_room().is_ok());
        assert!(invokes.abandoned.len() <= limits::INVOKES_FINISHED_MAX);
    }
}
