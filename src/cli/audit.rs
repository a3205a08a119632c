//! `audit tail|show|verify|export`. The log is read from disk, so that it can be read and proved while no Gateway runs.

use std::collections::{HashSet, VecDeque};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::args::{Audit, AuditArgs};
use super::exit::{Exit, Failure};
use super::output;
use super::session::Context;
use crate::audit::{self, Broken, Reader, Record, Verified};
use crate::client::call::shown;
use crate::exec::argv_text;
use crate::machine;
use crate::machine::files;

/// How often `tail -f` looks.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(250);

pub fn run(context: &Context, args: &AuditArgs) -> Result<(), Failure> {
    let dir = args.dir.clone();
    let dir = &dir.unwrap_or_else(|| context.settings.paths.audit_dir());
    let json = context.common.json;
    match &args.command {
        Audit::Verify => verify(dir, json),
        Audit::Tail { lines, follow } => tail(dir, json, *lines, *follow),
        Audit::Show { since, kind, node } => {
            let mut filter = Filter {
                since_ms: since.map(|ago| machine::now_ms().saturating_sub(ago)),
                kind: kind.as_deref(),
                node: node.as_deref(),
                linked: HashSet::new(),
            };
            let mut shown = 0;
            let checked = audit::verify::for_each(dir, |record| {
                if filter.wants(&record) {
                    shown += 1;
                    print(&record, json);
                }
            });
            // The records before a break are shown; the break is still the result.
            checked.map_err(|broken| broken_log(&broken))?;
            if shown == 0 && (kind.is_some() || node.is_some()) {
                return Err(Failure::new(Exit::Refused, "no record matches").with_remedy(
                    "a node is named by its id, as in `portcullis nodes list`, and a kind as the log writes it",
                ));
            }
            Ok(())
        }
        Audit::Export { output } => export(dir, output.as_deref()),
    }
}

fn verify(dir: &Path, json: bool) -> Result<(), Failure> {
    let Verified {
        files,
        records,
        torn,
        shortened,
        torn_end,
        ..
    } = audit::verify(dir).map_err(|broken| broken_log(&broken))?;
    if json {
        let report = json!({
            "ok": true, "files": files, "records": records, "torn": torn, "shortened": shortened, "tornEnd": torn_end,
        });
        output::line(&report.to_string());
        return Ok(());
    }
    output::line(&format!(
        "The audit log is whole: {records} records in {files} files"
    ));
    if torn > 0 {
        output::line(&format!("{torn} records were cut short by a crash"));
    }
    if shortened > 0 {
        output::line(&format!(
            "{shortened} times records were missing at the end when the Gateway started: see `audit show --kind log`"
        ));
    }
    if torn_end {
        output::line(
            "It ends in an unfinished line that nothing relied on; the Gateway puts it aside when it starts",
        );
    }
    Ok(())
}

fn tail(dir: &Path, json: bool, lines: u16, follow: bool) -> Result<(), Failure> {
    let mut last = VecDeque::with_capacity(usize::from(lines));
    let keep = |record| {
        if last.len() >= usize::from(lines) {
            last.pop_front();
        }
        last.push_back(record);
    };
    if !follow {
        let checked = audit::verify::for_each(dir, keep);
        last.iter().for_each(|record| print(record, json));
        return checked.map(|_| ()).map_err(|broken| broken_log(&broken));
    }
    let mut reader = Reader::new(dir);
    let mut keep = keep;
    let mut checked = reader.read(&mut keep);
    last.iter().for_each(|record| print(record, json));
    while checked.is_ok() {
        std::thread::sleep(FOLLOW_INTERVAL);
        checked = reader.read(&mut |record| print(&record, json));
    }
    checked.map_err(|broken| broken_log(&broken))
}

/// Writes the lines of the log as they are, once all of them are checked as they go.
fn export(dir: &Path, output: Option<&Path>) -> Result<(), Failure> {
    let failed = |exit, error: &dyn std::fmt::Display| {
        Failure::new(exit, format!("the log was not exported: {error}"))
    };
    let mut to: Box<dyn Write> = match output {
        Some(path) => Box::new(
            files::create_new(path).map_err(|error| failed(Exit::of_file(&error), &error))?,
        ),
        None => Box::new(std::io::stdout().lock()),
    };
    let mut written = Ok(());
    let mut to_buffer = BufWriter::new(&mut to);
    let checked = audit::verify::for_each(dir, |record| {
        if written.is_ok() {
            written = writeln!(to_buffer, "{}", record.line());
        }
    });
    written
        .and_then(|()| to_buffer.flush())
        .map_err(|error| failed(Exit::Temporary, &error))?;
    let verified = checked.map_err(|broken| broken_log(&broken))?;
    output::note(&format!(
        "{} records; the hash of the last is {}: kept elsewhere, it shows whether they were written anew",
        verified.records,
        crate::base::ids::hex_lower(&verified.last.hash)
    ));
    Ok(())
}

struct Filter<'a> {
    since_ms: Option<u64>,
    kind: Option<&'a str>,
    node: Option<&'a str>,
    /// The approvals and invocations that a record about `node` began: later records name nothing but their ids.
    linked: HashSet<String>,
}

impl Filter<'_> {
    fn wants(&mut self, record: &Record) -> bool {
        let about = self.node.is_none_or(|node| {
            let event: Value = serde_json::from_str(record.event.get()).unwrap_or_default();
            names(&event, node, &mut self.linked)
        });
        let kind = record.kind().unwrap_or_default();
        let of_kind = |wanted: &str| {
            kind.strip_prefix(wanted)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.since_ms.is_none_or(|since| record.ts >= since)
            && self.kind.is_none_or(of_kind)
            && about
    }
}

/// Whether a record is about a node or device, or of what it did, or goes on with such a one. It may be named by the
/// beginning of its id.
fn names(event: &Value, node: &str, linked: &mut HashSet<String>) -> bool {
    let is_it = |id: &Value| id.as_str().is_some_and(|id| id.starts_with(node));
    let acted = |actor: &Value| is_it(&actor["device"]) || is_it(&actor["by"]);
    let ids = || {
        ["approval", "invoke"]
            .iter()
            .filter_map(|field| event[field].as_str())
    };
    let about = ["node", "device"].iter().any(|field| is_it(&event[field]))
        || ["actor", "by", "caller"]
            .iter()
            .any(|field| acted(&event[field]))
        || ids().any(|id| linked.contains(id));
    if about {
        linked.extend(ids().map(str::to_owned));
    }
    about
}

/// `90s`, `15m`, `36h` or `7d`, in milliseconds.
pub fn duration_ms(text: &str) -> Result<u64, String> {
    let units = [
        ('s', 1000),
        ('m', 60_000),
        ('h', 3_600_000),
        ('d', 86_400_000),
    ];
    let ms = units.iter().find_map(|(unit, ms)| {
        let count: u64 = text.strip_suffix(*unit)?.parse().ok()?;
        count.checked_mul(*ms)
    });
    ms.ok_or_else(|| "it must be a number and s, m, h or d, such as 36h".to_owned())
}

fn print(record: &Record, json: bool) {
    if json {
        return output::line(&record.line());
    }
    // A log that was tampered with may hold anything.
    let event = argv_text::visible(record.event.get());
    output::line(&format!("{}  {}  {event}", record.seq, utc(record.ts)));
}

/// Unix milliseconds as `2026-11-21T07:00:00.123Z`.
fn utc(ms: u64) -> String {
    let (days, of_day) = (ms / 86_400_000, ms % 86_400_000);
    // Days since 0000-03-01, in eras of 400 years (the proleptic Gregorian calendar).
    let days = days.saturating_add(719_468);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute) = (of_day / 3_600_000, of_day / 60_000 % 60);
    let (second, milli) = (of_day / 1000 % 60, of_day % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

fn broken_log(broken: &Broken) -> Failure {
    Failure::new(Exit::Refused, shown(&broken.to_string())).with_remedy(match broken {
        Broken::Read(_) => {
            "a gateway keeps it in its state directory: --profile or --dir names another"
        }
        _ => "keep the files as they are, and compare them with a copy",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_utc() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_825_600_000, "2000-02-29T12:00:00.000Z"),
            (1_795_225_804_986, "2026-11-21T01:50:04.986Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(utc(ms), text);
        }
        utc(u64::MAX);
    }

    #[test]
    fn what_a_node_did_and_what_came_of_it_is_about_it() {
        let mut linked = HashSet::new();
        let mut about = |event: Value| names(&event, "abc", &mut linked);
        assert!(!about(json!({"approval": "a1", "decision": "deny"})));
        assert!(about(json!({"approval": "a1", "node": "abcdef"})));
        assert!(about(json!({"approval": "a1", "decision": "deny"})));
        assert!(about(
            json!({"invoke": "i1", "caller": {"device": "abcdef"}})
        ));
        assert!(about(json!({"invoke": "i1", "by": {"uid": 0}})));
        assert!(about(json!({"actor": {"kind": "agent", "by": "abcdef"}})));
        assert!(!about(
            json!({"invoke": "i2", "node": "def", "by": {"uid": 0}})
        ));
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration_ms("36h"), Ok(129_600_000));
        for text in [
            "",
            "h",
            "5",
            "-5m",
            "5w",
            "1e3s",
            "99999999999999999999d",
            "300000000000d",
        ] {
            assert!(duration_ms(text).is_err(), "{text}");
        }
    }
}
