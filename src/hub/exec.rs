//! Running a command line on a node: prepared there, approved here, executed as prepared.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Caller, Hub, Invoke, Timing};
use crate::audit::{self, Actor, Durability};
use crate::auth::scope::Scope;
use crate::base::{ConnId, DeviceId, Refusal, ids::uuid_v4};
use crate::exec::approval::{self, Approval, Binding, Bound, Decision, Use};
use crate::exec::env::Overrides;
use crate::exec::plan::{Asked, Prepared};
use crate::exec::policy::Mode;
use crate::machine;
use crate::nodes::Refused;

/// How long a node may take to plan a command.
const PREPARE_TIMEOUT_MS: u64 = 30_000;
/// What a run may take beyond its command's own time, for the way there and back, in milliseconds.
const RUN_GRACE_MS: u64 = 5_000;
/// How long an approval that is used at once may live, in milliseconds.
const APPROVAL_TTL_MS: u64 = 60_000;
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
}

/// What came of it, in the node's words.
#[derive(Clone, Debug)]
pub struct Executed {
    pub output: RunOutput,
    pub timing: Timing,
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
    timeout_ms: u64,
    agent_id: &'a str,
    session_key: &'a str,
    run_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    approved: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approval_decision: Option<&'a str>,
}

impl Hub {
    /// Runs a command line on a node and returns its output.
    ///
    /// A command that an operator with `operator.approvals` typed is its own one-time approval, bound to what the node
    /// planned; in every mode but `full` nothing else runs, because nobody can be asked yet.
    pub async fn exec(&self, request: ExecRequest) -> Result<Executed, Refused> {
        let mode = self.settings().exec_mode;
        let run_id = uuid_v4(machine::random());
        let needs_approval = match mode {
            Mode::Deny => return Err(Refused::ExecDenied),
            Mode::Full => false,
            Mode::Allowlist | Mode::Ask => true,
        };
        if needs_approval && !(request.typed && request.caller.scopes.allows(Scope::Approvals)) {
            return Err(Refused::ApprovalRequired { run_id: None });
        }
        let started = std::time::Instant::now();
        let prepared = self.prepare(&request).await?;
        let plan = &prepared.plan;
        let no_overrides = Overrides::new();
        let binding = Binding::of(&Bound {
            argv: &plan.argv,
            cwd: plan.cwd.as_deref(),
            env: &no_overrides,
            agent_id: plan.agent_id.as_deref(),
            session_key: plan.session_key.as_deref(),
        });
        if needs_approval {
            self.approve_once(&request, &run_id, &binding)?;
        }
        let timeout_ms = u64::try_from(request.timeout.as_millis()).unwrap_or(u64::MAX);
        let params = RunParams {
            command: &plan.argv,
            raw_command: &plan.command_text,
            system_run_plan: &prepared.raw,
            cwd: plan.cwd.as_deref(),
            timeout_ms,
            agent_id: &request.agent_id,
            session_key: &request.session_key,
            run_id: &run_id,
            approved: needs_approval.then_some(true),
            approval_decision: needs_approval.then_some(Decision::AllowOnce.as_str()),
        };
        let invoked = self
            .invoke(Invoke {
                node: request.node.clone(),
                command: "system.run".to_owned(),
                params_json: Some(to_json(&params)?),
                timeout_ms: timeout_ms.saturating_add(RUN_GRACE_MS),
                idempotency_key: run_id.clone(),
                command_text: Some(plan.command_text.clone()),
                approval: needs_approval.then_some(run_id),
                actor: request.actor,
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

    /// Asks a node where programs are.
    pub async fn which(
        &self,
        node: &DeviceId,
        bins: &[String],
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
        let invoked = self
            .invoke(self.plain(node, "system.which", to_json(&Params { bins })?, actor))
            .await;
        Ok(read::<Found>(&invoked.result?)?.bins)
    }

    /// `node.invoke`'s parameters as they may be relayed.
    ///
    /// Whatever a caller writes into the control fields of a `system.run` is dropped: they come from our own record or
    /// not at all. Without an approval such a call is refused, unless exec is open to everyone who may write.
    pub fn checked_params(
        &self,
        node: &DeviceId,
        command: &str,
        caller: &Caller,
        params: Option<Box<RawValue>>,
    ) -> Result<Option<String>, Refused> {
        let text = params.map(|raw| String::from(Box::<str>::from(raw)));
        if command != "system.run" {
            return Ok(text);
        }
        let checked = self.run_params(node, text.as_deref());
        if let Err(refused) = &checked {
            self.record_after_the_fact(&audit::Event::DispatchRefused {
                node: node.as_str().into(),
                command: command.into(),
                rule: refused.log_field(),
                caller: caller.actor.clone(),
            });
        }
        checked.map(Some)
    }

    fn run_params(&self, node: &DeviceId, text: Option<&str>) -> Result<String, Refused> {
        self.decide(&self.lock(), node, "system.run")?;
        let mut fields: BTreeMap<String, Box<RawValue>> =
            serde_json::from_str(text.unwrap_or("{}")).map_err(|_| Refused::BadParams)?;
        match self.settings().exec_mode {
            Mode::Deny => Err(Refused::ExecDenied),
            Mode::Allowlist | Mode::Ask => {
                let run_id = fields
                    .get("runId")
                    .and_then(|raw| serde_json::from_str(raw.get()).ok());
                Err(Refused::ApprovalRequired { run_id })
            }
            Mode::Full => {
                for field in CONTROL_FIELDS {
                    fields.remove(field);
                }
                let run_id = RawValue::from_string(format!("\"{}\"", uuid_v4(machine::random())));
                fields.extend(run_id.ok().map(|run_id| ("runId".to_owned(), run_id)));
                to_json(&fields)
            }
        }
    }

    async fn prepare(&self, request: &ExecRequest) -> Result<Prepared, Refused> {
        let (security, ask) = Mode::Full.legacy();
        let params = PrepareParams {
            command: &request.argv,
            cwd: request.cwd.as_deref(),
            agent_id: &request.agent_id,
            session_key: &request.session_key,
            security,
            ask,
        };
        let mut invoke = self.plain(
            &request.node,
            "system.run.prepare",
            to_json(&params)?,
            request.actor.clone(),
        );
        invoke.timeout_ms = PREPARE_TIMEOUT_MS;
        let result = self.invoke(invoke).await.result?;
        let payload = result.payload.as_deref().map_or("null", RawValue::get);
        let prepared = Prepared::parse(payload).map_err(bad_plan)?;
        prepared
            .check_asked(&Asked {
                argv: &request.argv,
                cwd: request.cwd.as_deref(),
                agent_id: Some(&request.agent_id),
                session_key: Some(&request.session_key),
            })
            .map_err(bad_plan)?;
        Ok(prepared)
    }

    /// Makes, records and uses up the approval that a typed command carries.
    fn approve_once(
        &self,
        request: &ExecRequest,
        run_id: &str,
        binding: &Binding,
    ) -> Result<(), Refused> {
        let now_ms = machine::now_ms();
        let caller = match &request.caller.device {
            Some(device) => approval::Caller::Device(device.clone()),
            None => approval::Caller::Connection(ConnId::clone(&request.caller.conn)),
        };
        let mut approval = Approval {
            run_id: run_id.to_owned(),
            caller: caller.clone(),
            node: request.node.clone(),
            binding: binding.clone(),
            decision: Decision::AllowOnce,
            expires_at_ms: now_ms + APPROVAL_TTL_MS,
            used: false,
        };
        let event = audit::Event::ApprovalDecided {
            approval: run_id.to_owned(),
            decision: Decision::AllowOnce.as_str().to_owned(),
            by: request.caller.actor.clone(),
        };
        self.audit
            .append(&event, Durability::Synced)
            .map_err(|error| {
                tracing::error!(%error, "an approval could not be recorded");
                Refused::AuditUnavailable
            })?;
        let use_now = Use {
            run_id,
            caller: &caller,
            node: &request.node,
            binding,
            now_ms,
        };
        approval
            .redeem(&use_now)
            .map(|_| ())
            .map_err(|_| Refused::ApprovalRequired { run_id: None })
    }

    fn plain(&self, node: &DeviceId, command: &str, params_json: String, actor: Actor) -> Invoke {
        Invoke {
            node: node.clone(),
            command: command.to_owned(),
            params_json: Some(params_json),
            timeout_ms: crate::base::limits::INVOKE_TIMEOUT_MS_DEFAULT,
            idempotency_key: uuid_v4(machine::random()),
            command_text: None,
            approval: None,
            actor,
        }
    }
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
