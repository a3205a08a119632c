//! Any text as a config file: read or refused. What is read stays strict: a key that nobody knows, put into any section
//! in which a typo could weaken the Gateway, is refused by its name.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::config::{ConfigError, Env, Paths, ServerFlags, Settings};
use serde_json::{Value, json};

const UNKNOWN: &str = "zzNobodyKnowsThisKey";
const STRICT: [&str; 8] = [
    "gateway",
    "gateway.auth",
    "gateway.auth.rateLimit",
    "gateway.controlUi",
    "gateway.nodes",
    "gateway.remote",
    "secrets",
    "tools.exec",
];

fn read(text: &str) -> Result<Settings, ConfigError> {
    let env = Env::given([("HOME", "/nowhere")]);
    let paths = Paths::find(&env, None).expect("a home");
    Settings::from_text(text, &env, paths)
}

/// Puts the key into a section, which is made if it is absent; `None` if something else stands there.
fn spoilt(config: &Value, section: &str) -> Option<Value> {
    let mut config = config.clone();
    let mut node = &mut config;
    for key in section.split('.') {
        let entry = node.as_object_mut()?.entry(key);
        node = entry.or_insert_with(|| json!({}));
    }
    node.as_object_mut()?.insert(UNKNOWN.to_owned(), json!(1));
    Some(config)
}

fuzz_target!(|input: &str| {
    let Ok(settings) = read(input) else {
        return;
    };
    // No file is there and nothing is run: a program would have to be named by an absolute path that exists.
    let _ = settings.server(&ServerFlags::default());
    assert!(settings.changed_since(&settings).is_empty());
    let Ok(config) = serde_json::from_str::<Value>(input) else {
        return;
    };
    for section in STRICT {
        let Some(spoilt) = spoilt(&config, section) else {
            continue;
        };
        let refused = read(&spoilt.to_string())
            .err()
            .expect("an unknown key passed");
        assert!(refused.to_string().contains(UNKNOWN), "{refused}");
    }
});
