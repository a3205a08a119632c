//! The parts of a Gateway, joined.
//!
//! Each part knows only traits of its own; here they get the hub, the store and the clock.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

use super::secret::Secrets;
use super::{tools, transcript};
use crate::agent::{self, Agent};
use crate::audit::{self, AuditLog, Durability};
use crate::auth::admission;
use crate::auth::rate_limit::LimiterSettings;
use crate::auth::scope::{Scope, ScopeSet};
use crate::base::{DeviceId, Secret, limits};
use crate::config::{ConfigError, Tls};
use crate::control::{self, Control};
use crate::exec::policy::Mode;
use crate::http::{self, Front, Listener};
use crate::hub::{self, Audience, Hub};
use crate::ingress::{self, ListenerClass};
use crate::machine;
use crate::net::tls::{ServerTls, TlsError};
use crate::net::{BindError, Doors, ProxyDoor, Tailnet, bind};
use crate::nodes::CommandPolicy;
use crate::session::{Door, Rules, WhoisSource};
use crate::store::{Store, StoreError};

/// What a Gateway is started with; `config` and `quickstart` fill it in.
pub struct GatewaySettings {
    /// The directory of our own state, private to this user.
    pub state_dir: PathBuf,
    pub config_path: Option<PathBuf>,
    pub doors: Doors,
    /// Every record is on the disk before what it records happens.
    pub audit_sync_always: bool,
    pub admission: admission::Settings,
    pub secrets: Arc<Secrets>,
    /// Who proves tailnet identities and names this host in the tailnet, if there is a listener for them.
    pub tailnet: Option<Arc<Tailnet>>,
    pub limiter: LimiterSettings,
    pub ingress: ingress::Settings,
    pub commands: CommandPolicy,
    pub per_node: Vec<(DeviceId, CommandPolicy)>,
    pub exec_mode: Mode,
    /// Whether the chat page is served at `/`.
    pub serve_page: bool,
    pub tls: Tls,
    pub exec_timeout: Duration,
    pub exec_node: Option<String>,
    pub turn_timeout: Duration,
}

impl GatewaySettings {
    /// What a config without any setting but a password would say, on loopback; port 0 takes a free one.
    pub fn on_loopback(state_dir: PathBuf, port: u16, password: &Secret) -> Option<Self> {
        Some(Self {
            state_dir,
            config_path: None,
            doors: Doors::loopback(port),
            audit_sync_always: false,
            admission: admission::Settings {
                mode: admission::Mode::Password,
                allow_tailscale: false,
                local_operator_scopes: ScopeSet::all(),
                auto_approve_local: true,
                auto_approve_cidrs: Vec::new(),
                control_ui_build: None,
            },
            secrets: Arc::new(Secrets::fixed(password)?),
            tailnet: None,
            limiter: LimiterSettings::default(),
            ingress: ingress::Settings {
                admin_uid: rustix::process::geteuid().as_raw(),
                ..ingress::Settings::default()
            },
            commands: CommandPolicy::default(),
            per_node: Vec::new(),
            exec_mode: Mode::Ask,
            serve_page: true,
            tls: Tls::default(),
            exec_timeout: super::EXEC_TIMEOUT,
            exec_node: None,
            turn_timeout: super::TURN_TIMEOUT,
        })
    }
}

/// A Gateway that serves.
pub struct Gateway {
    pub port: u16,
    /// Each with its class, as the log and the operator name it.
    pub listeners: Vec<String>,
    pub admin_socket: PathBuf,
    proxy_socket: Option<PathBuf>,
    pub hub: Arc<Hub>,
    pub(super) front: Arc<Front>,
    pub(super) secrets: Arc<Secrets>,
    pub tls: Option<Arc<ServerTls>>,
    pub(super) agent: Agent,
    pub(super) audit: Arc<AuditLog>,
    tasks: JoinSet<()>,
}

/// Why a Gateway did not start.
#[derive(Debug)]
pub enum StartError {
    Store(StoreError),
    Audit(audit::AuditError),
    Hub(hub::Fault),
    Bind(BindError),
    Secret(ConfigError),
    Tls(TlsError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Audit(error) => error.fmt(f),
            Self::Hub(fault) => fault.fmt(f),
            Self::Bind(error) => error.fmt(f),
            Self::Secret(error) => error.fmt(f),
            Self::Tls(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StartError {}

/// Everything behind the listeners.
pub struct Parts {
    pub front: Arc<Front>,
    pub hub: Arc<Hub>,
    /// For the main listener.
    pub tls: Option<Arc<ServerTls>>,
    agent: Agent,
    audit: Arc<AuditLog>,
}

impl Parts {
    /// Opens the state and joins the parts. Nothing listens yet.
    pub fn open(settings: GatewaySettings) -> Result<Self, StartError> {
        let store = Arc::new(Store::open(&settings.state_dir).map_err(StartError::Store)?);
        // The store has made the state directory private, in which a certificate may have to be made.
        let tls = settings.tls.source.map(ServerTls::open).transpose();
        let tls = tls.map_err(StartError::Tls)?.map(Arc::new);
        let audit_dir = settings.state_dir.join("audit");
        let audit_settings = audit::Settings {
            sync_always: settings.audit_sync_always,
            ..audit::Settings::default()
        };
        let audit = AuditLog::open(&audit_dir, audit_settings).map_err(StartError::Audit)?;
        // A dispatch has two records, in either file: they reach the disk together.
        audit.sync_along(store.journal().map_err(StartError::Store)?);
        let audit = Arc::new(audit);
        let hub_settings = hub::Settings {
            commands: settings.commands,
            per_node: settings.per_node,
            exec_mode: settings.exec_mode,
            auth_mode: settings.admission.mode.as_str(),
        };
        let hub = Arc::new(
            Hub::new(hub_settings, Arc::clone(&store), Arc::clone(&audit))
                .map_err(StartError::Hub)?,
        );
        let agent = agent(
            &hub,
            &store,
            settings.turn_timeout,
            settings.exec_timeout,
            settings.exec_node,
        );
        let control = Arc::new(Control {
            hub: Arc::clone(&hub),
            agent: agent.clone(),
            settings: control::Settings {
                config_path: settings.config_path.map(|path| path.display().to_string()),
                state_dir: Some(settings.state_dir.display().to_string()),
                listeners: OnceLock::new(),
            },
            tls: tls.clone(),
        });
        let door = Arc::new(Door::new(
            Rules {
                admission: settings.admission,
                ingress: settings.ingress,
                secret: settings.secrets,
                since: 0,
            },
            settings.tailnet.map(|it| it as Arc<dyn WhoisSource>),
            settings.limiter,
        ));
        let mut front = Front::new(door, control, settings.serve_page);
        front.hsts = settings.tls.hsts.and_then(|value| value.parse().ok());
        Ok(Self {
            front: Arc::new(front),
            hub,
            tls,
            agent,
            audit,
        })
    }
}

impl Gateway {
    /// Opens the state, binds, and serves. Connects are told to come again until `settle`.
    pub async fn start(settings: GatewaySettings) -> Result<Self, StartError> {
        let (doors, state_dir) = (settings.doors.clone(), settings.state_dir.clone());
        let secrets = Arc::clone(&settings.secrets);
        let tailnet = settings.tailnet.clone();
        let Parts {
            front,
            hub,
            tls,
            agent,
            audit,
        } = Parts::open(settings)?;
        let admin_socket = state_dir.join("admin.sock");
        let opened = open_doors(&doors, &admin_socket, tls.as_ref())
            .await
            .map_err(StartError::Bind)?;
        record_start(&audit, &opened.names)?;
        // Set once: this is the only start of these parts.
        let _ = front.control.settings.listeners.set(opened.names.clone());
        let mut tasks = JoinSet::new();
        for listener in opened.listeners {
            tasks.spawn(http::accept(listener, Arc::clone(&front)));
        }
        tasks.spawn(tick(Arc::clone(&hub)));
        if let Some(tailnet) = tailnet {
            tasks.spawn(follow_name(tailnet, Arc::clone(&front.door)));
        }
        Ok(Self {
            port: opened.port,
            listeners: opened.names,
            admin_socket,
            proxy_socket: match doors.proxy {
                Some(ProxyDoor::Unix { path, .. }) => Some(path),
                _ => None,
            },
            hub,
            front,
            secrets,
            tls,
            agent,
            audit,
            tasks,
        })
    }

    /// Resolves the shared secret, which may take a provider's time. From then on the Gateway is ready.
    pub async fn settle(&mut self) -> Result<(), StartError> {
        let secrets = Arc::clone(&self.secrets);
        let settled = tokio::task::spawn_blocking(move || secrets.settle());
        if let Ok(settled) = settled.await {
            settled.map_err(StartError::Secret)?;
        }
        self.front.set_ready();
        let watch = watch_secret(Arc::clone(&self.front.door), Arc::clone(&self.hub));
        self.tasks.spawn(watch);
        Ok(())
    }

    /// Ends every session with `shutdown`, the agent's turns with an abort, and leaves a record of it.
    pub async fn stop(mut self, reason: &'static str) {
        self.agent.shut_down();
        self.hub.interrupt();
        let answered = async {
            while self.hub.unanswered() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(limits::CLOSE_TIMEOUT, answered).await;
        self.hub.shut_down(reason);
        let ended = async {
            while self.hub.session_counts().0 > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(limits::CLOSE_TIMEOUT, ended).await;
        self.tasks.shutdown().await;
        let event = audit::Event::Stopped {
            reason: reason.into(),
        };
        if let Err(error) = self.audit.append(&event, Durability::Synced) {
            tracing::error!(%error, "the stop could not be recorded");
        }
        for socket in [Some(self.admin_socket), self.proxy_socket]
            .iter()
            .flatten()
        {
            let _ = std::fs::remove_file(socket);
        }
    }
}

/// Every listener, bound and not yet accepting.
struct Opened {
    /// Of the main listener.
    port: u16,
    listeners: Vec<Listener>,
    names: Vec<String>,
}

async fn open_doors(
    doors: &Doors,
    admin_socket: &Path,
    tls: Option<&Arc<ServerTls>>,
) -> Result<Opened, BindError> {
    let mut opened = Opened {
        port: doors.port,
        listeners: Vec::new(),
        names: Vec::new(),
    };
    let main = bind::main(doors.bind, doors.port)?;
    if let Some(Ok(address)) = main.first().map(TcpListener::local_addr) {
        opened.port = address.port();
    }
    for listener in main {
        opened.tcp(listener, ListenerClass::Main, tls.cloned());
    }
    if let Some(port) = doors.serve_port {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listener = bind::tcp(address, "gateway.tailscale.servePort")?;
        // Tailscale and the proxy end TLS themselves.
        opened.tcp(listener, ListenerClass::Serve, None);
    }
    match &doors.proxy {
        Some(ProxyDoor::Tcp(address)) => {
            opened.tcp(
                bind::tcp(*address, "gateway.proxy.port")?,
                ListenerClass::Proxy,
                None,
            );
        }
        Some(ProxyDoor::Unix { path, mode }) => {
            let listener = bind::unix(path, *mode, "gateway.proxy.socket").await?;
            opened.unix(listener, path, ListenerClass::Proxy);
        }
        None => {}
    }
    let admin = bind::unix(admin_socket, 0o600, "OPENCLAW_STATE_DIR").await?;
    opened.unix(admin, admin_socket, ListenerClass::Admin);
    Ok(opened)
}

impl Opened {
    fn tcp(&mut self, listener: TcpListener, class: ListenerClass, tls: Option<Arc<ServerTls>>) {
        if let Ok(address) = listener.local_addr() {
            let over = if tls.is_some() { " (TLS)" } else { "" };
            self.names
                .push(format!("{} {address}{over}", class.as_str()));
        }
        self.listeners.push(Listener::Tcp(listener, class, tls));
    }

    fn unix(&mut self, listener: UnixListener, path: &Path, class: ListenerClass) {
        self.names
            .push(format!("{} {}", class.as_str(), path.display()));
        self.listeners.push(Listener::Unix(listener, class));
    }
}

fn record_start(audit: &AuditLog, listeners: &[String]) -> Result<(), StartError> {
    let event = audit::Event::Started {
        version: control::VERSION.to_owned(),
        pid: std::process::id(),
        listeners: listeners.to_vec(),
    };
    audit
        .append(&event, Durability::Synced)
        .map(|_| ())
        .map_err(StartError::Audit)
}

fn agent(
    hub: &Arc<Hub>,
    store: &Arc<Store>,
    turn_timeout: Duration,
    exec_timeout: Duration,
    exec_node: Option<String>,
) -> Agent {
    let watched = Arc::clone(hub);
    let sink = move |event: agent::Event| {
        for frame in agent::wire::frames(&event) {
            announce(&watched, &frame);
        }
    };
    Agent::new(agent::Settings {
        tools: Arc::new(tools::HubTools::new(Arc::clone(hub))),
        transcript: Arc::new(transcript::StoredTranscript::new(Arc::clone(store))),
        sink: Arc::new(sink),
        model: None,
        turn_timeout,
        exec_timeout,
        exec_node,
        now_ms: machine::now_ms,
    })
}

/// Chats are for operators who may read; single steps of tools for those of them who asked for them at `connect`.
fn announce(hub: &Hub, frame: &agent::wire::WireEvent) {
    let audience = if frame.needs_tool_events() {
        Audience::ToolFollowers
    } else {
        Audience::Operators(Scope::Read)
    };
    hub.broadcast(audience, frame.name(), frame);
}

/// Notices a rotated secret though nobody connects.
async fn watch_secret(door: Arc<Door>, hub: Arc<Hub>) {
    let mut interval = tokio::time::interval(limits::SECRET_WATCH_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let (rules, hub) = (door.rules(), Arc::clone(&hub));
        let _ = tokio::task::spawn_blocking(move || rules.secret.refresh(&hub)).await;
    }
}

/// Learns by which name Serve's clients reach this host, which the daemon may know later, or differently some day.
async fn follow_name(tailnet: Arc<Tailnet>, door: Arc<Door>) {
    let mut told = false;
    loop {
        let wait = match tailnet.name().await {
            Ok(name) => {
                door.set_tailnet_name(name);
                told = false;
                limits::TAILNET_NAME_INTERVAL
            }
            Err(error) => {
                if !told {
                    let refused = match door.rules().admission.allow_tailscale {
                        true => {
                            "tailnet identities, and this host's name in the tailnet, are refused"
                        }
                        false => "this host's name in the tailnet is refused",
                    };
                    tracing::warn!(
                        %error,
                        "{refused} until the Tailscale daemon answers; start it and log in (tailscale up), or name its \
                         socket in gateway.tailscale.socket"
                    );
                }
                told = true;
                limits::TAILNET_NAME_RETRY
            }
        };
        tokio::time::sleep(wait).await;
    }
}

async fn tick(hub: Arc<Hub>) {
    let mut interval = tokio::time::interval(limits::TICK_INTERVAL);
    interval.tick().await;
    loop {
        interval.tick().await;
        hub.tick();
    }
}
