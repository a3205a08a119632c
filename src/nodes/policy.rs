//! What a node may run: declared by it, approved by an operator, allowed by the Gateway. All three.

use super::Refused;

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
    /// For one node: nothing but these.
    pub only: Option<Vec<String>>,
}

impl CommandPolicy {
    /// This policy with a node's own entry on top, which only ever narrows: its `deny` is added, and its `only`, if any,
    /// must name the command too.
    pub fn narrowed_by(&self, node: Option<&Self>) -> Self {
        let mut policy = self.clone();
        if let Some(node) = node {
            policy.deny.extend(node.deny.iter().cloned());
            policy.only.clone_from(&node.only);
        }
        policy
    }

    /// Whether the Gateway's own policy permits a command on a platform. Deny wins over allow.
    pub fn check(&self, platform: &str, command: &str) -> Result<(), Refused> {
        let named = |list: &[String]| list.iter().any(|entry| entry == command || entry == "*");
        if named(&self.deny) {
            return Err(Refused::Denied {
                command: command.to_owned(),
            });
        }
        let allowed = self.allow.iter().any(|entry| entry == command)
            || platform_defaults(platform).contains(&command);
        let narrowed_out = self
            .only
            .as_ref()
            .is_some_and(|only| !only.iter().any(|entry| entry == command));
        if narrowed_out {
            Err(Refused::Denied {
                command: command.to_owned(),
            })
        } else if allowed {
            Ok(())
        } else {
            Err(Refused::NotAllowlisted {
                command: command.to_owned(),
            })
        }
    }
}

/// What an operator approved for a node, as `node.list` names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApprovalState {
    Approved,
    PendingApproval,
    PendingReapproval,
    Unapproved,
}

impl ApprovalState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::PendingApproval => "pending-approval",
            Self::PendingReapproval => "pending-reapproval",
            Self::Unapproved => "unapproved",
        }
    }
}

/// A node's commands as its records hold them.
#[derive(Clone, Copy, Debug)]
pub struct Surface<'a> {
    /// What the live session declared; `None` when the node is offline.
    pub declared: Option<&'a [String]>,
    /// What an operator approved; `None` when nothing was ever approved.
    pub approved: Option<&'a [String]>,
    pub pending_request: Option<&'a str>,
}

/// Whether a command may run on a node now: declared ∩ approved ∩ policy. The order is the order of refusals.
pub fn decide(
    policy: &CommandPolicy,
    platform: &str,
    surface: Surface<'_>,
    command: &str,
) -> Result<(), Refused> {
    if command.starts_with("system.execApprovals.") {
        return Err(Refused::ReservedCommand);
    }
    policy.check(platform, command)?;
    let Some(declared) = surface.declared else {
        return Err(Refused::NotConnected);
    };
    if !declared.iter().any(|name| name == command) {
        return Err(Refused::NotDeclared {
            command: command.to_owned(),
        });
    }
    match surface.approved {
        Some(approved) if approved.iter().any(|name| name == command) => Ok(()),
        Some(_) if surface.pending_request.is_none() => Err(Refused::NotApproved {
            command: command.to_owned(),
        }),
        _ => Err(Refused::SurfacePending {
            request_id: surface.pending_request.map(str::to_owned),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn n1_effective_is_declared_and_approved_and_allowed() {
        let policy = CommandPolicy::default();
        let declared = names(&["system.run", "system.which", "camera.snap"]);
        let approved = names(&["system.which", "camera.snap"]);
        let full = Surface {
            declared: Some(&declared),
            approved: Some(&approved),
            pending_request: None,
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
        let declared = names(&["system.execApprovals.set"]);
        let surface = Surface {
            declared: Some(&declared),
            approved: Some(&declared),
            pending_request: None,
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
        policy.allow = names(&["camera.snap"]);
        assert_eq!(policy.check("ios", "camera.snap"), Ok(()));
        policy.deny = names(&["camera.snap"]);
        assert_eq!(
            policy.check("ios", "camera.snap"),
            Err(Refused::Denied {
                command: "camera.snap".to_owned()
            })
        );
    }

    #[test]
    fn a_node_entry_only_narrows() {
        let gateway = CommandPolicy::default();
        let entry = CommandPolicy {
            only: Some(names(&["system.which", "camera.snap"])),
            ..CommandPolicy::default()
        };
        let policy = gateway.narrowed_by(Some(&entry));
        assert_eq!(policy.check("linux", "system.which"), Ok(()));
        assert!(policy.check("linux", "system.run").is_err());
        assert!(policy.check("linux", "camera.snap").is_err());
        assert_eq!(
            gateway.narrowed_by(None).check("linux", "system.run"),
            Ok(())
        );
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
