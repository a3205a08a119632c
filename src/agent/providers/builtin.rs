//! The built-in command agent: it takes `/` commands literally and has no opinion about anything else.

use serde_json::json;

use super::{Provider, ProviderFuture, Say, Step, StepInput, TurnItem};
use crate::agent::command::{self, Command, CommandRefusal};
use crate::agent::render;
use crate::agent::transcript::{ToolCall, ToolResult};

/// The answer to words, when no model is attached.
pub const NO_MODEL: &str = "No model is configured, so I cannot answer free text. I carry out commands: try /help or \
/run uname -a.\nOpenClaw's keys for a model are `agents.defaults.model.primary` (as `provider/model`) and \
`models.providers.<provider>` (`baseUrl`, `apiKey`, `api`, `models`) in openclaw.json. This build has no model client \
yet, so setting them changes nothing here.";

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Builtin;

/// What the agent does about a message.
enum Act {
    Say(String),
    Call(&'static str, serde_json::Value),
}

impl Provider for Builtin {
    fn names(&self) -> (&str, &str) {
        ("portcullis", "commands")
    }

    fn history_entries_max(&self) -> usize {
        0
    }

    fn step<'a>(&'a self, input: StepInput<'a>, say: Say) -> ProviderFuture<'a> {
        Box::pin(async move {
            // One command is one tool call at most: its result is the answer.
            let act = match input.turn.last() {
                Some(TurnItem::Result(ToolResult { text, .. })) => Act::Say(text.clone()),
                Some(TurnItem::Said(_) | TurnItem::Called(_)) => return Ok(Step::default()),
                None => act(&input),
            };
            match act {
                Act::Say(text) => {
                    say.text(text).await;
                    Ok(Step::default())
                }
                Act::Call(name, arguments) => {
                    let call = ToolCall {
                        tool_call_id: format!("{}:1", input.run_id),
                        name: name.to_owned(),
                        arguments,
                    };
                    Ok(Step {
                        tool_calls: vec![call],
                    })
                }
            }
        })
    }
}

fn act(input: &StepInput<'_>) -> Act {
    if !input.commands {
        return Act::Say(NO_MODEL.to_owned());
    }
    match command::parse(input.message) {
        Ok(Command::Text) => Act::Say(NO_MODEL.to_owned()),
        Ok(Command::Help) => Act::Say(command::help()),
        Ok(Command::Nodes) => Act::Call("nodes", json!({})),
        Ok(Command::Run(rest)) => with_nodes(input, |nodes| {
            let found = command::target(rest, nodes)?;
            Ok(match found.node {
                Some(node) => Act::Call("exec", json!({"command": found.command, "node": node})),
                None => Act::Call("exec", json!({"command": found.command})),
            })
        }),
        Ok(Command::Which(rest)) => with_nodes(input, |nodes| {
            let (node, bins) = command::which_target(rest, nodes)?;
            Ok(match node {
                Some(node) => Act::Call("which", json!({"bins": bins, "node": node})),
                None => Act::Call("which", json!({"bins": bins})),
            })
        }),
        Err(refusal) => Act::Say(refusal.to_string()),
    }
}

/// Without the list of nodes a name cannot be told from a command, so nothing is run.
fn with_nodes(
    input: &StepInput<'_>,
    read: impl FnOnce(&[crate::agent::tools::Node]) -> Result<Act, CommandRefusal>,
) -> Act {
    match input.nodes {
        Ok(nodes) => read(nodes).unwrap_or_else(|refusal| Act::Say(refusal.to_string())),
        Err(refusal) => Act::Say(render::refusal(refusal)),
    }
}
