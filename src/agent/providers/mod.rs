//! Where models attach: one trait, and the built-in agent that needs no model.
//!
//! In: a message, what was said before, the tools. Out: text as it comes, then the tool calls that the provider
//! wants carried out before it goes on.
//! Attacker controls: a model's answer is as untrusted as the web that it has read. Bounds: the turn caps text,
//! steps and calls. Errors: `ProviderError`.

mod builtin;

use std::future::Future;
use std::pin::Pin;

use tokio::sync::mpsc;

use super::session_key::SessionKey;
use super::tools::{Node, ToolRefusal, ToolSpec};
use super::transcript::{Stored, ToolCall, ToolResult};

pub use builtin::{Builtin, NO_MODEL};

pub type ProviderFuture<'a> =
    Pin<Box<dyn Future<Output = Result<Step, ProviderError>> + Send + 'a>>;

/// Something that answers.
pub trait Provider: Send + Sync {
    /// The provider's and the model's names, as the wire's events and the transcript show them.
    fn names(&self) -> (&str, &str);

    /// How many earlier entries of the transcript it wants to see.
    fn history_entries_max(&self) -> usize;

    /// Answers, or goes on after its tool calls were carried out. Dropping the future stops it.
    fn step<'a>(&'a self, input: StepInput<'a>, say: Say) -> ProviderFuture<'a>;
}

/// All that a provider is told.
#[derive(Clone, Copy)]
pub struct StepInput<'a> {
    pub session_key: &'a SessionKey,
    pub run_id: &'a str,
    pub message: &'a str,
    /// Whether a message that begins with `/` is a command.
    pub commands: bool,
    /// Earlier turns, oldest first.
    pub history: &'a [Stored],
    /// What this turn has done so far, in order.
    pub turn: &'a [TurnItem],
    pub tools: &'a [ToolSpec],
    /// The nodes that the requester may see.
    pub nodes: Result<&'a [Node], &'a ToolRefusal>,
}

/// One thing that a turn did.
#[derive(Clone, PartialEq, Debug)]
pub enum TurnItem {
    Said(String),
    Called(ToolCall),
    Result(ToolResult),
}

/// What a step came to. Without tool calls the turn is over.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Step {
    pub tool_calls: Vec<ToolCall>,
}

/// Takes a provider's words as they come.
#[derive(Clone, Debug)]
pub struct Say(pub(super) mpsc::Sender<String>);

impl Say {
    /// Says something; waits while the turn is behind. Words for a turn that is over go nowhere.
    pub async fn text(&self, text: impl Into<String>) {
        let _ = self.0.send(text.into()).await;
    }
}

/// The provider failed. The sentence is public: no key, no address, no raw answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProviderError {
    pub public: String,
}
