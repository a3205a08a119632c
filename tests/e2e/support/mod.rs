//! What every test needs: the program under test, a peer that is not ours, a device identity, raw HTTP.

mod connect;
mod device;
mod gateway;
mod http;
mod network;
mod peer;
mod process;
#[path = "../../../src/net/tailnet/stand_in.rs"]
pub(crate) mod tailscaled;

use std::time::Duration;

pub(crate) use connect::{ADMIN, Connect};
pub(crate) use device::{Device, Form};
pub(crate) use gateway::{Gateway, PASSWORD, Setup, free_port, program, write_private};
pub(crate) use http::{Answer, exchange, get, read_answer, upgrade_request};
pub(crate) use network::in_own_network;
pub(crate) use peer::{Peer, Received, WireError};
pub(crate) use process::{Process, peak_memory_kib};

/// How long a test waits for anything before it fails. It guards against hanging and measures nothing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);
