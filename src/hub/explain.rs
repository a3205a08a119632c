//! Why a command would or would not run on a node: dispatch's own decision, replayed without executing anything.

use std::collections::BTreeSet;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::{Caller, Hub, Inner};
use crate::auth::permission;
use crate::auth::scope::Scope;
use crate::base::{DeviceId, Refusal};
use crate::exec::approval::Unapproved;
use crate::exec::{Mode, Prepared};
use crate::machine;
use crate::nodes::{
    self, Category, CommandReport, Dispatched, ExecGrounds, Explanation, Finding, HostFacts, Layer,
    NodeReport, Refused, Report, Surface, Verdict, exec_gate,
};
use crate::pairing::Device;
use crate::rpc::Method;

/// How long a node may take to say what it would do. Whoever asks waits for ten seconds by default.
const NODE_POLICY_TIMEOUT_MS: u64 = 5_000;
/// The layer of the caller's own path.
const CALLER_PATH: &str = "caller's path";
const NODE_POLICY: &str = "the node's own exec policy";
const PREPARE: &str = "system.run.prepare";
/// What of a `system.run` the node is asked to plan.
const PLANNED_FIELDS: [&str; 6] = [
    "command",
    "rawCommand",
    "cwd",
    "env",
    "agentId",
    "sessionKey",
];

/// A node's answer to the question whether it would run a command.
struct NodeWord {
    finding: Finding,
    /// Its own mode, if it is known.
    mode: Option<Mode>,
    listed: bool,
    /// It plans no such command.
    refused: Option<Refused>,
}

impl NodeWord {
    fn of(finding: Finding) -> Self {
        Self {
            finding,
            mode: None,
            listed: false,
            refused: None,
        }
    }
}

impl Hub {
    /// Each layer's word about a command on a node, and what dispatch would answer this caller now.
    ///
    /// For `system.run` the node itself is asked through `system.run.prepare`, which plans and runs nothing, if the caller
    /// may relay that; `agent` is whose command it is if the parameters do not say. The verdict is that of a `/run`: what
    /// the node's allowlist holds goes out, and a `node.invoke` of it does not.
    pub async fn explain(
        &self,
        caller: &Caller,
        node: &str,
        command: &str,
        params: Option<&RawValue>,
        agent: &str,
    ) -> Explanation {
        let (mut layers, mut refusal) = self.explain_here(caller, node, command);
        if command == "system.run" {
            let mode = self.settings().exec_mode;
            let asked = match refusal.is_none() && mode != Mode::Deny {
                true => Some(self.node_word(caller, node, params, agent).await),
                false => None,
            };
            let listed = asked.as_ref().is_some_and(|word| word.listed);
            let found = match exec_gate(mode, listed, false, None) {
                Ok(()) if listed && mode != Mode::Full => {
                    Finding::new("exec", Verdict::Allow, "the node's allowlist holds it")
                }
                Ok(()) => Finding::new("exec", Verdict::Allow, "every command may run"),
                Err(refused) => Finding::refused("exec", &refused, node),
            };
            layers.push(found.under(format!("tools.exec.mode: {}", mode.as_str())));
            let own = asked.as_ref().and_then(|word| word.mode);
            let refused = asked.as_ref().and_then(|word| word.refused.clone());
            refusal = refusal
                .or(refused)
                .or_else(|| unapproved(own, listed).check(mode, None).err());
            layers.extend(asked.map(|word| word.finding));
        }
        // A caller without the scope, or by a public path, is refused before anything else is looked at.
        let of_caller = layers
            .iter()
            .find(|it| it.verdict == Verdict::Deny && matches!(&*it.layer, "scope" | CALLER_PATH));
        let found = of_caller
            .cloned()
            .or_else(|| refusal.map(|refused| Finding::refused("dispatch", &refused, node)));
        let verdict = found.as_ref().map_or(Verdict::Allow, |found| found.verdict);
        Explanation {
            node_id: node.to_owned(),
            command: command.to_owned(),
            verdict,
            notes: self.notes(caller, node, command, verdict),
            change: found.as_ref().and_then(|found| found.change.clone()),
            refusal: found.map(|found| found.rule),
            layers,
        }
    }

    /// What somebody would expect after this verdict, and what else it takes.
    fn notes(&self, caller: &Caller, node: &str, command: &str, verdict: Verdict) -> Vec<String> {
        let mut notes = Vec::new();
        if !matches!(verdict, Verdict::Allow | Verdict::Ask) {
            return notes;
        }
        if nodes::is_reserved(command) {
            let way = match command {
                "system.execApprovals.get" => format!("`portcullis approvals get --node {node}`"),
                _ => "`portcullis gateway call exec.approvals.node.set`".to_owned(),
            };
            notes.push(format!("node.invoke never takes it: {way}"));
        }
        if command != "system.run" {
            return notes;
        }
        if let Err(refused) = exec_gate(self.settings().exec_mode, false, false, None) {
            notes.push(format!(
                "this is about a `/run`; `portcullis nodes invoke` of it is refused now, {}: {}",
                refused.public_on(node),
                refused.remedy_on(node)
            ));
        }
        if verdict == Verdict::Ask && !self.lock().connections.has_approver(caller) {
            let refused = Refused::Unapproved(Unapproved::NoApprover);
            notes.push(format!(
                "until then it is refused at once, unless an operator with operator.approvals types it, {}: {}",
                refused.public(),
                refused.remedy_on(node)
            ));
        }
        notes
    }

    fn explain_here(
        &self,
        caller: &Caller,
        node: &str,
        command: &str,
    ) -> (Vec<Finding>, Option<Refused>) {
        let inner = self.lock();
        let mut layers = vec![scope_of(caller, command)];
        layers.extend(nodes::is_browser(command).then(|| path_of(caller, node, command)));
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
        let refused = self.decide_any(&inner, &id, command).err();
        (layers, refused)
    }

    /// What the node says of this very command, under its own exec policy.
    async fn node_word(
        &self,
        caller: &Caller,
        node: &str,
        params: Option<&RawValue>,
        agent: &str,
    ) -> NodeWord {
        let unknown = |why: &str| NodeWord::of(Finding::new("node", Verdict::Unknown, why));
        let may = permission::check(
            Method::NodeInvoke,
            caller.role,
            caller.scopes,
            Some(PREPARE),
        );
        let Some(id) = DeviceId::parse(node).filter(|_| may.is_ok()) else {
            return unknown("not asked: that takes operator.write");
        };
        let (params_json, named) = planned(params, agent);
        let mut invoke = self.plain(&id, PREPARE, params_json, caller);
        invoke.timeout_ms = NODE_POLICY_TIMEOUT_MS;
        invoke.is_replay = true;
        let answer = match self.invoke(invoke).await.result {
            Ok(result) => result.payload,
            Err(refused @ Refused::Node { .. }) => {
                let finding = Finding::refused("node", &refused, node).under(NODE_POLICY);
                return NodeWord {
                    refused: Some(refused),
                    ..NodeWord::of(finding)
                };
            }
            // A `/run` is planned first, so what forbids the plan forbids the run.
            Err(refused) if refused.category() == Category::Permission => {
                let finding = Finding::refused("node", &refused, node).under(PREPARE);
                return NodeWord {
                    refused: Some(refused),
                    ..NodeWord::of(finding)
                };
            }
            Err(refused) if refused.dispatched() == Dispatched::No => {
                return unknown(&format!("not asked: {}", refused.public_on(node)));
            }
            Err(refused) => {
                return unknown(&format!("asked, without an answer: {}", refused.public()));
            }
        };
        let text = answer.as_deref().map_or("null", RawValue::get);
        let prepared = match Prepared::parse(text) {
            Ok(prepared) => prepared,
            Err(error) => return unknown(&error.to_string()),
        };
        let Some(mode) = prepared.node_mode() else {
            return unknown("its plan names no policy that we know");
        };
        // A node of ours leaves a program that it does not find as it is written, and without a file.
        let program = prepared.plan.argv.first().map_or("", String::as_str);
        let is_found = program.starts_with('/')
            && (mode == Mode::Full || prepared.plan.mutable_file_operand.is_some());
        if named && !is_found && self.lock().registry.is_ours(&id) {
            let refused = Refused::Node {
                code: "SYSTEM_RUN_FAILED".to_owned(),
                message: format!("command not found or not executable: {program:?}"),
            };
            let finding = Finding::refused("node", &refused, node).under("the node's PATH");
            return NodeWord {
                refused: Some(refused),
                ..NodeWord::of(finding)
            };
        }
        // What was not named is on no list.
        let listed = named && prepared.is_listed();
        let holds = if listed { "holds" } else { "does not hold" };
        let rule = format!("mode {}, and its allowlist {holds} it", mode.as_str());
        let refused = unapproved(Some(mode), listed).check(Mode::Full, None).err();
        let verdict = Verdict::of(refused.as_ref());
        NodeWord {
            mode: Some(mode),
            listed,
            ..NodeWord::of(Finding {
                change: refused.map(|refused| refused.remedy_on(node)),
                ..Finding::new("node", verdict, rule).under(NODE_POLICY)
            })
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
        let mode = self.settings().exec_mode;
        let is_run = |command: &str| command == "system.run";
        let report = |command: &&String| {
            let passes =
                |layer| nodes::judge(layer, &policy, &device.platform, surface, command).is_ok();
            let refused = self.decide_any(inner, id, command).err().or_else(|| {
                let own = record.and_then(|record| record.host.as_ref()?.mode());
                let gate = || unapproved(own, false).check(mode, None).err();
                let plan = || self.decide(inner, id, PREPARE).err();
                match is_run(command) {
                    true if mode == Mode::Deny => gate(),
                    true => plan().or_else(gate),
                    false => None,
                }
            });
            CommandReport {
                command: (*command).clone(),
                callable: passes(Layer::Declared) && passes(Layer::Approved),
                permitted: passes(Layer::Policy) && (mode != Mode::Deny || !is_run(command)),
                verdict: Verdict::of(refused.as_ref()),
                rule: refused
                    .as_ref()
                    .map(|refused| refused.public_on(id.as_str())),
                change: refused.map(|refused| refused.remedy_on(id.as_str())),
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
fn path_of(caller: &Caller, node: &str, command: &str) -> Finding {
    let found = match caller.check_path(command) {
        Ok(()) => Finding::new(
            CALLER_PATH,
            Verdict::Allow,
            "the caller's path is not a public one",
        ),
        Err(refused) => Finding::refused(CALLER_PATH, &refused, node),
    };
    found.under("the caller's session")
}

/// The caller's own right to relay a command.
fn scope_of(caller: &Caller, command: &str) -> Finding {
    let (method, needed) = match command {
        _ if !nodes::is_reserved(command) => {
            (Method::NodeInvoke, permission::scope_of_command(command))
        }
        _ if command.ends_with(".get") => (Method::ExecApprovalsNodeGet, Scope::Admin),
        _ => (Method::ExecApprovalsNodeSet, Scope::Admin),
    };
    match permission::check(method, caller.role, caller.scopes, Some(command)) {
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

/// On what a command stands that nobody was asked about.
fn unapproved(node: Option<Mode>, listed: bool) -> ExecGrounds {
    ExecGrounds {
        node,
        listed,
        approved: false,
    }
}

/// `system.run.prepare`'s parameters for a `system.run`'s, in the freest words, so that the answer is the node's own; and
/// whether they name a command.
fn planned(params: Option<&RawValue>, agent: &str) -> (String, bool) {
    let mut fields: Map<String, Value> = params
        .and_then(|params| serde_json::from_str(params.get()).ok())
        .unwrap_or_default();
    fields.retain(|name, _| PLANNED_FIELDS.contains(&name.as_str()));
    let (security, ask) = Mode::Full.legacy();
    fields.insert("security".to_owned(), security.into());
    fields.insert("ask".to_owned(), ask.into());
    fields
        .entry("agentId")
        .or_insert_with(|| agent.to_owned().into());
    let named = fields.contains_key("command");
    if !named {
        fields.insert("command".to_owned(), vec!["true"].into());
    }
    (Value::Object(fields).to_string(), named)
}
