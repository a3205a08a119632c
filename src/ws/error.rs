//! What a peer can do wrong on an open connection.

use std::fmt;

use super::close;

/// A violation by the peer. Each is answered by a close frame with [`Error::close_code`] (§7.1.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// RSV1, RSV2 or RSV3 was set though no extension was agreed (§5.2).
    ReservedBits,
    /// An opcode that RFC 6455 leaves undefined (§5.2).
    UnknownOpcode(u8),
    /// A client's frame without a mask (§5.1).
    Unmasked,
    /// A server's frame with a mask (§5.1).
    Masked,
    /// A control frame without FIN (§5.5).
    ControlFragmented,
    /// A control frame of more than 125 bytes (§5.5).
    ControlTooLong,
    /// A payload length that a shorter form could have carried (§5.2).
    LengthNotMinimal,
    /// A 64-bit payload length whose highest bit is set (§5.2).
    LengthTooLarge,
    /// A continuation frame without a message to continue (§5.4).
    ContinuationUnexpected,
    /// A new data frame inside a fragmented message (§5.4).
    ContinuationExpected,
    /// A close frame with a body of one byte (§5.5.1).
    CloseBodyTooShort,
    /// A close code that must not be on the wire (§7.4).
    CloseCodeInvalid(u16),
    /// A close reason that is not UTF-8 (§5.5.1).
    CloseReasonNotUtf8,
    /// A text message that is not UTF-8 (§8.1).
    TextNotUtf8,
    /// A message over our limit, as its frames' headers announce it; both in bytes.
    MessageTooLarge { got: u64, limit: usize },
    /// A message in more frames than we take.
    FragmentsTooMany { limit: u32 },
    /// A message with more empty frames than we take.
    FragmentsEmptyTooMany { limit: u32 },
}

impl Error {
    /// The code of the close frame that answers this violation (§7.4.1).
    pub fn close_code(self) -> u16 {
        match self {
            Self::TextNotUtf8 | Self::CloseReasonNotUtf8 => close::INVALID_PAYLOAD,
            Self::MessageTooLarge { .. } => close::TOO_LARGE,
            Self::FragmentsTooMany { .. } | Self::FragmentsEmptyTooMany { .. } => close::POLICY,
            _ => close::PROTOCOL,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReservedBits => f.write_str("reserved bits set"),
            Self::UnknownOpcode(opcode) => write!(f, "unknown opcode {opcode:#x}"),
            Self::Unmasked => f.write_str("client frame without mask"),
            Self::Masked => f.write_str("server frame with mask"),
            Self::ControlFragmented => f.write_str("fragmented control frame"),
            Self::ControlTooLong => f.write_str("control frame over 125 bytes"),
            Self::LengthNotMinimal => f.write_str("payload length not in its shortest form"),
            Self::LengthTooLarge => f.write_str("payload length over 63 bits"),
            Self::ContinuationUnexpected => f.write_str("continuation without a message"),
            Self::ContinuationExpected => f.write_str("new message inside a fragmented one"),
            Self::CloseBodyTooShort => f.write_str("close body of one byte"),
            Self::CloseCodeInvalid(code) => write!(f, "invalid close code {code}"),
            Self::CloseReasonNotUtf8 => f.write_str("close reason is not UTF-8"),
            Self::TextNotUtf8 => f.write_str("text is not UTF-8"),
            Self::MessageTooLarge { got, limit } => {
                write!(f, "message of {got} bytes, limit {limit}")
            }
            Self::FragmentsTooMany { limit } => write!(f, "over {limit} fragments"),
            Self::FragmentsEmptyTooMany { limit } => write!(f, "over {limit} empty fragments"),
        }
    }
}

impl std::error::Error for Error {}
