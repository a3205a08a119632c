//! Where decisions become effects.
//!
//! A policy engine decides; the hub takes the lock, has the audit log record the decision, takes the receipt, updates
//! the store and hands frames to outboxes. `control` and the agent both call it; it knows neither.
//!
//! In: admitted callers and their requests. Out: results, and frames in other sessions' outboxes.
//! Attacker controls: nothing that policy has not judged. Bounds: those of `nodes`, `pairing` and the outboxes.
//! Errors: `nodes::Refused`, `pairing::Refused`, [`Fault`].

mod approvals;
mod connections;
mod devices;
mod exec;
mod explain;
mod invoke;
mod nodes;
pub mod once;
pub mod outbox;
mod presence;
mod sessions;
mod standing;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

pub use approvals::{Asked, Outcome};
pub use connections::Audience;
pub use devices::{Granted, Issued, LinkRefused};
pub use exec::{Checked, ExecRequest, Executed, NotExecuted, RunOutput};
pub use invoke::{Invoke, Invoked, Listener, NodeResult, ResultTaken, Timing};
pub use nodes::NodeView;
pub use outbox::{Farewell, Outbox, OutboxReader, Taken};
pub use sessions::{Caller, NodeDeclaration, SessionFacts};
pub use standing::{Standing, Withdrawal};

use crate::audit::{self, AuditLog, Durability, Receipt};
use crate::base::{DeviceId, Refusal as _, ids::uuid_v4};
use crate::exec::{Approvals, Mode};
use crate::machine;
use crate::nodes::{CommandPolicy, Invokes, Registry};
use crate::pairing::{Change, Pairing};
use crate::rpc::types::health::TickEvent;
use crate::store::Store;

/// What the configuration decides about effects.
#[derive(Clone, Debug)]
pub struct Settings {
    pub commands: CommandPolicy,
    /// `gateway.nodes.entries.<id>.commands`: narrower than the rest, for one node.
    pub per_node: Vec<(DeviceId, CommandPolicy)>,
    pub exec_mode: Mode,
    /// `token` or `password`, as administrators are told.
    pub auth_mode: &'static str,
}

impl Settings {
    /// The command policy as it stands for one node.
    fn policy_of(&self, node: &DeviceId) -> CommandPolicy {
        let mut entries = self.per_node.iter();
        let narrower = entries.find(|(id, _)| id == node);
        self.commands
            .narrowed_by(narrower.map(|(_, policy)| policy))
    }
}

/// Something is broken: not a decision. Nothing was changed.
#[derive(Debug)]
pub enum Fault {
    Audit(audit::AuditError),
    Store(crate::store::StoreError),
    /// A device was removed, its token revoked, or the secret rotated between an admission and its session.
    Withdrawn,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Audit(error) => write!(f, "the audit log cannot be written: {error}"),
            Self::Store(error) => write!(f, "the state cannot be written: {error}"),
            Self::Withdrawn => f.write_str("what admitted it was withdrawn meanwhile"),
        }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refused) => f.write_str(&refused.public()),
            Self::Fault(fault) => fault.fmt(f),
        }
    }
}

/// A decision that was refused, or could not be carried out.
#[derive(Debug)]
pub enum Denied {
    Refused(crate::pairing::Refused),
    Fault(Fault),
}

impl From<crate::pairing::Refused> for Denied {
    fn from(refused: crate::pairing::Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<Fault> for Denied {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

struct Inner {
    connections: connections::Connections,
    registry: Registry,
    invokes: Invokes<invoke::Waiter>,
    once: once::OnceTable,
    pairing: Pairing,
    presence: presence::Presence,
    grants: devices::Grants,
    withdrawn: standing::Withdrawn,
    alarms: std::collections::BTreeMap<&'static str, String>,
    approvals: Approvals,
}

impl Inner {
    fn tell(&mut self, audience: Audience<'_>, event: &str, payload: &impl serde::Serialize) {
        self.connections.broadcast(audience, event, payload, None);
    }
}

/// The one place that holds what changes.
pub struct Hub {
    inner: Mutex<Inner>,
    /// Whoever waits for a decision looks again when this changes.
    approvals_changed: watch::Sender<()>,
    audit: Arc<AuditLog>,
    store: Arc<Store>,
    settings: RwLock<Arc<Settings>>,
    started_at: Instant,
    started_at_ms: u64,
    slept_before_ms: u64,
    /// Where the clock of the idempotency records stood at the start.
    records_began_ms: u64,
    boot_id: String,
}

impl Hub {
    /// Takes up the record where the last process left it.
    pub fn new(settings: Settings, store: Arc<Store>, audit: Arc<AuditLog>) -> Result<Self, Fault> {
        let now_ms = machine::now_ms();
        let boot_id = uuid_v4(machine::random());
        let mut pairing = Pairing::default();
        pairing.apply(store.load_pairing().map_err(Fault::Store)?);
        let mut invokes = Invokes::default();
        let unsettled = store.load_unsettled_invokes(once::FAILED, once::FAILED_BY_NODE);
        let unsettled = unsettled.map_err(Fault::Store)?;
        let records_began_ms = store.newest_invoke_ms().map_err(Fault::Store)?;
        unsettled
            .into_iter()
            .filter_map(once::ended)
            .for_each(|ended| invokes.remember(ended));
        Ok(Self {
            inner: Mutex::new(Inner {
                connections: connections::Connections::default(),
                registry: Registry::default(),
                invokes,
                once: once::OnceTable::default(),
                pairing,
                presence: presence::Presence::new(&boot_id, now_ms),
                grants: devices::Grants::default(),
                withdrawn: standing::Withdrawn::default(),
                alarms: std::collections::BTreeMap::new(),
                approvals: Approvals::default(),
            }),
            approvals_changed: watch::Sender::new(()),
            audit,
            store,
            settings: RwLock::new(Arc::new(settings)),
            started_at: Instant::now(),
            started_at_ms: now_ms,
            slept_before_ms: machine::slept_ms(),
            records_began_ms: records_began_ms.unwrap_or(now_ms),
            boot_id,
        })
    }

    /// What decides from now on; each decision takes it once. What is under way and not permitted any more ends. Gives
    /// what decided before.
    pub fn set_settings(&self, settings: Settings) -> Arc<Settings> {
        let before = std::mem::replace(
            &mut *self
                .settings
                .write()
                .unwrap_or_else(PoisonError::into_inner),
            Arc::new(settings),
        );
        self.end_forbidden(&mut self.lock());
        before
    }

    /// Files anew what connected nodes declare, if it is permitted otherwise than under these settings. Takes as long as
    /// the disk does for each, and lets others in between: the lock is not a fair one.
    pub fn refile_surfaces(&self, before: &Settings) {
        const OTHERS: Duration = Duration::from_millis(1);
        let nodes = self.lock().registry.nodes();
        for node in nodes {
            let mut inner = self.lock();
            if self.is_permitted_as_under(&inner, before, &node) {
                continue;
            }
            if let Err(error) = self.ask_again(&mut inner, &node) {
                tracing::error!(%error, "a node's declaration could not be filed");
            }
            drop(inner);
            std::thread::sleep(OTHERS);
        }
    }

    pub fn auth_mode(&self) -> &'static str {
        self.settings().auth_mode
    }

    fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    pub fn uptime_ms(&self) -> u64 {
        u64::try_from(self.started_at.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Unix milliseconds as if the clock had not been set since the start, for what must neither end early nor last longer
    /// because it was.
    fn steady_ms(&self) -> u64 {
        let slept_ms = machine::slept_ms().saturating_sub(self.slept_before_ms);
        self.started_at_ms
            .saturating_add(self.uptime_ms())
            .saturating_add(slept_ms)
    }

    /// The clock by which idempotency keys grow old. It goes on where the newest record stands, so that whatever happens to
    /// the system's clock, running or not, no key is forgotten early; it does not count the time without a Gateway.
    fn records_ms(&self) -> u64 {
        self.records_began_ms
            .saturating_add(self.steady_ms() - self.started_at_ms)
    }

    /// A steady time as the clock has it now. They run apart a little by themselves.
    pub fn shown_ms(&self, steady_ms: u64) -> u64 {
        let step_ms = machine::now_ms().cast_signed() - self.steady_ms().cast_signed();
        match step_ms.abs() {
            0..1000 => steady_ms,
            _ => steady_ms.saturating_add_signed(step_ms),
        }
    }

    /// How many sessions are open, and how many of them are nodes'.
    pub fn session_counts(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.connections.len(), inner.registry.len())
    }

    /// The regular sign of life that clients wait for.
    pub fn tick(&self) {
        let event = TickEvent {
            ts: machine::now_ms(),
        };
        self.lock().tell(Audience::Everyone, "tick", &event);
    }

    /// Sends an event to whom it concerns.
    pub fn broadcast(&self, audience: Audience, event: &str, payload: &impl serde::Serialize) {
        self.lock().tell(audience, event, payload);
    }

    /// Tells every session to end because the Gateway does.
    pub fn shut_down(&self, reason: &'static str) {
        let mut inner = self.lock();
        let event = crate::rpc::types::health::ShutdownEvent {
            reason: reason.into(),
            restart_expected_ms: None,
        };
        inner.tell(Audience::Everyone, "shutdown", &event);
        for (_, connection) in inner.connections.iter() {
            connection.outbox.close(1012, "service restart");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Changes are applied in single steps after they were decided, so a panic leaves a whole state behind.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a decision, then persists it, then lets it take effect. If it cannot be recorded, nothing happens.
    fn commit(
        &self,
        inner: &mut Inner,
        event: &audit::Event,
        changes: Vec<Change>,
    ) -> Result<Receipt, Fault> {
        let receipt = self
            .audit
            .append(event, Durability::Synced)
            .map_err(Fault::Audit)?;
        self.store
            .change(&receipt, |records| {
                changes
                    .iter()
                    .try_for_each(|change| records.pairing(change))
            })
            .map_err(Fault::Store)?;
        inner.pairing.apply(changes);
        Ok(receipt)
    }
}
