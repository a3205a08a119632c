//! Who is here: the Gateway itself and the nodes that are or were connected.

use std::collections::{BTreeMap, VecDeque};

use crate::base::{DeviceId, limits};
use crate::machine;
use crate::rpc::types::connect::ClientInfo;
use crate::rpc::types::presence::{PresenceEntry, StateVersion};

/// The presence list, bounded: the longest gone are forgotten first.
pub(super) struct Presence {
    own: PresenceEntry,
    nodes: BTreeMap<DeviceId, PresenceEntry>,
    gone: VecDeque<DeviceId>,
    version: u64,
}

impl Presence {
    pub(super) fn new(boot_id: &str, now_ms: u64) -> Self {
        let host = machine::host_name();
        let platform = machine::platform();
        let version = env!("CARGO_PKG_VERSION");
        Self {
            own: PresenceEntry {
                text: Some(format!(
                    "Gateway: {host} · app {version} · mode gateway · reason self"
                )),
                host: Some(host),
                version: Some(version.to_owned()),
                platform: Some(platform.os.to_owned()),
                device_family: Some(platform.family.to_owned()),
                mode: Some("gateway".to_owned()),
                reason: Some("self".to_owned()),
                instance_id: Some(boot_id.to_owned()),
                ts: now_ms,
                ..PresenceEntry::default()
            },
            nodes: BTreeMap::new(),
            gone: VecDeque::new(),
            version: 1,
        }
    }

    pub(super) fn join(
        &mut self,
        node: &DeviceId,
        name: Option<&str>,
        client: &ClientInfo,
        now_ms: u64,
    ) {
        self.version += 1;
        self.gone.retain(|gone| gone != node);
        let shown = name.unwrap_or_else(|| node.as_str());
        self.nodes.insert(
            node.clone(),
            PresenceEntry {
                host: Some(shown.to_owned()),
                version: Some(client.version.clone()),
                platform: Some(client.platform.clone()),
                device_family: client.device_family.clone(),
                mode: Some("node".to_owned()),
                device_id: Some(node.as_str().to_owned()),
                roles: Some(vec!["node".to_owned()]),
                instance_id: Some(node.as_str().to_owned()),
                reason: Some("connect".to_owned()),
                text: Some(format!("Node: {shown} · mode node")),
                ts: now_ms,
                ..PresenceEntry::default()
            },
        );
    }

    pub(super) fn leave(&mut self, node: &DeviceId, now_ms: u64) {
        self.version += 1;
        if let Some(entry) = self.nodes.get_mut(node) {
            entry.reason = Some("disconnect".to_owned());
            entry.ts = now_ms;
            self.gone.push_back(node.clone());
        }
        while self.gone.len() > limits::PRESENCE_GONE_MAX {
            if let Some(oldest) = self.gone.pop_front() {
                self.nodes.remove(&oldest);
            }
        }
    }

    pub(super) fn list(&self) -> Vec<PresenceEntry> {
        std::iter::once(&self.own)
            .chain(self.nodes.values())
            .cloned()
            .collect()
    }

    pub(super) fn version(&self) -> StateVersion {
        StateVersion {
            presence: self.version,
            health: 1,
        }
    }
}
