//! HTTP on the Gateway's port.
//!
//! Each submodule says what it takes, what an attacker controls and what bounds it.

pub mod upgrade;
