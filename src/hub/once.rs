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
use super::{Caller, Hub, Invoke, Invoked, NodeResult, Timing};
use crate::audit::Digest;
use crate::base::{DeviceId, ids::uuid_v4, limits};
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

/// What came of a request, for all who asked. It may be megabytes, so they share it.
pub struct Told {
    pub answer: Answer,
    /// The node answered after the first caller under this key had been told that it failed.
    pub late: bool,
    /// Of what ran now; what is on record has none.
    pub timing: Option<Timing>,
}

impl Told {
    fn recorded(answer: Answer, late: bool) -> Self {
        Self {
            answer,
            late,
            timing: None,
        }
    }

    fn refused(refused: Refused) -> Arc<Self> {
        Arc::new(Self::recorded(Err(refused), false))
    }
}

type Heard = watch::Receiver<Option<Arc<Told>>>;
type Tell = watch::Sender<Option<Arc<Told>>>;

/// One request under way.
struct Running {
    invoke_id: String,
    command: String,
    params_sha256: [u8; 32],
    /// How many wait. Without any, the node is told to stop.
    waiting: usize,
    answer: Heard,
}

/// Requests under way, by their keys.
#[derive(Default)]
pub(super) struct OnceTable {
    running: HashMap<Keyed, Running>,
    /// Callers that have not seen their answer yet, whether or not there is one.
    waiting: usize,
}

impl OnceTable {
    pub(super) fn len(&self) -> usize {
        self.running.len().max(self.waiting)
    }

    pub(super) fn is_awaited(&self, keyed: &Keyed) -> bool {
        self.running
            .get(keyed)
            .is_some_and(|running| running.waiting > 0)
    }
}

/// One caller's place among those who wait under a key: when the last gives its own up, the request ends. It is given up
/// when the caller has its answer, so that a Gateway that stops knows who has none.
pub struct Place {
    hub: Arc<Hub>,
    caller: Caller,
    keyed: Keyed,
    request: Request,
    invoke_id: String,
    answer: Heard,
    /// The means to tell, of the first.
    tell: Option<Tell>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(tell) = self.tell.take() {
            // Its caller left before it began; others may have joined it.
            let answer = Err(Refused::Cancelled { sent: false });
            self.hub
                .tell(&self.keyed, &tell, Told::recorded(answer, false));
        }
        let mut inner = self.hub.lock();
        inner.once.waiting -= 1;
        let running = inner.once.running.get_mut(&self.keyed);
        let Some(running) = running.filter(|running| running.invoke_id == self.invoke_id) else {
            return;
        };
        running.waiting -= 1;
        if running.waiting == 0 {
            self.hub
                .cancel(&mut inner, &self.invoke_id, &self.caller.actor);
        }
    }
}

impl Place {
    /// What comes of the command, which runs if nothing has been sent under this key. `make` gives it as it may be sent;
    /// only then it is asked.
    pub async fn told(&mut self, make: impl FnOnce() -> Result<Invoke, Refused>) -> Arc<Told> {
        let is_first = self.tell.is_some();
        // Up to the first `await` below nothing can end this half-way.
        match self.tell.take() {
            Some(tell) => {
                self.hub
                    .start(&self.keyed, &self.invoke_id, &self.request, make, tell);
            }
            // It holds the parameters.
            None => drop(make),
        }
        let told = self.answer.wait_for(Option::is_some);
        let told = if is_first {
            // Its own deadline ends it.
            told.await
        } else {
            let timeout_ms = self
                .request
                .timeout_ms
                .clamp(1, limits::INVOKE_TIMEOUT_MS_MAX);
            match tokio::time::timeout(Duration::from_millis(timeout_ms), told).await {
                Ok(told) => told,
                Err(_) => return Told::refused(Refused::TimedOut { timeout_ms }),
            }
        };
        told.ok()
            .and_then(|told| told.clone())
            .unwrap_or_else(|| Told::refused(Refused::Interrupted))
    }
}

/// How the outcome begins of a command that failed, and of one of which its node said so: only that one is settled.
pub(super) const FAILED: &str = r#"{"refused":"#;
pub(super) const FAILED_BY_NODE: &str = r#"{"refused":{"kind":"node""#;

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
    /// A place under its caller's key: of the command that runs under it, or of the one that will. A caller that gives it
    /// up ends the command if nobody else waits.
    pub fn enter(self: &Arc<Self>, caller: &Caller, request: Request) -> Result<Place, Refused> {
        let keyed = Keyed {
            caller: caller.name(),
            node: request.node.as_str().to_owned(),
            key: request.key.clone(),
        };
        // What is on record may not cross a public path either.
        let found = caller
            .check_path(&request.command)
            .and_then(|()| self.find(&keyed, &request, caller));
        match found {
            Ok((invoke_id, answer, tell)) => Ok(Place {
                hub: Arc::clone(self),
                caller: caller.clone(),
                keyed,
                request,
                invoke_id,
                answer,
                tell,
            }),
            Err(refused) => {
                self.record_refusal(&request.node, &request.command, &caller.actor, &refused);
                Err(refused)
            }
        }
    }

    fn find(
        &self,
        keyed: &Keyed,
        request: &Request,
        caller: &Caller,
    ) -> Result<(String, Heard, Option<Tell>), Refused> {
        let mut inner = self.lock();
        if inner.connections.caller(&caller.conn).is_none() {
            return Err(Refused::Cancelled { sent: false });
        }
        let once = &mut inner.once;
        let found = match once.running.get_mut(keyed) {
            Some(running)
                if running.command != request.command
                    || running.params_sha256 != request.params_sha256.0 =>
            {
                return Err(Refused::DuplicateKey);
            }
            Some(running) if running.waiting >= limits::INVOKE_WAITERS_MAX => {
                let limit = limits::INVOKE_WAITERS_MAX;
                return Err(Refused::Busy { limit });
            }
            Some(running) => {
                running.waiting += 1;
                (running.invoke_id.clone(), running.answer.clone(), None)
            }
            None => {
                let invoke_id = uuid_v4(machine::random());
                let (tell, answer) = watch::channel(None);
                let running = Running {
                    invoke_id: invoke_id.clone(),
                    command: request.command.clone(),
                    params_sha256: request.params_sha256.0,
                    waiting: 1,
                    answer: answer.clone(),
                };
                once.running.insert(keyed.clone(), running);
                (invoke_id, answer, Some(tell))
            }
        };
        once.waiting += 1;
        Ok(found)
    }

    /// Runs what is new under its key, in a task of its own, for it goes on while anybody waits and not only who began
    /// it. What is known is told as it was.
    fn start(
        self: &Arc<Self>,
        keyed: &Keyed,
        invoke_id: &str,
        request: &Request,
        make: impl FnOnce() -> Result<Invoke, Refused>,
        tell: Tell,
    ) {
        let asked_at = Instant::now();
        let new = NewInvoke {
            caller: keyed.caller.clone(),
            node: keyed.node.clone(),
            key: keyed.key.clone(),
            invoke_id: invoke_id.to_owned(),
            command: request.command.clone(),
            params_sha256: request.params_sha256.0,
            created_at_ms: self.records_ms(),
        };
        let invoke = match self.store.record(|records| records.begin_invoke(&new)) {
            Ok(Begun::New) => make(),
            Ok(Begun::Known(record)) => {
                let (answer, late) = known(&record, request);
                return self.tell(keyed, &tell, Told::recorded(answer, late));
            }
            Err(error) => {
                unrecorded(&error);
                let answer = Err(Refused::AuditUnavailable);
                return self.tell(keyed, &tell, Told::recorded(answer, false));
            }
        };
        let (hub, keyed, id) = (Arc::clone(self), keyed.clone(), invoke_id.to_owned());
        tokio::spawn(async move {
            let invoked = match invoke {
                Ok(invoke) => hub.run(id, invoke, Some(keyed.clone()), asked_at).await,
                Err(refused) => Invoked::unsent(id, Err(refused), asked_at),
            };
            let answer = invoked.result;
            if !is_nodes(&answer) {
                hub.keep(&keyed, &invoked.id, &answer, false);
            }
            let told = Told {
                answer,
                late: false,
                timing: Some(invoked.timing),
            };
            hub.tell(&keyed, &tell, told);
        });
    }

    fn tell(&self, keyed: &Keyed, tell: &Tell, told: Told) {
        self.lock().once.running.remove(keyed);
        tell.send_replace(Some(Arc::new(told)));
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
                    .finish_invoke(&name, self.records_ms(), &outcome, late)
                    .map(|_| ())
            }
        });
        if let Err(error) = kept {
            // The caller gets its answer; the key then stands for an unknown outcome, and is not run again.
            unrecorded(&error);
        }
    }
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

/// What an earlier process left without its node's word, for the results that nodes may still deliver.
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
