//! What a command is, how it is shown, and who said that it may run.
//!
//! In: argument vectors, environment overrides, a node's plan, mode words from both sides' files. Out: text, refusals,
//! digests and verdicts; the Gateway and the node host both decide with them, so they cannot decide differently.
//! Attacker controls: argv, cwd, environment, run ids, and (as a node) every field of a plan.
//! Bounds: `EXEC_*` of `base::limits`. Errors: one enum per file; each is a refusal, none is broken state.

pub mod allowlist;
pub mod approval;
pub mod approvals_file;
pub mod argv_text;
pub mod env;
pub mod output;
pub mod plan;
pub mod policy;
pub mod redact;
pub mod shell;
pub mod words;

pub use approval::{Approval, Approvals, Binding, Caller, Decision};
pub use plan::{FileOperand, Plan, PolicySnapshot, Prepared};
pub use policy::Mode;
