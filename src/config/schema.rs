//! Which settings there are, and what becomes of each.
//!
//! "Known" is the reference's own schema plus the few settings that only Portcullis has. The walk is strict under
//! the roots of `STRICT`: an unknown key is an error that names the nearest known one. A known setting that is not
//! served is a warning, or a refusal by name where ignoring it would weaken what the operator asked for.

use super::error::ConfigError;
use super::tree::Tree;

/// Sections in which a typo must not pass silently.
const STRICT: [&str; 5] = [
    "audit",
    "gateway",
    "nodeHost.browserProxy",
    "secrets",
    "tools.exec",
];

/// Distance up to which another key counts as a likely spelling.
const TYPO_DISTANCE_MAX: usize = 3;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    /// `resolve` reads it. Also every object on the way to a setting.
    Served,
    /// Nothing here uses it; ignoring it takes no protection away. Everything below it is ignored too.
    Ignored,
    /// Ignoring it would weaken what it asks for. The text says what to do instead.
    Refused(&'static str),
    /// Refused only when it is `true`: then ignoring it would weaken.
    RefusedIfTrue(&'static str),
}

use Use::{Ignored, Refused, RefusedIfTrue, Served};

/// One line a setting; `*` is any key.
const SETTINGS: &[(&str, Use)] = &[
    ("audit.sync", Served),
    ("audit.enabled", Ignored),
    ("audit.messages", Ignored),
    ("audit.executionIdentity", Ignored),
    ("gateway.mode", Served),
    ("gateway.port", Served),
    ("gateway.bind", Served),
    ("gateway.customBindHost", Served),
    ("gateway.publicHosts", Served),
    ("gateway.allowPlaintextFrom", Served),
    ("gateway.trustedProxies", Served),
    ("gateway.allowRealIpFallback", Served),
    ("gateway.auth.mode", Served),
    ("gateway.auth.token", Served),
    ("gateway.auth.password", Served),
    ("gateway.auth.allowTailscale", Served),
    ("gateway.auth.localOperatorScopes", Served),
    ("gateway.auth.rateLimit.maxAttempts", Served),
    ("gateway.auth.rateLimit.windowMs", Served),
    ("gateway.auth.rateLimit.lockoutMs", Served),
    ("gateway.auth.rateLimit.exemptLoopback", Served),
    (
        "gateway.auth.identityScopes",
        Refused("remove it: no identity provider admits anyone yet"),
    ),
    ("gateway.auth.trustedProxy.userHeader", Served),
    ("gateway.auth.trustedProxy.requiredHeaders", Served),
    ("gateway.auth.trustedProxy.allowUsers", Served),
    ("gateway.auth.trustedProxy.allowLoopback", Served),
    ("gateway.auth.trustedProxy.deviceAutoApprove", Ignored),
    ("gateway.remote.url", Served),
    ("gateway.remote.token", Served),
    ("gateway.remote.password", Served),
    ("gateway.remote.tlsFingerprint", Served),
    ("gateway.remote.transport", Served),
    ("gateway.remote.remotePort", Ignored),
    ("gateway.remote.sshTarget", Ignored),
    ("gateway.remote.sshIdentity", Ignored),
    ("gateway.remote.sshHostKeyPolicy", Ignored),
    ("gateway.remote.edgeAuth", Ignored),
    ("gateway.controlUi.enabled", Served),
    ("gateway.controlUi.allowedOrigins", Served),
    ("gateway.controlUi.basePath", Ignored),
    ("gateway.controlUi.root", Ignored),
    ("gateway.controlUi.dangerouslyDisableDeviceAuth", Served),
    (
        "gateway.controlUi.dangerouslyAllowHostHeaderOriginFallback",
        Ignored,
    ),
    ("gateway.controlUi.experimental", Ignored),
    ("gateway.controlUi.environment", Ignored),
    ("gateway.controlUi.communityInvite", Ignored),
    ("gateway.controlUi.github", Ignored),
    ("gateway.controlUi.sessionObserver", Ignored),
    ("gateway.controlUi.embedSandbox", Ignored),
    ("gateway.controlUi.allowExternalEmbedUrls", Ignored),
    ("gateway.controlUi.automaticallyFetchFavicons", Ignored),
    ("gateway.tls.enabled", Served),
    ("gateway.tls.autoGenerate", Served),
    ("gateway.tls.certPath", Served),
    ("gateway.tls.keyPath", Served),
    (
        "gateway.tls.caPath",
        Refused(
            "put the whole chain into the file of gateway.tls.certPath; clients are not asked for certificates",
        ),
    ),
    ("gateway.tailscale.mode", Served),
    ("gateway.tailscale.servePort", Served),
    ("gateway.tailscale.socket", Served),
    ("gateway.tailscale.preserveFunnel", Ignored),
    ("gateway.proxy.port", Served),
    ("gateway.proxy.bind", Served),
    ("gateway.proxy.socket", Served),
    ("gateway.proxy.socketMode", Served),
    ("gateway.nodes.commands.allow", Served),
    ("gateway.nodes.commands.deny", Served),
    ("gateway.nodes.allowCommands", Served),
    ("gateway.nodes.denyCommands", Served),
    ("gateway.nodes.pairing.autoApproveLocal", Served),
    ("gateway.nodes.pairing.autoApproveCidrs", Served),
    ("gateway.nodes.pairing.sshVerify", Ignored),
    ("gateway.nodes.entries.*.commands.allow", Served),
    ("gateway.nodes.entries.*.commands.deny", Served),
    ("gateway.nodes.browser", Ignored),
    ("gateway.nodes.pluginTools", Ignored),
    ("gateway.nodes.allowSkills", Ignored),
    (
        "gateway.roles",
        Refused("remove it and narrow callers with gateway.auth.localOperatorScopes"),
    ),
    ("gateway.tools", Ignored),
    ("gateway.http.endpoints", Ignored),
    (
        "gateway.http.securityHeaders.strictTransportSecurity",
        Served,
    ),
    ("gateway.push", Ignored),
    ("gateway.reload", Ignored),
    ("gateway.terminal", Ignored),
    ("gateway.cliAgents", Ignored),
    ("gateway.portals", Ignored),
    ("gateway.publicOrigin", Ignored),
    ("nodeHost.browserProxy.enabled", Served),
    ("nodeHost.browserProxy.allowProfiles", Served),
    ("secrets.providers.*.source", Served),
    ("secrets.providers.*.allowlist", Served),
    ("secrets.providers.*.path", Served),
    ("secrets.providers.*.mode", Served),
    ("secrets.providers.*.maxBytes", Served),
    ("secrets.providers.*.timeoutMs", Served),
    ("secrets.providers.*.command", Served),
    ("secrets.providers.*.args", Served),
    ("secrets.providers.*.noOutputTimeoutMs", Served),
    ("secrets.providers.*.maxOutputBytes", Served),
    ("secrets.providers.*.jsonOnly", Served),
    ("secrets.providers.*.env", Served),
    ("secrets.providers.*.passEnv", Served),
    ("secrets.providers.*.trustedDirs", Served),
    ("secrets.providers.*.pluginIntegration", Ignored),
    ("secrets.defaults.env", Served),
    ("secrets.defaults.file", Served),
    ("secrets.defaults.exec", Served),
    ("secrets.defaults.store", Ignored),
    (
        "secrets.egressProxy.enabled",
        RefusedIfTrue("set it to false: nothing here would filter what it should"),
    ),
    ("secrets.egressProxy.allowedHosts", Ignored),
    ("secrets.egressProxy.bypassHosts", Ignored),
    ("tools.exec.host", Ignored),
    ("tools.exec.mode", Served),
    ("tools.exec.security", Served),
    ("tools.exec.ask", Served),
    ("tools.exec.askFallback", Served),
    ("tools.exec.node", Served),
    ("tools.exec.timeoutSeconds", Served),
    ("tools.exec.pathPrepend", Ignored),
    ("tools.exec.safeBins", Ignored),
    ("tools.exec.safeBinTrustedDirs", Ignored),
    ("tools.exec.safeBinProfiles", Ignored),
    ("tools.exec.strictInlineEval", Ignored),
    ("tools.exec.commandHighlighting", Ignored),
    ("tools.exec.grantExpiryDays", Ignored),
    ("tools.exec.reviewer", Ignored),
    ("tools.exec.backgroundMs", Ignored),
    ("tools.exec.approvalRunningNoticeMs", Ignored),
    ("tools.exec.cleanupMs", Ignored),
    ("tools.exec.notifyOnExit", Ignored),
    ("tools.exec.notifyOnExitEmptySuccess", Ignored),
    ("tools.exec.applyPatch", Ignored),
];

/// A known setting that has no effect here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ineffective {
    pub setting: String,
}

/// Walks the strict sections. Warns of what has no effect, refuses what is unknown or would weaken.
pub(super) fn check(tree: &Tree) -> Result<Vec<Ineffective>, ConfigError> {
    let mut warnings = Vec::new();
    for root in STRICT {
        if let Some(section) = tree.at(root) {
            walk(root, root, section, &mut warnings)?;
        }
    }
    Ok(warnings)
}

/// `shape` is `setting` with `*` where the table has it.
fn walk(
    setting: &str,
    shape: &str,
    section: &Tree,
    warnings: &mut Vec<Ineffective>,
) -> Result<(), ConfigError> {
    let Tree::Map(entries) = section else {
        return Err(ConfigError::bad(setting, section.kind(), "an object"));
    };
    for (key, value) in entries {
        let path = format!("{setting}.{}", key.escape_debug());
        let Some((shape, found)) = look_up(shape, key) else {
            return Err(ConfigError::UnknownKey {
                setting: path,
                nearest: nearest(shape, key).map(|near| format!("{setting}.{near}")),
            });
        };
        match found {
            _ if matches!(value, Tree::Null) => {}
            Found::Section => walk(&path, &shape, value, warnings)?,
            Found::Setting(Served) => {}
            Found::Setting(RefusedIfTrue(_)) if !matches!(value, Tree::Bool(true)) => {}
            Found::Setting(Ignored) => warnings.push(Ineffective { setting: path }),
            Found::Setting(Refused(instead) | RefusedIfTrue(instead)) => {
                return Err(ConfigError::NotServed {
                    setting: path,
                    instead: instead.to_owned(),
                });
            }
        }
    }
    Ok(())
}

enum Found {
    Section,
    Setting(Use),
}

fn look_up(shape: &str, key: &str) -> Option<(String, Found)> {
    for name in [key, "*"] {
        // A key with a dot, or a literal `*`, must not be read as a path of the table.
        if key.contains('.') && name == key {
            continue;
        }
        let path = format!("{shape}.{name}");
        if let Some((_, found)) = SETTINGS.iter().find(|(known, _)| *known == path) {
            return Some((path, Found::Setting(*found)));
        }
        let inside = format!("{path}.");
        if SETTINGS.iter().any(|(known, _)| known.starts_with(&inside)) {
            return Some((path, Found::Section));
        }
    }
    None
}

/// The key of this section that is spelled most like `key`, if one is spelled much like it.
fn nearest(shape: &str, key: &str) -> Option<&'static str> {
    let inside = format!("{shape}.");
    SETTINGS
        .iter()
        .filter_map(|(known, _)| known.strip_prefix(inside.as_str()))
        .filter_map(|rest| rest.split('.').next())
        .filter(|name| *name != "*")
        .map(|name| (distance(&name.to_lowercase(), &key.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= TYPO_DISTANCE_MAX.min(name.len() / 2))
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein's distance, over at most 64 characters of each.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::super::tree::parse;
    use super::*;

    fn checked(text: &str) -> Result<Vec<Ineffective>, ConfigError> {
        check(&parse(text).unwrap())
    }

    #[test]
    fn a_typo_in_a_security_setting_names_the_nearest_key() {
        for (text, setting, near) in [
            ("{gateway:{binds:'lan'}}", "gateway.binds", "gateway.bind"),
            (
                "{gateway:{auth:{pasword:'x'}}}",
                "gateway.auth.pasword",
                "gateway.auth.password",
            ),
            (
                "{tools:{exec:{Mode:'deny'}}}",
                "tools.exec.Mode",
                "tools.exec.mode",
            ),
            (
                "{secrets:{provider:{}}}",
                "secrets.provider",
                "secrets.providers",
            ),
            (
                "{gateway:{nodes:{entries:{n1:{commands:{alow:[]}}}}}}",
                "gateway.nodes.entries.n1.commands.alow",
                "gateway.nodes.entries.n1.commands.allow",
            ),
        ] {
            assert_eq!(
                checked(text),
                Err(ConfigError::UnknownKey {
                    setting: setting.to_owned(),
                    nearest: Some(near.to_owned())
                }),
                "{text}"
            );
        }
    }

    #[test]
    fn a_key_like_nothing_known_has_no_suggestion() {
        let Err(ConfigError::UnknownKey { nearest, .. }) = checked("{gateway:{frobnicate:1}}")
        else {
            panic!("accepted");
        };
        assert_eq!(nearest, None);
        assert!(checked("{gateway:{'auth.mode':'none'}}").is_err());
    }

    #[test]
    fn other_sections_are_not_ours_to_judge() {
        assert_eq!(checked("{channels:{x:1}, tools:{web:{y:2}}}"), Ok(vec![]));
    }

    #[test]
    fn known_and_unserved_warns_or_refuses() {
        let warned = checked("{gateway:{reload:{mode:'off'}}}").unwrap();
        assert_eq!(warned[0].setting, "gateway.reload");
        for text in [
            "{gateway:{tls:{caPath:'/ca'}}}",
            "{gateway:{roles:{}}}",
            "{secrets:{egressProxy:{enabled:true}}}",
        ] {
            assert!(
                matches!(checked(text), Err(ConfigError::NotServed { .. })),
                "{text}"
            );
        }
        assert_eq!(checked("{gateway:{tls:{enabled:false}}}"), Ok(vec![]));
    }

    #[test]
    fn a_section_must_be_an_object() {
        assert!(matches!(
            checked("{gateway:{auth:'x'}}"),
            Err(ConfigError::BadValue { setting, .. }) if setting == "gateway.auth"
        ));
    }
}
