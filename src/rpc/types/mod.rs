//! Parameters, results and event payloads, one file per family of methods.
//!
//! Parameters are closed where the schema closes them: an unknown key is refused. Results are open, because our
//! client also reads those of newer Gateways. An optional key that is absent is not written; `null` in its place
//! counts as absent, but for `connect`, which is read exactly as the schema says.
//! What is only relayed is `Box<RawValue>`: the same bytes, scanned and never rebuilt.

pub mod agent;
pub mod approval;
pub mod chat;
pub mod client;
pub mod connect;
pub mod device;
pub mod health;
pub mod node;
pub mod presence;

mod field;

use serde::{Deserialize, Serialize};

/// Parameters of methods that take none: `{}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoParams {}

/// A payload that says only that it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    pub ok: bool,
}
