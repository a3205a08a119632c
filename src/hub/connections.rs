//! The authenticated connections and what each may hear.

use std::collections::HashMap;
use std::time::Instant;

use serde::Serialize;

use super::{Caller, Outbox};
use crate::auth::scope::{Role, Scope};
use crate::auth::secret_eq::TokenDigest;
use crate::base::{ConnId, DeviceId, limits};
use crate::rpc::encode;
use crate::rpc::types::presence::StateVersion;

/// Who hears a broadcast.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Audience<'a> {
    /// Every connection, nodes too.
    Everyone,
    /// Operators that hold this scope.
    Operators(Scope),
    /// Operators that may decide whether this device is let in, or what it may offer (S6).
    PairingOf(&'a DeviceId),
    /// Operators that may read and asked for every step of a tool.
    ToolFollowers,
}

/// One authenticated connection.
pub(super) struct Connection {
    pub(super) caller: Caller,
    pub(super) outbox: Outbox,
    /// What a node has reported by itself within the present window.
    reported: Reported,
    /// The number of the last broadcast that this connection was sent; clients notice a gap.
    seq: u64,
}

/// Events and bytes since a window began.
#[derive(Default)]
struct Reported {
    since: Option<Instant>,
    events: u32,
    bytes: usize,
}

impl Reported {
    fn count(&mut self, bytes: usize, now: Instant) -> bool {
        let is_over = |since| now.saturating_duration_since(since) >= limits::NODE_EVENTS_WINDOW;
        if self.since.is_none_or(is_over) {
            *self = Self {
                since: Some(now),
                ..Self::default()
            };
        }
        self.events = self.events.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
        let fits =
            self.events <= limits::NODE_EVENTS_MAX && self.bytes <= limits::NODE_EVENTS_BYTES_MAX;
        if !fits && self.events % limits::NODE_EVENTS_MAX == 1 {
            tracing::warn!(
                events = self.events,
                "a node reports too much; some is dropped"
            );
        }
        fits
    }
}

#[derive(Default)]
pub(super) struct Connections {
    by_id: HashMap<ConnId, Connection>,
}

impl Connections {
    pub(super) fn open(&mut self, caller: &Caller) {
        let connection = Connection {
            caller: caller.clone(),
            outbox: caller.outbox.clone(),
            reported: Reported::default(),
            seq: 0,
        };
        self.by_id.insert(caller.conn.clone(), connection);
    }

    pub(super) fn close(&mut self, id: &ConnId) {
        self.by_id.remove(id);
    }

    pub(super) fn caller(&self, id: &ConnId) -> Option<&Caller> {
        self.by_id.get(id).map(|connection| &connection.caller)
    }

    /// The session rotated its own token, and goes on with the new one.
    pub(super) fn set_token(&mut self, id: &ConnId, token: TokenDigest) {
        if let Some(connection) = self.by_id.get_mut(id) {
            connection.caller.token = Some(token);
        }
    }

    pub(super) fn outbox(&self, id: &ConnId) -> Option<&Outbox> {
        self.by_id.get(id).map(|connection| &connection.outbox)
    }

    /// Counts what a node reports by itself; false if its session has reported too much of late (N11).
    pub(super) fn may_report(&mut self, id: &ConnId, bytes: usize, now: Instant) -> bool {
        self.by_id
            .get_mut(id)
            .is_some_and(|connection| connection.reported.count(bytes, now))
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// The connections of one device, in any role.
    pub(super) fn of_device<'a>(
        &'a self,
        device: &'a DeviceId,
    ) -> impl Iterator<Item = (&'a ConnId, &'a Connection)> {
        self.by_id
            .iter()
            .filter(move |(_, connection)| connection.caller.device.as_ref() == Some(device))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&ConnId, &Connection)> {
        self.by_id.iter()
    }

    /// Whether somebody could decide about what `asking` wants: another operator who may, or the same client if it
    /// says that it shows such requests.
    pub(super) fn has_approver(&self, asking: &Caller) -> bool {
        self.by_id.values().any(|connection| {
            let caller = &connection.caller;
            hears(caller, Audience::Operators(Scope::Approvals))
                && (caller.conn != asking.conn || caller.shows_approvals)
        })
    }

    /// Sends an event to everyone whom it concerns, with each connection's own sequence number.
    pub(super) fn broadcast(
        &mut self,
        audience: Audience<'_>,
        event: &str,
        payload: &impl Serialize,
        state_version: Option<StateVersion>,
    ) {
        let Ok(payload) = serde_json::value::to_raw_value(payload) else {
            return;
        };
        for connection in self.by_id.values_mut() {
            if hears(&connection.caller, audience) {
                connection.seq += 1;
                let frame = encode::event(event, &payload, Some(connection.seq), state_version);
                connection.outbox.send(frame);
            }
        }
    }
}

fn hears(caller: &Caller, audience: Audience<'_>) -> bool {
    match audience {
        Audience::Everyone => true,
        Audience::Operators(scope) => caller.role == Role::Operator && caller.scopes.allows(scope),
        Audience::PairingOf(device) => {
            hears(caller, Audience::Operators(Scope::Pairing)) && caller.approver().may_see(device)
        }
        Audience::ToolFollowers => {
            caller.tool_events && hears(caller, Audience::Operators(Scope::Read))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n11_what_a_node_reports_is_bounded_in_number_and_size() {
        let start = Instant::now();
        let mut reported = Reported::default();
        for _ in 0..limits::NODE_EVENTS_MAX {
            assert!(reported.count(1, start));
        }
        assert!(!reported.count(1, start));
        let later = start + limits::NODE_EVENTS_WINDOW;
        assert!(reported.count(limits::NODE_EVENTS_BYTES_MAX, later));
        assert!(!reported.count(1, later));
        // A clock cannot go back, but a later window may be compared with an older moment.
        assert!(!reported.count(1, start));
    }
}
