//! `connect.challenge`, `connect`, `hello-ok`: the client's side.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::credentials::Credentials;
use super::dial::{self, DialError, Endpoint, Stream};
use super::identity::Identity;
use crate::auth::device::Signed;
use crate::auth::scope::Role;
use crate::base::{Secret, ids::uuid_v4, limits};
use crate::machine;
use crate::net::{WsIo, WsIoError};
use crate::rpc::types::connect::{
    Challenge, ClientId, ClientInfo, ClientMode, ConnectAuth, ConnectParams, DeviceProof, PROTOCOL,
};
use crate::rpc::{self, ErrorShape, Frame};
use crate::ws;

/// A `hello-ok` carries a snapshot and the names of all methods; the reference's has some 40 KiB.
const HELLO_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Characters of a challenge's nonce. A UUID has 36.
const NONCE_CHARS_MAX: usize = 256;
/// Frames that a server may put between our `connect` and its answer.
const FRAMES_BEFORE_HELLO_MAX: usize = 64;
const CONNECT_ID: &str = "connect";

/// What `connect` carries as credentials.
#[derive(Clone, Default)]
pub struct Sent {
    pub token: Option<Secret>,
    pub password: Option<Secret>,
    pub device_token: Option<Secret>,
}

impl From<Credentials> for Sent {
    fn from(chosen: Credentials) -> Self {
        Self {
            token: chosen.token,
            password: chosen.password,
            device_token: None,
        }
    }
}

impl Sent {
    fn is_empty(&self) -> bool {
        self.token.is_none() && self.password.is_none() && self.device_token.is_none()
    }

    /// What the device's signature covers: the first of the tokens, never the password.
    fn signed_token(&self) -> &str {
        self.token
            .as_ref()
            .or(self.device_token.as_ref())
            .and_then(Secret::expose_str)
            .unwrap_or_default()
    }
}

/// What to say in `connect`.
#[derive(Clone)]
pub struct ConnectOptions {
    pub client: ClientInfo,
    pub role: Role,
    pub scopes: Vec<String>,
    pub caps: Vec<String>,
    pub commands: Option<Vec<String>>,
    pub path_env: Option<String>,
    pub protocol_min: u32,
    pub sent: Sent,
    pub identity: Option<Arc<Identity>>,
    /// Whether plaintext may leave loopback (`dial::BREAK_GLASS_ENV`).
    pub break_glass: bool,
    /// For the whole way from the address to `hello-ok`.
    pub timeout: Duration,
}

impl ConnectOptions {
    /// This program as a client of this kind, which asks for nothing and carries no credential.
    pub fn new(id: ClientId, mode: ClientMode, role: Role, timeout: Duration) -> Self {
        let platform = machine::platform();
        Self {
            client: ClientInfo {
                id,
                display_name: None,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                build_id: None,
                platform: platform.os.to_owned(),
                device_family: Some(platform.family.to_owned()),
                model_identifier: None,
                time_zone: None,
                mode,
                instance_id: Some(uuid_v4(machine::random())),
            },
            role,
            scopes: Vec::new(),
            caps: Vec::new(),
            commands: None,
            path_env: None,
            protocol_min: PROTOCOL,
            sent: Sent::default(),
            identity: None,
            break_glass: false,
            timeout,
        }
    }
}

/// What of `hello-ok` a client acts on. The rest is not read, so a server may be newer than we are.
#[derive(Clone, Deserialize)]
pub struct Hello {
    pub protocol: u32,
    pub server: HelloServer,
    pub auth: HelloAuth,
    #[serde(default)]
    pub policy: HelloPolicy,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HelloServer {
    pub version: String,
    pub conn_id: String,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HelloAuth {
    pub role: String,
    #[serde(default)]
    pub scopes: Vec<String>,
    #[serde(default)]
    device_token: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HelloPolicy {
    #[serde(default)]
    pub tick_interval_ms: Option<u64>,
    #[serde(default)]
    pub max_payload: Option<usize>,
}

impl Hello {
    /// The device token, on the one occasion when the Gateway issues it.
    pub fn device_token(&self) -> Option<Secret> {
        self.auth
            .device_token
            .as_ref()
            .map(|token| Secret::new(token.as_bytes()))
    }

    /// How long the server may be silent: two ticks.
    pub fn silence_max(&self) -> Duration {
        let tick = self
            .policy
            .tick_interval_ms
            .map_or(limits::TICK_INTERVAL, Duration::from_millis)
            .clamp(Duration::from_secs(1), Duration::from_secs(3600));
        tick * 2
    }
}

/// Why `connect` did not end in `hello-ok`.
#[derive(Debug)]
pub enum ConnectError {
    Dial(DialError),
    /// The Gateway said no, and why.
    Refused(Box<ErrorShape>),
    /// The Gateway closed without an answer.
    Closed {
        code: Option<u16>,
        reason: String,
    },
    Lost(WsIoError),
    Timeout {
        after: Duration,
    },
    /// Not what a Gateway says.
    Protocol(&'static str),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dial(error) => write!(f, "{error}"),
            Self::Refused(error) => write!(f, "{}", super::call::shown(&error.message)),
            Self::Closed { code, reason } => super::call::write_closed(f, *code, reason),
            Self::Lost(error) => write!(f, "the connection was lost: {error}"),
            Self::Timeout { after } => {
                write!(
                    f,
                    "the gateway did not answer within {} s",
                    after.as_secs_f32()
                )
            }
            Self::Protocol(what) => write!(f, "that is not a gateway: {what}"),
        }
    }
}

impl std::error::Error for ConnectError {}

/// Dials, answers the challenge, and waits for `hello-ok`.
pub(super) async fn connect(
    endpoint: &Endpoint,
    options: &ConnectOptions,
) -> Result<(WsIo<Stream>, Hello), ConnectError> {
    let after = options.timeout;
    let attempt = async {
        let mut io = dial::dial(endpoint, options.break_glass, HELLO_BYTES_MAX)
            .await
            .map_err(ConnectError::Dial)?;
        let challenge = challenge(&mut io).await?;
        let params = params(options, &challenge)?;
        let text = rpc::encode::request(CONNECT_ID, "connect", &params);
        io.queue_text_owned(text);
        io.flush().await.map_err(ConnectError::Lost)?;
        let hello = hello(&mut io).await?;
        io.set_message_bytes_max(limits::MESSAGE_BYTES_MAX);
        Ok((io, hello))
    };
    tokio::time::timeout(after, Box::pin(attempt))
        .await
        .unwrap_or(Err(ConnectError::Timeout { after }))
}

async fn next_text(io: &mut WsIo<Stream>) -> Result<String, ConnectError> {
    loop {
        match io.receive().await.map_err(ConnectError::Lost)? {
            ws::Event::Text(text) => return Ok(text),
            ws::Event::Binary(_) => return Err(ConnectError::Protocol("it sent a binary message")),
            ws::Event::Ping(_) | ws::Event::Pong(_) => {}
            ws::Event::Close { code, reason } => return Err(ConnectError::Closed { code, reason }),
        }
    }
}

async fn challenge(io: &mut WsIo<Stream>) -> Result<Challenge, ConnectError> {
    let text = next_text(io).await?;
    let frame =
        rpc::decode(&text).map_err(|_| ConnectError::Protocol("its first frame is malformed"))?;
    let challenge: Option<Challenge> = match frame {
        Frame::Event(event) if event.event == "connect.challenge" => event
            .payload
            .and_then(|payload| serde_json::from_str(payload.get()).ok()),
        _ => None,
    };
    let challenge = challenge.ok_or(ConnectError::Protocol("it did not begin with a challenge"))?;
    let nonce = challenge.nonce.trim();
    // The nonce goes into a string that we sign; a separator in it could make the string mean something else.
    let usable = !nonce.is_empty()
        && nonce.len() <= NONCE_CHARS_MAX
        && nonce.bytes().all(|b| b.is_ascii_graphic() && b != b'|');
    if !usable {
        return Err(ConnectError::Protocol("its challenge has no usable nonce"));
    }
    Ok(challenge)
}

fn params(options: &ConnectOptions, challenge: &Challenge) -> Result<ConnectParams, ConnectError> {
    let sent = &options.sent;
    let auth = ConnectAuth {
        token: sent.token.clone(),
        password: sent.password.clone(),
        device_token: sent.device_token.clone(),
        ..ConnectAuth::default()
    };
    Ok(ConnectParams {
        min_protocol: options.protocol_min,
        max_protocol: PROTOCOL,
        client: options.client.clone(),
        caps: options.caps.clone(),
        commands: options.commands.clone(),
        computer_use: None,
        worker_runs: None,
        permissions: None,
        path_env: options.path_env.clone(),
        role: Some(options.role.as_str().to_owned()),
        scopes: Some(options.scopes.clone()),
        device: options
            .identity
            .as_ref()
            .map(|identity| proof(options, identity, challenge)),
        auth: (!sent.is_empty()).then_some(auth),
        locale: None,
        user_agent: None,
        model_catalog: None,
    })
}

/// Signs this connection's challenge, with the challenge's own time: our clock may be wrong.
fn proof(options: &ConnectOptions, identity: &Identity, challenge: &Challenge) -> DeviceProof {
    let nonce = challenge.nonce.trim();
    let signature = identity.sign(&Signed {
        device_id: identity.id().as_str(),
        client_id: options.client.id.as_str(),
        client_mode: options.client.mode.as_str(),
        role: options.role,
        scopes: &options.scopes,
        signed_at_ms: challenge.ts,
        token: options.sent.signed_token(),
        nonce,
        platform: Some(&options.client.platform),
        device_family: options.client.device_family.as_deref(),
    });
    DeviceProof {
        id: identity.id().to_string(),
        public_key: identity.public_key().to_wire(),
        signature,
        signed_at: challenge.ts,
        nonce: nonce.to_owned(),
    }
}

async fn hello(io: &mut WsIo<Stream>) -> Result<Hello, ConnectError> {
    for _ in 0..FRAMES_BEFORE_HELLO_MAX {
        let text = next_text(io).await?;
        let frame =
            rpc::decode(&text).map_err(|_| ConnectError::Protocol("a frame is malformed"))?;
        let Frame::Response(response) = frame else {
            continue;
        };
        if response.id != CONNECT_ID {
            continue;
        }
        if !response.ok {
            let error = response
                .error
                .unwrap_or_else(|| ErrorShape::unavailable("refused without a reason"));
            return Err(ConnectError::Refused(Box::new(error)));
        }
        return response
            .payload
            .map(RawValue::get)
            .and_then(|payload| serde_json::from_str(payload).ok())
            .ok_or(ConnectError::Protocol("its hello is malformed"));
    }
    Err(ConnectError::Protocol("it did not answer connect"))
}
