//! The addresses of this host's own interfaces, as the kernel lists them in `/proc/self/net`.
//!
//! Read there because the tables need no socket, no privilege and no crate; where they are missing (another system, a
//! `/proc` that is closed to us) there is no list, and whoever needs one refuses.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::base::limits;

/// Every address of every interface; `None` if they cannot be listed.
pub fn own_addresses() -> Option<Vec<IpAddr>> {
    let v4 = fs::read_to_string("/proc/self/net/fib_trie").ok()?;
    let v6 = match fs::read_to_string("/proc/self/net/if_inet6") {
        Ok(table) => table,
        // A kernel without IPv6 has no such table.
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(_) => return None,
    };
    let own: BTreeSet<IpAddr> = ipv4_of(&v4).chain(ipv6_of(&v6)).collect();
    // Even a host without a network has its loopback device listed: an empty table is one that we cannot read.
    (!own.is_empty()).then(|| own.into_iter().collect())
}

/// The same list, read anew when it is older than `limits::OWN_ADDRESSES_AGE`.
#[derive(Default)]
pub struct OwnAddresses(Mutex<Option<Reading>>);

type Reading = (Instant, Option<Arc<[IpAddr]>>);

impl OwnAddresses {
    pub fn list(&self) -> Option<Arc<[IpAddr]>> {
        // A reading is replaced whole, so a panic elsewhere does not spoil it.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some((at, list)) if at.elapsed() < limits::OWN_ADDRESSES_AGE => list.clone(),
            _ => {
                let list = own_addresses().map(Arc::from);
                *kept = Some((Instant::now(), list.clone()));
                list
            }
        }
    }
}

/// `fib_trie`: a leaf's address stands on a line `|-- a.b.c.d`, what it is for on the lines below.
fn ipv4_of(table: &str) -> impl Iterator<Item = IpAddr> {
    let mut leaf: Option<Ipv4Addr> = None;
    table.lines().filter_map(move |line| {
        let line = line.trim_start();
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.trim_end().parse().ok();
        }
        leaf.filter(|_| line.starts_with("/32 host LOCAL"))
            .map(IpAddr::V4)
    })
}

/// `if_inet6`: a line for each address, in 32 hexadecimal digits, then the interface.
fn ipv6_of(table: &str) -> impl Iterator<Item = IpAddr> {
    table.lines().filter_map(|line| {
        let digits = line.split_whitespace().next().filter(|it| it.len() == 32)?;
        let bits = u128::from_str_radix(digits, 16).ok()?;
        Some(IpAddr::V6(Ipv6Addr::from_bits(bits)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     +-- 127.0.0.0/8 2 0 2\n        |-- 127.0.0.0\n           /8 host LOCAL\n\
                    \x20       |-- 127.0.0.1\n           /32 host LOCAL\n     |-- 10.1.2.0\n        /24 link UNICAST\n\
                    \x20    |-- 10.1.2.3\n        /32 host LOCAL\n     |-- 10.1.2.255\n        /32 link BROADCAST\n";
        let v4: Vec<String> = ipv4_of(trie).map(|it| it.to_string()).collect();
        assert_eq!(v4, ["127.0.0.1", "10.1.2.3"]);
        let table = "fd7a115ca1e000000000000000000001 04 40 00 82 tailscale0\n\
                     00000000000000000000000000000001 01 80 10 80 lo\nnonsense\n";
        let v6: Vec<String> = ipv6_of(table).map(|it| it.to_string()).collect();
        assert_eq!(v6, ["fd7a:115c:a1e0::1", "::1"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_host_has_addresses() {
        let own = own_addresses().unwrap();
        assert!(own.iter().any(IpAddr::is_loopback), "{own:?}");
        assert_eq!(OwnAddresses::default().list().as_deref(), Some(&own[..]));
    }
}
