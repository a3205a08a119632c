//! Whose client is this? Forwarding evidence, trusted proxies, and the identity that a proxy vouches for.
//!
//! In: the request, `gateway.trustedProxies` and the like. Out: the client's address, or a refusal.
//! Attacker controls: the headers, unless a trusted proxy overwrote them. Bounds: those of `forwarded`.
//! Errors: `IngressRefusal`, all 403 (`proxy_attribution_required`); `ProxyUserRefusal` for trusted-proxy mode.

use std::net::IpAddr;

use super::cidr::Cidr;
use super::forwarded::{self, ForwardedError};
use super::{IngressRefusal, ListenerClass, Peer, Request, Settings};

/// Headers that proxies add. Any of them says that the peer may not be the client (P1).
pub const FORWARDING_HEADERS: [&str; 13] = [
    "forwarded",
    "x-real-ip",
    "via",
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "cf-ray",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-original-forwarded-for",
    "x-envoy-external-address",
    "fastly-client-ip",
    "fly-client-ip",
];

/// What in a request speaks of a proxy. The strongest kind is reported.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Evidence {
    Forwarding,
    /// The header that names the user in trusted-proxy mode.
    Identity,
    Tailscale,
}

/// The identity that a trusted proxy vouches for (`gateway.auth.trustedProxy`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProxyUserSettings {
    /// In lower case.
    pub user_header: String,
    /// In lower case.
    pub required_headers: Vec<String>,
    /// Empty: everyone whom the proxy lets through.
    pub allow_users: Vec<String>,
    pub allow_loopback: bool,
}

/// Why the proxy's word does not count.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ProxyUserRefusal {
    UntrustedSource,
    LoopbackSource,
    /// The source is an address of this host: no proxy, but somebody here.
    LocalInterfaceSource,
    /// This host's addresses could not be listed, so the check above could not be made.
    LocalInterfaceCheckFailed,
    MissingHeader(String),
    UserMissing,
    UserNotAllowed,
}

impl ProxyUserRefusal {
    pub fn log_field(&self) -> &'static str {
        match self {
            Self::UntrustedSource => "trusted_proxy_untrusted_source",
            Self::LoopbackSource => "trusted_proxy_loopback_source",
            Self::LocalInterfaceSource => "trusted_proxy_local_interface_source",
            Self::LocalInterfaceCheckFailed => "trusted_proxy_local_interface_check_failed",
            Self::MissingHeader(_) => "trusted_proxy_missing_header",
            Self::UserMissing => "trusted_proxy_user_missing",
            Self::UserNotAllowed => "trusted_proxy_user_not_allowed",
        }
    }
}

/// The strongest evidence of a proxy among the headers.
pub(super) fn evidence(request: &Request<'_>, settings: &Settings) -> Option<Evidence> {
    request
        .headers
        .iter()
        .filter_map(|(name, _)| {
            let name = name.to_ascii_lowercase();
            let identity = settings
                .proxy_user
                .as_ref()
                .is_some_and(|proxy| proxy.user_header == name);
            if name.starts_with("tailscale-") {
                Some(Evidence::Tailscale)
            } else if identity {
                Some(Evidence::Identity)
            } else if name.starts_with("x-forwarded") || FORWARDING_HEADERS.contains(&&*name) {
                Some(Evidence::Forwarding)
            } else {
                None
            }
        })
        .max()
}

/// Whether the peer is a proxy whose headers count.
pub(super) fn peer_is_proxy(request: &Request<'_>, settings: &Settings) -> bool {
    match (request.listener, request.peer) {
        (ListenerClass::Admin, _) => false,
        // Whoever can open the proxy's own Unix socket is the proxy: its directory's mode decides.
        (ListenerClass::Proxy, Peer::Unix { .. }) => true,
        (ListenerClass::Main, Peer::Unix { .. }) => false,
        (ListenerClass::Serve | ListenerClass::Proxy, Peer::Tcp(peer))
            if peer.ip().to_canonical().is_loopback() =>
        {
            true
        }
        (ListenerClass::Serve, _) => false,
        (ListenerClass::Main | ListenerClass::Proxy, Peer::Tcp(peer)) => {
            Cidr::any_contains(&settings.trusted_proxies, peer.ip())
        }
    }
}

/// The client behind a trusted proxy, or `None` if the proxy's headers do not name one at all.
pub(super) fn client(
    request: &Request<'_>,
    settings: &Settings,
) -> Result<Option<IpAddr>, IngressRefusal> {
    // A second line is how some proxies append (HAProxy's `option forwardfor`).
    let appended = |error| match error {
        ForwardedError::Repeated => IngressRefusal::ChainAppended {
            proxy: request.peer.ip(),
        },
        error => error.into(),
    };
    let listed = forwarded::x_forwarded_for(request.lines("x-forwarded-for")).map_err(appended)?;
    let standard = forwarded::forwarded(request.lines("forwarded")).map_err(appended)?;
    let chain = match (listed, standard) {
        (Some(listed), Some(standard)) if listed != standard => {
            return Err(IngressRefusal::HeadersDisagree);
        }
        (Some(chain), _) | (None, Some(chain)) => Some(chain),
        (None, None) => None,
    };
    let real_ip = match settings.allow_real_ip {
        true => forwarded::x_real_ip(request.lines("x-real-ip"))?,
        false => None,
    };
    let client = match chain {
        Some(chain) => Some(rightmost_untrusted(&chain, request, settings)?),
        None => real_ip,
    };
    match (client, real_ip) {
        (Some(client), Some(real_ip)) if client != real_ip => Err(IngressRefusal::HeadersDisagree),
        (Some(client), _) if !is_attributable(client) => Err(IngressRefusal::ClientUnattributable),
        (client, _) => Ok(client),
    }
}

/// Reads the chain from the right, from us towards the client, and skips our own proxies. What stands left of the
/// client was written by the client: a proxy that passed it on appends instead of overwriting.
fn rightmost_untrusted(
    chain: &[IpAddr],
    request: &Request<'_>,
    settings: &Settings,
) -> Result<IpAddr, IngressRefusal> {
    let client = chain
        .iter()
        .rposition(|hop| !Cidr::any_contains(&settings.trusted_proxies, *hop))
        .ok_or(IngressRefusal::ClientUnattributable)?;
    let address = chain[client];
    if !is_attributable(address) {
        return Err(IngressRefusal::ClientUnattributable);
    }
    if client > 0 {
        let proxy = chain.get(client + 1).copied().or(request.peer.ip());
        return Err(IngressRefusal::ChainAppended { proxy });
    }
    Ok(address)
}

/// A remote client's address. Loopback behind a proxy would make a stranger look local.
fn is_attributable(address: IpAddr) -> bool {
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

/// The user that the proxy vouches for, in the reference's order of checks.
pub(super) fn user(
    request: &Request<'_>,
    settings: &Settings,
    proxy: &ProxyUserSettings,
) -> Result<String, ProxyUserRefusal> {
    if !peer_is_proxy(request, settings) || request.listener == ListenerClass::Serve {
        return Err(ProxyUserRefusal::UntrustedSource);
    }
    if let Some(address) = request.peer.ip() {
        if address.is_loopback() {
            if !proxy.allow_loopback {
                return Err(ProxyUserRefusal::LoopbackSource);
            }
        } else {
            match request.own_addresses {
                None => return Err(ProxyUserRefusal::LocalInterfaceCheckFailed),
                Some(own) if own.iter().any(|own| own.to_canonical() == address) => {
                    return Err(ProxyUserRefusal::LocalInterfaceSource);
                }
                Some(_) => {}
            }
        }
    }
    let value = |name: &str| request.only_text(name).filter(|text| !text.is_empty());
    for name in &proxy.required_headers {
        value(name).ok_or_else(|| ProxyUserRefusal::MissingHeader(name.clone()))?;
    }
    let user = value(&proxy.user_header).ok_or(ProxyUserRefusal::UserMissing)?;
    if !proxy.allow_users.is_empty() && !proxy.allow_users.iter().any(|allowed| allowed == user) {
        return Err(ProxyUserRefusal::UserNotAllowed);
    }
    Ok(user.to_owned())
}

impl From<ForwardedError> for IngressRefusal {
    fn from(error: ForwardedError) -> Self {
        Self::Malformed(error)
    }
}
