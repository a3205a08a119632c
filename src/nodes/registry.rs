//! The live session of each node, and what is remembered of those before it.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::base::{ConnId, DeviceId, limits};
use crate::exec::Mode;
use crate::pairing::SurfaceFacts;
use crate::rpc::types::node::HostStats;

/// A connected node: where its session is and what it said of itself.
#[derive(Clone, Debug)]
pub struct NodeSession {
    /// The connection that carries the session. Connection ids are unique across Gateways.
    pub conn: ConnId,
    /// All that it declares, permitted or not.
    pub facts: SurfaceFacts,
    pub path_env: Option<String>,
    pub connected_at_ms: u64,
    /// That path is a public one.
    pub public: bool,
    /// Set by the registry: a later session has a higher one.
    pub epoch: u64,
}

impl NodeSession {
    /// What this session says otherwise than an earlier one of the same node.
    fn differences(&self, before: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (what, old, new) in [
            ("version", &before.facts.version, &self.facts.version),
            ("platform", &before.facts.platform, &self.facts.platform),
            ("transport", &before.facts.path, &self.facts.path),
        ] {
            if old != new {
                found.push(format!("{what} {old} -> {new}"));
            }
        }
        if before.facts.display_name != self.facts.display_name {
            found.push("name".to_owned());
        }
        if before.path_env != self.path_env {
            found.push("PATH".to_owned());
        }
        let mut marked = |sign: char, these: &Vec<String>, those: &Vec<String>| {
            let new = these.iter().filter(|name| !those.contains(name));
            found.extend(new.map(|name| format!("{sign}{name}")));
        };
        marked('+', &self.facts.commands, &before.facts.commands);
        marked('-', &before.facts.commands, &self.facts.commands);
        found
    }
}

/// How a node's session ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastClose {
    pub reason: String,
    pub at_ms: u64,
}

/// Where a node executes, in its own words: our node host says so in the event `portcullis.host`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostFacts {
    pub shell: String,
    pub kernel: String,
    /// Its own exec policy: the mode, and the SHA-256 of all of it.
    pub exec_mode: String,
    pub exec_policy_sha256: String,
}

impl HostFacts {
    pub const EVENT: &str = "portcullis.host";

    /// Its exec mode, if the word is one.
    pub fn mode(&self) -> Option<Mode> {
        Mode::from_wire(&self.exec_mode)
    }

    /// The same with each word cut to `limits::DEVICE_TEXT_CHARS_MAX`: the node chose them.
    #[must_use]
    pub fn bounded(self) -> Self {
        let cut = |text: String| text.chars().take(limits::DEVICE_TEXT_CHARS_MAX).collect();
        Self {
            shell: cut(self.shell),
            kernel: cut(self.kernel),
            exec_mode: cut(self.exec_mode),
            exec_policy_sha256: cut(self.exec_policy_sha256),
        }
    }
}

/// What is remembered of one node while it is paired and the Gateway runs.
#[derive(Clone, Debug, Default)]
pub struct NodeRecord {
    pub connects: u64,
    pub last_close: Option<LastClose>,
    pub stats: Option<HostStats>,
    pub host: Option<HostFacts>,
    /// What its latest session says otherwise than the one before.
    pub changes: Vec<String>,
    /// How often each command was dispatched to it.
    pub hits: BTreeMap<String, u64>,
    latest: Option<NodeSession>,
}

/// One live session per device id. The newest wins; what an older one still says is stale.
#[derive(Default)]
pub struct Registry {
    sessions: HashMap<DeviceId, NodeSession>,
    records: HashMap<DeviceId, NodeRecord>,
    epoch: u64,
}

impl Registry {
    /// Gives the older session of the same device, which must now be closed.
    pub fn attach(&mut self, mut session: NodeSession) -> Option<ConnId> {
        self.epoch += 1;
        session.epoch = self.epoch;
        let record = self.records.entry(session.facts.node.clone()).or_default();
        record.connects += 1;
        let before = record.latest.replace(session.clone());
        record.changes = before.map_or_else(Vec::new, |before| session.differences(&before));
        let now_ms = session.connected_at_ms;
        let replaced = self
            .sessions
            .insert(session.facts.node.clone(), session)
            .map(|older| older.conn);
        if replaced.is_some() {
            record.last_close = Some(LastClose {
                reason: "replaced by a newer session".to_owned(),
                at_ms: now_ms,
            });
        }
        replaced
    }

    /// Ends the session that `conn` carries. A close from an older connection changes nothing.
    pub fn detach(
        &mut self,
        node: &DeviceId,
        conn: &ConnId,
        reason: &str,
        now_ms: u64,
    ) -> Option<NodeSession> {
        if !self.holds(node, conn) {
            return None;
        }
        if let Some(record) = self.records.get_mut(node) {
            record.last_close = Some(LastClose {
                reason: reason.chars().take(limits::DEVICE_TEXT_CHARS_MAX).collect(),
                at_ms: now_ms,
            });
        }
        self.sessions.remove(node)
    }

    /// Every connected node.
    pub fn nodes(&self) -> Vec<DeviceId> {
        self.sessions.keys().cloned().collect()
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

    /// What is remembered of a node that has connected since the Gateway started.
    pub fn record(&self, node: &DeviceId) -> Option<&NodeRecord> {
        self.records.get(node)
    }

    /// A connected node measured itself.
    pub fn measured(&mut self, node: &DeviceId, stats: HostStats) {
        if let Some(record) = self.records.get_mut(node) {
            record.stats = Some(stats);
        }
    }

    /// A connected node said where it executes.
    pub fn described(&mut self, node: &DeviceId, host: &HostFacts) {
        let Some(record) = self.records.get_mut(node) else {
            return;
        };
        let before = record.host.replace(host.clone());
        if let Some(before) = before {
            for (what, old, new) in [
                ("shell", &before.shell, &host.shell),
                ("kernel", &before.kernel, &host.kernel),
                (
                    "exec policy",
                    &before.exec_policy_sha256,
                    &host.exec_policy_sha256,
                ),
            ] {
                if old != new && !record.changes.iter().any(|change| change == what) {
                    record.changes.push(what.to_owned());
                }
            }
        }
    }

    /// A node has said `portcullis.host`, as only our own node host does.
    pub fn is_ours(&self, node: &DeviceId) -> bool {
        let record = self.records.get(node);
        record.is_some_and(|record| record.host.is_some())
    }

    /// A command was dispatched to a node.
    pub fn hit(&mut self, node: &DeviceId, command: &str) {
        let Some(record) = self.records.get_mut(node) else {
            return;
        };
        if let Some(hits) = record.hits.get_mut(command) {
            *hits += 1;
        } else if record.hits.len() < limits::NODE_COMMANDS_MAX {
            record.hits.insert(command.to_owned(), 1);
        }
    }

    /// Forgets a device that is no longer paired.
    pub fn forget(&mut self, node: &DeviceId) {
        self.records.remove(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(node: &DeviceId, conn: &ConnId) -> NodeSession {
        NodeSession {
            conn: conn.clone(),
            facts: SurfaceFacts {
                node: node.clone(),
                display_name: None,
                platform: "linux".to_owned(),
                device_family: None,
                version: "1".to_owned(),
                client_id: "node-host".to_owned(),
                client_mode: "node".to_owned(),
                caps: Vec::new(),
                commands: Vec::new(),
                silent: false,
                remote_ip: None,
                path: "loopback".to_owned(),
            },
            path_env: None,
            connected_at_ms: 5,
            public: false,
            epoch: 0,
        }
    }

    #[test]
    fn n9_newest_session_wins_and_a_stale_close_is_a_no_op() {
        let node = DeviceId::from_digest([1; 32]);
        let (first, second) = (ConnId::from_random([1; 16]), ConnId::from_random([2; 16]));
        let mut registry = Registry::default();
        assert_eq!(registry.attach(session(&node, &first)), None);
        assert_eq!(
            registry.attach(session(&node, &second)),
            Some(first.clone())
        );
        assert!(registry.detach(&node, &first, "late", 7).is_none());
        assert!(registry.holds(&node, &second));
        assert!(!registry.holds(&node, &first));
        let record = registry.record(&node).unwrap();
        assert_eq!(record.connects, 2);
        let closed = |registry: &Registry| registry.record(&node).unwrap().last_close.clone();
        assert_eq!(closed(&registry).unwrap().at_ms, 5);
        let long = "x".repeat(9999);
        assert!(registry.detach(&node, &second, &long, 9).is_some());
        let close = closed(&registry).unwrap();
        assert_eq!(
            (close.at_ms, close.reason.len()),
            (9, limits::DEVICE_TEXT_CHARS_MAX)
        );
        assert!(registry.is_empty());
        registry.forget(&node);
        assert!(registry.record(&node).is_none());
    }

    #[test]
    fn a_session_is_compared_with_the_one_before_and_routes_are_counted_within_bounds() {
        let node = DeviceId::from_digest([1; 32]);
        let mut registry = Registry::default();
        let mut first = session(&node, &ConnId::from_random([1; 16]));
        first.facts.commands = vec!["a".to_owned(), "b".to_owned()];
        let mut second = session(&node, &ConnId::from_random([2; 16]));
        second.facts.commands = vec!["b".to_owned(), "c".to_owned()];
        second.facts.version = "2".to_owned();
        second.path_env = Some("/bin".to_owned());
        registry.attach(first);
        assert!(registry.record(&node).unwrap().changes.is_empty());
        let facts = |policy: &str| HostFacts {
            exec_policy_sha256: policy.to_owned(),
            ..HostFacts::default()
        };
        registry.described(&node, &facts("p1"));
        registry.attach(second);
        for _ in 0..3 {
            registry.described(&node, &facts("p2"));
        }
        let record = registry.record(&node).unwrap();
        assert_eq!(
            record.changes,
            ["version 1 -> 2", "PATH", "+c", "-a", "exec policy"]
        );
        assert_eq!(registry.session(&node).unwrap().epoch, 2);
        for command in 0..2 * limits::NODE_COMMANDS_MAX {
            registry.hit(&node, &command.to_string());
            registry.hit(&node, "0");
        }
        let hits = &registry.record(&node).unwrap().hits;
        assert_eq!(hits.len(), limits::NODE_COMMANDS_MAX);
        assert_eq!(hits["0"], 2 * limits::NODE_COMMANDS_MAX as u64 + 1);
    }
}
