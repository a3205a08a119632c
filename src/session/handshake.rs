//! From the challenge to `hello-ok`, or to a refusal.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

use super::decision::Decision;
use super::door::{Door, address, path_of};
use crate::audit::Actor;
use crate::auth::scope::Role;
use crate::base::{ConnId, Refusal, ids::uuid_v4, limits};
use crate::control::Control;
use crate::hub::{Caller, NodeDeclaration, Outbox, OutboxReader, SessionFacts};
use crate::ingress::{Attributed, Client, ListenerClass, Peer};
use crate::machine;
use crate::net::WsIo;
use crate::rpc::types::connect::{
    Challenge, ConnectParams, HelloAuth, HelloOk, PROTOCOL, Policy, ServerInfo,
};
use crate::rpc::{self, EnvelopeError, ErrorShape, Frame, Method, encode};
use crate::ws::Event;

/// How a connection ends: perhaps one last frame, then a close frame.
#[derive(Debug)]
pub(super) struct Ended {
    pub frame: Option<String>,
    pub code: u16,
    pub reason: String,
    /// The log has said it already.
    pub logged: bool,
}

impl Ended {
    pub(super) fn quietly(code: u16, reason: &str) -> Self {
        Self {
            frame: None,
            code,
            reason: reason.to_owned(),
            logged: false,
        }
    }

    fn with(id: &str, error: &ErrorShape, code: u16) -> Self {
        let reason = cut(&error.message);
        Self {
            frame: Some(encode::refusal(id, error)),
            code,
            reason,
            logged: false,
        }
    }
}

/// A session that may begin.
pub(super) struct Opened {
    pub caller: Caller,
    pub outbox: Outbox,
    pub reader: OutboxReader,
}

/// Challenges, reads `connect`, and answers it.
pub(super) async fn perform<S>(
    io: &mut WsIo<S>,
    id: &ConnId,
    attributed: Attributed,
    attributed_by: u64,
    door: &Arc<Door>,
    control: &Arc<Control>,
) -> Result<Opened, Ended>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let nonce = uuid_v4(machine::random());
    let challenge = Challenge {
        nonce: nonce.clone(),
        ts: machine::now_ms(),
        capabilities: Vec::new(),
    };
    io.queue_text(encode::event("connect.challenge", &challenge, None, None).as_bytes());
    let text = first_message(io).await?;
    let (request_id, connect) = read_connect(&text)?;
    let declaration = NodeDeclaration {
        caps: connect
            .caps
            .iter()
            .take(limits::NODE_CAPS_MAX)
            .cloned()
            .collect(),
        commands: connect
            .commands
            .iter()
            .flatten()
            .take(limits::NODE_COMMANDS_MAX)
            .cloned()
            .collect(),
        path_env: connect.path_env.clone(),
        newly_paired: false,
    };
    let path = path_of(&attributed);
    let admission = tokio::select! {
        biased;
        admission = door.admit(&control.hub, attributed.clone(), attributed_by, connect, &nonce) => admission,
        // Nobody is left to hear the answer, so nothing is to be done for them either.
        _ = io.gone() => return Err(Ended::quietly(1000, "")),
    };
    let entry = match admission {
        Ok(entry) => entry,
        Err(away) => {
            let decision = Decision::of(away.refusal.log_field());
            if decision.logged {
                tracing::info!(
                    conn = %id,
                    decision = %decision.id,
                    reason = away.refusal.log_field(),
                    client = %address(attributed.client()),
                    via = %path,
                    left_out = decision.left_out,
                    remedy = %away.refusal.remedy(),
                    "connect refused"
                );
            }
            // Only this socket waits; others are not held up.
            tokio::time::sleep(away.late).await;
            let (code, reason) = away.refusal.close();
            let frame = away
                .refusal
                .error()
                .map(|error| encode::refusal(&request_id, &numbered(error, decision.id)));
            return Err(Ended {
                frame,
                code,
                reason,
                logged: true,
            });
        }
    };
    let facts = SessionFacts {
        client: entry.admitted.client().clone(),
        address: match entry.admitted.from() {
            Client::Ip(ip) => Some(ip.to_string()),
            Client::Local => None,
        },
        path,
        public: attributed.is_public(),
        node: NodeDeclaration {
            newly_paired: entry.newly_paired,
            ..declaration
        },
        standing: entry.standing,
    };
    let outbox = Outbox::default();
    let reader = outbox.reader();
    let actor = actor(&attributed, &entry.admitted, id);
    let scopes = entry.admitted.scopes_wire();
    let caller = control
        .hub
        .open_session(id, &entry.admitted, actor, facts, &outbox)
        .map_err(|fault| {
            tracing::error!(%fault, "a session could not be recorded");
            let error = ErrorShape::unavailable("the gateway cannot record this session")
                .with_retryable(true);
            Ended::with(&request_id, &error, 1013)
        })?;
    let auth = HelloAuth {
        role: caller.role.as_str().into(),
        scopes: scopes.into_iter().map(Into::into).collect(),
        issued_at_ms: entry.issued.as_ref().map(|issued| issued.issued_at_ms),
        device_token: entry.issued.map(|issued| issued.token),
    };
    let hello = hello(control, &caller, auth);
    io.queue_text(encode::response(&request_id, &hello).as_bytes());
    Ok(Opened {
        caller,
        outbox,
        reader,
    })
}

/// The error with the number under which the log has the rest.
fn numbered(mut error: ErrorShape, decision: String) -> ErrorShape {
    let details = error.details.get_or_insert_with(|| serde_json::json!({}));
    if let Some(details) = details.as_object_mut() {
        details.insert("decisionId".to_owned(), decision.into());
    }
    error
}

/// The first text message; control frames before it are the codec's business.
async fn first_message<S>(io: &mut WsIo<S>) -> Result<String, Ended>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match io.receive().await {
            Ok(Event::Text(text)) => return Ok(text),
            // The reference reads a binary frame as text; here it is simply not the protocol.
            Ok(Event::Binary(_)) => return Err(Ended::quietly(1008, "invalid request frame")),
            Ok(Event::Ping(_) | Event::Pong(_)) => {}
            Ok(Event::Close { .. }) | Err(_) => return Err(Ended::quietly(1000, "")),
        }
    }
}

fn read_connect(text: &str) -> Result<(String, ConnectParams), Ended> {
    let request = match rpc::decode(text) {
        Ok(Frame::Request(request)) => request,
        Ok(_) => return Err(Ended::quietly(1008, "invalid request frame")),
        Err(error) => return Err(not_a_request(&error)),
    };
    let id = request.id.into_owned();
    if Method::from_wire(&request.method) != Some(Method::Connect) {
        let error = ErrorShape::invalid_request("invalid handshake: first request must be connect");
        return Err(Ended::with(&id, &error, 1008));
    }
    match rpc::decode_params::<ConnectParams>(request.params) {
        Ok(connect) => Ok((id, connect)),
        Err(error) => Err(Ended::with(&id, &error.for_method("connect"), 1008)),
    }
}

/// As the reference closes: text that is no JSON with 1000 and no reason, any other frame with 1008. What is JSON but
/// repeats a key or is too deep is told so first.
fn not_a_request(error: &EnvelopeError) -> Ended {
    match error {
        EnvelopeError::NotJson { .. } => Ended::quietly(1000, ""),
        EnvelopeError::Unsafe(_) => {
            let frame = malformed(error);
            Ended {
                frame: Some(frame),
                code: 1008,
                reason: "invalid request frame".to_owned(),
                logged: false,
            }
        }
        EnvelopeError::NotAFrame { .. } => Ended::quietly(1008, "invalid request frame"),
    }
}

/// The answer to a message that is no request; its id is `invalid` if it has none, as in the reference.
pub(super) fn malformed(error: &EnvelopeError) -> String {
    let id = match error {
        EnvelopeError::NotAFrame { id: Some(id), .. } => id.as_str(),
        _ => "invalid",
    };
    encode::refusal(
        id,
        &ErrorShape::invalid_request(format!("invalid request frame: {error}")),
    )
}

fn hello(control: &Control, caller: &Caller, auth: HelloAuth) -> HelloOk {
    HelloOk {
        r#type: HelloOk::TYPE.into(),
        protocol: PROTOCOL,
        server: ServerInfo {
            version: crate::control::VERSION.into(),
            build_id: None,
            boot_id: Some(control.hub.boot_id().to_owned()),
            conn_id: caller.conn.as_str().to_owned(),
        },
        features: control.features(caller.role),
        snapshot: control.snapshot(caller),
        auth,
        policy: Policy {
            max_payload: limits::MESSAGE_BYTES_MAX,
            max_buffered_bytes: limits::OUTBOX_BYTES_MAX,
            tick_interval_ms: u64::try_from(limits::TICK_INTERVAL.as_millis()).unwrap_or(u64::MAX),
        },
    }
}

/// How the audit log names this caller.
fn actor(attributed: &Attributed, admitted: &crate::auth::Admitted, conn: &ConnId) -> Actor {
    if let (ListenerClass::Admin, Peer::Unix { uid }) = (attributed.listener(), attributed.peer()) {
        return Actor::Admin { uid, pid: None };
    }
    let conn = conn.as_str().to_owned();
    let address = address(admitted.from());
    match (admitted.device(), admitted.role()) {
        (Some(device), Role::Node) => Actor::Node {
            device: device.as_str().into(),
            conn,
            address,
        },
        (device, _) => Actor::Operator {
            device: device.map(|device| device.as_str().into()),
            user: admitted.user().map(Into::into),
            client: admitted.client().id.as_str().into(),
            method: admitted.method().as_str(),
            conn,
            address,
        },
    }
}

/// A close reason fits into 123 bytes (RFC 6455 §5.5); the reference cuts at 120.
fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(120)].to_owned()
}
