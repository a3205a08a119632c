//! `audit verify|tail`. The log is read from disk, so that it can be proved while no Gateway runs.

use std::collections::VecDeque;

use super::args::Audit;
use super::exit::{Exit, Failure};
use super::output;
use super::session::Context;
use crate::audit;
use crate::client::call::shown;

pub fn run(context: &Context, command: &Audit) -> Result<(), Failure> {
    let default = context.settings.paths.audit_dir();
    match command {
        Audit::Verify { dir } => verify(context, dir.as_ref().unwrap_or(&default)),
        Audit::Tail { lines, dir } => tail(context, dir.as_ref().unwrap_or(&default), *lines),
    }
}

fn verify(context: &Context, dir: &std::path::Path) -> Result<(), Failure> {
    let verified = audit::verify(dir).map_err(|broken| broken_log(&broken))?;
    if context.common.json {
        let report = serde_json::json!({
            "ok": true, "files": verified.files, "records": verified.records,
            "torn": verified.torn, "shortened": verified.shortened,
        });
        output::line(&report.to_string());
        return Ok(());
    }
    output::line(&format!(
        "The audit log is whole: {} records in {} files",
        verified.records, verified.files
    ));
    if verified.torn > 0 {
        output::line(&format!(
            "{} records were cut short by a crash",
            verified.torn
        ));
    }
    Ok(())
}

fn tail(context: &Context, dir: &std::path::Path, lines: u16) -> Result<(), Failure> {
    let mut last = VecDeque::with_capacity(usize::from(lines));
    let verified = audit::verify::for_each(dir, |record| {
        if last.len() >= usize::from(lines) {
            last.pop_front();
        }
        last.push_back(record);
    });
    for record in &last {
        if context.common.json {
            let line = serde_json::json!({
                "seq": record.seq, "ts": record.ts, "event": record.event, "hash": record.hash,
            });
            output::line(&line.to_string());
        } else {
            let event = super::gateway::printable(record.event.get());
            output::line(&format!("{}  {}  {event}", record.seq, record.ts));
        }
    }
    // The records before a break are shown; the break is still the result.
    verified.map(|_| ()).map_err(|broken| broken_log(&broken))
}

fn broken_log(broken: &impl ToString) -> Failure {
    Failure::new(Exit::Refused, shown(&broken.to_string()))
        .with_remedy("keep the files as they are, and compare them with a copy")
}
