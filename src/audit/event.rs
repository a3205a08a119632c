//! What the audit log records: one variant for each thing that takes effect.

use serde::Serialize;

use crate::base::ids::hex_lower;
use crate::exec::argv_text;
use crate::nodes::Dispatched;

/// The longest text of a peer that a record keeps, in bytes before escaping.
pub const PEER_TEXT_BYTES_MAX: usize = 1024;

/// Text that came from a peer, cut to `PEER_TEXT_BYTES_MAX` and with every character visible.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct PeerText(String);

impl PeerText {
    pub fn new(text: &str) -> Self {
        let end = text.floor_char_boundary(PEER_TEXT_BYTES_MAX);
        let mut shown = argv_text::visible(&text[..end]);
        if end < text.len() {
            shown.push_str(&format!(" (and {} more bytes)", text.len() - end));
        }
        Self(shown)
    }

    pub fn all(texts: &[String]) -> Vec<Self> {
        texts.iter().map(|text| Self::new(text)).collect()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for PeerText {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

/// A SHA-256 digest, written in lower-case hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
        let mut copy = [0; 32];
        copy.copy_from_slice(digest.as_ref());
        Self(copy)
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex_lower(&self.0))
    }
}

/// On whose behalf something happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(
    tag = "kind",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Actor {
    /// A client of an operator, by its device, by the user whom a proxy or the tailnet vouched for, or by neither.
    Operator {
        #[serde(skip_serializing_if = "Option::is_none")]
        device: Option<PeerText>,
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<PeerText>,
        client: PeerText,
        /// How it was recognised.
        method: &'static str,
        conn: String,
        address: String,
    },
    /// A process of our own user on the admin socket.
    Admin { uid: u32, pid: Option<i32> },
    Node {
        device: PeerText,
        conn: String,
        address: String,
    },
    /// A turn of an agent; `by` says who started it.
    Agent {
        agent: PeerText,
        session: PeerText,
        run: String,
        by: PeerText,
    },
    /// The Gateway itself: a timer, its start, a rule of the config (named).
    System { rule: &'static str },
}

/// Where in pairing a request stands: the device itself, or the commands that a node may serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    Device,
    Surface,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TokenChange {
    Issued,
    Rotated,
    Revoked,
}

/// One thing that happened or is about to.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all_fields = "camelCase")]
pub enum Event {
    #[serde(rename = "gateway.started")]
    Started {
        version: String,
        pid: u32,
        listeners: Vec<String>,
    },
    #[serde(rename = "gateway.stopped")]
    Stopped { reason: PeerText },

    /// A session was admitted.
    #[serde(rename = "session.admitted")]
    Admitted {
        actor: Actor,
        role: String,
        scopes: Vec<String>,
        path: String,
    },
    #[serde(rename = "pairing.requested")]
    PairingRequested {
        request: String,
        stage: Stage,
        device: PeerText,
        role: String,
        scopes: Vec<String>,
        commands: Vec<PeerText>,
        address: String,
    },
    #[serde(rename = "pairing.approved")]
    PairingApproved {
        request: String,
        stage: Stage,
        device: PeerText,
        scopes: Vec<String>,
        commands: Vec<PeerText>,
        by: Actor,
    },
    #[serde(rename = "pairing.rejected")]
    PairingRejected {
        request: String,
        stage: Stage,
        device: PeerText,
        by: Actor,
    },
    #[serde(rename = "pairing.expired")]
    PairingExpired {
        request: String,
        stage: Stage,
        device: PeerText,
    },
    #[serde(rename = "device.removed")]
    DeviceRemoved { device: PeerText, by: Actor },
    #[serde(rename = "device.renamed")]
    DeviceRenamed {
        device: PeerText,
        name: PeerText,
        by: Actor,
    },
    #[serde(rename = "token.changed")]
    TokenChanged {
        device: PeerText,
        role: String,
        change: TokenChange,
        scopes: Vec<String>,
        by: Actor,
    },
    /// A single-use sign-in link. Its secret appears nowhere, not even hashed.
    #[serde(rename = "grant.created")]
    GrantCreated {
        grant: String,
        expires_at_ms: u64,
        by: Actor,
    },
    #[serde(rename = "grant.used")]
    GrantUsed {
        grant: String,
        device: PeerText,
        address: String,
    },

    #[serde(rename = "approval.requested")]
    ApprovalRequested {
        approval: String,
        node: PeerText,
        command_text: PeerText,
        binding_sha256: Digest,
        expires_at_ms: u64,
        by: Actor,
    },
    #[serde(rename = "approval.decided")]
    ApprovalDecided {
        approval: String,
        decision: String,
        by: Actor,
    },
    /// An approval that ended without being used: `timeout`, `run-aborted`.
    #[serde(rename = "approval.ended")]
    ApprovalEnded {
        approval: String,
        reason: &'static str,
    },

    /// A command is about to be sent to a node. `params` are digested, not kept: they may hold secrets.
    #[serde(rename = "dispatch")]
    Dispatch {
        invoke: String,
        node: PeerText,
        command: PeerText,
        params_bytes: u64,
        params_sha256: Digest,
        /// The command line of a `system.run`, cut.
        command_text: Option<PeerText>,
        idempotency_key: PeerText,
        approval: Option<String>,
        caller: Actor,
    },
    #[serde(rename = "dispatch.result")]
    DispatchResult {
        invoke: String,
        node: PeerText,
        dispatched: Dispatched,
        ok: bool,
        /// `network`, `permission`, `execution`, `timeout` or `protocol`, if it failed.
        category: Option<&'static str>,
        /// Until the frame for the node, from there to its answer, and in all; 0 if nobody waited any more.
        queue_ms: u64,
        execution_ms: u64,
        total_ms: u64,
        /// It came after its caller had been answered.
        late: bool,
    },
    #[serde(rename = "dispatch.refused")]
    DispatchRefused {
        node: PeerText,
        command: PeerText,
        rule: &'static str,
        caller: Actor,
    },
    #[serde(rename = "dispatch.cancelled")]
    DispatchCancelled { invoke: String, by: Actor },

    #[serde(rename = "policy.changed")]
    PolicyChanged {
        policy: String,
        after_sha256: Digest,
        summary: PeerText,
        by: Actor,
    },
    /// The shared secret: `rotated`, `unresolved` (it admits nobody) or `resolved` again.
    #[serde(rename = "secret.changed")]
    SecretChanged {
        setting: &'static str,
        change: &'static str,
    },
    #[serde(rename = "config.changed")]
    ConfigChanged { paths: Vec<PeerText>, by: Actor },

    // The log's own records; only the log writes them.
    /// The first record of every file; in all but the first file it ties it to the one before.
    #[serde(rename = "log.file")]
    LogFile {
        number: u32,
        previous_sha256: Digest,
    },
    /// A process was stopped while it wrote its last line. The bytes were put aside.
    #[serde(rename = "log.torn")]
    LogTorn {
        bytes: u64,
        sha256: Digest,
        kept_as: String,
    },
    /// The log ends before the record that was known to be its last: power was lost, or somebody cut it.
    #[serde(rename = "log.shortened")]
    LogShortened { known_seq: u64, found_seq: u64 },
    /// The note of the last record could not be read, so a cut cannot be ruled out.
    #[serde(rename = "log.headLost")]
    LogHeadLost { found_seq: u64 },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_text_is_cut_and_visible() {
        assert_eq!(PeerText::new("a\u{202e}b\n").as_str(), "a\\u{202e}b\\n");
        let long = "é".repeat(PEER_TEXT_BYTES_MAX);
        let text = PeerText::new(&long);
        assert!(text.as_str().ends_with(" (and 1024 more bytes)"));
        assert!(text.as_str().len() < PEER_TEXT_BYTES_MAX + 40);
    }

    #[test]
    fn records_are_tagged_and_in_camel_case() {
        let event = Event::TokenChanged {
            device: "d".into(),
            role: "operator".to_owned(),
            change: TokenChange::Revoked,
            scopes: vec![],
            by: Actor::System { rule: "test" },
        };
        assert_eq!(
            serde_json::to_string(&event).unwrap(),
            r#"{"kind":"token.changed","device":"d","role":"operator","change":"revoked","scopes":[],"by":{"kind":"system","rule":"test"}}"#
        );
    }
}
