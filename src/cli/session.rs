//! From flags and config to a connected client.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::args::Common;
use super::exit::{Exit, Failure};
use super::output;
use crate::auth::scope::{Role, Scope};
use crate::base::Secret;
use crate::client::credentials::{self, Caller, Credentials, Place, Places, Query, Target};
use crate::client::{CallError, Client, ConnectOptions, Endpoint, Event, Events, WsUrl, dial};
use crate::config::{Bind, ConfigError, Env, GatewayMode, SecretInput, Settings};
use crate::net::{Fingerprint, tls};
use crate::rpc::types::connect::{ClientId, ClientMode, PROTOCOL_MIN_NODE};

const URL_ENV: &str = "OPENCLAW_GATEWAY_URL";
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// The flags and the config of one command.
pub struct Context {
    pub common: Common,
    pub settings: Settings,
}

impl Context {
    pub fn load(common: Common) -> Result<Self, Failure> {
        let settings = Settings::load(&Env::process(), common.profile.as_deref())?;
        Ok(Self { common, settings })
    }

    pub fn timeout(&self) -> Duration {
        self.common
            .timeout
            .map_or(TIMEOUT_DEFAULT, Duration::from_millis)
    }

    /// Prints the payload, or what `human` makes of it.
    pub fn show<T: DeserializeOwned>(
        &self,
        payload: &RawValue,
        human: impl FnOnce(T) -> String,
    ) -> Result<(), Failure> {
        if self.common.json {
            output::json(payload);
            return Ok(());
        }
        output::line(&human(decode(payload)?));
        Ok(())
    }
}

/// Reads an answer that must have its documented form.
pub fn decode<T: DeserializeOwned>(payload: &RawValue) -> Result<T, Failure> {
    serde_json::from_str(payload.get()).map_err(|_| {
        Failure::new(
            Exit::Refused,
            "the gateway's answer does not have the expected form; --json shows it as it came",
        )
    })
}

fn place(context: &Settings, setting: &str, input: &SecretInput) -> Place {
    match context.resolver.read(setting, input) {
        Ok(None) => Place::Unset,
        Ok(Some(secret)) => Place::Value(secret),
        Err(ConfigError::UnresolvedSecret { why, .. }) => Place::Unresolved(why),
        Err(error) => Place::Unresolved(error.to_string()),
    }
}

/// What each place holds, for the precedence function.
pub fn places(settings: &Settings) -> Places {
    let env = |name| settings.env.secret(name).map_or(Place::Unset, Place::Value);
    let gateway = &settings.gateway;
    Places {
        env_token: env("OPENCLAW_GATEWAY_TOKEN"),
        env_password: env("OPENCLAW_GATEWAY_PASSWORD"),
        auth_token: place(settings, "gateway.auth.token", &gateway.auth.token),
        auth_password: place(settings, "gateway.auth.password", &gateway.auth.password),
        remote_token: place(settings, "gateway.remote.token", &gateway.remote.token),
        remote_password: place(
            settings,
            "gateway.remote.password",
            &gateway.remote.password,
        ),
    }
}

/// Whether plaintext may leave loopback.
pub fn break_glass(env: &Env) -> bool {
    env.text(dial::BREAK_GLASS_ENV).as_deref().map(str::trim) == Some("1")
}

/// A credential from the command line; a blank one is none.
pub fn explicit(flag: Option<&String>) -> Option<Secret> {
    let text = flag.filter(|text| !text.trim().is_empty())?;
    Some(Secret::new(text.as_bytes()))
}

/// Decides where to and with what, without connecting.
fn route(context: &Context, caller: Caller) -> Result<(Endpoint, Credentials), Failure> {
    let Context { common, settings } = context;
    let token = explicit(common.token.as_ref());
    let password = explicit(common.password.as_ref());
    let env_url = settings.env.text(URL_ENV);
    let (target, endpoint) = match (&common.url, env_url) {
        (Some(url), _) => (Target::FlagUrl, Endpoint::Tcp(WsUrl::parse(url)?)),
        (None, Some(url)) => (Target::EnvUrl, Endpoint::Tcp(WsUrl::parse(&url)?)),
        (None, None) => {
            // A pin asks for the network, too: on the admin socket there is nothing to pin.
            let explicit =
                token.is_some() || password.is_some() || common.tls_fingerprint.is_some();
            (Target::Configured, configured(settings, explicit)?)
        }
    };
    let endpoint = match endpoint {
        Endpoint::Tcp(url) => Endpoint::Tcp(pinned(context, url)?),
        // Through it our user id is the credential, so none is looked up, let alone sent.
        Endpoint::Admin(socket) => {
            if common.explain_auth {
                let shown = socket.display();
                output::note(&format!(
                    "{shown}: used, with this user's id; no secret is looked up"
                ));
            }
            return Ok((Endpoint::Admin(socket), Credentials::default()));
        }
    };
    let credentials = credentials::choose(&Query {
        mode: settings.gateway.mode,
        target,
        caller,
        explicit_token: token.as_ref(),
        explicit_password: password.as_ref(),
        places: &places(settings),
    });
    if common.explain_auth {
        explain(credentials.as_ref());
    }
    Ok((endpoint, credentials?))
}

fn explain(chosen: Result<&Credentials, &credentials::Refused>) {
    let steps = match chosen {
        Ok(credentials) => &credentials.steps,
        Err(credentials::Refused::Unresolved { steps, .. }) => steps,
        Err(credentials::Refused::UrlWithoutCredential) => return,
    };
    for step in steps {
        output::note(&step.to_string());
    }
}

/// The config's Gateway (decision 7).
fn configured(settings: &Settings, explicit: bool) -> Result<Endpoint, Failure> {
    let remote = &settings.gateway.remote;
    if settings.gateway.mode == GatewayMode::Local {
        let socket = settings.paths.admin_socket();
        if !explicit && is_live_socket(&socket) {
            return Ok(Endpoint::Admin(socket));
        }
        let port = settings.port(None)?;
        let host = loopback_or_bound(settings, "--url")?;
        let mut url = WsUrl::new(&host, port);
        url.tls = settings.gateway.tls.source.is_some();
        return Ok(Endpoint::Tcp(url));
    }
    if remote.over_ssh {
        return Err(ConfigError::NotServed {
            setting: "gateway.remote.transport: \"ssh\"".to_owned(),
            instead: "open the tunnel yourself (ssh -N -L 18789:127.0.0.1:18789 HOST) and set gateway.remote.url: \"ws://127.0.0.1:18789\""
                .to_owned(),
        }
        .into());
    }
    let Some(url) = &remote.url else {
        let why = "it is \"remote\" and gateway.remote.url is not set";
        return Err(ConfigError::conflict("gateway.mode", why).into());
    };
    Ok(Endpoint::Tcp(WsUrl::parse(url)?))
}

/// Where the Gateway of this config can be dialled. A bind that leaves loopback free leaves it to any program of this host,
/// which must not be sent a secret (decision 19).
pub fn loopback_or_bound(settings: &Settings, flag: &str) -> Result<String, Failure> {
    let gateway = &settings.gateway;
    match (gateway.bind, gateway.custom_bind_host) {
        (Bind::Tailnet, _) => {
            let why = "\"tailnet\" does not listen on loopback; name the tailnet address with";
            Err(ConfigError::conflict("gateway.bind", format!("{why} {flag}")).into())
        }
        (Bind::Custom, Some(address)) if !address.is_loopback() => Ok(address.to_string()),
        _ => Ok("127.0.0.1".to_owned()),
    }
}

/// The address with the pin that belongs to it: the flag's; or the configured one, whichever way that origin was named
/// (D3); or, for the Gateway of this machine, that of the certificate in its files.
pub fn pinned(context: &Context, mut url: WsUrl) -> Result<WsUrl, Failure> {
    const FLAG: &str = "--tls-fingerprint";
    const SETTING: &str = "gateway.remote.tlsFingerprint";
    let gateway = &context.settings.gateway;
    let pin = |place: &str, text: &str| {
        if !url.tls {
            let why = "a pin has no meaning for a ws:// address; use wss://, or remove it";
            return Err(ConfigError::conflict(place, why));
        }
        Fingerprint::parse(text).map(Some).ok_or_else(|| {
            let want = "64 hexadecimal digits, with or without colons";
            ConfigError::bad(place, "no fingerprint", want)
        })
    };
    let remote = &gateway.remote;
    let is_remote = match &remote.url {
        Some(remote) => WsUrl::parse(remote).is_ok_and(|remote| remote.is_same_origin(&url)),
        None => false,
    };
    let is_ours = gateway.mode == GatewayMode::Local
        && matches!(url.host.as_str(), "127.0.0.1" | "::1" | "localhost")
        && url.port == context.settings.port(None)?;
    if url.tls && remote.url.is_none() && context.common.tls_fingerprint.is_none() {
        // A pin for no origin would pin nothing, and look as if it did.
        if remote.tls_fingerprint.is_some() {
            let why = "it belongs to gateway.remote.url, which is not set; set that, or give --tls-fingerprint";
            return Err(ConfigError::conflict(SETTING, why).into());
        }
    }
    url.pin = match (&context.common.tls_fingerprint, &remote.tls_fingerprint) {
        (Some(text), _) => pin(FLAG, text)?,
        (None, Some(text)) if is_remote => pin(SETTING, text)?,
        _ if is_ours && url.tls => gateway.tls.source.as_ref().and_then(tls::fingerprint_of),
        _ => None,
    };
    Ok(url)
}

/// Whether somebody listens. A socket that a crash left behind must not hide a Gateway on the port.
fn is_live_socket(path: &std::path::Path) -> bool {
    std::os::unix::net::UnixStream::connect(path).is_ok()
}

/// A connected command.
pub struct Session {
    pub client: Client,
    pub endpoint: Endpoint,
    events: Events,
    timeout: Duration,
}

impl Session {
    /// Connects as the local CLI does, with the scopes that the command needs.
    pub async fn open(
        context: &Context,
        caller: Caller,
        scopes: &[Scope],
    ) -> Result<Self, Failure> {
        Self::open_with(context, caller, scopes, &[]).await
    }

    /// The same with capabilities: some events are only for clients that name them.
    pub async fn open_with(
        context: &Context,
        caller: Caller,
        scopes: &[Scope],
        caps: &[&str],
    ) -> Result<Self, Failure> {
        let (endpoint, credentials) = route(context, caller)?;
        let mut options = ConnectOptions::new(
            ClientId::Cli,
            ClientMode::Cli,
            Role::Operator,
            context.timeout(),
        );
        if caller == Caller::Probe {
            options.client.mode = ClientMode::Probe;
            options.protocol_min = PROTOCOL_MIN_NODE;
        }
        options.scopes = scopes.iter().map(|it| it.as_str().to_owned()).collect();
        options.caps = caps.iter().map(|&cap| cap.to_owned()).collect();
        options.sent = credentials.into();
        options.break_glass = break_glass(&context.settings.env);
        let (client, events) = Client::connect(&endpoint, &options).await?;
        Ok(Self {
            client,
            endpoint,
            events,
            timeout: context.timeout(),
        })
    }

    pub async fn call(
        &self,
        method: &str,
        params: &impl Serialize,
    ) -> Result<Box<RawValue>, Failure> {
        Ok(self.client.call(method, params, self.timeout).await?)
    }

    /// The next event. Cancel-safe.
    pub async fn next_event(&mut self) -> Result<Event, Failure> {
        let event = self.events.next().await;
        event.map_err(|ended| CallError::Ended(ended).into())
    }

    /// Says goodbye, so that the Gateway does not log a broken connection.
    pub async fn close(self) {
        let Self {
            client, mut events, ..
        } = self;
        drop(client);
        let goodbye = async { while events.next().await.is_ok() {} };
        let _ = tokio::time::timeout(Duration::from_secs(1), goodbye).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a command finds that runs with this `openclaw.json`.
    fn context(config: &str, fingerprint: Option<&str>) -> Context {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("openclaw.json");
        std::fs::write(&path, config).unwrap();
        let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
        let env = Env::given([
            ("HOME", text(home.path())),
            ("OPENCLAW_CONFIG_PATH", text(&path)),
        ]);
        Context {
            settings: Settings::load(&env, None).unwrap(),
            common: Common {
                tls_fingerprint: fingerprint.map(str::to_owned),
                ..Common::default()
            },
        }
    }

    #[test]
    fn a_port_on_loopback_that_is_not_ours_is_sent_no_secret() {
        let dialled = |config: &str| loopback_or_bound(&context(config, None).settings, "--url");
        for loopback in [
            "{}",
            "{gateway: {bind: 'loopback'}}",
            "{gateway: {bind: 'lan'}}",
            "{gateway: {bind: 'auto'}}",
            "{gateway: {bind: 'custom', customBindHost: '127.0.0.1'}}",
        ] {
            assert_eq!(dialled(loopback).unwrap(), "127.0.0.1", "{loopback}");
        }
        let bound = "{gateway: {bind: 'custom', customBindHost: '192.168.7.5'}}";
        assert_eq!(dialled(bound).unwrap(), "192.168.7.5");
        let refused = dialled("{gateway: {bind: 'tailnet'}}").unwrap_err();
        assert!(
            refused
                .to_string()
                .contains("name the tailnet address with --url")
        );
        // What is dialled is what is routed to, and refused before anything is sent.
        let endpoint = configured(&context(bound, None).settings, true).unwrap();
        assert!(matches!(endpoint, Endpoint::Tcp(url) if url.host == "192.168.7.5"));
        let tailnet = context("{gateway: {bind: 'tailnet'}}", None);
        assert!(configured(&tailnet.settings, true).is_err());
    }

    #[test]
    fn d3_a_pin_belongs_to_one_origin_or_is_an_error() {
        let pin = "ab".repeat(32);
        let remote =
            |url: &str| format!("{{gateway: {{remote: {{{url} tlsFingerprint: '{pin}'}}}}}}");
        let judged = |config: &str, flag: Option<&str>, url: &str| {
            let url = WsUrl::parse(url).unwrap();
            pinned(&context(config, flag), url).map(|url| url.pin.is_some())
        };
        let (here, there) = ("wss://gw.example:443", "wss://other.example");
        // Without a gateway.remote.url a configured pin would pin nothing, and look as if it did.
        let error = judged(&remote(""), None, here).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("gateway.remote.url, which is not set"),
            "{error}"
        );
        assert!(judged(&remote(""), Some(&pin), here).unwrap());
        let named = remote("url: 'wss://gw.example',");
        assert!(judged(&named, None, here).unwrap());
        assert!(!judged(&named, None, there).unwrap());
        assert!(judged("{}", Some(&pin), there).unwrap());
        // In the clear there is nothing to pin, and what is no fingerprint pins nothing.
        assert!(judged("{}", Some(&pin), "ws://127.0.0.1:1").is_err());
        assert!(judged("{}", Some("ab"), here).is_err());
    }
}
