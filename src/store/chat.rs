//! Transcripts.

use rusqlite::{OptionalExtension, Row, params};

use super::{Records, Store, StoreError};

/// Chat sessions that are kept.
pub const SESSIONS_MAX: usize = 4096;
/// Messages of one session that are kept; the oldest give way.
pub const MESSAGES_PER_SESSION_MAX: usize = 10_000;
/// One message's content, in bytes of JSON.
pub const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// How many messages may come before the oldest are cut: looking at every insert would read the whole session.
const CUT_EVERY: i64 = 64;

/// A conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatSession {
    /// Such as `agent:main:main`.
    pub key: String,
    pub session_id: String,
    pub agent_id: String,
    pub created_at_ms: u64,
    pub updated_at_ms: u64,
}

/// A message to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMessage {
    pub session_key: String,
    pub run_id: Option<String>,
    pub role: String,
    /// JSON, as the protocol sends it.
    pub content: String,
    pub ts_ms: u64,
    /// At most one message of a session has a given key.
    pub idempotency_key: Option<String>,
}

/// A message of a transcript. Ids grow within the whole store and are never used twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatMessage {
    pub id: i64,
    pub run_id: Option<String>,
    pub role: String,
    pub content: String,
    pub ts_ms: u64,
    pub idempotency_key: Option<String>,
}

/// Whether a message was new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    New(i64),
    /// A message with its idempotency key was there already, and stays as it is.
    Known(i64),
}

fn read_message(row: &Row<'_>) -> rusqlite::Result<ChatMessage> {
    Ok(ChatMessage {
        id: row.get(0)?,
        run_id: row.get(1)?,
        role: row.get(2)?,
        content: row.get(3)?,
        ts_ms: row.get::<_, i64>(4)?.cast_unsigned(),
        idempotency_key: row.get(5)?,
    })
}

impl Store {
    /// All sessions, the one with the latest message first.
    pub fn load_sessions(&self) -> Result<Vec<ChatSession>, StoreError> {
        self.read(|connection| {
            connection
                .prepare(
                    "SELECT key, session_id, agent_id, created_at_ms, updated_at_ms
                     FROM chat_sessions ORDER BY updated_at_ms DESC, key",
                )?
                .query_map([], |row| {
                    Ok(ChatSession {
                        key: row.get(0)?,
                        session_id: row.get(1)?,
                        agent_id: row.get(2)?,
                        created_at_ms: row.get::<_, i64>(3)?.cast_unsigned(),
                        updated_at_ms: row.get::<_, i64>(4)?.cast_unsigned(),
                    })
                })?
                .collect()
        })
    }

    /// The newest `limit` messages of a session, having skipped `offset` newer ones, in order; and how many it has.
    pub fn message_page(
        &self,
        session_key: &str,
        limit: usize,
        offset: usize,
    ) -> Result<(Vec<ChatMessage>, u64), StoreError> {
        let limit = i64::try_from(limit.min(MESSAGES_PER_SESSION_MAX)).unwrap_or(i64::MAX);
        let offset = i64::try_from(offset).unwrap_or(i64::MAX);
        self.read(|connection| {
            let total: i64 = connection
                .prepare("SELECT count(*) FROM chat_messages WHERE session_key = ?")?
                .query_row([session_key], |row| row.get(0))?;
            let mut messages: Vec<ChatMessage> = connection
                .prepare(
                    "SELECT id, run_id, role, content, ts_ms, idempotency_key FROM chat_messages
                     WHERE session_key = ?1 ORDER BY id DESC LIMIT ?2 OFFSET ?3",
                )?
                .query_map(params![session_key, limit, offset], read_message)?
                .collect::<Result<_, _>>()?;
            messages.reverse();
            Ok((messages, total.cast_unsigned()))
        })
    }

    /// Whether a session holds a message with this idempotency key.
    pub fn has_message(
        &self,
        session_key: &str,
        idempotency_key: &str,
    ) -> Result<bool, StoreError> {
        self.read(|connection| {
            connection
                .prepare(
                    "SELECT 1 FROM chat_messages WHERE session_key = ? AND idempotency_key = ?",
                )?
                .exists([session_key, idempotency_key])
        })
    }

    /// A session by its key.
    pub fn session(&self, key: &str) -> Result<Option<ChatSession>, StoreError> {
        Ok(self
            .load_sessions()?
            .into_iter()
            .find(|session| session.key == key))
    }
}

impl Records<'_> {
    /// Makes a session, or brings the record of one up to date; its creation time stays.
    pub fn put_session(&self, session: &ChatSession) -> Result<(), StoreError> {
        let is_known = self
            .connection
            .prepare("SELECT 1 FROM chat_sessions WHERE key = ?")?
            .exists([&session.key])?;
        if !is_known {
            let sessions: i64 = self
                .connection
                .prepare("SELECT count(*) FROM chat_sessions")?
                .query_row([], |row| row.get(0))?;
            if usize::try_from(sessions).is_ok_and(|sessions| sessions >= SESSIONS_MAX) {
                return Err(StoreError::Limit {
                    what: "chat sessions",
                    limit: SESSIONS_MAX,
                });
            }
        }
        self.connection
            .prepare(
                "INSERT INTO chat_sessions (key, session_id, agent_id, created_at_ms, updated_at_ms)
                 VALUES (?, ?, ?, ?, ?)
                 ON CONFLICT (key) DO UPDATE SET session_id = excluded.session_id,
                     agent_id = excluded.agent_id, updated_at_ms = excluded.updated_at_ms",
            )?
            .execute(params![
                session.key,
                session.session_id,
                session.agent_id,
                session.created_at_ms.cast_signed(),
                session.updated_at_ms.cast_signed(),
            ])?;
        Ok(())
    }

    /// Adds a message to a session that exists.
    pub fn append_message(&self, message: &NewMessage) -> Result<Appended, StoreError> {
        if message.content.len() > MESSAGE_BYTES_MAX {
            return Err(StoreError::Limit {
                what: "bytes in a message",
                limit: MESSAGE_BYTES_MAX,
            });
        }
        if let Some(key) = &message.idempotency_key {
            let known = self
                .connection
                .prepare(
                    "SELECT id FROM chat_messages WHERE session_key = ? AND idempotency_key = ?",
                )?
                .query_row([&message.session_key, key], |row| row.get(0))
                .optional()?;
            if let Some(id) = known {
                return Ok(Appended::Known(id));
            }
        }
        let id = self
            .connection
            .prepare(
                "INSERT INTO chat_messages (session_key, run_id, role, content, ts_ms, idempotency_key)
                 VALUES (?, ?, ?, ?, ?, ?)",
            )?
            .insert(params![
                message.session_key,
                message.run_id,
                message.role,
                message.content,
                message.ts_ms.cast_signed(),
                message.idempotency_key,
            ])?;
        self.connection
            .prepare("UPDATE chat_sessions SET updated_at_ms = ? WHERE key = ?")?
            .execute(params![message.ts_ms.cast_signed(), message.session_key])?;
        if id % CUT_EVERY == 0 {
            self.cut_messages(&message.session_key)?;
        }
        Ok(Appended::New(id))
    }

    fn cut_messages(&self, session_key: &str) -> Result<(), StoreError> {
        self.connection
            .prepare(
                "DELETE FROM chat_messages WHERE session_key = ?1 AND id <= (
                     SELECT id FROM chat_messages WHERE session_key = ?1
                     ORDER BY id DESC LIMIT 1 OFFSET ?2)",
            )?
            .execute(params![
                session_key,
                i64::try_from(MESSAGES_PER_SESSION_MAX).unwrap_or(i64::MAX)
            ])?;
        Ok(())
    }
}
