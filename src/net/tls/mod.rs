//! TLS 1.2 and 1.3 on a listening socket, with rustls.
//!
//! In: a certificate and its key, as files or made here once; accepted sockets. Out: the same sockets, encrypted.
//! Attacker controls: every byte of the handshake, and when it ends. Bounds: `limits::HANDSHAKE_TIMEOUT`, and
//! `PEM_BYTES_MAX` for files. Errors: [`TlsError`] at start; an `io::Error` for a handshake.
//!
//! The files are looked at again before a handshake, at most every `RELOAD_INTERVAL`. A new pair is used from then on;
//! connections that stand go on. A pair that does not fit is said once, and the one before stays.

mod self_signed;

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::Fingerprint;
use crate::base::limits;
use crate::machine::files::{self, FileError};

pub type ServerStream = tokio_rustls::server::TlsStream<TcpStream>;

/// A chain of a few certificates has some 10 KiB.
const PEM_BYTES_MAX: u64 = 256 * 1024;
/// How long a replaced certificate may go unseen.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);
/// What follows the handshake. A client that wants something else is turned away before it sends it.
const ALPN: &[u8] = b"http/1.1";

/// Where the certificate and its key stand.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    Files {
        certificate: PathBuf,
        key: PathBuf,
    },
    /// One private file for both, made if it is not there.
    SelfSigned(PathBuf),
}

/// Why there is no certificate to serve. None is cured by a restart.
#[derive(Debug)]
pub enum TlsError {
    File(FileError),
    Missing {
        setting: &'static str,
        path: PathBuf,
    },
    Pem {
        path: PathBuf,
        what: &'static str,
    },
    /// The key does not belong to the certificate, or one of them is of a kind that is not served.
    Pair {
        path: PathBuf,
        why: rustls::Error,
    },
    Random,
    Setup(rustls::Error),
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(error) => error.fmt(f),
            Self::Missing { setting, path } => {
                write!(f, "{setting}: there is no {}", path.display())
            }
            Self::Pem { path, what } => write!(f, "{} holds no {what} in PEM", path.display()),
            Self::Pair { path, why } => write!(
                f,
                "the certificate {} cannot be served with its key: {why}",
                path.display()
            ),
            Self::Random => f.write_str("the system has no randomness for a key"),
            Self::Setup(error) => write!(f, "TLS cannot be set up: {error}"),
        }
    }
}

impl std::error::Error for TlsError {}

/// The only cryptography: ring.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// TLS for one listener, or several that share a certificate.
pub struct ServerTls {
    acceptor: TlsAcceptor,
    certificates: Arc<Certificates>,
}

impl ServerTls {
    /// Reads the certificate, or makes it where it is our own.
    pub fn open(source: Source) -> Result<Self, TlsError> {
        if let Source::SelfSigned(path) = &source
            && files::open(path).map_err(TlsError::File)?.is_none()
        {
            let made = self_signed::make().ok_or(TlsError::Random)?;
            files::replace(path, made.as_bytes()).map_err(TlsError::File)?;
        }
        let stamp = Stamp::of(&source);
        let pair = load(&source)?;
        let certificates = Arc::new(Certificates {
            source,
            state: Mutex::new(State {
                pair,
                stamp,
                checked: Instant::now(),
            }),
        });
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&certificates) as _);
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Every connection shows the certificate of its own time, and nothing of past ones is kept.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            certificates,
        })
    }

    /// Of the certificate that the next connection is shown.
    pub fn fingerprint(&self) -> Fingerprint {
        fingerprint(&self.certificates.current())
    }

    /// The handshake, within `limits::HANDSHAKE_TIMEOUT`.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<ServerStream> {
        tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, self.acceptor.accept(stream))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

struct Certificates {
    source: Source,
    state: Mutex<State>,
}

struct State {
    pair: Arc<CertifiedKey>,
    /// Of the files when they were last read, whether they could be used or not.
    stamp: Stamp,
    checked: Instant,
}

impl Certificates {
    fn current(&self) -> Arc<CertifiedKey> {
        let mut state = self.state();
        if state.checked.elapsed() >= RELOAD_INTERVAL {
            state.checked = Instant::now();
            self.reload(&mut state);
        }
        Arc::clone(&state.pair)
    }

    /// The stamp is taken before the files are read: what changes in between is seen the next time.
    fn reload(&self, state: &mut State) {
        let stamp = Stamp::of(&self.source);
        if stamp == state.stamp {
            return;
        }
        state.stamp = stamp;
        match load(&self.source) {
            Ok(pair) => {
                tracing::info!(fingerprint = %fingerprint(&pair), "a new TLS certificate is in use");
                state.pair = pair;
            }
            Err(error) => {
                tracing::warn!(%error, "the new TLS certificate is not used; the one before stays");
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A pair is whole whenever it is in place, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// rustls asks for it; keys are not shown.
impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

/// By what one sees that a file was written or replaced: device, inode, size, and both times to the nanosecond.
#[derive(PartialEq, Eq)]
struct Stamp(Vec<Option<[i128; 5]>>);

impl Stamp {
    fn of(source: &Source) -> Self {
        let paths: &[&Path] = match source {
            Source::Files { certificate, key } => &[certificate, key],
            Source::SelfSigned(path) => &[path],
        };
        let facts = |path: &&Path| {
            let facts = std::fs::symlink_metadata(path).ok()?;
            let nanos = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
            Some([
                facts.dev().into(),
                facts.ino().into(),
                facts.size().into(),
                nanos(facts.mtime(), facts.mtime_nsec()),
                nanos(facts.ctime(), facts.ctime_nsec()),
            ])
        };
        Self(paths.iter().map(facts).collect())
    }
}

fn fingerprint(pair: &CertifiedKey) -> Fingerprint {
    Fingerprint::of(pair.cert.first().map_or(&[], |leaf| leaf.as_ref()))
}

/// The fingerprint of a certificate on this machine, for clients here; `None` if there is none that can be read.
pub fn fingerprint_of(source: &Source) -> Option<Fingerprint> {
    let (chain, _) = chain(source).ok()?;
    chain.first().map(|leaf| Fingerprint::of(leaf))
}

/// The chain, and the text that it stood in.
fn chain(
    source: &Source,
) -> Result<(Vec<CertificateDer<'static>>, zeroize::Zeroizing<Vec<u8>>), TlsError> {
    let (path, read) = match source {
        Source::Files { certificate, .. } => {
            (certificate, files::read_public(certificate, PEM_BYTES_MAX))
        }
        Source::SelfSigned(path) => (path, files::read(path, PEM_BYTES_MAX)),
    };
    let text = found(read, "gateway.tls.certPath", path)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .unwrap_or_default();
    if chain.is_empty() {
        return Err(TlsError::Pem {
            path: path.clone(),
            what: "certificate",
        });
    }
    Ok((chain, text))
}

/// Both files, and proof that they belong together.
fn load(source: &Source) -> Result<Arc<CertifiedKey>, TlsError> {
    let (chain, text) = chain(source)?;
    let (path, text) = match source {
        Source::Files { key, .. } => {
            let read = files::read(key, PEM_BYTES_MAX);
            (key, found(read, "gateway.tls.keyPath", key)?)
        }
        Source::SelfSigned(path) => (path, text),
    };
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| TlsError::Pem {
        path: path.clone(),
        what: "private key",
    })?;
    let pair = CertifiedKey::from_der(chain, key, &provider()).map_err(|why| TlsError::Pair {
        path: path.clone(),
        why,
    })?;
    Ok(Arc::new(pair))
}

fn found(
    read: Result<Option<Vec<u8>>, FileError>,
    setting: &'static str,
    path: &Path,
) -> Result<zeroize::Zeroizing<Vec<u8>>, TlsError> {
    let text = read.map_err(TlsError::File)?;
    text.map(zeroize::Zeroizing::new)
        .ok_or_else(|| TlsError::Missing {
            setting,
            path: path.to_owned(),
        })
}

#[cfg(test)]
mod tests;
