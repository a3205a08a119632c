//! Records that are kept as JSON documents: devices, node surfaces, what waits for an operator.

use rusqlite::params;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Changes, Records, Store, StoreError};
use crate::base::DeviceId;
use crate::base::names::names;
use crate::pairing::Change;

names! {
    /// What a document is.
    pub enum Kind {
        Device = "device",
        DeviceRequest = "device-request",
        TurnedAway = "turned-away",
        Surface = "surface",
        SurfaceRequest = "surface-request",
    }
}

impl Store {
    /// All documents of a kind, by id. One that cannot be read is an error: to leave it out could widen rights.
    pub fn load<T: DeserializeOwned>(&self, kind: Kind) -> Result<Vec<T>, StoreError> {
        let rows: Vec<(String, String)> = self.read(|connection| {
            connection
                .prepare("SELECT id, json FROM documents WHERE kind = ? ORDER BY id")?
                .query_map([kind.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })?;
        rows.into_iter()
            .map(|(id, json)| {
                serde_json::from_str(&json).map_err(|error| StoreError::Record {
                    kind: kind.as_str(),
                    id,
                    detail: error.to_string(),
                })
            })
            .collect()
    }

    /// Everything that `Pairing` has to `apply` at the start.
    pub fn load_pairing(&self) -> Result<Vec<Change>, StoreError> {
        let mut changes = Vec::new();
        changes.extend(self.load(Kind::Device)?.into_iter().map(Change::Device));
        changes.extend(
            self.load(Kind::DeviceRequest)?
                .into_iter()
                .map(Change::Request),
        );
        changes.extend(
            self.load(Kind::TurnedAway)?
                .into_iter()
                .map(Change::TurnedAway),
        );
        changes.extend(self.load(Kind::Surface)?.into_iter().map(Change::Surface));
        changes.extend(
            self.load(Kind::SurfaceRequest)?
                .into_iter()
                .map(Change::SurfaceRequest),
        );
        Ok(changes)
    }
}

impl Changes<'_> {
    /// Persists one step of the pairing record.
    pub fn pairing(&self, change: &Change) -> Result<(), StoreError> {
        match change {
            Change::Device(device) => self.put(Kind::Device, device.id.as_str(), device),
            Change::DeviceGone(id) => self.delete(Kind::Device, id.as_str()),
            Change::Request(request) => self.put(Kind::DeviceRequest, &request.request_id, request),
            Change::RequestGone(id) => self.delete(Kind::DeviceRequest, id),
            Change::TurnedAway(it) => self.put(Kind::TurnedAway, it.device.as_str(), it),
            Change::TurnedAwayGone(id) => self.delete(Kind::TurnedAway, id.as_str()),
            Change::Surface(surface) => {
                self.put(Kind::Surface, surface.facts.node.as_str(), surface)
            }
            Change::SurfaceGone(id) => self.delete(Kind::Surface, id.as_str()),
            Change::SurfaceRequest(request) => {
                self.put(Kind::SurfaceRequest, request.facts.node.as_str(), request)
            }
            Change::SurfaceRequestGone(id) => self.delete(Kind::SurfaceRequest, id.as_str()),
        }
    }

    /// Writes a document, in place of one with the same id.
    pub fn put(&self, kind: Kind, id: &str, document: &impl Serialize) -> Result<(), StoreError> {
        let json = serde_json::to_string(document).map_err(|error| StoreError::Record {
            kind: kind.as_str(),
            id: id.to_owned(),
            detail: error.to_string(),
        })?;
        self.connection
            .prepare(
                "INSERT INTO documents (kind, id, json) VALUES (?1, ?2, ?3)
                 ON CONFLICT (kind, id) DO UPDATE SET json = excluded.json",
            )?
            .execute(params![kind.as_str(), id, json])?;
        Ok(())
    }

    /// Removes a document; to remove what is not there is no error.
    pub fn delete(&self, kind: Kind, id: &str) -> Result<(), StoreError> {
        self.connection
            .prepare("DELETE FROM documents WHERE kind = ? AND id = ?")?
            .execute([kind.as_str(), id])?;
        Ok(())
    }
}

impl Records<'_> {
    /// Notes when and why a device was last seen. It touches nothing that grants a right, so it needs no receipt.
    pub fn device_seen(&self, id: &DeviceId, at_ms: u64, reason: &str) -> Result<(), StoreError> {
        self.connection
            .prepare(
                "UPDATE documents
                 SET json = json_set(json, '$.last_seen_at_ms', ?1, '$.last_seen_reason', ?2)
                 WHERE kind = 'device' AND id = ?3",
            )?
            .execute(params![at_ms.cast_signed(), reason, id.as_str()])?;
        Ok(())
    }
}
