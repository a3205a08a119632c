//! The agent's transcript, kept in the store.

use std::sync::Arc;

use crate::agent::transcript::{Body, Entry, Page, Session, Stored, Transcript, TranscriptError};
use crate::agent::{AGENT_ID, SessionKey};
use crate::base::ids::uuid_v4;
use crate::machine;
use crate::store::{Appended, ChatMessage, ChatSession, NewMessage, Store};

pub(super) struct StoredTranscript(Arc<Store>);

impl StoredTranscript {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self(store)
    }
}

impl Transcript for StoredTranscript {
    fn session(&self, key: &SessionKey) -> Result<Option<Session>, TranscriptError> {
        Ok(self
            .0
            .session(key.as_str())
            .map_err(fault)?
            .and_then(session))
    }

    fn open(&self, key: &SessionKey, now_ms: u64) -> Result<Session, TranscriptError> {
        let known = self.0.session(key.as_str()).map_err(fault)?;
        let record = ChatSession {
            key: key.as_str().to_owned(),
            session_id: known.as_ref().map_or_else(
                || uuid_v4(machine::random()),
                |known| known.session_id.clone(),
            ),
            agent_id: AGENT_ID.to_owned(),
            created_at_ms: known.map_or(now_ms, |known| known.created_at_ms),
            updated_at_ms: now_ms,
        };
        self.0
            .record(|records| records.put_session(&record))
            .map_err(fault)?;
        session(record).ok_or_else(|| broken("a session key that cannot be read"))
    }

    fn append(&self, key: &SessionKey, entry: &Entry) -> Result<Stored, TranscriptError> {
        let message = NewMessage {
            session_key: key.as_str().to_owned(),
            run_id: Some(entry.run_id.clone()),
            role: role(&entry.body).to_owned(),
            content: serde_json::to_string(entry).map_err(|error| broken(&error.to_string()))?,
            ts_ms: entry.timestamp_ms,
            idempotency_key: match &entry.body {
                Body::User {
                    idempotency_key, ..
                } => Some(idempotency_key.clone()),
                _ => None,
            },
        };
        let appended = self
            .0
            .record(|records| records.append_message(&message))
            .map_err(fault)?;
        let (Appended::New(id) | Appended::Known(id)) = appended;
        let (_, total) = self.0.message_page(key.as_str(), 0, 0).map_err(fault)?;
        Ok(Stored {
            seq: total,
            id: message_id(key, id),
            entry: entry.clone(),
        })
    }

    fn has_message(
        &self,
        key: &SessionKey,
        idempotency_key: &str,
    ) -> Result<bool, TranscriptError> {
        self.0
            .has_message(key.as_str(), idempotency_key)
            .map_err(fault)
    }

    fn page(&self, key: &SessionKey, limit: usize, offset: usize) -> Result<Page, TranscriptError> {
        let (messages, total) = self
            .0
            .message_page(key.as_str(), limit, offset)
            .map_err(fault)?;
        let newest = total.saturating_sub(offset as u64);
        let first = newest.saturating_sub(messages.len() as u64) + 1;
        let entries = messages
            .into_iter()
            .zip(first..)
            .map(|(message, seq)| stored(key, &message, seq))
            .collect::<Result<_, _>>()?;
        Ok(Page { entries, total })
    }

    fn sessions(&self, limit: usize) -> Result<Vec<Session>, TranscriptError> {
        let mut sessions: Vec<Session> = self
            .0
            .load_sessions()
            .map_err(fault)?
            .into_iter()
            .filter_map(session)
            .collect();
        sessions.sort_by_key(|session| std::cmp::Reverse(session.updated_at_ms));
        sessions.truncate(limit);
        Ok(sessions)
    }
}

fn stored(key: &SessionKey, message: &ChatMessage, seq: u64) -> Result<Stored, TranscriptError> {
    let entry =
        serde_json::from_str(&message.content).map_err(|error| broken(&error.to_string()))?;
    Ok(Stored {
        seq,
        id: message_id(key, message.id),
        entry,
    })
}

/// Message numbers are unique in the store; with the session's key they are so for its clients.
fn message_id(key: &SessionKey, id: i64) -> String {
    format!("{}:{id}", key.as_str())
}

fn session(record: ChatSession) -> Option<Session> {
    Some(Session {
        key: SessionKey::parse(&record.key).ok()?,
        session_id: record.session_id,
        created_at_ms: record.created_at_ms,
        updated_at_ms: record.updated_at_ms,
    })
}

fn role(body: &Body) -> &'static str {
    match body {
        Body::User { .. } => "user",
        Body::Assistant { .. } => "assistant",
        Body::ToolCall(_) | Body::ToolResult(_) => "tool",
        Body::Note { .. } => "note",
    }
}

#[expect(clippy::needless_pass_by_value, reason = "made for map_err")]
fn fault(error: crate::store::StoreError) -> TranscriptError {
    TranscriptError {
        detail: error.to_string(),
    }
}

fn broken(detail: &str) -> TranscriptError {
    TranscriptError {
        detail: detail.to_owned(),
    }
}
