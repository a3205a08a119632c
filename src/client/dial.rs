//! From an address to a WebSocket connection.
//!
//! In: a `ws://` or `wss://` address, or the admin socket's path. Out: a [`WsIo`] after the opening handshake. Attacker controls:
//! the name service's answers and every byte of the response. Bounds: `ADDRESSES_MAX` addresses,
//! `limits::HTTP_HEAD_BYTES_MAX` bytes of response head; the caller sets the time. Errors: [`DialError`].
//!
//! Plaintext goes to loopback only (D2). The break-glass variable opens private networks and nothing public; it is
//! judged on the resolved address, and that very address is then dialled. A pin belongs to the address, so that no
//! request goes to that origin without it (D3).

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::base::limits;
use crate::ingress::cidr::is_private;
use crate::machine;
use crate::net::{Fingerprint, WsIo};
use crate::ws::{
    Limits,
    handshake::{ClientHandshake, ClientRequestError, ResponseError},
};

/// Addresses that one name may resolve to.
const ADDRESSES_MAX: usize = 16;
const PORT_DEFAULT: u16 = 80;
const PORT_DEFAULT_TLS: u16 = 443;
/// Opens plaintext to private networks.
pub const BREAK_GLASS_ENV: &str = "OPENCLAW_ALLOW_INSECURE_PRIVATE_WS";

/// Where a Gateway is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Endpoint {
    Tcp(WsUrl),
    /// The admin socket: the same protocol, with the peer's user id instead of a credential.
    Admin(PathBuf),
}

impl Endpoint {
    /// A name under which a Gateway's device token is kept.
    pub fn key(&self) -> String {
        match self {
            Self::Tcp(url) if url.tls => format!("wss://{}", url.authority()),
            Self::Tcp(url) => url.authority(),
            Self::Admin(path) => format!("unix:{}", path.display()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(url) => {
                let scheme = if url.tls { "wss" } else { "ws" };
                write!(f, "{scheme}://{}{}", url.authority(), url.path)
            }
            Self::Admin(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A `ws://` or `wss://` address, taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WsUrl {
    /// Without brackets.
    pub host: String,
    pub port: u16,
    pub path: String,
    pub tls: bool,
    /// The only certificate that is accepted there, in place of what the system trusts.
    pub pin: Option<Fingerprint>,
}

impl WsUrl {
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self {
            host: host.into(),
            port,
            path: "/".to_owned(),
            tls: false,
            pin: None,
        }
    }

    /// Reads an address. Credentials and queries in it are refused: both end in logs.
    pub fn parse(text: &str) -> Result<Self, DialError> {
        let bad = |why| DialError::Url { why };
        let text = text.trim();
        if text.bytes().any(|b| !b.is_ascii_graphic()) {
            return Err(bad("it holds a blank or a character beyond ASCII"));
        }
        let (scheme, rest) = text
            .split_once("://")
            .ok_or(bad("it has no scheme; write ws://host:port"))?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "ws" => false,
            "wss" => true,
            _ => return Err(bad("its scheme is neither ws nor wss")),
        };
        if rest.contains(['?', '#']) {
            return Err(bad(
                "it has a query or a fragment; secrets never travel in an address",
            ));
        }
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, format!("/{path}")),
            None => (rest, "/".to_owned()),
        };
        if authority.contains('@') {
            return Err(bad("it holds a user name; use --token or --password"));
        }
        let (host, port) =
            split_authority(authority).ok_or(bad("its host or port is malformed"))?;
        let default = if tls { PORT_DEFAULT_TLS } else { PORT_DEFAULT };
        Ok(Self {
            host: host.to_owned(),
            port: port.unwrap_or(default),
            path,
            tls,
            pin: None,
        })
    }

    /// Whether both lead to the same listener.
    pub fn is_same_origin(&self, other: &Self) -> bool {
        self.tls == other.tls
            && self.port == other.port
            && self.host.eq_ignore_ascii_case(&other.host)
    }

    /// `host:port`, with brackets where an IPv6 address needs them.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

fn split_authority(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            let port = match after {
                "" => None,
                _ => Some(after.strip_prefix(':')?),
            };
            (host, port)
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = match port {
        None => None,
        Some(digits) => Some(digits.parse().ok().filter(|port| *port != 0)?),
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:".contains(&b);
    (!host.is_empty() && host.len() <= 253 && host.bytes().all(plain)).then_some((host, port))
}

/// Why there is no connection.
#[derive(Debug)]
pub enum DialError {
    Url {
        why: &'static str,
    },
    /// `wss://` in a build without TLS.
    TlsNotBuilt,
    /// The certificate is not the one that is pinned: another key answers there, or the operator's note is old.
    Pin {
        expected: Fingerprint,
        got: Fingerprint,
    },
    /// The certificate is not trusted for that name.
    Certificate {
        why: String,
    },
    /// The peer does not speak TLS as we do.
    Tls {
        why: String,
    },
    /// The name has no address, or too many.
    Resolve {
        host: String,
        why: String,
    },
    /// Plaintext to an address where others could listen.
    Plaintext {
        address: IpAddr,
        break_glass_helps: bool,
    },
    Connect {
        to: String,
        error: io::Error,
    },
    Request(ClientRequestError),
    Response(ResponseError),
    /// The peer hung up within the opening handshake.
    Handshake(io::Error),
}

impl DialError {
    /// Whether the same attempt may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Resolve { .. } | Self::Connect { .. } | Self::Handshake(_) => true,
            // Busy, or starting.
            Self::Response(ResponseError::Status(status)) => *status >= 500 || *status == 429,
            _ => false,
        }
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url { why } => write!(f, "the gateway's address is not usable: {why}"),
            Self::TlsNotBuilt => f.write_str(
                "wss:// needs TLS, which this build does not have; use one with the feature `tls`",
            ),
            Self::Pin { expected, got } => write!(
                f,
                "the gateway's certificate is not the pinned one\n  pinned:   sha256:{expected}\n  received: sha256:{got}"
            ),
            Self::Certificate { why } => write!(
                f,
                "the gateway's certificate is not trusted: {why}; pin the fingerprint that the gateway printed at its start with --tls-fingerprint or gateway.remote.tlsFingerprint"
            ),
            Self::Tls { why } => write!(f, "no TLS connection: {why}"),
            Self::Resolve { host, why } => write!(f, "{host} does not resolve: {why}"),
            Self::Plaintext {
                address,
                break_glass_helps,
            } => {
                write!(
                    f,
                    "ws:// to {address} would send credentials in the clear; use wss://, or open an SSH tunnel and use ws://127.0.0.1:PORT"
                )?;
                if *break_glass_helps {
                    write!(f, ", or set {BREAK_GLASS_ENV}=1 if you trust that private network")?;
                }
                Ok(())
            }
            Self::Connect { to, error } => write!(f, "cannot connect to {to}: {error}"),
            Self::Request(error) => write!(f, "the gateway's address is not usable: {error}"),
            Self::Response(ResponseError::Status(403)) => f.write_str(
                "the gateway refused the upgrade with HTTP 403: a proxy on the way added forwarding headers, or the origin is not allowed",
            ),
            Self::Response(ResponseError::Status(421)) => f.write_str(
                "the gateway refused the upgrade with HTTP 421: it does not answer for that name; see its gateway.publicHosts",
            ),
            Self::Response(error) => write!(f, "that is not a gateway's answer: {error}"),
            Self::Handshake(error) => {
                write!(f, "the gateway hung up: {error}; if it speaks TLS, use wss:// or --tls")
            }
        }
    }
}

impl std::error::Error for DialError {}

/// Where plaintext may go (decision 10).
pub fn plaintext_allowed(address: IpAddr, break_glass: bool) -> bool {
    let address = address.to_canonical();
    address.is_loopback() || (break_glass && is_private(address))
}

/// Connects and upgrades.
pub async fn dial(
    endpoint: &Endpoint,
    break_glass: bool,
    message_bytes_max: usize,
) -> Result<WsIo<Stream>, DialError> {
    match endpoint {
        Endpoint::Tcp(url) => {
            if url.tls && !cfg!(feature = "tls") {
                return Err(DialError::TlsNotBuilt);
            }
            let stream = connect_tcp(url, break_glass).await?;
            #[cfg(feature = "tls")]
            let stream: Stream = if url.tls {
                Box::new(super::tls::connect(stream, url).await?)
            } else {
                Box::new(stream)
            };
            #[cfg(not(feature = "tls"))]
            let stream: Stream = Box::new(stream);
            upgrade(stream, &url.authority(), &url.path, message_bytes_max).await
        }
        Endpoint::Admin(path) => {
            let stream = connect_unix(path).await?;
            upgrade(Box::new(stream), "localhost", "/", message_bytes_max).await
        }
    }
}

async fn connect_tcp(url: &WsUrl, break_glass: bool) -> Result<TcpStream, DialError> {
    let addresses = resolve(url).await?;
    // One forbidden address among good ones is a name that somebody else answers for.
    for address in &addresses {
        if !url.tls && !plaintext_allowed(address.ip(), break_glass) {
            return Err(DialError::Plaintext {
                address: address.ip(),
                break_glass_helps: is_private(address.ip()),
            });
        }
    }
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                // Frames are small and written whole; waiting to fill a segment only delays them.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(DialError::Connect {
        to: url.authority(),
        error: last,
    })
}

async fn resolve(url: &WsUrl) -> Result<Vec<SocketAddr>, DialError> {
    let failed = |why: String| DialError::Resolve {
        host: url.host.clone(),
        why,
    };
    let found: Vec<SocketAddr> = tokio::net::lookup_host((url.host.as_str(), url.port))
        .await
        .map_err(|error| failed(error.to_string()))?
        .take(ADDRESSES_MAX + 1)
        .collect();
    match found.len() {
        0 => Err(failed("it has no address".to_owned())),
        count if count > ADDRESSES_MAX => Err(failed(format!(
            "it has more than {ADDRESSES_MAX} addresses"
        ))),
        _ => Ok(found),
    }
}

async fn connect_unix(path: &Path) -> Result<UnixStream, DialError> {
    UnixStream::connect(path)
        .await
        .map_err(|error| DialError::Connect {
            to: path.display().to_string(),
            error,
        })
}

async fn upgrade(
    mut stream: Stream,
    host: &str,
    target: &str,
    message_bytes_max: usize,
) -> Result<WsIo<Stream>, DialError> {
    let handshake = ClientHandshake::new(machine::random());
    let request = handshake
        .request(host, target, &[])
        .map_err(DialError::Request)?;
    stream
        .write_all(&request)
        .await
        .map_err(DialError::Handshake)?;
    // TLS may have kept some of it.
    stream.flush().await.map_err(DialError::Handshake)?;
    let mut head = Vec::new();
    loop {
        if let Some(length) = handshake.response(&head).map_err(DialError::Response)? {
            let leftover = Bytes::from(head).slice(length..);
            return Ok(WsIo::client(
                stream,
                leftover,
                Limits::new(message_bytes_max),
            ));
        }
        let room = limits::HTTP_HEAD_BYTES_MAX.saturating_sub(head.len()) as u64;
        let read = (&mut stream)
            .take(room)
            .read_buf(&mut head)
            .await
            .map_err(DialError::Handshake)?;
        if read == 0 {
            return Err(DialError::Handshake(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

/// TCP, TLS over it, or the admin socket.
pub type Stream = Box<dyn Transport>;

pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_goes_where_decision_10_says() {
        // address, without and with the break-glass variable
        for (address, plain, glass) in [
            ("127.0.0.1", true, true),
            ("127.9.9.9", true, true),
            ("::1", true, true),
            ("::ffff:127.0.0.1", true, true),
            ("10.0.0.5", false, true),
            ("172.16.0.1", false, true),
            ("172.32.0.1", false, false),
            ("192.168.1.1", false, true),
            ("100.64.0.1", false, true),
            ("100.128.0.1", false, false),
            ("169.254.1.1", false, true),
            ("fd00::1", false, true),
            ("fe80::1", false, true),
            ("::ffff:10.0.0.5", false, true),
            ("203.0.113.5", false, false),
            ("8.8.8.8", false, false),
            ("::ffff:8.8.8.8", false, false),
            ("2001:db8::1", false, false),
            ("0.0.0.0", false, false),
            ("::", false, false),
            ("255.255.255.255", false, false),
        ] {
            let ip: IpAddr = address.parse().unwrap();
            assert_eq!(plaintext_allowed(ip, false), plain, "{address}");
            assert_eq!(
                plaintext_allowed(ip, true),
                glass,
                "{address} with break-glass"
            );
        }
    }

    #[test]
    fn addresses_are_read_strictly() {
        let url = WsUrl::parse("ws://127.0.0.1:18789").unwrap();
        assert_eq!(
            (url.host.as_str(), url.port, url.path.as_str()),
            ("127.0.0.1", 18789, "/")
        );
        let url = WsUrl::parse("WS://[::1]:5/a/b").unwrap();
        assert_eq!(
            (url.authority().as_str(), url.path.as_str()),
            ("[::1]:5", "/a/b")
        );
        assert_eq!(WsUrl::parse("ws://box").unwrap().port, 80);
        for bad in [
            "",
            "box:1",
            "http://box",
            "ws://",
            "ws://:1",
            "ws://box:0",
            "ws://box:65536",
            "ws://box:1x",
            "ws://u:p@box",
            "ws://box/?token=x",
            "ws://box/#x",
            "ws://[::1",
            "ws://[x]:1",
            "ws://::1:5",
            "ws://b ox",
            "ws://box\r\nHost: x",
            "ws://bö",
            "ws://box%0d",
        ] {
            assert!(WsUrl::parse(bad).is_err(), "{bad:?}");
        }
        let url = WsUrl::parse("wss://box").unwrap();
        assert_eq!((url.tls, url.port), (true, 443));
        assert_eq!(Endpoint::Tcp(url).key(), "wss://box:443");
        let url = |text: &str| WsUrl::parse(text).unwrap();
        assert!(url("wss://Box:443/a").is_same_origin(&url("wss://box")));
        for other in ["ws://box:443", "wss://box:444", "wss://boxes"] {
            assert!(!url(other).is_same_origin(&url("wss://box")), "{other}");
        }
    }

    /// What a name turns out to be decides, not how it is spelled (D2).
    #[tokio::test]
    async fn d2_hosts_are_judged_by_what_they_resolve_to() {
        for (host, plain, glass) in [
            ("localhost", true, true),
            ("LOCALHOST", true, true),
            ("127.0.0.1", true, true),
            ("127.1", true, true),
            ("2130706433", true, true),
            ("0x7f.0.0.1", true, true),
            ("::1", true, true),
            ("::ffff:127.0.0.1", true, true),
            ("10.0.0.5", false, true),
            ("192.168.257", false, true),
            ("0x0a000005", false, true),
            ("fd12::1", false, true),
            ("::ffff:100.64.0.1", false, true),
            ("8.8.8.8", false, false),
            ("134744072", false, false),
            ("64:ff9b::7f00:1", false, false),
            ("0", false, false),
        ] {
            let url = WsUrl::new(host, 1);
            let judged = |addresses: &[SocketAddr], break_glass| {
                let mut addresses = addresses.iter();
                addresses.all(|address| plaintext_allowed(address.ip(), break_glass))
            };
            let addresses = resolve(&url).await.unwrap();
            assert_eq!(judged(&addresses, false), plain, "{host}");
            assert_eq!(judged(&addresses, true), glass, "{host} with break-glass");
            if !plain {
                let refused = dial(&Endpoint::Tcp(url), false, 1024).await.err().unwrap();
                assert!(matches!(refused, DialError::Plaintext { .. }), "{host}");
            }
        }
    }

    #[cfg(not(feature = "tls"))]
    #[tokio::test]
    async fn wss_is_refused_by_name_without_the_feature() {
        let endpoint = Endpoint::Tcp(WsUrl::parse("wss://127.0.0.1:1").unwrap());
        let refused = dial(&endpoint, true, 1024).await.err().unwrap();
        assert!(refused.to_string().starts_with("wss:// needs TLS"));
        let source = crate::net::tls::Source::SelfSigned("x".into());
        let refused = crate::net::tls::ServerTls::open(source).err().unwrap();
        assert!(refused.to_string().contains("gateway.tls.enabled"));
    }

    #[tokio::test]
    async fn nothing_is_sent_to_a_private_or_public_address() {
        for (host, helps) in [("10.255.255.1", true), ("203.0.113.5", false)] {
            let endpoint = Endpoint::Tcp(WsUrl::new(host, 1));
            let refusal = dial(&endpoint, false, 1024).await.err().unwrap();
            assert!(
                matches!(refusal, DialError::Plaintext { break_glass_helps, .. } if break_glass_helps == helps)
            );
        }
        let public = Endpoint::Tcp(WsUrl::new("203.0.113.5", 1));
        assert!(matches!(
            dial(&public, true, 1024).await,
            Err(DialError::Plaintext { .. })
        ));
    }
}
