//! From an accepted socket to an answer or a session.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use super::respond::{Answer, refusal, text};
use super::{route, upgrade};
use crate::base::{Refusal, limits};
use crate::control::Control;
use crate::ingress::{self, Attributed, IngressRefusal, ListenerClass, Peer};
use crate::net::WsIo;
use crate::net::tls::ServerTls;
use crate::session::{self, Door, PreauthGate, PreauthPermit};
use crate::ws;

/// Everything that a connection may need.
pub struct Front {
    pub door: Arc<Door>,
    pub control: Arc<Control>,
    /// Places before authentication; the admin socket has its own.
    pub preauth: PreauthGate,
    pub preauth_admin: PreauthGate,
    /// Whether the chat page is served.
    pub serve_page: bool,
    /// `Strict-Transport-Security`, for answers over TLS (RFC 6797 §7.2 forbids it in the clear).
    pub hsts: Option<HeaderValue>,
    ready: AtomicBool,
}

/// A listening socket with its class of trust.
pub enum Listener {
    /// Over TLS, or in the clear.
    Tcp(TcpListener, ListenerClass, Option<Arc<ServerTls>>),
    Admin(UnixListener),
}

impl Front {
    pub fn new(door: Arc<Door>, control: Arc<Control>, serve_page: bool) -> Self {
        Self {
            door,
            control,
            preauth: PreauthGate::default(),
            preauth_admin: PreauthGate::default(),
            serve_page,
            hsts: None,
            ready: AtomicBool::new(false),
        }
    }

    /// From now on `/readyz` says so.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }
}

/// One accepted connection's facts.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub class: ListenerClass,
    pub peer: Peer,
    /// Our end of the socket.
    pub local: Option<SocketAddr>,
    pub tls: bool,
}

/// Accepts connections for as long as the task lives.
pub async fn accept(listener: Listener, front: Arc<Front>) {
    loop {
        let accepted = match &listener {
            Listener::Tcp(tcp, class, tls) => accept_tcp(tcp, *class, tls.as_ref(), &front).await,
            Listener::Admin(unix) => accept_admin(unix, &front).await,
        };
        if let Err(error) = accepted {
            // Out of descriptors, most likely: what is open goes on, and the next attempt may find a free one.
            tracing::warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(limits::ACCEPT_RETRY).await;
        }
    }
}

async fn accept_tcp(
    listener: &TcpListener,
    class: ListenerClass,
    tls: Option<&Arc<ServerTls>>,
    front: &Arc<Front>,
) -> std::io::Result<()> {
    let (stream, address) = listener.accept().await?;
    stream.set_nodelay(true)?;
    let arrival = Arrival {
        class,
        peer: Peer::Tcp(address),
        local: stream.local_addr().ok(),
        tls: tls.is_some(),
    };
    let client: IpAddr = address.ip().to_canonical();
    let Some(place) = front.preauth.enter(Some(client)) else {
        // Dropping the stream closes it: a client at its limit costs us nothing more.
        tracing::warn!(%client, "too many connections before authentication");
        return Ok(());
    };
    let front = Arc::clone(front);
    match tls {
        None => drop(tokio::spawn(serve(stream, arrival, place, front))),
        Some(tls) => {
            let tls = Arc::clone(tls);
            tokio::spawn(async move {
                let eviction = place.eviction();
                tokio::select! {
                    shaken = tls.accept(stream) => match shaken {
                        Ok(stream) => serve(stream, arrival, place, front).await,
                        // Plain HTTP ends here, too: whoever asks for it gets no answer in the clear.
                        Err(error) => tracing::info!(%client, %error, "no TLS handshake"),
                    },
                    () = eviction.happened() => tracing::debug!("a newer connection took the place of this one"),
                }
            });
        }
    }
    Ok(())
}

async fn accept_admin(listener: &UnixListener, front: &Arc<Front>) -> std::io::Result<()> {
    let (stream, _) = listener.accept().await?;
    let uid = stream.peer_cred()?.uid();
    let arrival = Arrival {
        class: ListenerClass::Admin,
        peer: Peer::Unix { uid },
        local: None,
        tls: false,
    };
    if let Some(place) = front.preauth_admin.enter(None) {
        drop(tokio::spawn(serve(
            stream,
            arrival,
            place,
            Arc::clone(front),
        )));
    }
    Ok(())
}

/// Serves one connection from its first byte to its last answer; a session goes on in a task of its own.
pub async fn serve<S>(stream: S, arrival: Arrival, place: PreauthPermit, front: Arc<Front>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let eviction = place.eviction();
    // The place travels with the connection: from here into the session, which gives it back at `connect`.
    let place = Arc::new(std::sync::Mutex::new(Some(place)));
    let service = service_fn(move |request: Request<Incoming>| {
        let (front, place) = (Arc::clone(&front), Arc::clone(&place));
        async move {
            let mut response = answer::<S>(request, arrival, &front, &place);
            if let Some(hsts) = front.hsts.as_ref().filter(|_| arrival.tls) {
                let name = hyper::header::STRICT_TRANSPORT_SECURITY;
                response.headers_mut().insert(name, hsts.clone());
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = upgrade::server()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::select! {
        served = connection => {
            if let Err(error) = served {
                tracing::debug!(%error, "connection ended");
            }
        }
        // A head that never ends must give way, too; after the upgrade the session sees to it.
        () = eviction.happened() => tracing::debug!("a newer connection took the place of this one"),
    }
}

fn answer<S>(
    mut request: Request<Incoming>,
    arrival: Arrival,
    front: &Arc<Front>,
    place: &std::sync::Mutex<Option<PreauthPermit>>,
) -> Answer
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let asks_for_upgrade = upgrade::is_asked_for(&request);
    if !asks_for_upgrade && route::is_health(request.uri().path()) {
        return route::route(front, request.method(), request.uri().path());
    }
    if !asks_for_upgrade {
        return match attribute(&request, arrival, front) {
            Ok(_) => route::route(front, request.method(), request.uri().path()),
            Err(refused) => refuse(&refused),
        };
    }
    // The order of refusals: form, then host, attribution and origin, then the protocol's own (decision 11).
    let accept = match upgrade::check(&request) {
        Ok(accept) => accept,
        Err(error) => return upgrade::refusal_response(error),
    };
    let (attributed, attributed_by) = match attribute(&request, arrival, front) {
        Ok(found) => found,
        Err(refused) => return refuse(&refused),
    };
    let place = place
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .take();
    let Some(place) = place else {
        return text(StatusCode::BAD_REQUEST, "one upgrade a connection");
    };
    let upgrading = hyper::upgrade::on(&mut request);
    let front = Arc::clone(front);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrading.await else {
            return;
        };
        let Ok((stream, leftover)) = upgrade::take_back::<S>(upgraded) else {
            tracing::error!("an upgraded socket could not be taken back");
            return;
        };
        let io = WsIo::server(
            stream,
            leftover,
            ws::Limits::new(limits::PREAUTH_MESSAGE_BYTES_MAX),
        );
        session::run(
            io,
            attributed,
            attributed_by,
            Arc::clone(&front.door),
            Arc::clone(&front.control),
            place,
        )
        .await;
    });
    upgrade::accept_response(&accept)
}

/// Whose request it is, and the number of the rules that say so.
fn attribute(
    request: &Request<Incoming>,
    arrival: Arrival,
    front: &Front,
) -> Result<(Attributed, u64), IngressRefusal> {
    let mut headers: Vec<(&str, &[u8])> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    // A target in absolute form overrides Host (RFC 9112 §3.2.2). One that says something else counts as a second Host.
    if let Some(target) = request.uri().authority() {
        let target = target.as_str().as_bytes();
        let agrees =
            |(name, value): &(&str, &[u8])| *name == "host" && value.eq_ignore_ascii_case(target);
        if !headers.iter().any(agrees) {
            headers.push(("host", target));
        }
    }
    let request = ingress::Request {
        listener: arrival.class,
        peer: arrival.peer,
        local: arrival.local,
        tls: arrival.tls,
        headers: &headers,
        own_addresses: None,
    };
    let rules = front.door.rules();
    ingress::attribute(&request, &rules.ingress).map(|attributed| (attributed, rules.since))
}

fn refuse(refused: &IngressRefusal) -> Answer {
    tracing::info!(reason = refused.log_field(), remedy = %refused.remedy(), "request refused");
    refusal(refused)
}
