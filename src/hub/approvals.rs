//! Approvals: recorded, shown, decided, used once.
//!
//! Every step is on the audit log before anybody learns of it. What is shown is redacted; what is bound is not.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::exec::shown_text;
use super::{Audience, Caller, Hub, Inner};
use crate::audit::{self, Actor, Digest, Durability};
use crate::auth::scope::Scope;
use crate::base::ids::{hex_lower, percent_encoded, uuid_v4};
use crate::base::{DeviceId, limits};
use crate::exec::approval::{
    Approval, Caller as Decider, DecideError, Ended, State, Unapproved, Use, Wanted,
};
use crate::exec::env::{self, Overrides};
use crate::exec::plan::Prepared;
use crate::exec::{Decision, argv_text, redact, shell, words};
use crate::machine;
use crate::nodes::{ExecGrounds, Refused};
use crate::pairing::Pairing;

/// What a client asks an approval for.
pub struct Asked {
    /// The client's own choice of an id, if it has one.
    pub id: Option<String>,
    pub node: DeviceId,
    pub prepared: Prepared,
    pub env: Overrides,
    pub timeout_ms: Option<u64>,
}

/// What became of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// `None`: nobody decided.
    pub decision: Option<Decision>,
    /// The reference's `terminalReason`.
    pub reason: &'static str,
    pub created_at_ms: u64,
    pub expires_at_ms: u64,
}

/// Withdraws a request that nobody waits for any more, such as a cancelled turn's.
struct Withdraw<'a> {
    hub: &'a Hub,
    id: &'a str,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        self.hub.end_approval(self.id, Ended::Cancelled);
    }
}

impl Hub {
    /// Asks the operators about a command of a turn, waits, and uses up what they allow. A turn that ends before takes
    /// its request with it.
    pub(super) async fn ask(
        &self,
        asking: &Caller,
        actor: &Actor,
        wanted: Wanted,
    ) -> Result<Decision, Refused> {
        let approval = self.file(asking, actor, wanted)?;
        let id = approval.wanted.id.as_str();
        let _withdraw = Withdraw { hub: self, id };
        match self.decision(id).await {
            None => Err(Refused::Unapproved(Unapproved::Ended(Ended::Cancelled))),
            Some(Outcome {
                decision: Some(Decision::Deny),
                ..
            }) => Err(Refused::Unapproved(Unapproved::Denied)),
            Some(Outcome { decision: None, .. }) => {
                Err(Refused::Unapproved(Unapproved::Ended(Ended::Expired)))
            }
            Some(_) => {
                let used = Use {
                    caller: &approval.wanted.caller,
                    node: &approval.wanted.node,
                    binding: &approval.binding,
                    now_ms: self.steady_ms(),
                };
                let redeemed = self.lock().approvals.redeem(id, &used);
                redeemed.map_err(Refused::ApprovalMismatch)
            }
        }
    }

    /// A client asks about a plan of its own. Only that client can use the answer.
    pub fn request_approval(
        self: &Arc<Self>,
        caller: &Caller,
        asked: Asked,
    ) -> Result<Approval, Refused> {
        env::check(&asked.env)?;
        // Nobody is asked about what would not run if it were allowed.
        let grounds = ExecGrounds::of(&asked.prepared, true);
        grounds.check(self.settings().exec_mode, None)?;
        let now_ms = self.steady_ms();
        let ttl_ms = asked
            .timeout_ms
            .unwrap_or(limits::APPROVAL_TTL_MS_DEFAULT)
            .min(limits::APPROVAL_TTL_MS_MAX);
        let wanted = Wanted {
            id: asked.id.unwrap_or_else(|| uuid_v4(machine::random())),
            caller: caller.for_approval(),
            device: caller.device.clone(),
            node: asked.node,
            prepared: asked.prepared,
            env: asked.env,
            may_always: false,
            created_at_ms: now_ms,
            expires_at_ms: now_ms + ttl_ms,
        };
        let approval = self.file(caller, &caller.actor, wanted)?;
        // A device may come back for its answer. That its time is over is said even if nobody waits.
        let (hub, id) = (Arc::clone(self), approval.wanted.id.clone());
        tokio::spawn(async move { hub.decision(&id).await });
        Ok(approval)
    }

    /// Records a request and shows it to all who may decide. Without any it is refused at once (decision 25).
    fn file(&self, asking: &Caller, actor: &Actor, wanted: Wanted) -> Result<Approval, Refused> {
        let now_ms = wanted.created_at_ms;
        let mut inner = self.lock();
        inner
            .pairing
            .device(&wanted.node)
            .ok_or(Refused::UnknownNode)?;
        inner
            .approvals
            .has_room(&wanted, now_ms)
            .map_err(Refused::Decision)?;
        if !inner.connections.has_approver(asking) {
            return Err(Refused::Unapproved(Unapproved::NoApprover));
        }
        let approval = Approval::new(wanted);
        let plan = &approval.wanted.prepared.plan;
        self.record_approval(&audit::Event::ApprovalRequested {
            approval: approval.wanted.id.clone(),
            node: approval.wanted.node.as_str().into(),
            command_text: shown_text(plan).as_str().into(),
            binding_sha256: Digest(approval.binding.sha256()),
            expires_at_ms: self.shown_ms(approval.wanted.expires_at_ms),
            by: actor.clone(),
        })?;
        let audience = Audience::Operators(Scope::Approvals);
        let event = "exec.approval.requested";
        let shown = self.listed(&inner.pairing, &approval);
        inner.tell(audience, event, &shown);
        inner.approvals.open(approval.clone(), now_ms);
        Ok(approval)
    }

    /// An operator decides. An unknown word denies, and is answered as an error (X11). Tells whether this decision is
    /// the one that counts, and not the same one again.
    pub fn resolve_approval(&self, caller: &Caller, id: &str, word: &str) -> Result<bool, Refused> {
        let decision = Decision::parse(word);
        let now_ms = self.steady_ms();
        let mut inner = self.lock();
        let first = inner
            .approvals
            .check_decision(id, decision, now_ms)
            .map_err(Refused::Decision)?;
        if first {
            self.record_approval(&audit::Event::ApprovalDecided {
                approval: id.to_owned(),
                decision: decision.as_str().to_owned(),
                by: caller.actor.clone(),
            })?;
            inner
                .approvals
                .decide(id, decision, caller.for_approval(), now_ms);
            self.announce_end(&mut inner, id, decision, "user", Some(caller.key()));
        }
        match Decision::from_wire(word) {
            Some(_) => Ok(first),
            None => Err(Refused::Decision(DecideError::Unknown)),
        }
    }

    /// Waits until a request is decided or over. `None` if there is no such request.
    pub async fn decision(&self, id: &str) -> Option<Outcome> {
        let mut changes = self.approvals_changed.subscribe();
        loop {
            let (state, created_at_ms, expires_at_ms) = {
                let inner = self.lock();
                let approval = inner.approvals.get(id)?;
                let wanted = &approval.wanted;
                (approval.state, wanted.created_at_ms, wanted.expires_at_ms)
            };
            let (decision, reason) = match state {
                State::Decided(decision) | State::Used(decision) => (Some(decision), "user"),
                State::Ended(ended) => (None, ended.as_str()),
                State::Pending => {
                    let left_ms = expires_at_ms.saturating_sub(self.steady_ms());
                    if left_ms == 0 {
                        self.end_approval(id, Ended::Expired);
                        continue;
                    }
                    tokio::select! {
                        _ = changes.changed() => {}
                        // The runtime's clock stands still while the machine sleeps.
                        () = tokio::time::sleep(Duration::from_millis(left_ms.min(5_000))) => {}
                    }
                    continue;
                }
            };
            return Some(Outcome {
                decision,
                reason,
                created_at_ms: self.shown_ms(created_at_ms),
                expires_at_ms: self.shown_ms(expires_at_ms),
            });
        }
    }

    /// What waits for a decision, as `exec.approval.list` shows it.
    pub fn approval_list(&self) -> Vec<Value> {
        let now_ms = self.steady_ms();
        let inner = self.lock();
        let pending = inner.approvals.pending(now_ms);
        pending
            .map(|approval| self.listed(&inner.pairing, approval))
            .collect()
    }

    /// One that waits, as `exec.approval.get` shows it.
    pub fn approval(&self, id: &str) -> Option<Value> {
        let now_ms = self.steady_ms();
        let inner = self.lock();
        let approval = inner
            .approvals
            .pending(now_ms)
            .find(|it| it.wanted.id == id)?;
        let shown = shown(&inner.pairing, approval);
        Some(json!({
            "id": id,
            "commandText": shown["command"],
            "commandPreview": null,
            "allowedDecisions": shown["allowedDecisions"],
            "host": "node",
            "nodeId": shown["nodeId"],
            "agentId": shown["agentId"],
            "expiresAtMs": self.shown_ms(approval.wanted.expires_at_ms),
            "request": shown,
        }))
    }

    /// One in whatever state, as `approval.get` shows it: of the plan the command alone, and what else is bound to it in
    /// words.
    pub fn approval_snapshot(&self, id: &str) -> Option<Value> {
        let now_ms = self.steady_ms();
        let inner = self.lock();
        let approval = inner.approvals.get(id)?;
        let (wanted, shown) = (&approval.wanted, shown(&inner.pairing, approval));
        let mut snapshot = json!({
            "id": id,
            "urlPath": format!("/approve/{}", percent_encoded(id)),
            "createdAtMs": self.shown_ms(wanted.created_at_ms),
            "expiresAtMs": self.shown_ms(wanted.expires_at_ms),
            "presentation": {
                "kind": "exec",
                "commandText": shown["command"],
                "commandPreview": null,
                "warningText": surroundings(&shown),
                "host": "node",
                "nodeId": shown["nodeId"],
                "agentId": shown["agentId"],
                "allowedDecisions": shown["allowedDecisions"],
            },
        });
        let (status, decision, reason) = match approval.state {
            State::Pending if now_ms < wanted.expires_at_ms => ("pending", None, None),
            State::Pending => ("expired", None, Some(Ended::Expired.as_str())),
            State::Ended(Ended::Expired) => ("expired", None, Some(Ended::Expired.as_str())),
            State::Ended(ended) => ("cancelled", None, Some(ended.as_str())),
            State::Decided(decision) | State::Used(decision) if decision.allows() => {
                ("allowed", Some(decision), Some("user"))
            }
            State::Decided(decision) | State::Used(decision) => {
                ("denied", Some(decision), Some("user"))
            }
        };
        snapshot["status"] = status.into();
        if let Some(reason) = reason {
            let closed_at_ms = approval.closed_at_ms.unwrap_or(wanted.expires_at_ms);
            snapshot["resolvedAtMs"] = self.shown_ms(closed_at_ms).into();
            snapshot["reason"] = reason.into();
        }
        if let Some(decision) = decision {
            snapshot["decision"] = decision.as_str().into();
            snapshot["resolver"] = match &approval.decided_by {
                Some(Decider::Device(id)) => json!({"kind": "device", "id": id.as_str()}),
                Some(Decider::Connection(id)) => json!({"kind": "runtime", "id": id.as_str()}),
                Some(Decider::Turn(_)) | None => json!({"kind": "system"}),
            };
        }
        Some(snapshot)
    }

    pub(super) fn end_approval(&self, id: &str, ended: Ended) {
        self.end_approval_in(&mut self.lock(), id, ended);
    }

    fn end_approval_in(&self, inner: &mut Inner, id: &str, ended: Ended) {
        if inner.approvals.end(id, ended, self.steady_ms()).is_none() {
            return;
        }
        self.record_after_the_fact(&audit::Event::ApprovalEnded {
            approval: id.to_owned(),
            reason: ended.as_str(),
        });
        self.announce_end(inner, id, Decision::Deny, ended.as_str(), None);
    }

    /// Ends what nobody is left to use.
    pub(super) fn withdraw_approvals(&self, inner: &mut Inner, which: impl Fn(&Wanted) -> bool) {
        let live = inner.approvals.live(self.steady_ms());
        let ids: Vec<String> = live
            .filter(|wanted| which(wanted))
            .map(|wanted| wanted.id.clone())
            .collect();
        for id in ids {
            self.end_approval_in(inner, &id, Ended::Cancelled);
        }
    }

    fn listed(&self, devices: &Pairing, approval: &Approval) -> Value {
        json!({
            "approvalKind": "exec",
            "id": approval.wanted.id,
            "request": shown(devices, approval),
            "createdAtMs": self.shown_ms(approval.wanted.created_at_ms),
            "expiresAtMs": self.shown_ms(approval.wanted.expires_at_ms),
        })
    }

    fn announce_end(
        &self,
        inner: &mut Inner,
        id: &str,
        decision: Decision,
        reason: &str,
        by: Option<&str>,
    ) {
        let Some(approval) = inner.approvals.get(id) else {
            return;
        };
        let event = json!({
            "id": id,
            "decision": decision.as_str(),
            "resolvedBy": by,
            "terminalReason": reason,
            "ts": machine::now_ms(),
            "request": shown(&inner.pairing, approval),
        });
        let audience = Audience::Operators(Scope::Approvals);
        let name = "exec.approval.resolved";
        inner.tell(audience, name, &event);
        self.approvals_changed.send_replace(());
    }

    pub(super) fn record_approval(&self, event: &audit::Event) -> Result<(), Refused> {
        match self.audit.append(event, Durability::Synced) {
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::error!(%error, "an approval could not be recorded");
                Err(Refused::AuditUnavailable)
            }
        }
    }
}

/// What a command may run unseen, where it runs and which variables it gets, for those who are shown nothing else of its
/// plan.
fn surroundings(shown: &Value) -> Option<String> {
    let warning = shown["warningText"].as_str().map(str::to_owned);
    let cwd = shown["cwd"].as_str().map(|cwd| format!("in {cwd}"));
    let env = shown["env"].as_object().filter(|env| !env.is_empty());
    let env = env.map(|env| {
        let pairs = env
            .iter()
            .map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default()));
        format!("with {}", pairs.collect::<Vec<_>>().join(" "))
    });
    let parts: Vec<String> = warning.into_iter().chain(cwd).chain(env).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// What is shown of a request: all that is bound, with secrets redacted (X13) and invisible characters written out. The
/// keys are the reference's; `env`, `nodeName`, `requestedBy` and `bindingSha256` are ours.
fn shown(devices: &Pairing, approval: &Approval) -> Value {
    let wanted = &approval.wanted;
    // Devices name themselves, so the id stands beside the name.
    let name = |id: &DeviceId| devices.device(id).map(|it| argv_text::visible(it.name()));
    let requested_by = wanted
        .device
        .as_ref()
        .map_or("a client without a device".to_owned(), |id| {
            format!("{} ({})", name(id).unwrap_or_default(), id.as_str())
        });
    let mut plan = wanted.prepared.plan.clone();
    plan.argv = redact::argv(&plan.argv);
    plan.command_text = argv_text::render(&plan.argv);
    // What the requester or the node says about argv is not shown.
    plan.command_preview = shell::inline_text(&wanted.prepared.plan.argv).map(redact::text);
    let warning = words::warning(&wanted.prepared.plan);
    let cwd = plan.cwd.as_deref().map(argv_text::visible);
    let env_names: Vec<&String> = wanted.env.keys().collect();
    let env_sha256 = (!env_names.is_empty()).then(|| hex_lower(&approval.binding.env));
    json!({
        "command": plan.command_text,
        "systemRunBinding": {
            "argv": plan.argv,
            "cwd": plan.cwd,
            "agentId": plan.agent_id,
            "sessionKey": plan.session_key,
            "envHash": env_sha256,
        },
        "systemRunPlan": plan,
        "envKeys": env_names,
        "env": redact::env(&wanted.prepared.plan.argv, &wanted.env),
        "cwd": cwd,
        "nodeId": wanted.node.as_str(),
        "nodeName": name(&wanted.node),
        "requestedBy": requested_by,
        "host": "node",
        "security": null,
        "ask": null,
        "warningText": warning,
        "scope": null,
        "commandAnalysis": {"commandCount": 1, "nestedCommandCount": 0, "riskKinds": [], "warningLines": Vec::from_iter(warning)},
        "allowedDecisions": approval.allowed_decisions(),
        "agentId": plan.agent_id,
        "resolvedPath": null,
        "sessionKey": plan.session_key,
        "sessionId": null,
        "runId": null,
        "toolCallId": null,
        "turnSourceChannel": null,
        "turnSourceTo": null,
        "turnSourceAccountId": null,
        "turnSourceThreadId": null,
        "bindingSha256": hex_lower(&approval.binding.sha256()),
    })
}
