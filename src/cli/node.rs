//! `node run`.

use super::args::NodeRunArgs;
use super::exit::{Exit, Failure};
use super::session::Context;

pub async fn run(_context: &Context, _args: &NodeRunArgs) -> Result<(), Failure> {
    Err(Failure::new(
        Exit::Software,
        "this build has no node host yet",
    ))
}
