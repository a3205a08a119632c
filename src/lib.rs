//! Portcullis: a Gateway for remote nodes that fails closed.
//!
//! Modules stand in reading order and may import only what stands above them, within the layers
//! that `tests/layers.rs` checks. `docs/ARCHITECTURE.md` is the map.

#![forbid(unsafe_code)]

// 0: words that every layer uses.
pub mod base;

// 1: the wire. Bytes in, values out; no sockets, no clock, no randomness.
pub mod rpc;
pub mod ws;

// 2: policy. Values in, decisions out; each module may import only those before it.
pub mod auth;
pub mod exec;
pub mod ingress;
pub mod nodes;
pub mod pairing;

// 3a: services that touch the machine.
pub mod audit;
pub mod machine;
pub mod net;
pub mod store;

// 3b: peers.
pub mod agent;
pub mod client;

// 4: where decisions become effects.
pub mod hub;

// 5: fronts.
pub mod control;
pub mod http;
pub mod session;
pub mod ui;

// 6: assembly.
pub mod cli;
pub mod config;
#[cfg(feature = "node-host")]
pub mod node_host;
