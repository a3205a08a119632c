//! Values that must not reach an output.

use zeroize::Zeroizing;

/// Bytes that are wiped when dropped and that no formatter can print.
///
/// It has neither `Debug`, `Display`, `Serialize` nor `PartialEq`: a secret is compared only through
/// `auth::secret_eq`, in constant time, and shown nowhere.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// The bytes themselves, for the one place that must send or hash them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The secret as text, if it is UTF-8.
    pub fn expose_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}
