//! The only place that knows how a message becomes bytes.
//!
//! bincode is unmaintained, so no other module names it: replacing the format means rewriting this
//! file and raising [`crate::version::PROTOCOL`]. Decoding is size-limited before it allocates,
//! refuses trailing bytes and never panics on any input (`fuzz/fuzz_targets/message.rs`).

use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

/// The largest encoded message, in bytes. Tensors do not travel in messages but in
/// [`crate::tensor_stream`] chunks.
pub const MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// Says why bytes are not a message, or a message cannot become bytes.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The encoded message would be, or claims to be, larger than [`MESSAGE_BYTES_MAX`].
    #[error("message has {length} bytes; at most {MESSAGE_BYTES_MAX} are allowed")]
    TooLarge {
        /// Its length in bytes.
        length: usize,
    },
    /// The bytes do not decode.
    #[error("message of {length} bytes is malformed")]
    Malformed {
        /// Number of bytes offered.
        length: usize,
        /// What the decoder met.
        #[source]
        source: bincode::error::DecodeError,
    },
    /// Bytes are left over after the message.
    #[error("message is followed by {excess} unexpected bytes")]
    Trailing {
        /// Number of bytes left over.
        excess: usize,
    },
    /// A value that has no encoding (our bug).
    #[error("message cannot be encoded")]
    Encode(#[source] bincode::error::EncodeError),
}

const fn configuration() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MESSAGE_BYTES_MAX>()
}

/// Encodes a message.
///
/// # Errors
/// [`CodecError::TooLarge`] past [`MESSAGE_BYTES_MAX`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    let bytes =
        bincode::serde::encode_to_vec(message, configuration()).map_err(CodecError::Encode)?;
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(CodecError::TooLarge { length: bytes.len() });
    }
    Ok(bytes)
}

/// Decodes exactly one message from `bytes`.
///
/// # Errors
/// [`CodecError`] if the bytes are too many, malformed or followed by others.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let length = bytes.len();
    if length > MESSAGE_BYTES_MAX {
        return Err(CodecError::TooLarge { length });
    }
    let (message, read) = bincode::serde::decode_from_slice(bytes, configuration())
        .map_err(|source| CodecError::Malformed { length, source })?;
    if read != length {
        return Err(CodecError::Trailing { excess: length - read });
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_huge_claimed_length_is_refused_before_allocating() {
        // 253 announces a u64 length: here 2^56 bytes of string.
        let bytes = [253, 0, 0, 0, 0, 0, 0, 0, 1];
        assert!(matches!(decode::<String>(&bytes), Err(CodecError::Malformed { .. })));
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&7_u32).expect("encodes");
        bytes.push(0);
        assert!(matches!(decode::<u32>(&bytes), Err(CodecError::Trailing { excess: 1 })));
    }

    #[test]
    fn oversized_messages_are_refused_on_both_sides() {
        let text = "x".repeat(MESSAGE_BYTES_MAX + 1);
        assert!(matches!(encode(&text), Err(CodecError::TooLarge { .. } | CodecError::Encode(_))));
        assert!(matches!(decode::<String>(text.as_bytes()), Err(CodecError::TooLarge { .. })));
    }
}
