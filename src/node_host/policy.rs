//! This machine's exec policy file: read for each command, written by `system.execApprovals.set` and by `allow-always`.
//!
//! In: `exec-approvals.json` of the state directory. Out: what holds for a command, and the rule that would cover it.
//! Attacker controls: the parameters. Bounds: `EXEC_POLICY_BYTES_MAX`. Errors: `NodeError`; a file that cannot be read or
//! understood denies every command (X12).

use std::sync::{Arc, PoisonError};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Host, NodeError, blocking, payload};
use crate::base::ids::hex_lower;
use crate::base::limits::EXEC_POLICY_BYTES_MAX;
use crate::exec::Mode;
use crate::exec::allowlist::Rule;
use crate::exec::approvals_file::{self, EMPTY, Policy};
use crate::machine::files;

/// The agent of a `/run`, and the only one of our Gateway.
const AGENT: &str = "main";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SetParams {
    file: Value,
    base_hash: Option<String>,
}

impl Host {
    /// What holds now for an agent's commands.
    pub(super) fn policy(&self, agent: Option<&str>) -> Policy {
        let text = self.policy_text();
        let policy = text.and_then(|text| {
            let text = text.as_deref().unwrap_or(EMPTY);
            approvals_file::policy(text, self.mode, agent).map_err(|error| error.to_string())
        });
        policy.unwrap_or_else(|why| {
            tracing::warn!(%why, "exec-approvals.json is of no use, so every command is denied");
            Policy {
                mode: Mode::Deny,
                rules: Vec::new(),
            }
        })
    }

    /// The reference's words for what denies everything here, and in which of the two places it stands.
    pub(super) fn deny_reason(&self) -> &'static str {
        if self.mode == Mode::Deny {
            "security=deny (tools.exec.mode)"
        } else {
            "security=deny (exec-approvals.json)"
        }
    }

    /// The mode that holds for a `/run`, and the digest of all that says so: the configured mode and the file.
    pub(super) fn policy_facts(&self) -> (Mode, String) {
        let text = self.policy_text().unwrap_or_else(Some);
        let all = format!("{}\n{}", self.mode.as_str(), text.unwrap_or_default());
        (self.policy(Some(AGENT)).mode, hash(Some(&all)))
    }

    fn policy_text(&self) -> Result<Option<String>, String> {
        let Some(path) = &self.policy_path else {
            return Ok(None);
        };
        let bytes = files::read(path, EXEC_POLICY_BYTES_MAX as u64);
        let text = bytes
            .map_err(|error| error.to_string())?
            .map(String::from_utf8);
        text.transpose().map_err(|error| error.to_string())
    }

    /// Keeps a rule; if it cannot be kept the command is asked about again.
    pub(super) fn keep_rule(&self, agent: Option<&str>, rule: &Rule) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = self.policy_text().and_then(|text| {
            let text = text.as_deref().unwrap_or(EMPTY);
            let text =
                approvals_file::with_rule(text, agent, rule).map_err(|error| error.to_string())?;
            self.write_policy(&text)
        });
        if let Err(why) = kept {
            tracing::warn!(%why, "an allow-always could not be kept");
        }
    }

    fn write_policy(&self, text: &str) -> Result<(), String> {
        let path = self
            .policy_path
            .as_ref()
            .ok_or("this host keeps no policy file")?;
        files::replace(path, text.as_bytes()).map_err(|error| error.to_string())
    }

    fn policy_snapshot(&self) -> Result<Value, NodeError> {
        let text = self.policy_text().map_err(unavailable)?;
        let mut file: Value =
            serde_json::from_str(text.as_deref().unwrap_or(EMPTY)).unwrap_or_default();
        take_socket(&mut file);
        Ok(json!({
            "path": self.policy_path,
            "exists": text.is_some(),
            "hash": hash(text.as_deref()),
            "file": file,
        }))
    }

    fn set_policy(&self, params: SetParams) -> Result<Value, NodeError> {
        // Where the owner's list is all that may run, whoever writes the list decides.
        if self.mode <= Mode::Allowlist {
            let mode = self.mode.as_str();
            return Err(NodeError::new(
                "FORBIDDEN",
                format!(
                    "FORBIDDEN: tools.exec.mode of this node is {mode}; edit its exec-approvals.json on that machine"
                ),
            ));
        }
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.policy_text().map_err(unavailable)?;
        let invalid = |why: &str| NodeError::invalid(format!("Error: INVALID_REQUEST: {why}"));
        match params.base_hash {
            None if before.is_some() => {
                return Err(invalid(
                    "exec approvals base hash required; reload and retry",
                ));
            }
            Some(base) if base != hash(before.as_deref()) => {
                return Err(invalid("exec approvals changed; reload and retry"));
            }
            _ => {}
        }
        let mut file = params.file;
        take_socket(&mut file);
        let stored = before.as_deref().map(serde_json::from_str::<Value>);
        if let Some(Ok(mut stored)) = stored
            && let Some(socket) = take_socket(&mut stored)
            && let Some(fields) = file.as_object_mut()
        {
            fields.insert("socket".to_owned(), socket);
        }
        let text =
            serde_json::to_string_pretty(&file).map_err(|error| invalid(&error.to_string()))?;
        approvals_file::policy(&text, self.mode, None)
            .map_err(|error| invalid(&error.to_string()))?;
        self.write_policy(&text).map_err(unavailable)?;
        self.policy_snapshot()
    }
}

/// The socket at which the reference answers for operators. Nobody learns or sets its token from afar.
fn take_socket(file: &mut Value) -> Option<Value> {
    file.as_object_mut()?.remove("socket")
}

fn read<T: for<'de> Deserialize<'de>>(params_json: &str) -> Result<T, NodeError> {
    serde_json::from_str(params_json)
        .map_err(|_| NodeError::invalid("INVALID_REQUEST: params malformed"))
}

fn hash(text: Option<&str>) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.unwrap_or_default().as_bytes());
    hex_lower(digest.as_ref())
}

fn unavailable(why: impl std::fmt::Display) -> NodeError {
    NodeError::new("UNAVAILABLE", format!("exec-approvals.json: {why}"))
}

pub(super) async fn get(params_json: &str, host: &Arc<Host>) -> Result<String, NodeError> {
    read::<serde_json::Map<String, Value>>(params_json)?;
    let host = Arc::clone(host);
    payload(&blocking(move || host.policy_snapshot()).await??)
}

pub(super) async fn set(params_json: &str, host: &Arc<Host>) -> Result<String, NodeError> {
    let params: SetParams = read(params_json)?;
    let host = Arc::clone(host);
    payload(&blocking(move || host.set_policy(params)).await??)
}
