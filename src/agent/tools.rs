//! What an agent may ask of the world outside it: three tools, behind one trait.
//!
//! The agent decides what to ask; whoever implements `Tools` (the hub) decides whether the requester may have it,
//! records it and carries it out. Nothing here knows of nodes' sessions, sockets or policy.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::base::limits;
use crate::nodes::{Category, Dispatched};

use super::render;
use super::session_key::SessionKey;

/// The future that a tool returns. Dropping it means that nobody waits any more: the implementation then cancels
/// what it started.
pub type ToolFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, ToolRefusal>> + Send + 'a>>;

/// Who a turn is run for. Opaque here: only the implementation of `Tools` looks inside, and it alone decides what
/// this requester may do (decision 25).
#[derive(Clone)]
pub struct Requester(Arc<dyn Any + Send + Sync>);

impl Requester {
    pub fn new(inner: impl Any + Send + Sync) -> Self {
        Self(Arc::new(inner))
    }

    /// What was put in, if it is a `T`.
    pub fn inner<T: Any>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }
}

impl fmt::Debug for Requester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Requester(..)")
    }
}

/// The tools of an agent.
pub trait Tools: Send + Sync {
    /// The nodes that the requester may see, in the order to show them, each with whether it would run a command now.
    fn nodes<'a>(&'a self, requester: &'a Requester) -> ToolFuture<'a, Vec<Node>>;

    /// Runs a command on a node and waits for its result. `updates` may be fed while it runs and may be ignored.
    fn exec<'a>(
        &'a self,
        requester: &'a Requester,
        call: ExecCall,
        updates: Updates,
    ) -> ToolFuture<'a, ExecOutcome>;

    /// Asks a node where programs are.
    fn which<'a>(
        &'a self,
        requester: &'a Requester,
        call: WhichCall,
    ) -> ToolFuture<'a, WhichOutcome>;
}

/// A node as the requester may see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    pub node_id: String,
    /// The node's own words: may equal another node's, may be empty, may imitate a command.
    pub display_name: String,
    pub platform: Option<String>,
    /// It has a session now.
    pub online: bool,
    /// It declares `system.run` and its surface is approved.
    pub callable: bool,
    /// Policy lets this requester run commands there.
    pub permitted: bool,
    /// Why one of the three is false: a public sentence.
    pub reason: Option<String>,
}

impl Node {
    /// Would run a command now.
    pub fn ready(&self) -> bool {
        self.online && self.callable && self.permitted
    }
}

/// Whose words a tool call is made of. This is all that the agent knows about approval; the rest is the requester's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallOrigin {
    /// The requester typed this very command in this message, and the built-in agent took it literally.
    Typed,
    /// A model asked for it, or the message was relayed and not typed by the requester.
    Derived,
}

/// The turn that a tool call belongs to, for the audit log and the node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CallContext {
    pub session_key: SessionKey,
    pub run_id: String,
    pub origin: CallOrigin,
}

/// The argument list that a node is sent for a text: it goes through a login shell, as with the official exec tool.
pub fn shell_argv(text: &str) -> Vec<String> {
    ["/bin/sh", "-lc", text].map(str::to_owned).to_vec()
}

/// One command for one node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExecCall {
    pub context: CallContext,
    /// The node's full id, already resolved; `None` only when the implementation is to choose.
    pub node: Option<String>,
    /// A text for the node's shell.
    pub command: String,
    pub cwd: Option<String>,
    /// How long the command may run on the node.
    pub timeout: Duration,
}

/// What came back from the node. The output is the node's word and is shown as such.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ExecOutcome {
    pub node_id: String,
    pub node_name: String,
    /// Absent when a signal ended it or the node did not say.
    pub exit_code: Option<i64>,
    pub stdout: String,
    pub stderr: String,
    pub timed_out: bool,
    /// The node or the Gateway cut the output before it came here.
    pub truncated: bool,
    /// What the node says went wrong besides the exit code (no such program, cannot start it).
    pub error: Option<String>,
    pub queue_ms: u64,
    pub execution_ms: u64,
    pub total_ms: u64,
}

/// Where programs are on one node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WhichCall {
    pub context: CallContext,
    pub node: Option<String>,
    pub bins: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WhichOutcome {
    pub node_id: String,
    pub node_name: String,
    /// Each program asked for, with its path if the node has it.
    pub found: Vec<(String, Option<String>)>,
    pub total_ms: u64,
}

/// A tool call that was not carried out, or not to its end: the wire's code, the sentence that the chat shows and
/// what the operator can change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ToolRefusal {
    pub code: Cow<'static, str>,
    pub public: String,
    pub remedy: Option<String>,
    /// Whether the node may have begun with what was asked.
    pub dispatched: Dispatched,
    pub category: Category,
}

impl ToolRefusal {
    /// One that was not sent anywhere.
    pub fn new(code: &'static str, public: impl Into<String>) -> Self {
        Self {
            code: Cow::Borrowed(code),
            public: public.into(),
            remedy: None,
            dispatched: Dispatched::No,
            category: match code {
                "FORBIDDEN" => Category::Permission,
                "UNAVAILABLE" => Category::Network,
                _ => Category::Protocol,
            },
        }
    }

    #[must_use]
    pub fn told(mut self, dispatched: Dispatched, category: Category) -> Self {
        (self.dispatched, self.category) = (dispatched, category);
        self
    }

    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

/// Where a running command's output may be shown before its result is there. Bounded: what is not taken in time, or
/// comes past `limits::TOOL_UPDATES_BYTES_MAX`, is dropped here and still stands in the result.
#[derive(Clone, Debug, Default)]
pub struct Updates(Arc<Mutex<UpdatesState>>, Arc<tokio::sync::Notify>);

#[derive(Debug, Default)]
struct UpdatesState {
    text: String,
    bytes_total: usize,
}

impl Updates {
    /// Shows a piece of output; false if it was not shown in full.
    pub fn output(&self, chunk: &str) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = limits::TOOL_UPDATES_BYTES_MAX.saturating_sub(state.bytes_total);
        let fits = render::head(chunk, room);
        // Once something was dropped nothing follows it: a hole in the middle would look like the whole output.
        state.bytes_total = if fits.len() < chunk.len() {
            limits::TOOL_UPDATES_BYTES_MAX
        } else {
            state.bytes_total + fits.len()
        };
        state.text.push_str(fits);
        drop(state);
        self.1.notify_one();
        fits.len() == chunk.len()
    }

    /// Waits for output and takes all there is. Cancel-safe: nothing is taken before it returns.
    pub(super) async fn next(&self) -> String {
        loop {
            if let Some(text) = self.take() {
                return text;
            }
            self.1.notified().await;
        }
    }

    pub(super) fn take(&self) -> Option<String> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = std::mem::take(&mut state.text);
        (!text.is_empty()).then_some(text)
    }
}

/// What a provider may offer to its model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ToolSpec {
    pub name: &'static str,
    pub description: &'static str,
    /// The JSON schema of the arguments.
    pub parameters: &'static str,
}

/// The tools that a turn offers.
pub const SPECS: &[ToolSpec] = &[
    ToolSpec {
        name: "nodes",
        description: "List the nodes and whether each can run a command now.",
        parameters: r#"{"type":"object","properties":{},"additionalProperties":false}"#,
    },
    ToolSpec {
        name: "exec",
        description: "Run a shell command on a node and return its output.",
        parameters: r#"{"type":"object","required":["command"],"properties":{"command":{"type":"string"},"node":{"type":"string"},"cwd":{"type":"string"},"timeoutMs":{"type":"integer","minimum":1}},"additionalProperties":false}"#,
    },
    ToolSpec {
        name: "which",
        description: "Find where programs are on a node.",
        parameters: r#"{"type":"object","required":["bins"],"properties":{"bins":{"type":"array","items":{"type":"string"}},"node":{"type":"string"}},"additionalProperties":false}"#,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_goes_through_a_login_shell_as_recorded() {
        assert_eq!(
            shell_argv("echo from-node; uname -s"),
            ["/bin/sh", "-lc", "echo from-node; uname -s"]
        );
    }

    #[test]
    fn a_requester_shows_nothing_and_gives_back_only_its_own_type() {
        let requester = Requester::new(7_u32);
        assert_eq!(requester.inner::<u32>(), Some(&7));
        assert_eq!(requester.inner::<u64>(), None);
        assert_eq!(format!("{requester:?}"), "Requester(..)");
    }

    #[test]
    fn updates_are_bounded_on_a_character() {
        let updates = Updates::default();
        let chunk = "é".repeat(limits::TOOL_UPDATES_BYTES_MAX);
        updates.output("x");
        updates.output(&chunk);
        updates.output("more");
        let shown = updates.take().unwrap();
        assert!(shown.len() <= limits::TOOL_UPDATES_BYTES_MAX);
        assert!(shown.starts_with("xé") && shown.ends_with('é'));
        assert_eq!(updates.take(), None);
    }

    #[test]
    fn every_schema_is_json() {
        for spec in SPECS {
            serde_json::from_str::<serde_json::Value>(spec.parameters).unwrap();
        }
    }
}
