//! `nodes …`.

use std::io::Write;
use std::pin::pin;
use std::time::Duration;

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::args::Nodes;
use super::devices::by_prefix;
use super::exit::{Exit, Failure};
use super::gateway::object;
use super::nodes_view as view;
use super::output::{self, ago};
use super::pending::{self, Decision, Queue};
use super::session::{Context, Session, decode};
use crate::agent::render::printable;
use crate::auth::permission;
use crate::auth::scope::Scope;
use crate::base::ids;
use crate::client::Event;
use crate::client::call::shown;
use crate::client::credentials::Caller;
use crate::machine;
use crate::nodes::{Explanation, Report, is_reserved};
use crate::rpc::types::node::{
    NodeApprovalState, NodeEntry, NodeInvokeParams, NodeInvokeResult, NodeList, NodeProgressEvent,
};

/// What the Gateway may add to the node's own time.
const INVOKE_MARGIN: Duration = Duration::from_secs(5);

pub async fn run(context: &Context, command: &Nodes) -> Result<(), Failure> {
    let listens = matches!(command, Nodes::Invoke { .. }) && !context.common.json;
    let caps: &[&str] = if listens {
        &[NodeProgressEvent::NAME]
    } else {
        &[]
    };
    let mut session = Session::open_with(context, Caller::Call, &scopes(command), caps).await?;
    let done = act(context, &mut session, command).await;
    session.close().await;
    done
}

fn scopes(command: &Nodes) -> Vec<Scope> {
    match command {
        Nodes::List { .. } => vec![Scope::Read, Scope::Pairing],
        Nodes::Pending => vec![Scope::Pairing],
        Nodes::Status { .. } | Nodes::Describe { .. } => vec![Scope::Read],
        // Approving commands takes the scope that running them takes (S3).
        Nodes::Approve { .. } => vec![Scope::Pairing, Scope::Write, Scope::Admin],
        Nodes::Reject { .. } => vec![Scope::Pairing],
        Nodes::Remove { .. } | Nodes::Rename { .. } => vec![Scope::Read, Scope::Pairing],
        // An explanation is for the one who would invoke.
        Nodes::Invoke { command, .. } | Nodes::Explain { command, .. } => {
            let mut scopes = vec![Scope::Read, Scope::Write, Scope::Approvals];
            let scope = match is_reserved(command) {
                true => Scope::Admin,
                false => permission::scope_of_command(command),
            };
            if !scopes.contains(&scope) {
                scopes.push(scope);
            }
            scopes
        }
    }
}

async fn act(context: &Context, session: &mut Session, command: &Nodes) -> Result<(), Failure> {
    let now_ms = machine::now_ms();
    match command {
        Nodes::List { commands } => {
            let payload = session.call("node.list", &json!({})).await?;
            let report = report(session, None).await?;
            if context.common.json {
                output::line(&format!("{:#}", with_report(&payload, report.as_ref())?));
                return Ok(());
            }
            let queue = Queue::fetch(session).await?;
            if !queue.is_empty() {
                output::line(&format!("Pending\n{}\n", queue.render(context)));
            }
            let list: NodeList = decode(&payload)?;
            let table = match &report {
                Some(report) if *commands => view::command_tables(&list.nodes, report, now_ms),
                report => view::node_table(&list.nodes, report.as_ref(), now_ms),
            };
            output::line(&table);
            Ok(())
        }
        Nodes::Explain {
            node,
            command,
            params,
        } => {
            let node = find(session, node).await?;
            let params = object(params, "--params")?;
            let params = json!({ "nodeId": node, "command": command, "params": params });
            let payload = session.call("portcullis.nodes.explain", &params).await?;
            context.show(&payload, |found: Explanation| view::explanation(&found))
        }
        Nodes::Status { connected } => {
            let payload = session.call("node.list", &json!({})).await?;
            let mut payload: Value = decode(&payload)?;
            if let Some(nodes) = payload.get_mut("nodes").and_then(Value::as_array_mut) {
                nodes.retain(|node| node["connected"] == true || !connected);
            }
            let payload = serde_json::value::to_raw_value(&payload)
                .map_err(|error| Failure::new(Exit::Software, error.to_string()))?;
            let report = report(session, None).await?;
            context.show(&payload, |list: NodeList| {
                view::node_table(&list.nodes, report.as_ref(), now_ms)
            })
        }
        Nodes::Describe { node } => {
            let node = find(session, node).await?;
            let payload = session
                .call("node.describe", &json!({ "nodeId": node }))
                .await?;
            let report = report(session, Some(&node)).await?;
            if context.common.json {
                output::line(&format!("{:#}", with_report(&payload, report.as_ref())?));
                return Ok(());
            }
            let node: NodeEntry = decode(&payload)?;
            output::line(&view::describe(&node, report.as_ref(), now_ms));
            Ok(())
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
            let client = session.client.clone();
            let mut answer = pin!(client.call("node.invoke", &params, wait));
            // What the command prints comes before the answer, if the node and the Gateway are ours.
            let answer = loop {
                tokio::select! {
                    biased;
                    Ok(event) = session.next_event() => show_progress(&event),
                    answer = &mut answer => break answer,
                }
            };
            context.show(&answer?, |found: NodeInvokeResult<'static>| {
                view::invoked(&found)
            })
        }
    }
}

/// Shows what a command printed, apart from its result.
fn show_progress(event: &Event) {
    if event.name != NodeProgressEvent::NAME {
        return;
    }
    if let Some(NodeProgressEvent { chunk, .. }) = event.decode() {
        let mut to = std::io::stderr().lock();
        let _ = to.write_all(printable(&chunk).as_bytes());
        let _ = to.flush();
    }
}

pub async fn find(session: &Session, asked: &str) -> Result<String, Failure> {
    let payload: Box<RawValue> = session.call("node.list", &json!({})).await?;
    let list: NodeList = decode(&payload)?;
    choose(asked, &list.nodes)
}

/// By id, by name, or by the beginning of the id, in this order; never by chance.
fn choose(asked: &str, nodes: &[NodeEntry]) -> Result<String, Failure> {
    let asked = asked.trim();
    let name = |node: &&NodeEntry| {
        node.client
            .display_name
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

pub fn seen(node: &NodeEntry, now_ms: u64) -> String {
    if node.connected {
        return "connected".to_owned();
    }
    node.last_seen_at_ms
        .map_or_else(|| "never".to_owned(), |seen| ago(now_ms, seen))
}

pub fn approval(node: &NodeEntry) -> &'static str {
    match node.approval_state {
        Some(NodeApprovalState::Approved) => "approved",
        Some(NodeApprovalState::PendingApproval) => "pending",
        Some(NodeApprovalState::PendingReapproval) => "pending again",
        Some(NodeApprovalState::Unapproved) => "not approved",
        None => "",
    }
}

/// What our own Gateway says beyond the protocol; `None` from one that has no such method. The reference's asks for
/// `operator.admin` before it says so; ours never does for this one.
async fn report(session: &Session, node: Option<&str>) -> Result<Option<Report>, Failure> {
    let params = node.map_or_else(|| json!({}), |node| json!({ "nodeId": node }));
    match session.call("portcullis.nodes.report", &params).await {
        Ok(payload) => decode(&payload).map(Some),
        Err(failure)
            if failure.sentence.starts_with("unknown method")
                || failure.sentence == "missing scope: operator.admin" =>
        {
            Ok(None)
        }
        Err(failure) => Err(failure),
    }
}

/// A payload with nodes in it, or one node, with what the report says of each beside it.
fn with_report(payload: &RawValue, report: Option<&Report>) -> Result<Value, Failure> {
    let mut value: Value = decode(payload)?;
    let attach = |node: &mut Value| {
        let id = node["nodeId"].as_str().unwrap_or_default();
        let own = report.and_then(|report| view::of_node(report, id));
        if let (Some(own), Some(node)) = (own.map(|own| json!(own)), node.as_object_mut()) {
            node.insert("report".to_owned(), own);
        }
    };
    match value.get_mut("nodes").and_then(Value::as_array_mut) {
        Some(nodes) => nodes.iter_mut().for_each(attach),
        None => attach(&mut value),
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::types::client::ClientSummary;

    fn node(id: &str, name: &str) -> NodeEntry {
        NodeEntry {
            node_id: id.to_owned(),
            client: ClientSummary {
                display_name: Some(name.to_owned()),
                ..ClientSummary::default()
            },
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
}
