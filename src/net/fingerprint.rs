//! A certificate's fingerprint, as operators copy it and clients pin it.

use std::fmt;

/// SHA-256 of a leaf certificate's DER. Public, so it is compared and printed freely.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    pub fn of(certificate_der: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, certificate_der);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }

    /// 64 hexadecimal digits in either case, all pairs or none divided by colons, after an optional `sha256:`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        let digits = ["sha256:", "sha-256:"]
            .iter()
            .find_map(|prefix| text.strip_prefix(prefix))
            .unwrap_or(&text);
        let pairs: Vec<&str> = if digits.contains(':') {
            digits.split(':').collect()
        } else {
            (0..digits.len())
                .step_by(2)
                .map(|at| digits.get(at..at + 2))
                .collect::<Option<_>>()?
        };
        let bytes: Vec<u8> = pairs
            .iter()
            .map(|pair| {
                let plain = pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit());
                u8::from_str_radix(pair, 16).ok().filter(|_| plain)
            })
            .collect::<Option<_>>()?;
        bytes.try_into().ok().map(Self)
    }
}

/// Upper-case pairs with colons, as `openssl x509 -fingerprint` writes it.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            let colon = if at == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02X}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usual_form_is_read_and_no_other() {
        let pin = Fingerprint::of(b"certificate");
        let colons = pin.to_string();
        let plain = colons.replace(':', "");
        assert_eq!((colons.len(), plain.len()), (95, 64));
        for text in [
            colons.clone(),
            plain.clone(),
            colons.to_lowercase(),
            format!(" sha256:{plain}\n"),
            format!("SHA256:{colons}"),
            format!("sha-256:{plain}"),
        ] {
            assert_eq!(Fingerprint::parse(&text), Some(pin), "{text}");
        }
        for text in [
            String::new(),
            "sha256:".to_owned(),
            plain[1..].to_owned(),
            plain[2..].to_owned(),
            format!("{plain}00"),
            format!("{colons}:"),
            format!(":{colons}"),
            format!("{}:{}", &plain[..2], &plain[2..]),
            plain.replacen(&plain[..1], "g", 1),
            plain.replacen(&plain[..1], "+", 1),
            plain.replacen(&plain[..2], "é", 1),
            format!("sha1:{plain}"),
        ] {
            assert_eq!(Fingerprint::parse(&text), None, "{text}");
        }
    }
}
