//! Words that every layer uses: secrets, identifiers, bounds and refusals. Pure; imports nothing of ours.

pub mod ids;
pub mod limits;
pub(crate) mod names;
pub mod refusal;
pub mod secret;

pub use ids::{ConnId, DeviceId};
pub use refusal::Refusal;
pub use secret::Secret;
