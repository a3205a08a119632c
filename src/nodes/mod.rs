//! Which session holds a node, what it may run, and what it was asked to run.
//!
//! In: sessions that come and go, requests and results, with the time. Out: decisions and the records they end.
//! Attacker controls: a node's declarations and results, a caller's command and parameters.
//! Bounds: `limits::DEVICES_MAX`, `limits::INVOKES_MAX`, `limits::INVOKES_FINISHED_MAX`.
//! Errors: `Refused`, each with its wire code.

mod explain;
mod invoke;
mod policy;
pub(crate) mod refused;
mod registry;

pub use explain::{CommandReport, Explanation, Finding, NodeReport, Report, Verdict, layers};
pub use invoke::{Ended, Invokes, Keyed, Pending, Progressed, Settled};
pub use policy::{
    CommandPolicy, DeniedBy, ExecGrounds, Layer, PathOf, Surface, check_path, decide, decide_any,
    exec_gate, is_browser, is_reserved, judge, platform_defaults,
};
pub use refused::{Category, Dispatched, Refused};
pub use registry::{HostFacts, LastClose, NodeRecord, NodeSession, Registry};
