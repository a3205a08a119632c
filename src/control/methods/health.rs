//! `health` and `status`: the keys that clients read, filled with what is true here.

use std::collections::BTreeMap;

use super::super::{Control, VERSION};
use crate::agent::AGENT_ID;
use crate::auth::scope::Scope;
use crate::hub::Caller;
use crate::machine;
use crate::rpc::types::health::{
    Health, HealthAgent, HealthAlarm, HealthHeartbeat, HealthSessions, ProcessMemory, Status,
    StatusAgentSessions, StatusHeartbeat, StatusHeartbeatAgent, StatusSessions,
};

/// Sessions that stand in a health answer.
const RECENT_MAX: usize = 5;

/// A caller without `operator.admin` reads no path of this host (row E2).
pub(in super::super) fn health(control: &Control, caller: &Caller) -> Health {
    let started = std::time::Instant::now();
    let is_admin = caller.scopes.contains(Scope::Admin);
    let alarms = control.hub.alarms().into_iter();
    let sessions = HealthSessions {
        path: state_path(control, caller),
        ..count(control)
    };
    Health {
        ok: Some(true),
        ts: Some(machine::now_ms()),
        channels: Some(BTreeMap::new()),
        channel_order: Some(Vec::new()),
        channel_labels: Some(BTreeMap::new()),
        heartbeat_seconds: Some(0),
        default_agent_id: Some(AGENT_ID.to_owned()),
        agents: Some(vec![HealthAgent {
            agent_id: AGENT_ID.to_owned(),
            name: None,
            is_default: true,
            heartbeat: HealthHeartbeat {
                enabled: false,
                every: "disabled".to_owned(),
                every_ms: None,
                prompt: String::new(),
                target: "none".to_owned(),
                ack_max_chars: 0,
            },
            sessions: sessions.clone(),
        }]),
        sessions: Some(sessions),
        alarms: alarms
            .map(|(setting, what)| HealthAlarm {
                setting: setting.into(),
                what: Some(what).filter(|_| is_admin),
            })
            .collect(),
        duration_ms: u64::try_from(started.elapsed().as_millis()).ok(),
        // For nodes, too: what a client may pin is no secret to one that got in.
        tls_fingerprint: control
            .tls
            .as_ref()
            .map(|tls| tls.fingerprint().to_string()),
    }
}

pub(super) fn status(control: &Control, caller: &Caller) -> Status {
    let is_admin = caller.scopes.contains(Scope::Admin);
    let count = count(control).count;
    let path = state_path(control, caller);
    Status {
        runtime_version: VERSION.into(),
        heartbeat: StatusHeartbeat {
            default_agent_id: AGENT_ID.to_owned(),
            agents: vec![StatusHeartbeatAgent {
                agent_id: AGENT_ID.to_owned(),
                enabled: false,
                every: "disabled".to_owned(),
                every_ms: None,
            }],
        },
        sessions: StatusSessions {
            paths: if path.is_empty() {
                Vec::new()
            } else {
                vec![path.clone()]
            },
            count,
            by_agent: vec![StatusAgentSessions {
                agent_id: AGENT_ID.to_owned(),
                path,
                count,
                recent: Vec::new(),
            }],
            ..StatusSessions::default()
        },
        listeners: control.listeners(is_admin),
        pid: if is_admin { std::process::id() } else { 0 },
        process_memory: machine::resident_bytes()
            .filter(|_| is_admin)
            .map(|rss_bytes| ProcessMemory { rss_bytes }),
        ..Status::default()
    }
}

fn count(control: &Control) -> HealthSessions {
    let sessions = control
        .agent
        .transcript()
        .sessions(RECENT_MAX)
        .unwrap_or_default();
    HealthSessions {
        count: sessions.len() as u64,
        ..HealthSessions::default()
    }
}

fn state_path(control: &Control, caller: &Caller) -> String {
    if caller.scopes.contains(Scope::Admin) {
        control.settings.state_dir.clone().unwrap_or_default()
    } else {
        String::new()
    }
}
