//! Whose request is this? The socket's peer and the head of the request become an `Attributed`, or a refusal.
//!
//! In: the listener's class, the socket's peer, the headers, settings. Out: `Attributed`, which only this module makes.
//! Attacker controls: every header; on an exposed listener, which address it comes from.
//! Bounds: `limits::{FORWARDED_HOPS_MAX, INGRESS_HEADER_BYTES_MAX}`.
//! Errors: `IngressRefusal`, in the order of decision 11: Host, forwarding evidence, Origin.

pub mod cidr;
pub mod forwarded;
pub mod host;
pub mod origin;
mod refusal;
pub mod trusted_proxy;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

pub use cidr::{Cidr, CidrError};
pub use host::Host;
pub use origin::Origin;
pub use refusal::IngressRefusal;
pub use trusted_proxy::{Evidence, ProxyUserRefusal, ProxyUserSettings};

use crate::base::limits::INGRESS_HEADER_BYTES_MAX;
use crate::base::names::names;

names! {
    /// What a listener is for. Trust begins here; a header can narrow it and never widen it.
    pub enum ListenerClass {
        /// TCP, on loopback by default.
        Main = "main",
        /// The Unix socket of mode 0600 for the operator's own tools.
        Admin = "admin",
        /// The private loopback listener that a managed Tailscale Serve or Funnel forwards to.
        Serve = "serve",
        /// An own port or Unix socket for a reverse proxy.
        Proxy = "proxy",
    }
}

/// The other end of the socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    Tcp(SocketAddr),
    /// With the user id that the kernel reported.
    Unix {
        uid: u32,
    },
}

impl Peer {
    /// The address, in its canonical form.
    pub fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Tcp(address) => Some(address.ip().to_canonical()),
            Self::Unix { .. } => None,
        }
    }
}

/// A request as this module sees it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub listener: ListenerClass,
    pub peer: Peer,
    /// Our end of the socket: the address that the client reached.
    pub local: Option<SocketAddr>,
    pub tls: bool,
    /// Names in any case, one entry a line.
    pub headers: &'a [(&'a str, &'a [u8])],
    /// This host's interface addresses, needed in trusted-proxy mode only. `None`: they could not be listed.
    pub own_addresses: Option<&'a [IpAddr]>,
}

impl<'a> Request<'a> {
    fn lines(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.headers
            .iter()
            .filter(move |(line, _)| line.eq_ignore_ascii_case(name))
            .map(|(_, value)| *value)
    }

    /// The header's value, trimmed, if it stands there once, is UTF-8 and not too long.
    fn only_text(&self, name: &str) -> Option<&'a str> {
        let mut values = self.lines(name);
        let value = values.next()?;
        let alone = values.next().is_none() && value.len() <= INGRESS_HEADER_BYTES_MAX;
        std::str::from_utf8(value)
            .ok()
            .filter(|_| alone)
            .map(str::trim_ascii)
    }

    fn has(&self, name: &str) -> bool {
        self.lines(name).next().is_some()
    }
}

/// What `config` fills in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// `gateway.trustedProxies`.
    pub trusted_proxies: Vec<Cidr>,
    /// `gateway.allowRealIpFallback`.
    pub allow_real_ip: bool,
    /// `gateway.controlUi.allowedOrigins`.
    pub allowed_origins: Vec<Origin>,
    /// `gateway.publicHosts`.
    pub public_hosts: Vec<Host>,
    /// The MagicDNS name, under Serve.
    pub tailnet_name: Option<Host>,
    /// `gateway.auth.trustedProxy`, in trusted-proxy mode.
    pub proxy_user: Option<ProxyUserSettings>,
    /// `gateway.bind` is `tailnet`: only then are both ends of a connection in the tailnet's range within the tailnet, and
    /// not within the network of a carrier that uses the same range (RFC 6598).
    pub tailnet_bind: bool,
    /// `gateway.allowPlaintextFrom`.
    pub allow_plaintext_from: Vec<Cidr>,
    /// The user whom the admin socket serves.
    pub admin_uid: u32,
}

impl Settings {
    /// Whether someone who comes in by these could be refused, or be taken for another, by `new`.
    pub fn is_narrowed_by(&self, new: &Self) -> bool {
        fn lost<T: PartialEq>(old: &[T], new: &[T]) -> bool {
            old.iter().any(|it| !new.contains(it))
        }
        let rest = Self {
            allowed_origins: new.allowed_origins.clone(),
            public_hosts: new.public_hosts.clone(),
            allow_plaintext_from: new.allow_plaintext_from.clone(),
            // The daemon's word, and in no configuration.
            tailnet_name: new.tailnet_name.clone(),
            ..self.clone()
        };
        lost(&self.allowed_origins, &new.allowed_origins)
            || lost(&self.public_hosts, &new.public_hosts)
            || lost(&self.allow_plaintext_from, &new.allow_plaintext_from)
            || rest != *new
    }
}

/// Whom limits count: the real client behind any trusted proxy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Client {
    Ip(IpAddr),
    /// The peer of a Unix socket.
    Local,
}

/// What Tailscale Serve said about its client. Nothing is believed before whois confirms it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TailscaleClaim {
    /// `tailscale-user-login`.
    pub login: Option<String>,
    /// The address to ask whois about; `None` unless all three forwarding headers are there.
    pub source: Option<IpAddr>,
    /// The request came from the public internet through Funnel.
    pub funnel: bool,
}

/// A request whose origin is settled. Only `attribute` makes one.
#[derive(Clone, Debug)]
pub struct Attributed {
    listener: ListenerClass,
    peer: Peer,
    client: Client,
    via_proxy: bool,
    direct_local: bool,
    origin: Option<Origin>,
    private: bool,
    public: bool,
    tailscale: Option<TailscaleClaim>,
    proxy_user: Option<Result<String, ProxyUserRefusal>>,
    scopes_cap: Option<Vec<String>>,
}

impl Attributed {
    pub fn listener(&self) -> ListenerClass {
        self.listener
    }

    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// Whom limits count.
    pub fn client(&self) -> Client {
        self.client
    }

    /// A proxy stands between the client and us.
    pub fn via_proxy(&self) -> bool {
        self.via_proxy
    }

    /// A program on this host (or behind an SSH tunnel to it) and no web page: loopback socket of `main`, or the admin
    /// socket, without any forwarding evidence, without `Origin`, and not an address that proxies use.
    pub fn is_direct_local(&self) -> bool {
        self.direct_local
    }

    /// The allowed web origin that the request came from.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// A secret may cross this connection (decision 10): it is encrypted, or never leaves this host or the tailnet, or
    /// the operator said so.
    pub fn is_private(&self) -> bool {
        self.private
    }

    /// The way here leads over Funnel, or in the clear through a network where others listen, whatever the operator lets
    /// a secret cross (decision 24).
    pub fn is_public(&self) -> bool {
        self.public
    }

    pub fn tailscale(&self) -> Option<&TailscaleClaim> {
        self.tailscale.as_ref()
    }

    /// In trusted-proxy mode, the user whom the proxy vouches for, or why its word does not count.
    pub fn proxy_user(&self) -> Option<&Result<String, ProxyUserRefusal>> {
        self.proxy_user.as_ref()
    }

    /// `x-openclaw-scopes`: a cap on this connection's scopes (H5).
    pub fn scopes_cap(&self) -> Option<&[String]> {
        self.scopes_cap.as_deref()
    }
}

/// Settles where a request comes from.
pub fn attribute(request: &Request<'_>, settings: &Settings) -> Result<Attributed, IngressRefusal> {
    if let (ListenerClass::Admin, Peer::Unix { uid }) = (request.listener, request.peer)
        && uid != settings.admin_uid
    {
        return Err(IngressRefusal::AdminUser { uid });
    }
    let authority = host::check(request, settings)?;

    let evidence = trusted_proxy::evidence(request, settings);
    let is_proxy = trusted_proxy::peer_is_proxy(request, settings);
    let tailscale = match request.listener {
        ListenerClass::Serve => Some(tailscale_claim(request)?),
        _ => None,
    };
    let client = client(request, settings, evidence, is_proxy)?;

    let socket_is_local = match (request.listener, request.peer.ip()) {
        (ListenerClass::Admin, None) => true,
        (ListenerClass::Main, Some(address)) => address.is_loopback(),
        _ => false,
    };
    let local_socket = socket_is_local && evidence.is_none() && !is_proxy;
    let origin = origin::check(request, &authority, settings, local_socket)?;
    let confined = is_confined(request, settings);
    Ok(Attributed {
        listener: request.listener,
        peer: request.peer,
        client,
        via_proxy: evidence.is_some() || is_proxy,
        direct_local: local_socket && origin.is_none(),
        origin,
        private: confined
            || request
                .peer
                .ip()
                .is_some_and(|peer| Cidr::any_contains(&settings.allow_plaintext_from, peer)),
        public: !confined || tailscale.as_ref().is_some_and(|claim| claim.funnel),
        tailscale,
        proxy_user: settings
            .proxy_user
            .as_ref()
            .map(|proxy| trusted_proxy::user(request, settings, proxy)),
        scopes_cap: scopes_cap(request),
    })
}

fn client(
    request: &Request<'_>,
    settings: &Settings,
    evidence: Option<Evidence>,
    is_proxy: bool,
) -> Result<Client, IngressRefusal> {
    let peer = match request.peer.ip() {
        Some(address) => Client::Ip(address),
        None => Client::Local,
    };
    if !is_proxy {
        return match evidence {
            None if request.listener == ListenerClass::Main => Ok(peer),
            None if request.listener == ListenerClass::Admin => Ok(peer),
            // The serve and proxy listeners are for their proxies only.
            None => Err(IngressRefusal::NotTheProxy),
            Some(evidence) => Err(IngressRefusal::Unattributed(evidence)),
        };
    }
    match trusted_proxy::client(request, settings)? {
        Some(client) => Ok(Client::Ip(client)),
        // Decision 6: a program on a host whose loopback is listed is admitted on its secret, but is never local. The
        // proxy listener is for its proxy alone, which always names its client.
        None if request.listener == ListenerClass::Main
            && evidence.is_none()
            && is_loopback(peer) =>
        {
            Ok(peer)
        }
        // Serve always names its client; whoever does not is a local process, and whois will not vouch for it (T3).
        None if request.listener == ListenerClass::Serve => Ok(peer),
        None => Err(IngressRefusal::ClientMissing),
    }
}

fn is_loopback(client: Client) -> bool {
    matches!(client, Client::Ip(address) if address.is_loopback())
}

fn tailscale_claim(request: &Request<'_>) -> Result<TailscaleClaim, IngressRefusal> {
    let funnel = request.has("tailscale-funnel-request");
    let user = |start: &str| start.eq_ignore_ascii_case("tailscale-user-");
    let names_user = request
        .headers
        .iter()
        .any(|(name, _)| name.get(..15).is_some_and(user));
    if funnel && names_user {
        return Err(IngressRefusal::FunnelIdentity);
    }
    let chain = forwarded::x_forwarded_for(request.lines("x-forwarded-for"))?;
    if let Some(hops) = &chain
        && hops.len() != 1
    {
        return Err(IngressRefusal::ChainAppended {
            proxy: request.peer.ip(),
        });
    }
    let complete = request.has("x-forwarded-proto") && request.has("x-forwarded-host");
    Ok(TailscaleClaim {
        login: request
            .only_text("tailscale-user-login")
            .filter(|login| !login.is_empty())
            .map(str::to_owned),
        source: chain.filter(|_| complete).map(|hops| hops[0]),
        funnel,
    })
}

/// Nobody else reads along: it is encrypted, or never leaves this host or the tailnet.
fn is_confined(request: &Request<'_>, settings: &Settings) -> bool {
    let Peer::Tcp(peer) = request.peer else {
        return true;
    };
    let within_tailnet = settings.tailnet_bind
        && request
            .local
            .is_some_and(|local| cidr::is_tailnet(local.ip()) && cidr::is_tailnet(peer.ip()));
    request.tls || peer.ip().to_canonical().is_loopback() || within_tailnet
}

/// A cap that cannot be read caps everything.
fn scopes_cap(request: &Request<'_>) -> Option<Vec<String>> {
    request.has("x-openclaw-scopes").then(|| {
        let text = request.only_text("x-openclaw-scopes").unwrap_or_default();
        let names = text.split([',', ' ']).filter(|name| !name.is_empty());
        names.map(str::to_owned).collect()
    })
}
