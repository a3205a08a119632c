//! Why a command would or would not run on a node: dispatch's own decision, replayed without executing anything.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::{Caller, Hub, Inner};
use crate::auth::permission;
use crate::base::{DeviceId, Refusal};
use crate::exec::policy::Mode;
use crate::machine;
use crate::nodes::{
    self, CommandReport, Explanation, Finding, HostFacts, Layer, NodeReport, Refused, Report,
    Surface, Verdict,
};
use crate::pairing::Device;
use crate::rpc::Method;

/// How long a node may take to say what it would do. Whoever asks waits for ten seconds by default.
const NODE_POLICY_TIMEOUT_MS: u64 = 5_000;
/// The layer of the caller's own path.
const CALLER_PATH: &str = "caller's path";
/// What of a `system.run` the node is asked to plan.
const PLANNED_FIELDS: [&str; 6] = [
    "command",
    "rawCommand",
    "cwd",
    "env",
    "agentId",
    "sessionKey",
];

impl Hub {
    /// Each layer's word about a command on a node, and what dispatch would answer this caller now.
    ///
    /// For `system.run` the node itself is asked through `system.run.prepare`, which plans and runs nothing, if the caller
    /// may relay that.
    pub async fn explain(
        &self,
        caller: &Caller,
        node: &str,
        command: &str,
        params: Option<&RawValue>,
    ) -> Explanation {
        let (mut layers, refusal) = self.explain_here(caller, node, command);
        let would_ask = refusal
            .as_ref()
            .is_none_or(|refused| Verdict::of(Some(refused)) == Verdict::Ask);
        if command == "system.run" && would_ask {
            layers.push(self.node_policy(caller, node, params).await);
        }
        // A caller without the scope, or by a public path, is refused before anything else is looked at.
        let of_caller = layers
            .iter()
            .find(|it| it.verdict == Verdict::Deny && matches!(&*it.layer, "scope" | CALLER_PATH));
        let found = of_caller
            .cloned()
            .or_else(|| refusal.map(|refused| Finding::refused("dispatch", &refused)));
        Explanation {
            node_id: node.to_owned(),
            command: command.to_owned(),
            verdict: found.as_ref().map_or(Verdict::Allow, |found| found.verdict),
            change: found.as_ref().and_then(|found| found.change.clone()),
            refusal: found.map(|found| found.rule),
            layers,
        }
    }

    fn explain_here(
        &self,
        caller: &Caller,
        node: &str,
        command: &str,
    ) -> (Vec<Finding>, Option<Refused>) {
        let inner = self.lock();
        let mut layers = vec![scope_of(caller, command)];
        layers.extend(nodes::is_browser(command).then(|| path_of(caller, command)));
        let Some((id, device)) = node_of(&inner, node) else {
            let waiting = inner.pairing.requests(machine::now_ms());
            let request = waiting
                .iter()
                .find(|request| request.facts.id.as_str() == node);
            layers.push(Finding {
                change: request.map(|it| format!("portcullis devices approve {}", it.request_id)),
                ..Finding::new("paired", Verdict::Deny, "no node with this id is paired")
            });
            return (layers, Some(Refused::UnknownNode));
        };
        layers.push(Finding::new(
            "paired",
            Verdict::Allow,
            "an operator let its device in",
        ));
        let policy = self.command_policy(&id);
        layers.extend(nodes::layers(
            &policy,
            &device.platform,
            surface(&inner, &id),
            &id,
            command,
        ));
        if command == "system.run" {
            let mode = self.settings().exec_mode;
            let setting = format!("tools.exec.mode: {}", mode.as_str());
            let found = match nodes::exec_gate(mode, false, false, None) {
                Ok(()) => Finding::new("exec", Verdict::Allow, "every command may run"),
                Err(refused) => Finding::refused("exec", &refused),
            };
            layers.push(found.under(setting));
        }
        (layers, self.refusal(&inner, &id, command))
    }

    /// What dispatch would answer to a command that leans on no approval.
    fn refusal(&self, inner: &Inner, node: &DeviceId, command: &str) -> Option<Refused> {
        let decided = self.decide(inner, node, command).and_then(|_| {
            if command == "system.run" {
                nodes::exec_gate(self.settings().exec_mode, false, false, None)
            } else {
                Ok(())
            }
        });
        decided.err()
    }

    /// The node's own exec policy, as it applies to this very command.
    async fn node_policy(&self, caller: &Caller, node: &str, params: Option<&RawValue>) -> Finding {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Planned {
            exec_policy: Words,
        }
        #[derive(Deserialize)]
        struct Words {
            security: String,
            ask: String,
        }
        const PREPARE: &str = "system.run.prepare";
        let unknown = |why: &str| Finding::new("node", Verdict::Unknown, why);
        let may = permission::check(
            Method::NodeInvoke,
            caller.role,
            caller.scopes,
            Some(PREPARE),
        );
        let Some(id) = DeviceId::parse(node).filter(|_| may.is_ok()) else {
            return unknown("not asked: that takes operator.write");
        };
        let mut invoke = self.plain(&id, PREPARE, planned(params), caller);
        invoke.timeout_ms = NODE_POLICY_TIMEOUT_MS;
        let answer = match self.invoke(invoke).await.result {
            Ok(result) => result.payload,
            Err(Refused::Node { message, .. }) => {
                let finding = Finding::new("node", Verdict::Deny, message);
                return finding.under("the node's own exec policy");
            }
            Err(refused) => return unknown(&format!("not asked: {}", refused.public())),
        };
        let text = answer.as_deref().map_or("null", RawValue::get);
        let Ok(Planned { exec_policy }) = serde_json::from_str::<Planned>(text) else {
            return unknown("its answer names no policy");
        };
        let (security, ask) = (exec_policy.security, exec_policy.ask);
        let verdict = match Mode::from_legacy(Some(&security), Some(&ask), None) {
            Ok(Mode::Full) => Verdict::Allow,
            Ok(Mode::Deny) => Verdict::Deny,
            Ok(Mode::Ask | Mode::AskAlways | Mode::Allowlist) => Verdict::Ask,
            Err(_) => Verdict::Unknown,
        };
        Finding {
            change: (verdict != Verdict::Allow)
                .then(|| "tools.exec.mode on that machine".to_owned()),
            ..Finding::new(
                "node",
                verdict,
                format!("security {security:?}, ask {ask:?}"),
            )
            .under("the node's own exec policy")
        }
    }

    /// The three states of every node, or of one, and of each command that it declares or was approved for.
    pub fn node_report(&self, only: Option<&str>) -> Report {
        let inner = self.lock();
        let wanted = |device: &&Device| only.is_none_or(|only| device.id.as_str() == only);
        Report {
            ts: machine::now_ms(),
            since_ms: self.started_at_ms,
            nodes: inner
                .pairing
                .nodes()
                .filter(wanted)
                .map(|device| self.report_of(&inner, device))
                .collect(),
        }
    }

    fn report_of(&self, inner: &Inner, device: &Device) -> NodeReport {
        let id = &device.id;
        let session = inner.registry.session(id);
        let record = inner.registry.record(id);
        let surface = surface(inner, id);
        let request = inner.pairing.surface_request(id);
        let policy = self.command_policy(id);
        let mut names: BTreeSet<&String> = BTreeSet::new();
        names.extend(surface.declared.unwrap_or_default());
        names.extend(surface.approved.unwrap_or_default());
        names.extend(request.iter().flat_map(|request| &request.facts.commands));
        names.extend(record.iter().flat_map(|record| record.hits.keys()));
        let report = |command: &&String| {
            let passes =
                |layer| nodes::judge(layer, &policy, &device.platform, surface, command).is_ok();
            let refused = self.refusal(inner, id, command);
            CommandReport {
                command: (*command).clone(),
                callable: passes(Layer::Declared) && passes(Layer::Approved),
                permitted: passes(Layer::Policy) && refused != Some(Refused::ExecDenied),
                verdict: Verdict::of(refused.as_ref()),
                rule: refused
                    .as_ref()
                    .map(|refused| refused.public().into_owned()),
                change: refused.map(|refused| refused.remedy().into_owned()),
                hits: record
                    .and_then(|record| record.hits.get(*command).copied())
                    .unwrap_or(0),
            }
        };
        NodeReport {
            node_id: id.as_str().to_owned(),
            online: session.is_some(),
            epoch: session.map(|session| session.epoch),
            path: session.map(|session| session.facts.path.clone()),
            connects: record.map_or(0, |record| record.connects),
            last_close: record.and_then(|record| record.last_close.clone()),
            host: record.and_then(|record| record.host.clone()),
            changes: record.map_or_else(Vec::new, |record| record.changes.clone()),
            commands: names.iter().map(report).collect(),
        }
    }

    /// A node said where it executes.
    pub fn node_described(&self, node: &DeviceId, host: &HostFacts) {
        self.lock().registry.described(node, host);
    }
}

/// The caller's own path, for browser control.
fn path_of(caller: &Caller, command: &str) -> Finding {
    let found = match caller.check_path(command) {
        Ok(()) => Finding::new(
            CALLER_PATH,
            Verdict::Allow,
            "the caller's path is not a public one",
        ),
        Err(refused) => Finding::refused(CALLER_PATH, &refused),
    };
    found.under("the caller's session")
}

/// The caller's own right to relay a command.
fn scope_of(caller: &Caller, command: &str) -> Finding {
    let needed = permission::scope_of_command(command);
    match permission::check(
        Method::NodeInvoke,
        caller.role,
        caller.scopes,
        Some(command),
    ) {
        Ok(()) => Finding::new(
            "scope",
            Verdict::Allow,
            format!("this caller holds {needed}"),
        ),
        Err(refusal) => Finding {
            change: Some(refusal.remedy().into_owned()),
            ..Finding::new("scope", Verdict::Deny, refusal.public())
        },
    }
}

fn node_of(inner: &Inner, node: &str) -> Option<(DeviceId, Device)> {
    let id = DeviceId::parse(node)?;
    let device = inner.pairing.nodes().find(|device| device.id == id)?;
    Some((id, device.clone()))
}

/// A node's commands as its session and its records hold them.
pub(super) fn surface<'a>(inner: &'a Inner, node: &DeviceId) -> Surface<'a> {
    let session = inner.registry.session(node);
    Surface {
        declared: session.map(|session| session.facts.commands.as_slice()),
        approved: inner
            .pairing
            .surface(node)
            .map(|surface| surface.facts.commands.as_slice()),
        pending_request: inner
            .pairing
            .surface_request(node)
            .map(|request| request.request_id.as_str()),
        public_path: session
            .filter(|session| session.public)
            .map(|session| session.facts.path.as_str()),
    }
}

/// `system.run.prepare`'s parameters for a `system.run`'s, in the freest words, so that the answer is the node's own.
fn planned(params: Option<&RawValue>) -> String {
    let mut fields: Map<String, Value> = params
        .and_then(|params| serde_json::from_str(params.get()).ok())
        .unwrap_or_default();
    fields.retain(|name, _| PLANNED_FIELDS.contains(&name.as_str()));
    let (security, ask) = Mode::Full.legacy();
    fields.insert("security".to_owned(), security.into());
    fields.insert("ask".to_owned(), ask.into());
    fields
        .entry("command")
        .or_insert_with(|| vec!["true"].into());
    Value::Object(fields).to_string()
}
