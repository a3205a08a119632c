//! Invocations under way: who asked, which session must answer, until when.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Instant;

use super::Refused;
use crate::base::{ConnId, DeviceId, limits};

/// One invocation that waits for its result.
#[derive(Debug)]
pub struct Pending<W> {
    pub id: String,
    pub node: DeviceId,
    /// The session to which the request went; only its answer counts.
    pub conn: ConnId,
    pub command: String,
    pub asked_at: Instant,
    pub deadline: Instant,
    pub timeout_ms: u64,
    /// Whoever waits: the shell's own handle.
    pub waiter: W,
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
    /// It came after the deadline, a cancel or a disconnect: recorded, acknowledged as ignored.
    Late { command: String },
}

/// The table of invocations under way, bounded, ordered by deadline.
pub struct Invokes<W> {
    pending: HashMap<String, Pending<W>>,
    deadlines: BTreeSet<(Instant, String)>,
    /// Ids that ended without a result, oldest first, so that a late one is told from a forged one.
    abandoned: VecDeque<(String, ConnId, String)>,
}

impl<W> Default for Invokes<W> {
    fn default() -> Self {
        Self {
            pending: HashMap::new(),
            deadlines: BTreeSet::new(),
            abandoned: VecDeque::new(),
        }
    }
}

impl<W> Invokes<W> {
    /// Refuses when the table is full.
    pub fn has_room(&self) -> Result<(), Refused> {
        if self.pending.len() < limits::INVOKES_MAX {
            Ok(())
        } else {
            Err(Refused::Busy {
                limit: limits::INVOKES_MAX,
            })
        }
    }

    pub fn begin(&mut self, pending: Pending<W>) {
        self.deadlines
            .insert((pending.deadline, pending.id.clone()));
        self.pending.insert(pending.id.clone(), pending);
    }

    /// The invocation, if `conn` is the session that must answer it.
    pub fn owned_by(&self, id: &str, conn: &ConnId) -> Option<&Pending<W>> {
        self.pending.get(id).filter(|pending| pending.conn == *conn)
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
            None => match self
                .abandoned
                .iter()
                .position(|(late, owner, _)| late == id && owner == conn)
            {
                Some(at) => match self.abandoned.remove(at) {
                    Some((_, _, command)) => Settled::Late { command },
                    None => Settled::Ignored,
                },
                None => Settled::Ignored,
            },
        }
    }

    /// Ends one invocation without a result.
    pub fn abandon(&mut self, id: &str) -> Option<Pending<W>> {
        let pending = self.remove(id)?;
        self.remember(&pending);
        Some(pending)
    }

    /// Ends every invocation whose deadline has passed.
    pub fn expire(&mut self, now: Instant) -> Vec<Pending<W>> {
        let mut expired = Vec::new();
        while let Some((deadline, id)) = self.deadlines.first().cloned() {
            if deadline > now {
                break;
            }
            match self.abandon(&id) {
                Some(pending) => expired.push(pending),
                None => {
                    self.deadlines.pop_first();
                }
            }
        }
        expired
    }

    /// Ends every invocation that a closed session can no longer answer.
    pub fn disconnected(&mut self, conn: &ConnId) -> Vec<Pending<W>> {
        let ids: Vec<String> = self
            .pending
            .values()
            .filter(|pending| pending.conn == *conn)
            .map(|pending| pending.id.clone())
            .collect();
        ids.iter().filter_map(|id| self.abandon(id)).collect()
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    pub fn len(&self) -> usize {
        self.pending.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    fn remove(&mut self, id: &str) -> Option<Pending<W>> {
        let pending = self.pending.remove(id)?;
        self.deadlines
            .remove(&(pending.deadline, pending.id.clone()));
        Some(pending)
    }

    fn remember(&mut self, pending: &Pending<W>) {
        if self.abandoned.len() >= limits::INVOKES_FINISHED_MAX {
            self.abandoned.pop_front();
        }
        self.abandoned.push_back((
            pending.id.clone(),
            pending.conn.clone(),
            pending.command.clone(),
        ));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn node(byte: u8) -> DeviceId {
        DeviceId::from_digest([byte; 32])
    }

    fn conn(byte: u8) -> ConnId {
        ConnId::from_random([byte; 16])
    }

    fn pending(id: &str, start: Instant, timeout_ms: u64) -> Pending<()> {
        Pending {
            id: id.to_owned(),
            node: node(1),
            conn: conn(1),
            command: "system.which".to_owned(),
            asked_at: start,
            deadline: start + Duration::from_millis(timeout_ms),
            timeout_ms,
            waiter: (),
        }
    }

    #[test]
    fn n4_only_the_owner_settles() {
        let start = Instant::now();
        let mut invokes = Invokes::default();
        invokes.begin(pending("a", start, 1000));
        assert!(matches!(
            invokes.settle("a", node(2).as_str(), &node(2), &conn(2)),
            Settled::NodeMismatch
        ));
        assert!(matches!(
            invokes.settle("a", "zzz", &node(1), &conn(1)),
            Settled::NodeMismatch
        ));
        assert!(matches!(
            invokes.settle("a", node(1).as_str(), &node(1), &conn(9)),
            Settled::Ignored
        ));
        assert!(matches!(
            invokes.settle("nope", node(1).as_str(), &node(1), &conn(1)),
            Settled::Ignored
        ));
        assert_eq!(invokes.len(), 1);
        assert!(matches!(
            invokes.settle("a", node(1).as_str(), &node(1), &conn(1)),
            Settled::Done(_)
        ));
        assert!(matches!(
            invokes.settle("a", node(1).as_str(), &node(1), &conn(1)),
            Settled::Ignored
        ));
        assert!(invokes.next_deadline().is_none());
    }

    #[test]
    fn a_deadline_ends_it_and_a_late_result_is_told_from_a_forged_one() {
        let start = Instant::now();
        let mut invokes = Invokes::default();
        invokes.begin(pending("slow", start, 50));
        invokes.begin(pending("slower", start, 5000));
        assert!(invokes.expire(start + Duration::from_millis(49)).is_empty());
        let expired = invokes.expire(start + Duration::from_millis(50));
        assert_eq!(
            expired.iter().map(|p| p.id.as_str()).collect::<Vec<_>>(),
            ["slow"]
        );
        assert!(matches!(
            invokes.settle("slow", node(1).as_str(), &node(1), &conn(1)),
            Settled::Late { .. }
        ));
        assert!(matches!(
            invokes.settle("slow", node(1).as_str(), &node(1), &conn(1)),
            Settled::Ignored
        ));
        assert_eq!(invokes.disconnected(&conn(1)).len(), 1);
        assert!(invokes.is_empty());
    }

    #[test]
    fn the_table_is_bounded() {
        let start = Instant::now();
        let mut invokes = Invokes::default();
        for n in 0..limits::INVOKES_MAX {
            assert!(invokes.has_room().is_ok());
            invokes.begin(pending(&n.to_string(), start, 10));
        }
        assert_eq!(
            invokes.has_room(),
            Err(Refused::Busy {
                limit: limits::INVOKES_MAX
            })
        );
        assert_eq!(
            invokes.expire(start + Duration::from_secs(1)).len(),
            limits::INVOKES_MAX
        );
        assert!(invokes.has_room().is_ok());
        assert!(invokes.abandoned.len() <= limits::INVOKES_FINISHED_MAX);
    }
}
