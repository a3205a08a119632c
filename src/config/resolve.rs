//! From the tree to settings, once: parse, don't validate.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::env::Env;
use super::error::ConfigError;
use super::load::{self, Paths};
use super::reader::{self, Reader};
use super::schema::{self, Ineffective};
use super::secret_ref::{self, Resolver, SecretInput};
use super::tls::{self, Tls};
use super::tree::Tree;
pub use crate::auth::admission::Mode as AuthMode;
use crate::auth::scope::{Scope, ScopeSet};
use crate::base::names::names;
/// Where the Gateway runs: here, as `manual` and no mode at all say too, or elsewhere.
pub use crate::client::credentials::Mode as GatewayMode;
pub use crate::exec::Mode as ExecMode;
use crate::ingress::ProxyUserSettings;
use crate::ingress::cidr::Cidr;
use crate::ingress::trusted_proxy::FORWARDING_HEADERS;

pub const PORT_DEFAULT: u16 = 18789;

names! {
    /// `gateway.bind` and `--bind`.
    pub enum Bind {
        Loopback = "loopback",
        Lan = "lan",
        Tailnet = "tailnet",
        Custom = "custom",
        Auto = "auto",
    }
}

names! {
    /// `gateway.tailscale.mode` and `--tailscale`.
    pub enum TailscaleMode {
        Off = "off",
        Serve = "serve",
        Funnel = "funnel",
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RateLimit {
    pub max_attempts: u32,
    pub window: Duration,
    pub lockout: Duration,
    pub exempt_loopback: bool,
}

#[derive(Clone)]
pub struct Auth {
    pub mode: Option<AuthMode>,
    pub token: SecretInput,
    pub password: SecretInput,
    /// As written; decision 3 gives the default.
    pub allow_tailscale: Option<bool>,
    pub local_operator_scopes: ScopeSet,
    pub rate_limit: RateLimit,
    /// `gateway.auth.trustedProxy`; without a `userHeader` it is empty.
    pub trusted_proxy: ProxyUserSettings,
}

/// `gateway.proxy`: a listener of its own for a reverse proxy, if a port or a socket is named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxy {
    pub port: Option<u16>,
    pub bind: Option<IpAddr>,
    pub socket: Option<PathBuf>,
    pub socket_mode: Option<u32>,
}

/// `gateway.remote`: a client's settings. They never configure the server.
#[derive(Clone)]
pub struct Remote {
    pub url: Option<String>,
    pub token: SecretInput,
    pub password: SecretInput,
    pub tls_fingerprint: Option<String>,
    /// `transport: "ssh"`.
    pub over_ssh: bool,
}

#[derive(Clone, Debug)]
pub struct ControlUi {
    pub enabled: bool,
    pub allowed_origins: Vec<String>,
    pub device_auth_disabled: bool,
}

/// What one node, or every node, may be told to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandRules {
    pub allow: Option<Vec<String>>,
    pub deny: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Nodes {
    pub commands: CommandRules,
    /// By device id; narrows `commands` for one node.
    pub entries: BTreeMap<String, CommandRules>,
    pub auto_approve_local: bool,
    pub auto_approve_cidrs: Vec<Cidr>,
}

#[derive(Clone)]
pub struct Gateway {
    pub mode: GatewayMode,
    /// `gateway.port`, before flag and environment.
    pub port: Option<u16>,
    pub bind: Bind,
    pub custom_bind_host: Option<IpAddr>,
    pub auth: Auth,
    pub remote: Remote,
    pub trusted_proxies: Vec<Cidr>,
    pub allow_real_ip_fallback: bool,
    pub allow_plaintext_from: Vec<Cidr>,
    pub public_hosts: Vec<String>,
    pub control_ui: ControlUi,
    pub nodes: Nodes,
    pub tailscale: TailscaleMode,
    /// Where a managed Serve or Funnel forwards to; the port after the main one if absent.
    pub serve_port: Option<u16>,
    /// Where the Tailscale daemon listens, if not where it does by itself.
    pub tailscale_socket: Option<PathBuf>,
    pub proxy: Proxy,
    pub tls: Tls,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exec {
    /// The node's own, where the node host reads it.
    pub mode: ExecMode,
    /// The node of commands that name none.
    pub node: Option<String>,
    pub timeout: Option<Duration>,
}

/// The whole config.
#[derive(Clone)]
pub struct Settings {
    pub paths: Paths,
    pub gateway: Gateway,
    pub exec: Exec,
    /// `agents.defaults.timeoutSeconds`.
    pub turn_timeout: Option<Duration>,
    /// `nodeHost.browserProxy`: the DevTools endpoints that the node host may reach, by profile, if it is enabled.
    pub browser: Option<BTreeMap<String, SocketAddr>>,
    /// `audit.sync: "always"`.
    pub audit_sync_always: bool,
    /// Only to be told apart from the Gateway's own: hooks are not served (H7).
    pub hooks_token: SecretInput,
    pub resolver: Resolver,
    pub env: Env,
    /// Known settings that have no effect here.
    pub warnings: Vec<Ineffective>,
    digests: BTreeMap<String, [u8; 32]>,
}

impl Settings {
    /// Reads the profile's config file and parses all of it.
    pub fn load(env: &Env, profile: Option<&str>) -> Result<Self, ConfigError> {
        Self::read(env, Paths::find(env, profile)?)
    }

    /// Reads the same file again.
    pub fn reload(&self) -> Result<Self, ConfigError> {
        Self::read(&self.env, self.paths.clone())
    }

    /// The settings that are written differently here, by their names.
    pub fn changed_since(&self, old: &Self) -> Vec<String> {
        let names = self.digests.keys().chain(old.digests.keys());
        let changed = names.filter(|name| self.digests.get(*name) != old.digests.get(*name));
        let changed: BTreeSet<&String> = changed.collect();
        changed.into_iter().cloned().collect()
    }

    fn read(env: &Env, paths: Paths) -> Result<Self, ConfigError> {
        let document = load::read(&paths.config)?;
        let settings = Self::from_tree(&document.tree, env, paths)?;
        if let Some(mode) = document.readable_by_others {
            settings.refuse_readable_literals(mode)?;
        }
        Ok(settings)
    }

    /// As `load`, from a text.
    pub fn from_text(text: &str, env: &Env, paths: Paths) -> Result<Self, ConfigError> {
        Self::from_tree(&load::parse(&paths.config, text)?, env, paths)
    }

    pub(super) fn from_tree(tree: &Tree, env: &Env, paths: Paths) -> Result<Self, ConfigError> {
        let warnings = schema::check(tree)?;
        let resolver = Resolver::from_config(tree, env.clone(), paths.home.as_deref())?;
        let reader = Reader { tree };
        Ok(Self {
            gateway: gateway(reader, &resolver, &paths)?,
            exec: exec(reader)?,
            turn_timeout: reader
                .whole("agents.defaults.timeoutSeconds", (1, 604_800))?
                .map(Duration::from_secs),
            browser: browser(reader)?,
            // A form that is not known here cannot be compared; the section is not ours to judge.
            hooks_token: secret_ref::parse_input("hooks.token", tree.at("hooks.token"), &resolver)
                .unwrap_or(SecretInput::Unset),
            audit_sync_always: reader
                .one_of("audit.sync", &[("grouped", false), ("always", true)])?
                .unwrap_or(false),
            resolver,
            env: env.clone(),
            warnings,
            digests: tree.digests(),
            paths,
        })
    }

    /// Every secret that is read, with its setting.
    pub fn secrets(&self) -> Vec<(&'static str, &SecretInput)> {
        vec![
            ("gateway.auth.token", &self.gateway.auth.token),
            ("gateway.auth.password", &self.gateway.auth.password),
            ("gateway.remote.token", &self.gateway.remote.token),
            ("gateway.remote.password", &self.gateway.remote.password),
            ("hooks.token", &self.hooks_token),
        ]
    }

    /// Secrets in the clear belong in a file that only its owner can read.
    fn refuse_readable_literals(&self, mode: u32) -> Result<(), ConfigError> {
        let is_literal = |(_, input): &(_, &SecretInput)| matches!(input, SecretInput::Literal(_));
        if self.secrets().iter().any(is_literal) {
            return Err(ConfigError::Exposed {
                path: self.paths.config.clone(),
                why: format!("it holds a secret and its mode {mode:04o} lets others read it"),
            });
        }
        Ok(())
    }
}

fn gateway(reader: Reader<'_>, resolver: &Resolver, paths: &Paths) -> Result<Gateway, ConfigError> {
    let secret =
        |setting: &str| secret_ref::parse_input(setting, reader.tree.at(setting), resolver);
    let mode = reader.one_of(
        "gateway.mode",
        &[
            ("local", GatewayMode::Local),
            ("manual", GatewayMode::Local),
            ("remote", GatewayMode::Remote),
        ],
    )?;
    let bind = reader.one_of("gateway.bind", Bind::WORDS)?;
    let tailscale = reader.one_of("gateway.tailscale.mode", TailscaleMode::WORDS)?;
    let over_ssh = reader.one_of(
        "gateway.remote.transport",
        &[("direct", false), ("ssh", true)],
    )?;
    Ok(Gateway {
        mode: mode.unwrap_or(GatewayMode::Local),
        port: reader.port("gateway.port")?,
        bind: bind.unwrap_or(Bind::Loopback),
        custom_bind_host: reader.address("gateway.customBindHost")?,
        auth: Auth {
            mode: auth_mode(reader)?,
            token: secret("gateway.auth.token")?,
            password: secret("gateway.auth.password")?,
            allow_tailscale: reader.flag("gateway.auth.allowTailscale")?,
            local_operator_scopes: local_operator_scopes(reader)?,
            rate_limit: rate_limit(reader)?,
            trusted_proxy: trusted_proxy(reader)?,
        },
        remote: Remote {
            url: reader.text("gateway.remote.url")?.map(str::to_owned),
            token: secret("gateway.remote.token")?,
            password: secret("gateway.remote.password")?,
            tls_fingerprint: reader
                .text("gateway.remote.tlsFingerprint")?
                .map(str::to_owned),
            over_ssh: over_ssh.unwrap_or(false),
        },
        trusted_proxies: trusted_proxies(reader)?,
        allow_real_ip_fallback: reader.flag_or("gateway.allowRealIpFallback", false)?,
        allow_plaintext_from: reader.cidrs("gateway.allowPlaintextFrom")?,
        public_hosts: reader.list("gateway.publicHosts")?,
        control_ui: ControlUi {
            enabled: reader.flag_or("gateway.controlUi.enabled", true)?,
            allowed_origins: reader.list("gateway.controlUi.allowedOrigins")?,
            device_auth_disabled: reader
                .flag_or("gateway.controlUi.dangerouslyDisableDeviceAuth", false)?,
        },
        nodes: nodes(reader)?,
        tailscale: tailscale.unwrap_or(TailscaleMode::Off),
        tls: tls::tls(reader, paths)?,
        serve_port: reader.port("gateway.tailscale.servePort")?,
        tailscale_socket: tailscale_socket(reader, paths.home.as_deref())?,
        proxy: proxy(reader, paths.home.as_deref())?,
    })
}

fn auth_mode(reader: Reader<'_>) -> Result<Option<AuthMode>, ConfigError> {
    reader.one_of("gateway.auth.mode", AuthMode::WORDS)
}

/// With every address trusted, everybody is a proxy and says who they are.
fn trusted_proxies(reader: Reader<'_>) -> Result<Vec<Cidr>, ConfigError> {
    const SETTING: &str = "gateway.trustedProxies";
    let ranges = reader.cidrs(SETTING)?;
    match ranges.iter().find(|range| range.is_everything()) {
        Some(all) => Err(ConfigError::bad(
            SETTING,
            format!("a list that holds {all}, which is every address"),
            "exactly the proxy's address, such as 10.0.0.5, or its own small range",
        )),
        None => Ok(ranges),
    }
}

/// Headers that say other things than who the user is; clients send most of them, and proxies pass them on.
const NOT_A_USER: &[&str] = &[
    "accept",
    "authorization",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "host",
    "origin",
    "referer",
    "user-agent",
    "x-openclaw-scopes",
    "x-forwarded",
    "x-forwarded-by",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-forwarded-protocol",
    "x-forwarded-scheme",
    "x-forwarded-server",
    "x-forwarded-ssl",
    "x-forwarded-uri",
    // Hop-by-hop (RFC 9110 §7.6.1).
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Whether a proxy that is set up for it can name its user in this header, and nobody else means anything by it.
fn names_a_user(header: &str) -> bool {
    !(NOT_A_USER.contains(&header)
        || FORWARDING_HEADERS.contains(&header)
        || header.starts_with("sec-")
        || header.starts_with("tailscale-"))
}

/// Header names become lower case, in which ingress compares them.
fn trusted_proxy(reader: Reader<'_>) -> Result<ProxyUserSettings, ConfigError> {
    const USER: &str = "gateway.auth.trustedProxy.userHeader";
    const REQUIRED: &str = "gateway.auth.trustedProxy.requiredHeaders";
    let user = reader.text(USER)?;
    let required = reader.list(REQUIRED)?;
    let user_header = user
        .map(|name| reader::header_name(USER, name))
        .transpose()?
        .unwrap_or_default();
    if !names_a_user(&user_header) {
        return Err(ConfigError::bad(
            USER,
            format!("\"{user_header}\", which says something else than who the user is"),
            "a header that only the proxy sets, to the user it has signed in, such as x-forwarded-user",
        ));
    }
    Ok(ProxyUserSettings {
        user_header,
        required_headers: required
            .iter()
            .map(|name| reader::header_name(REQUIRED, name))
            .collect::<Result<_, _>>()?,
        allow_users: reader.list("gateway.auth.trustedProxy.allowUsers")?,
        allow_loopback: reader.flag_or("gateway.auth.trustedProxy.allowLoopback", false)?,
    })
}

fn tailscale_socket(
    reader: Reader<'_>,
    home: Option<&Path>,
) -> Result<Option<PathBuf>, ConfigError> {
    const SETTING: &str = "gateway.tailscale.socket";
    let path = reader.text(SETTING)?;
    match path.map(|path| secret_ref::expand_home(path, home)) {
        Some(path) if !path.is_absolute() => Err(ConfigError::bad(
            SETTING,
            "a path that depends on where the program was started",
            "an absolute path",
        )),
        path => Ok(path),
    }
}

fn proxy(reader: Reader<'_>, home: Option<&Path>) -> Result<Proxy, ConfigError> {
    let socket = reader.text("gateway.proxy.socket")?;
    Ok(Proxy {
        port: reader.port("gateway.proxy.port")?,
        bind: reader.address("gateway.proxy.bind")?,
        socket: socket.map(|path| secret_ref::expand_home(path, home)),
        socket_mode: reader.one_of(
            "gateway.proxy.socketMode",
            &[("0600", 0o600), ("0660", 0o660)],
        )?,
    })
}

fn local_operator_scopes(reader: Reader<'_>) -> Result<ScopeSet, ConfigError> {
    const SETTING: &str = "gateway.auth.localOperatorScopes";
    let Some(names) = reader.texts(SETTING)? else {
        return Ok(ScopeSet::all());
    };
    for name in &names {
        reader::word(SETTING, name, Scope::WORDS)?;
    }
    Ok(ScopeSet::from_wire(&names))
}

/// Zero and below are refused: they would read as "no limit" (R4).
fn rate_limit(reader: Reader<'_>) -> Result<RateLimit, ConfigError> {
    const DAY_MS: u64 = 24 * 60 * 60 * 1000;
    let attempts = reader.whole("gateway.auth.rateLimit.maxAttempts", (1, 10_000))?;
    let window = reader.whole("gateway.auth.rateLimit.windowMs", (1000, DAY_MS))?;
    let lockout = reader.whole("gateway.auth.rateLimit.lockoutMs", (1000, DAY_MS))?;
    Ok(RateLimit {
        max_attempts: attempts
            .and_then(|attempts| u32::try_from(attempts).ok())
            .unwrap_or(10),
        window: Duration::from_millis(window.unwrap_or(60_000)),
        lockout: Duration::from_millis(lockout.unwrap_or(300_000)),
        exempt_loopback: reader.flag_or("gateway.auth.rateLimit.exemptLoopback", true)?,
    })
}

fn nodes(reader: Reader<'_>) -> Result<Nodes, ConfigError> {
    let mut entries = BTreeMap::new();
    if let Some(Tree::Map(nodes)) = reader.tree.at("gateway.nodes.entries") {
        for (id, entry) in nodes {
            if id.contains('.') || id.trim().is_empty() {
                return Err(ConfigError::bad(
                    "gateway.nodes.entries",
                    "a key that is no node's id",
                    "the 64 hexadecimal digits that `portcullis nodes list --json` shows",
                ));
            }
            let prefix = format!("gateway.nodes.entries.{id}");
            if !matches!(entry, Tree::Null) {
                entries.insert(id.clone(), command_rules(reader, &prefix)?);
            }
        }
    }
    let mut commands = command_rules(reader, "gateway.nodes")?;
    // The names of earlier releases. Both forms of the deny list count; two allow lists could only be guessed at.
    if let Some(allow) = reader.texts("gateway.nodes.allowCommands")? {
        if commands.allow.is_some() {
            return Err(ConfigError::conflict(
                "gateway.nodes.allowCommands",
                "gateway.nodes.commands.allow is set too; keep only that one",
            ));
        }
        commands.allow = Some(allow);
    }
    commands
        .deny
        .extend(reader.list("gateway.nodes.denyCommands")?);
    Ok(Nodes {
        commands,
        entries,
        auto_approve_local: reader.flag_or("gateway.nodes.pairing.autoApproveLocal", true)?,
        auto_approve_cidrs: reader.cidrs("gateway.nodes.pairing.autoApproveCidrs")?,
    })
}

fn command_rules(reader: Reader<'_>, prefix: &str) -> Result<CommandRules, ConfigError> {
    Ok(CommandRules {
        allow: reader.texts(&format!("{prefix}.commands.allow"))?,
        deny: reader.list(&format!("{prefix}.commands.deny"))?,
    })
}

/// The strictest of all that is said; `ask` if nothing is (decision 25).
fn exec(reader: Reader<'_>) -> Result<Exec, ConfigError> {
    let mode = reader.one_of(
        "tools.exec.mode",
        &[
            ("deny", ExecMode::Deny),
            ("allowlist", ExecMode::Allowlist),
            ("ask", ExecMode::Ask),
            ("auto", ExecMode::Ask),
            ("full", ExecMode::Full),
        ],
    )?;
    let security = reader.one_of(
        "tools.exec.security",
        &[
            ("deny", ExecMode::Deny),
            ("allowlist", ExecMode::Allowlist),
            ("full", ExecMode::Full),
        ],
    )?;
    // `off` adds nothing to what `security` says; the others want a question.
    let ask = reader.one_of(
        "tools.exec.ask",
        &[
            ("off", None),
            ("on-miss", Some(ExecMode::Ask)),
            ("always", Some(ExecMode::AskAlways)),
        ],
    )?;
    reader.one_of(
        "tools.exec.askFallback",
        &[("deny", ()), ("allowlist", ()), ("full", ())],
    )?;
    let legacy = match (security, ask.flatten()) {
        (Some(ExecMode::Deny), _) => Some(ExecMode::Deny),
        (_, Some(asks)) => Some(asks),
        (said, None) => said,
    };
    let timeout = reader.whole("tools.exec.timeoutSeconds", (1, 86_400))?;
    Ok(Exec {
        mode: mode
            .into_iter()
            .chain(legacy)
            .reduce(ExecMode::merge)
            .unwrap_or_default(),
        // The agent's own word counts before the one for all.
        node: match reader.text("agents.entries.main.tools.exec.node")? {
            Some(node) => Some(node),
            None => reader.text("tools.exec.node")?,
        }
        .map(str::to_owned),
        timeout: timeout.map(Duration::from_secs),
    })
}

/// Off unless it is switched on, and then for the profiles that are named: no list is none of them. An endpoint that is
/// not on loopback would be another machine's browser, reached in the clear.
fn browser(reader: Reader<'_>) -> Result<Option<BTreeMap<String, SocketAddr>>, ConfigError> {
    if reader.flag("nodeHost.browserProxy.enabled")? != Some(true) {
        return Ok(None);
    }
    let names = reader.texts("nodeHost.browserProxy.allowProfiles")?;
    let endpoint = |name: String| {
        let setting = format!("browser.profiles.{name}.cdpUrl");
        let port = reader.port(&format!("browser.profiles.{name}.cdpPort"))?;
        let address = match (reader.text(&setting)?, port) {
            (None, Some(port)) => Some(SocketAddr::from(([127, 0, 0, 1], port))),
            (Some(url), None) => url
                .strip_prefix("http://")
                .and_then(|url| url.trim_end_matches('/').parse::<SocketAddr>().ok())
                .filter(|address| address.ip().is_loopback() && address.port() != 0),
            _ => None,
        };
        let address = address.ok_or_else(|| ConfigError::BadValue {
            setting,
            got: "nothing that nodeHost.browserProxy may reach".to_owned(),
            want: "http://127.0.0.1:PORT, or cdpPort in its place".to_owned(),
        })?;
        Ok((name, address))
    };
    names
        .unwrap_or_default()
        .into_iter()
        .map(endpoint)
        .collect::<Result<_, _>>()
        .map(Some)
}
