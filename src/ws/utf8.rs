//! UTF-8 checked while it streams in (RFC 6455 §8.1).
//!
//! In: bytes, in any split. Out: text appended to a `String`, so nothing is ever validated twice.
//! Attacker controls: every byte. Bounds: three bytes of an unfinished character are held back.
//! Errors: [`InvalidUtf8`], at the first byte that no continuation could make valid.

use std::str;

/// The bytes so far cannot begin any UTF-8 text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct InvalidUtf8;

/// The first bytes of a character whose rest has not arrived.
#[derive(Default, Debug)]
pub(super) struct Unfinished {
    bytes: [u8; 4],
    len: u8,
}

impl Unfinished {
    /// Whether the text may end here.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes held back, at most three.
    pub(super) fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Appends `input` to `text`, except for the beginning of a character at its very end.
    pub(super) fn push(&mut self, text: &mut String, input: &[u8]) -> Result<(), InvalidUtf8> {
        let rest = self.complete(text, input)?;
        match str::from_utf8(rest) {
            Ok(valid) => text.push_str(valid),
            Err(error) if error.error_len().is_some() => return Err(InvalidUtf8),
            Err(error) => {
                let (valid, unfinished) = rest.split_at(error.valid_up_to());
                // Checked again because only the check yields a `&str`; it is short of one character at most once
                // per read.
                text.push_str(str::from_utf8(valid).map_err(|_| InvalidUtf8)?);
                for byte in unfinished {
                    self.hold(*byte);
                }
            }
        }
        Ok(())
    }

    /// Finishes the character that an earlier push began; returns what follows it.
    fn complete<'a>(
        &mut self,
        text: &mut String,
        input: &'a [u8],
    ) -> Result<&'a [u8], InvalidUtf8> {
        let mut rest = input;
        while self.len > 0
            && let Some((byte, after)) = rest.split_first()
        {
            self.hold(*byte);
            rest = after;
            let held = self.bytes.get(..self.len()).unwrap_or_default();
            match str::from_utf8(held) {
                Ok(valid) => {
                    text.push_str(valid);
                    self.len = 0;
                }
                Err(error) if error.error_len().is_some() => return Err(InvalidUtf8),
                Err(_) => {}
            }
        }
        Ok(rest)
    }

    fn hold(&mut self, byte: u8) {
        // The longest character has four bytes, and the fourth either completes it or makes it invalid.
        if let Some(slot) = self.bytes.get_mut(usize::from(self.len)) {
            *slot = byte;
            self.len = self.len.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream(data: &[u8], step: usize) -> Result<String, (usize, InvalidUtf8)> {
        let (mut text, mut unfinished, mut seen) = (String::new(), Unfinished::default(), 0);
        for piece in data.chunks(step) {
            seen += piece.len();
            unfinished.push(&mut text, piece).map_err(|e| (seen, e))?;
        }
        if unfinished.is_empty() {
            Ok(text)
        } else {
            Err((seen, InvalidUtf8))
        }
    }

    #[test]
    fn fails_at_the_first_hopeless_byte() {
        // The second byte of F4 90 cannot follow the first; what comes after is never needed.
        assert_eq!(
            stream(b"\xce\xba\xf4\x90\x80\x80", 1),
            Err((4, InvalidUtf8))
        );
        assert_eq!(
            stream(b"\xed\xa0\x80", 1),
            Err((2, InvalidUtf8)),
            "surrogate"
        );
        assert_eq!(stream(b"\xc0\x80", 1), Err((1, InvalidUtf8)), "overlong");
        assert_eq!(stream("κόσμε".as_bytes(), 1), Ok("κόσμε".into()));
        assert_eq!(
            stream(b"\xf0\x9f\x98", 2),
            Err((3, InvalidUtf8)),
            "cut short"
        );
    }

    proptest! {
        #[test]
        fn any_split_agrees_with_std(data in prop::collection::vec(
            prop_oneof![any::<u8>(), 0x80u8..0xc0, Just(b'a'), Just(0xe2), Just(0xf0), Just(0x9f)], 0..40), step in 1usize..9) {
            prop_assert_eq!(stream(&data, step).ok(), String::from_utf8(data).ok());
        }

        #[test]
        fn any_text_passes(text: String, step in 1usize..9) {
            prop_assert_eq!(stream(text.as_bytes(), step), Ok(text));
        }
    }
}
