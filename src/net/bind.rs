//! Listening sockets: who can reach them, and how they are made.

use std::fmt;
use std::fs::{self, Permissions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::net::sockopt::set_ipv6_v6only;
use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixSocket, UnixStream};

use super::port_owner::{PortOwner, port_owner};
use crate::ingress::cidr;
use crate::machine;

/// Connections that the kernel completes before they are accepted.
const BACKLOG: u32 = 1024;

/// Which doors a Gateway opens beside its admin socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Doors {
    pub bind: Bind,
    /// Of the main listener; 0 takes a free one.
    pub port: u16,
    /// The loopback port that a managed Tailscale Serve or Funnel forwards to.
    pub serve_port: Option<u16>,
    pub proxy: Option<ProxyDoor>,
}

impl Doors {
    pub fn loopback(port: u16) -> Self {
        Self {
            bind: Bind::Loopback,
            port,
            serve_port: None,
            proxy: None,
        }
    }
}

/// Where the main listener listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bind {
    /// 127.0.0.1 and ::1.
    Loopback,
    /// 0.0.0.0 and ::, each a socket of its own.
    Lan,
    /// This host's addresses in the tailnet's ranges, and no other.
    Tailnet,
    Custom(IpAddr),
    /// Loopback if this host has it, else `Lan`.
    Auto,
}

impl Bind {
    /// Whether nothing but this host can ever reach it.
    pub fn is_loopback(self) -> bool {
        match self {
            Self::Loopback => true,
            Self::Custom(address) => address.is_loopback(),
            Self::Lan | Self::Tailnet | Self::Auto => false,
        }
    }
}

/// The reverse proxy's own listener.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ProxyDoor {
    Tcp(SocketAddr),
    Unix { path: PathBuf, mode: u32 },
}

/// A listening socket could not be made.
#[derive(Debug)]
pub enum BindError {
    /// The port is taken; `owner` if this user may see who holds it.
    Taken {
        addr: SocketAddr,
        owner: Option<PortOwner>,
        /// What the operator would change.
        setting: &'static str,
    },
    /// A program answers on the socket.
    SocketTaken { path: PathBuf },
    /// Something stands in the socket's place, or around it, that must not.
    SocketPlace { path: PathBuf, why: &'static str },
    /// `bind: tailnet`, and no interface has a tailnet's address.
    NoTailnet,
    Io {
        what: String,
        error: io::Error,
        setting: &'static str,
    },
}

impl BindError {
    /// Whether another try may succeed without a change of config or permissions (decision 17).
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Taken { .. } | Self::SocketTaken { .. } | Self::NoTailnet => true,
            Self::SocketPlace { .. } => false,
            Self::Io { error, .. } => !matches!(
                error.kind(),
                io::ErrorKind::PermissionDenied
                    | io::ErrorKind::InvalidInput
                    | io::ErrorKind::NotFound
            ),
        }
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Taken {
                addr,
                owner,
                setting,
            } => {
                write!(f, "port {} is taken by ", addr.port())?;
                match owner {
                    Some(owner) => write!(f, "{} (pid {})", owner.command, owner.pid)?,
                    None => f.write_str("another user's program")?,
                }
                write!(f, "; choose another with {setting}")
            }
            Self::SocketTaken { path } => write!(
                f,
                "another gateway already serves the socket {}",
                path.display()
            ),
            Self::SocketPlace { path, why } => {
                write!(f, "cannot listen on the socket {}: {why}", path.display())
            }
            Self::NoTailnet => f.write_str(
                "gateway.bind is \"tailnet\" and no interface has a tailnet's address (100.64.0.0/10 or \
                 fd7a:115c:a1e0::/48); start tailscaled, or set gateway.bind: \"loopback\"",
            ),
            Self::Io {
                what,
                error,
                setting,
            } => write!(f, "cannot listen on {what}: {error}; see {setting}"),
        }
    }
}

impl std::error::Error for BindError {}

/// Opens the main listener.
pub fn main(bind: Bind, port: u16) -> Result<Vec<TcpListener>, BindError> {
    match bind {
        Bind::Loopback => all(
            &[Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            port,
        ),
        Bind::Lan => all(
            &[Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            port,
        ),
        Bind::Custom(address) => all(&[address], port).map_err(|error| match error {
            BindError::Io { what, error, .. } if is_absent(&error) => BindError::Io {
                what,
                error,
                setting: "gateway.customBindHost",
            },
            error => error,
        }),
        Bind::Tailnet => {
            let own = machine::own_addresses().unwrap_or_default();
            let own: Vec<IpAddr> = own.into_iter().filter(|it| cidr::is_tailnet(*it)).collect();
            all(&own, port)
        }
        Bind::Auto => match main(Bind::Loopback, port) {
            Err(BindError::Io { error, .. }) if is_absent(&error) => main(Bind::Lan, port),
            opened => opened,
        },
    }
}

/// Listens on each address, all on one port.
///
/// A second address is left out only when this host does not have it (no IPv6, most often); a port that is taken on
/// any of them is an error, because a stranger on the other half would be talked to by mistake.
fn all(addresses: &[IpAddr], port: u16) -> Result<Vec<TcpListener>, BindError> {
    let (first, others) = addresses.split_first().ok_or(BindError::NoTailnet)?;
    let first = tcp(SocketAddr::new(*first, port), "--port")?;
    // Port 0 is settled by the first.
    let port = first.local_addr().map_or(port, |it| it.port());
    let mut listeners = vec![first];
    for address in others {
        match tcp(SocketAddr::new(*address, port), "--port") {
            Ok(listener) => listeners.push(listener),
            Err(BindError::Io { error, .. }) if is_absent(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(listeners)
}

/// `EAFNOSUPPORT`: the kernel was built or booted without IPv6.
const AFNOSUPPORT: i32 = 97;

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported
    ) || error.raw_os_error() == Some(AFNOSUPPORT)
}

/// Listens on one address. `setting` is what the operator would change.
pub fn tcp(addr: SocketAddr, setting: &'static str) -> Result<TcpListener, BindError> {
    let listen = || {
        let socket = match addr {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => {
                let socket = TcpSocket::new_v6()?;
                // Whatever the system's default: IPv4 has its own socket, or is not meant.
                set_ipv6_v6only(&socket, true)?;
                socket
            }
        };
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => BindError::Taken {
            addr,
            owner: port_owner(addr.port()),
            setting,
        },
        _ => BindError::Io {
            what: addr.to_string(),
            error,
            setting,
        },
    })
}

/// Listens on a Unix socket with this mode.
///
/// A socket file that nobody answers on is what a killed Gateway left, and is replaced; anything else is left alone.
pub async fn unix(
    path: &Path,
    mode: u32,
    setting: &'static str,
) -> Result<UnixListener, BindError> {
    let fault = |error| BindError::Io {
        what: path.display().to_string(),
        error,
        setting,
    };
    let place = |why| BindError::SocketPlace {
        path: path.to_owned(),
        why,
    };
    let around = fs::metadata(path.parent().unwrap_or(path)).map_err(fault)?;
    let us = rustix::process::geteuid().as_raw();
    if around.mode() & 0o022 != 0 || (around.uid() != us && around.uid() != 0) {
        return Err(place(
            "others than this user and root may put another one into its directory",
        ));
    }
    match UnixStream::connect(path).await {
        // Only what nobody answers on is a dead one's.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
            ) => {}
        Err(_) if !fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) => {}
        _ => {
            return Err(BindError::SocketTaken {
                path: path.to_owned(),
            });
        }
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(place("what stands there is not a socket"));
        }
        Ok(_) => fs::remove_file(path).map_err(fault)?,
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fault(error)),
        Err(_) => {}
    }
    let listen = || {
        let socket = UnixSocket::new_stream()?;
        socket.bind(path)?;
        // Nobody can connect before `listen`, so the file is never more open than it should be.
        fs::set_permissions(path, Permissions::from_mode(mode))?;
        socket.listen(BACKLOG)
    };
    listen().map_err(fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_names_its_owner_and_the_setting() {
        let held = main(Bind::Loopback, 0).unwrap();
        let port = held[0].local_addr().unwrap().port();
        let refused = main(Bind::Loopback, port).unwrap_err();
        assert!(refused.is_temporary());
        let refused = refused.to_string();
        assert!(
            refused.contains(&format!("pid {}", std::process::id())),
            "{refused}"
        );
        assert!(refused.contains("--port"), "{refused}");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let refused = tcp(address, "gateway.proxy.port").unwrap_err().to_string();
        assert!(refused.contains("gateway.proxy.port"), "{refused}");
    }

    #[tokio::test]
    async fn the_admin_socket_is_private_and_a_dead_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let mode = || fs::metadata(&path).unwrap().mode() & 0o777;
        let first = unix(&path, 0o600, "").await.unwrap();
        assert_eq!(mode(), 0o600);
        let again = unix(&path, 0o600, "").await.unwrap_err();
        assert!(matches!(again, BindError::SocketTaken { .. }) && again.is_temporary());
        drop(first);
        assert!(unix(&path, 0o660, "").await.is_ok());
        assert_eq!(mode(), 0o660);
    }

    #[tokio::test]
    async fn a_file_in_the_sockets_place_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes");
        fs::write(&path, "mine").unwrap();
        let refused = unix(&path, 0o600, "").await.unwrap_err();
        assert!(matches!(refused, BindError::SocketPlace { .. }) && !refused.is_temporary());
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        fs::remove_file(&path).unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        let refused = unix(&path, 0o600, "").await.unwrap_err();
        assert!(
            refused.to_string().contains("others than this user"),
            "{refused}"
        );
    }

    #[tokio::test]
    async fn an_address_that_this_host_lacks_names_its_setting() {
        // TEST-NET-1 (RFC 5737) is nobody's.
        let refused = main(Bind::Custom("192.0.2.1".parse().unwrap()), 0).unwrap_err();
        let refused = refused.to_string();
        assert!(refused.ends_with("see gateway.customBindHost"), "{refused}");
    }

    #[test]
    fn only_loopback_is_loopback() {
        let custom = |text: &str| Bind::Custom(text.parse().unwrap());
        for bind in [Bind::Loopback, custom("127.0.0.9"), custom("::1")] {
            assert!(bind.is_loopback(), "{bind:?}");
        }
        for bind in [Bind::Lan, Bind::Tailnet, Bind::Auto, custom("0.0.0.0")] {
            assert!(!bind.is_loopback(), "{bind:?}");
        }
    }
}
