//! `gateway run`.

use super::exit::{Exit, Failure};
use crate::config::{ServerFlags, Settings};

/// Runs the Gateway until it is told to stop.
pub fn run(settings: &Settings, flags: &ServerFlags) -> Result<(), Failure> {
    settings.server(flags)?;
    Err(Failure::new(
        Exit::Software,
        "this build has no Gateway to run yet",
    ))
}
