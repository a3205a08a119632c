//! The `Origin` header (RFC 6454): which web pages may open a connection.
//!
//! In: the header's lines and what else is known of the request. Out: no origin, an allowed one, or a refusal.
//! Attacker controls: every byte. Bounds: `limits::ORIGIN_SCHEME_BYTES_MAX`, and those of a host.
//! Errors: `IngressRefusal::{OriginInvalid, OriginForeign}`; both answer 403 before the upgrade.

use std::fmt;

use super::host::{Authority, Host};
use super::{IngressRefusal, ListenerClass, Request, Settings};
use crate::base::limits::ORIGIN_SCHEME_BYTES_MAX;

/// A web origin: scheme, host and the port that is really used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    scheme: String,
    host: Host,
    port: Option<u16>,
}

impl Origin {
    /// Accepts `scheme://host[:port]` and nothing after it, as browsers send it and as `allowedOrigins` lists it.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let scheme_is_sound = scheme.len() <= ORIGIN_SCHEME_BYTES_MAX
            && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
        let Authority { host, port } = Authority::parse(rest)?;
        let scheme = scheme.to_ascii_lowercase();
        let port = port.or(default_port(&scheme));
        scheme_is_sound.then_some(Self { scheme, host, port })
    }

    pub fn host(&self) -> &Host {
        &self.host
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)?;
        match self.port {
            Some(port) if default_port(&self.scheme) != Some(port) => write!(f, ":{port}"),
            _ => Ok(()),
        }
    }
}

/// Decides on the request's origin. `local_socket` says that the peer is a loopback socket of the main listener and that
/// nothing suggests a proxy; only then may a page that this Gateway itself served on a loopback name connect back.
pub(super) fn check(
    request: &Request<'_>,
    authority: &Authority,
    settings: &Settings,
    local_socket: bool,
) -> Result<Option<Origin>, IngressRefusal> {
    let mut lines = request.lines("origin");
    let Some(line) = lines.next() else {
        return Ok(None);
    };
    if lines.next().is_some() {
        return Err(IngressRefusal::OriginInvalid);
    }
    let origin = std::str::from_utf8(line)
        .ok()
        .and_then(Origin::parse)
        .ok_or(IngressRefusal::OriginInvalid)?;
    let own_page =
        local_socket && origin.host.is_loopback() && same_origin(&origin, authority, request.tls);
    let serve_page = request.listener == ListenerClass::Serve
        && origin.scheme == "https"
        && settings.tailnet_name.as_ref() == Some(&origin.host);
    if own_page || serve_page || settings.allowed_origins.contains(&origin) {
        return Ok(Some(origin));
    }
    Err(IngressRefusal::OriginForeign(origin))
}

/// Whether the page came from the host and port that this request names. The name is a loopback one here, so the `Host`
/// header says nothing that an attacker could choose (O3).
fn same_origin(origin: &Origin, authority: &Authority, tls: bool) -> bool {
    let scheme = if tls { "https" } else { "http" };
    origin.scheme == scheme
        && origin.host == authority.host
        && origin.port == authority.port.or(default_port(scheme))
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_read_strictly() {
        for (text, shown) in [
            ("http://127.0.0.1:18789", "http://127.0.0.1:18789"),
            ("HTTPS://GW.example:443", "https://gw.example"),
            ("https://gw.example", "https://gw.example"),
            ("tauri://localhost", "tauri://localhost"),
            ("http://[::1]:1", "http://[::1]:1"),
        ] {
            assert_eq!(Origin::parse(text).unwrap().to_string(), shown);
        }
        for bad in [
            "null",
            "",
            "http://",
            "http:127.0.0.1",
            "http://a/",
            "http://a?b",
            "http://a#b",
            "http://u@a",
            "://a",
            "1x://a",
            "http://a b",
            "*",
            "https://*.example",
            "http://a, http://b",
            "an-extension-with-a-name-that-goes-on-and-on://a",
        ] {
            assert_eq!(Origin::parse(bad), None, "{bad}");
        }
    }
}
