//! Address ranges, with IPv4-mapped IPv6 folded into IPv4 everywhere (invariant P8).
//!
//! In: `gateway.trustedProxies` and the like, as text. Out: a `Cidr` that answers `contains`.
//! Attacker controls: nothing; the operator writes these. Bounds: one address and one length.
//! Errors: `CidrError`; a range that means something else than it says is refused, with the text that would be right.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Tailscale's IPv6 range; its IPv4 range is the shared address space of RFC 6598.
const TAILNET_V6: u128 = 0xfd7a_115c_a1e0 << 80;

/// Whether both a tailnet and nothing else uses this address.
pub fn is_tailnet(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => u32::from(v4) >> 22 == u32::from(Ipv4Addr::new(100, 64, 0, 0)) >> 22,
        IpAddr::V6(v6) => u128::from(v6) >> 80 == TAILNET_V6 >> 80,
    }
}

/// Whether only a private network can use this address (RFC 1918, 3927, 4193, 4291): neither public nor this host.
pub fn is_private(address: IpAddr) -> bool {
    is_tailnet(address)
        || match address.to_canonical() {
            IpAddr::V4(v4) => v4.is_private() || v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local(),
        }
}

/// A range of addresses. A mapped range is kept as the IPv4 range that it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cidr {
    network: IpAddr,
    prefix: u8,
}

/// Why a range is not one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CidrError {
    Address,
    PrefixLength,
    /// The address has bits beyond the prefix: either the address or the length is a slip.
    HostBits {
        meant: Cidr,
    },
}

impl Cidr {
    pub fn parse(text: &str) -> Result<Self, CidrError> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| CidrError::Address)?;
        let width = width_of(address);
        let prefix = match length {
            None => width,
            Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().map_err(|_| CidrError::PrefixLength)?
            }
            Some(_) => return Err(CidrError::PrefixLength),
        };
        if prefix > width {
            return Err(CidrError::PrefixLength);
        }
        let network = address.to_canonical();
        let prefix = match (address, network) {
            // A mapped prefix counts the 96 mapped bits; a shorter one would reach beyond the mapped addresses.
            (IpAddr::V6(_), IpAddr::V4(_)) => {
                prefix.checked_sub(96).ok_or(CidrError::PrefixLength)?
            }
            _ => prefix,
        };
        let masked = mask(network, prefix);
        if masked != network {
            let meant = Self {
                network: masked,
                prefix,
            };
            return Err(CidrError::HostBits { meant });
        }
        Ok(Self { network, prefix })
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        width_of(address) == width_of(self.network) && mask(address, self.prefix) == self.network
    }

    /// Whether it leaves no address of its family out.
    pub fn is_everything(&self) -> bool {
        self.prefix == 0
    }

    /// Whether any of the ranges holds the address.
    pub fn any_contains(ranges: &[Self], address: IpAddr) -> bool {
        ranges.iter().any(|range| range.contains(address))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl fmt::Display for CidrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address => f.write_str("not an address or an address range"),
            Self::PrefixLength => f.write_str("the prefix length does not fit the address"),
            Self::HostBits { meant } => {
                write!(f, "bits are set beyond the prefix; the range is {meant}")
            }
        }
    }
}

fn width_of(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn mask(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let keep = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(v4) & keep))
        }
        IpAddr::V6(v6) => {
            let keep = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(v6) & keep))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Cidr {
        Cidr::parse(text).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn p8_mapped_addresses_and_ranges_are_ipv4() {
        for text in ["10.0.0.0/8", "::ffff:10.0.0.0/104"] {
            for address in ["10.1.2.3", "::ffff:10.1.2.3", "::ffff:a01:203"] {
                assert!(range(text).contains(ip(address)), "{text} {address}");
            }
            assert!(!range(text).contains(ip("11.0.0.1")));
            assert!(!range(text).contains(ip("2001:db8::1")));
        }
        assert_eq!(range("::ffff:0:0/96"), range("0.0.0.0/0"));
        assert_eq!(Cidr::parse("::ffff:0:0/95"), Err(CidrError::PrefixLength));
    }

    #[test]
    fn edges_of_ranges() {
        let v6 = range("2001:db8::/33");
        assert!(v6.contains(ip("2001:db8:7fff::1")) && !v6.contains(ip("2001:db8:8000::1")));
        assert!(range("127.0.0.1").contains(ip("127.0.0.1")));
        assert!(!range("127.0.0.1").contains(ip("127.0.0.2")));
        assert!(range("::/0").contains(ip("::1")) && !range("::/0").contains(ip("10.0.0.1")));
    }

    #[test]
    fn slips_are_refused() {
        for bad in [
            "",
            "10.0.0",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/8/8",
            "localhost",
            "010.0.0.1",
            "fe80::1%eth0",
        ] {
            assert!(Cidr::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(
            Cidr::parse("10.0.0.1/8").unwrap_err().to_string(),
            "bits are set beyond the prefix; the range is 10.0.0.0/8"
        );
    }

    #[test]
    fn tailnet_ranges() {
        for yes in [
            "100.64.0.1",
            "100.127.255.255",
            "::ffff:100.64.0.1",
            "fd7a:115c:a1e0::5",
        ] {
            assert!(is_tailnet(ip(yes)), "{yes}");
        }
        for no in [
            "100.63.255.255",
            "100.128.0.0",
            "10.0.0.1",
            "fd7a:115c:a1e1::",
        ] {
            assert!(!is_tailnet(ip(no)), "{no}");
        }
    }
}
