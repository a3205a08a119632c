//! `quickstart`.

use super::args::QuickstartArgs;
use super::exit::{Exit, Failure};

/// Starts a Gateway and a node, and proves the way from a message to a command and back.
pub fn run(args: &QuickstartArgs) -> Result<(), Failure> {
    Err(Failure::new(
        Exit::Software,
        format!(
            "this build has no Gateway to start on port {}{} yet",
            args.port,
            if args.once { " once" } else { "" }
        ),
    ))
}
