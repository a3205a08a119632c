//! One socket's task around the WebSocket codec and the RPC codec.

mod preauth;

pub use preauth::{PreauthGate, PreauthPermit};
