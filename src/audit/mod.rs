//! The audit log: what took effect, on whose behalf, in an order that cannot be changed unseen.
//!
//! In: typed events. Out: a `Receipt` for each record, which effects take, so that nothing takes effect unrecorded.
//! Attacker controls: the text in events (`PeerText` cuts and escapes it), and how many refusals there are, which
//! callers sample. Bounds: `chain::LINE_BYTES_MAX` a record, `Settings::file_bytes_max` a file; files are kept
//! until an operator archives them, and a full disk stops what must be recorded.
//! Errors: `AuditError`; the action that was to be recorded must not happen.

pub mod chain;
pub mod event;
pub mod log;
pub mod verify;

pub use chain::Record;
pub use event::{Actor, Digest, Event, PeerText, Stage, TokenChange};
pub use log::{AuditError, AuditLog, Durability, Receipt, Settings};
pub use verify::{Broken, Reader, Verified, verify};
