//! Why a request has no origin that can be relied on, and what the operator should change.

use std::borrow::Cow;
use std::net::IpAddr;

use super::forwarded::ForwardedError;
use super::origin::Origin;
use super::trusted_proxy::Evidence;
use crate::base::Refusal;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IngressRefusal {
    HostMissing,
    HostRepeated,
    HostMalformed,
    /// A host that is not one of ours: DNS rebinding, or a name that the operator has not listed.
    HostForeign,
    /// The admin socket serves one user.
    AdminUser {
        uid: u32,
    },
    /// Only the proxy may use its listener.
    NotTheProxy,
    /// A proxy's header from a peer that is no trusted proxy.
    Unattributed(Evidence),
    Malformed(ForwardedError),
    /// `X-Forwarded-For`, `Forwarded` and `X-Real-IP` tell different stories.
    HeadersDisagree,
    /// An entry left of the client: this proxy appends instead of overwriting.
    ChainAppended {
        proxy: Option<IpAddr>,
    },
    /// The chain ends at loopback, at no address, or at the proxy itself.
    ClientUnattributable,
    /// A trusted proxy that does not say who its client is.
    ClientMissing,
    /// A public request through Funnel that claims a tailnet identity.
    FunnelIdentity,
    /// `null`, twice, or not an origin at all.
    OriginInvalid,
    OriginForeign(Origin),
}

impl Refusal for IngressRefusal {
    fn code(&self) -> &'static str {
        match self {
            Self::HostMissing | Self::HostRepeated | Self::HostMalformed => "invalid_request",
            Self::HostForeign => "misdirected_request",
            Self::AdminUser { .. } => "forbidden",
            Self::OriginInvalid | Self::OriginForeign(_) => "INVALID_REQUEST",
            Self::NotTheProxy
            | Self::Unattributed(_)
            | Self::Malformed(_)
            | Self::HeadersDisagree
            | Self::ChainAppended { .. }
            | Self::ClientUnattributable
            | Self::ClientMissing
            | Self::FunnelIdentity => "proxy_attribution_required",
        }
    }

    fn detail_code(&self) -> Option<&'static str> {
        match self {
            Self::OriginInvalid | Self::OriginForeign(_) => Some("CONTROL_UI_ORIGIN_NOT_ALLOWED"),
            _ => None,
        }
    }

    fn http_status(&self) -> u16 {
        match self {
            Self::HostMissing | Self::HostRepeated | Self::HostMalformed => 400,
            Self::HostForeign => 421,
            _ => 403,
        }
    }

    fn log_field(&self) -> &'static str {
        match self {
            Self::HostMissing => "host_missing",
            Self::HostRepeated => "host_repeated",
            Self::HostMalformed => "host_malformed",
            Self::HostForeign => "host_foreign",
            Self::AdminUser { .. } => "admin_user",
            Self::NotTheProxy => "not_the_proxy",
            Self::Unattributed(Evidence::Forwarding) => "proxy_untrusted_source",
            Self::Unattributed(Evidence::Identity) => "trusted_proxy_untrusted_source",
            Self::Unattributed(Evidence::Tailscale) => "tailscale_untrusted_source",
            Self::Malformed(_) => "forwarded_malformed",
            Self::HeadersDisagree => "forwarded_headers_disagree",
            Self::ChainAppended { .. } => "forwarded_chain_appended",
            Self::ClientUnattributable => "forwarded_client_unattributable",
            Self::ClientMissing => "forwarded_client_missing",
            Self::FunnelIdentity => "tailscale_funnel_identity",
            Self::OriginInvalid => "origin_invalid",
            Self::OriginForeign(_) => "origin_foreign",
        }
    }

    fn public(&self) -> Cow<'static, str> {
        match self {
            Self::HostMissing | Self::HostRepeated | Self::HostMalformed => {
                "the Host header is missing, repeated or malformed"
            }
            Self::HostForeign => "this gateway does not answer for that host",
            Self::AdminUser { .. } => "the admin socket belongs to another user",
            Self::NotTheProxy => "this listener is for its proxy only",
            Self::ChainAppended { .. } => {
                "Proxy client attribution is required: the proxy appends to the forwarded chain instead of overwriting it"
            }
            Self::OriginInvalid | Self::OriginForeign(_) => {
                "origin not allowed (open the Control UI from the gateway host or allow it in \
                 gateway.controlUi.allowedOrigins)"
            }
            _ => "Proxy client attribution is required",
        }
        .into()
    }

    fn remedy(&self) -> Cow<'static, str> {
        match self {
            Self::HostMissing | Self::HostRepeated | Self::HostMalformed => {
                "send one Host header that names this gateway".into()
            }
            Self::HostForeign => {
                "if clients should reach this gateway under that name, add it to gateway.publicHosts".into()
            }
            Self::AdminUser { uid } => {
                format!("run the command as the user who runs the gateway; uid {uid} is not").into()
            }
            Self::NotTheProxy => {
                "connect to the main listener, or add the proxy's address to gateway.trustedProxies".into()
            }
            Self::Unattributed(Evidence::Tailscale) => "Tailscale headers count only behind the managed Serve listener: \
                set gateway.tailscale.mode: serve, and do not pass them through another proxy"
                .into(),
            Self::Unattributed(_) | Self::ClientMissing => format!(
                "list exactly the proxy's address in gateway.trustedProxies and let it overwrite X-Forwarded-For ({OVERWRITE})"
            )
            .into(),
            Self::Malformed(_) | Self::HeadersDisagree | Self::ClientUnattributable => format!(
                "let the proxy overwrite X-Forwarded-For with the client's own address, once ({OVERWRITE})"
            )
            .into(),
            Self::ChainAppended { proxy } => {
                let proxy = match proxy {
                    Some(address) => format!("the proxy at {address}"),
                    None => "the proxy".to_owned(),
                };
                format!("{proxy} appends to X-Forwarded-For, so clients can forge its start; let it overwrite ({OVERWRITE})")
                    .into()
            }
            Self::FunnelIdentity => {
                "Funnel requests carry no tailnet identity; sign in with the password".into()
            }
            Self::OriginInvalid => "open the page from an address of this gateway, not from a file or a sandbox".into(),
            Self::OriginForeign(origin) => {
                format!("if this page should be allowed: gateway.controlUi.allowedOrigins: [\"{origin}\"]").into()
            }
        }
    }
}

/// How the usual proxies are told to overwrite.
const OVERWRITE: &str = "nginx: proxy_set_header X-Forwarded-For $remote_addr; Caddy: header_up X-Forwarded-For {remote_host}; \
    HAProxy: http-request set-header X-Forwarded-For %[src]; Traefik: leave forwardedHeaders.insecure off and \
    forwardedHeaders.trustedIPs empty";
