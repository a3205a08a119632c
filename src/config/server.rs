//! What the config says to a Gateway that is about to start, and what it refuses before anything is bound.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::env::Env;
use super::error::ConfigError;
use super::reader;
use super::resolve::{AuthMode, Bind, GatewayMode, PORT_DEFAULT, Proxy, Settings, TailscaleMode};
use super::secret_ref::{Resolver, SecretInput, Source};
use crate::auth::secret_eq::TokenDigest;
use crate::base::Secret;
use crate::net::{self, Doors, ProxyDoor};

const TOKEN_ENV: &str = "OPENCLAW_GATEWAY_TOKEN";
const PASSWORD_ENV: &str = "OPENCLAW_GATEWAY_PASSWORD";
const PORT_ENV: &str = "OPENCLAW_GATEWAY_PORT";

/// Flags of `gateway run`. They win over environment and file.
#[derive(Clone, Debug, Default)]
pub struct ServerFlags {
    pub port: Option<u16>,
    pub bind: Option<String>,
    pub auth: Option<String>,
    pub tailscale: Option<String>,
}

/// The server's own secret: where it stands, to be read at each decision so that rotation needs no restart.
#[derive(Clone)]
pub struct ServerSecret {
    /// What the operator would change.
    pub setting: &'static str,
    input: SecretInput,
    /// `hooks.token`, which must be another.
    hooks: SecretInput,
}

impl ServerSecret {
    /// Whether resolving it runs a program.
    pub fn takes_time(&self) -> bool {
        matches!(&self.input, SecretInput::Ref(reference) if reference.source == Source::Exec)
    }

    pub fn resolve(&self, resolver: &Resolver) -> Result<Secret, ConfigError> {
        let secret = resolver.resolve(self.setting, &self.input)?;
        let secret = secret.ok_or(ConfigError::NoSecret)?;
        if self.is_hooks_token(&secret, resolver) {
            return Err(ConfigError::conflict(
                "hooks.token",
                format!(
                    "it is the secret of {} too; give hooks a secret of their own",
                    self.setting
                ),
            ));
        }
        Ok(secret)
    }

    /// A program is not run for this: two references to one are compared as such.
    fn is_hooks_token(&self, secret: &Secret, resolver: &Resolver) -> bool {
        match (&self.hooks, &self.input) {
            (SecretInput::Ref(theirs), SecretInput::Ref(ours)) if theirs == ours => true,
            (SecretInput::Ref(theirs), _) if theirs.source == Source::Exec => false,
            (theirs, _) => resolver.read("hooks.token", theirs).is_ok_and(|theirs| {
                theirs.is_some_and(|it| TokenDigest::of(it.expose()).matches(Some(secret.expose())))
            }),
        }
    }
}

/// A Gateway that may start.
#[derive(Clone)]
pub struct ServerSettings {
    pub mode: AuthMode,
    /// `None` in mode `none`, where a proxy vouches for everybody, and in Baseline A.
    pub secret: Option<ServerSecret>,
    pub doors: Doors,
    pub tailscale: TailscaleMode,
    /// Tailscale identities count on the `serve` listener (decision 3).
    pub allow_tailscale: bool,
}

/// Where the longest path of a Unix socket ends (`sun_path`, with its closing zero).
const SOCKET_PATH_BYTES_MAX: usize = 107;

impl Settings {
    /// The port in the order flag, environment, file, default.
    pub fn port(&self, flag: Option<u16>) -> Result<u16, ConfigError> {
        if let Some(port) = flag {
            return Ok(port);
        }
        if let Some(text) = self.env.text(PORT_ENV) {
            return text
                .trim()
                .parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| {
                    ConfigError::bad(PORT_ENV, "not a port", "a number from 1 to 65535")
                });
        }
        Ok(self.gateway.port.unwrap_or(PORT_DEFAULT))
    }

    /// Everything that the config alone can refuse, before a socket is bound (decision 18).
    pub fn server(&self, flags: &ServerFlags) -> Result<ServerSettings, ConfigError> {
        if self.gateway.mode == GatewayMode::Remote {
            return Err(ConfigError::conflict(
                "gateway.mode",
                "\"remote\" means that the Gateway runs elsewhere; set it to \"local\" to run one here",
            ));
        }
        let bind = self.bind(flags)?;
        let tailscale = match flags.tailscale.as_deref() {
            Some(text) => reader::word("--tailscale", text, TailscaleMode::WORDS)?,
            None => self.gateway.tailscale,
        };
        let doors = self.doors(flags, bind, tailscale)?;
        let exposed = Exposure::of(&doors, tailscale);
        self.refuse_unsafe_exposure(&doors, tailscale, exposed)?;
        let auth = &self.gateway.auth;
        let mode = match flags.auth.as_deref() {
            Some(text) => Some(reader::word("--auth", text, AuthMode::WORDS)?),
            None => auth.mode,
        };
        let whois_only = auth.allow_tailscale == Some(true)
            && tailscale == TailscaleMode::Serve
            && doors.proxy.is_none();
        let (mode, mut secret) =
            select_secret(mode, &self.env, &auth.token, &auth.password, whois_only)?;
        if let Some(secret) = &mut secret {
            secret.hooks = self.hooks_token.clone();
        }
        // A literal can be judged now; a reference is judged when it resolves.
        if let Some(secret) = &secret
            && matches!(secret.input, SecretInput::Literal(_))
        {
            secret.resolve(&self.resolver)?;
        }
        self.refuse_mode(mode, &doors, tailscale, exposed)?;
        let by_default =
            matches!(mode, AuthMode::None | AuthMode::Token) && !self.loopback_is_proxy();
        Ok(ServerSettings {
            mode,
            secret,
            doors,
            tailscale,
            allow_tailscale: tailscale == TailscaleMode::Serve
                && auth.allow_tailscale.unwrap_or(by_default),
        })
    }

    fn bind(&self, flags: &ServerFlags) -> Result<net::Bind, ConfigError> {
        let word = match flags.bind.as_deref() {
            Some(text) => reader::word("--bind", text, Bind::WORDS)?,
            None => self.gateway.bind,
        };
        Ok(match word {
            Bind::Loopback => net::Bind::Loopback,
            Bind::Lan => net::Bind::Lan,
            Bind::Tailnet => net::Bind::Tailnet,
            Bind::Auto => net::Bind::Auto,
            Bind::Custom => net::Bind::Custom(self.gateway.custom_bind_host.ok_or_else(|| {
                ConfigError::conflict(
                    "gateway.customBindHost",
                    "gateway.bind is \"custom\"; set this to the address to listen on",
                )
            })?),
        })
    }

    fn doors(
        &self,
        flags: &ServerFlags,
        bind: net::Bind,
        tailscale: TailscaleMode,
    ) -> Result<Doors, ConfigError> {
        const SERVE_PORT: &str = "gateway.tailscale.servePort";
        const PROXY_PORT: &str = "gateway.proxy.port";
        let port = self.port(flags.port)?;
        let serve_port = match (tailscale, self.gateway.serve_port) {
            (TailscaleMode::Off, _) => None,
            (_, Some(port)) => Some(port),
            (_, None) => Some(port.checked_add(1).ok_or_else(|| {
                ConfigError::conflict(
                    SERVE_PORT,
                    "there is no port after 65535; set it to a free one",
                )
            })?),
        };
        let taken = |setting| {
            Err(ConfigError::conflict(
                setting,
                "another listener has this port; choose a free one",
            ))
        };
        if serve_port == Some(port) {
            return taken(SERVE_PORT);
        }
        let proxy = self.proxy_door()?;
        if let Some(ProxyDoor::Tcp(address)) = &proxy
            && [Some(port), serve_port].contains(&Some(address.port()))
        {
            return taken(PROXY_PORT);
        }
        Ok(Doors {
            bind,
            port,
            serve_port,
            proxy,
        })
    }

    fn proxy_door(&self) -> Result<Option<ProxyDoor>, ConfigError> {
        const SOCKET: &str = "gateway.proxy.socket";
        let proxy = &self.gateway.proxy;
        match (proxy.port, &proxy.socket) {
            (Some(_), Some(_)) => Err(ConfigError::conflict(
                SOCKET,
                "gateway.proxy.port is set too; keep the one that your proxy uses",
            )),
            (Some(port), None) => {
                let address = proxy.bind.unwrap_or(Ipv4Addr::LOCALHOST.into());
                if !address.is_loopback() && self.gateway.trusted_proxies.is_empty() {
                    return Err(ConfigError::conflict(
                        "gateway.trustedProxies",
                        "gateway.proxy.bind is not loopback; list exactly the proxy's address",
                    ));
                }
                Ok(Some(ProxyDoor::Tcp(SocketAddr::new(address, port))))
            }
            (None, Some(path)) => {
                let length = path.as_os_str().len();
                if !path.is_absolute() || length > SOCKET_PATH_BYTES_MAX {
                    return Err(ConfigError::bad(
                        SOCKET,
                        format!("a path of {length} bytes that is refused"),
                        format!("absolute, of at most {SOCKET_PATH_BYTES_MAX} bytes"),
                    ));
                }
                Ok(Some(ProxyDoor::Unix {
                    path: path.clone(),
                    mode: proxy.socket_mode.unwrap_or(0o600),
                }))
            }
            (None, None) if *proxy == Proxy::default() => Ok(None),
            (None, None) => Err(ConfigError::conflict(
                "gateway.proxy",
                "it names neither a port nor a socket; set gateway.proxy.port or gateway.proxy.socket",
            )),
        }
    }

    /// What no way of signing in makes right.
    fn refuse_unsafe_exposure(
        &self,
        doors: &Doors,
        tailscale: TailscaleMode,
        exposed: Option<Exposure>,
    ) -> Result<(), ConfigError> {
        if tailscale != TailscaleMode::Off && !doors.bind.is_loopback() {
            return Err(ConfigError::conflict(
                "gateway.bind",
                "gateway.tailscale.mode is not \"off\", and Serve and Funnel reach loopback only; set it to \"loopback\"",
            ));
        }
        if exposed.is_some() && self.gateway.control_ui.device_auth_disabled {
            return Err(ConfigError::conflict(
                "gateway.controlUi.dangerouslyDisableDeviceAuth",
                "no switch turns device identity off beyond loopback; remove it",
            ));
        }
        if self.loopback_is_proxy() && self.gateway.auth.allow_tailscale == Some(true) {
            return Err(ConfigError::conflict(
                "gateway.auth.allowTailscale",
                "it is true while gateway.trustedProxies names loopback: a proxy there could forge Tailscale's headers; set it to false",
            ));
        }
        Ok(())
    }

    /// What a mode needs, and where it must not be.
    fn refuse_mode(
        &self,
        mode: AuthMode,
        doors: &Doors,
        tailscale: TailscaleMode,
        exposed: Option<Exposure>,
    ) -> Result<(), ConfigError> {
        const MODE: &str = "gateway.auth.mode";
        if tailscale == TailscaleMode::Funnel && mode != AuthMode::Password {
            return Err(ConfigError::conflict(
                MODE,
                "gateway.tailscale.mode is \"funnel\", which is the public internet; set it to \"password\" and set gateway.auth.password",
            ));
        }
        if let (AuthMode::None, Some(exposure)) = (mode, exposed) {
            let (setting, right) = exposure.closed();
            return Err(ConfigError::conflict(
                MODE,
                format!(
                    "it is \"none\", which is for programs on this host only; {right} {setting}, or set it to \"password\" and set gateway.auth.password"
                ),
            ));
        }
        if mode != AuthMode::TrustedProxy {
            return Ok(());
        }
        let auth = &self.gateway.auth;
        if auth.trusted_proxy.user_header.is_empty() {
            return Err(ConfigError::conflict(
                "gateway.auth.trustedProxy.userHeader",
                "trusted-proxy mode needs it; set it to the header in which the proxy names its user, such as \"x-forwarded-user\"",
            ));
        }
        if self.gateway.trusted_proxies.is_empty() && doors.proxy.is_none() {
            return Err(ConfigError::conflict(
                "gateway.trustedProxies",
                "trusted-proxy mode needs it; list exactly the proxy's address, or give the proxy a listener of its own with gateway.proxy",
            ));
        }
        if auth.allow_tailscale == Some(true) {
            return Err(ConfigError::conflict(
                "gateway.auth.allowTailscale",
                "it is true in trusted-proxy mode, where only the proxy vouches for users; set it to false",
            ));
        }
        Ok(())
    }

    fn loopback_is_proxy(&self) -> bool {
        self.gateway.trusted_proxies.iter().any(|range| {
            range.contains(IpAddr::V4(Ipv4Addr::LOCALHOST))
                || range.contains(IpAddr::V6(Ipv6Addr::LOCALHOST))
        })
    }
}

/// What lets others than this host's programs in.
#[derive(Clone, Copy)]
enum Exposure {
    Bind,
    Tailscale,
    Proxy,
}

impl Exposure {
    fn of(doors: &Doors, tailscale: TailscaleMode) -> Option<Self> {
        match (tailscale, &doors.proxy) {
            _ if !doors.bind.is_loopback() => Some(Self::Bind),
            (TailscaleMode::Serve | TailscaleMode::Funnel, _) => Some(Self::Tailscale),
            (TailscaleMode::Off, Some(_)) => Some(Self::Proxy),
            (TailscaleMode::Off, None) => None,
        }
    }

    /// How the operator closes it: the setting with its value, and the verb before it.
    fn closed(self) -> (&'static str, &'static str) {
        match self {
            Self::Bind => ("gateway.bind: \"loopback\"", "set"),
            Self::Tailscale => ("gateway.tailscale.mode: \"off\"", "set"),
            Self::Proxy => ("gateway.proxy", "remove"),
        }
    }
}

/// Decision 1: the mode, and which secret opens the Gateway. `gateway.remote.*` never does. `whois_only` says that the
/// tailnet's identities suffice (Baseline A).
pub(super) fn select_secret(
    mode: Option<AuthMode>,
    env: &Env,
    token: &SecretInput,
    password: &SecretInput,
    whois_only: bool,
) -> Result<(AuthMode, Option<ServerSecret>), ConfigError> {
    let pick = |variable: &'static str, setting: &'static str, configured: &SecretInput| {
        let (setting, input) = match env.secret(variable) {
            Some(secret) => (variable, SecretInput::Literal(secret)),
            None => (setting, configured.clone()),
        };
        input.is_set().then_some(ServerSecret {
            setting,
            input,
            hooks: SecretInput::Unset,
        })
    };
    let token = pick(TOKEN_ENV, "gateway.auth.token", token);
    let password = pick(PASSWORD_ENV, "gateway.auth.password", password);
    let missing = |mode: &str, setting: &str, variable: &str| {
        ConfigError::conflict(
            "gateway.auth.mode",
            format!("it is \"{mode}\" and no {mode} is set; set {setting} or {variable}"),
        )
    };
    use AuthMode::{None as Open, Password, Token, TrustedProxy};
    match (mode, token, password) {
        (Some(Open), _, _) => Ok((Open, None)),
        (Some(TrustedProxy), Some(token), _) => Err(ConfigError::conflict(
            token.setting,
            "gateway.auth.mode is \"trusted-proxy\", and a shared token would be a way past the proxy; remove it",
        )),
        // For programs on this host only; admission sees to that.
        (Some(TrustedProxy), None, password) => Ok((TrustedProxy, password)),
        (Some(Token) | None, None, None) if whois_only => Ok((Token, None)),
        (Some(Token), Some(token), _) | (None, Some(token), None) => Ok((Token, Some(token))),
        (Some(Token), None, _) => Err(missing("token", "gateway.auth.token", TOKEN_ENV)),
        (Some(Password), _, Some(password)) | (None, None, Some(password)) => {
            Ok((Password, Some(password)))
        }
        (Some(Password), _, None) => {
            Err(missing("password", "gateway.auth.password", PASSWORD_ENV))
        }
        (None, Some(token), Some(password)) => Err(ConfigError::conflict(
            "gateway.auth.mode",
            format!(
                "it is not set, and both {} and {} are; set it to \"password\" or \"token\"",
                token.setting, password.setting
            ),
        )),
        (None, None, None) => Err(ConfigError::NoSecret),
    }
}
