//! `gateway run`: from the configuration to a Gateway that serves until it is told to stop.

mod assembly;
mod reload;
mod secret;
#[cfg(test)]
mod tests;
mod tools;
mod transcript;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub use assembly::{Gateway, GatewaySettings, Parts, StartError};
pub use secret::Secrets;

use super::exit::{Exit, Failure};
use super::output;
use crate::audit::AuditError;
use crate::auth::admission;
use crate::auth::rate_limit::LimiterSettings;
use crate::base::DeviceId;
use crate::config::{CommandRules, ServerFlags, ServerSettings, Settings, TailscaleMode};
use crate::ingress;
use crate::ingress::{Host, Origin};
use crate::net::{Bind, Tailnet};
use crate::nodes::CommandPolicy;

/// How long a command of the agent may run when the configuration names no time (half an hour, as the reference).
const EXEC_TIMEOUT: Duration = Duration::from_secs(1800);
/// How long one turn of the agent may take when the configuration names no time.
const TURN_TIMEOUT: Duration = Duration::from_secs(3600);
/// How long the end waits for work off the runtime, such as a program that is asked for a secret.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs the Gateway until it is told to stop.
pub fn run(settings: &Settings, flags: &ServerFlags) -> Result<(), Failure> {
    let mut running = reload::Running {
        settings: settings.clone(),
        flags: flags.clone(),
    };
    let server = settings.server(flags)?;
    let notes = notes(settings, &server);
    let settings = gateway_settings(settings, server)?;
    log_to_stderr(tracing::Level::INFO);
    let runtime = runtime()?;
    let ended = runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        // From here on a hang-up ends nothing.
        let mut hangup = signal(SignalKind::hangup())
            .map_err(|error| Failure::new(Exit::Software, error.to_string()))?;
        let mut gateway = Gateway::start(settings)
            .await
            .map_err(|error| not_started(&error))?;
        output::note(&format!(
            "portcullis {} listens: {}",
            crate::control::VERSION,
            gateway.listeners.join(", ")
        ));
        if let Some(tls) = &gateway.tls {
            output::note(&format!(
                "TLS only; certificate fingerprint sha256:{}",
                tls.fingerprint()
            ));
        }
        notes.iter().for_each(|note| output::note(note));
        let settled = tokio::select! {
            settled = gateway.settle() => settled.map(|()| None),
            reason = stop_signal() => Ok(Some(reason)),
        };
        let reason = match settled {
            Ok(Some(reason)) => reason,
            Ok(None) => {
                output::note("portcullis is ready");
                let mut stop = std::pin::pin!(stop_signal());
                loop {
                    tokio::select! {
                        reason = &mut stop => break reason,
                        _ = hangup.recv() => {}
                    }
                    // It waits only before anything has changed, so a stop may cut it off.
                    tokio::select! {
                        reason = &mut stop => break reason,
                        () = running.reload(&mut gateway) => {}
                    }
                }
            }
            Err(error) => {
                gateway.stop("the shared secret did not resolve").await;
                return Err(not_started(&error));
            }
        };
        output::note(&format!("stopping: {reason}"));
        gateway.stop(reason).await;
        Ok(())
    });
    runtime.shutdown_timeout(END_TIMEOUT);
    ended
}

/// Logs of this level (or of `OPENCLAW_LOG_LEVEL`) and above go to standard error, without colours, so that the peer's
/// bytes stay text.
pub(super) fn log_to_stderr(level: tracing::Level) {
    let wanted = std::env::var("OPENCLAW_LOG_LEVEL").ok();
    let level = wanted.and_then(|it| it.parse().ok()).unwrap_or(level);
    // A second subscriber is refused; the first one stays.
    let _ = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_max_level(level)
        .try_init();
}

/// The runtime of every long-lived command.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| {
            Failure::new(
                Exit::Temporary,
                format!("cannot start the runtime: {error}"),
            )
        })
}

/// Waits for SIGINT or SIGTERM.
pub(super) async fn stop_signal() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        let _ = tokio::signal::ctrl_c().await;
        return "interrupted";
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => "interrupted",
        _ = terminate.recv() => "terminated",
    }
}

/// A Gateway that did not start: 78 for what a restart cannot cure, 75 for what it can (decision 17).
pub(super) fn not_started(error: &StartError) -> Failure {
    let exit = match error {
        StartError::Bind(bind) if bind.is_temporary() => Exit::Temporary,
        StartError::Store(store) if store.is_temporary() => Exit::Temporary,
        StartError::Audit(AuditError::InUse { .. } | AuditError::DiskFull { .. }) => {
            Exit::Temporary
        }
        StartError::Bind(_)
        | StartError::Store(_)
        | StartError::Audit(_)
        | StartError::Hub(_)
        | StartError::Secret(_)
        | StartError::Tls(_) => Exit::Config,
    };
    Failure::new(exit, error.to_string())
}

/// What the operator has to do or to know before others come in.
fn notes(settings: &Settings, server: &ServerSettings) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(port) = server.doors.serve_port {
        let word = match server.tailscale {
            TailscaleMode::Funnel => "funnel",
            TailscaleMode::Serve | TailscaleMode::Off => "serve",
        };
        notes.push(format!(
            "to let the tailnet in, run: tailscale {word} --bg http://127.0.0.1:{port}"
        ));
    }
    if !server.doors.bind.is_loopback() && settings.gateway.tls.source.is_none() {
        notes.push(
            "warning: the main listener is plaintext and not on loopback; credentials are refused there, but between \
             tailnet addresses and from gateway.allowPlaintextFrom"
                .to_owned(),
        );
    }
    if settings.gateway.auth.allow_tailscale == Some(true) && !server.allow_tailscale {
        notes.push(
            "warning: gateway.auth.allowTailscale counts with gateway.tailscale.mode: \"serve\" only"
                .to_owned(),
        );
    }
    notes
}

fn gateway_settings(
    settings: &Settings,
    server: ServerSettings,
) -> Result<GatewaySettings, Failure> {
    let gateway = &settings.gateway;
    let auth = &gateway.auth;
    if !auth.rate_limit.exempt_loopback {
        let sentence = "gateway.auth.rateLimit.exemptLoopback: false is not served yet: programs on this host are slowed, never locked out";
        return Err(Failure::new(Exit::Config, sentence).with_remedy("remove the setting"));
    }
    let ingress = ingress_settings(settings, &server)?;
    let secrets = Secrets::configured(server.secret, settings.resolver.clone());
    if !secrets.takes_time() {
        secrets.settle()?;
    }
    let tailnet = server
        .doors
        .serve_port
        .map(|_| Arc::new(Tailnet::new(gateway.tailscale_socket.clone())));
    Ok(GatewaySettings {
        tailnet,
        state_dir: settings.paths.own.clone(),
        config_path: Some(settings.paths.config.clone()),
        doors: server.doors,
        audit_sync_always: settings.audit_sync_always,
        admission: admission::Settings {
            mode: server.mode,
            allow_tailscale: server.allow_tailscale,
            local_operator_scopes: auth.local_operator_scopes,
            auto_approve_local: gateway.nodes.auto_approve_local,
            auto_approve_cidrs: gateway.nodes.auto_approve_cidrs.clone(),
            control_ui_build: None,
        },
        limiter: LimiterSettings::new(
            f64::from(auth.rate_limit.max_attempts),
            auth.rate_limit.window.as_secs_f64() * 1000.0,
            auth.rate_limit.lockout.as_secs_f64() * 1000.0,
        )
        .map_err(|error| {
            Failure::new(
                Exit::Config,
                format!("{} must be positive, not {}", error.setting, error.got),
            )
        })?,
        secrets: Arc::new(secrets),
        ingress,
        commands: policy(&gateway.nodes.commands),
        per_node: per_node(&gateway.nodes.entries)?,
        serve_page: gateway.control_ui.enabled,
        tls: gateway.tls.clone(),
        exec_mode: settings.exec.mode,
        exec_timeout: settings.exec.timeout.unwrap_or(EXEC_TIMEOUT),
        exec_node: settings.exec.node.clone(),
        turn_timeout: settings.turn_timeout.unwrap_or(TURN_TIMEOUT),
    })
}

/// What the listeners trust. A host or origin that cannot be read is refused by name, never left out.
fn ingress_settings(
    settings: &Settings,
    server: &ServerSettings,
) -> Result<ingress::Settings, Failure> {
    let gateway = &settings.gateway;
    let unreadable = |setting: &str, got: &str, want: &str| {
        let sentence = format!("{setting}: {got:?} cannot be read; it must be {want}");
        Failure::new(Exit::Config, sentence)
    };
    let an_origin = "an origin as browsers send it, such as https://chat.example or http://10.0.0.5:8080, \
                     without a path; no * stands for others";
    let a_host =
        "a name such as gateway.example, or an address, without a port; no * stands for others";
    Ok(ingress::Settings {
        trusted_proxies: gateway.trusted_proxies.clone(),
        allow_real_ip: gateway.allow_real_ip_fallback,
        allowed_origins: gateway
            .control_ui
            .allowed_origins
            .iter()
            .map(|text| {
                Origin::parse(text)
                    .ok_or_else(|| unreadable("gateway.controlUi.allowedOrigins", text, an_origin))
            })
            .collect::<Result<_, _>>()?,
        public_hosts: gateway
            .public_hosts
            .iter()
            .map(|text| {
                Host::parse(text).ok_or_else(|| unreadable("gateway.publicHosts", text, a_host))
            })
            .collect::<Result<_, _>>()?,
        proxy_user: (server.mode == admission::Mode::TrustedProxy)
            .then(|| gateway.auth.trusted_proxy.clone()),
        tailnet_bind: server.doors.bind == Bind::Tailnet,
        allow_plaintext_from: gateway.allow_plaintext_from.clone(),
        admin_uid: rustix::process::geteuid().as_raw(),
        ..ingress::Settings::default()
    })
}

fn policy(rules: &CommandRules) -> CommandPolicy {
    CommandPolicy {
        allow: rules.allow.clone().unwrap_or_default(),
        deny: rules.deny.clone(),
        ..CommandPolicy::default()
    }
}

/// A rule for a node that is named in another way than by its whole id would be lost, so it is refused.
fn per_node(
    entries: &BTreeMap<String, CommandRules>,
) -> Result<Vec<(DeviceId, CommandPolicy)>, Failure> {
    entries
        .iter()
        .map(|(id, rules)| {
            let node = DeviceId::parse(id).ok_or_else(|| {
                let sentence = format!("gateway.nodes.entries: {id:?} is not a device id");
                Failure::new(Exit::Config, sentence).with_remedy(
                    "use the 64 hexadecimal digits that `portcullis nodes status --json` shows",
                )
            })?;
            let policy = CommandPolicy {
                deny: rules.deny.clone(),
                only: rules.allow.clone(),
                ..CommandPolicy::default()
            };
            Ok((node, policy))
        })
        .collect()
}
