use std::fs::{self, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion, version};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsConnector;

use super::*;

/// A certificate and its key from another implementation, as PEM.
fn pair(name: &str) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new([name.to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    (certificate.pem(), key.serialize_pem())
}

struct Files(TempDir);

impl Files {
    fn new((certificate, key): &(String, String)) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.write(certificate, key);
        files
    }

    fn write(&self, certificate: &str, key: &str) {
        fs::write(self.0.path().join("c.pem"), certificate).unwrap();
        files::replace(&self.0.path().join("k.pem"), key.as_bytes()).unwrap();
    }

    fn source(&self) -> Source {
        Source::Files {
            certificate: self.0.path().join("c.pem"),
            key: self.0.path().join("k.pem"),
        }
    }

    fn refusal(&self) -> String {
        ServerTls::open(self.source()).err().unwrap().to_string()
    }
}

/// Chain validation by name against this certificate alone, with one version of the protocol.
async fn connects(
    tls: &Arc<ServerTls>,
    trusted: &CertificateDer<'static>,
    name: &'static str,
    version: &'static SupportedProtocolVersion,
) -> Option<ProtocolVersion> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = Arc::clone(tls);
    let server = tokio::spawn(async move {
        let mut stream = tls.accept(listener.accept().await.unwrap().0).await.ok()?;
        stream.write_all(b"over TLS").await.ok()?;
        stream.shutdown().await.ok()
    });
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from(name).unwrap();
    let mut stream = connector.connect(name, stream).await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "over TLS");
    server.await.unwrap().unwrap();
    stream.get_ref().1.protocol_version()
}

#[tokio::test]
async fn our_own_certificate_is_made_once_and_is_one_for_others_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("own.pem");
    let source = Source::SelfSigned(path.clone());
    assert_eq!(fingerprint_of(&source), None);
    let tls = Arc::new(ServerTls::open(source.clone()).unwrap());
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    assert_eq!(fingerprint_of(&source), Some(tls.fingerprint()));
    let again = ServerTls::open(source.clone()).unwrap();
    assert_eq!(again.fingerprint(), tls.fingerprint());
    let (chain, _) = chain(&source).unwrap();
    for name in ["localhost", "127.0.0.1", "::1"] {
        for (version, named) in [
            (&version::TLS12, ProtocolVersion::TLSv1_2),
            (&version::TLS13, ProtocolVersion::TLSv1_3),
        ] {
            assert_eq!(
                connects(&tls, &chain[0], name, version).await,
                Some(named),
                "{name}"
            );
        }
    }
    let other = connects(&tls, &chain[0], "example.org", &version::TLS13).await;
    assert_eq!(other, None);
}

#[test]
fn a_pair_that_could_not_be_served_safely_is_refused() {
    let (one, other) = (pair("a"), pair("b"));
    let files = Files::new(&one);
    let path = |name: &str| files.0.path().join(name);
    assert!(ServerTls::open(files.source()).is_ok());

    files.write(&one.0, &other.1);
    assert!(files.refusal().contains("cannot be served with its key"));
    files.write(&one.0, &one.0);
    assert!(files.refusal().contains("k.pem holds no private key"));
    files.write(&one.1, &one.1);
    assert!(files.refusal().contains("c.pem holds no certificate"));
    files.write(
        "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n",
        &one.1,
    );
    assert!(files.refusal().contains("cannot be served"));

    files.write(&one.0, &one.1);
    fs::set_permissions(path("k.pem"), Permissions::from_mode(0o640)).unwrap();
    assert!(
        files
            .refusal()
            .contains("k.pem has mode 0640 but must have 0600")
    );
    fs::set_permissions(path("k.pem"), Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(path("c.pem"), Permissions::from_mode(0o666)).unwrap();
    assert!(
        files
            .refusal()
            .contains("c.pem has mode 0666 but must have 0644")
    );
    fs::remove_file(path("c.pem")).unwrap();
    assert!(
        files
            .refusal()
            .contains("gateway.tls.certPath: there is no")
    );
    fs::write(path("real.pem"), &one.0).unwrap();
    symlink(path("real.pem"), path("c.pem")).unwrap();
    assert!(files.refusal().contains("is a symbolic link"));
}

#[test]
fn a_new_pair_is_used_and_a_broken_one_is_not() {
    let (old, new) = (pair("a"), pair("b"));
    let files = Files::new(&old);
    let tls = ServerTls::open(files.source()).unwrap();
    let before = tls.fingerprint();
    let look = || {
        let mut state = tls.certificates.state();
        state.checked = state.checked.checked_sub(RELOAD_INTERVAL).unwrap();
        drop(state);
        tls.fingerprint()
    };
    assert_eq!(look(), before);
    // The certificate first, its key later: between the two the old pair is served.
    fs::write(files.0.path().join("c.pem"), &new.0).unwrap();
    assert_eq!(tls.fingerprint(), before, "too early to look");
    assert_eq!(look(), before);
    fs::write(files.0.path().join("k.pem"), &new.1).unwrap();
    let after = look();
    assert_eq!(Some(after), fingerprint_of(&files.source()));
    assert_ne!(after, before);
    fs::remove_file(files.0.path().join("c.pem")).unwrap();
    assert_eq!(look(), after);
    fs::write(files.0.path().join("c.pem"), "").unwrap();
    assert_eq!(look(), after);
    fs::set_permissions(files.0.path().join("k.pem"), Permissions::from_mode(0o644)).unwrap();
    fs::write(files.0.path().join("c.pem"), &new.0).unwrap();
    assert_eq!(look(), after);
}

#[tokio::test]
async fn what_is_not_tls_ends_and_what_says_nothing_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let tls = ServerTls::open(Source::SelfSigned(dir.path().join("own.pem"))).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..],
        &[0x16; 64],
        &[0; 64],
    ] {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let error = tls.accept(listener.accept().await.unwrap().0).await.err();
        assert!(error.is_some());
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP"));
    }
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(&[0x16, 3, 1]).await.unwrap();
    let accepted = listener.accept().await.unwrap().0;
    tokio::time::pause();
    let error = tls.accept(accepted).await.err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}
