//! Nodes as tables and lists: online, callable, permitted, and why not.

use serde_json::Value;
use serde_json::value::RawValue;

use super::nodes::{approval, seen};
use super::output::{self, ago, short_id};
use crate::client::call::shown;
use crate::nodes::{CommandReport, Explanation, Finding, NodeReport, Report, Verdict, is_reserved};
use crate::rpc::types::node::{NodeEntry, NodeInvokeResult};

/// One line a node. Without a report, from a Gateway that is not ours, two columns stay empty.
pub fn node_table(nodes: &[NodeEntry], report: Option<&Report>, now_ms: u64) -> String {
    if nodes.is_empty() {
        return "No nodes".to_owned();
    }
    let rows: Vec<Vec<String>> = nodes
        .iter()
        .map(|node| {
            let report = report.and_then(|report| of_node(report, &node.node_id));
            let count = |counted: fn(&CommandReport) -> bool| {
                report.map_or_else(String::new, |report| {
                    let hit = report.commands.iter().filter(|command| counted(command));
                    format!("{} of {}", hit.count(), report.commands.len())
                })
            };
            vec![
                short_id(&node.node_id),
                node.client.display_name.clone().unwrap_or_default(),
                node.client.platform.clone().unwrap_or_default(),
                seen(node, now_ms),
                count(|command| command.callable),
                count(|command| command.permitted),
                runs(node, report),
                note(node, report),
            ]
        })
        .collect();
    let headings = [
        "NODE",
        "NAME",
        "PLATFORM",
        "ONLINE",
        "CALLABLE",
        "PERMITTED",
        "RUNS",
        "NOTE",
    ];
    output::table(&headings, &rows)
}

pub fn of_node<'a>(report: &'a Report, id: &str) -> Option<&'a NodeReport> {
    report.nodes.iter().find(|node| node.node_id == id)
}

/// What would run now, if need be with an approval.
fn runs(node: &NodeEntry, report: Option<&NodeReport>) -> String {
    let Some(report) = report else {
        return node.commands.join(",");
    };
    let word = |command: &CommandReport| match command.verdict {
        // These have methods of their own.
        _ if is_reserved(&command.command) => None,
        Verdict::Allow => Some(command.command.clone()),
        Verdict::Ask => Some(format!("{} (asks)", command.command)),
        Verdict::Deny | Verdict::Unknown => None,
    };
    let words: Vec<String> = report.commands.iter().filter_map(word).collect();
    if words.is_empty() {
        "nothing".to_owned()
    } else {
        words.join(",")
    }
}

/// The first thing in the way of what does not run.
fn note(node: &NodeEntry, report: Option<&NodeReport>) -> String {
    if let Some(request) = &node.pending_request_id {
        return format!("{}: portcullis nodes approve {request}", approval(node));
    }
    if !node.connected {
        let close = report.and_then(|report| report.last_close.as_ref());
        return close.map_or_else(String::new, |close| format!("last close: {}", close.reason));
    }
    let denied = report.iter().flat_map(|report| &report.commands);
    let mut denied = denied.filter(|command| command.verdict == Verdict::Deny);
    let first = denied.next().map(|command| command.command.clone());
    match (first, denied.count()) {
        (None, _) => String::new(),
        (Some(first), 0) => format!("denied: {first}; see --commands"),
        (Some(first), more) => format!("denied: {first} and {more} more; see --commands"),
    }
}

/// A table for each node, one line a command.
pub fn command_tables(nodes: &[NodeEntry], report: &Report, now_ms: u64) -> String {
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    let table = |node: &NodeReport| {
        let entry = nodes.iter().find(|entry| entry.node_id == node.node_id);
        let name = entry
            .and_then(|entry| entry.client.display_name.clone())
            .unwrap_or_default();
        let online = entry.map_or_else(String::new, |entry| seen(entry, now_ms));
        let row = |command: &CommandReport| {
            vec![
                command.command.clone(),
                yes(node.online),
                yes(command.callable),
                yes(command.permitted),
                command.verdict.as_str().to_owned(),
                command.rule.clone().unwrap_or_default(),
                command.change.clone().unwrap_or_default(),
            ]
        };
        let rows: Vec<Vec<String>> = node.commands.iter().map(row).collect();
        let headings = [
            "COMMAND",
            "ONLINE",
            "CALLABLE",
            "PERMITTED",
            "VERDICT",
            "WHY",
            "CHANGE",
        ];
        let head = format!("{} {name} ({online})", short_id(&node.node_id));
        format!("{}\n{}", shown(&head), output::table(&headings, &rows))
    };
    let tables: Vec<String> = report.nodes.iter().map(table).collect();
    if tables.is_empty() {
        "No nodes".to_owned()
    } else {
        tables.join("\n\n")
    }
}

pub fn describe(node: &NodeEntry, report: Option<&Report>, now_ms: u64) -> String {
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let mut rows = vec![
        ("Node", node.node_id.clone()),
        ("Name", text(&node.client.display_name)),
        ("Platform", text(&node.client.platform)),
        ("Version", text(&node.client.version)),
        ("Online", seen(node, now_ms)),
        ("Approval", approval(node).to_owned()),
        ("Commands", node.commands.join(", ")),
        ("PATH", text(&node.path_env)),
    ];
    if let Some(declared) = &node.pending_declared_commands {
        rows.push(("Declares", declared.join(", ")));
    }
    if let Some(request) = &node.pending_request_id {
        rows.push(("Approve", format!("portcullis nodes approve {request}")));
    }
    if let Some(stats) = &node.host_stats {
        let mib = |bytes: Option<u64>| bytes.map_or("-".to_owned(), |it| (it >> 20).to_string());
        let load: Vec<String> = stats
            .load_average
            .iter()
            .flatten()
            .map(f64::to_string)
            .collect();
        rows.push((
            "Host",
            format!(
                "{} cpus, load {}, memory {} of {} MiB free, disk {} of {} MiB free",
                stats.cpu_count.unwrap_or(0),
                load.join(" "),
                mib(stats.memory_free_bytes),
                mib(stats.memory_total_bytes),
                mib(stats.disk_available_bytes),
                mib(stats.disk_total_bytes),
            ),
        ));
    }
    let own = report.and_then(|report| of_node(report, &node.node_id).map(|own| (report, own)));
    if let Some((report, own)) = own {
        rows.extend(session_rows(report, own, now_ms));
    }
    let line = |(name, value): &(&str, String)| format!("{name:<12}{}", shown(value));
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn session_rows(report: &Report, own: &NodeReport, now_ms: u64) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if let Some(host) = &own.host {
        rows.push(("Shell", host.shell.clone()));
        rows.push(("Kernel", host.kernel.clone()));
        let digest = &host.exec_policy_sha256;
        rows.push((
            "Exec policy",
            format!("{}, sha256:{digest}", host.exec_mode),
        ));
    }
    let since = ago(now_ms, report.since_ms);
    let session = match (own.epoch, &own.path) {
        (Some(epoch), Some(path)) => format!("number {epoch} over {path}, "),
        _ => String::new(),
    };
    let connects = own.connects;
    rows.push((
        "Session",
        format!("{session}{connects} connects since the gateway started {since}"),
    ));
    if let Some(close) = &own.last_close {
        rows.push((
            "Last close",
            format!("{}, {}", close.reason, ago(now_ms, close.at_ms)),
        ));
    }
    if !own.changes.is_empty() {
        rows.push(("Changed", own.changes.join(", ")));
    }
    let routes = own.commands.iter().filter(|command| command.hits > 0);
    let routes: Vec<String> = routes
        .map(|it| format!("{} {}", it.command, it.hits))
        .collect();
    rows.push((
        "Routes",
        if routes.is_empty() {
            "none".to_owned()
        } else {
            routes.join(", ")
        },
    ));
    rows
}

/// A result, then how it came.
pub fn invoked(found: &NodeInvokeResult) -> String {
    let payload = found.payload.as_deref().map_or("null", RawValue::get);
    let pretty = serde_json::from_str::<Value>(payload).map(|value| format!("{value:#}"));
    let late = if found.late == Some(true) {
        ", late"
    } else {
        ""
    };
    let dispatched = found.dispatched.as_deref().unwrap_or("yes");
    let timing = found.timing.map_or_else(String::new, |it| {
        format!(
            "; queue {} ms, execution {} ms, total {} ms",
            it.queue_ms, it.execution_ms, it.total_ms
        )
    });
    let payload = pretty.unwrap_or_else(|_| payload.to_owned());
    format!("{payload}\ndispatched: {}{late}{timing}", shown(dispatched))
}

/// Each layer, then what dispatch would answer.
pub fn explanation(found: &Explanation) -> String {
    let rows: Vec<Vec<String>> = found
        .layers
        .iter()
        .map(|finding| {
            vec![
                finding.layer.clone(),
                finding.verdict.as_str().to_owned(),
                finding.rule.clone(),
                finding.setting.clone().unwrap_or_default(),
                finding.change.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let mut lines = vec![output::table(
        &["LAYER", "VERDICT", "RULE", "SETTING", "CHANGE"],
        &rows,
    )];
    let unknown = |finding: &Finding| finding.verdict == Verdict::Unknown;
    let verdict = match found.verdict {
        Verdict::Allow if found.layers.iter().any(unknown) => {
            "the gateway would send it; what the node says is not known"
        }
        Verdict::Allow => "it would run now",
        Verdict::Ask => "it would run once it is approved",
        Verdict::Deny | Verdict::Unknown => "it would not run now",
    };
    let what = match found.command.as_str() {
        "system.run" => "system.run by a `/run`".to_owned(),
        command => shown(command),
    };
    lines.push(format!("\n{what}: {verdict}"));
    let more = [("refusal", &found.refusal), ("change", &found.change)];
    for (name, text) in more {
        if let Some(text) = text {
            lines.push(format!("  {name}: {}", shown(text)));
        }
    }
    lines.extend(
        found
            .notes
            .iter()
            .map(|note| format!("  note: {}", shown(note))),
    );
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_list_says_so() {
        assert_eq!(node_table(&[], None, 0), "No nodes");
        assert_eq!(command_tables(&[], &Report::default(), 0), "No nodes");
    }
}
