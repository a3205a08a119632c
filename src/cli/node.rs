//! `node run`.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use super::args::NodeRunArgs;
use super::exit::{Exit, Failure};
use super::node_service;
use super::output;
use super::session::{self, Context};
use crate::client::call::shown;
use crate::client::credentials::{self, Caller, Query, Target};
use crate::client::{ConnectError, Endpoint, Identity, Sent, WsUrl};
use crate::config::GatewayMode;
use crate::machine;
use crate::node_host::connect::{self, Notice, Stopped};
use crate::node_host::{self, Host, Settings as HostSettings};

pub async fn run(context: &Context, args: &NodeRunArgs) -> Result<(), Failure> {
    let settings = &context.settings;
    let url = session::pinned(context, url(context, args)?)?;
    let shared = shared(context);
    if context.common.url.is_some() {
        // An address from elsewhere gets only what is given with it (D4), and without that no byte.
        shared().map_err(|why| Failure::new(Exit::Config, why))?;
    }
    let _lock = node_service::lock(context)?;
    let identity = Arc::new(Identity::load_or_create(&settings.paths.identity_dir())?);
    output::note(&format!("node {}", identity.id()));
    // Its own policy can only narrow what the Gateway decides; a host that is told to ask leaves the asking to it.
    let host = HostSettings::of_process(settings.exec.mode)
        .map(|host| {
            let policy_path = Some(settings.paths.exec_approvals_file());
            Host::new(HostSettings {
                policy_path,
                browser: settings.browser.clone(),
                ..host
            })
        })
        .map_err(|error| Failure::new(Exit::Config, format!("no working directory: {error}")))?;
    let host = match &args.commands {
        None => host,
        Some(commands) => host.offering(commands).map_err(|unknown| {
            let sentence = format!("--commands: {unknown:?} is not a command of this node host");
            Failure::new(Exit::Config, sentence)
                .with_remedy(format!("choose among {}", node_host::COMMANDS.join(", ")))
        })?,
    };
    let own = settings.paths.own.clone();
    let host_settings = connect::Settings {
        endpoint: Endpoint::Tcp(url),
        identity,
        display_name: args.display_name.clone().unwrap_or_else(machine::host_name),
        break_glass: session::break_glass(&settings.env),
        shared,
        notify: Box::new(move |notice| {
            let sentence = sentence(notice);
            output::note(&sentence);
            if !matches!(notice, Notice::TokenNotKept { .. }) {
                node_service::keep_state(&own, &sentence);
            }
        }),
    };
    let stop = stop_signal()?;
    match connect::run(host_settings, Arc::new(host), stop).await {
        Stopped::ByUs => Ok(()),
        Stopped::Refused(ConnectError::Refused(error)) => Err(Failure {
            // Whatever ends a node host for good, a restart will not cure.
            exit: Exit::Config,
            ..Failure::of_refusal(&error)
        }),
        Stopped::Refused(error) => Err(error.into()),
        Stopped::Credentials(why) => Err(Failure::new(Exit::Config, why)),
    }
}

fn url(context: &Context, args: &NodeRunArgs) -> Result<WsUrl, Failure> {
    if let Some(url) = &context.common.url {
        return Ok(WsUrl::parse(url)?);
    }
    let settings = &context.settings;
    let port = match args.port {
        Some(port) => port,
        None => settings.port(None)?,
    };
    let mut url = WsUrl::new(args.host.trim_matches(['[', ']']), port);
    let is_ours = url.host == "127.0.0.1" && settings.gateway.mode == GatewayMode::Local;
    if is_ours && args.port.is_none() {
        url.host = session::loopback_or_bound(settings, "--host")?;
    }
    url.tls = args.tls || !args.no_tls && is_ours && settings.gateway.tls.source.is_some();
    Ok(url)
}

/// The shared secret, looked up anew for each attempt, so that a rotated one is found.
fn shared(context: &Context) -> Box<dyn Fn() -> Result<Sent, String> + Send + Sync> {
    let settings = context.settings.clone();
    let token = session::explicit(context.common.token.as_ref());
    let password = session::explicit(context.common.password.as_ref());
    let target = match context.common.url {
        Some(_) => Target::FlagUrl,
        None => Target::Configured,
    };
    Box::new(move || {
        let chosen = credentials::choose(&Query {
            mode: settings.gateway.mode,
            target,
            caller: Caller::NodeHost,
            explicit_token: token.as_ref(),
            explicit_password: password.as_ref(),
            places: &session::places(&settings),
        });
        chosen
            .map(Sent::from)
            .map_err(|refused| refused.to_string())
    })
}

fn sentence(notice: &Notice) -> String {
    match notice {
        Notice::Connected { gateway, version } => {
            format!("connected to {gateway} (gateway {})", shown(version))
        }
        Notice::PairingRequired { request_id } => {
            let id = request_id.as_deref().map(shown).unwrap_or_default();
            format!(
                "this device waits for approval; on the gateway's machine: portcullis devices approve {id}"
            )
        }
        Notice::Disconnected { why, retry_in } => {
            format!("{why}; trying again in {:.1} s", retry_in.as_secs_f32())
        }
        Notice::TokenNotKept { why } => format!("the device token could not be kept: {why}"),
    }
}

/// Ends when a supervisor or the terminal says so.
fn stop_signal() -> Result<impl Future<Output = ()>, Failure> {
    let failed = |error| Failure::new(Exit::Software, format!("no signals: {error}"));
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
