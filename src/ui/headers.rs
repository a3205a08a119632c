//! The headers of every answer that carries a file of the page.

/// In the order to send them. The policy allows the page's own two files and its own socket, and nothing else: no
/// inline script or style, no frame, no form that goes anywhere, no markup made from text.
const HEADERS: &[(&str, &str)] = &[
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    // For browsers that know no `frame-ancestors`.
    ("x-frame-options", "DENY"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    (
        "permissions-policy",
        "camera=(), microphone=(), geolocation=()",
    ),
    // The address may have held a sign-in code, and the page changes with the binary.
    ("cache-control", "no-store"),
];

/// Names in lower case, values ready to send.
pub fn headers() -> &'static [(&'static str, &'static str)] {
    HEADERS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(name: &str) -> &'static str {
        let mut found = headers().iter().filter(|(key, _)| *key == name);
        let (_, value) = found.next().unwrap();
        assert!(found.next().is_none(), "{name} stands once");
        value
    }

    #[test]
    fn the_policy_is_closed() {
        let policy = value("content-security-policy");
        for rule in [
            "default-src 'none'",
            "script-src 'self';",
            "style-src 'self';",
            "connect-src 'self';",
            "img-src 'self' data:;",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.contains(rule), "{rule}");
        }
        for hole in ["unsafe", "*", "http", "blob:"] {
            assert!(!policy.contains(hole), "{hole}");
        }
        assert_eq!(value("x-content-type-options"), "nosniff");
        assert_eq!(value("referrer-policy"), "no-referrer");
        assert_eq!(value("x-frame-options"), "DENY");
        assert_eq!(value("cache-control"), "no-store");
    }

    #[test]
    fn names_and_values_are_well_formed() {
        for (name, value) in headers() {
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'),
                "{name}"
            );
            assert!(value.bytes().all(|b| matches!(b, 0x20..=0x7e)), "{name}");
        }
    }
}
