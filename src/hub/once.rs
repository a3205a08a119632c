//! One idempotency key, one execution (decision 21).
//!
//! A request under a key is noted before its command is sent, and its outcome when there is one. The same request again,
//! from the same caller, waits for the first or is answered as the first was; a note without an outcome after a restart
//! is answered `dispatched: unknown` until the node delivers what it has.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::watch;

use super::invoke::{Answer, is_nodes};
use super::{Caller, Hub, Invoke, Invoked, NodeResult};
use crate::audit::{self, Digest};
use crate::base::{ConnId, DeviceId, ids::uuid_v4, limits};
use crate::machine;
use crate::nodes::{Dispatched, Ended, Keyed, Refused};
use crate::store::invokes::OUTCOME_BYTES_MAX;
use crate::store::{Begun, InvokeName, InvokeRecord, NewInvoke, Outcome, StoreError};

/// What a caller asks for under one of its keys.
#[derive(Clone, Debug)]
pub struct Request {
    pub node: DeviceId,
    pub command: String,
    /// As the caller wrote them: the same words in another spacing are another request.
    pub params_sha256: Digest,
    pub key: String,
    pub timeout_ms: u64,
}

/// What those wait for who asked while it was under way: the answer, and whether it came late.
type Told = Option<Arc<(Answer, bool)>>;

/// One request under way.
struct Running {
    invoke_id: String,
    command: String,
    params_sha256: [u8; 32],
    /// The connections that wait. Without any, the node is told to stop.
    asked_by: Vec<ConnId>,
    answer: watch::Receiver<Told>,
}

/// Requests under way, by their keys. At most one row for each call, which sessions bound.
#[derive(Default)]
pub(super) struct OnceTable(HashMap<Keyed, Running>);

impl OnceTable {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_awaited(&self, keyed: &Keyed) -> bool {
        self.0
            .get(keyed)
            .is_some_and(|running| !running.asked_by.is_empty())
    }

    /// A connection has ended; gives the invocations for which nobody waits any more.
    fn left(&mut self, conn: &ConnId) -> Vec<String> {
        let mut unwanted = Vec::new();
        for running in self.0.values_mut() {
            let waited = running.asked_by.len();
            running.asked_by.retain(|waiting| waiting != conn);
            if running.asked_by.is_empty() && waited > 0 {
                unwanted.push(running.invoke_id.clone());
            }
        }
        unwanted
    }
}

/// What a request finds.
enum Entered {
    /// It is the first; whoever asks meanwhile is told through this.
    First(watch::Sender<Told>),
    /// It is under way.
    Joined(String, watch::Receiver<Told>),
    Refused(Refused),
}

/// An outcome as the store keeps it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused: Option<Refused>,
    /// Only without `payload_json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload_json: Option<String>,
    #[serde(default)]
    late: bool,
}

impl Kept {
    fn outcome(answer: &Answer, late: bool) -> Outcome {
        let (payload, payload_json) = match answer {
            Ok(result) => (result.payload.as_deref(), result.payload_json.as_ref()),
            Err(_) => (None, None),
        };
        let payload = payload.filter(|_| payload_json.is_none());
        let bytes = payload.map_or(0, |raw| raw.get().len()) + payload_json.map_or(0, String::len);
        let dropped = Outcome::Dropped { bytes };
        // Before anything is copied.
        if bytes > OUTCOME_BYTES_MAX {
            return dropped;
        }
        let kept = Self {
            refused: answer.as_ref().err().cloned(),
            payload: payload.map(ToOwned::to_owned),
            payload_json: payload_json.cloned(),
            late,
        };
        serde_json::to_string(&kept).map_or(dropped, Outcome::Kept)
    }

    fn answer(text: &str) -> (Answer, bool) {
        let Ok(kept) = serde_json::from_str::<Self>(text) else {
            // Another version of this program wrote it.
            let bytes = text.len();
            return (Err(Refused::OutcomeNotKept { bytes }), false);
        };
        let answer = match kept.refused {
            Some(refused) => Err(refused),
            None => NodeResult::relayed(kept.payload, kept.payload_json),
        };
        (answer, kept.late)
    }
}

impl Hub {
    /// Runs a command once for its caller's key, or answers what came of it when it ran.
    ///
    /// `make` gives the command as it may be sent; it is asked only if nothing has been sent under this key.
    pub async fn invoke_once(
        &self,
        caller: &Caller,
        request: &Request,
        make: impl FnOnce() -> Result<Invoke, Refused>,
    ) -> Invoked {
        let asked_at = Instant::now();
        let id = uuid_v4(machine::random());
        let keyed = Keyed {
            caller: caller.name(),
            node: request.node.as_str().to_owned(),
            key: request.key.clone(),
        };
        // What is on record may not cross a public path either.
        let entered = match caller.check_path(&request.command) {
            Ok(()) => self.enter(&keyed, &id, request, &caller.conn),
            Err(refused) => Entered::Refused(refused),
        };
        let tell = match entered {
            Entered::First(tell) => tell,
            Entered::Joined(id, answer) => {
                return join(id, answer, request.timeout_ms, asked_at).await;
            }
            Entered::Refused(refused) => {
                self.record_refusal(&request.node, &request.command, &caller.actor, &refused);
                return Invoked::unsent(id, Err(refused), false, asked_at);
            }
        };
        let new = NewInvoke {
            caller: keyed.caller.clone(),
            node: keyed.node.clone(),
            key: keyed.key.clone(),
            invoke_id: id.clone(),
            command: request.command.clone(),
            params_sha256: request.params_sha256.0,
            created_at_ms: machine::now_ms(),
        };
        let invoked = match self.store.record(|records| records.begin_invoke(&new)) {
            Ok(Begun::New) => {
                let invoked = match make() {
                    Ok(invoke) => self.run(id, invoke, Some(keyed.clone()), asked_at).await,
                    Err(refused) => Invoked::unsent(id, Err(refused), false, asked_at),
                };
                if !is_nodes(&invoked.result) {
                    self.keep(&keyed, &invoked.id, &invoked.result, false);
                }
                invoked
            }
            Ok(Begun::Known(record)) => {
                let (answer, late) = known(&record, request);
                Invoked::unsent(record.invoke.invoke_id, answer, late, asked_at)
            }
            Err(error) => {
                unrecorded(&error);
                Invoked::unsent(id, Err(Refused::AuditUnavailable), false, asked_at)
            }
        };
        self.lock().once.0.remove(&keyed);
        if tell.receiver_count() > 0 {
            tell.send_replace(Some(Arc::new((invoked.result.clone(), invoked.late))));
        }
        invoked
    }

    fn enter(&self, keyed: &Keyed, id: &str, request: &Request, conn: &ConnId) -> Entered {
        let mut inner = self.lock();
        if let Some(running) = inner.once.0.get_mut(keyed) {
            if running.command != request.command
                || running.params_sha256 != request.params_sha256.0
            {
                return Entered::Refused(Refused::DuplicateKey);
            }
            running.asked_by.push(conn.clone());
            return Entered::Joined(running.invoke_id.clone(), running.answer.clone());
        }
        let (tell, answer) = watch::channel(None);
        let running = Running {
            invoke_id: id.to_owned(),
            command: request.command.clone(),
            params_sha256: request.params_sha256.0,
            asked_by: vec![conn.clone()],
            answer,
        };
        inner.once.0.insert(keyed.clone(), running);
        Entered::First(tell)
    }

    /// Keeps what came of a command. What was never sent leaves its key free; what nobody knows stays open.
    pub(super) fn keep(&self, keyed: &Keyed, invoke_id: &str, answer: &Answer, late: bool) {
        let name = InvokeName {
            caller: &keyed.caller,
            node: &keyed.node,
            key: &keyed.key,
            invoke_id,
        };
        let kept = self.store.record(|records| match answer {
            Err(Refused::Interrupted) => Ok(()),
            Err(refused) if refused.dispatched() == Dispatched::No => records.forget_invoke(&name),
            _ => {
                let outcome = Kept::outcome(answer, late);
                records
                    .finish_invoke(&name, machine::now_ms(), &outcome, late)
                    .map(|_| ())
            }
        });
        if let Err(error) = kept {
            // The caller gets its answer; the key then stands for an unknown outcome, and is not run again.
            unrecorded(&error);
        }
    }

    /// What a caller that has left was the last to wait for ends, and the node is told to stop.
    pub(super) fn caller_left(&self, inner: &mut super::Inner, caller: &Caller) {
        for id in inner.once.left(&caller.conn) {
            let Some(pending) = self.abandon(inner, &id) else {
                continue;
            };
            self.record_after_the_fact(&audit::Event::DispatchCancelled {
                invoke: id,
                by: caller.actor.clone(),
            });
            let _ = pending
                .waiter
                .tell
                .send(Err(Refused::Cancelled { sent: true }));
        }
    }
}

/// Waits for what an earlier request of the same words comes to.
async fn join(
    id: String,
    mut answer: watch::Receiver<Told>,
    timeout_ms: u64,
    asked_at: Instant,
) -> Invoked {
    let timeout_ms = timeout_ms.clamp(1, limits::INVOKE_TIMEOUT_MS_MAX);
    let told = answer.wait_for(Option::is_some);
    let (answer, late) = match tokio::time::timeout(Duration::from_millis(timeout_ms), told).await {
        Ok(Ok(told)) => told
            .as_deref()
            .cloned()
            .unwrap_or((Err(Refused::Interrupted), false)),
        Ok(Err(_)) => (Err(Refused::Interrupted), false),
        Err(_) => (Err(Refused::TimedOut { timeout_ms }), false),
    };
    Invoked::unsent(id, answer, late, asked_at)
}

/// The answer that a record holds for a request.
fn known(record: &InvokeRecord, request: &Request) -> (Answer, bool) {
    let first = &record.invoke;
    if first.command != request.command || first.params_sha256 != request.params_sha256.0 {
        return (Err(Refused::DuplicateKey), false);
    }
    match &record.finished {
        None => (Err(Refused::Interrupted), false),
        Some((_, Outcome::Dropped { bytes })) => {
            (Err(Refused::OutcomeNotKept { bytes: *bytes }), false)
        }
        Some((_, Outcome::Kept(text))) => Kept::answer(text),
    }
}

/// What an earlier process left open, for the results that nodes may still deliver.
pub(super) fn ended(record: InvokeRecord) -> Option<Ended> {
    let invoke = record.invoke;
    Some(Ended {
        id: invoke.invoke_id,
        node: DeviceId::parse(&invoke.node)?,
        keyed: Some(Keyed {
            caller: invoke.caller,
            node: invoke.node,
            key: invoke.key,
        }),
    })
}

fn unrecorded(error: &StoreError) {
    tracing::error!(%error, "an idempotency record cannot be written");
}
