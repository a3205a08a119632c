//! A device's identity on disk: an Ed25519 key that stays, and the device token that a Gateway gave it.
//!
//! In: the identity directory. Out: an [`Identity`]. Attacker controls: nothing, unless they are our user; a file or
//! directory that others could have read is refused, not repaired. Bounds: each file is read up to
//! `FILE_BYTES_MAX`. Errors: [`IdentityError`].

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::auth::device::{self, PublicKey, Signed};
use crate::base::{DeviceId, Secret};
use crate::machine::files::{self, FileError};

pub const KEY_FILE: &str = "device.json";
const TOKENS_FILE: &str = "device-tokens.json";
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// Gateways whose tokens are kept; the oldest gives way.
const TOKENS_MAX: usize = 64;

/// Why there is no identity.
#[derive(Debug)]
pub enum IdentityError {
    File(FileError),
    /// The file is there and is not one of ours.
    Malformed {
        path: PathBuf,
    },
    /// The operating system gave no randomness.
    Random,
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(error) => write!(f, "{error}"),
            Self::Malformed { path } => write!(
                f,
                "{} does not hold a device identity; restore it, or move it away to become a new device",
                path.display()
            ),
            Self::Random => f.write_str("the operating system gave no random bytes"),
        }
    }
}

impl std::error::Error for IdentityError {}

impl From<FileError> for IdentityError {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeyFile {
    version: u32,
    device_id: String,
    public_key: String,
    /// PKCS#8, base64.
    private_key: Zeroizing<String>,
}

#[derive(Default, Serialize, Deserialize)]
struct TokensFile {
    /// Oldest first.
    tokens: Vec<StoredToken>,
}

#[derive(Serialize, Deserialize)]
struct StoredToken {
    gateway: String,
    role: String,
    token: Zeroizing<String>,
}

/// A device that can sign. It has no `Debug`.
pub struct Identity {
    key: Ed25519KeyPair,
    public_key: PublicKey,
    id: DeviceId,
    tokens_path: PathBuf,
}

impl Identity {
    /// Reads the identity in `dir`, or makes one, so that a restart is the same device.
    pub fn load_or_create(dir: &Path) -> Result<Self, IdentityError> {
        files::ensure_dir(dir)?;
        let path = dir.join(KEY_FILE);
        if let Some(bytes) = files::read(&path, FILE_BYTES_MAX)? {
            return Self::from_file(&Zeroizing::new(bytes), dir)
                .ok_or(IdentityError::Malformed { path });
        }
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(|_| IdentityError::Random)?;
        let identity = Self::from_pkcs8(pkcs8.as_ref(), dir).ok_or(IdentityError::Random)?;
        let file = KeyFile {
            version: 1,
            device_id: identity.id.to_string(),
            public_key: identity.public_key.to_wire(),
            private_key: Zeroizing::new(STANDARD.encode(pkcs8.as_ref())),
        };
        let text = Zeroizing::new(serde_json::to_vec(&file).unwrap_or_default());
        files::replace(&path, &text)?;
        Ok(identity)
    }

    fn from_file(bytes: &[u8], dir: &Path) -> Option<Self> {
        let file: KeyFile = serde_json::from_slice(bytes).ok()?;
        let pkcs8 = Zeroizing::new(STANDARD.decode(file.private_key.as_bytes()).ok()?);
        let identity = Self::from_pkcs8(&pkcs8, dir)?;
        let consistent = file.version == 1
            && file.device_id == identity.id.as_str()
            && file.public_key == identity.public_key.to_wire();
        consistent.then_some(identity)
    }

    fn from_pkcs8(pkcs8: &[u8], dir: &Path) -> Option<Self> {
        let key = Ed25519KeyPair::from_pkcs8(pkcs8).ok()?;
        let bytes: [u8; 32] = key.public_key().as_ref().try_into().ok()?;
        let public_key = PublicKey::from_bytes(bytes);
        Some(Self {
            key,
            id: public_key.device_id(),
            public_key,
            tokens_path: dir.join(TOKENS_FILE),
        })
    }

    pub fn id(&self) -> &DeviceId {
        &self.id
    }

    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// Signs the v3 string.
    pub fn sign(&self, signed: &Signed<'_>) -> String {
        device::sign(&self.key, &signed.v3())
    }

    /// The token that this Gateway gave us for this role.
    pub fn token(&self, gateway: &str, role: &str) -> Result<Option<Secret>, IdentityError> {
        let found = self
            .tokens()?
            .tokens
            .into_iter()
            .find(|stored| stored.gateway == gateway && stored.role == role);
        Ok(found.map(|stored| Secret::new(stored.token.as_bytes())))
    }

    /// Keeps a token, or forgets it.
    pub fn set_token(
        &self,
        gateway: &str,
        role: &str,
        token: Option<&Secret>,
    ) -> Result<(), IdentityError> {
        let mut file = self.tokens()?;
        let before = file.tokens.len();
        file.tokens
            .retain(|stored| stored.gateway != gateway || stored.role != role);
        if token.is_none() && file.tokens.len() == before {
            return Ok(());
        }
        if let Some(token) = token.and_then(Secret::expose_str) {
            file.tokens.push(StoredToken {
                gateway: gateway.to_owned(),
                role: role.to_owned(),
                token: Zeroizing::new(token.to_owned()),
            });
        }
        let surplus = file.tokens.len().saturating_sub(TOKENS_MAX);
        file.tokens.drain(..surplus);
        let text = Zeroizing::new(serde_json::to_vec(&file).unwrap_or_default());
        files::replace(&self.tokens_path, &text)?;
        Ok(())
    }

    fn tokens(&self) -> Result<TokensFile, IdentityError> {
        let Some(bytes) = files::read(&self.tokens_path, FILE_BYTES_MAX)? else {
            return Ok(TokensFile::default());
        };
        let bytes = Zeroizing::new(bytes);
        serde_json::from_slice(&bytes).map_err(|_| IdentityError::Malformed {
            path: self.tokens_path.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn an_identity_is_private_and_stays() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("identity");
        let first = Identity::load_or_create(&dir).ok().unwrap();
        let second = Identity::load_or_create(&dir).ok().unwrap();
        assert_eq!(first.id(), second.id());
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(mode(&dir.join(KEY_FILE)), 0o600);
        assert_eq!(*first.id(), first.public_key().device_id());
    }

    #[test]
    fn a_key_that_others_could_read_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("identity");
        drop(Identity::load_or_create(&dir));
        let path = dir.join(KEY_FILE);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(
            Identity::load_or_create(&dir).err(),
            Some(IdentityError::File(_))
        ));
    }

    #[test]
    fn a_broken_or_foreign_file_is_not_written_over() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("identity");
        let id = Identity::load_or_create(&dir)
            .ok()
            .unwrap()
            .id()
            .to_string();
        let path = dir.join(KEY_FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        for broken in [
            "{}".to_owned(),
            String::new(),
            text.replace(&id, &"0".repeat(64)),
        ] {
            std::fs::write(&path, &broken).unwrap();
            let refusal = Identity::load_or_create(&dir).err();
            assert!(
                matches!(refusal, Some(IdentityError::Malformed { .. })),
                "{broken}"
            );
            assert_eq!(std::fs::read_to_string(&path).unwrap(), broken);
        }
    }

    #[test]
    fn tokens_are_kept_per_gateway_and_role() {
        let home = tempfile::tempdir().unwrap();
        let identity = Identity::load_or_create(&home.path().join("i"))
            .ok()
            .unwrap();
        let token = |gateway: &str, role: &str| {
            identity
                .token(gateway, role)
                .ok()
                .unwrap()
                .map(|secret| secret.expose_str().unwrap().to_owned())
        };
        assert_eq!(token("a:1", "node"), None);
        let secret = Secret::new(&b"t1"[..]);
        identity.set_token("a:1", "node", Some(&secret)).unwrap();
        assert_eq!(token("a:1", "node").as_deref(), Some("t1"));
        assert_eq!(token("a:1", "operator"), None);
        assert_eq!(token("b:1", "node"), None);
        identity.set_token("a:1", "node", None).unwrap();
        assert_eq!(token("a:1", "node"), None);
        for number in 0..=TOKENS_MAX {
            identity
                .set_token(&format!("g:{number}"), "node", Some(&secret))
                .unwrap();
        }
        assert_eq!(token("g:0", "node"), None);
        assert_eq!(
            token(&format!("g:{TOKENS_MAX}"), "node").as_deref(),
            Some("t1")
        );
        assert_eq!(mode(&identity.tokens_path), 0o600);
    }
}
