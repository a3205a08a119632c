//! The `Host` header: which names of this Gateway a request may use, so that DNS rebinding finds no door.
//!
//! In: the header's lines, the socket's own address, configured names. Out: the `Authority`, or a refusal.
//! Attacker controls: every byte of the header. Bounds: 253 bytes of name.
//! Errors: `IngressRefusal::{HostMissing, HostRepeated, HostMalformed}` with 400, `HostForeign` with 421 (RFC 9110 §15.5.20).

use std::fmt;
use std::net::IpAddr;

use super::{IngressRefusal, ListenerClass, Request, Settings};

/// The host of an authority: an address, or a name in lower case without the root's dot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Host {
    Ip(IpAddr),
    Name(String),
}

impl Host {
    /// A host without a port, as `gateway.publicHosts` lists them.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(inner) = text.strip_prefix('[') {
            let v6 = inner.strip_suffix(']')?.parse().ok()?;
            return Some(Self::Ip(IpAddr::V6(v6).to_canonical()));
        }
        if let Ok(v4) = text.parse() {
            return Some(Self::Ip(IpAddr::V4(v4)));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        let label_is_sound = |label: &str| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        let sound = name.len() <= 253 && name.split('.').all(label_is_sound);
        sound.then(|| Self::Name(name.to_ascii_lowercase()))
    }

    /// A name or address that only ever means this machine.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Ip(address) => address.is_loopback(),
            Self::Name(name) => name == "localhost",
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Self::Ip(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// `host[:port]` (RFC 3986 §3.2, without user information).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Authority {
    pub host: Host,
    pub port: Option<u16>,
}

impl Authority {
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.rsplit_once(':') {
            // The last colon of a bare `[::1]` stands inside the brackets.
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (text, None),
        };
        let port = match port {
            None => None,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                Some(digits.parse().ok()?)
            }
            Some(_) => return None,
        };
        let host = Host::parse(host)?;
        Some(Self { host, port })
    }
}

/// Reads the header and refuses every host that is not ours (decision 12).
pub(super) fn check(
    request: &Request<'_>,
    settings: &Settings,
) -> Result<Authority, IngressRefusal> {
    let mut lines = request.lines("host");
    let line = lines.next().ok_or(IngressRefusal::HostMissing)?;
    if lines.next().is_some() {
        return Err(IngressRefusal::HostRepeated);
    }
    let authority = std::str::from_utf8(line)
        .ok()
        .and_then(Authority::parse)
        .ok_or(IngressRefusal::HostMalformed)?;
    // No browser can be led to a Unix socket, so its Host is only required to be well-formed.
    if request.listener == ListenerClass::Admin || is_ours(&authority.host, request, settings) {
        return Ok(authority);
    }
    Err(IngressRefusal::HostForeign)
}

fn is_ours(host: &Host, request: &Request<'_>, settings: &Settings) -> bool {
    let bound = request
        .local
        .is_some_and(|local| *host == Host::Ip(local.ip().to_canonical()));
    let tailnet_name =
        request.listener == ListenerClass::Serve && settings.tailnet_name.as_ref() == Some(host);
    host.is_loopback()
        || bound
        || tailnet_name
        || settings.public_hosts.contains(host)
        || settings
            .allowed_origins
            .iter()
            .any(|origin| origin.host() == host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities() {
        for (text, host, port) in [
            ("localhost", "localhost", None),
            ("LOCALHOST.:18789", "localhost", Some(18789)),
            ("127.0.0.1:1", "127.0.0.1", Some(1)),
            ("[::1]", "[::1]", None),
            ("[::1]:18789", "[::1]", Some(18789)),
            ("[::ffff:10.0.0.1]:1", "10.0.0.1", Some(1)),
            ("gw.example.ts.net", "gw.example.ts.net", None),
        ] {
            let it = Authority::parse(text).unwrap();
            assert_eq!(
                (it.host.to_string().as_str(), it.port),
                (host, port),
                "{text}"
            );
        }
        for bad in [
            "",
            ":",
            "host:",
            "host:x",
            "host:65536",
            "a b",
            "user@host",
            "host/",
            "::1",
            "[::1",
            "::1]:1",
            "a..b",
            ".",
            "h%6fst",
            "é",
            "[fe80::1%25eth0]",
            "host:1:2",
            "host:+1",
        ] {
            assert_eq!(Authority::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn odd_spellings_of_loopback_are_only_names() {
        for odd in [
            "127.1",
            "0x7f.0.0.1",
            "2130706433",
            "0177.0.0.1",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
        ] {
            assert!(!Host::parse(odd).unwrap().is_loopback(), "{odd}");
        }
    }
}
