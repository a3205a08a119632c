//! Close frames: their codes and their body (RFC 6455 §5.5.1, §7.4).
//!
//! In: a close frame's payload, at most 125 bytes. Out: code and reason. Attacker controls: every byte.
//! Bounds: a frame's 125 bytes. Errors: 1002 for a wrong code or length, 1007 for a reason that is not UTF-8.

use super::Error;

pub const NORMAL: u16 = 1000;
pub const PROTOCOL: u16 = 1002;
pub const INVALID_PAYLOAD: u16 = 1007;
pub const POLICY: u16 = 1008;
pub const TOO_LARGE: u16 = 1009;
pub const INTERNAL: u16 = 1011;

/// Bytes of a reason: a control frame's 125, less the code.
pub const REASON_BYTES_MAX: usize = 123;

/// Whether `code` may stand in a close frame.
///
/// 1004 to 1006 and 1015 are reserved (§7.4.1); 1012 to 1014 are in the IANA registry; 1016 to 2999 are for future
/// revisions of the protocol, 3000 to 3999 registered and 4000 to 4999 private (§7.4.2).
pub fn is_on_wire(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Reads the body of a close frame.
pub fn parse(body: &[u8]) -> Result<(Option<u16>, String), Error> {
    let Some((code, reason)) = body.split_first_chunk::<2>() else {
        return if body.is_empty() {
            Ok((None, String::new()))
        } else {
            Err(Error::CloseBodyTooShort)
        };
    };
    let code = u16::from_be_bytes(*code);
    if !is_on_wire(code) {
        return Err(Error::CloseCodeInvalid(code));
    }
    let reason = std::str::from_utf8(reason).map_err(|_| Error::CloseReasonNotUtf8)?;
    Ok((Some(code), reason.to_owned()))
}

/// The body of a close frame. A reason too long is cut before a whole character; without a code the body is empty,
/// and a code that may not be sent becomes 1011, since sending it was our own mistake.
pub fn body(code: Option<u16>, reason: &str) -> Vec<u8> {
    let Some(code) = code else {
        return Vec::new();
    };
    let code = if is_on_wire(code) { code } else { INTERNAL };
    let cut = reason.floor_char_boundary(REASON_BYTES_MAX);
    let reason = reason.get(..cut).unwrap_or_default();
    [&code.to_be_bytes(), reason.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_the_registry() {
        for code in [
            1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1014, 3000, 3999, 4000, 4999,
        ] {
            assert!(is_on_wire(code), "{code}");
        }
        for code in [
            0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535,
        ] {
            assert!(!is_on_wire(code), "{code}");
        }
    }

    #[test]
    fn bodies() {
        assert_eq!(parse(b""), Ok((None, String::new())));
        assert_eq!(parse(b"\x03"), Err(Error::CloseBodyTooShort));
        assert_eq!(parse(b"\x03\xe8"), Ok((Some(1000), String::new())));
        assert_eq!(parse(b"\x03\xe8bye"), Ok((Some(1000), "bye".into())));
        assert_eq!(parse(b"\x03\xed"), Err(Error::CloseCodeInvalid(1005)));
        assert_eq!(parse(b"\x03\xe8\xff"), Err(Error::CloseReasonNotUtf8));
        assert_eq!(Error::CloseReasonNotUtf8.close_code(), 1007);
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let body = body(Some(NORMAL), &"é".repeat(80));
        assert_eq!(body.len(), 2 + 122);
        assert_eq!(parse(&body).unwrap().1, "é".repeat(61));
    }

    #[test]
    fn what_may_not_be_sent_is_not_sent() {
        assert_eq!(body(Some(1005), "x"), b"\x03\xf3x");
        assert_eq!(body(None, "dropped"), b"");
    }
}
