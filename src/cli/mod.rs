//! The command line.
//!
//! In: arguments, the config, the environment. Out: what was asked for on standard output, refusals with code and
//! remedy on standard error, an exit code that a supervisor can act on. Attacker controls: what a Gateway answers;
//! it is escaped before it reaches the terminal. Bounds: every wait has a deadline. Errors: [`exit::Failure`].

pub mod approvals;
pub mod args;
pub mod audit;
pub mod devices;
pub mod exit;
pub mod gateway;
#[cfg(feature = "node-host")]
pub mod node;
#[cfg(feature = "node-host")]
pub mod node_service;
pub mod nodes;
pub mod nodes_view;
pub mod output;
pub mod pending;
pub mod quickstart;
pub mod secrets;
pub mod serve;
pub mod session;

use std::future::Future;
use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command, Common, Gateway, RunArgs};
use exit::{Exit, Failure};
use session::Context;

use crate::config::ServerFlags;

pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing to add if the terminal is gone.
            let _ = error.print();
            // No restart cures a wrong command line (decision 17); help and version are what was asked for.
            return match error.use_stderr() {
                true => Exit::Config.into(),
                false => ExitCode::SUCCESS,
            };
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::note(&failure.to_string());
            failure.exit.into()
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { common, command } = cli;
    match command {
        Command::Quickstart(args) => quickstart::run(&args),
        Command::Gateway(args) => match args.command {
            None => serve_gateway(common, args.run),
            Some(Gateway::Run(run)) => serve_gateway(common, merge(args.run, run)),
            Some(Gateway::Status) => block_on(gateway::gateway_status(&Context::load(common)?)),
            Some(Gateway::Health) => block_on(gateway::health(&Context::load(common)?)),
            Some(Gateway::Call {
                method,
                params,
                expect_final,
            }) => {
                let context = Context::load(common)?;
                block_on(gateway::call(&context, &method, &params, expect_final))
            }
        },
        Command::Health => block_on(gateway::health(&Context::load(common)?)),
        Command::Status => block_on(gateway::status(&Context::load(common)?)),
        Command::Devices(command) => block_on(devices::run(&Context::load(common)?, &command)),
        Command::Nodes(command) => block_on(nodes::run(&Context::load(common)?, &command)),
        Command::Approvals(command) => block_on(approvals::run(&Context::load(common)?, &command)),
        Command::Agent(args) => block_on(gateway::agent(&Context::load(common)?, &args)),
        #[cfg(feature = "node-host")]
        Command::Node(command) => {
            let context = Context::load(common)?;
            match command {
                args::Node::Run(args) => block_on(node::run(&context, &args)),
                args::Node::Install(args) => node_service::install(&context, &args),
                args::Node::Uninstall => node_service::uninstall(&context),
                args::Node::Status => node_service::status(&context),
                args::Node::Stop => node_service::stop(&context),
                args::Node::Identity => node_service::identity(&context),
            }
        }
        Command::Secrets(command) => secrets::run(&Context::load(common)?, &command),
        Command::Audit(args) => audit::run(&Context::load(common)?, &args),
    }
}

fn serve_gateway(common: Common, run: RunArgs) -> Result<(), Failure> {
    // These say how a client reaches a Gateway. Taking them here would seem to set the Gateway's secret.
    if common.url.is_some() || common.token.is_some() || common.password.is_some() {
        return Err(Failure::new(
            Exit::Config,
            "gateway run takes no --url, --token or --password",
        )
        .with_remedy("set gateway.auth.password, or OPENCLAW_GATEWAY_PASSWORD"));
    }
    let context = Context::load(common)?;
    for warning in &context.settings.warnings {
        output::note(&format!(
            "portcullis: {} has no effect here",
            warning.setting
        ));
    }
    let flags = ServerFlags {
        port: run.port,
        bind: run.bind,
        auth: run.auth,
        tailscale: run.tailscale,
    };
    serve::run(&context.settings, &flags)
}

/// `gateway --port 1 run` and `gateway run --port 1` mean the same; the later one wins.
fn merge(outer: RunArgs, inner: RunArgs) -> RunArgs {
    RunArgs {
        port: inner.port.or(outer.port),
        bind: inner.bind.or(outer.bind),
        auth: inner.auth.or(outer.auth),
        tailscale: inner.tailscale.or(outer.tailscale),
    }
}

/// One command needs one thread.
fn block_on(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Temporary, format!("no runtime: {error}")))?;
    runtime.block_on(Box::pin(work))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_official_forms_are_understood() {
        for line in [
            "gateway --port 18789 --bind loopback --auth password",
            "gateway run --port 5",
            "gateway call health --params {} --json",
            "gateway status --json",
            "health --timeout 5000",
            "status --url ws://127.0.0.1:1 --token x",
            "devices list --json",
            "devices approve",
            "devices approve --latest",
            "devices approve 51f66ab5",
            "devices rename --device d --name n",
            "devices rotate --device d --role node --scope operator.read --scope operator.write",
            "devices rotate --device d --role node --no-scopes",
            "devices revoke --device d --role node",
            "devices remove d",
            "nodes status --connected",
            "nodes list --commands",
            "node run --commands system.which,system.run",
            "node install --host h --port 5 --print",
            "node identity --json",
            "nodes explain --node n --command system.run --params {} --json",
            "nodes approve r --commands system.run,system.which",
            "nodes invoke --node n --command system.which --params {\"bins\":[\"sh\"]} --invoke-timeout 5",
            "approvals list --json",
            "approvals approve r --always",
            "approvals deny r",
            "approvals watch",
            "agent --message hello",
            "quickstart --port 5 --once",
            "audit verify",
            "secrets audit --json",
            "audit tail -n 5",
        ] {
            let words = std::iter::once("portcullis").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
        for line in [
            "gateway --port 0",
            "gateway --port 65536",
            "health --timeout 0",
            "agent",
            "nodes invoke --node n",
        ] {
            let words = std::iter::once("portcullis").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }

    #[test]
    fn a_client_flag_never_seems_to_set_the_servers_secret() {
        let common = Common {
            password: Some("x".to_owned()),
            ..Common::default()
        };
        let failure = serve_gateway(common, RunArgs::default()).unwrap_err();
        assert_eq!(failure.exit, Exit::Config);
    }
}
