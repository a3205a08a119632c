//! From an accepted socket to an answer or a session.

use std::borrow::Cow;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use hyper::body::Incoming;
use hyper::header::{
    AUTHORIZATION, CONNECTION, HOST, HeaderName, HeaderValue, ORIGIN, STRICT_TRANSPORT_SECURITY,
    USER_AGENT,
};
use hyper::service::service_fn;
use hyper::{Request, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use super::form::{self, BadForm, Head, Watched};
use super::respond::{self, Answer, not_found, text};
use super::route::{self, Access};
use super::upgrade;
use crate::auth::permission::PermissionRefusal;
use crate::auth::{AdmittedRequest, admission};
use crate::base::{Refusal, Secret, limits};
use crate::control::Control;
use crate::exec::argv_text;
use crate::ingress::{self, Attributed, Cidr, IngressRefusal, ListenerClass, Peer};
use crate::machine::OwnAddresses;
use crate::net::WsIo;
use crate::net::tls::ServerTls;
use crate::session::{self, Decision, Door, PreauthGate, PreauthPermit, Rules};
use crate::ws;

/// Everything that a connection may need.
pub struct Front {
    pub door: Arc<Door>,
    pub control: Arc<Control>,
    /// Places before authentication; the admin socket has its own.
    pub preauth: PreauthGate,
    pub preauth_admin: PreauthGate,
    /// So has whatever comes through a proxy or Serve: all its clients come from one address until their heads are read.
    pub preauth_proxied: PreauthGate,
    /// Whether the chat page is served.
    pub serve_page: bool,
    /// `Strict-Transport-Security`, for answers over TLS (RFC 6797 §7.2 forbids it in the clear).
    pub hsts: Option<HeaderValue>,
    own_addresses: OwnAddresses,
    ready: AtomicBool,
}

/// A listening socket with its class of trust.
pub enum Listener {
    /// Over TLS, or in the clear.
    Tcp(TcpListener, ListenerClass, Option<Arc<ServerTls>>),
    Unix(UnixListener, ListenerClass),
}

impl Front {
    pub fn new(door: Arc<Door>, control: Arc<Control>, serve_page: bool) -> Self {
        Self {
            door,
            control,
            preauth: PreauthGate::default(),
            preauth_admin: PreauthGate::default(),
            preauth_proxied: PreauthGate::default(),
            serve_page,
            hsts: None,
            own_addresses: OwnAddresses::default(),
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

    /// A place before authentication. Only on the main listener, and if it is no proxy, is the peer the client.
    fn enter(&self, arrival: &Arrival) -> Option<PreauthPermit> {
        let peer = arrival.peer.ip();
        let trusted = |peer| Cidr::any_contains(&self.door.rules().ingress.trusted_proxies, peer);
        let place = match arrival.class {
            ListenerClass::Main if peer.is_some_and(trusted) => self.preauth_proxied.enter(None),
            ListenerClass::Main => self.preauth.enter(peer),
            ListenerClass::Admin => self.preauth_admin.enter(None),
            ListenerClass::Serve | ListenerClass::Proxy => self.preauth_proxied.enter(None),
        };
        if place.is_none() {
            // The caller drops the stream, which closes it: a client at its limit costs us nothing more.
            let Decision {
                logged, left_out, ..
            } = Decision::of("preauth_full");
            if logged {
                tracing::warn!(peer = ?arrival.peer, left_out, "too many connections before authentication");
            }
        }
        place
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
            Listener::Unix(unix, class) => accept_unix(unix, *class, &front).await,
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
    let Some(place) = front.enter(&arrival) else {
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
                        Err(error) => {
                            let Decision { logged, left_out, .. } = Decision::of("no_tls");
                            if logged {
                                tracing::info!(client = %address.ip(), %error, left_out, "no TLS handshake");
                            }
                        }
                    },
                    () = eviction.happened() => tracing::debug!("a newer connection took the place of this one"),
                }
            });
        }
    }
    Ok(())
}

async fn accept_unix(
    listener: &UnixListener,
    class: ListenerClass,
    front: &Arc<Front>,
) -> std::io::Result<()> {
    let (stream, _) = listener.accept().await?;
    let uid = stream.peer_cred()?.uid();
    let arrival = Arrival {
        class,
        peer: Peer::Unix { uid },
        local: None,
        tls: false,
    };
    if let Some(place) = front.enter(&arrival) {
        drop(tokio::spawn(serve(
            stream,
            arrival,
            place,
            Arc::clone(front),
        )));
    }
    Ok(())
}

/// Serves one connection from its first byte to its one answer; a session goes on in a task of its own.
pub async fn serve<S>(stream: S, arrival: Arrival, place: PreauthPermit, front: Arc<Front>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let eviction = place.eviction();
    let (stream, head) = Watched::new(stream);
    // The place travels with the connection: into the session, which gives it back at `connect`, or until a bearer is
    // admitted.
    let exchange = Arc::new(Exchange {
        arrival,
        front,
        place: Mutex::new(Some(place)),
        head,
        from: OnceLock::new(),
    });
    let service = service_fn(move |request: Request<Incoming>| {
        let exchange = Arc::clone(&exchange);
        async move {
            let mut response = exchange.answer::<S>(request).await;
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                // One request a connection: what follows the first is never read as a second.
                let close = HeaderValue::from_static("close");
                response.headers_mut().append(CONNECTION, close);
            }
            let hsts = exchange.front.hsts.as_ref();
            if let Some(hsts) = hsts.filter(|_| arrival.tls) {
                let headers = response.headers_mut();
                headers.insert(STRICT_TRANSPORT_SECURITY, hsts.clone());
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = upgrade::server()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::select! {
        served = tokio::time::timeout(limits::HTTP_EXCHANGE_TIMEOUT, connection) => match served {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "connection ended"),
            Err(_) => tracing::debug!("connection took too long"),
        },
        // A head that never ends must give way, too; after the upgrade the session sees to it.
        () = eviction.happened() => tracing::debug!("a newer connection took the place of this one"),
    }
}

/// One connection's request, and where it came from.
struct Exchange {
    arrival: Arrival,
    front: Arc<Front>,
    place: Mutex<Option<PreauthPermit>>,
    head: Head,
    /// The client and its way here, for the log, once they are known.
    from: OnceLock<(String, String)>,
}

impl Exchange {
    async fn answer<S>(&self, mut request: Request<Incoming>) -> Answer
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        if let Err(bad) = form::check(&self.head.take(), &request) {
            return self.refuse(&bad, &request);
        }
        // The credential leaves the request before anything else reads or shows it.
        let bearer = request.headers_mut().remove(AUTHORIZATION);
        let bearer = bearer.and_then(|value| admission::bearer(value.as_bytes()));
        if upgrade::is_asked_for(&request) {
            return self.upgrade::<S>(request);
        }
        let (head, body) = request.into_parts();
        let request = Request::from_parts(head, ());
        let (front, path) = (&*self.front, request.uri().path());
        let route = route::find(path, front.serve_page);
        let access = route.map(|route| route.access);
        let status_only = matches!(access, Some(Access::Health(_))) && bearer.is_none();
        let caller = if status_only {
            // Probes come by whatever address they have, and say nothing else; but a Host that cannot be read is 400
            // (RFC 9112 §3.2, which asks HTTP/1.0 for none).
            let old = request.version() < Version::HTTP_11;
            match self.attribute(&request, &front.door.rules()) {
                Err(IngressRefusal::HostMissing) if old => None,
                Err(refused) if refused.http_status() == 400 => {
                    return self.refuse(&refused, &request);
                }
                _ => None,
            }
        } else {
            // The same rules from here to the verdict (K3).
            let rules = front.door.rules();
            let attributed = match self.attribute(&request, &rules) {
                Ok(attributed) => attributed,
                Err(refused) => return self.refuse(&refused, &request),
            };
            if !self.counts_as(&attributed) {
                return self.refuse(&Crowded, &request);
            }
            match access {
                Some(Access::Open) => None,
                _ => match self.admit(&rules, attributed, bearer, &request).await {
                    Ok(caller) => Some(caller),
                    Err(refused) => return refused,
                },
            }
        };
        let Some(route) = route else {
            return match form::is_ambiguous(path) {
                true => self.refuse(&BadForm::Target, &request),
                false => not_found(),
            };
        };
        if let (Some(caller), Access::Operator(scope) | Access::Health(scope)) =
            (&caller, route.access)
            && !caller.scopes().allows(scope)
        {
            return self.refuse(&PermissionRefusal::Scope(scope), &request);
        }
        if !route.takes(request.method()) {
            return route.wrong_method();
        }
        route.answer(front, path, body, caller.as_ref()).await
    }

    /// Takes the bearer through the door. A wrong one is answered late; meanwhile the connection keeps the one place that
    /// it has, and gives it up if a newer connection needs it.
    async fn admit(
        &self,
        rules: &Rules,
        attributed: Attributed,
        bearer: Option<Secret>,
        request: &Request<()>,
    ) -> Result<AdmittedRequest, Answer> {
        let door = &self.front.door;
        let hub = &self.front.control.hub;
        match door.admit_request(hub, rules, attributed, bearer).await {
            Ok(admitted) => {
                tokio::time::sleep(admitted.slow()).await;
                drop(self.take_place());
                Ok(admitted)
            }
            Err(away) => {
                let answer = self.refuse(&away.refusal, request);
                tokio::time::sleep(away.late).await;
                Err(match away.refusal.retry_after() {
                    Some(wait) => respond::retry_after(answer, wait),
                    None => answer,
                })
            }
        }
    }

    fn upgrade<S>(&self, mut request: Request<Incoming>) -> Answer
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // The order of refusals: form, then host, attribution and origin, then the protocol's own (decision 11).
        let accept = match upgrade::check(&request) {
            Ok(accept) => accept,
            Err(error) => return upgrade::explained(error, self.refuse(&error, &request)),
        };
        let rules = self.front.door.rules();
        let attributed = match self.attribute(&request, &rules) {
            Ok(attributed) => attributed,
            Err(refused) => return self.refuse(&refused, &request),
        };
        if !self.counts_as(&attributed) {
            return self.refuse(&Crowded, &request);
        }
        if request.uri().path() != "/" {
            return text(StatusCode::NOT_FOUND, "the Gateway protocol is served at /");
        }
        let Some(place) = self.take_place() else {
            return text(StatusCode::BAD_REQUEST, "one upgrade a connection");
        };
        let upgrading = hyper::upgrade::on(&mut request);
        let front = Arc::clone(&self.front);
        tokio::spawn(async move {
            let Ok(upgraded) = upgrading.await else {
                return;
            };
            let Ok((stream, leftover)) = upgrade::take_back::<Watched<S>>(upgraded) else {
                tracing::error!("an upgraded socket could not be taken back");
                return;
            };
            let io = WsIo::server(
                stream.into_inner(),
                leftover,
                ws::Limits::new(limits::PREAUTH_MESSAGE_BYTES_MAX),
            );
            session::run(
                io,
                attributed,
                rules.since,
                Arc::clone(&front.door),
                Arc::clone(&front.control),
                place,
            )
            .await;
        });
        upgrade::accept_response(&accept)
    }

    /// From here on the place counts for the client itself, not for its proxy.
    fn counts_as(&self, attributed: &Attributed) -> bool {
        let place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        place
            .as_ref()
            .is_none_or(|place| place.count_as(attributed.client()))
    }

    fn take_place(&self) -> Option<PreauthPermit> {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        place.take()
    }

    fn attribute<B>(
        &self,
        request: &Request<B>,
        rules: &Rules,
    ) -> Result<Attributed, IngressRefusal> {
        let attributed = attribute(request, self.arrival, &self.front, rules)?;
        let from = || {
            let client = session::address(attributed.client());
            (client, session::path_of(&attributed))
        };
        self.from.get_or_init(from);
        Ok(attributed)
    }

    /// Tells the log why and what would help, and the peer the public sentence; both name the same decision. What the
    /// peer says of itself is cut, and shown with every character visible (W8).
    fn refuse<B>(&self, refused: &dyn Refusal, request: &Request<B>) -> Answer {
        let decision = Decision::of(refused.log_field());
        if decision.logged {
            let cut = |bytes: &[u8]| {
                let end = bytes.len().min(limits::HTTP_LOGGED_BYTES_MAX);
                argv_text::visible(&String::from_utf8_lossy(&bytes[..end]))
            };
            let header = |name: HeaderName| {
                let value = request.headers().get(name);
                value.map(|value| tracing::field::display(cut(value.as_bytes())))
            };
            let from = self.from.get();
            tracing::info!(
                decision = %decision.id,
                reason = refused.log_field(),
                client = from.map(|(client, _)| client),
                via = from.map(|(_, via)| via),
                peer = ?self.arrival.peer,
                method = %cut(request.method().as_str().as_bytes()),
                path = %cut(request.uri().path().as_bytes()),
                host = header(HOST),
                origin = header(ORIGIN),
                agent = header(USER_AGENT),
                left_out = decision.left_out,
                remedy = %refused.remedy(),
                "request refused"
            );
        }
        respond::refusal(refused, &decision.id)
    }
}

fn attribute<B>(
    request: &Request<B>,
    arrival: Arrival,
    front: &Front,
    rules: &Rules,
) -> Result<Attributed, IngressRefusal> {
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
        // Without any Host the request stays without one, as HTTP/1.1 has it refused (§3.2).
        let named = headers.iter().any(|(name, _)| *name == "host");
        if named && !headers.iter().any(agrees) {
            headers.push(("host", target));
        }
    }
    // A proxy's word depends on them.
    let asked = rules.ingress.proxy_user.is_some() && arrival.peer.ip().is_some();
    let own_addresses = asked.then(|| front.own_addresses.list()).flatten();
    let request = ingress::Request {
        listener: arrival.class,
        peer: arrival.peer,
        local: arrival.local,
        tls: arrival.tls,
        headers: &headers,
        own_addresses: own_addresses.as_deref(),
    };
    ingress::attribute(&request, &rules.ingress)
}

/// A client at its limit behind a proxy: closing without a word would look like the proxy's fault.
struct Crowded;

impl Refusal for Crowded {
    fn code(&self) -> &'static str {
        "rate_limited"
    }

    fn http_status(&self) -> u16 {
        429
    }

    fn log_field(&self) -> &'static str {
        "preauth_client_full"
    }

    fn public(&self) -> Cow<'static, str> {
        "too many connections before authentication".into()
    }

    fn remedy(&self) -> Cow<'static, str> {
        "this client opens connections and does not say who it is; they end by themselves within seconds".into()
    }
}
