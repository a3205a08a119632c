//! TLS towards a Gateway: the system's trust, or one pinned certificate in its place.
//!
//! In: a connected socket and the address it was made for. Out: the encrypted stream, or why there is none, before
//! anything of ours but a greeting was sent. Attacker controls: the certificate and every byte of the handshake.
//! Bounds: those of rustls; the caller sets the time. Errors: [`DialError`].

use std::io;
use std::sync::{Arc, OnceLock};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::dial::{DialError, WsUrl};
use crate::net::Fingerprint;
use crate::net::tls::provider;

/// The handshake. Nothing is resumed, so each connection's certificate is looked at.
pub(super) async fn connect(
    stream: TcpStream,
    url: &WsUrl,
) -> Result<TlsStream<TcpStream>, DialError> {
    let failed = |error: Error| DialError::Tls {
        why: error.to_string(),
    };
    let name = ServerName::try_from(url.host.clone()).map_err(|_| DialError::Url {
        why: "its host is no name that a certificate could have",
    })?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(failed)?;
    let pinned = url.pin.map(|pin| {
        Arc::new(Pinned {
            pin,
            got: OnceLock::new(),
            provider: provider(),
        })
    });
    let mut config = match &pinned {
        Some(pinned) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(pinned) as _)
            .with_no_client_auth(),
        None => builder
            .with_root_certificates(roots().await?)
            .with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let connected = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await;
    connected.map_err(|error| why(error, pinned.as_deref()))
}

fn why(error: io::Error, pinned: Option<&Pinned>) -> DialError {
    if let Some(pinned) = pinned
        && let Some(got) = pinned.got.get()
    {
        return DialError::Pin {
            expected: pinned.pin,
            got: *got,
        };
    }
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(Error::InvalidCertificate(refused)) => DialError::Certificate {
            why: refused.to_string(),
        },
        Some(error) => DialError::Tls {
            why: error.to_string(),
        },
        None => DialError::Handshake(error),
    }
}

/// What this machine trusts; `SSL_CERT_FILE` and `SSL_CERT_DIR` say otherwise where they are set.
async fn roots() -> Result<RootCertStore, DialError> {
    let loaded = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
    let mut roots = RootCertStore::empty();
    if let Ok(loaded) = loaded {
        roots.add_parsable_certificates(loaded.certs);
    }
    if roots.is_empty() {
        return Err(DialError::Certificate {
            why: "this machine has no trusted roots".to_owned(),
        });
    }
    Ok(roots)
}

/// Accepts one certificate, whoever signed it and whatever its dates and names are. Whoever shows it must still prove that
/// they hold its key.
#[derive(Debug)]
struct Pinned {
    pin: Fingerprint,
    /// What was shown instead.
    got: OnceLock<Fingerprint>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let got = Fingerprint::of(leaf);
        if got == self.pin {
            return Ok(ServerCertVerified::assertion());
        }
        let _ = self.got.set(got);
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, leaf, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::server::{ClientHello, ResolvesServerCert};
    use rustls::sign::CertifiedKey;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// Shows whatever it was given, as an impostor would.
    #[derive(Debug)]
    struct Shown(Arc<CertifiedKey>);

    impl ResolvesServerCert for Shown {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }
    }

    async fn connects(
        certificate: &rcgen::Certificate,
        key: &rcgen::KeyPair,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> Result<(), DialError> {
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let key = provider().key_provider.load_private_key(key).unwrap();
        let shown = CertifiedKey::new(vec![certificate.der().clone()], key);
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Shown(Arc::new(shown))));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let mut url = WsUrl::new("127.0.0.1", listener.local_addr().unwrap().port());
        url.tls = true;
        url.pin = Some(Fingerprint::of(certificate.der()));
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let _ = TlsAcceptor::from(Arc::new(config)).accept(stream).await;
        });
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, url.port))
            .await
            .unwrap();
        let connected = connect(stream, &url).await;
        server.await.unwrap();
        connected.map(drop)
    }

    #[tokio::test]
    async fn d3_whoever_shows_the_pinned_certificate_must_hold_its_key() {
        let (key, other) = (
            rcgen::KeyPair::generate().unwrap(),
            rcgen::KeyPair::generate().unwrap(),
        );
        let certificate = rcgen::CertificateParams::default()
            .self_signed(&key)
            .unwrap();
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            connects(&certificate, &key, version).await.unwrap();
            let refused = connects(&certificate, &other, version).await.unwrap_err();
            assert!(
                matches!(refused, DialError::Certificate { .. }),
                "{refused}"
            );
        }
    }
}
