//! Where decisions become effects.
//!
//! A policy engine decides; the hub takes the lock, has the audit log record the decision, updates the store and
//! hands frames to outboxes. `control` and the agent both call it; it knows neither.

pub mod outbox;

pub use outbox::{Farewell, Outbox, OutboxReader, Taken};
