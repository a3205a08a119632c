//! One command on one node: decided, recorded, sent, awaited.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use tokio::sync::oneshot;

use super::exec::not_covered;
use super::explain::surface;
use super::{Caller, Hub, Inner};
use crate::audit::{self, Actor, Digest, Durability};
use crate::auth::permission;
use crate::auth::scope::Scope;
use crate::base::{ConnId, DeviceId, Refusal, ids::uuid_v4, limits};
use crate::exec::Mode;
use crate::exec::approval::{Binding, Use};
use crate::machine;
use crate::nodes::{
    self, CommandPolicy, Dispatched, ExecGrounds, Keyed, Pending, Progressed, Refused, Settled,
    Surface,
};
use crate::rpc::types::node::{
    NodeInvokeCancelEvent, NodeInvokeProgressParams, NodeInvokeRequestEvent,
};
use crate::rpc::{self, ScanError, encode};

/// A command that someone wants run, after its scope was checked.
#[derive(Clone)]
pub struct Invoke {
    pub node: DeviceId,
    pub command: String,
    /// The parameters as JSON text, relayed as they are.
    pub params_json: Option<String>,
    /// From the caller's request to the node's answer, in milliseconds.
    pub timeout_ms: u64,
    pub idempotency_key: String,
    /// The command line, for the record of a `system.run`.
    pub command_text: Option<String>,
    /// The approval that permits it.
    pub approval: Option<String>,
    /// What of it is used up when the command is sent, and not before: what was not sent may be tried again.
    pub redeems: Option<Binding>,
    /// What permits a `system.run`. Whether that is enough is looked up again when it is sent.
    pub grounds: ExecGrounds,
    /// For whom it is. Whether that still counts is looked up again when it is sent.
    pub caller: Caller,
    /// As the audit log names the caller, or its turn.
    pub actor: Actor,
    /// It explains, and is counted as no dispatch.
    pub is_replay: bool,
    /// Who hears what the command prints while it runs, if anybody does.
    pub listener: Option<Arc<Listener>>,
}

type Take = dyn Fn(u64, &str) -> bool + Send + Sync;

/// Hears an invocation's pieces of progress, each with its number and in order.
pub struct Listener {
    /// Must not wait. What it has no room for it drops, and says `false`: the result is whole anyway.
    take: Box<Take>,
    dropped: AtomicU64,
}

impl Listener {
    pub fn new(take: impl Fn(u64, &str) -> bool + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            take: Box::new(take),
            dropped: AtomicU64::new(0),
        })
    }

    fn hear(&self, seq: u64, chunk: &str) {
        if !(self.take)(seq, chunk) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let dropped = *self.dropped.get_mut();
        if dropped > 0 {
            tracing::info!(dropped, "pieces of progress were dropped for a slow reader");
        }
    }
}

/// What a node answered.
#[derive(Clone, Debug)]
pub struct NodeResult {
    /// The result as a JSON value.
    pub payload: Option<Box<RawValue>>,
    /// The same as the text that the node sent, if it sent text.
    pub payload_json: Option<String>,
}

impl NodeResult {
    /// A result as it is passed on. Text that is JSON is passed on as JSON too; text that is none is wrapped, as the
    /// reference does it. JSON that repeats a key or is too deep is refused: two readers could read it differently.
    pub fn relayed(
        payload: Option<Box<RawValue>>,
        payload_json: Option<String>,
    ) -> Result<Self, Refused> {
        let Some(text) = payload_json else {
            return Ok(Self {
                payload,
                payload_json: None,
            });
        };
        let payload = match rpc::scan(&text) {
            Ok(()) => RawValue::from_string(text.clone()).ok(),
            Err(ScanError::NotJson { .. }) => {
                serde_json::value::to_raw_value(&serde_json::json!({"payloadJSON": text})).ok()
            }
            Err(unsafe_json) => {
                return Err(Refused::Node {
                    code: "INVALID_RESULT".to_owned(),
                    message: format!("the node's result is not safe to relay: {unsafe_json}"),
                });
            }
        };
        Ok(Self {
            payload,
            payload_json: Some(text),
        })
    }
}

/// How long each part took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Timing {
    /// From the request to the frame that left for the node.
    pub queue: Duration,
    /// From that frame to the node's answer.
    pub execution: Duration,
    pub total: Duration,
}

impl Timing {
    pub(super) fn since(asked_at: Instant, sent_at: Option<Instant>) -> Self {
        let now = Instant::now();
        let sent_at = sent_at.unwrap_or(now);
        Self {
            queue: sent_at - asked_at,
            execution: now - sent_at,
            total: now - asked_at,
        }
    }
}

/// The end of an invocation.
#[derive(Debug)]
pub struct Invoked {
    pub id: String,
    pub result: Result<NodeResult, Refused>,
    pub timing: Timing,
}

impl Invoked {
    /// One that was not sent now.
    pub(super) fn unsent(id: String, answer: Answer, asked_at: Instant) -> Self {
        Self {
            id,
            result: answer,
            timing: Timing::since(asked_at, None),
        }
    }
}

pub(super) type Answer = Result<NodeResult, Refused>;

/// Whoever waits for a node's answer.
pub(super) struct Waiter {
    pub(super) tell: oneshot::Sender<Answer>,
    asked_at: Instant,
    sent_at: Instant,
    listener: Option<Arc<Listener>>,
}

/// What became of a node's result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResultTaken {
    Accepted,
    /// Unknown, late, or from a session that does not own the invocation.
    Ignored,
    NodeMismatch,
}

/// Ends the invocation if its caller stops waiting: the node is told to stop.
struct CancelOnDrop<'a> {
    hub: &'a Hub,
    id: &'a str,
    by: &'a Actor,
    armed: bool,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.hub.cancel(&mut self.hub.lock(), self.id, self.by);
        }
    }
}

/// Whether the node said this itself: then it was recorded when it did.
pub(super) fn is_nodes(answer: &Answer) -> bool {
    matches!(answer, Ok(_) | Err(Refused::Node { .. }))
}

impl Hub {
    /// Runs a command on a node. Every refusal says whether the command was dispatched.
    ///
    /// Whether this node may run this command now is decided here, and recorded before the request goes out. A caller
    /// that stops waiting cancels it.
    pub async fn invoke(&self, invoke: Invoke) -> Invoked {
        let id = uuid_v4(machine::random());
        self.run(id, invoke, None, Instant::now()).await
    }

    /// The same under an id that is known already and, if its outcome is kept, under a key.
    pub(super) async fn run(
        &self,
        id: String,
        mut invoke: Invoke,
        keyed: Option<Keyed>,
        asked_at: Instant,
    ) -> Invoked {
        let timeout_ms = invoke.timeout_ms.clamp(1, limits::INVOKE_TIMEOUT_MS_MAX);
        let deadline = asked_at + Duration::from_millis(timeout_ms);
        // Nobody needs them once they are in the frame.
        let params = invoke.params_json.take();
        let sent = self.dispatch(&id, &invoke, params, keyed, asked_at, timeout_ms);
        let (answer, sent_at) = match sent {
            Ok(sent) => sent,
            Err(refused) => {
                self.record_refusal(&invoke.node, &invoke.command, &invoke.actor, &refused);
                return Invoked::unsent(id, Err(refused), asked_at);
            }
        };
        let mut cancel = CancelOnDrop {
            hub: self,
            id: &id,
            by: &invoke.actor,
            armed: true,
        };
        let told = self.awaited(&id, answer, deadline).await;
        let result = match told {
            Ok(Some(result)) => result,
            Ok(None) => Err(Refused::TimedOut { timeout_ms }),
            // The waiter was dropped: the node's session has ended.
            Err(_) => Err(Refused::Disconnected {
                command: invoke.command.clone(),
            }),
        };
        cancel.armed = false;
        drop(cancel);
        let timing = Timing::since(asked_at, Some(sent_at));
        if !is_nodes(&result) {
            self.record_result(&id, &invoke.node, &result, timing, false);
        }
        Invoked { id, result, timing }
    }

    /// The answer, or nothing by the deadline: then it is abandoned.
    async fn awaited(
        &self,
        id: &str,
        mut answer: oneshot::Receiver<Answer>,
        deadline: Instant,
    ) -> Result<Option<Answer>, oneshot::error::RecvError> {
        let told = tokio::time::timeout_at(deadline.into(), &mut answer).await;
        if told.is_err() && self.abandon(&mut self.lock(), id).is_some() {
            return Ok(None);
        }
        match told {
            Ok(told) => told.map(Some),
            // It ended in this very moment, and whoever ended it is about to say how.
            Err(_) => answer.await.map(Some),
        }
    }

    /// Decides, records and sends; afterwards only the node's answer, the deadline or a close ends it.
    fn dispatch(
        &self,
        id: &str,
        invoke: &Invoke,
        params: Option<String>,
        keyed: Option<Keyed>,
        asked_at: Instant,
        timeout_ms: u64,
    ) -> Result<(oneshot::Receiver<Answer>, Instant), Refused> {
        // They may be megabytes: before everybody waits for the lock.
        let params_text = params.as_deref().unwrap_or_default();
        let (params_bytes, params_sha256) = (params_text.len(), Digest::of(params_text.as_bytes()));
        let spent_ms = u64::try_from(asked_at.elapsed().as_millis()).unwrap_or(u64::MAX);
        let request = NodeInvokeRequestEvent {
            id: id.to_owned(),
            node_id: invoke.node.as_str().to_owned(),
            command: invoke.command.clone(),
            params_json: params,
            timeout_ms: Some(timeout_ms.saturating_sub(spent_ms).max(1)),
            idempotency_key: Some(invoke.idempotency_key.clone()),
            // The protocol's schema knows no such field, so only a node that is ours gets it.
            progress: invoke.listener.is_some() && self.lock().registry.is_ours(&invoke.node),
        };
        let frame = encode::event("node.invoke.request", &request, None, None);
        drop(request);
        let mut inner = self.lock();
        let is_reserved = nodes::is_reserved(&invoke.command);
        let needed = if is_reserved {
            Scope::Admin
        } else {
            permission::scope_of_command(&invoke.command)
        };
        if !inner.present_scopes(&invoke.caller)?.allows(needed) {
            return Err(Refused::CallerWithdrawn);
        }
        invoke.caller.check_path(&invoke.command)?;
        // `node.invoke` never gets here with a reserved one.
        let conn = self.decide_any(&inner, &invoke.node, &invoke.command)?;
        self.check_exec(&invoke.command, invoke.grounds)?;
        inner.invokes.has_room()?;
        if keyed
            .as_ref()
            .is_some_and(|keyed| !inner.once.is_awaited(keyed))
        {
            return Err(Refused::Cancelled { sent: false });
        }
        let outbox = inner
            .connections
            .outbox(&conn)
            .cloned()
            .ok_or(Refused::NotConnected)?;
        let bytes = frame.len();
        if bytes > limits::MESSAGE_BYTES_MAX {
            let limit = limits::MESSAGE_BYTES_MAX;
            return Err(Refused::OversizedRequest { bytes, limit });
        }
        if bytes > outbox.room() {
            return Err(Refused::NodeBehind);
        }
        let caller = invoke.caller.for_approval();
        let redeems = invoke.redeems.as_ref().zip(invoke.approval.as_ref());
        let redeems = redeems.map(|(binding, id)| {
            let used = Use {
                caller: &caller,
                node: &invoke.node,
                binding,
                now_ms: self.steady_ms(),
            };
            (id, used)
        });
        if let Some((id, used)) = &redeems {
            let covered = inner.approvals.check(id, used);
            covered.map_err(|error| not_covered(error, id))?;
        }
        let event = audit::Event::Dispatch {
            invoke: id.to_owned(),
            node: invoke.node.as_str().into(),
            command: invoke.command.as_str().into(),
            params_bytes: params_bytes as u64,
            params_sha256,
            command_text: invoke.command_text.as_deref().map(Into::into),
            idempotency_key: invoke.idempotency_key.as_str().into(),
            approval: invoke.approval.clone(),
            caller: invoke.actor.clone(),
        };
        let receipt = self
            .audit
            .append(&event, Durability::Grouped)
            .map_err(|error| {
                tracing::error!(%error, "the audit log cannot be written; nothing is dispatched");
                Refused::AuditUnavailable
            })?;
        if let Some((id, used)) = &redeems {
            // Under the lock under which it was checked.
            let redeemed = inner.approvals.redeem(id, used);
            redeemed.map_err(|error| not_covered(error, id))?;
        }
        let (tell, answer) = oneshot::channel();
        let sent_at = Instant::now();
        inner.invokes.begin(Pending {
            id: id.to_owned(),
            node: invoke.node.clone(),
            conn,
            command: invoke.command.clone(),
            keyed,
            next_seq: 0,
            waiter: Waiter {
                tell,
                asked_at,
                sent_at,
                listener: invoke.listener.clone(),
            },
        });
        if !invoke.is_replay {
            inner.registry.hit(&invoke.node, &invoke.command);
        }
        outbox.send_recorded(frame, &receipt);
        Ok((answer, sent_at))
    }

    /// Whether the mode lets a `system.run` go out that stands on these grounds.
    fn check_exec(&self, command: &str, grounds: ExecGrounds) -> Result<(), Refused> {
        match command {
            "system.run" => grounds.check(self.settings().exec_mode, None),
            _ => Ok(()),
        }
    }

    /// Whether `node.invoke` may run a command on a node now, and over which session.
    pub(super) fn decide(
        &self,
        inner: &Inner,
        node: &DeviceId,
        command: &str,
    ) -> Result<ConnId, Refused> {
        self.decide_by(nodes::decide, inner, node, command)
    }

    /// The same also of a reserved command, for a caller who has the scope, and the method, that it takes.
    pub(super) fn decide_any(
        &self,
        inner: &Inner,
        node: &DeviceId,
        command: &str,
    ) -> Result<ConnId, Refused> {
        self.decide_by(nodes::decide_any, inner, node, command)
    }

    fn decide_by(
        &self,
        judge: fn(&CommandPolicy, &str, Surface<'_>, &str) -> Result<(), Refused>,
        inner: &Inner,
        node: &DeviceId,
        command: &str,
    ) -> Result<ConnId, Refused> {
        let device = inner.pairing.device(node).ok_or(Refused::UnknownNode)?;
        let policy = self.command_policy(node);
        judge(&policy, &device.platform, surface(inner, node), command)?;
        let session = inner.registry.session(node);
        session
            .map(|session| session.conn.clone())
            .ok_or(Refused::NotConnected)
    }

    /// The Gateway's command policy as it stands for one node.
    pub(super) fn command_policy(&self, node: &DeviceId) -> CommandPolicy {
        self.settings().policy_of(node)
    }

    /// Ends an invocation without a result and tells the node to stop. Its waiter is returned, and still to be told.
    pub(super) fn abandon(&self, inner: &mut Inner, id: &str) -> Option<Pending<Waiter>> {
        let pending = inner.invokes.abandon(id)?;
        if let Some(outbox) = inner.connections.outbox(&pending.conn) {
            let cancel = NodeInvokeCancelEvent {
                invoke_id: id.to_owned(),
                node_id: pending.node.as_str().to_owned(),
            };
            outbox.send(encode::event("node.invoke.cancel", &cancel, None, None));
        }
        Some(pending)
    }

    /// Ends an invocation for which nobody waits any more; who left it goes on record.
    pub(super) fn cancel(&self, inner: &mut Inner, id: &str, by: &Actor) {
        let Some(pending) = self.abandon(inner, id) else {
            return;
        };
        self.record_after_the_fact(&audit::Event::DispatchCancelled {
            invoke: id.to_owned(),
            by: by.clone(),
        });
        let told = Err(Refused::Cancelled { sent: true });
        let _ = pending.waiter.tell.send(told);
    }

    /// Ends what is under way and may not be any more: each caller learns why, and the node is told to stop (K1).
    pub(super) fn end_forbidden(&self, inner: &mut Inner) {
        let mode = self.settings().exec_mode;
        let forbidden = |pending: &&Pending<Waiter>| {
            let (node, command) = (&pending.node, &pending.command);
            if command == "system.run" && mode == Mode::Deny {
                return true;
            }
            let decided = self.decide_any(inner, node, command);
            // Of a node that has gone, its session's end says what became of it.
            !matches!(decided, Ok(_) | Err(Refused::NotConnected))
        };
        let found = inner.invokes.pending().filter(forbidden);
        let ids: Vec<String> = found.map(|pending| pending.id.clone()).collect();
        for id in ids {
            if let Some(pending) = self.abandon(inner, &id) {
                // Who waits records it.
                let _ = pending.waiter.tell.send(Err(Refused::PairingChanged));
            }
        }
    }

    /// Ends everything under way, because the Gateway ends: callers learn that nobody knows how far their commands came.
    /// The nodes are not told to stop; what they deliver to the next process is recorded there.
    pub fn interrupt(&self) {
        for pending in self.lock().invokes.interrupt() {
            // A caller that gave up in this very moment has its own record of it.
            let _ = pending.waiter.tell.send(Err(Refused::Interrupted));
        }
    }

    /// How many calls under idempotency keys are under way or not answered yet.
    pub fn unanswered(&self) -> usize {
        self.lock().once.len()
    }

    /// A node's session sent a result. Only the session that was asked may settle it.
    pub fn node_result(
        &self,
        sender: &Caller,
        id: &str,
        claimed: &str,
        answer: Answer,
    ) -> ResultTaken {
        let Some(node) = &sender.device else {
            return ResultTaken::NodeMismatch;
        };
        let settled = self.lock().invokes.settle(id, claimed, node, &sender.conn);
        match settled {
            Settled::Done(pending) => {
                // On record before the node is told that it arrived, which then forgets it.
                let timing = Timing::since(pending.waiter.asked_at, Some(pending.waiter.sent_at));
                self.record_result(id, node, &answer, timing, false);
                if let Some(keyed) = &pending.keyed {
                    self.keep(keyed, id, &answer, false);
                }
                // A caller that gave up in this very moment has its own record of it.
                let _ = pending.waiter.tell.send(answer);
                ResultTaken::Accepted
            }
            Settled::NodeMismatch => ResultTaken::NodeMismatch,
            Settled::Ignored => ResultTaken::Ignored,
            Settled::Late(ended) => {
                self.record_result(id, node, &answer, Timing::default(), true);
                if let Some(keyed) = &ended.keyed {
                    self.keep(keyed, id, &answer, true);
                }
                ResultTaken::Ignored
            }
        }
    }

    /// Progress of an invocation, for whoever listens. Only the session that was asked may report any, in order.
    pub fn node_progress(&self, sender: &Caller, given: &NodeInvokeProgressParams) -> ResultTaken {
        if sender
            .device
            .as_ref()
            .is_none_or(|node| node.as_str() != given.node_id)
        {
            return ResultTaken::NodeMismatch;
        }
        let (id, seq) = (given.invoke_id.as_str(), given.seq);
        let listener = match self.lock().invokes.progress(id, &sender.conn, seq) {
            Progressed::Next(waiter) => waiter.listener.clone(),
            Progressed::OutOfOrder { expected } => {
                tracing::debug!(invoke = id, seq, expected, "progress out of order");
                return ResultTaken::Ignored;
            }
            Progressed::Ignored => return ResultTaken::Ignored,
        };
        // Outside the lock. One session's frames are taken one after the other, so this keeps their order.
        if let Some(listener) = listener {
            listener.hear(seq, &given.chunk);
        }
        ResultTaken::Accepted
    }

    pub(super) fn record_refusal(
        &self,
        node: &DeviceId,
        command: &str,
        caller: &Actor,
        refused: &Refused,
    ) {
        let event = audit::Event::DispatchRefused {
            node: node.as_str().into(),
            command: command.into(),
            rule: refused.log_field(),
            caller: caller.clone(),
        };
        self.record_after_the_fact(&event);
    }

    fn record_result(
        &self,
        id: &str,
        node: &DeviceId,
        result: &Answer,
        timing: Timing,
        late: bool,
    ) {
        let ms = |part: Duration| u64::try_from(part.as_millis()).unwrap_or(u64::MAX);
        let refused = result.as_ref().err();
        let event = audit::Event::DispatchResult {
            invoke: id.to_owned(),
            node: node.as_str().into(),
            dispatched: refused.map_or(Dispatched::Yes, Refused::dispatched),
            ok: refused.is_none(),
            category: refused.map(|refused| refused.category().as_str()),
            queue_ms: ms(timing.queue),
            execution_ms: ms(timing.execution),
            total_ms: ms(timing.total),
            late,
        };
        self.record_after_the_fact(&event);
    }

    /// A record of what has already happened: if it cannot be written, the log's own alarm says so.
    pub(super) fn record_after_the_fact(&self, event: &audit::Event) {
        if let Err(error) = self.audit.append(event, Durability::Grouped) {
            tracing::error!(%error, "an outcome could not be recorded");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::serve::{GatewaySettings, Parts};

    #[test]
    fn a_text_result_is_relayed_as_json_and_unchanged() {
        let text = "{\"a\": [1, \"\\u00e9\"]}".to_owned();
        let result = NodeResult::relayed(None, Some(text.clone())).unwrap();
        assert_eq!(result.payload.unwrap().get(), text);
        assert_eq!(result.payload_json, Some(text));
        let wrapped = NodeResult::relayed(None, Some("not json".to_owned())).unwrap();
        assert_eq!(
            wrapped.payload.unwrap().get(),
            r#"{"payloadJSON":"not json"}"#
        );
    }

    #[test]
    fn a_result_that_two_readers_could_read_differently_is_refused() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        for text in [r#"{"exitCode":0,"exitCode":1}"#.to_owned(), deep] {
            let refused = NodeResult::relayed(None, Some(text)).unwrap_err();
            assert!(matches!(refused, Refused::Node { .. }));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_result_that_arrives_at_the_deadline_is_not_lost() {
        let home = tempfile::TempDir::new().unwrap();
        let secret = crate::base::Secret::new("a secret of some length");
        let settings = GatewaySettings::on_loopback(home.path().join("own"), 0, &secret).unwrap();
        let hub = Parts::open(settings).unwrap().hub;
        let (tell, answer) = oneshot::channel();
        // The node's result has taken it out of the table, and is being recorded.
        let late_by = Duration::from_secs(1);
        let deadline = Instant::now();
        let told = async {
            tokio::time::sleep(late_by).await;
            tell.send(NodeResult::relayed(None, Some("{}".to_owned())))
                .unwrap();
        };
        let (answer, ()) = tokio::join!(hub.awaited("id", answer, deadline), told);
        assert!(matches!(answer, Ok(Some(Ok(_)))));
    }
}
