//! Listening sockets: the loopback TCP pair and the private Unix socket.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, UnixListener, UnixStream};

use super::port_owner::{PortOwner, port_owner};

/// A listening socket could not be made.
#[derive(Debug)]
pub enum BindError {
    /// The port is taken; `owner` if this user may see who holds it.
    Taken {
        addr: SocketAddr,
        owner: Option<PortOwner>,
    },
    /// Another Gateway answers on the admin socket.
    AdminTaken {
        path: PathBuf,
    },
    Io {
        what: String,
        error: io::Error,
    },
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Taken {
                addr,
                owner: Some(owner),
            } => write!(
                f,
                "port {} is taken by {} (pid {}); choose another with --port",
                addr.port(),
                owner.command,
                owner.pid
            ),
            Self::Taken { addr, owner: None } => {
                write!(
                    f,
                    "port {} is taken by another user's program; choose another with --port",
                    addr.port()
                )
            }
            Self::AdminTaken { path } => {
                write!(
                    f,
                    "another gateway already serves the admin socket {}",
                    path.display()
                )
            }
            Self::Io { what, error } => write!(f, "cannot listen on {what}: {error}"),
        }
    }
}

impl std::error::Error for BindError {}

/// Listens on 127.0.0.1 and, where the machine has it, on ::1, both on one port.
///
/// Port 0 takes a free one. The IPv6 half is left out only when the machine has no IPv6 loopback; a port that is
/// taken on either half is an error, because a stranger on the other half would be talked to by mistake.
pub async fn loopback(port: u16) -> Result<Vec<TcpListener>, BindError> {
    let first = tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)).await?;
    let port = first
        .local_addr()
        .map_err(|error| BindError::Io {
            what: "127.0.0.1".to_owned(),
            error,
        })?
        .port();
    let mut listeners = vec![first];
    match tcp(SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port)).await {
        Ok(second) => listeners.push(second),
        Err(BindError::Io { error, .. })
            if matches!(
                error.kind(),
                io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported
            ) => {}
        Err(BindError::Io { error, .. }) if error.raw_os_error() == Some(AFNOSUPPORT) => {}
        Err(error) => return Err(error),
    }
    Ok(listeners)
}

/// `EAFNOSUPPORT`: the kernel was built or booted without IPv6.
const AFNOSUPPORT: i32 = 97;

async fn tcp(addr: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(addr).await.map_err(|error| {
        if error.kind() == io::ErrorKind::AddrInUse {
            BindError::Taken {
                addr,
                owner: port_owner(addr.port()),
            }
        } else {
            BindError::Io {
                what: addr.to_string(),
                error,
            }
        }
    })
}

/// Listens on a Unix socket that only this user can open. Its directory must already be private.
///
/// A socket file that nobody answers on is what a killed Gateway left, and is replaced.
pub async fn admin(path: &Path) -> Result<UnixListener, BindError> {
    let fault = |error| BindError::Io {
        what: path.display().to_string(),
        error,
    };
    if UnixStream::connect(path).await.is_ok() {
        return Err(BindError::AdminTaken {
            path: path.to_owned(),
        });
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fault(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(fault)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fault)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_names_its_owner_and_the_flag() {
        let held = loopback(0).await.unwrap();
        let port = held[0].local_addr().unwrap().port();
        let refused = loopback(port).await.unwrap_err().to_string();
        assert!(
            refused.contains(&format!("pid {}", std::process::id())),
            "{refused}"
        );
        assert!(refused.contains("--port"), "{refused}");
    }

    #[tokio::test]
    async fn the_admin_socket_is_private_and_a_dead_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let first = admin(&path).await.unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(matches!(
            admin(&path).await,
            Err(BindError::AdminTaken { .. })
        ));
        drop(first);
        assert!(admin(&path).await.is_ok());
    }
}
