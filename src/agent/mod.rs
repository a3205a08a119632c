//! The agent: a session, its turns, the tools that a turn may use, and where models attach.
//!
//! In: a message for a session and an opaque requester. Out: ordered `Event`s, tool calls through the `Tools` trait,
//! entries for a `Transcript`. It knows nothing of the hub, of sockets or of who may do what.
//! Attacker controls: messages, a node's names and output, a model's answer and its tool calls.
//! Bounds: `limits`, section agent. Errors: `SendRefusal` for a message, `ToolRefusal` for a tool call, an `Error`
//! event for a turn.

pub mod command;
pub mod event;
pub mod payload;
pub mod providers;
pub mod render;
pub mod run;
pub mod session_key;
pub mod tools;
pub mod transcript;
mod turn;
pub mod wire;

pub use event::{Entrance, Event, EventKind, EventSink, RunFacts};
pub use run::{Accepted, Agent, Finish, InFlight, RunState, SendRefusal, Settings, TurnRequest};
pub use session_key::{AGENT_ID, MAIN_KEY, SessionKey, SessionKeyError};
pub use tools::{Requester, Tools};
pub use transcript::Transcript;
pub use turn::{Outcome, Status};

#[cfg(test)]
mod stand_in;
#[cfg(test)]
mod tests;
