//! `secrets audit`: where each secret of the config stands, and whether it can be had now. No value is shown, nothing is
//! written, and no Gateway is asked; programs of `exec` providers are run.

use std::time::Instant;

use serde_json::{Value, json};

use super::args::Secrets;
use super::exit::{Exit, Failure};
use super::output;
use super::session::Context;
use crate::config::{SecretInput, Settings};
use crate::machine;

const HINT: &str =
    "stands in the config in the clear: move it to a file or a program (secrets.providers)";

pub fn run(context: &Context, command: &Secrets) -> Result<(), Failure> {
    let Secrets::Audit = command;
    let secrets: Vec<Value> = rows(&context.settings);
    let failing = secrets
        .iter()
        .filter(|row| row["state"] == "unresolved")
        .count();
    if context.common.json {
        output::line(&json!({"ok": failing == 0, "secrets": secrets}).to_string());
    } else if secrets.is_empty() {
        output::line("The config holds no secret and no reference to one");
    } else {
        let now_ms = machine::now_ms();
        let cells: Vec<Vec<String>> = secrets.iter().map(|row| cells(row, now_ms)).collect();
        let headings = [
            "SETTING", "SOURCE", "PROVIDER", "ID", "STATE", "CHANGED", "NOTE",
        ];
        output::line(&output::table(&headings, &cells));
    }
    if failing > 0 {
        let sentence = format!("{failing} of {} secrets cannot be resolved", secrets.len());
        return Err(Failure::new(Exit::Config, sentence));
    }
    Ok(())
}

fn rows(settings: &Settings) -> Vec<Value> {
    let secrets = settings.secrets().into_iter();
    secrets
        .filter_map(|(setting, input)| row(settings, setting, input))
        .collect()
}

fn row(settings: &Settings, setting: &str, input: &SecretInput) -> Option<Value> {
    let reference = match input {
        SecretInput::Unset => return None,
        SecretInput::Literal(_) => {
            return Some(
                json!({"setting": setting, "source": "literal", "state": "literal", "note": HINT}),
            );
        }
        SecretInput::Ref(reference) => reference,
    };
    let began = Instant::now();
    // What opens this Gateway is judged as at its start; what opens another is as strong as that one made it.
    let outcome = if setting.starts_with("gateway.auth.") {
        settings.resolver.resolve(setting, input)
    } else {
        settings.resolver.read(setting, input)
    };
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    Some(json!({
        "setting": setting,
        "source": reference.source.as_str(),
        "provider": reference.provider,
        "id": reference.id,
        "state": if outcome.is_ok() { "resolved" } else { "unresolved" },
        "changedAtMs": settings.resolver.changed_at_ms(reference),
        "tookMs": took_ms,
        "note": outcome.err().map(|error| error.to_string()),
    }))
}

fn cells(row: &Value, now_ms: u64) -> Vec<String> {
    let text = |key: &str| row[key].as_str().unwrap_or("-").to_owned();
    let changed = row["changedAtMs"].as_u64();
    vec![
        text("setting"),
        text("source"),
        text("provider"),
        text("id"),
        text("state"),
        changed.map_or_else(|| "-".to_owned(), |at| output::ago(now_ms, at)),
        text("note"),
    ]
}
