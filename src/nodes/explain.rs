//! Whether a command would run on a node, layer by layer, each with its rule and with what would change it.
//!
//! The layers are judged by `policy::judge`, which is also what dispatch asks, so the two cannot disagree.

use serde::{Deserialize, Serialize};

use super::policy::{self, CommandPolicy, Layer, Surface};
use super::{HostFacts, LastClose, Refused};
use crate::base::DeviceId;
use crate::base::names::names;

names! {
    /// What one layer says, or all of them together.
    pub enum Verdict {
        Allow = "allow",
        /// It runs once it is approved.
        Ask = "ask",
        Deny = "deny",
        /// It could not be asked.
        Unknown = "unknown",
    }
}

impl Verdict {
    pub fn of(refused: Option<&Refused>) -> Self {
        match refused {
            None => Self::Allow,
            Some(Refused::ApprovalRequired { .. }) => Self::Ask,
            Some(_) => Self::Deny,
        }
    }
}

/// One layer's word.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    pub layer: String,
    pub verdict: Verdict,
    /// The rule that decided.
    pub rule: String,
    /// The setting or record in which that rule stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub setting: Option<String>,
    /// What would change it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<String>,
}

impl Finding {
    pub fn new(layer: &str, verdict: Verdict, rule: impl Into<String>) -> Self {
        Self {
            layer: layer.to_owned(),
            verdict,
            rule: rule.into(),
            setting: None,
            change: None,
        }
    }

    #[must_use]
    pub fn under(mut self, setting: impl Into<String>) -> Self {
        self.setting = Some(setting.into());
        self
    }

    /// A refusal on this node, by its full id.
    pub fn refused(layer: &str, refused: &Refused, node: &str) -> Self {
        let verdict = Verdict::of(Some(refused));
        Self {
            change: Some(refused.remedy_on(node)),
            ..Self::new(layer, verdict, refused.public_on(node))
        }
    }
}

/// The answer to `portcullis.nodes.explain`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    pub node_id: String,
    pub command: String,
    /// What dispatch would answer now.
    pub verdict: Verdict,
    /// Its refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// The one thing to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<String>,
    /// What the verdict does not say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    pub layers: Vec<Finding>,
}

/// The answer to `portcullis.nodes.report`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub ts: u64,
    /// Since when connects, closes and hits are counted: the start of the Gateway.
    pub since_ms: u64,
    pub nodes: Vec<NodeReport>,
}

/// A node's three states, each command's, and what is known of its sessions.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    pub node_id: String,
    pub online: bool,
    /// The number of its present session; a later session of any node has a higher one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    pub connects: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_close: Option<LastClose>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostFacts>,
    /// What its present or latest session says otherwise than the one before.
    pub changes: Vec<String>,
    pub commands: Vec<CommandReport>,
}

/// One (node, command) pair.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CommandReport {
    pub command: String,
    /// The node declares it and an operator approved it.
    pub callable: bool,
    /// The Gateway's policy lets it run, if need be with an approval.
    pub permitted: bool,
    /// What dispatch would answer now.
    pub verdict: Verdict,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<String>,
    /// How often it was dispatched.
    pub hits: u64,
}

/// The layers of a paired node that both the Gateway and its records know: online, declared, approved, policy, and for
/// browser control its path.
pub fn layers(
    policy: &CommandPolicy,
    platform: &str,
    surface: Surface<'_>,
    node: &DeviceId,
    command: &str,
) -> Vec<Finding> {
    let finding = |layer: Layer| {
        let name = layer.as_str();
        let setting = match layer {
            Layer::Policy => policy.setting(platform, command, node),
            Layer::Approved => "the node's approval record".to_owned(),
            Layer::Declared | Layer::Online | Layer::Path => "the node's session".to_owned(),
        };
        match policy::judge(layer, policy, platform, surface, command) {
            Ok(()) => {
                let rule = match layer {
                    Layer::Online => "the node has a session",
                    Layer::Declared => "the node declares it",
                    Layer::Approved if policy::is_reserved(command) => {
                        "an operator approved this node"
                    }
                    Layer::Policy if policy::is_reserved(command) => "no list denies it",
                    Layer::Approved => "an operator approved it for this node",
                    Layer::Policy => "the gateway's command policy permits it",
                    Layer::Path => "the node's path is not a public one",
                };
                Finding::new(name, Verdict::Allow, rule).under(setting)
            }
            Err(Refused::NotConnected) if layer == Layer::Declared => Finding::new(
                name,
                Verdict::Unknown,
                "only a connected node declares anything",
            ),
            Err(refused) => Finding::refused(name, &refused, node.as_str()).under(setting),
        }
    };
    // As one reads it, from the node to the policy; dispatch asks for the policy first.
    [
        Layer::Online,
        Layer::Declared,
        Layer::Approved,
        Layer::Policy,
        Layer::Path,
    ]
    .into_iter()
    .filter(|layer| *layer != Layer::Path || policy::is_browser(command))
    .map(finding)
    .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::policy::{decide, decide_any, is_reserved};
    use super::*;

    const COMMANDS: [&str; 6] = [
        "system.run",
        "system.which",
        "camera.snap",
        "browser.proxy",
        "device.info",
        "system.execApprovals.get",
    ];
    const PLATFORMS: [&str; 4] = ["linux", "ios", "macos 15.1", "plan9"];

    fn some_commands() -> impl Strategy<Value = Vec<String>> {
        let names: Vec<String> = COMMANDS.iter().map(|&name| name.to_owned()).collect();
        proptest::sample::subsequence(names, 0..=COMMANDS.len())
    }

    fn policies() -> impl Strategy<Value = CommandPolicy> {
        let only = proptest::option::of(some_commands());
        (some_commands(), some_commands(), some_commands(), only).prop_map(
            |(allow, deny, node_deny, only)| {
                let gateway = CommandPolicy {
                    allow,
                    deny,
                    ..CommandPolicy::default()
                };
                gateway.narrowed_by(Some(&CommandPolicy {
                    deny: node_deny,
                    only,
                    ..CommandPolicy::default()
                }))
            },
        )
    }

    proptest! {
        #[test]
        fn n1_an_explanation_never_disagrees_with_dispatch(
            policy in policies(),
            platform in proptest::sample::select(&PLATFORMS[..]),
            declared in proptest::option::of(some_commands()),
            approved in proptest::option::of(some_commands()),
            pending in any::<bool>(),
            public in any::<bool>(),
            command in proptest::sample::select(&COMMANDS[..]),
        ) {
            let surface = Surface {
                declared: declared.as_deref(),
                approved: approved.as_deref(),
                pending_request: pending.then_some("r1"),
                public_path: public.then_some("lan"),
            };
            let node = DeviceId::from_digest([1; 32]);
            let found = layers(&policy, platform, surface, &node, command);
            let dispatched = decide_any(&policy, platform, surface, command);
            let invoked = decide(&policy, platform, surface, command);
            match is_reserved(command) {
                true => prop_assert_eq!(invoked, Err(Refused::ReservedCommand)),
                false => prop_assert_eq!(&invoked, &dispatched),
            }
            let allows = found.iter().all(|finding| finding.verdict == Verdict::Allow);
            prop_assert_eq!(allows, dispatched.is_ok());
            if let Err(refused) = dispatched {
                let rule = refused.public_on(node.as_str());
                let named = found.iter().any(|finding| finding.verdict == Verdict::Deny && finding.rule == rule);
                prop_assert!(named, "{:?} is not among {:?}", rule, found);
            }
        }

        #[test]
        fn n8_a_longer_deny_list_and_a_nodes_own_entry_never_permit_more(
            policy in policies(),
            more in policies(),
            platform in proptest::sample::select(&PLATFORMS[..]),
            command in proptest::sample::select(&COMMANDS[..]),
        ) {
            let mut denying = policy.clone();
            denying.deny.extend(more.deny.iter().cloned());
            let narrowed = policy.narrowed_by(Some(&more));
            for stricter in [denying, narrowed] {
                let permits = stricter.check(platform, command).is_ok();
                let lists_deny = stricter.deny.iter().any(|name| name == command);
                prop_assert!(!permits || policy.check(platform, command).is_ok());
                prop_assert!(!permits || !lists_deny);
            }
        }

        #[test]
        fn n1_approving_a_subset_never_widens(
            policy in policies(),
            declared in some_commands(),
            approved in some_commands(),
            keep in any::<u8>(),
            command in proptest::sample::select(&COMMANDS[..]),
        ) {
            let subset: Vec<String> = approved
                .iter()
                .enumerate()
                .filter(|(at, _)| keep & (1 << at) != 0)
                .map(|(_, name)| name.clone())
                .collect();
            let runs = |approved: &[String]| {
                let surface = Surface {
                    declared: Some(&declared),
                    approved: Some(approved),
                    pending_request: None,
                    public_path: None,
                };
                decide(&policy, "linux", surface, command).is_ok()
            };
            prop_assert!(!runs(&subset) || runs(&approved));
            prop_assert!(!runs(&subset) || (subset.iter().any(|name| name == command) && declared.iter().any(|name| name == command)));
        }
    }
}
