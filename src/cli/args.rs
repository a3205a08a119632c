//! The command line's form.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "portcullis",
    version,
    about = "A Gateway for remote nodes that fails closed",
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command that talks to a Gateway.
#[derive(Args, Default)]
pub struct Common {
    /// The Gateway's address (ws://… or wss://…); needs --token or --password
    #[arg(long, global = true)]
    pub url: Option<String>,
    /// The only certificate that is accepted over wss:// (SHA-256, as the Gateway printed it)
    #[arg(long, global = true, value_name = "SHA256")]
    pub tls_fingerprint: Option<String>,
    /// The shared token, or a device token
    #[arg(long, global = true)]
    pub token: Option<String>,
    /// The shared password
    #[arg(long, global = true)]
    pub password: Option<String>,
    /// Print the payload as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Use ~/.openclaw-NAME
    #[arg(long, global = true, value_name = "NAME")]
    pub profile: Option<String>,
    /// How long to wait for the Gateway, in milliseconds
    #[arg(long, global = true, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    pub timeout: Option<u64>,
    /// Say which credential is used, and why not the others
    #[arg(long, global = true)]
    pub explain_auth: bool,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run the Gateway, or talk to it
    Gateway(GatewayArgs),
    /// Ask the Gateway how it is
    Health,
    /// Show the Gateway's status
    Status,
    /// Pair, rename and remove devices
    #[command(subcommand)]
    Devices(Devices),
    /// List, approve and invoke nodes
    #[command(subcommand)]
    Nodes(Nodes),
    /// See and decide which commands may run
    #[command(subcommand)]
    Approvals(Approvals),
    /// Send one message through the agent; exit code 1 if its command was refused or has no result
    Agent(AgentArgs),
    /// Run this machine as a node
    #[cfg(feature = "node-host")]
    #[command(subcommand)]
    Node(Node),
    /// Start a Gateway and a node, and prove the way from a message to a command and back
    Quickstart(QuickstartArgs),
    /// Look at the secrets of the config
    #[command(subcommand)]
    Secrets(Secrets),
    /// Read and prove the audit log
    Audit(AuditArgs),
}

#[derive(Args)]
pub struct GatewayArgs {
    #[command(flatten)]
    pub run: RunArgs,
    #[command(subcommand)]
    pub command: Option<Gateway>,
}

#[derive(Args, Clone, Default)]
pub struct RunArgs {
    /// The port to listen on
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// loopback, lan, tailnet, custom or auto
    #[arg(long)]
    pub bind: Option<String>,
    /// token, password, trusted-proxy or none
    #[arg(long)]
    pub auth: Option<String>,
    /// off, serve or funnel
    #[arg(long)]
    pub tailscale: Option<String>,
}

#[derive(Subcommand)]
pub enum Gateway {
    /// Run the Gateway in the foreground
    Run(RunArgs),
    /// Show where the Gateway is, and whether it answers
    Status,
    /// Ask the Gateway how it is
    Health,
    /// Call one method
    Call {
        /// Such as node.list
        method: String,
        /// The parameters, as a JSON object
        #[arg(long, default_value = "{}")]
        params: String,
        /// Wait for the second answer of a method that answers twice
        #[arg(long)]
        expect_final: bool,
    },
}

#[derive(Subcommand)]
pub enum Devices {
    /// List pending and paired devices
    List,
    /// Approve a pending request of either stage; without an id, show the latest
    Approve {
        /// Its id or the beginning of it, as `devices list` shows it
        request_id: Option<String>,
        /// Show the latest request and the command that approves it
        #[arg(long)]
        latest: bool,
    },
    /// Reject a pending request of either stage
    Reject { request_id: String },
    /// Remove a paired device and close its connections
    Remove { device_id: String },
    /// Give a device a label
    Rename {
        #[arg(long)]
        device: String,
        #[arg(long)]
        name: String,
    },
    /// Issue a new device token; the old one stops working
    Rotate {
        #[arg(long)]
        device: String,
        #[arg(long)]
        role: String,
        /// A scope of the new token; may be repeated
        #[arg(long)]
        scope: Vec<String>,
        /// The new token has no scopes
        #[arg(long, conflicts_with = "scope")]
        no_scopes: bool,
    },
    /// Revoke a device token and close its connections
    Revoke {
        #[arg(long)]
        device: String,
        #[arg(long)]
        role: String,
    },
}

#[derive(Subcommand)]
pub enum Nodes {
    /// List nodes: online, callable, permitted, and what waits
    List {
        /// One line for each command, with the rule and what changes it
        #[arg(long)]
        commands: bool,
    },
    /// Say why a command would or would not run on a node, without running it
    Explain {
        /// Id, unique beginning of the id, or name
        #[arg(long)]
        node: String,
        /// Such as system.which; `nodes list --commands` shows those of each node
        #[arg(long)]
        command: String,
        /// The command's parameters, as JSON
        #[arg(long, default_value = "{}")]
        params: String,
    },
    /// Show which nodes are connected
    Status {
        /// Only connected nodes
        #[arg(long)]
        connected: bool,
    },
    /// Show one node
    Describe {
        /// Id, unique beginning of the id, or name
        #[arg(long)]
        node: String,
    },
    /// List what waits for approval: devices, and what nodes offer
    Pending,
    /// Approve a pending request of either stage
    Approve {
        /// Its id or the beginning of it, as `nodes pending` shows it
        request_id: String,
        /// Approve only these commands, separated by commas
        #[arg(long, value_delimiter = ',')]
        commands: Option<Vec<String>>,
    },
    /// Reject a pending request of either stage
    Reject { request_id: String },
    /// Remove a node's approval
    Remove {
        #[arg(long)]
        node: String,
    },
    /// Give a node a name
    Rename {
        #[arg(long)]
        node: String,
        #[arg(long)]
        name: String,
    },
    /// Run one command of a node
    Invoke {
        /// Id, unique beginning of the id, or name
        #[arg(long)]
        node: String,
        /// Such as system.which; `nodes list --commands` shows those of each node
        #[arg(long)]
        command: String,
        /// The command's parameters, as JSON
        #[arg(long, default_value = "{}")]
        params: String,
        /// How long the node may take, in milliseconds
        #[arg(long, default_value_t = 15_000, value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
        invoke_timeout: u64,
        /// The key that the node and the audit log are told
        #[arg(long)]
        idempotency_key: Option<String>,
    },
}

#[derive(Subcommand)]
pub enum Approvals {
    /// List what waits for a decision
    List,
    /// Show one request, or with --node that node's own policy file and its allowlist
    Get {
        /// Its id or the beginning of it
        #[arg(required_unless_present = "node", conflicts_with = "node")]
        id: Option<String>,
        /// Id, unique beginning of the id, or name
        #[arg(long)]
        node: Option<String>,
    },
    /// Take rules out of a node's allowlist
    #[command(subcommand)]
    Allowlist(Allowlist),
    /// Let a command run
    Approve {
        /// Its id or the beginning of it
        id: String,
        /// Let it run unasked from now on, in this directory with these arguments
        #[arg(long)]
        always: bool,
    },
    /// Refuse a command
    Deny {
        /// Its id or the beginning of it
        id: String,
    },
    /// Show requests as they come, and ask about each
    Watch,
}

#[derive(Subcommand)]
pub enum Allowlist {
    /// Remove the rules with this pattern
    Remove {
        /// The pattern as `approvals get --node` shows it
        pattern: String,
        /// Id, unique beginning of the id, or name
        #[arg(long)]
        node: String,
        /// Only from this agent's list; from all of them if absent
        #[arg(long)]
        agent: Option<String>,
    },
}

#[derive(Args)]
pub struct AgentArgs {
    /// The message, such as "/run uname -a"
    #[arg(long, short)]
    pub message: String,
    /// The session that it belongs to
    #[arg(long)]
    pub session_key: Option<String>,
    /// The agent
    #[arg(long)]
    pub agent: Option<String>,
}

#[cfg(feature = "node-host")]
#[derive(Subcommand)]
pub enum Node {
    /// Run the node host in the foreground
    Run(NodeRunArgs),
    /// Write a systemd unit of this user that runs it
    Install(NodeInstallArgs),
    /// Remove that unit
    Uninstall,
    /// Say whether a node host runs with this profile; exit code 1 if not
    Status,
    /// End the node host that runs with this profile
    Stop,
    /// Show this machine's device id and key
    Identity,
}

#[cfg(feature = "node-host")]
#[derive(Args)]
pub struct NodeInstallArgs {
    #[command(flatten)]
    pub run: NodeRunArgs,
    /// Print the unit and write nothing
    #[arg(long)]
    pub print: bool,
}

#[cfg(feature = "node-host")]
#[derive(Args)]
pub struct NodeRunArgs {
    /// The Gateway's host; or give --url
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// The Gateway's port
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Use TLS; the default for the Gateway of this machine if its config says so
    #[arg(long, conflicts_with = "no_tls")]
    pub tls: bool,
    /// Use no TLS
    #[arg(long)]
    pub no_tls: bool,
    /// The node's name; the host's if absent
    #[arg(long)]
    pub display_name: Option<String>,
    /// Offer only these commands, separated by commas
    #[arg(long, value_delimiter = ',')]
    pub commands: Option<Vec<String>>,
}

#[derive(Args)]
pub struct QuickstartArgs {
    /// The port to listen on
    #[arg(long, default_value_t = 18789, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Stop after the proof
    #[arg(long)]
    pub once: bool,
}

#[derive(Subcommand)]
pub enum Secrets {
    /// Show where each secret stands and whether it can be had, never its value
    Audit,
}

#[derive(Args)]
pub struct AuditArgs {
    /// The log's directory; the profile's if absent
    #[arg(long, global = true)]
    pub dir: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Audit,
}

#[derive(Subcommand)]
pub enum Audit {
    /// Prove that the log is whole
    Verify,
    /// Show the latest records
    Tail {
        /// How many
        #[arg(long, short = 'n', default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
        lines: u16,
        /// Go on with what is recorded from now on
        #[arg(long, short)]
        follow: bool,
    },
    /// Show records, all of them or some
    Show {
        /// Only those of the last 90s, 15m, 36h or 7d
        #[arg(long, value_parser = super::audit::duration_ms)]
        since: Option<u64>,
        /// Only this kind and those below it, such as dispatch or dispatch.result
        #[arg(long)]
        kind: Option<String>,
        /// Only what is about this node or device or what it did, by its id or the beginning of it
        #[arg(long)]
        node: Option<String>,
    },
    /// Write the whole log as it is, one JSON record a line
    Export {
        /// A new file; standard output if absent
        #[arg(long, short)]
        output: Option<PathBuf>,
    },
}
