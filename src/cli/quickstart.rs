//! `quickstart`: the main job from end to end, with nothing configured.
//!
//! A Gateway in this process, a node host as a second one, a message through the agent, a command on the node, its
//! output back. Everything lives in a profile of its own and nothing of another program is touched.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use super::args::QuickstartArgs;
use super::exit::{Exit, Failure};
use super::gateway::printable;
use super::output::line;
use super::serve::{self, Gateway, GatewaySettings};
use crate::audit::Actor;
use crate::auth::scope::{Role, Scope, ScopeSet};
use crate::base::Secret;
use crate::base::ids::uuid_v4;
use crate::client::{Client, ConnectOptions, Endpoint, Events};
use crate::config::{Env, Paths};
use crate::hub::NodeView;
use crate::machine::{self, files};
use crate::rpc::types::agent::AgentEvent;
use crate::rpc::types::connect::{ClientId, ClientMode};

const PROFILE: &str = "quickstart";
const NODE_NAME: &str = "quickstart-node";
const MESSAGE: &str = "/run uname -a";
/// How long any one hop may take before it is named as the one that failed.
const HOP_TIMEOUT: Duration = Duration::from_secs(30);
const EXEC_TIMEOUT: Duration = Duration::from_secs(300);

/// What the browser of the sign-in link may do: read, chat, and approve what it types itself.
const BROWSER_SCOPES: [Scope; 3] = [Scope::Read, Scope::Write, Scope::Approvals];

/// Starts a Gateway and a node, and proves the way from a message to a command and back.
pub fn run(args: &QuickstartArgs) -> Result<(), Failure> {
    if cfg!(not(feature = "node-host")) {
        let sentence = "quickstart needs the node host, which this build does not have";
        return Err(Failure::new(Exit::Config, sentence).with_remedy("build the default features"));
    }
    serve::log_to_stderr(tracing::Level::WARN);
    serve::runtime()?.block_on(prove_and_serve(args))
}

async fn prove_and_serve(args: &QuickstartArgs) -> Result<(), Failure> {
    let paths = own_paths()?;
    let password = URL_SAFE_NO_PAD.encode(machine::random::<24>());
    let settings = settings(&paths, args.port, &password)?;
    let started = async {
        let mut gateway = Gateway::start(settings).await?;
        gateway.settle().await?;
        Ok(gateway)
    };
    let gateway = started.await.map_err(|error| {
        let failure = serve::not_started(&error);
        Failure::new(
            failure.exit,
            format!("hop 1, the gateway: {}", failure.sentence),
        )
    })?;
    line("Portcullis quickstart\n");
    line(&format!(
        "  gateway     127.0.0.1:{} (password mode)",
        gateway.port
    ));
    line(&format!("  profile     {}", paths.state.display()));
    line(&format!(
        "  password    {password}  (for this run only; not shown again)"
    ));
    // Watched from before the node host starts, so that no signal ends this process without its node.
    let mut stop = std::pin::pin!(serve::stop_signal());
    let proof = tokio::select! {
        biased;
        reason = &mut stop => Err(Failure::new(Exit::Temporary, format!("{reason} before the proof"))),
        proof = prove(&gateway, &paths, &password) => proof,
    };
    let end = match proof {
        Err(failure) => Err(failure),
        Ok(_) if args.once => Ok(()),
        Ok(node) => serve_on(&gateway, node.child, stop).await,
    };
    gateway
        .stop(if end.is_ok() {
            "quickstart ended"
        } else {
            "quickstart failed"
        })
        .await;
    end
}

/// The running node host. Its process ends with this one.
struct Node {
    child: Child,
}

async fn prove(gateway: &Gateway, paths: &Paths, password: &str) -> Result<Node, Failure> {
    let log = paths.own.join("quickstart-node.log");
    let mut child = start_node(paths, gateway.port, password, &log)
        .map_err(|error| hop(2, "starting the node host", &error.to_string()))?;
    let pid = child.id().unwrap_or_default();
    let node = online(gateway, &mut child, &log).await?;
    line(&format!(
        "  node        {} (device {}, pid {pid}), paired",
        node.name,
        short(&node)
    ));
    let (client, events) = connect(gateway).await?;
    approve(gateway, &client, &node).await?;
    line("  approved    system.run, system.run.prepare, system.which\n");
    say(&client, events).await?;
    Ok(Node { child })
}

/// Ctrl-C ends it; so does the end of the node host.
async fn serve_on(
    gateway: &Gateway,
    mut child: Child,
    stop: impl Future<Output = &'static str>,
) -> Result<(), Failure> {
    let scopes: ScopeSet = BROWSER_SCOPES.into_iter().collect();
    let code = gateway
        .hub
        .open_sign_in_link(
            ScopeSet::all(),
            scopes,
            Actor::System { rule: "quickstart" },
        )
        .map_err(|refused| hop(8, "the sign-in link", &refused.to_string()))?;
    line(&format!(
        "  chat page   http://127.0.0.1:{}/#bootstrap={}",
        gateway.port,
        code.expose_str().unwrap_or_default()
    ));
    line("              (signs in one browser, once, within ten minutes)\n");
    line("Serving until Ctrl-C.");
    tokio::select! {
        _ = stop => {
            let _ = child.kill().await;
            Ok(())
        }
        status = child.wait() => {
            let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            Err(Failure::new(Exit::Temporary, format!("the node host ended ({status})")))
        }
    }
}

/// The profile's places. What the environment says of other profiles does not count here.
fn own_paths() -> Result<Paths, Failure> {
    let home = std::env::var("HOME").unwrap_or_default();
    Ok(Paths::find(&Env::given([("HOME", home)]), Some(PROFILE))?)
}

fn settings(paths: &Paths, port: u16, password: &str) -> Result<GatewaySettings, Failure> {
    files::ensure_dir(&paths.state).map_err(|error| Failure {
        exit: Exit::of_file(&error),
        ..hop(1, "the gateway", &error.to_string())
    })?;
    let settings = GatewaySettings::on_loopback(paths.own.clone(), port, &Secret::new(password))
        .ok_or_else(|| Failure::new(Exit::Software, "the password is empty"))?;
    Ok(GatewaySettings {
        exec_timeout: EXEC_TIMEOUT,
        turn_timeout: EXEC_TIMEOUT + HOP_TIMEOUT,
        ..settings
    })
}

fn start_node(paths: &Paths, port: u16, password: &str, log: &Path) -> std::io::Result<Child> {
    // Private like everything in the profile, and of this run only.
    let log = files::open_or_create(log).map_err(std::io::Error::other)?;
    log.set_len(0)?;
    Command::new(std::env::current_exe()?)
        .args([
            "node",
            "run",
            "--host",
            "127.0.0.1",
            "--port",
            &port.to_string(),
            "--display-name",
            NODE_NAME,
        ])
        .env("OPENCLAW_STATE_DIR", &paths.state)
        .env("OPENCLAW_GATEWAY_PASSWORD", password)
        .env_remove("OPENCLAW_CONFIG_PATH")
        .env_remove("OPENCLAW_GATEWAY_URL")
        .env_remove("OPENCLAW_GATEWAY_TOKEN")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C at the terminal is this process's to hear; it ends the node host itself.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// Waits for the node's session; a node host that ends first is the hop that failed.
async fn online(gateway: &Gateway, child: &mut Child, log: &Path) -> Result<NodeView, Failure> {
    let deadline = Instant::now() + HOP_TIMEOUT;
    while Instant::now() < deadline {
        if let Some(node) = gateway
            .hub
            .node_views()
            .into_iter()
            .find(|node| node.online)
        {
            return Ok(node);
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(hop(
                3,
                "the node's connection",
                &format!("the node host ended ({status}): {}", last_line(log)),
            ));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(hop(
        3,
        "the node's connection",
        &format!("no session within {HOP_TIMEOUT:?}: {}", last_line(log)),
    ))
}

async fn connect(gateway: &Gateway) -> Result<(Client, Events), Failure> {
    let (id, mode) = (ClientId::Cli, ClientMode::Cli);
    let mut options = ConnectOptions::new(id, mode, Role::Operator, HOP_TIMEOUT);
    options.client.display_name = Some("quickstart".to_owned());
    let scopes = ScopeSet::all().to_wire().into_iter();
    options.scopes = scopes.map(str::to_owned).collect();
    options.caps = vec!["tool-events".to_owned()];
    let endpoint = Endpoint::Admin(PathBuf::clone(&gateway.admin_socket));
    Client::connect(&endpoint, &options)
        .await
        .map_err(|error| hop(4, "the operator's connection", &error.to_string()))
}

/// Approves what the node declared, unless an earlier run of this profile did.
async fn approve(gateway: &Gateway, client: &Client, node: &NodeView) -> Result<(), Failure> {
    let failed = |why: &str| hop(5, "the approval of the node's commands", why);
    let waiting = gateway
        .hub
        .node_views()
        .into_iter()
        .find(|view| view.id == node.id);
    if let Some(request) = waiting.and_then(|view| view.pending_request) {
        let params = json!({"requestId": request});
        client
            .call("node.pair.approve", &params, HOP_TIMEOUT)
            .await
            .map_err(|error| failed(&error.to_string()))?;
    }
    match gateway.hub.why_not(&node.id, "system.run") {
        None => Ok(()),
        Some(refused) => Err(failed(&crate::base::Refusal::public(&refused))),
    }
}

/// Sends the message and prints each step of what came of it.
async fn say(client: &Client, mut events: Events) -> Result<(), Failure> {
    line(&format!("  message     {MESSAGE}"));
    let key = uuid_v4(machine::random());
    let params = json!({"message": MESSAGE, "idempotencyKey": key});
    let run = client.call_to_end("agent", &params, EXEC_TIMEOUT);
    let (ended, tool) = tokio::join!(run, follow(&mut events, &key));
    let ended = ended.map_err(|error| hop(6, "the agent's turn", &error.to_string()))?;
    let ended: Value = serde_json::from_str(ended.get()).unwrap_or_default();
    let Some(tool) = tool else {
        return Err(hop(6, "the tool call", "the agent made none"));
    };
    let details = &tool.result["details"];
    line(&format!("  tool call   {} {}", tool.name, tool.arguments));
    let node_id = details["nodeId"].as_str().unwrap_or_default();
    line(&format!(
        "  routed to   {} (device {})",
        printable(details["nodeName"].as_str().unwrap_or("?")),
        node_id.get(..12).unwrap_or(node_id)
    ));
    if details["exitCode"] != json!(0) {
        let text = ended["result"]["payloads"][0]["text"]
            .as_str()
            .unwrap_or("no output");
        return Err(hop(7, "the command on the node", &printable(text)));
    }
    for output in command_output(
        tool.result["content"][0]["text"]
            .as_str()
            .unwrap_or_default(),
    ) {
        line(&format!("  output      {}", printable(output)));
    }
    line(&format!(
        "  time        queue {} ms, execution {} ms, total {} ms\n",
        details["queueMs"], details["executionMs"], details["durationMs"]
    ));
    Ok(())
}

/// What the command printed: the fenced part of the tool's text, as the chat shows it.
fn command_output(text: &str) -> impl Iterator<Item = &str> {
    let fenced = text
        .lines()
        .skip_while(|line| !line.starts_with("```"))
        .skip(1);
    fenced.take_while(|line| !line.starts_with("```"))
}

/// What the agent did with a tool.
struct ToolCall {
    name: String,
    arguments: Value,
    result: Value,
}

/// Follows a run's tool events to the first result, or to the run's end.
async fn follow(events: &mut Events, run_id: &str) -> Option<ToolCall> {
    let mut arguments = Value::Null;
    let deadline = tokio::time::Instant::now() + EXEC_TIMEOUT;
    loop {
        let event = tokio::time::timeout_at(deadline, events.next())
            .await
            .ok()?
            .ok()?;
        if event.name != "agent" {
            continue;
        }
        let Some(step) = event
            .decode::<AgentEvent>()
            .filter(|step| step.run_id == run_id)
        else {
            continue;
        };
        let data: Value = serde_json::to_value(&step.data).unwrap_or_default();
        match (step.stream.as_ref(), data["phase"].as_str()) {
            ("tool", Some("start")) => arguments = data["args"].clone(),
            ("tool", Some("result")) => {
                return Some(ToolCall {
                    name: data["name"].as_str().unwrap_or_default().to_owned(),
                    arguments,
                    result: data["result"].clone(),
                });
            }
            ("lifecycle", Some("end" | "error")) => return None,
            _ => {}
        }
    }
}

/// A failure that names the hop.
fn hop(number: u8, name: &str, why: &str) -> Failure {
    Failure::new(Exit::Temporary, format!("hop {number}, {name}: {why}"))
}

fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    printable(
        text.trim_end()
            .lines()
            .last()
            .unwrap_or("it printed nothing"),
    )
}

fn short(node: &NodeView) -> &str {
    &node.id.as_str()[..12]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_is_what_stands_in_the_fence() {
        let text = "node (abc): exit code 0 (queue 0 ms)\n```\nLinux host\nsecond\n```";
        assert_eq!(
            command_output(text).collect::<Vec<_>>(),
            ["Linux host", "second"]
        );
        assert_eq!(command_output("no fence").count(), 0);
    }
}
