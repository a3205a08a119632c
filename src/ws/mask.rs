//! Masking (RFC 6455 §5.3).
//!
//! In: payload bytes, in any split. Out: the same bytes, XORed in place. Attacker controls: bytes and key.
//! Bounds: none needed, nothing is stored. Errors: none.

/// A masking key, turned to where the next payload byte stands.
pub type Key = [u8; 4];

/// XORs `payload` with `key` and returns the key as the byte after `payload` needs it.
///
/// Written over `u64`s so that the compiler makes vector code of it; a loop over bytes is twenty times slower.
pub fn apply(payload: &mut [u8], key: Key) -> Key {
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, tail) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    let tail_bytes = tail.len();
    for (byte, mask) in tail.iter_mut().zip([a, b, c, d, a, b, c]) {
        *byte ^= mask;
    }
    // Whole words leave the key as it was, so the tail alone turns it.
    match tail_bytes % 4 {
        0 => key,
        1 => [b, c, d, a],
        2 => [c, d, a, b],
        _ => [d, a, b, c],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rfc_example() {
        // §5.7: a single-frame masked text message "Hello".
        let mut payload = [0x7f, 0x9f, 0x4d, 0x51, 0x58];
        apply(&mut payload, [0x37, 0xfa, 0x21, 0x3d]);
        assert_eq!(&payload, b"Hello");
    }

    proptest! {
        #[test]
        fn any_split_equals_the_definition(
            data in prop::collection::vec(any::<u8>(), 0..200),
            key: [u8; 4],
            cuts in prop::collection::vec(0usize..40, 0..12),
        ) {
            let defined: Vec<u8> = data.iter().enumerate().map(|(i, b)| b ^ key[i % 4]).collect();
            let mut ours = data;
            let mut rest = ours.as_mut_slice();
            let mut turned = key;
            for cut in cuts {
                let (now, later) = rest.split_at_mut(cut.min(rest.len()));
                turned = apply(now, turned);
                rest = later;
            }
            apply(rest, turned);
            prop_assert_eq!(ours, defined);
        }
    }
}
