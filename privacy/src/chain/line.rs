//! One line of a chain: its bytes and its hash.

use data_encoding::HEXLOWER;
use serde::Serialize;

use super::{ChainRecord, DamageReason};

/// What stands between the hashed bytes of a line and its hash.
const HASH_FIELD: &[u8] = br#","hash":""#;

/// The bytes of a record, line feed included, and its hash.
pub(super) fn encode<R: Serialize>(record: &R) -> (Vec<u8>, [u8; 32]) {
    let mut line =
        serde_json::to_vec(record).expect("a record has no map and no unserialisable key");
    // The closing brace gives way to the hash field; the hash covers everything before that.
    line.pop();
    let hash = *blake3::hash(&line).as_bytes();
    line.extend_from_slice(HASH_FIELD);
    line.extend_from_slice(HEXLOWER.encode(&hash).as_bytes());
    line.extend_from_slice(b"\"}\n");
    (line, hash)
}

/// Verifies the hash of a line (without its line feed) and reads the record.
pub(super) fn decode<R: ChainRecord>(line: &[u8]) -> Result<(R, [u8; 32]), DamageReason> {
    let tail_length = HASH_FIELD.len() + 64 + 2;
    let (body, tail) =
        line.split_at_checked(line.len().wrapping_sub(tail_length)).ok_or(DamageReason::Form)?;
    let hash: [u8; 32] = tail
        .strip_prefix(HASH_FIELD)
        .and_then(|rest| rest.strip_suffix(b"\"}"))
        .and_then(|digits| HEXLOWER.decode(digits).ok())
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(DamageReason::Form)?;
    if *blake3::hash(body).as_bytes() != hash {
        return Err(DamageReason::Hash);
    }
    let document = [body, b"}"].concat();
    let record = serde_json::from_slice(&document).map_err(|_| DamageReason::Form)?;
    Ok((record, hash))
}

/// 32 bytes as lower-case hexadecimal digits, for `#[serde(with = "…")]`.
pub mod hex {
    use data_encoding::HEXLOWER;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes the digits.
    ///
    /// # Errors
    /// What the serializer reports.
    pub fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&HEXLOWER.encode(bytes))
    }

    /// Reads 64 digits.
    ///
    /// # Errors
    /// If the text is anything else.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(D::Error::custom)?;
        bytes.try_into().map_err(|_| D::Error::custom("a hash needs 64 hexadecimal digits"))
    }
}
