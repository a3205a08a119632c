//! `nodes …`.

use std::time::Duration;

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::args::Nodes;
use super::devices::by_prefix;
use super::exit::{Exit, Failure};
use super::gateway::object;
use super::output::{self, ago, short_id};
use super::pending::{self, Decision, Queue};
use super::session::{Context, Session, decode};
use crate::auth::permission;
use crate::auth::scope::Scope;
use crate::base::ids;
use crate::client::call::shown;
use crate::client::credentials::Caller;
use crate::machine;
use crate::rpc::types::node::{NodeApprovalState, NodeEntry, NodeInvokeParams, NodeList};

/// What the Gateway may add to the node's own time.
const INVOKE_MARGIN: Duration = Duration::from_secs(5);

pub async fn run(context: &Context, command: &Nodes) -> Result<(), Failure> {
    let session = Session::open(context, Caller::Call, &scopes(command)).await?;
    let done = act(context, &session, command).await;
    session.close().await;
    done
}

fn scopes(command: &Nodes) -> Vec<Scope> {
    match command {
        Nodes::List => vec![Scope::Read, Scope::Pairing],
        Nodes::Pending => vec![Scope::Pairing],
        Nodes::Status { .. } | Nodes::Describe { .. } => vec![Scope::Read],
        // Approving commands takes the scope that running them takes (S3).
        Nodes::Approve { .. } => vec![Scope::Pairing, Scope::Write, Scope::Admin],
        Nodes::Reject { .. } => vec![Scope::Pairing],
        Nodes::Remove { .. } | Nodes::Rename { .. } => vec![Scope::Read, Scope::Pairing],
        Nodes::Invoke { command, .. } => {
            let mut scopes = vec![Scope::Read, Scope::Write, Scope::Approvals];
            let scope = permission::scope_of_command(command);
            if !scopes.contains(&scope) {
                scopes.push(scope);
            }
            scopes
        }
    }
}

async fn act(context: &Context, session: &Session, command: &Nodes) -> Result<(), Failure> {
    let now_ms = machine::now_ms();
    match command {
        Nodes::List => {
            let payload = session.call("node.list", &json!({})).await?;
            if !context.common.json {
                let queue = Queue::fetch(session).await?;
                if !queue.is_empty() {
                    output::line(&format!("Pending\n{}\n", queue.render(context)));
                }
            }
            context.show(&payload, |list: NodeList| node_table(&list.nodes, now_ms))
        }
        Nodes::Status { connected } => {
            let payload = session.call("node.list", &json!({})).await?;
            context.show(&payload, |mut list: NodeList| {
                list.nodes.retain(|node| node.connected || !connected);
                node_table(&list.nodes, now_ms)
            })
        }
        Nodes::Describe { node } => {
            let node = find(session, node).await?;
            let payload = session
                .call("node.describe", &json!({ "nodeId": node }))
                .await?;
            context.show(&payload, |node: NodeEntry| describe(&node, now_ms))
        }
        Nodes::Pending => {
            let queue = Queue::fetch(session).await?;
            if context.common.json {
                let pending = json!({ "pending": queue.to_json(context) });
                output::line(&format!("{pending:#}"));
            } else if queue.is_empty() {
                output::line("Nothing waits for approval");
            } else {
                output::line(&queue.render(context));
            }
            Ok(())
        }
        Nodes::Approve {
            request_id,
            commands,
        } => {
            let decision = Decision::Approve(commands.as_deref());
            pending::decide(context, session, request_id, decision).await
        }
        Nodes::Reject { request_id } => {
            pending::decide(context, session, request_id, Decision::Reject).await
        }
        Nodes::Remove { node } => {
            let params = json!({ "nodeId": find(session, node).await? });
            let payload = session.call("node.pair.remove", &params).await?;
            context.show(&payload, |_: Value| "removed".to_owned())
        }
        Nodes::Rename { node, name } => {
            let params = json!({ "nodeId": find(session, node).await?, "displayName": name });
            let payload = session.call("node.rename", &params).await?;
            context.show(&payload, |_: Value| "renamed".to_owned())
        }
        Nodes::Invoke {
            node,
            command,
            params,
            invoke_timeout,
            idempotency_key,
        } => {
            let params = NodeInvokeParams {
                node_id: find(session, node).await?,
                command: command.clone(),
                params: Some(object(params, "--params")?),
                timeout_ms: Some(*invoke_timeout),
                idempotency_key: idempotency_key
                    .clone()
                    .unwrap_or_else(|| ids::uuid_v4(machine::random())),
                session_key: None,
                turn_source_channel: None,
                turn_source_to: None,
                turn_source_account_id: None,
                turn_source_thread_id: None,
            };
            let wait = Duration::from_millis(*invoke_timeout) + INVOKE_MARGIN;
            let wait = wait.max(context.timeout());
            output::json(&session.client.call("node.invoke", &params, wait).await?);
            Ok(())
        }
    }
}

async fn find(session: &Session, asked: &str) -> Result<String, Failure> {
    let payload: Box<RawValue> = session.call("node.list", &json!({})).await?;
    let list: NodeList = decode(&payload)?;
    choose(asked, &list.nodes)
}

/// By id, by name, or by the beginning of the id, in this order; never by chance.
fn choose(asked: &str, nodes: &[NodeEntry]) -> Result<String, Failure> {
    let asked = asked.trim();
    let name = |node: &&NodeEntry| {
        node.display_name
            .as_deref()
            .is_some_and(|name| name.eq_ignore_ascii_case(asked))
    };
    let ids: Vec<&str> = nodes.iter().map(|node| node.node_id.as_str()).collect();
    if ids.contains(&asked) {
        return Ok(asked.to_owned());
    }
    let named: Vec<&NodeEntry> = nodes.iter().filter(name).collect();
    match named.as_slice() {
        [] => by_prefix(asked, &ids),
        [node] => Ok(node.node_id.clone()),
        several => Err(Failure::new(
            Exit::Refused,
            format!(
                "{} nodes are called {}; give the id",
                several.len(),
                shown(asked)
            ),
        )),
    }
}

fn node_table(nodes: &[NodeEntry], now_ms: u64) -> String {
    if nodes.is_empty() {
        return "No nodes".to_owned();
    }
    let rows: Vec<Vec<String>> = nodes
        .iter()
        .map(|node| {
            vec![
                short_id(&node.node_id),
                node.display_name.clone().unwrap_or_default(),
                node.platform.clone().unwrap_or_default(),
                seen(node, now_ms),
                approval(node).to_owned(),
                node.commands.join(","),
            ]
        })
        .collect();
    let headings = ["NODE", "NAME", "PLATFORM", "SEEN", "APPROVAL", "COMMANDS"];
    output::table(&headings, &rows)
}

fn seen(node: &NodeEntry, now_ms: u64) -> String {
    if node.connected {
        return "connected".to_owned();
    }
    node.last_seen_at_ms
        .map_or_else(|| "never".to_owned(), |seen| ago(now_ms, seen))
}

fn approval(node: &NodeEntry) -> &'static str {
    match node.approval_state {
        Some(NodeApprovalState::Approved) => "approved",
        Some(NodeApprovalState::PendingApproval) => "pending",
        Some(NodeApprovalState::PendingReapproval) => "pending again",
        Some(NodeApprovalState::Unapproved) => "not approved",
        None => "",
    }
}

fn describe(node: &NodeEntry, now_ms: u64) -> String {
    let mut lines = vec![
        format!("Node:      {}", node.node_id),
        format!("Name:      {}", node.display_name.as_deref().unwrap_or("-")),
        format!("Platform:  {}", node.platform.as_deref().unwrap_or("-")),
        format!("Seen:      {}", seen(node, now_ms)),
        format!("Approval:  {}", approval(node)),
        format!("Commands:  {}", node.commands.join(", ")),
    ];
    if let Some(declared) = &node.pending_declared_commands {
        lines.push(format!("Declares:  {}", declared.join(", ")));
    }
    if let Some(request) = &node.pending_request_id {
        lines.push(format!("To approve: portcullis nodes approve {request}"));
    }
    lines
        .iter()
        .map(|line| shown(line))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, name: &str) -> NodeEntry {
        NodeEntry {
            node_id: id.to_owned(),
            display_name: Some(name.to_owned()),
            ..NodeEntry::default()
        }
    }

    #[test]
    fn a_node_is_found_by_id_name_or_beginning_and_never_by_chance() {
        let nodes = [
            node("aaaa1", "build"),
            node("aaaa2", "Lab"),
            node("bbbb3", "lab"),
        ];
        assert_eq!(choose("aaaa2", &nodes).unwrap(), "aaaa2");
        assert_eq!(choose("BUILD", &nodes).unwrap(), "aaaa1");
        assert_eq!(choose("bbbb", &nodes).unwrap(), "bbbb3");
        assert!(choose("lab", &nodes).is_err());
        assert!(choose("aaaa", &nodes).is_err());
        assert_eq!(choose("nobody", &nodes).unwrap(), "nobody");
    }

    #[test]
    fn an_empty_list_says_so() {
        assert_eq!(node_table(&[], 0), "No nodes");
    }
}
