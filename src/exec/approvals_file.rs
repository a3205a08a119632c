//! A node's own exec policy, `exec-approvals.json`: what it may only tighten, and its allowlists.
//!
//! In: the file's text. Out: the policy for an agent. Attacker controls: what an administrator of the Gateway sets over
//! `exec.approvals.node.set`; it never loosens what the node's configuration says.
//! Bounds: `EXEC_POLICY_BYTES_MAX`, `EXEC_RULES_MAX`. Errors: `BadFile`; whoever executes denies on it (X12).

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::base::limits::{EXEC_POLICY_BYTES_MAX, EXEC_RULES_MAX};
use crate::exec::allowlist::Rule;
use crate::exec::policy::Mode;

/// What the reference shows of a file that is not there.
pub const EMPTY: &str = r#"{"version":1,"defaults":{},"agents":{}}"#;

/// What holds for one agent's commands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    pub mode: Mode,
    pub rules: Vec<Rule>,
}

impl Policy {
    pub fn allows(&self, exact: &Rule, name: &str) -> bool {
        self.rules.iter().any(|rule| rule.allows(exact, name))
    }
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    #[serde(default, rename = "socket")]
    _socket: IgnoredAny,
    #[serde(default)]
    defaults: Words,
    #[serde(default)]
    agents: BTreeMap<String, Agent>,
}

#[derive(Deserialize, Debug, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Words {
    security: Option<String>,
    ask: Option<String>,
    ask_fallback: Option<String>,
    #[serde(default, rename = "autoAllowSkills")]
    _auto_allow_skills: IgnoredAny,
}

#[derive(Deserialize, Debug, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Agent {
    security: Option<String>,
    ask: Option<String>,
    ask_fallback: Option<String>,
    #[serde(default)]
    allowlist: Vec<Rule>,
    #[serde(default, rename = "autoAllowSkills")]
    _auto_allow_skills: IgnoredAny,
    #[serde(default, rename = "mcpTools")]
    _mcp_tools: IgnoredAny,
}

/// Why a policy file is none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BadFile {
    TooLarge { got: usize, limit: usize },
    TooManyRules { got: usize, limit: usize },
    Malformed(String),
}

impl fmt::Display for BadFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { got, limit } => write!(f, "{got} bytes, at most {limit}"),
            Self::TooManyRules { got, limit } => write!(f, "{got} rules, at most {limit}"),
            Self::Malformed(why) => f.write_str(why),
        }
    }
}

/// The policy of a node whose configuration says `own`, for one agent; every word that is said tightens it.
pub fn policy(text: &str, own: Mode, agent: Option<&str>) -> Result<Policy, BadFile> {
    let file = read(text)?;
    let mut mode = own.merge(words_mode(
        &file.defaults.security,
        &file.defaults.ask,
        &file.defaults.ask_fallback,
    )?);
    let mut rules = Vec::new();
    for (id, it) in file.agents {
        // A word for some other agent must be one, too: a file that is half understood is not understood.
        let of_agent = words_mode(&it.security, &it.ask, &it.ask_fallback)?;
        if id == "*" || Some(id.as_str()) == agent {
            mode = mode.merge(of_agent);
            rules.extend(it.allowlist);
        }
    }
    if mode == Mode::AskAlways {
        rules.clear();
    }
    Ok(Policy { mode, rules })
}

fn read(text: &str) -> Result<File, BadFile> {
    if text.len() > EXEC_POLICY_BYTES_MAX {
        return Err(BadFile::TooLarge {
            got: text.len(),
            limit: EXEC_POLICY_BYTES_MAX,
        });
    }
    // A key that stands twice could be read in two ways.
    crate::rpc::scan(text).map_err(|error| BadFile::Malformed(error.to_string()))?;
    let file: File =
        serde_json::from_str(text).map_err(|error| BadFile::Malformed(error.to_string()))?;
    if file.version != 1 {
        return Err(BadFile::Malformed("version is not 1".to_owned()));
    }
    let got = file
        .agents
        .values()
        .map(|agent| agent.allowlist.len())
        .sum();
    if got > EXEC_RULES_MAX {
        return Err(BadFile::TooManyRules {
            got,
            limit: EXEC_RULES_MAX,
        });
    }
    Ok(file)
}

/// Nothing said restricts nothing.
fn words_mode(
    security: &Option<String>,
    ask: &Option<String>,
    fallback: &Option<String>,
) -> Result<Mode, BadFile> {
    let said = Mode::from_legacy(
        Some(security.as_deref().unwrap_or("full")),
        Some(ask.as_deref().unwrap_or("off")),
        fallback.as_deref(),
    );
    said.map_err(|word| BadFile::Malformed(word.to_string()))
}

/// The file with one more rule for an agent, or for all.
pub fn with_rule(text: &str, agent: Option<&str>, rule: &Rule) -> Result<String, BadFile> {
    // Nothing is added to a file that would not be followed.
    policy(text, Mode::Full, agent)?;
    let malformed = |error: serde_json::Error| BadFile::Malformed(error.to_string());
    let mut file: Value = serde_json::from_str(text).map_err(malformed)?;
    let list = &mut file["agents"][agent.unwrap_or("*")]["allowlist"];
    match list.as_array_mut() {
        Some(rules) => rules.push(json!(rule)),
        None => *list = json!([rule]),
    }
    let text = serde_json::to_string_pretty(&file).map_err(malformed)?;
    read(&text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(text: &str, own: Mode) -> Option<Mode> {
        policy(text, own, Some("main")).ok().map(|it| it.mode)
    }

    #[test]
    fn x12_the_file_only_tightens() {
        let says = |words: &str| format!(r#"{{"version":1,"defaults":{words}}}"#);
        for own in [
            Mode::Deny,
            Mode::Allowlist,
            Mode::AskAlways,
            Mode::Ask,
            Mode::Full,
        ] {
            assert_eq!(mode(EMPTY, own), Some(own));
            assert_eq!(
                mode(&says(r#"{"security":"full","ask":"off"}"#), own),
                Some(own)
            );
            assert_eq!(mode(&says(r#"{"security":"deny"}"#), own), Some(Mode::Deny));
        }
        let always = says(r#"{"ask":"always"}"#);
        assert_eq!(mode(&always, Mode::Full), Some(Mode::AskAlways));
        assert_eq!(mode(&always, Mode::Ask), Some(Mode::AskAlways));
        let agents = r#"{"version":1,"agents":{"*":{"ask":"on-miss"},"other":{"security":"deny"},"main":{"security":"allowlist"}}}"#;
        assert_eq!(mode(agents, Mode::Full), Some(Mode::Allowlist));
    }

    #[test]
    fn x12_a_malformed_file_is_none() {
        for text in [
            "",
            "{}",
            "[]",
            r#"{"version":2}"#,
            r#"{"version":1,"defaults":{"security":"fulll"}}"#,
            r#"{"version":1,"defaults":{"Security":"deny"}}"#,
            r#"{"version":1,"agents":{"other":{"ask":"never"}}}"#,
            r#"{"version":1,"agents":{"a":{"allowlist":[{}]}}}"#,
            r#"{"version":1,"version":1}"#,
        ] {
            assert!(policy(text, Mode::Full, None).is_err(), "{text}");
        }
        let rules = vec![json!({"pattern": "/x"}); EXEC_RULES_MAX + 1];
        let text = json!({"version": 1, "agents": {"*": {"allowlist": rules}}}).to_string();
        assert!(matches!(
            policy(&text, Mode::Full, None),
            Err(BadFile::TooManyRules { .. })
        ));
    }

    #[test]
    fn x12_a_rule_with_a_field_that_is_not_known_makes_a_file_none() {
        let with = |field: &str| {
            let rule = format!(r#"{{"pattern":"/usr/bin/id",{field}}}"#);
            let text = format!(r#"{{"version":1,"agents":{{"*":{{"allowlist":[{rule}]}}}}}}"#);
            policy(&text, Mode::Ask, None)
        };
        for wrong in [
            r#""argpattern":"x""#,
            r#""args":[]"#,
            r#""arg_pattern":"x""#,
        ] {
            assert!(with(wrong).is_err(), "{wrong}");
        }
        let harmless = r#""id":"1","commandText":"x","lastUsedAt":null,"lastUsedCommand":"x","lastResolvedPath":"/x""#;
        assert_eq!(with(harmless).unwrap().rules.len(), 1);
    }

    #[test]
    fn a_rule_is_added_for_its_agent_and_the_rest_stays() {
        let rule = Rule::exact("/usr/bin/id", "00", &[], "/");
        let file = r#"{"version":1,"socket":{"path":"s"},"agents":{"main":{"mcpTools":[],"allowlist":[{"id":"1","pattern":"/a"}]}}}"#;
        let text = with_rule(file, Some("main"), &rule).unwrap();
        let file = policy(&text, Mode::Ask, Some("main")).unwrap();
        assert_eq!(file.rules.len(), 2);
        assert!(file.allows(&rule, "id"));
        assert!(!policy(&text, Mode::Ask, None).unwrap().allows(&rule, "id"));
        assert!(text.contains("\"id\": \"1\"") && text.contains("\"path\": \"s\""));
        let text = with_rule(EMPTY, None, &rule).unwrap();
        assert!(
            policy(&text, Mode::Ask, Some("any"))
                .unwrap()
                .allows(&rule, "id")
        );
        assert!(with_rule("{}", None, &rule).is_err());
        let half = r#"{"version":1,"defaults":{"ask":"never"}}"#;
        assert!(with_rule(half, None, &rule).is_err());
    }
}
