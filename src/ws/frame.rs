//! Frame headers (RFC 6455 §5.2).
//!
//! In: bytes, in any split. Out: a [`Header`] once its last byte is there.
//! Attacker controls: every byte. Bounds: a header has 14 bytes; what its length announces is judged by `conn`.
//! Errors: [`Error`], all of them 1002; they arise in the order of the bytes, so a split cannot change them.

use super::mask::Key;
use super::{Error, Role};

/// The longest header: two bytes, eight of length, four of mask.
pub const HEADER_BYTES_MAX: usize = 14;
/// The longest payload of a control frame (§5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    fn from_bits(bits: u8) -> Result<Self, Error> {
        match bits {
            0x0 => Ok(Self::Continuation),
            0x1 => Ok(Self::Text),
            0x2 => Ok(Self::Binary),
            0x8 => Ok(Self::Close),
            0x9 => Ok(Self::Ping),
            0xA => Ok(Self::Pong),
            other => Err(Error::UnknownOpcode(other)),
        }
    }

    fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0x0,
            Self::Text => 0x1,
            Self::Binary => 0x2,
            Self::Close => 0x8,
            Self::Ping => 0x9,
            Self::Pong => 0xA,
        }
    }

    pub fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    pub fin: bool,
    pub opcode: Opcode,
    pub mask: Option<Key>,
    pub payload_bytes: u64,
}

/// Reads the header at the front of `input`, which `receiver` received, and says how many bytes it has. `None`: its end
/// has not arrived.
#[inline]
pub fn parse(input: &[u8], receiver: Role) -> Result<Option<(Header, usize)>, Error> {
    let Some((&first, rest)) = input.split_first() else {
        return Ok(None);
    };
    if first & 0x70 != 0 {
        return Err(Error::ReservedBits);
    }
    let fin = first & 0x80 != 0;
    let opcode = Opcode::from_bits(first & 0x0f)?;
    if opcode.is_control() && !fin {
        return Err(Error::ControlFragmented);
    }
    let Some((&second, rest)) = rest.split_first() else {
        return Ok(None);
    };
    let masked = second & 0x80 != 0;
    match (receiver, masked) {
        (Role::Server, false) => return Err(Error::Unmasked),
        (Role::Client, true) => return Err(Error::Masked),
        _ => {}
    }
    let short = second & 0x7f;
    if opcode.is_control() && usize::from(short) > CONTROL_BYTES_MAX {
        return Err(Error::ControlTooLong);
    }
    let (payload_bytes, rest, length_bytes) = match short {
        126 => {
            let Some((length, rest)) = rest.split_first_chunk::<2>() else {
                return Ok(None);
            };
            let length = u64::from(u16::from_be_bytes(*length));
            if length < 126 {
                return Err(Error::LengthNotMinimal);
            }
            (length, rest, 2)
        }
        127 => {
            let Some((length, rest)) = rest.split_first_chunk::<8>() else {
                return Ok(None);
            };
            let length = u64::from_be_bytes(*length);
            if length >> 63 != 0 {
                return Err(Error::LengthTooLarge);
            }
            if length <= u64::from(u16::MAX) {
                return Err(Error::LengthNotMinimal);
            }
            (length, rest, 8)
        }
        short => (u64::from(short), rest, 0),
    };
    let mask = if masked {
        let Some((key, _)) = rest.split_first_chunk::<4>() else {
            return Ok(None);
        };
        Some(*key)
    } else {
        None
    };
    let header = Header {
        fin,
        opcode,
        mask,
        payload_bytes,
    };
    let header_bytes = 2usize
        .saturating_add(length_bytes)
        .saturating_add(if masked { 4 } else { 0 });
    Ok(Some((header, header_bytes)))
}

/// A header in its wire form.
#[derive(Clone, Copy, Debug)]
pub struct Encoded {
    bytes: [u8; HEADER_BYTES_MAX],
    len: usize,
}

impl Encoded {
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn push<const N: usize>(&mut self, more: [u8; N]) {
        let free = self.bytes.get_mut(self.len..).unwrap_or_default();
        if let Some(slot) = free.first_chunk_mut() {
            *slot = more;
            self.len = self.len.saturating_add(N);
        }
    }
}

impl Header {
    /// The wire form, with the shortest length (§5.2).
    #[inline]
    pub fn encode(&self) -> Encoded {
        let mut encoded = Encoded {
            bytes: [0; HEADER_BYTES_MAX],
            len: 0,
        };
        let fin = if self.fin { 0x80 } else { 0 };
        let masked = if self.mask.is_some() { 0x80 } else { 0 };
        let first = fin | self.opcode.bits();
        if let Ok(long) = u16::try_from(self.payload_bytes) {
            match u8::try_from(long) {
                Ok(short @ 0..=125) => encoded.push([first, masked | short]),
                _ => {
                    encoded.push([first, masked | 126]);
                    encoded.push(long.to_be_bytes());
                }
            }
        } else {
            encoded.push([first, masked | 127]);
            encoded.push(self.payload_bytes.to_be_bytes());
        }
        if let Some(key) = self.mask {
            encoded.push(key);
        }
        encoded
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refusals_in_the_order_of_the_bytes() {
        let server = |bytes: &[u8]| parse(bytes, Role::Server).unwrap_err();
        assert_eq!(server(&[0xc1]), Error::ReservedBits);
        assert_eq!(server(&[0x91]), Error::ReservedBits);
        assert_eq!(server(&[0x83]), Error::UnknownOpcode(3));
        assert_eq!(server(&[0x8f]), Error::UnknownOpcode(15));
        assert_eq!(server(&[0x09]), Error::ControlFragmented);
        assert_eq!(server(&[0x81, 0x05]), Error::Unmasked);
        assert_eq!(parse(&[0x81, 0x85], Role::Client), Err(Error::Masked));
        assert_eq!(server(&[0x89, 0xfe]), Error::ControlTooLong);
        assert_eq!(server(&[0x82, 0xfe, 0, 125]), Error::LengthNotMinimal);
        assert_eq!(
            server(&[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff]),
            Error::LengthNotMinimal
        );
        assert_eq!(
            server(&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0]),
            Error::LengthTooLarge
        );
    }

    proptest! {
        #[test]
        fn round_trip_and_no_early_answer(
            fin: bool, opcode in 0usize..6, mask: Option<[u8; 4]>,
            payload_bytes in prop_oneof![0u64..300, 65_000u64..66_000, 0u64..1 << 63],
        ) {
            use Opcode::*;
            let opcode = [Continuation, Text, Binary, Close, Ping, Pong][opcode];
            let control = opcode.is_control();
            let header = Header {
                fin: fin || control, opcode, mask,
                payload_bytes: if control { payload_bytes % 126 } else { payload_bytes },
            };
            let encoded = header.encode();
            let bytes = encoded.as_slice();
            let receiver = if mask.is_some() { Role::Server } else { Role::Client };
            for cut in 0..bytes.len() {
                prop_assert_eq!(parse(&bytes[..cut], receiver), Ok(None));
            }
            prop_assert_eq!(parse(bytes, receiver), Ok(Some((header, bytes.len()))));
        }
    }
}
