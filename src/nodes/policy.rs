//! What a node may run: declared by it, approved by an operator, allowed by the Gateway. All three.

use serde::{Deserialize, Serialize};

use super::Refused;
use crate::base::DeviceId;
use crate::base::names::names;
use crate::exec::{Mode, Prepared};

/// Commands that the Gateway allows on a platform unless the configuration says otherwise.
///
/// Only commands that look, resolve or run under exec approval stand here. Cameras, screens, messages, files and
/// browsers need `gateway.nodes.commands.allow`.
pub fn platform_defaults(platform: &str) -> &'static [&'static str] {
    const DESKTOP: &[&str] = &[
        "system.run",
        "system.run.prepare",
        "system.which",
        "system.notify",
    ];
    const MOBILE: &[&str] = &["device.info", "device.status", "system.notify"];
    // `platform` is canonical ASCII; anything else is unknown and gets nothing.
    match platform {
        "linux" | "darwin" | "macos" | "win32" | "windows" => DESKTOP,
        "ios" | "ipados" | "android" | "watchos" => MOBILE,
        _ => {
            let family = platform.split([' ', '/']).next().unwrap_or_default();
            match family {
                "macos" | "darwin" | "linux" | "windows" => DESKTOP,
                "ios" | "ipados" | "android" | "watchos" => MOBILE,
                _ => &[],
            }
        }
    }
}

/// `gateway.nodes.commands` and the per-node entries.
#[derive(Clone, Default, Debug)]
pub struct CommandPolicy {
    pub allow: Vec<String>,
    pub deny: Vec<String>,
    /// For one node: denied in addition.
    pub node_deny: Vec<String>,
    /// For one node: nothing but these.
    pub only: Option<Vec<String>>,
}

/// Which list denied a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeniedBy {
    Gateway,
    Node,
    /// The node's list of what alone is allowed, on which it does not stand.
    NodeAllow,
}

impl DeniedBy {
    pub fn setting(self) -> &'static str {
        match self {
            Self::Gateway => "gateway.nodes.commands.deny",
            Self::Node => "gateway.nodes.entries.<id>.commands.deny",
            Self::NodeAllow => "gateway.nodes.entries.<id>.commands.allow",
        }
    }
}

impl CommandPolicy {
    /// This policy with a node's own entry on top, which only ever narrows: its `deny` is added, and its `only`, if any,
    /// must name the command too.
    pub fn narrowed_by(&self, node: Option<&Self>) -> Self {
        let mut policy = self.clone();
        if let Some(node) = node {
            policy.node_deny.extend(node.deny.iter().cloned());
            if let Some(only) = &node.only {
                let both = |name: &&String| policy.only.as_ref().is_none_or(|old| names(old, name));
                policy.only = Some(only.iter().filter(both).cloned().collect());
            }
        }
        policy
    }

    /// Whether the Gateway's own policy permits a command on a platform. Deny wins over allow.
    pub fn check(&self, platform: &str, command: &str) -> Result<(), Refused> {
        self.check_denials(command)?;
        if names(&self.allow, command) || platform_defaults(platform).contains(&command) {
            Ok(())
        } else {
            Err(Refused::NotAllowlisted {
                command: command.to_owned(),
            })
        }
    }

    /// Whether no list denies a command, whatever would have to allow it.
    pub fn check_denials(&self, command: &str) -> Result<(), Refused> {
        match self.denied_by(command) {
            None => Ok(()),
            Some(by) => Err(Refused::Denied {
                command: command.to_owned(),
                by,
            }),
        }
    }

    /// The setting that decides about a command on a node.
    pub fn setting(&self, platform: &str, command: &str, node: &DeviceId) -> String {
        if let Some(by) = self.denied_by(command) {
            by.setting().replace("<id>", node.as_str())
        } else if names(&self.allow, command) {
            "gateway.nodes.commands.allow".to_owned()
        } else if platform_defaults(platform).contains(&command) {
            format!("the defaults of platform {platform:?}")
        } else {
            format!("gateway.nodes.commands.allow; not a default of platform {platform:?}")
        }
    }

    fn denied_by(&self, command: &str) -> Option<DeniedBy> {
        let denies = |list: &[String]| names(list, command) || names(list, "*");
        if denies(&self.deny) {
            Some(DeniedBy::Gateway)
        } else if denies(&self.node_deny) {
            Some(DeniedBy::Node)
        } else {
            let only = self.only.as_ref()?;
            (!names(only, command)).then_some(DeniedBy::NodeAllow)
        }
    }
}

fn names(list: &[String], command: &str) -> bool {
    list.iter().any(|entry| entry == command)
}

/// A node's commands as its records hold them.
#[derive(Clone, Copy, Debug)]
pub struct Surface<'a> {
    /// What the live session declared; `None` when the node is offline.
    pub declared: Option<&'a [String]>,
    /// What an operator approved; `None` when nothing was ever approved.
    pub approved: Option<&'a [String]>,
    pub pending_request: Option<&'a str>,
    /// The path of the live session, if it is a public one.
    pub public_path: Option<&'a str>,
}

/// Whose path to the Gateway.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathOf {
    Caller,
    Node,
}

names! {
    /// What a paired node's command must pass, in the order of refusals.
    pub enum Layer {
        Policy = "policy",
        Online = "online",
        Declared = "declared",
        Approved = "approved",
        Path = "path",
    }
}

/// One layer's word about a command. Of one that has methods of its own it is those methods' word: their scope takes the
/// place of `gateway.nodes.commands.allow`, and an approval of the node is one of them.
pub fn judge(
    layer: Layer,
    policy: &CommandPolicy,
    platform: &str,
    surface: Surface<'_>,
    command: &str,
) -> Result<(), Refused> {
    match (layer, surface.declared) {
        (Layer::Policy, _) if is_reserved(command) => policy.check_denials(command),
        (Layer::Policy, _) => policy.check(platform, command),
        (Layer::Online | Layer::Declared, None) => Err(Refused::NotConnected),
        (Layer::Online, Some(_)) => Ok(()),
        (Layer::Declared, Some(declared)) if names(declared, command) => Ok(()),
        (Layer::Declared, Some(_)) => Err(Refused::NotDeclared {
            command: command.to_owned(),
        }),
        (Layer::Approved, _) => match surface.approved {
            Some(approved) if names(approved, command) || is_reserved(command) => Ok(()),
            Some(_) if surface.pending_request.is_none() => Err(Refused::NotApproved {
                command: command.to_owned(),
            }),
            _ => Err(Refused::SurfacePending {
                request_id: surface.pending_request.map(str::to_owned),
            }),
        },
        (Layer::Path, _) => check_path(command, PathOf::Node, surface.public_path),
    }
}

/// Whether `node.invoke` may run a command on a node now: declared ∩ approved ∩ policy.
pub fn decide(
    policy: &CommandPolicy,
    platform: &str,
    surface: Surface<'_>,
    command: &str,
) -> Result<(), Refused> {
    if is_reserved(command) {
        return Err(Refused::ReservedCommand);
    }
    decide_any(policy, platform, surface, command)
}

/// The same of a command that has methods of its own, for those methods.
pub fn decide_any(
    policy: &CommandPolicy,
    platform: &str,
    surface: Surface<'_>,
    command: &str,
) -> Result<(), Refused> {
    Layer::ALL
        .iter()
        .try_for_each(|layer| judge(*layer, policy, platform, surface, command))
}

/// Whether a command controls a browser, which is operator access to whatever that browser is signed in to.
pub fn is_browser(command: &str) -> bool {
    command == "browser.proxy" || command.starts_with("browser.proxy.")
}

/// Whether a command may cross a path; `public` names one that is. Browser control crosses none such (decision 24).
pub fn check_path(command: &str, of: PathOf, public: Option<&str>) -> Result<(), Refused> {
    match public.filter(|_| is_browser(command)) {
        None => Ok(()),
        Some(path) => Err(Refused::PublicPath {
            command: command.to_owned(),
            of,
            path: path.to_owned(),
        }),
    }
}

/// Whether a command has methods of its own and is not for `node.invoke` (N6).
pub fn is_reserved(command: &str) -> bool {
    command.starts_with("system.execApprovals.")
}

/// Whether the Gateway's exec mode lets a `system.run` go out: the node's allowlist holds it, or an operator's word,
/// typed or given, stands behind it. Where only the list counts, no word takes its place (X12).
pub fn exec_gate(
    mode: Mode,
    listed: bool,
    approved: bool,
    run_id: Option<&str>,
) -> Result<(), Refused> {
    match mode {
        Mode::Full => Ok(()),
        Mode::Deny => Err(Refused::ExecDenied),
        Mode::Allowlist if listed => Ok(()),
        Mode::Allowlist => Err(Refused::AllowlistMiss),
        Mode::AskAlways if approved => Ok(()),
        Mode::Ask if approved || listed => Ok(()),
        Mode::AskAlways | Mode::Ask => Err(Refused::ApprovalRequired {
            run_id: run_id.map(str::to_owned),
        }),
    }
}

/// What stands behind a `system.run`, whatever the Gateway's mode is by the time it goes out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ExecGrounds {
    /// The node's own mode, if its plan names one.
    pub node: Option<Mode>,
    /// The node's allowlist holds it.
    pub listed: bool,
    /// An operator's word, typed or given.
    pub approved: bool,
}

impl ExecGrounds {
    pub fn of(prepared: &Prepared, approved: bool) -> Self {
        Self {
            node: prepared.node_mode(),
            listed: prepared.is_listed(),
            approved,
        }
    }

    /// `exec_gate` where the node's own mode is known too: the stricter of the two counts, and a refusal that only the
    /// node's brings about says so.
    pub fn check(self, mode: Mode, run_id: Option<&str>) -> Result<(), Refused> {
        let gate = |mode| exec_gate(mode, self.listed, self.approved, run_id);
        let alone = gate(mode);
        let (Ok(()) | Err(Refused::ApprovalRequired { .. }), Some(node)) = (&alone, self.node)
        else {
            return alone;
        };
        gate(mode.merge(node)).map_err(|refused| match refused {
            Refused::ApprovalRequired { .. } => refused,
            _ => Refused::NodeExecMode {
                gateway: mode.as_str().to_owned(),
                node: node.as_str().to_owned(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x6_unclear_chains_need_an_approval_whatever_a_node_says() {
        let rule = serde_json::json!({"pattern": "/**"});
        let gate = |chain: &str| {
            let argv: Vec<&str> = chain.split('|').collect();
            let answer = serde_json::json!({
                "plan": {"argv": argv, "commandText": "", "policySnapshot": {"security": "allowlist",
                    "ask": "on-miss", "askFallback": "deny", "allowlistRules": [rule]}},
                "allowAlwaysCoverage": {"complete": true, "patterns": [{"pattern": "/usr/bin/id"}]},
            });
            let prepared = Prepared::parse(&answer.to_string()).unwrap();
            exec_gate(Mode::Ask, prepared.is_listed(), false, None)
        };
        assert_eq!(gate("/usr/bin/env|/usr/bin/id"), Ok(()));
        for chain in [
            "/usr/bin/env|-S|sh -c /usr/bin/id",
            "/usr/bin/nice|/usr/bin/nohup|/usr/bin/timeout|1|/usr/bin/env|/bin/sh|-c|/usr/bin/id",
            "/bin/busybox|sh|-c|/usr/bin/id",
            "/usr/bin/script|-c|/usr/bin/id",
            "/usr/bin/time|/usr/bin/id",
        ] {
            let asks = Err(Refused::ApprovalRequired { run_id: None });
            assert_eq!(gate(chain), asks, "{chain}");
        }
    }

    fn list(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn n1_effective_is_declared_and_approved_and_allowed() {
        let policy = CommandPolicy::default();
        let declared = list(&["system.run", "system.which", "camera.snap"]);
        let approved = list(&["system.which", "camera.snap"]);
        let full = Surface {
            declared: Some(&declared),
            approved: Some(&approved),
            pending_request: None,
            public_path: None,
        };
        assert_eq!(decide(&policy, "linux", full, "system.which"), Ok(()));
        assert_eq!(
            decide(&policy, "linux", full, "system.run"),
            Err(Refused::NotApproved {
                command: "system.run".to_owned()
            })
        );
        assert_eq!(
            decide(&policy, "linux", full, "system.run.prepare"),
            Err(Refused::NotDeclared {
                command: "system.run.prepare".to_owned()
            })
        );
        let pending = Surface {
            approved: None,
            pending_request: Some("r1"),
            ..full
        };
        assert_eq!(
            decide(&policy, "linux", pending, "system.which"),
            Err(Refused::SurfacePending {
                request_id: Some("r1".to_owned())
            })
        );
        let offline = Surface {
            declared: None,
            ..full
        };
        assert_eq!(
            decide(&policy, "linux", offline, "system.which"),
            Err(Refused::NotConnected)
        );
    }

    #[test]
    fn n6_exec_approvals_have_methods_of_their_own() {
        let declared = list(&["system.execApprovals.set"]);
        let surface = Surface {
            declared: Some(&declared),
            approved: Some(&declared),
            pending_request: None,
            public_path: None,
        };
        let policy = CommandPolicy {
            allow: declared.clone(),
            ..CommandPolicy::default()
        };
        assert_eq!(
            decide(&policy, "linux", surface, "system.execApprovals.set"),
            Err(Refused::ReservedCommand)
        );
    }

    #[test]
    fn n8_deny_beats_allow_and_dangerous_commands_are_opt_in() {
        let mut policy = CommandPolicy::default();
        for command in ["camera.snap", "screen.record", "sms.send", "browser.proxy"] {
            let refused = Err(Refused::NotAllowlisted {
                command: command.to_owned(),
            });
            assert_eq!(policy.check("ios", command), refused);
            assert_eq!(policy.check("linux", command), refused);
        }
        policy.allow = list(&["camera.snap"]);
        assert_eq!(policy.check("ios", "camera.snap"), Ok(()));
        policy.deny = list(&["camera.snap"]);
        assert_eq!(
            policy.check("ios", "camera.snap"),
            Err(Refused::Denied {
                command: "camera.snap".to_owned(),
                by: DeniedBy::Gateway,
            })
        );
    }

    #[test]
    fn n8_browser_control_crosses_no_public_path() {
        let policy = CommandPolicy {
            allow: list(&["browser.proxy", "browser.proxy.upload.v1", "camera.snap"]),
            ..CommandPolicy::default()
        };
        let names = policy.allow.clone();
        for path in [None, Some("funnel"), Some("lan")] {
            let surface = Surface {
                declared: Some(&names),
                approved: Some(&names),
                pending_request: None,
                public_path: path,
            };
            for command in &names {
                let refused = Refused::PublicPath {
                    command: command.clone(),
                    of: PathOf::Node,
                    path: path.unwrap_or_default().to_owned(),
                };
                let crosses = path.is_none() || command == "camera.snap";
                let expected = if crosses { Ok(()) } else { Err(refused) };
                assert_eq!(decide(&policy, "linux", surface, command), expected);
                assert_eq!(check_path(command, PathOf::Caller, path).is_ok(), crosses);
            }
        }
        assert!(!is_browser("browser.proxyfoo") && !is_browser("browser"));
    }

    #[test]
    fn a_node_entry_only_narrows() {
        let gateway = CommandPolicy::default();
        let entry = CommandPolicy {
            only: Some(list(&["system.which", "camera.snap"])),
            ..CommandPolicy::default()
        };
        let policy = gateway.narrowed_by(Some(&entry));
        assert_eq!(policy.check("linux", "system.which"), Ok(()));
        assert!(policy.check("linux", "camera.snap").is_err());
        assert_eq!(
            policy.check("linux", "system.run"),
            Err(Refused::Denied {
                command: "system.run".to_owned(),
                by: DeniedBy::NodeAllow,
            })
        );
        let id = DeviceId::from_digest([1; 32]);
        let setting = policy.setting("linux", "system.run", &id);
        assert_eq!(
            setting,
            format!("gateway.nodes.entries.{id}.commands.allow")
        );
        assert_eq!(
            gateway.narrowed_by(None).check("linux", "system.run"),
            Ok(())
        );
    }

    #[test]
    fn x12_no_word_takes_the_place_of_the_allowlist() {
        let gate = |mode, listed, approved| exec_gate(mode, listed, approved, None);
        let required = Err(Refused::ApprovalRequired { run_id: None });
        for approved in [false, true] {
            assert_eq!(gate(Mode::Full, false, approved), Ok(()));
            assert_eq!(gate(Mode::Ask, true, approved), Ok(()));
            assert_eq!(gate(Mode::Allowlist, true, approved), Ok(()));
            assert_eq!(
                gate(Mode::Allowlist, false, approved),
                Err(Refused::AllowlistMiss)
            );
            for listed in [false, true] {
                assert_eq!(gate(Mode::Deny, listed, approved), Err(Refused::ExecDenied));
            }
        }
        assert_eq!(gate(Mode::Ask, false, true), Ok(()));
        assert_eq!(gate(Mode::Ask, false, false), required);
        assert_eq!(gate(Mode::AskAlways, true, false), required);
        assert_eq!(gate(Mode::AskAlways, false, true), Ok(()));
    }

    #[test]
    fn x12_the_stricter_of_gateway_and_node_counts_and_says_whose_it_is() {
        for (gateway, node, listed, approved) in (0..100).map(|n| {
            let mode = |n: usize| Mode::ALL[n % 5];
            (mode(n), mode(n / 5), n / 25 % 2 == 0, n / 50 == 0)
        }) {
            let alone = exec_gate(gateway, listed, approved, None);
            let both = exec_gate(gateway.merge(node), listed, approved, None);
            let grounds = |node| ExecGrounds {
                node,
                listed,
                approved,
            };
            let found = grounds(Some(node)).check(gateway, None);
            assert_eq!(found.is_ok(), both.is_ok(), "{gateway:?} {node:?}");
            let of_node = matches!(found, Err(Refused::NodeExecMode { .. }));
            let asks =
                |it: &Result<(), Refused>| matches!(it, Err(Refused::ApprovalRequired { .. }));
            assert_eq!(asks(&found), asks(&both) && (alone.is_ok() || asks(&alone)));
            assert!(!of_node || alone.is_ok() || asks(&alone));
            assert_eq!(grounds(None).check(gateway, None), alone);
        }
    }

    #[test]
    fn n3_an_unknown_platform_gets_nothing() {
        let policy = CommandPolicy::default();
        for platform in ["ｍacos", "m\u{430}cos", "macos\u{a0}", "", "linuxx"] {
            assert!(
                policy.check(platform, "system.run").is_err(),
                "{platform:?}"
            );
        }
        assert!(policy.check("macos 15.1", "system.run").is_ok());
    }
}
