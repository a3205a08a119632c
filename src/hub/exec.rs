//! Running a command line on a node: prepared there, approved here, executed as prepared.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Caller, Hub, Invoke, Listener, Timing};
use crate::audit::{self, Actor, Digest};
use crate::auth::scope::Scope;
use crate::base::{DeviceId, ids::uuid_v4, limits};
use crate::exec::approval::{self, Binding, Decision, Use, Wanted};
use crate::exec::env::{self, Overrides};
use crate::exec::plan::{Asked, Plan, Prepared};
use crate::exec::{Mode, argv_text, redact};
use crate::machine;
use crate::nodes::{self, Dispatched, ExecGrounds, Refused, exec_gate};

/// How long a node may take to plan a command.
const PREPARE_TIMEOUT_MS: u64 = 30_000;
/// What a run may take beyond its command's own time, for the way there and back, in milliseconds.
const RUN_GRACE_MS: u64 = 5_000;
/// What only the Gateway's own record may say about a run.
const CONTROL_FIELDS: [&str; 5] = [
    "approved",
    "approvalDecision",
    "approvalSource",
    "runId",
    "systemRunPlan",
];

/// A command line for a node, from a turn of the agent.
#[derive(Clone)]
pub struct ExecRequest {
    pub node: DeviceId,
    pub argv: Vec<String>,
    pub cwd: Option<String>,
    pub timeout: Duration,
    pub agent_id: String,
    pub session_key: String,
    /// The operator for whom the turn runs.
    pub caller: Caller,
    /// That operator typed this very command.
    pub typed: bool,
    /// As the audit log names the turn.
    pub actor: Actor,
    /// Who hears what the command prints while it runs.
    pub listener: Option<Arc<Listener>>,
}

/// What came of it, in the node's words.
#[derive(Clone, Debug)]
pub struct Executed {
    pub output: RunOutput,
    pub timing: Timing,
}

/// Why there is no result, and whether the command itself was sent: what went to the node may have been its planning.
#[derive(Debug)]
pub struct NotExecuted {
    pub refused: Refused,
    pub dispatched: Dispatched,
}

impl NotExecuted {
    fn unsent(refused: Refused) -> Self {
        Self {
            refused,
            dispatched: Dispatched::No,
        }
    }

    /// What to do about it; the remedy of what was only planned would be about a command that ran.
    pub fn remedy(&self, node: &DeviceId) -> String {
        let planned = self.dispatched == Dispatched::No;
        match (&self.refused, planned) {
            (
                Refused::TimedOut { .. } | Refused::Disconnected { .. } | Refused::Interrupted,
                true,
            ) => {
                "the node gave no plan, so nothing ran; repeat it when the node answers".to_owned()
            }
            (refused, _) => refused.remedy_on(node.as_str()),
        }
    }
}

impl From<Refused> for NotExecuted {
    fn from(refused: Refused) -> Self {
        let dispatched = refused.dispatched();
        Self {
            refused,
            dispatched,
        }
    }
}

/// `system.run`'s result.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RunOutput {
    pub exit_code: Option<i64>,
    pub timed_out: bool,
    pub stdout: String,
    pub stderr: String,
    pub error: Option<String>,
    pub truncated: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PrepareParams<'a> {
    command: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    cwd: Option<&'a str>,
    agent_id: &'a str,
    session_key: &'a str,
    /// What the Gateway still wants the node to ask: nothing, it has decided. The node's own policy wins where it is
    /// stricter. Without these words the official node refuses to plan a shell's text at all.
    security: &'static str,
    ask: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RunParams<'a> {
    command: &'a [String],
    raw_command: &'a str,
    system_run_plan: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    cwd: Option<&'a str>,
    #[serde(skip_serializing_if = "Overrides::is_empty")]
    env: &'a Overrides,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_key: Option<&'a str>,
    run_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    approved: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approval_decision: Option<&'a str>,
}

impl<'a> RunParams<'a> {
    /// Exactly what the node planned, and what was decided about it.
    fn of(
        prepared: &'a Prepared,
        env: &'a Overrides,
        run_id: &'a str,
        decision: Option<Decision>,
    ) -> Self {
        let plan = &prepared.plan;
        Self {
            command: &plan.argv,
            raw_command: &plan.command_text,
            system_run_plan: &prepared.raw,
            cwd: plan.cwd.as_deref(),
            env,
            timeout_ms: None,
            agent_id: plan.agent_id.as_deref(),
            session_key: plan.session_key.as_deref(),
            run_id,
            approved: decision.map(|_| true),
            approval_decision: decision.map(Decision::as_str),
        }
    }
}

/// `node.invoke`'s parameters as they go to the node.
#[derive(Default)]
pub struct Checked {
    pub params_json: Option<String>,
    /// The approval that they lean on, what for, and its command line.
    pub approval: Option<String>,
    pub redeems: Option<Binding>,
    pub command_text: Option<String>,
    pub grounds: ExecGrounds,
}

impl Hub {
    /// Runs a command line on a node and returns its output.
    ///
    /// A command that an operator with `operator.approvals` typed is its own one-time approval, bound to what the node
    /// planned; about any other the operators are
    /// asked, in the modes that ask. In mode `allowlist` only the node's list counts. The mode is the stricter of the
    /// Gateway's and the node's own, as its plan names it.
    pub async fn exec(&self, request: ExecRequest) -> Result<Executed, NotExecuted> {
        let mode = self.settings().exec_mode;
        let run_id = uuid_v4(machine::random());
        let recorded = |refused: Refused| {
            self.record_refusal(&request.node, "system.run", &request.actor, &refused);
            NotExecuted::unsent(refused)
        };
        if mode == Mode::Deny {
            return Err(recorded(Refused::ExecDenied));
        }
        let started = std::time::Instant::now();
        let planning = self.planning(&request).map_err(recorded)?;
        // What becomes of the planning is on record already.
        let planned = self.invoke(planning).await.result;
        let planned = planned.map_err(NotExecuted::unsent)?;
        let prepared = prepared(&request, &planned).map_err(recorded)?;
        let plan = &prepared.plan;
        let no_overrides = Overrides::new();
        let permitted = self.permitted(&request, &prepared, mode, &run_id).await;
        let (mut grounds, decision) = permitted.map_err(recorded)?;
        grounds.approved = decision.is_some();
        let timeout_ms = u64::try_from(request.timeout.as_millis()).unwrap_or(u64::MAX);
        let params = RunParams {
            timeout_ms: Some(timeout_ms),
            ..RunParams::of(&prepared, &no_overrides, &run_id, decision)
        };
        let params = to_json(&params)?;
        let plain = self.plain(&request.node, "system.run", params, &request.caller);
        let invoked = self
            .invoke(Invoke {
                timeout_ms: timeout_ms.saturating_add(RUN_GRACE_MS),
                idempotency_key: run_id.clone(),
                command_text: Some(shown_text(plan)),
                approval: decision.map(|_| run_id),
                grounds,
                actor: request.actor,
                listener: request.listener,
                ..plain
            })
            .await;
        let output = read::<RunOutput>(&invoked.result?)?;
        // Planning is part of the time that a command spends before it runs.
        let planning = started.elapsed().saturating_sub(invoked.timing.total);
        let timing = Timing {
            queue: invoked.timing.queue + planning,
            execution: invoked.timing.execution,
            total: started.elapsed(),
        };
        Ok(Executed { output, timing })
    }

    /// On what grounds a planned command may go out, and whose word it took.
    async fn permitted(
        &self,
        request: &ExecRequest,
        prepared: &Prepared,
        mode: Mode,
        run_id: &str,
    ) -> Result<(ExecGrounds, Option<Decision>), Refused> {
        // Looked up again: turns wait, and operators are removed meanwhile.
        let scopes = self.lock().present_scopes(&request.caller)?;
        let typed = request.typed && scopes.allows(Scope::Approvals);
        // Nobody is asked about what the node will not run, and somebody is about what it would not run unasked.
        let grounds = ExecGrounds::of(prepared, typed);
        let stricter = grounds.node.map_or(mode, |own| mode.merge(own));
        let decision = match stricter {
            Mode::Full => None,
            Mode::Deny | Mode::Allowlist => {
                grounds.check(mode, None)?;
                None
            }
            _ if typed => {
                self.record_approval(&audit::Event::ApprovalDecided {
                    approval: run_id.to_owned(),
                    decision: Decision::AllowOnce.as_str().to_owned(),
                    by: request.caller.actor.clone(),
                })?;
                Some(Decision::AllowOnce)
            }
            // The node's own list is what lets it run: no approval of ours goes with it.
            Mode::Ask if grounds.listed => None,
            Mode::AskAlways | Mode::Ask => {
                let now_ms = self.steady_ms();
                let wanted = Wanted {
                    id: run_id.to_owned(),
                    caller: approval::Caller::Turn(run_id.to_owned()),
                    device: request.caller.device.clone(),
                    node: request.node.clone(),
                    prepared: prepared.clone(),
                    env: Overrides::new(),
                    may_always: stricter == Mode::Ask && prepared.may_always(),
                    created_at_ms: now_ms,
                    expires_at_ms: now_ms + limits::APPROVAL_TTL_MS_DEFAULT,
                };
                Some(self.ask(&request.caller, &request.actor, wanted).await?)
            }
        };
        Ok((grounds, decision))
    }

    /// Asks a node where programs are.
    pub async fn which(
        &self,
        node: &DeviceId,
        bins: &[String],
        caller: &Caller,
        actor: Actor,
    ) -> Result<BTreeMap<String, String>, Refused> {
        #[derive(Serialize)]
        struct Params<'a> {
            bins: &'a [String],
        }
        #[derive(Deserialize)]
        struct Found {
            bins: BTreeMap<String, String>,
        }
        let params = to_json(&Params { bins })?;
        let invoke = Invoke {
            actor,
            ..self.plain(node, "system.which", params, caller)
        };
        Ok(read::<Found>(&self.invoke(invoke).await.result?)?.bins)
    }

    /// `node.invoke`'s parameters as they may be relayed.
    ///
    /// Whatever a caller writes into the control fields of a `system.run` is dropped: they come from our own record or
    /// not at all. Its `runId` may name an approval that this caller asked for; then the approved plan goes out, once.
    /// Without one such a call is refused, unless exec is open to everyone who may write.
    pub fn checked_params(
        &self,
        node: &DeviceId,
        command: &str,
        caller: &Caller,
        params: Option<Box<RawValue>>,
    ) -> Result<Checked, Refused> {
        let text = params.map(|raw| String::from(Box::<str>::from(raw)));
        if nodes::is_reserved(command) {
            let decided = self.decide(&self.lock(), node, command);
            let refused = decided.err().unwrap_or(Refused::ReservedCommand);
            self.record_refusal(node, command, &caller.actor, &refused);
            return Err(refused);
        }
        if command != "system.run" {
            return Ok(Checked {
                params_json: text,
                ..Checked::default()
            });
        }
        let checked = self.run_params(node, caller, text.as_deref());
        if let Err(refused) = &checked {
            self.record_refusal(node, command, &caller.actor, refused);
        }
        checked
    }

    fn run_params(
        &self,
        node: &DeviceId,
        caller: &Caller,
        text: Option<&str>,
    ) -> Result<Checked, Refused> {
        // They may be megabytes: before everybody waits for the lock.
        let fields = serde_json::from_str(text.unwrap_or("{}"));
        let inner = self.lock();
        self.decide(&inner, node, "system.run")?;
        let mut fields: BTreeMap<String, Box<RawValue>> = fields.map_err(|_| Refused::BadParams)?;
        let mode = self.settings().exec_mode;
        if mode == Mode::Deny {
            return Err(Refused::ExecDenied);
        }
        let run_id: Option<String> = field(&fields, "runId").unwrap_or_default();
        let known = run_id.as_deref().and_then(|id| inner.approvals.get(id));
        if let Some(approval) = known {
            let wanted = approval.wanted.clone();
            // It may have been given in a freer mode.
            let grounds = ExecGrounds::of(&wanted.prepared, true);
            grounds.check(mode, run_id.as_deref())?;
            let claimed = claimed_plan(&wanted.prepared.plan, &fields)?;
            let env: Overrides = field(&fields, "env")?.unwrap_or_default();
            let binding = Binding::of(&claimed, &env);
            let used = Use {
                caller: &caller.for_approval(),
                node,
                binding: &binding,
                now_ms: self.steady_ms(),
            };
            // It is used up when they are sent.
            let decision = inner.approvals.check(&wanted.id, &used);
            let decision = decision.map_err(|error| not_covered(error, &wanted.id))?;
            drop(inner);
            let params = RunParams {
                timeout_ms: field(&fields, "timeoutMs")?,
                ..RunParams::of(&wanted.prepared, &wanted.env, &wanted.id, Some(decision))
            };
            return Ok(Checked {
                params_json: Some(to_json(&params)?),
                command_text: Some(shown_text(&wanted.prepared.plan)),
                approval: Some(wanted.id),
                redeems: Some(binding),
                grounds,
            });
        }
        drop(inner);
        exec_gate(mode, false, false, run_id.as_deref())?;
        let env: Overrides = field(&fields, "env")?.unwrap_or_default();
        env::check(&env)?;
        for field in CONTROL_FIELDS {
            fields.remove(field);
        }
        let run_id = RawValue::from_string(format!("\"{}\"", uuid_v4(machine::random())));
        fields.extend(run_id.ok().map(|run_id| ("runId".to_owned(), run_id)));
        Ok(Checked {
            params_json: Some(to_json(&fields)?),
            ..Checked::default()
        })
    }

    /// Reads a node's own exec policy file, or sets it: recorded, then relayed (N6).
    pub async fn node_policy_file(
        &self,
        caller: &Caller,
        node: &DeviceId,
        set: Option<(String, Digest)>,
    ) -> Result<super::NodeResult, Refused> {
        let command = match set {
            None => "system.execApprovals.get",
            Some(_) => "system.execApprovals.set",
        };
        let mut params_json = "{}".to_owned();
        if let Some((params, after_sha256)) = set {
            self.decide_any(&self.lock(), node, command)?;
            self.record_approval(&audit::Event::PolicyChanged {
                policy: "exec-approvals".to_owned(),
                after_sha256,
                summary: format!("of node {}", node.as_str()).as_str().into(),
                by: caller.actor.clone(),
            })?;
            params_json = params;
        }
        let invoke = self.plain(node, command, params_json, caller);
        self.invoke(invoke).await.result
    }

    fn planning(&self, request: &ExecRequest) -> Result<Invoke, Refused> {
        let (security, ask) = Mode::Full.legacy();
        let params = to_json(&PrepareParams {
            command: &request.argv,
            cwd: request.cwd.as_deref(),
            agent_id: &request.agent_id,
            session_key: &request.session_key,
            security,
            ask,
        })?;
        Ok(Invoke {
            timeout_ms: PREPARE_TIMEOUT_MS,
            actor: request.actor.clone(),
            ..self.plain(&request.node, "system.run.prepare", params, &request.caller)
        })
    }

    pub(super) fn plain(
        &self,
        node: &DeviceId,
        command: &str,
        params_json: String,
        caller: &Caller,
    ) -> Invoke {
        Invoke {
            node: node.clone(),
            command: command.to_owned(),
            params_json: Some(params_json),
            timeout_ms: limits::INVOKE_TIMEOUT_MS_DEFAULT,
            idempotency_key: uuid_v4(machine::random()),
            command_text: None,
            approval: None,
            redeems: None,
            grounds: ExecGrounds::default(),
            caller: caller.clone(),
            actor: caller.actor.clone(),
            is_replay: false,
            listener: None,
        }
    }
}

/// The plan in a node's answer, if it is one of what was asked.
fn prepared(request: &ExecRequest, answer: &super::NodeResult) -> Result<Prepared, Refused> {
    let payload = answer.payload.as_deref().map_or("null", RawValue::get);
    let prepared = Prepared::parse(payload).map_err(bad_plan)?;
    prepared
        .check_asked(&Asked {
            argv: &request.argv,
            agent_id: Some(&request.agent_id),
            session_key: Some(&request.session_key),
        })
        .map_err(bad_plan)?;
    Ok(prepared)
}

/// A refusal of what leans on an approval that does not cover it.
pub(super) fn not_covered(error: approval::ApprovalError, id: &str) -> Refused {
    match error {
        approval::ApprovalError::Required => Refused::ApprovalRequired {
            run_id: Some(id.to_owned()),
        },
        other => Refused::ApprovalMismatch(other),
    }
}

/// A plan's command line for people and for the record.
pub(super) fn shown_text(plan: &Plan) -> String {
    argv_text::render(&redact::argv(&plan.argv))
}

/// The approved plan with whatever the request says put in its place: equal to it only if the request says nothing else.
fn claimed_plan(
    approved: &Plan,
    fields: &BTreeMap<String, Box<RawValue>>,
) -> Result<Plan, Refused> {
    let mut plan = match field::<Plan>(fields, "systemRunPlan")? {
        Some(plan) => plan,
        None => approved.clone(),
    };
    plan.argv = field(fields, "command")?.ok_or(Refused::BadParams)?;
    for (name, place) in [
        ("cwd", &mut plan.cwd),
        ("agentId", &mut plan.agent_id),
        ("sessionKey", &mut plan.session_key),
    ] {
        if let Some(said) = field(fields, name)? {
            *place = Some(said);
        }
    }
    Ok(plan)
}

/// A field of the parameters; `null` counts as absent.
fn field<T: for<'de> Deserialize<'de>>(
    fields: &BTreeMap<String, Box<RawValue>>,
    name: &str,
) -> Result<Option<T>, Refused> {
    fields.get(name).map_or(Ok(None), |raw| {
        serde_json::from_str(raw.get()).map_err(|_| Refused::BadParams)
    })
}

fn to_json(value: &impl Serialize) -> Result<String, Refused> {
    serde_json::to_string(value).map_err(|_| Refused::BadParams)
}

fn read<T: for<'de> Deserialize<'de>>(result: &super::NodeResult) -> Result<T, Refused> {
    let text = result.payload.as_deref().map_or("null", RawValue::get);
    serde_json::from_str(text).map_err(|_| Refused::Node {
        code: "INVALID_RESULT".to_owned(),
        message: "the node's result has not the form of this command's results".to_owned(),
    })
}

fn bad_plan(error: impl std::fmt::Display) -> Refused {
    Refused::Node {
        code: "INVALID_PLAN".to_owned(),
        message: error.to_string(),
    }
}
