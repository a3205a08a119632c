//! Single-use grants, such as the sign-in link of `quickstart`. Only the SHA-256 of a secret is kept.

use rusqlite::{OptionalExtension, Row, params};

use super::{Changes, Store, StoreError};

/// Something that one bearer of a secret may do once.
#[derive(Clone, PartialEq, Eq)]
pub struct Grant {
    /// Names it in the audit log; no secret.
    pub id: String,
    pub sha256: [u8; 32],
    /// What it is for, such as `browser-operator`.
    pub purpose: String,
    pub created_at_ms: u64,
    pub expires_at_ms: u64,
    pub used_at_ms: Option<u64>,
    pub used_by: Option<String>,
}

const COLUMNS: &str = "id, sha256, purpose, created_at_ms, expires_at_ms, used_at_ms, used_by";

fn read(row: &Row<'_>) -> rusqlite::Result<Grant> {
    Ok(Grant {
        id: row.get(0)?,
        sha256: row.get(1)?,
        purpose: row.get(2)?,
        created_at_ms: row.get::<_, i64>(3)?.cast_unsigned(),
        expires_at_ms: row.get::<_, i64>(4)?.cast_unsigned(),
        used_at_ms: row.get::<_, Option<i64>>(5)?.map(i64::cast_unsigned),
        used_by: row.get(6)?,
    })
}

impl Store {
    /// The grant of a secret's digest, whatever its state. A look-up by digest tells nothing about other secrets.
    pub fn grant(&self, sha256: &[u8; 32]) -> Result<Option<Grant>, StoreError> {
        self.read(|connection| {
            connection
                .prepare(&format!("SELECT {COLUMNS} FROM grants WHERE sha256 = ?"))?
                .query_row([sha256], read)
                .optional()
        })
    }

    pub fn load_grants(&self) -> Result<Vec<Grant>, StoreError> {
        self.read(|connection| {
            connection
                .prepare(&format!("SELECT {COLUMNS} FROM grants ORDER BY id"))?
                .query_map([], read)?
                .collect()
        })
    }
}

impl Changes<'_> {
    /// Adds a grant, and removes those that have ended.
    pub fn add_grant(&self, grant: &Grant) -> Result<(), StoreError> {
        self.connection
            .prepare("DELETE FROM grants WHERE expires_at_ms <= ?")?
            .execute([grant.created_at_ms.cast_signed()])?;
        self.connection
            .prepare(
                "INSERT INTO grants (id, sha256, purpose, created_at_ms, expires_at_ms)
                 VALUES (?, ?, ?, ?, ?)",
            )?
            .execute(params![
                grant.id,
                grant.sha256,
                grant.purpose,
                grant.created_at_ms.cast_signed(),
                grant.expires_at_ms.cast_signed(),
            ])?;
        Ok(())
    }

    /// Uses a grant up. False if it is unknown, ended or used: whoever gets true is the only one.
    pub fn use_grant(&self, id: &str, now_ms: u64, used_by: &str) -> Result<bool, StoreError> {
        let used = self
            .connection
            .prepare(
                "UPDATE grants SET used_at_ms = ?2, used_by = ?3
                 WHERE id = ?1 AND used_at_ms IS NULL AND expires_at_ms > ?2",
            )?
            .execute(params![id, now_ms.cast_signed(), used_by])?;
        Ok(used == 1)
    }

    pub fn delete_grant(&self, id: &str) -> Result<(), StoreError> {
        self.connection
            .prepare("DELETE FROM grants WHERE id = ?")?
            .execute([id])?;
        Ok(())
    }
}
