//! The real program, from outside: started as an operator starts it, spoken to by an independent WebSocket peer.
//!
//! One module per behaviour; a test that shows a row of the invariants bears its id. Nothing sleeps to wait: a test
//! waits for what the program says, and every wait ends in a failure after `support::PATIENCE`.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests are tests, which clippy.toml cannot see"
)]

mod approvals;
mod attacks;
mod browser;
mod corpus;
mod explain;
mod faults;
mod handshake;
mod http;
mod limits;
mod links;
mod listeners;
mod mobile;
mod node_service;
mod nodes;
mod once;
mod origin;
mod pairing;
mod queue;
mod quickstart;
mod restart;
mod run;
mod scopes;
mod secrets;
#[allow(
    dead_code,
    unused_imports,
    reason = "modules are added on several branches, each using its part"
)]
mod support;
mod tailnet;
#[cfg(feature = "tls")]
mod tls;
