//! What was said in a session, as the agent writes it and reads it back. Where it is kept is someone else's matter.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::session_key::SessionKey;

/// One entry of a transcript.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The run that it belongs to.
    pub run_id: String,
    pub timestamp_ms: u64,
    pub body: Body,
}

/// What an entry says.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Body {
    User {
        text: String,
        idempotency_key: String,
    },
    Assistant {
        text: String,
        provider: String,
        model: String,
        stop_reason: String,
    },
    ToolCall(ToolCall),
    ToolResult(ToolResult),
    /// The Gateway's own words about a turn without an answer: it failed, or was stopped.
    Note {
        text: String,
    },
}

/// A tool call as a provider asks for it. Nothing in it is trusted.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ToolCall {
    /// Unique within the turn.
    pub tool_call_id: String,
    pub name: String,
    pub arguments: Value,
}

/// What came of a tool call, for the model, the chat and the wire.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ToolResult {
    pub tool_call_id: String,
    pub name: String,
    pub text: String,
    pub is_error: bool,
    pub details: Value,
}

/// An entry with its place.
#[derive(Clone, PartialEq, Debug)]
pub struct Stored {
    /// Counts from 1 within its session.
    pub seq: u64,
    /// Unique across Gateways.
    pub id: String,
    pub entry: Entry,
}

/// The newest entries of a session, oldest first.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Page {
    pub entries: Vec<Stored>,
    /// How many entries the session has in all.
    pub total: u64,
}

/// What is known of a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Session {
    pub key: SessionKey,
    pub session_id: String,
    pub created_at_ms: u64,
    pub updated_at_ms: u64,
}

/// Where transcripts are kept. The calls are short (one row, or one page of rows) and may block for as long as that
/// takes: a message is acknowledged only after `append` has returned.
pub trait Transcript: Send + Sync {
    /// The session of a key, if anything was ever said in it.
    fn session(&self, key: &SessionKey) -> Result<Option<Session>, TranscriptError>;

    /// The session of a key, created if it does not exist.
    fn open(&self, key: &SessionKey, now_ms: u64) -> Result<Session, TranscriptError>;

    /// Adds an entry for good, to a session that was opened.
    fn append(&self, key: &SessionKey, entry: &Entry) -> Result<Stored, TranscriptError>;

    /// Whether the session holds a user's message with this idempotency key, from this process or an earlier one.
    fn has_message(&self, key: &SessionKey, idempotency_key: &str)
    -> Result<bool, TranscriptError>;

    /// The newest `limit` entries, having skipped `offset` newer ones.
    fn page(&self, key: &SessionKey, limit: usize, offset: usize) -> Result<Page, TranscriptError>;

    /// The sessions, most recently used first.
    fn sessions(&self, limit: usize) -> Result<Vec<Session>, TranscriptError>;
}

/// The transcript could not be read or written. The detail is for the log, not for the peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TranscriptError {
    pub detail: String,
}

impl fmt::Display for TranscriptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "transcript: {}", self.detail)
    }
}

impl std::error::Error for TranscriptError {}

#[cfg(test)]
mod tests {
    use super::super::stand_in::MemoryTranscript;
    use super::*;

    #[test]
    fn pages_count_from_the_newest() {
        let transcript = MemoryTranscript::default();
        let key = SessionKey::main();
        assert_eq!(transcript.session(&key).unwrap(), None);
        transcript.open(&key, 0).unwrap();
        for n in 0..5 {
            let body = Body::Note {
                text: n.to_string(),
            };
            let entry = Entry {
                run_id: "r".to_owned(),
                timestamp_ms: n,
                body,
            };
            assert_eq!(transcript.append(&key, &entry).unwrap().seq, n + 1);
        }
        let seqs = |limit, offset| -> Vec<u64> {
            let page = transcript.page(&key, limit, offset).unwrap();
            assert_eq!(page.total, 5);
            page.entries.iter().map(|stored| stored.seq).collect()
        };
        assert_eq!(seqs(2, 0), [4, 5]);
        assert_eq!(seqs(2, 2), [2, 3]);
        assert_eq!(seqs(9, 4), [1]);
        assert_eq!(seqs(9, 9), [0_u64; 0]);
        assert_eq!(transcript.sessions(9).unwrap().len(), 1);
    }

    #[test]
    fn an_entry_survives_its_json() {
        let entry = Entry {
            run_id: "r".to_owned(),
            timestamp_ms: 7,
            body: Body::ToolCall(ToolCall {
                tool_call_id: "c".to_owned(),
                name: "exec".to_owned(),
                arguments: serde_json::json!({"command": "ls"}),
            }),
        };
        let text = serde_json::to_string(&entry).unwrap();
        assert_eq!(serde_json::from_str::<Entry>(&text).unwrap(), entry);
    }
}
