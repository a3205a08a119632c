//! The live session of each node.

use std::collections::HashMap;

use crate::base::{ConnId, DeviceId};
use crate::rpc::types::node::HostStats;

/// A connected node: where its session is and what it said of itself.
#[derive(Clone, Debug)]
pub struct NodeSession {
    pub node: DeviceId,
    /// The connection that carries the session. Connection ids are unique across Gateways.
    pub conn: ConnId,
    pub display_name: Option<String>,
    pub platform: String,
    pub device_family: Option<String>,
    pub version: String,
    pub client_id: String,
    pub client_mode: String,
    pub path_env: Option<String>,
    pub declared_caps: Vec<String>,
    pub declared_commands: Vec<String>,
    pub connected_at_ms: u64,
}

/// What attaching a session did.
#[derive(PartialEq, Eq, Debug)]
pub struct Attached {
    /// The older session of the same device, which must now be closed.
    pub replaced: Option<ConnId>,
}

/// One live session per device id. The newest wins; what an older one still says is stale.
#[derive(Default)]
pub struct Registry {
    sessions: HashMap<DeviceId, NodeSession>,
    connects: HashMap<DeviceId, u64>,
    stats: HashMap<DeviceId, HostStats>,
}

impl Registry {
    pub fn attach(&mut self, session: NodeSession) -> Attached {
        *self.connects.entry(session.node.clone()).or_insert(0) += 1;
        let replaced = self
            .sessions
            .insert(session.node.clone(), session)
            .map(|older| older.conn);
        Attached { replaced }
    }

    /// Ends the session that `conn` carries. A close from an older connection changes nothing.
    pub fn detach(&mut self, node: &DeviceId, conn: &ConnId) -> Option<NodeSession> {
        if !self.holds(node, conn) {
            return None;
        }
        self.sessions.remove(node)
    }

    pub fn session(&self, node: &DeviceId) -> Option<&NodeSession> {
        self.sessions.get(node)
    }

    /// Whether `conn` is the node's present session.
    pub fn holds(&self, node: &DeviceId, conn: &ConnId) -> bool {
        self.sessions
            .get(node)
            .is_some_and(|session| session.conn == *conn)
    }

    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// How often this node has connected since the Gateway started.
    pub fn connects(&self, node: &DeviceId) -> u64 {
        self.connects.get(node).copied().unwrap_or(0)
    }

    /// A connected node measured itself.
    pub fn measured(&mut self, node: &DeviceId, stats: HostStats) {
        if self.sessions.contains_key(node) {
            self.stats.insert(node.clone(), stats);
        }
    }

    pub fn stats(&self, node: &DeviceId) -> Option<&HostStats> {
        self.stats.get(node)
    }

    /// Forgets a device that is no longer paired.
    pub fn forget(&mut self, node: &DeviceId) {
        self.connects.remove(node);
        self.stats.remove(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(node: &DeviceId, conn: &ConnId) -> NodeSession {
        NodeSession {
            node: node.clone(),
            conn: conn.clone(),
            display_name: None,
            platform: "linux".to_owned(),
            device_family: None,
            version: "1".to_owned(),
            client_id: "node-host".to_owned(),
            client_mode: "node".to_owned(),
            path_env: None,
            declared_caps: Vec::new(),
            declared_commands: Vec::new(),
            connected_at_ms: 0,
        }
    }

    #[test]
    fn n9_newest_session_wins_and_a_stale_close_is_a_no_op() {
        let node = DeviceId::from_digest([1; 32]);
        let (first, second) = (ConnId::from_random([1; 16]), ConnId::from_random([2; 16]));
        let mut registry = Registry::default();
        assert_eq!(registry.attach(session(&node, &first)).replaced, None);
        assert_eq!(
            registry.attach(session(&node, &second)).replaced,
            Some(first.clone())
        );
        assert!(registry.detach(&node, &first).is_none());
        assert!(registry.holds(&node, &second));
        assert!(!registry.holds(&node, &first));
        assert_eq!(registry.connects(&node), 2);
        assert!(registry.detach(&node, &second).is_some());
        assert!(registry.is_empty());
    }
}
