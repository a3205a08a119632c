//! The agent's tools, done by the hub. What a requester may do is decided there, not by the agent.

use std::sync::Arc;

use crate::agent::AGENT_ID;
use crate::agent::tools::{
    CallOrigin, ExecCall, ExecOutcome, Node, Requester, ToolFuture, ToolRefusal, Tools, Updates,
    WhichCall, WhichOutcome, shell_argv,
};
use crate::audit::Actor;
use crate::auth::scope::Scope;
use crate::base::{DeviceId, Refusal};
use crate::hub::{Caller, ExecRequest, Hub, Listener, NotExecuted};
use crate::nodes::{Dispatched, Refused};

pub(super) struct HubTools(Arc<Hub>);

impl HubTools {
    pub(super) fn new(hub: Arc<Hub>) -> Self {
        Self(hub)
    }

    /// The node of a call, by its full id; without one, the only node that could run it.
    fn node(&self, id: Option<&str>) -> Result<(DeviceId, String), ToolRefusal> {
        let nodes = self.0.node_views();
        let found = match id {
            Some(id) => nodes.into_iter().find(|node| node.id.as_str() == id),
            None => {
                let mut callable = nodes
                    .into_iter()
                    .filter(|node| node.callable.iter().any(|c| c == "system.run"));
                match (callable.next(), callable.next()) {
                    (Some(only), None) => Some(only),
                    _ => None,
                }
            }
        };
        found
            .map(|node| (node.id, node.name))
            .ok_or_else(|| refusal(&Refused::UnknownNode, "", Dispatched::No))
    }
}

impl Tools for HubTools {
    fn nodes<'a>(&'a self, requester: &'a Requester) -> ToolFuture<'a, Vec<Node>> {
        Box::pin(async move {
            let caller = caller(requester)?;
            let permitted = caller.scopes.allows(Scope::Write);
            Ok(self
                .0
                .node_list()
                .into_iter()
                .map(|entry| {
                    let callable = entry.commands.iter().any(|command| command == "system.run");
                    let why_not = DeviceId::parse(&entry.node_id)
                        .and_then(|id| self.0.why_not(&id, "system.run"));
                    Node {
                        display_name: entry.client.display_name.unwrap_or_default(),
                        platform: entry.client.platform,
                        online: entry.connected,
                        callable,
                        permitted,
                        reason: why_not.map(|refused| {
                            let (said, remedy) = (
                                refused.public_on(&entry.node_id),
                                refused.remedy_on(&entry.node_id),
                            );
                            format!("{said} ({remedy})")
                        }),
                        node_id: entry.node_id,
                    }
                })
                .collect())
        })
    }

    fn exec<'a>(
        &'a self,
        requester: &'a Requester,
        call: ExecCall,
        updates: Updates,
    ) -> ToolFuture<'a, ExecOutcome> {
        Box::pin(async move {
            let caller = caller(requester)?;
            let (node, node_name) = self.node(call.node.as_deref())?;
            let executed = self
                .0
                .exec(ExecRequest {
                    node: node.clone(),
                    argv: shell_argv(&call.command),
                    cwd: call.cwd,
                    timeout: call.timeout,
                    agent_id: AGENT_ID.to_owned(),
                    session_key: call.context.session_key.as_str().to_owned(),
                    typed: call.context.origin == CallOrigin::Typed,
                    actor: turn(
                        caller,
                        &call.context.run_id,
                        call.context.session_key.as_str(),
                    ),
                    caller: caller.clone(),
                    listener: Some(Listener::new(move |_, chunk| updates.output(chunk))),
                })
                .await
                .map_err(|failed| {
                    let NotExecuted {
                        refused,
                        dispatched,
                    } = &failed;
                    refusal(refused, node.as_str(), *dispatched).with_remedy(failed.remedy(&node))
                })?;
            let output = executed.output;
            let ms = |duration: std::time::Duration| {
                u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
            };
            Ok(ExecOutcome {
                node_id: node.as_str().to_owned(),
                node_name,
                exit_code: output.exit_code,
                stdout: output.stdout,
                stderr: output.stderr,
                timed_out: output.timed_out,
                truncated: output.truncated,
                error: output.error,
                queue_ms: ms(executed.timing.queue),
                execution_ms: ms(executed.timing.execution),
                total_ms: ms(executed.timing.total),
            })
        })
    }

    fn which<'a>(
        &'a self,
        requester: &'a Requester,
        call: WhichCall,
    ) -> ToolFuture<'a, WhichOutcome> {
        Box::pin(async move {
            let caller = caller(requester)?;
            let started = std::time::Instant::now();
            let (node, node_name) = self.node(call.node.as_deref())?;
            let actor = turn(
                caller,
                &call.context.run_id,
                call.context.session_key.as_str(),
            );
            let mut paths = self
                .0
                .which(&node, &call.bins, caller, actor)
                .await
                .map_err(|refused| refusal(&refused, node.as_str(), refused.dispatched()))?;
            let found = call
                .bins
                .into_iter()
                .map(|bin| {
                    let path = paths.remove(&bin);
                    (bin, path)
                })
                .collect();
            Ok(WhichOutcome {
                node_id: node.as_str().to_owned(),
                node_name,
                found,
                total_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            })
        })
    }
}

/// The operator for whom a turn runs; nobody else can be a requester here.
fn caller(requester: &Requester) -> Result<&Caller, ToolRefusal> {
    requester
        .inner::<Caller>()
        .ok_or_else(|| ToolRefusal::new("FORBIDDEN", "this turn has no operator to act for"))
}

fn turn(caller: &Caller, run_id: &str, session_key: &str) -> Actor {
    Actor::Agent {
        agent: AGENT_ID.into(),
        session: session_key.into(),
        run: run_id.to_owned(),
        by: caller.key().into(),
    }
}

fn refusal(refused: &Refused, node: &str, dispatched: Dispatched) -> ToolRefusal {
    let code = refused.detail_code().unwrap_or_else(|| refused.code());
    ToolRefusal::new(code, refused.public_on(node))
        .with_remedy(refused.remedy_on(node))
        .told(dispatched, refused.category())
}
