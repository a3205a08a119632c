//! Reading the configuration again (SIGHUP).
//!
//! In: the config file. Out: other rules in force, all at once, and the end of sessions that the old ones carried and the
//! new ones do not; or a refusal, and nothing has changed. Attacker controls: nothing, unless they can write the file.
//! Errors: those of the start, and a change of what is bound, which only a restart can make.

use std::sync::Arc;

use super::super::exit::{Exit, Failure};
use super::{Gateway, GatewaySettings, gateway_settings};
use crate::audit::{Actor, Durability, Event};
use crate::auth::admission;
use crate::config::{ServerFlags, Settings};
use crate::hub::{self, Withdrawal};
use crate::ingress;
use crate::session::Rules;

/// Settings that count from the reload on. Others below `gateway` and `tools.exec` wait for a restart.
const LIVE: &[&str] = &[
    "gateway.auth",
    "gateway.trustedProxies",
    "gateway.allowRealIpFallback",
    "gateway.allowPlaintextFrom",
    "gateway.publicHosts",
    "gateway.controlUi.allowedOrigins",
    "gateway.nodes",
    "gateway.remote",
    "tools.exec.mode",
    "tools.exec.node",
    "tools.exec.security",
    "tools.exec.ask",
    "tools.exec.askFallback",
    "agents.entries.main.tools.exec.node",
];

/// What is bound, and for whom. Rules that were judged with other listeners than those that are open are not put in
/// force: what is safe on loopback may not be on a network.
const BOUND: &[&str] = &[
    "gateway.mode",
    "gateway.port",
    "gateway.bind",
    "gateway.customBindHost",
    "gateway.proxy",
    "gateway.tailscale",
    "gateway.tls",
];

fn is_below(path: &str, roots: &[&str]) -> bool {
    roots.iter().any(|root| {
        let rest = path.strip_prefix(root);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

/// The configuration that a Gateway runs by.
pub(super) struct Running {
    pub settings: Settings,
    pub flags: ServerFlags,
}

impl Running {
    /// Says in the log what came of it.
    pub(super) async fn reload(&mut self, gateway: &mut Gateway) {
        match self.try_reload(gateway).await {
            Ok(()) => {}
            Err(failure) => tracing::error!(
                error = %failure,
                "the configuration was not reloaded; the one before stays in force"
            ),
        }
    }

    async fn try_reload(&mut self, gateway: &mut Gateway) -> Result<(), Failure> {
        let (old, flags) = (self.settings.clone(), self.flags.clone());
        let read = tokio::task::spawn_blocking(move || read(&old, &flags));
        let (new, built, changed) = read
            .await
            .map_err(|_| Failure::new(Exit::Software, "the configuration could not be read"))??;
        let door = &gateway.front.door;
        let before = door.rules();
        // Asked of the local daemon, not read: it is the same host before and after.
        let ingress = ingress::Settings {
            tailnet_name: before.ingress.tailnet_name.clone(),
            ..built.ingress
        };
        let withdrawal = if before.ingress.is_narrowed_by(&ingress) {
            Some(Withdrawal::Ingress)
        } else if is_narrowed(&before.admission, &built.admission) {
            Some(Withdrawal::Rules)
        } else {
            (!built.secrets.is_the_same_as(&gateway.secrets)).then_some(Withdrawal::Secret)
        };
        let hub = &gateway.hub;
        let event = Event::ConfigChanged {
            paths: changed.iter().map(|path| path.as_str().into()).collect(),
            by: Actor::System { rule: "SIGHUP" },
        };
        // What cannot be recorded does not happen.
        gateway
            .audit
            .append(&event, Durability::Synced)
            .map_err(|error| Failure::new(Exit::Temporary, error.to_string()))?;
        // Before the number is drawn: a refresh of the old keeper that ends later must not withdraw under a newer one.
        gateway.secrets.end(hub);
        let since = hub.next_standing();
        built.secrets.begin(since);
        let before = hub.set_settings(hub::Settings {
            commands: built.commands,
            per_node: built.per_node,
            exec_mode: built.exec_mode,
            auth_mode: built.admission.mode.as_str(),
        });
        gateway.agent.set_exec_node(built.exec_node);
        let rules = Rules {
            admission: built.admission,
            ingress,
            secret: Arc::clone(&built.secrets) as _,
            since,
        };
        door.set_rules(rules, built.limiter);
        let closed = withdrawal.map_or(0, |what| hub.withdraw(what, since));
        // After everything that takes something away.
        let refiling = Arc::clone(hub);
        let refiled = tokio::task::spawn_blocking(move || refiling.refile_surfaces(&before));
        let _ = refiled.await;
        gateway.secrets = built.secrets;
        let waiting: Vec<&String> = changed
            .iter()
            .filter(|path| is_below(path, &["gateway", "tools.exec", "agents", "audit"]))
            .filter(|path| !is_below(path, LIVE))
            .collect();
        if !waiting.is_empty() {
            tracing::warn!(settings = ?waiting, "changed settings that wait for a restart");
        }
        tracing::warn!(settings = ?changed, closed, "the configuration was reloaded");
        self.settings = new;
        Ok(())
    }
}

/// Reads and judges all of it, as at the start.
fn read(
    old: &Settings,
    flags: &ServerFlags,
) -> Result<(Settings, GatewaySettings, Vec<String>), Failure> {
    let new = old.reload()?;
    let changed = new.changed_since(old);
    let bound: Vec<&str> = changed
        .iter()
        .map(String::as_str)
        .filter(|path| is_below(path, BOUND))
        .collect();
    if !bound.is_empty() {
        let sentence = format!("{} can only change with a restart", bound.join(", "));
        return Err(Failure::new(Exit::Config, sentence).with_remedy("restart the gateway"));
    }
    let built = gateway_settings(&new, new.server(flags)?)?;
    built.secrets.settle()?;
    Ok((new, built, changed))
}

/// Whether somebody whom the old settings admitted without a device token could be refused by the new ones, or get less.
fn is_narrowed(old: &admission::Settings, new: &admission::Settings) -> bool {
    old.mode != new.mode
        || (old.allow_tailscale && !new.allow_tailscale)
        || !new
            .local_operator_scopes
            .allows_all(old.local_operator_scopes)
}
