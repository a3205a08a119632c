//! `devices …`.

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::args::Devices;
use super::exit::{Exit, Failure};
use super::output::{self, ago, short_id};
use super::pending::{self, Decision, Queue};
use super::session::{Context, Session, decode};
use crate::auth::scope::Scope;
use crate::client::call::shown;
use crate::client::credentials::Caller;
use crate::machine;
use crate::rpc::types::device::DevicePairList;

/// The fewest characters that may stand for a longer id.
const PREFIX_CHARS_MIN: usize = 4;

pub async fn run(context: &Context, command: &Devices) -> Result<(), Failure> {
    // Approving a device that asks for more than pairing takes admin: the approver must hold what it grants (S3).
    let scopes: &[Scope] = match command {
        Devices::List | Devices::Remove { .. } | Devices::Rename { .. } => &[Scope::Pairing],
        // Either stage can be decided here, and a surface may take write.
        _ => &[Scope::Pairing, Scope::Write, Scope::Admin],
    };
    let session = Session::open(context, Caller::Call, scopes).await?;
    let done = act(context, &session, command).await;
    session.close().await;
    done
}

async fn act(context: &Context, session: &Session, command: &Devices) -> Result<(), Failure> {
    match command {
        Devices::List => {
            let payload = list(session).await?;
            if context.common.json {
                output::json(&payload);
                return Ok(());
            }
            let queue = Queue::fetch(session).await?;
            output::line(&render(&decode(&payload)?, &queue, context));
            Ok(())
        }
        Devices::Approve { request_id, latest } => match request_id {
            Some(id) if !latest => {
                pending::decide(context, session, id, Decision::Approve(None)).await
            }
            _ => pending::show_latest(context, session).await,
        },
        Devices::Reject { request_id } => {
            pending::decide(context, session, request_id, Decision::Reject).await
        }
        Devices::Remove { device_id } => {
            let device_id = find_device(session, device_id).await?;
            let params = json!({ "deviceId": device_id });
            done(context, session, "device.pair.remove", &params, "removed").await
        }
        Devices::Rename { device, name } => {
            let device_id = find_device(session, device).await?;
            let params = json!({ "deviceId": device_id, "label": name });
            done(context, session, "device.pair.rename", &params, "renamed").await
        }
        Devices::Rotate {
            device,
            role,
            scope,
            no_scopes,
        } => {
            let device_id = find_device(session, device).await?;
            let mut params = json!({ "deviceId": device_id, "role": role });
            if *no_scopes || !scope.is_empty() {
                params["scopes"] = json!(scope);
            }
            done(
                context,
                session,
                "device.token.rotate",
                &params,
                "token rotated for",
            )
            .await
        }
        Devices::Revoke { device, role } => {
            let device_id = find_device(session, device).await?;
            let params = json!({ "deviceId": device_id, "role": role });
            done(
                context,
                session,
                "device.token.revoke",
                &params,
                "token revoked of",
            )
            .await
        }
    }
}

async fn list(session: &Session) -> Result<Box<RawValue>, Failure> {
    session.call("device.pair.list", &json!({})).await
}

async fn done(
    context: &Context,
    session: &Session,
    method: &str,
    params: &Value,
    verb: &str,
) -> Result<(), Failure> {
    let payload = session.call(method, params).await?;
    let id = params["deviceId"].as_str().unwrap_or_default();
    context.show(&payload, |answer: Value| {
        // Of a new token: a scope that the Gateway does not know was not given.
        let scopes = answer["scopes"].as_array().map(|list| {
            let names: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
            let names = (!names.is_empty()).then(|| names.join(","));
            format!(", scopes: {}", shown(names.as_deref().unwrap_or("none")))
        });
        format!(
            "{verb} device {}{}",
            short_id(id),
            scopes.unwrap_or_default()
        )
    })
}

async fn find_device(session: &Session, id: &str) -> Result<String, Failure> {
    let list: DevicePairList = decode(&list(session).await?)?;
    let ids: Vec<&str> = list
        .paired
        .iter()
        .map(|device| device.device_id.as_str())
        .collect();
    by_prefix(id, &ids)
}

/// A whole id as it is, even if it is not in the list, for the Gateway's refusal is the better one; otherwise the one id
/// that begins like this.
pub fn by_prefix(asked: &str, ids: &[&str]) -> Result<String, Failure> {
    let asked = asked.trim();
    if ids.contains(&asked) {
        return Ok(asked.to_owned());
    }
    let mut matches = ids.iter().filter(|id| id.starts_with(asked));
    match (matches.next(), matches.next()) {
        (Some(id), None) if asked.len() >= PREFIX_CHARS_MIN => Ok((*id).to_owned()),
        (Some(_), None) => Err(Failure::new(
            Exit::Refused,
            format!("give at least {PREFIX_CHARS_MIN} characters of the id"),
        )),
        (Some(_), Some(_)) => Err(Failure::new(
            Exit::Refused,
            format!("more than one id begins with {}", shown(asked)),
        )),
        (None, _) => Ok(asked.to_owned()),
    }
}

fn render(list: &DevicePairList, queue: &Queue, context: &Context) -> String {
    let now_ms = machine::now_ms();
    let mut parts = Vec::new();
    if !queue.is_empty() {
        parts.push(format!("Pending\n{}", queue.render(context)));
    }
    let rows: Vec<Vec<String>> = list
        .paired
        .iter()
        .map(|device| {
            let name = device
                .label
                .as_ref()
                .or(device.client.display_name.as_ref());
            vec![
                short_id(&device.device_id),
                name.cloned().unwrap_or_default(),
                device.roles.join(","),
                device.scopes.join(","),
                if device.connected == Some(true) {
                    "connected".to_owned()
                } else {
                    device
                        .last_seen_at_ms
                        .map(|seen| ago(now_ms, seen))
                        .unwrap_or_default()
                },
            ]
        })
        .collect();
    if rows.is_empty() {
        parts.push("No paired devices".to_owned());
    } else {
        let headings = ["DEVICE", "NAME", "ROLES", "SCOPES", "SEEN"];
        parts.push(format!("Paired\n{}", output::table(&headings, &rows)));
    }
    parts.join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_may_be_shortened_only_without_doubt() {
        let ids = ["abcd-1", "abcd-2", "efgh-3"];
        assert_eq!(by_prefix("efgh", &ids).unwrap(), "efgh-3");
        assert_eq!(by_prefix(" abcd-1 ", &ids).unwrap(), "abcd-1");
        assert!(by_prefix("abcd", &ids).is_err());
        assert!(by_prefix("efg", &ids).is_err());
        assert!(by_prefix("", &["only-one"]).is_err());
        assert_eq!(by_prefix("unknown", &ids).unwrap(), "unknown");
    }
}
