//! `gateway status|health|call`, `health`, `status`, `agent`.

use std::time::Duration;

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::args::AgentArgs;
use super::exit::{Exit, Failure};
use super::output;
use super::session::{Context, Session};
use crate::auth::permission::{self, Access, Need};
use crate::auth::scope::{Scope, ScopeSet};
use crate::base::ids;
use crate::client::call::shown;
use crate::client::credentials::Caller;
use crate::machine;
use crate::rpc::Method;

/// An agent's turn may run long commands.
const AGENT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(600);

pub async fn health(context: &Context) -> Result<(), Failure> {
    let session = Session::open(context, Caller::Call, &[Scope::Read]).await?;
    let payload = session.call("health", &json!({})).await;
    let endpoint = session.endpoint.to_string();
    session.close().await;
    context.show(&payload?, |health: Value| {
        let word = if health["ok"] == json!(true) {
            "ok"
        } else {
            "not ok"
        };
        let tls = health["tlsFingerprint"].as_str();
        let tls = tls.map_or(String::new(), |it| format!(", TLS sha256:{}", shown(it)));
        let alarms = health["alarms"].as_array().into_iter().flatten();
        let settings = alarms.filter_map(|alarm| alarm["setting"].as_str());
        settings.fold(
            format!("Gateway {word} ({endpoint}{tls})"),
            |text, setting| {
                let setting = shown(setting);
                format!("{text}\n  alarm: {setting}; the gateway's log says why")
            },
        )
    })
}

pub async fn status(context: &Context) -> Result<(), Failure> {
    let session = Session::open(context, Caller::Status, &[Scope::Read]).await?;
    let payload = session.call("status", &json!({})).await;
    let endpoint = session.endpoint.to_string();
    let version = shown(&session.client.hello().server.version);
    session.close().await;
    context.show(&payload?, |status: Value| {
        let sessions = status["sessions"]["count"].as_u64().unwrap_or(0);
        let listeners = status["listeners"].as_array().into_iter().flatten();
        listeners.filter_map(|it| it.as_str()).fold(
            format!("Gateway {version} at {endpoint}, {sessions} sessions"),
            |text, name| format!("{text}\n  listens: {}", shown(name)),
        )
    })
}

/// Where the Gateway is, and whether it answers. Prints what it found before it fails.
pub async fn gateway_status(context: &Context) -> Result<(), Failure> {
    let paths = &context.settings.paths;
    let opened = Session::open(context, Caller::Probe, &[Scope::Read]).await;
    let mut report = json!({
        "config": paths.config.display().to_string(),
        "state": paths.own.display().to_string(),
        "reachable": opened.is_ok(),
    });
    let outcome = match opened {
        Ok(session) => {
            let hello = session.client.hello();
            report["endpoint"] = json!(session.endpoint.to_string());
            report["version"] = json!(hello.server.version);
            report["role"] = json!(hello.auth.role);
            report["scopes"] = json!(hello.auth.scopes);
            if let Ok(health) = session.call("health", &json!({})).await
                && let Ok(health) = super::session::decode::<Value>(&health)
                && let Some(fingerprint) = health.get("tlsFingerprint")
            {
                report["tlsFingerprint"] = fingerprint.clone();
            }
            session.close().await;
            Ok(())
        }
        Err(failure) => Err(failure),
    };
    if context.common.json {
        let text = serde_json::to_string_pretty(&report).unwrap_or_default();
        output::line(&text);
    } else {
        let field = |name: &str| report[name].as_str().map(shown).unwrap_or_default();
        output::line(&format!("Config:  {}", field("config")));
        output::line(&format!("State:   {}", field("state")));
        if outcome.is_ok() {
            output::line(&format!(
                "Gateway: {} at {}",
                field("version"),
                field("endpoint")
            ));
            if report["tlsFingerprint"].is_string() {
                output::line(&format!("TLS:     sha256:{}", field("tlsFingerprint")));
            }
        } else {
            output::line("Gateway: not reachable");
        }
    }
    outcome
}

/// The scopes that a method needs; all of them for a method that only another Gateway knows.
fn scopes_for(method: &str) -> Vec<Scope> {
    match Method::from_wire(method).map(permission::required) {
        Some(Access::Operator(Need::Scope(scope))) => vec![scope],
        _ => ScopeSet::all().iter().collect(),
    }
}

pub async fn call(
    context: &Context,
    method: &str,
    params: &str,
    to_end: bool,
) -> Result<(), Failure> {
    let params = object(params, "--params")?;
    let session = Session::open(context, Caller::Call, &scopes_for(method)).await?;
    let timeout = context.timeout();
    let payload = if to_end {
        session.client.call_to_end(method, &params, timeout).await
    } else {
        session.client.call(method, &params, timeout).await
    };
    session.close().await;
    output::json(&payload?);
    Ok(())
}

/// Reads JSON from a flag.
pub fn object(text: &str, flag: &str) -> Result<Box<RawValue>, Failure> {
    let value: Result<Box<RawValue>, _> = serde_json::from_str(text);
    match value {
        Ok(value) if value.get().trim_start().starts_with('{') => Ok(value),
        _ => Err(Failure::new(
            Exit::Config,
            format!("{flag} is not a JSON object, such as '{{\"key\":\"value\"}}'"),
        )),
    }
}

/// One message through the agent, to its end.
pub async fn agent(context: &Context, args: &AgentArgs) -> Result<(), Failure> {
    let scopes = [Scope::Read, Scope::Write, Scope::Approvals];
    let session = Session::open(context, Caller::Call, &scopes).await?;
    let mut params = json!({
        "message": args.message,
        "idempotencyKey": ids::uuid_v4(machine::random()),
    });
    if let Some(key) = &args.session_key {
        params["sessionKey"] = json!(key);
    }
    if let Some(agent) = &args.agent {
        params["agentId"] = json!(agent);
    }
    let timeout = context
        .common
        .timeout
        .map_or(AGENT_TIMEOUT_DEFAULT, Duration::from_millis);
    let payload = session.client.call_to_end("agent", &params, timeout).await;
    session.close().await;
    let payload = payload?;
    let end: Value = super::session::decode(&payload)?;
    context.show(&payload, |end: Value| replies(&end))?;
    if end["status"] == json!("ok") {
        return not_run(&end["result"]["meta"]["toolRefused"]).map_or(Ok(()), Err);
    }
    let why = end["summary"].as_str().unwrap_or("the run did not succeed");
    Err(Failure::new(Exit::Refused, shown(why)))
}

/// The end of a turn whose tool call came to no result: its words stand in the answer, and a script needs the code.
fn not_run(refused: &Value) -> Option<Failure> {
    let word = |name: &str| refused[name].as_str().map(shown).unwrap_or_default();
    let sentence = match refused.get("dispatched")?.as_str()? {
        "no" => "the tool call was refused, and not sent",
        "yes" => "the tool call failed after it was sent",
        _ => "nobody knows how far the tool call came; find out before you repeat it",
    };
    let mut failure = Failure::new(Exit::Refused, sentence);
    failure.code = Some(format!(
        "{} ({}, dispatched: {})",
        word("code"),
        word("category"),
        word("dispatched")
    ));
    Some(failure)
}

/// What the agent said. Line breaks are kept, for they are the command's output.
fn replies(end: &Value) -> String {
    let texts = end["result"]["payloads"].as_array().into_iter().flatten();
    texts
        .filter_map(|payload| payload["text"].as_str())
        .map(printable)
        .collect::<Vec<_>>()
        .join("\n")
}

/// A text for the terminal: line breaks and tabs stay, other control characters are shown, not obeyed.
pub fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let obeyed = c.is_control() && !matches!(c, '\n' | '\t');
            let escaped = obeyed.then(|| c.escape_unicode());
            let plain = (!obeyed).then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_asks_for_no_more_than_its_method_needs() {
        assert_eq!(scopes_for("health"), [Scope::Read]);
        assert_eq!(scopes_for("device.pair.list"), [Scope::Pairing]);
        assert_eq!(scopes_for("wizard.start").len(), Scope::ALL.len());
    }

    #[test]
    fn replies_are_printed_with_their_lines_and_without_their_escapes() {
        let end = json!({"result": {"payloads": [{"text": "a\nb\u{1b}[2J"}, {"mediaUrl": null}, {"text": "c"}]}});
        assert_eq!(replies(&end), "a\nb\\u{1b}[2J\nc");
    }

    #[test]
    fn parameters_are_an_object() {
        assert!(object(" {\"a\":1}", "--params").is_ok());
        for bad in ["", "[]", "1", "{", "{}{}"] {
            let failure = object(bad, "--params").unwrap_err();
            assert_eq!(failure.exit, Exit::Config, "{bad}");
        }
    }
}
