//! A transcript without a store, for tests.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::session_key::SessionKey;
use super::transcript::{Body, Entry, Page, Session, Stored, Transcript, TranscriptError};

/// A transcript that lives as long as the process.
#[derive(Default)]
pub(super) struct MemoryTranscript(Mutex<BTreeMap<SessionKey, (Session, Vec<Stored>)>>);

impl Transcript for MemoryTranscript {
    fn session(&self, key: &SessionKey) -> Result<Option<Session>, TranscriptError> {
        let sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(sessions.get(key).map(|(session, _)| session.clone()))
    }

    fn open(&self, key: &SessionKey, now_ms: u64) -> Result<Session, TranscriptError> {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (session, _) = sessions.entry(key.clone()).or_insert_with(|| {
            let session = Session {
                key: key.clone(),
                session_id: format!("memory:{key}"),
                created_at_ms: now_ms,
                updated_at_ms: now_ms,
            };
            (session, Vec::new())
        });
        Ok(session.clone())
    }

    fn append(&self, key: &SessionKey, entry: &Entry) -> Result<Stored, TranscriptError> {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((session, entries)) = sessions.get_mut(key) else {
            return Err(TranscriptError {
                detail: "no such session".to_owned(),
            });
        };
        session.updated_at_ms = entry.timestamp_ms;
        let seq = entries.len() as u64 + 1;
        let stored = Stored {
            seq,
            id: format!("memory:{key}:{seq}"),
            entry: entry.clone(),
        };
        entries.push(stored.clone());
        Ok(stored)
    }

    fn has_message(
        &self,
        key: &SessionKey,
        idempotency_key: &str,
    ) -> Result<bool, TranscriptError> {
        let sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = idempotency_key;
        let is_it = |stored: &Stored| matches!(&stored.entry.body, Body::User { idempotency_key, .. } if idempotency_key == wanted);
        Ok(sessions
            .get(key)
            .is_some_and(|(_, entries)| entries.iter().any(is_it)))
    }

    fn page(&self, key: &SessionKey, limit: usize, offset: usize) -> Result<Page, TranscriptError> {
        let sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((_, entries)) = sessions.get(key) else {
            return Ok(Page::default());
        };
        let end = entries.len().saturating_sub(offset);
        let start = end.saturating_sub(limit);
        Ok(Page {
            entries: entries.get(start..end).unwrap_or_default().to_vec(),
            total: entries.len() as u64,
        })
    }

    fn sessions(&self, limit: usize) -> Result<Vec<Session>, TranscriptError> {
        let sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<Session> = sessions
            .values()
            .map(|(session, _)| session.clone())
            .collect();
        list.sort_by_key(|session| std::cmp::Reverse(session.updated_at_ms));
        list.truncate(limit);
        Ok(list)
    }
}
