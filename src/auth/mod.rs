//! Who may come in, and what they may ask.
//!
//! In: an `ingress::Attributed` connection, what its `connect` claims, and facts that the caller looks up when asked.
//! Out: `Admitted`, which nothing but this module can make, or a refusal with the reference's code.
//! Attacker controls: every claim. Bounds: one signature check, one secret comparison and one look-up of each kind per
//! attempt; the limiter's tables are bounded by `limits`.
//! Errors: `admission::AdmissionRefusal`, `permission::PermissionRefusal`.

pub mod admission;
pub mod device;
pub mod permission;
pub mod rate_limit;
pub mod scope;
pub mod secret_eq;
pub mod whois;

pub use admission::{Admitted, AdmittedRequest};
