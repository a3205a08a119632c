//! The parts of a Gateway, joined.
//!
//! Each part knows only traits of its own; here they get the hub, the store and the clock.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::secret::Secrets;
use super::{tools, transcript};
use crate::agent::{self, Agent};
use crate::audit::{self, AuditLog, Durability};
use crate::auth::admission;
use crate::auth::rate_limit::LimiterSettings;
use crate::auth::scope::Scope;
use crate::base::{DeviceId, limits};
use crate::config::{self, ConfigError};
use crate::control::{self, Control};
use crate::exec::policy::Mode;
use crate::http::{self, Front, Listener};
use crate::hub::{self, Audience, Hub};
use crate::ingress::{self, ListenerClass};
use crate::machine;
use crate::net::tls::{ServerTls, TlsError};
use crate::net::{BindError, bind};
use crate::nodes::CommandPolicy;
use crate::session::{Door, Rules, WhoisSource};
use crate::store::{Store, StoreError};

/// What a Gateway is started with; `config` and `quickstart` fill it in.
pub struct GatewaySettings {
    /// The directory of our own state, private to this user.
    pub state_dir: PathBuf,
    pub config_path: Option<PathBuf>,
    /// 0 takes a free one.
    pub port: u16,
    /// Every record is on the disk before what it records happens.
    pub audit_sync_always: bool,
    pub admission: admission::Settings,
    pub secrets: Arc<Secrets>,
    /// Who proves tailnet identities; without it there are none.
    pub whois: Option<Arc<dyn WhoisSource>>,
    pub limiter: LimiterSettings,
    pub ingress: ingress::Settings,
    pub commands: CommandPolicy,
    pub per_node: Vec<(DeviceId, CommandPolicy)>,
    pub exec_mode: Mode,
    /// Whether the chat page is served at `/`.
    pub serve_page: bool,
    pub tls: config::Tls,
    pub exec_timeout: Duration,
    pub turn_timeout: Duration,
}

/// A Gateway that serves.
pub struct Gateway {
    pub port: u16,
    pub admin_socket: PathBuf,
    pub hub: Arc<Hub>,
    pub(super) front: Arc<Front>,
    pub(super) secrets: Arc<Secrets>,
    pub tls: Option<Arc<ServerTls>>,
    agent: Agent,
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
            auth_mode: settings.secrets.mode_name(),
        };
        let hub = Arc::new(
            Hub::new(hub_settings, Arc::clone(&store), Arc::clone(&audit))
                .map_err(StartError::Hub)?,
        );
        let agent = agent(&hub, &store, settings.turn_timeout, settings.exec_timeout);
        let control = Arc::new(Control {
            hub: Arc::clone(&hub),
            agent: agent.clone(),
            settings: control::Settings {
                config_path: settings.config_path.map(|path| path.display().to_string()),
                state_dir: Some(settings.state_dir.display().to_string()),
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
            settings.whois,
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
        let (port, state_dir) = (settings.port, settings.state_dir.clone());
        let secrets = Arc::clone(&settings.secrets);
        let Parts {
            front,
            hub,
            tls,
            agent,
            audit,
        } = Parts::open(settings)?;
        let listeners = bind::loopback(port).await.map_err(StartError::Bind)?;
        let port = listeners
            .first()
            .and_then(|listener| listener.local_addr().ok())
            .map_or(port, |address| address.port());
        let admin_socket = state_dir.join("admin.sock");
        let admin = bind::admin(&admin_socket).await.map_err(StartError::Bind)?;
        record_start(&audit, &listeners, &admin_socket)?;
        let mut tasks = JoinSet::new();
        for listener in listeners {
            tasks.spawn(http::accept(
                Listener::Tcp(listener, ListenerClass::Main, tls.clone()),
                Arc::clone(&front),
            ));
        }
        tasks.spawn(http::accept(Listener::Admin(admin), Arc::clone(&front)));
        tasks.spawn(tick(Arc::clone(&hub)));
        Ok(Self {
            port,
            admin_socket,
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
            // Between its last count and its frame in the outbox lies a moment.
            tokio::time::sleep(Duration::from_millis(5)).await;
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
        let _ = std::fs::remove_file(&self.admin_socket);
    }
}

fn record_start(
    audit: &AuditLog,
    listeners: &[tokio::net::TcpListener],
    admin_socket: &std::path::Path,
) -> Result<(), StartError> {
    let mut names: Vec<String> = listeners
        .iter()
        .filter_map(|listener| listener.local_addr().ok())
        .map(|address| format!("main {address}"))
        .collect();
    names.push(format!("admin {}", admin_socket.display()));
    let event = audit::Event::Started {
        version: control::VERSION.to_owned(),
        pid: std::process::id(),
        listeners: names,
        config_sha256: None,
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

async fn tick(hub: Arc<Hub>) {
    let mut interval = tokio::time::interval(limits::TICK_INTERVAL);
    interval.tick().await;
    loop {
        interval.tick().await;
        hub.tick();
    }
}
