//! A build without the feature `tls`: the same names, and nothing that could be made of them.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::path::PathBuf;

use tokio::net::TcpStream;

use super::Fingerprint;

pub type ServerStream = TcpStream;

/// Where the certificate and its key stand.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    Files { certificate: PathBuf, key: PathBuf },
    SelfSigned(PathBuf),
}

/// This build has no TLS.
#[derive(Debug)]
pub struct TlsError;

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "gateway.tls.enabled is true and this build has no TLS; use one with the feature `tls`, or set it to false",
        )
    }
}

impl std::error::Error for TlsError {}

pub struct ServerTls(Infallible);

impl ServerTls {
    pub fn open(_: Source) -> Result<Self, TlsError> {
        Err(TlsError)
    }

    pub fn fingerprint(&self) -> Fingerprint {
        match self.0 {}
    }

    pub async fn accept(&self, _: TcpStream) -> io::Result<ServerStream> {
        match self.0 {}
    }
}

/// No certificate is read, so none is pinned.
pub fn fingerprint_of(_: &Source) -> Option<Fingerprint> {
    None
}
