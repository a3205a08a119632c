//! `approvals …`: what waits for a decision, and the decision.

use std::collections::VecDeque;
use std::io::{BufRead, IsTerminal};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::args::{Allowlist, Approvals};
use super::devices::by_prefix;
use super::exit::{Exit, Failure};
use super::gateway::printable;
use super::nodes::find;
use super::output;
use super::session::{Context, Session, decode};
use crate::auth::scope::Scope;
use crate::client::credentials::Caller;
use crate::exec::Decision;
use crate::machine;
use crate::rpc::types::approval::ExecApprovalEntry as Entry;

const REQUESTED: &str = "exec.approval.requested";
const RESOLVED: &str = "exec.approval.resolved";
/// An answer that comes this soon after a request appeared was typed for another one.
const UNREAD: Duration = Duration::from_millis(700);

pub async fn run(context: &Context, command: &Approvals) -> Result<(), Failure> {
    let scopes: &[Scope] = match command {
        Approvals::Get { node: Some(_), .. } | Approvals::Allowlist(_) => {
            &[Scope::Read, Scope::Admin]
        }
        _ => &[Scope::Approvals],
    };
    let mut session = Session::open(context, Caller::Call, scopes).await?;
    let done = act(context, &mut session, command).await;
    session.close().await;
    done
}

async fn act(context: &Context, session: &mut Session, command: &Approvals) -> Result<(), Failure> {
    let (id, decision) = match command {
        Approvals::Watch => return watch(context, session).await,
        Approvals::List => {
            let payload = session.call("exec.approval.list", &json!({})).await?;
            return context.show(&payload, |list: Vec<Entry>| {
                let blocks: Vec<String> = list.iter().map(block).collect();
                match blocks.is_empty() {
                    true => "Nothing waits for a decision".to_owned(),
                    false => blocks.join("\n\n"),
                }
            });
        }
        Approvals::Get {
            node: Some(node), ..
        } => {
            let params = json!({ "nodeId": find(session, node).await? });
            let payload = session.call("exec.approvals.node.get", &params).await?;
            return context.show(&payload, |policy: Value| policy_text(&policy["file"]));
        }
        Approvals::Allowlist(command) => return remove_rule(context, session, command).await,
        // clap lets none of both through.
        Approvals::Get { id: None, .. } => return Ok(()),
        Approvals::Get { id: Some(id), .. } => (id, None),
        Approvals::Approve { id, always: false } => (id, Some(Decision::AllowOnce)),
        Approvals::Approve { id, always: true } => (id, Some(Decision::AllowAlways)),
        Approvals::Deny { id } => (id, Some(Decision::Deny)),
    };
    let list: Vec<Entry> = decode(&session.call("exec.approval.list", &json!({})).await?)?;
    let ids: Vec<&str> = list.iter().map(|entry| entry.id.as_str()).collect();
    let id = by_prefix(id, &ids)?;
    let Some(decision) = decision else {
        let got = session
            .call("exec.approval.get", &json!({ "id": id }))
            .await?;
        return context.show(&got, |_: Value| {
            let entry = list.iter().find(|entry| entry.id == id);
            entry.map(block).unwrap_or_default()
        });
    };
    let payload = resolve(session, &id, decision).await?;
    context.show(&payload, |_: Value| decision.as_str().to_owned())
}

/// Writes the node's policy file anew without some of its rules; the hash keeps what somebody else writes meanwhile.
async fn remove_rule(
    context: &Context,
    session: &Session,
    command: &Allowlist,
) -> Result<(), Failure> {
    let Allowlist::Remove {
        pattern,
        node,
        agent,
    } = command;
    let node = find(session, node).await?;
    let get = json!({ "nodeId": node });
    let policy: Value = decode(&session.call("exec.approvals.node.get", &get).await?)?;
    let mut file = policy["file"].clone();
    if without(&mut file, pattern, agent.as_deref()) == 0 {
        let sentence = format!(
            "no rule of that node has the pattern {}",
            printable(pattern)
        );
        return Err(Failure::new(Exit::Refused, sentence)
            .with_remedy("`approvals get --node` shows its rules"));
    }
    let set = json!({ "nodeId": node, "file": file, "baseHash": policy["hash"] });
    let payload = session.call("exec.approvals.node.set", &set).await?;
    context.show(&payload, |policy: Value| policy_text(&policy["file"]))
}

/// Takes the rules with this pattern out of one agent's list, or out of all; says how many there were. The file is a
/// node's word and may have any shape: `IndexMut` would put fields into it, or panic.
fn without(file: &mut Value, pattern: &str, agent: Option<&str>) -> usize {
    let mut removed = 0;
    let agents = file.get_mut("agents").and_then(Value::as_object_mut);
    let agents = agents.into_iter().flatten();
    for (_, entry) in agents.filter(|(name, _)| agent.is_none_or(|agent| agent == *name)) {
        let rules = entry.get_mut("allowlist").and_then(Value::as_array_mut);
        if let Some(rules) = rules {
            let before = rules.len();
            rules.retain(|rule| rule["pattern"] != pattern);
            removed += before - rules.len();
        }
    }
    removed
}

/// A node's policy file: what is said for all and for each agent, and a line for each rule.
fn policy_text(file: &Value) -> String {
    let one_line = |text: &str| printable(&text.replace('\n', "\\n").replace('\t', "\\t"));
    let words = |entry: &Value| {
        let words = ["security", "ask", "askFallback"].iter();
        let said = words.filter_map(|name| Some(format!("{name} {}", entry[*name].as_str()?)));
        let said: Vec<String> = said.collect();
        if said.is_empty() {
            "-".to_owned()
        } else {
            said.join(", ")
        }
    };
    let mut lines = vec![format!(
        "all agents  {}",
        one_line(&words(&file["defaults"]))
    )];
    for (name, entry) in file["agents"].as_object().into_iter().flatten() {
        lines.push(one_line(&format!("agent {name}  {}", words(entry))));
        for rule in entry["allowlist"].as_array().into_iter().flatten() {
            let text = |field: &str| rule[field].as_str().unwrap_or_default();
            let row = format!("  {}  {}", text("pattern"), text("argPattern"));
            lines.push(one_line(row.trim_end()));
        }
    }
    lines.join("\n")
}

async fn resolve(
    session: &Session,
    id: &str,
    decision: Decision,
) -> Result<Box<serde_json::value::RawValue>, Failure> {
    let params = json!({"id": id, "decision": decision.as_str()});
    session.call("exec.approval.resolve", &params).await
}

/// Shows each request as it comes, over one session. On a terminal it asks; elsewhere it prints a JSON line for each
/// event, beginning with what waits already.
async fn watch(context: &Context, session: &mut Session) -> Result<(), Failure> {
    let list = session.call("exec.approval.list", &json!({})).await?;
    let asks =
        !context.common.json && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let mut queue: VecDeque<Entry> = VecDeque::new();
    output::note("watching for requests; ^C ends");
    if asks {
        queue.extend(decode::<Vec<Entry>>(&list)?);
    } else {
        for entry in decode::<Vec<Value>>(&list)? {
            print_event(REQUESTED, &entry);
        }
    }
    let mut typed = if asks { lines() } else { mpsc::channel(1).1 };
    let mut shown: Option<(String, Instant)> = None;
    loop {
        if let Some(front) = queue.front().filter(|_| asks)
            && shown.as_ref().is_none_or(|(id, _)| *id != front.id)
        {
            let always = if front.may_always() {
                ", a = allow always"
            } else {
                ""
            };
            output::line(&format!("\n{}", block(front)));
            output::line(&format!("y = allow once{always}, n = deny, then Enter:"));
            shown = Some((front.id.clone(), Instant::now()));
        }
        tokio::select! {
            event = session.next_event() => {
                let event = event?;
                let Some(payload) = event.decode::<Value>() else { continue };
                if event.name != REQUESTED && event.name != RESOLVED {
                    continue;
                }
                if !asks {
                    print_event(&event.name, &payload);
                } else if event.name == REQUESTED {
                    queue.extend(event.decode::<Entry>());
                } else if let Some(at) = queue.iter().position(|entry| payload["id"] == *entry.id) {
                    let how = payload["decision"].as_str().unwrap_or("over");
                    output::line(&format!("{}: {}", printable(&queue[at].id), printable(how)));
                    queue.remove(at);
                }
            }
            Some(line) = typed.recv() => {
                let Some(front) = queue.front() else { continue };
                let decision = match line.trim() {
                    "y" => Decision::AllowOnce,
                    "a" if front.may_always() => Decision::AllowAlways,
                    "n" => Decision::Deny,
                    _ => {
                        output::line("y, n or a, please:");
                        continue;
                    }
                };
                let read = shown
                    .as_ref()
                    .is_some_and(|(id, at)| *id == front.id && at.elapsed() >= UNREAD);
                if !read {
                    output::line("this came before the request could be read; answer again:");
                    continue;
                }
                // The event that follows takes it from the queue; a refusal means that it is gone already.
                let id = front.id.clone();
                if let Err(failure) = resolve(session, &id, decision).await {
                    output::note(&failure.to_string());
                    queue.retain(|entry| entry.id != id);
                }
            }
        }
    }
}

/// What is typed, line by line. The thread that reads ends with the process.
fn lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

fn print_event(name: &str, payload: &Value) {
    output::line(&json!({"event": name, "payload": payload}).to_string());
}

impl Entry {
    fn may_always(&self) -> bool {
        let always = Decision::AllowAlways.as_str();
        self.request.allowed_decisions.iter().any(|it| it == always)
    }
}

/// One request, whole: a command that is cut could hide its end.
fn block(entry: &Entry) -> String {
    let request = &entry.request;
    let left_ms = entry.expires_at_ms.saturating_sub(machine::now_ms());
    let env: Vec<String> = request
        .env
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let env = env.join(" ");
    let node = request.node_id.as_ref().map(|id| match &request.node_name {
        Some(name) => format!("{name} ({id})"),
        None => id.clone(),
    });
    let mut lines = vec![format!("Request {} ({} s left)", entry.id, left_ms / 1000)];
    let mut row = |name: &str, value: Option<&str>| {
        lines.extend(value.map(|value| format!("  {name:<9}{value}")));
    };
    row("command", Some(&request.command));
    row("node", node.as_deref());
    row("asked by", request.requested_by.as_deref());
    row("agent", request.agent_id.as_deref());
    row("session", request.session_key.as_deref());
    row("cwd", request.cwd.as_deref());
    row("env", Some(env.as_str()).filter(|env| !env.is_empty()));
    let file = &request.system_run_plan["mutableFileOperand"];
    let script = (file["path"].as_str().zip(file["sha256"].as_str()))
        .map(|(path, sha256)| format!("{path} (sha256 {sha256})"));
    row("file", script.as_deref());
    row("binding", request.binding_sha256.as_deref());
    row("warning", request.warning_text.as_deref());
    // Line by line, so that nothing in a value can begin a line of its own.
    let lines: Vec<String> = lines
        .iter()
        .map(|line| printable(&line.replace('\n', "\\n").replace('\t', "\\t")))
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_taken_out_where_it_was_meant() {
        let rules =
            json!([{"pattern": "/bin/ls"}, {"pattern": "/bin/id", "argPattern": "=x\n  /evil"}]);
        let mut file = json!({"defaults": {"ask": "always"}, "agents": {
            "main": {"allowlist": rules}, "*": {"security": "full", "allowlist": rules}, "bare": {"ask": "off"},
        }});
        let text = policy_text(&file);
        assert!(text.starts_with("all agents  ask always\nagent"), "{text}");
        assert!(
            text.contains("agent *  security full\n  /bin/ls\n  /bin/id  =x\\n"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 8, "{text}");
        assert_eq!(without(&mut file, "/bin/no", None), 0);
        assert_eq!(without(&mut file, "/bin/ls", Some("main")), 1);
        assert_eq!(without(&mut file, "/bin/ls", None), 1);
        assert_eq!(without(&mut file, "/bin/id", None), 2);
        assert_eq!(file["agents"]["main"]["allowlist"], json!([]));
        // The node refuses a file with `"allowlist": null`.
        assert_eq!(file["agents"]["bare"], json!({"ask": "off"}));
    }

    #[test]
    fn a_policy_of_any_shape_is_left_as_it_is() {
        for odd in [json!("x"), json!([1]), json!(7), Value::Null] {
            for mut file in [
                odd.clone(),
                json!({ "agents": odd }),
                json!({"agents": {"main": odd}}),
                json!({"agents": {"main": {"allowlist": odd}}}),
                json!({"agents": {"main": {"allowlist": [odd]}}}),
            ] {
                let before = file.clone();
                assert_eq!(without(&mut file, "/bin/ls", None), 0);
                assert_eq!(file, before);
                policy_text(&file);
            }
        }
    }

    #[test]
    fn a_request_is_shown_whole_and_on_lines_of_its_own() {
        let long = "x".repeat(5000);
        let entry: Entry = serde_json::from_value(json!({
            "id": "1\n  command  ls", "expiresAtMs": 0,
            "request": {"command": format!("{long}\u{1b}[0m\nend"), "nodeId": "n", "nodeName": "box\n  cwd      /", "requestedBy": "me\u{1b}[0m (d)",
                "systemRunPlan": {"mutableFileOperand": {"path": "/x\n.sh", "sha256": "ab"}}, "env": {"A": "1", "B": "2"},
                "warningText": "unbound\n  cwd      /"},
        }))
        .unwrap();
        let text = block(&entry);
        assert!(text.contains(&long) && text.contains("\\nend"));
        assert_eq!(text.lines().count(), 7, "{text}");
        assert!(text.contains("  warning  unbound\\n"), "{text}");
        assert!(text.contains("  node     box\\n  cwd      / (n)"), "{text}");
        assert!(text.contains("  asked by me"), "{text}");
        assert!(text.contains("  file     /x\\n.sh (sha256 ab)"), "{text}");
        assert!(!text.contains('\u{1b}'));
        assert!(text.contains("  env      A=1 B=2"));
    }
}
