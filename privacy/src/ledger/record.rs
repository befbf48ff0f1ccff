//! One line of the ledger: its fields, bytes and hash.

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use super::DamageReason;
use crate::mechanism::PrivacyEvent;

/// What stands between the hashed bytes of a line and its hash.
const HASH_FIELD: &[u8] = br#","hash":""#;
/// Separates the hashes of this format from all others.
const GENESIS_CONTEXT: &str = "tributary 2026 privacy ledger, version 1, genesis";

/// A debit that is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct DebitRequest {
    /// The dataset that pays.
    pub dataset: String,
    /// The job that asks.
    pub job: String,
    /// Its round.
    pub round: u64,
    /// The privacy unit: `record` or `tenant`.
    pub unit: String,
    /// Everything that the release reveals.
    pub events: Vec<PrivacyEvent>,
    /// BLAKE3 hash of the bytes that are to leave.
    pub release: [u8; 32],
}

/// A debit that was recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct LedgerEntry {
    /// Counts from 1.
    pub sequence: u64,
    /// Hash of the record before.
    #[serde(with = "hex")]
    pub previous: [u8; 32],
    /// When it was recorded, in milliseconds since the Unix epoch; never decreases.
    pub recorded_ms: u64,
    /// The owner of the ledger.
    pub tenant: String,
    /// The dataset that paid.
    pub dataset: String,
    /// The job that asked.
    pub job: String,
    /// Its round.
    pub round: u64,
    /// The privacy unit: `record` or `tenant`.
    pub unit: String,
    /// Everything that the release reveals.
    pub events: Vec<PrivacyEvent>,
    /// BLAKE3 hash of the bytes that may leave.
    #[serde(with = "hex")]
    pub release: [u8; 32],
}

impl LedgerEntry {
    pub(super) fn new(
        sequence: u64,
        previous: [u8; 32],
        tenant: String,
        recorded_ms: u64,
        request: DebitRequest,
    ) -> Self {
        let DebitRequest { dataset, job, round, unit, events, release } = request;
        Self { sequence, previous, recorded_ms, tenant, dataset, job, round, unit, events, release }
    }
}

/// Where a chain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerHead {
    /// Number of entries.
    pub sequence: u64,
    /// Hash of the last one; of the tenant's name if there is none.
    #[serde(with = "hex")]
    pub hash: [u8; 32],
}

/// The hash that the first record of a tenant's ledger follows.
pub(super) fn genesis(tenant: &str) -> [u8; 32] {
    blake3::derive_key(GENESIS_CONTEXT, tenant.as_bytes())
}

/// The bytes of a record, line feed included, and its hash.
pub(super) fn encode(entry: &LedgerEntry) -> (Vec<u8>, [u8; 32]) {
    let mut line =
        serde_json::to_vec(entry).expect("a record has no map and no unserialisable key");
    // The closing brace gives way to the hash field; the hash covers everything before that.
    line.pop();
    let hash = *blake3::hash(&line).as_bytes();
    line.extend_from_slice(HASH_FIELD);
    line.extend_from_slice(HEXLOWER.encode(&hash).as_bytes());
    line.extend_from_slice(b"\"}\n");
    (line, hash)
}

/// Verifies the hash of a line (without its line feed) and reads the record.
pub(super) fn decode(line: &[u8]) -> Result<(LedgerEntry, [u8; 32]), DamageReason> {
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
    let entry = serde_json::from_slice(&document).map_err(|_| DamageReason::Form)?;
    Ok((entry, hash))
}

/// 32 bytes as lower-case hexadecimal digits.
mod hex {
    use data_encoding::HEXLOWER;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(
        bytes: &[u8; 32],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&HEXLOWER.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(D::Error::custom)?;
        bytes.try_into().map_err(|_| D::Error::custom("a hash needs 64 hexadecimal digits"))
    }
}
