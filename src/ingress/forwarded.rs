//! `X-Forwarded-For`, and `Forwarded` (RFC 7239), as a chain of addresses.
//!
//! In: the lines of one header. Out: the addresses in header order, client side first.
//! Attacker controls: every byte, unless a trusted proxy wrote it. Bounds: one line of
//! `limits::INGRESS_HEADER_BYTES_MAX`, `limits::FORWARDED_HOPS_MAX` entries.
//! Errors: `ForwardedError`. Nothing is guessed: an entry that does not parse refuses the request, and never falls
//! back to another address.

use std::net::{IpAddr, Ipv6Addr, SocketAddrV4};

use crate::base::limits::{FORWARDED_HOPS_MAX, INGRESS_HEADER_BYTES_MAX};

/// Why a chain is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ForwardedError {
    /// The header stands there twice: two writers, and no telling which was ours.
    Repeated,
    TooLong {
        got: usize,
        limit: usize,
    },
    TooManyHops {
        limit: usize,
    },
    /// Entry `index` (from the left) is not an address that can be attributed.
    BadEntry {
        index: usize,
    },
}

/// The chain of an `X-Forwarded-For` header.
pub fn x_forwarded_for<'a>(
    lines: impl Iterator<Item = &'a [u8]>,
) -> Result<Option<Vec<IpAddr>>, ForwardedError> {
    let Some(line) = single(lines)? else {
        return Ok(None);
    };
    let entries = line.split(|byte| *byte == b',');
    chain(entries.map(|entry| address(std::str::from_utf8(entry.trim_ascii()).ok()?)))
}

/// The chain of the `for` parameters of a `Forwarded` header.
pub fn forwarded<'a>(
    lines: impl Iterator<Item = &'a [u8]>,
) -> Result<Option<Vec<IpAddr>>, ForwardedError> {
    let Some(line) = single(lines)? else {
        return Ok(None);
    };
    let mut rest = Some(line);
    chain(std::iter::from_fn(|| {
        let (node, after) = match element(rest?) {
            Some((node, after)) => (Some(node), after),
            None => (None, None),
        };
        rest = after;
        Some(node.and_then(|node| node_address(&node)))
    }))
}

/// The one address of an `X-Real-IP` header.
pub fn x_real_ip<'a>(
    lines: impl Iterator<Item = &'a [u8]>,
) -> Result<Option<IpAddr>, ForwardedError> {
    let Some(line) = single(lines)? else {
        return Ok(None);
    };
    std::str::from_utf8(line.trim_ascii())
        .ok()
        .and_then(|text| text.parse().ok())
        .map(|ip: IpAddr| Some(ip.to_canonical()))
        .ok_or(ForwardedError::BadEntry { index: 0 })
}

fn single<'a>(
    mut lines: impl Iterator<Item = &'a [u8]>,
) -> Result<Option<&'a [u8]>, ForwardedError> {
    let Some(line) = lines.next() else {
        return Ok(None);
    };
    if lines.next().is_some() {
        return Err(ForwardedError::Repeated);
    }
    if line.len() > INGRESS_HEADER_BYTES_MAX {
        return Err(ForwardedError::TooLong {
            got: line.len(),
            limit: INGRESS_HEADER_BYTES_MAX,
        });
    }
    Ok(Some(line))
}

fn chain(
    entries: impl Iterator<Item = Option<IpAddr>>,
) -> Result<Option<Vec<IpAddr>>, ForwardedError> {
    let mut hops = Vec::new();
    for (index, entry) in entries.enumerate() {
        if index == FORWARDED_HOPS_MAX {
            return Err(ForwardedError::TooManyHops {
                limit: FORWARDED_HOPS_MAX,
            });
        }
        hops.push(entry.ok_or(ForwardedError::BadEntry { index })?);
    }
    Ok(Some(hops))
}

/// An address with or without a port, as proxies write it into `X-Forwarded-For`.
fn address(text: &str) -> Option<IpAddr> {
    let ip = if let Some(inner) = text.strip_prefix('[') {
        bracketed(inner)?
    } else if let Ok(ip) = text.parse() {
        ip
    } else {
        IpAddr::V4(*text.parse::<SocketAddrV4>().ok()?.ip())
    };
    Some(ip.to_canonical())
}

/// The `for` node of RFC 7239 §6: IPv6 only in brackets; `unknown` and obfuscated names cannot be attributed.
fn node_address(text: &str) -> Option<IpAddr> {
    let bare_v6 = !text.starts_with('[') && text.parse::<Ipv6Addr>().is_ok();
    if bare_v6 { None } else { address(text) }
}

/// What follows the opening bracket: `v6]` or `v6]:port`.
fn bracketed(inner: &str) -> Option<IpAddr> {
    let (v6, after) = inner.split_once(']')?;
    let port_is_sound = match after.strip_prefix(':') {
        Some(port) => port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok(),
        None => after.is_empty(),
    };
    port_is_sound.then_some(())?;
    v6.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
}

/// One forwarded-element (RFC 7239 §4) with exactly one `for`. Returns its node and what follows the comma, if one does.
fn element(line: &[u8]) -> Option<(String, Option<&[u8]>)> {
    let mut node = None;
    let mut rest = line.trim_ascii_start();
    loop {
        let name_end = rest.iter().position(|byte| !is_token(*byte))?;
        let (name, after) = rest.split_at(name_end);
        let (value, after) = value(after.strip_prefix(b"=")?)?;
        if name.is_empty() {
            return None;
        }
        if name.eq_ignore_ascii_case(b"for") && node.replace(value).is_some() {
            return None;
        }
        rest = after.trim_ascii_start();
        match rest.first() {
            None => return Some((node?, None)),
            Some(b',') => return Some((node?, Some(&rest[1..]))),
            Some(b';') => rest = rest[1..].trim_ascii_start(),
            Some(_) => return None,
        }
    }
}

/// A token or a quoted string (RFC 9110 §5.6.4), without its quotes, and what follows it.
fn value(text: &[u8]) -> Option<(String, &[u8])> {
    let Some(mut quoted) = text.strip_prefix(b"\"") else {
        let end = text
            .iter()
            .position(|byte| !is_token(*byte))
            .unwrap_or(text.len());
        let (token, after) = text.split_at(end);
        let token = std::str::from_utf8(token).ok()?;
        return (!token.is_empty()).then(|| (token.to_owned(), after));
    };
    let mut out = String::new();
    loop {
        let (byte, after) = quoted.split_first()?;
        let (byte, after) = match byte {
            b'"' => return Some((out, after)),
            b'\\' => after.split_first()?,
            _ => (byte, after),
        };
        let printable = matches!(byte, b' '..=b'~' | b'\t');
        printable.then(|| out.push(char::from(*byte)))?;
        quoted = after;
    }
}

/// tchar of RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xff(line: &str) -> Result<Vec<String>, ForwardedError> {
        let hops = x_forwarded_for([line.as_bytes()].into_iter())?.unwrap();
        Ok(hops.iter().map(IpAddr::to_string).collect())
    }

    fn rfc(line: &str) -> Result<Vec<String>, ForwardedError> {
        let hops = forwarded([line.as_bytes()].into_iter())?.unwrap();
        Ok(hops.iter().map(IpAddr::to_string).collect())
    }

    #[test]
    fn chains_are_read() {
        assert_eq!(xff("203.0.113.9").unwrap(), ["203.0.113.9"]);
        assert_eq!(
            xff(
                " 203.0.113.9:1234 ,\t[2001:db8::1]:4711,2001:DB8::2,[2001:db8::3], ::ffff:10.0.0.1"
            )
            .unwrap(),
            [
                "203.0.113.9",
                "2001:db8::1",
                "2001:db8::2",
                "2001:db8::3",
                "10.0.0.1"
            ]
        );
        assert_eq!(x_forwarded_for(std::iter::empty()), Ok(None));
    }

    #[test]
    fn p4_malformed_chains_fail_closed() {
        for (line, index) in [
            ("garbage", 0),
            ("", 0),
            ("1.2.3.4:80:9", 0),
            ("203.0.113.9,", 1),
            (",203.0.113.9", 0),
            ("203.0.113.9 10.0.0.1", 0),
            ("1.2.3", 0),
            ("01.2.3.4", 0),
            ("1.2.3.4:", 0),
            ("1.2.3.4:99999", 0),
            ("[::1", 0),
            ("[::1]x", 0),
            ("[::1]:", 0),
            ("[1.2.3.4]", 0),
            ("fe80::1%eth0", 0),
            ("unknown", 0),
            ("10.0.0.1, \u{661}.2.3.4", 1),
        ] {
            assert_eq!(xff(line), Err(ForwardedError::BadEntry { index }), "{line}");
        }
    }

    #[test]
    fn p4_two_hundred_hops_are_too_many() {
        let line = vec!["10.0.0.1"; 200].join(",");
        let limit = FORWARDED_HOPS_MAX;
        assert_eq!(xff(&line), Err(ForwardedError::TooManyHops { limit }));
        assert!(xff(&vec!["10.0.0.1"; limit].join(",")).is_ok());
        let long = "1".repeat(INGRESS_HEADER_BYTES_MAX + 1);
        assert!(matches!(xff(&long), Err(ForwardedError::TooLong { .. })));
    }

    #[test]
    fn p4_a_repeated_header_is_refused() {
        let lines = [&b"203.0.113.9"[..], b"203.0.113.9"];
        assert_eq!(
            x_forwarded_for(lines.into_iter()),
            Err(ForwardedError::Repeated)
        );
        assert_eq!(forwarded(lines.into_iter()), Err(ForwardedError::Repeated));
        assert_eq!(x_real_ip(lines.into_iter()), Err(ForwardedError::Repeated));
    }

    #[test]
    fn rfc_7239_examples() {
        assert_eq!(
            rfc(r#"For="[2001:db8:cafe::17]:4711""#).unwrap(),
            ["2001:db8:cafe::17"]
        );
        assert_eq!(
            rfc("for=192.0.2.60;proto=http;by=203.0.113.43").unwrap(),
            ["192.0.2.60"]
        );
        assert_eq!(
            rfc("for=192.0.2.43, for=198.51.100.17").unwrap(),
            ["192.0.2.43", "198.51.100.17"]
        );
        assert_eq!(
            rfc(r#"for=192.0.2.43,for="[2001:db8:cafe::17]";by="a,\"b;";host=x"#).unwrap(),
            ["192.0.2.43", "2001:db8:cafe::17"]
        );
        assert_eq!(
            rfc(r#"proto=https; for="192.0.2.1:99""#).unwrap(),
            ["192.0.2.1"]
        );
    }

    #[test]
    fn rfc_7239_malformed_fails_closed() {
        for line in [
            "",
            "for",
            "for=",
            "for =1.2.3.4",
            "for= 1.2.3.4",
            "for=unknown",
            "for=_hidden",
            "for=[2001:db8::1]",
            "for=2001:db8::1",
            r#"for="2001:db8::1""#,
            r#"for="1.2.3.4"#,
            "for=1.2.3.4;for=1.2.3.4",
            "proto=https",
            "for=1.2.3.4,",
            "for=1.2.3.4,,for=1.2.3.4",
            "for=1.2.3.4;",
            "=1.2.3.4",
            "for=1.2.3.4 for=1.2.3.4",
            "for=\"1.2.3.4\\",
        ] {
            assert!(
                matches!(rfc(line), Err(ForwardedError::BadEntry { .. })),
                "{line}"
            );
        }
    }
}
