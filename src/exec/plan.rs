//! What a node says it would run (`system.run.prepare`), and what it is held to (`system.run`).
//!
//! In: the payload of a prepare result. Out: a `Prepared`: the plan as we read it, and its JSON as it came, because the
//! official node accepts only the very plan that it made. Attacker controls: a node controls every field.
//! Bounds: `EXEC_ARGS_MAX`, `EXEC_ARGV_BYTES_MAX`; the frame bounds the rest. Errors: `PlanError`.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::base::limits::{EXEC_ARGS_MAX, EXEC_ARGV_BYTES_MAX};
use crate::exec::allowlist::{self, Rule};
use crate::exec::policy::Mode;

/// One command, exactly. Unknown fields are passed over in reading; `Prepared::raw` still has them.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    pub argv: Vec<String>,
    #[serde(default)]
    pub cwd: Option<String>,
    /// The node's own rendering of argv; for people we render argv again (`argv_text`).
    pub command_text: String,
    #[serde(default)]
    pub command_preview: Option<String>,
    #[serde(default)]
    pub agent_id: Option<String>,
    #[serde(default)]
    pub session_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mutable_file_operand: Option<FileOperand>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_snapshot: Option<PolicySnapshot>,
}

/// A file that the command runs and whose content the approval covers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileOperand {
    pub argv_index: usize,
    pub path: String,
    pub sha256: String,
}

/// The node's policy when it made the plan; a plan does not outlive it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicySnapshot {
    pub security: String,
    pub ask: String,
    pub ask_fallback: String,
    #[serde(default)]
    pub auto_allow_skills: bool,
    #[serde(default)]
    pub allowlist_rules: Vec<serde_json::Value>,
}

impl PolicySnapshot {
    pub fn of(mode: Mode) -> Self {
        let (security, ask) = mode.legacy();
        Self {
            security: security.into(),
            ask: ask.into(),
            ask_fallback: "deny".into(),
            auto_allow_skills: false,
            allowlist_rules: Vec::new(),
        }
    }
}

/// A node's answer to `system.run.prepare`.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub plan: Plan,
    /// The plan's JSON as the node wrote it, for `systemRunPlan`.
    pub raw: Box<RawValue>,
    /// The rules that an `allow-always` would keep; empty if none could cover the command.
    pub coverage: Vec<Rule>,
}

/// Why a node's plan is not used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlanError {
    /// No `plan`, or not of a plan's shape.
    Malformed,
    BadArgv(ArgvError),
    /// The plan is for something other than what was asked.
    NotWhatWasAsked {
        field: &'static str,
    },
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => f.write_str("node returned no valid systemRunPlan"),
            Self::BadArgv(error) => write!(f, "node returned a plan with bad argv: {error}"),
            Self::NotWhatWasAsked { field } => {
                write!(f, "node returned a plan with another {field}")
            }
        }
    }
}

/// Why an argument vector is no command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ArgvError {
    /// No program, or a blank one.
    Empty,
    /// A NUL cannot reach a program.
    Nul,
    TooMany {
        got: usize,
        limit: usize,
    },
    TooLarge {
        got: usize,
        limit: usize,
    },
}

impl fmt::Display for ArgvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("command required"),
            Self::Nul => f.write_str("command holds a NUL"),
            Self::TooMany { got, limit } => {
                write!(f, "command has {got} arguments, at most {limit}")
            }
            Self::TooLarge { got, limit } => write!(f, "command has {got} bytes, at most {limit}"),
        }
    }
}

/// Whether argv can be executed at all.
pub fn check_argv(argv: &[String]) -> Result<(), ArgvError> {
    if argv.first().is_none_or(|program| program.trim().is_empty()) {
        return Err(ArgvError::Empty);
    }
    if argv.len() > EXEC_ARGS_MAX {
        return Err(ArgvError::TooMany {
            got: argv.len(),
            limit: EXEC_ARGS_MAX,
        });
    }
    let bytes = argv.iter().map(String::len).sum();
    if bytes > EXEC_ARGV_BYTES_MAX {
        return Err(ArgvError::TooLarge {
            got: bytes,
            limit: EXEC_ARGV_BYTES_MAX,
        });
    }
    if argv.iter().any(|arg| arg.contains('\0')) {
        return Err(ArgvError::Nul);
    }
    Ok(())
}

/// What the Gateway asked a node to prepare.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub argv: &'a [String],
    pub agent_id: Option<&'a str>,
    pub session_key: Option<&'a str>,
}

impl Prepared {
    /// Reads a prepare result's payload.
    pub fn parse(payload_json: &str) -> Result<Self, PlanError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Payload {
            plan: Box<RawValue>,
            #[serde(default)]
            allow_always_coverage: serde_json::Value,
        }
        #[derive(Deserialize)]
        struct Coverage {
            complete: bool,
            patterns: Vec<Rule>,
        }
        let payload: Payload =
            serde_json::from_str(payload_json).map_err(|_| PlanError::Malformed)?;
        let mut prepared = Self::of_plan(payload.plan)?;
        // What we cannot read covers nothing.
        if let Ok(Coverage {
            complete: true,
            patterns,
        }) = serde_json::from_value(payload.allow_always_coverage)
        {
            prepared.coverage = patterns;
        }
        Ok(prepared)
    }

    /// Reads a plan by itself.
    pub fn of_plan(raw: Box<RawValue>) -> Result<Self, PlanError> {
        let plan: Plan = serde_json::from_str(raw.get()).map_err(|_| PlanError::Malformed)?;
        check_argv(&plan.argv).map_err(PlanError::BadArgv)?;
        Ok(Self {
            plan,
            raw,
            coverage: Vec::new(),
        })
    }

    /// Whether an `allow-always` would mean something: the node could keep it, and the command is one that we follow.
    pub fn may_always(&self) -> bool {
        !self.coverage.is_empty() && allowlist::inner(&self.plan.argv).is_some()
    }

    /// The mode of the node's own policy, if the plan names it in words that we know.
    pub fn node_mode(&self) -> Option<Mode> {
        let words = self.plan.policy_snapshot.as_ref()?;
        Mode::from_legacy(Some(&words.security), Some(&words.ask), None).ok()
    }

    /// Whether the node says that its allowlist holds the command already. It decides again when the command comes,
    /// without an approval of ours.
    pub fn is_listed(&self) -> bool {
        let rules = self.plan.policy_snapshot.iter();
        let rules: Vec<Rule> = rules
            .flat_map(|snapshot| &snapshot.allowlist_rules)
            .filter_map(|rule| serde_json::from_value(rule.clone()).ok())
            .collect();
        let Some(inner) = allowlist::inner(&self.plan.argv) else {
            return false;
        };
        let listed = |exact: &Rule| rules.iter().any(|rule| rule.allows(exact, &inner[0]));
        self.may_always() && self.coverage.iter().all(listed)
    }

    /// Whether the node planned what was asked and nothing else: it may only turn a program's name into an absolute
    /// path, and a cwd into that which its links lead to. What it then planned is what is shown and approved.
    pub fn check_asked(&self, asked: &Asked<'_>) -> Result<(), PlanError> {
        let wrong = |field| Err(PlanError::NotWhatWasAsked { field });
        let plan = &self.plan;
        let (Some((program, args)), Some((asked_program, asked_args))) =
            (plan.argv.split_first(), asked.argv.split_first())
        else {
            return wrong("argv");
        };
        if args != asked_args || (program != asked_program && !program.starts_with('/')) {
            return wrong("argv");
        }
        if plan.cwd.as_deref().is_some_and(|cwd| !cwd.starts_with('/')) {
            return wrong("cwd");
        }
        if plan.agent_id.as_deref() != asked.agent_id {
            return wrong("agentId");
        }
        if plan.session_key.as_deref() != asked.session_key {
            return wrong("sessionKey");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // From b_node_session.jsonl and f_node_side_agent_exec.jsonl, with the digest filled in.
    const ECHO: &str = r#"{"plan":{"argv":["/usr/bin/echo","hello"],"cwd":"/lab","commandText":"/usr/bin/echo hello","commandPreview":null,"agentId":null,"sessionKey":null,"mutableFileOperand":{"argvIndex":0,"path":"/usr/bin/echo","sha256":"00ff"},"policySnapshot":{"security":"full","ask":"off","askFallback":"deny","autoAllowSkills":false,"allowlistRules":[]}},"execPolicy":{"security":"full","ask":"off"},"allowAlwaysCoverage":{"complete":true,"patterns":[]}}"#;
    const SHELL: &str = r#"{"plan":{"argv":["/bin/sh","-lc","echo from-node; uname -s"],"cwd":"/lab","commandText":"/bin/sh -lc \"echo from-node; uname -s\"","commandPreview":"echo from-node; uname -s","agentId":"main","sessionKey":"agent:main:labnode2","policySnapshot":{"security":"full","ask":"off","askFallback":"deny","autoAllowSkills":false,"allowlistRules":[]}}}"#;

    fn argv(args: &[&str]) -> Vec<String> {
        args.iter().map(|arg| (*arg).to_owned()).collect()
    }

    #[test]
    fn recorded_plans_are_read_and_written_alike() {
        for recorded in [ECHO, SHELL] {
            let prepared = Prepared::parse(recorded).unwrap();
            assert_eq!(
                serde_json::to_string(&prepared.plan).unwrap(),
                prepared.raw.get()
            );
        }
        let shell = Prepared::parse(SHELL).unwrap().plan;
        assert_eq!(shell.policy_snapshot, Some(PolicySnapshot::of(Mode::Full)));
        assert_eq!(
            crate::exec::argv_text::render(&shell.argv),
            shell.command_text
        );
    }

    #[test]
    fn what_we_do_not_know_goes_back_unchanged() {
        let plan = r#"{"argv":["x"], "later" : [1.0,{"z":1,"a":2}],"commandText":"x"}"#;
        let prepared = Prepared::parse(&format!("{{\"plan\":{plan}}}")).unwrap();
        assert_eq!(prepared.raw.get(), plan);
        assert_eq!(prepared.plan.cwd, None);
    }

    #[test]
    fn plans_of_no_use_are_refused() {
        for wrong in [
            "",
            "{}",
            "null",
            r#"{"plan":null}"#,
            r#"{"plan":{"argv":"x","commandText":"x"}}"#,
            r#"{"plan":{"argv":["x"],"argv":["y"],"commandText":"x"}}"#,
        ] {
            assert_eq!(
                Prepared::parse(wrong).unwrap_err(),
                PlanError::Malformed,
                "{wrong}"
            );
        }
        for (bad, error) in [
            ("[]", ArgvError::Empty),
            (r#"[" "]"#, ArgvError::Empty),
            (r#"["a","\u0000"]"#, ArgvError::Nul),
        ] {
            let payload = format!(r#"{{"plan":{{"argv":{bad},"commandText":""}}}}"#);
            assert_eq!(
                Prepared::parse(&payload).unwrap_err(),
                PlanError::BadArgv(error)
            );
        }
        assert!(matches!(
            check_argv(&vec!["a".to_owned(); EXEC_ARGS_MAX + 1]),
            Err(ArgvError::TooMany { .. })
        ));
        assert!(matches!(
            check_argv(&["a".repeat(EXEC_ARGV_BYTES_MAX + 1)]),
            Err(ArgvError::TooLarge { .. })
        ));
    }

    #[test]
    fn x1_a_node_may_not_plan_something_else() {
        let prepared = Prepared::parse(ECHO).unwrap();
        let hello = argv(&["echo", "hello"]);
        let asked = Asked {
            argv: &hello,
            agent_id: None,
            session_key: None,
        };
        assert_eq!(prepared.check_asked(&asked), Ok(()));
        let other = argv(&["echo", "hello "]);
        assert_eq!(
            prepared.check_asked(&Asked {
                argv: &other,
                ..asked
            }),
            Err(PlanError::NotWhatWasAsked { field: "argv" })
        );
        assert_eq!(
            prepared.check_asked(&Asked {
                agent_id: Some("main"),
                ..asked
            }),
            Err(PlanError::NotWhatWasAsked { field: "agentId" })
        );
        assert_eq!(
            prepared.check_asked(&Asked {
                session_key: Some("s"),
                ..asked
            }),
            Err(PlanError::NotWhatWasAsked {
                field: "sessionKey"
            })
        );
    }
}
