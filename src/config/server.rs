//! What the config says to a Gateway that is about to start, and what it refuses before anything is bound.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::env::Env;
use super::error::ConfigError;
use super::reader;
use super::resolve::{
    AUTH_MODES, AuthMode, Bind, GatewayMode, PORT_DEFAULT, Settings, TailscaleMode,
};
use super::secret_ref::{Resolver, SecretInput, Source};
use crate::base::Secret;

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

/// Which of the two kinds of shared secret opens the Gateway.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SecretKind {
    Token,
    Password,
}

/// The server's own secret: where it stands, to be read at each decision so that rotation needs no restart.
#[derive(Clone)]
pub struct ServerSecret {
    pub kind: SecretKind,
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
            return Err(ConfigError::Conflict {
                setting: "hooks.token".to_owned(),
                why: format!(
                    "it is the secret of {} too; give hooks a secret of their own",
                    self.setting
                ),
            });
        }
        Ok(secret)
    }

    /// A program is not run for this: two references to one are compared as such.
    fn is_hooks_token(&self, secret: &Secret, resolver: &Resolver) -> bool {
        match (&self.hooks, &self.input) {
            (SecretInput::Ref(theirs), SecretInput::Ref(ours)) if theirs == ours => true,
            (SecretInput::Ref(theirs), _) if theirs.source == Source::Exec => false,
            (theirs, _) => resolver
                .read("hooks.token", theirs)
                .is_ok_and(|theirs| theirs.is_some_and(|it| it.expose() == secret.expose())),
        }
    }
}

/// A Gateway that may start.
#[derive(Clone)]
pub struct ServerSettings {
    /// Each is bound. The first is the one that clients are told.
    pub listen: Vec<SocketAddr>,
    pub secret: ServerSecret,
}

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
                .ok_or_else(|| ConfigError::BadValue {
                    setting: PORT_ENV.to_owned(),
                    got: "not a port".to_owned(),
                    want: "a number from 1 to 65535".to_owned(),
                });
        }
        Ok(self.gateway.port.unwrap_or(PORT_DEFAULT))
    }

    /// Everything that the config alone can refuse, before a socket is bound (decision 18).
    pub fn server(&self, flags: &ServerFlags) -> Result<ServerSettings, ConfigError> {
        if self.gateway.mode == GatewayMode::Remote {
            return Err(ConfigError::Conflict {
                setting: "gateway.mode".to_owned(),
                why: "\"remote\" means that the Gateway runs elsewhere; set it to \"local\" to run one here"
                    .to_owned(),
            });
        }
        self.refuse_exposure(flags)?;
        let mode = match flags.auth.as_deref() {
            Some(text) => Some(reader::word("--auth", text, AUTH_MODES)?),
            None => self.gateway.auth.mode,
        };
        let auth = &self.gateway.auth;
        let mut secret = select_secret(mode, &self.env, &auth.token, &auth.password)?;
        secret.hooks = self.hooks_token.clone();
        // A literal can be judged now; a reference is judged when it resolves.
        if matches!(secret.input, SecretInput::Literal(_)) {
            secret.resolve(&self.resolver)?;
        }
        let port = self.port(flags.port)?;
        Ok(ServerSettings {
            listen: vec![
                SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
                SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port),
            ],
            secret,
        })
    }

    fn refuse_exposure(&self, flags: &ServerFlags) -> Result<(), ConfigError> {
        let not_served = |setting: &str, instead: &str| ConfigError::NotServed {
            setting: setting.to_owned(),
            instead: instead.to_owned(),
        };
        let loopback_only = match flags.bind.as_deref() {
            Some(text) => text == "loopback",
            None => self.gateway.bind == Bind::Loopback,
        };
        if !loopback_only {
            if self.gateway.control_ui.device_auth_disabled {
                return Err(ConfigError::Conflict {
                    setting: "gateway.controlUi.dangerouslyDisableDeviceAuth".to_owned(),
                    why: "no switch turns device identity off beyond loopback; remove it"
                        .to_owned(),
                });
            }
            return Err(not_served(
                "gateway.bind other than \"loopback\"",
                "set gateway.bind: \"loopback\" and reach it through an SSH tunnel",
            ));
        }
        let tailscale_off = match flags.tailscale.as_deref() {
            Some(text) => text == "off",
            None => self.gateway.tailscale == TailscaleMode::Off,
        };
        if !tailscale_off {
            return Err(not_served(
                "gateway.tailscale.mode other than \"off\"",
                "set gateway.tailscale.mode: \"off\"",
            ));
        }
        let loopback_is_proxy = self.gateway.trusted_proxies.iter().any(|range| {
            range.contains(IpAddr::V4(Ipv4Addr::LOCALHOST))
                || range.contains(IpAddr::V6(Ipv6Addr::LOCALHOST))
        });
        if loopback_is_proxy && self.gateway.auth.allow_tailscale == Some(true) {
            return Err(ConfigError::Conflict {
                setting: "gateway.auth.allowTailscale".to_owned(),
                why: "it is true while gateway.trustedProxies names loopback: a proxy there could forge Tailscale's headers; set it to false"
                    .to_owned(),
            });
        }
        Ok(())
    }
}

/// Decision 1: which secret opens the Gateway. `gateway.remote.*` never does.
pub(super) fn select_secret(
    mode: Option<AuthMode>,
    env: &Env,
    token: &SecretInput,
    password: &SecretInput,
) -> Result<ServerSecret, ConfigError> {
    let pick = |kind, variable: &'static str, setting: &'static str, configured: &SecretInput| {
        let (setting, input) = match env.secret(variable) {
            Some(secret) => (variable, SecretInput::Literal(secret)),
            None => (setting, configured.clone()),
        };
        input.is_set().then_some(ServerSecret {
            kind,
            setting,
            input,
            hooks: SecretInput::Unset,
        })
    };
    let token = pick(SecretKind::Token, TOKEN_ENV, "gateway.auth.token", token);
    let password = pick(
        SecretKind::Password,
        PASSWORD_ENV,
        "gateway.auth.password",
        password,
    );
    let missing = |mode: &str, setting: &str, variable: &str| ConfigError::Conflict {
        setting: "gateway.auth.mode".to_owned(),
        why: format!("it is \"{mode}\" and no {mode} is set; set {setting} or {variable}"),
    };
    match (mode, token, password) {
        (Some(AuthMode::Token), Some(token), _) => Ok(token),
        (Some(AuthMode::Token), None, _) => Err(missing("token", "gateway.auth.token", TOKEN_ENV)),
        (Some(AuthMode::Password), _, Some(password)) => Ok(password),
        (Some(AuthMode::Password), _, None) => {
            Err(missing("password", "gateway.auth.password", PASSWORD_ENV))
        }
        (Some(AuthMode::None | AuthMode::TrustedProxy), _, _) => Err(ConfigError::NotServed {
            setting: "gateway.auth.mode other than \"token\" and \"password\"".to_owned(),
            instead: "set gateway.auth.mode: \"password\" and gateway.auth.password".to_owned(),
        }),
        (None, Some(token), Some(password)) => Err(ConfigError::Conflict {
            setting: "gateway.auth.mode".to_owned(),
            why: format!(
                "it is not set, and both {} and {} are; set it to \"password\" or \"token\"",
                token.setting, password.setting
            ),
        }),
        (None, None, Some(password)) => Ok(password),
        (None, Some(token), None) => Ok(token),
        (None, None, None) => Err(ConfigError::NoSecret),
    }
}
