//! Append-only, hash-chained records: the shape of the privacy ledger and of an audit log.
//!
//! The bytes are JSON lines. Every line ends in the BLAKE3 hash of its own preceding bytes, which
//! begin with its sequence number and the hash before it, so an edit, a removal or a reordering
//! breaks the chain. What a chain cannot show is a file cut back to an older state: whoever needs
//! to see that keeps a [`ChainHead`] elsewhere and compares.

mod line;
mod memory;
mod store;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

pub use self::{
    line::hex,
    memory::{MemoryChainError, MemoryChainStore},
    store::ChainStore,
};

/// A record that says where in its chain it stands. Its fields `sequence` and `previous` come first.
pub trait ChainRecord: Serialize + DeserializeOwned {
    /// Counts from 1.
    fn sequence(&self) -> u64;

    /// Hash of the record before.
    fn previous(&self) -> [u8; 32];
}

/// Where a chain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainHead {
    /// Number of records.
    pub sequence: u64,
    /// Hash of the last one; the chain's genesis hash if there is none.
    #[serde(with = "hex")]
    pub hash: [u8; 32],
}

/// Says why a chain cannot be read or continued.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ChainError {
    /// The store failed; whether a record was written is unknown until the chain is reopened.
    #[error("the chain's store failed")]
    Store {
        /// What the store said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An earlier store failure left the state unknown.
    #[error("an earlier write failed; reopen the chain before using it")]
    NeedsReopen,
    /// A line is not a record of this chain, or its hash is wrong.
    #[error("line {line} is damaged: {reason}")]
    Damaged {
        /// Counted from 1.
        line: u64,
        /// What does not hold.
        reason: DamageReason,
    },
}

/// What is wrong with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DamageReason {
    /// Not a JSON record of the known form.
    #[error("it is not a record of the known form")]
    Form,
    /// The hash does not match the bytes.
    #[error("its bytes do not match its hash")]
    Hash,
    /// It does not follow the record before it.
    #[error("it does not follow the record before it")]
    Chain,
    /// It belongs to another tenant.
    #[error("it belongs to another tenant")]
    Tenant,
}

/// A chain over a durable store. It keeps no records, only where it ends.
#[derive(Debug)]
pub struct HashChain<S> {
    store: S,
    head: ChainHead,
    needs_reopen: bool,
}

impl<S: ChainStore> HashChain<S> {
    /// Reads and verifies the whole chain, and hands every record with its hash to `take`.
    ///
    /// A last line without its line feed is an append that never finished. If the line is complete
    /// in itself it is kept, else it is cut off. Any other damage is an error; nothing is ever reset
    /// silently.
    ///
    /// - `genesis`: what the first record follows
    /// - `examine`: what else must hold of a record, before it counts
    ///
    /// # Errors
    /// [`ChainError::Damaged`] names the line; [`ChainError::Store`] if the store fails.
    pub fn open<R: ChainRecord>(
        mut store: S,
        genesis: [u8; 32],
        mut examine: impl FnMut(&R) -> Result<(), DamageReason>,
        mut take: impl FnMut(R, [u8; 32]),
    ) -> Result<Self, ChainError> {
        let bytes = store.read().map_err(store_error)?;
        let mut head = ChainHead { sequence: 0, hash: genesis };
        let mut accept = |line: &[u8]| -> Result<(), ChainError> {
            let (record, hash) = follow(&head, line, &mut examine)
                .map_err(|reason| ChainError::Damaged { line: head.sequence + 1, reason })?;
            head = ChainHead { sequence: head.sequence + 1, hash };
            take(record, hash);
            Ok(())
        };
        let finished = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        for line in bytes[..finished].split_inclusive(|&byte| byte == b'\n') {
            accept(&line[..line.len() - 1])?;
        }
        let torn = &bytes[finished..];
        if !torn.is_empty() {
            if accept(torn).is_ok() {
                store.append_durably(b"\n").map_err(store_error)?;
            } else {
                store.truncate_durably(finished as u64).map_err(store_error)?;
            }
        }
        Ok(Self { store, head, needs_reopen: false })
    }

    /// Where the chain ends.
    #[must_use]
    pub const fn head(&self) -> ChainHead {
        self.head
    }

    /// Appends a record; it is durable when this returns `Ok`.
    ///
    /// # Errors
    /// [`ChainError::Store`] if it is unknown whether the record was written; from then on
    /// [`ChainError::NeedsReopen`].
    ///
    /// # Panics
    /// If the record does not follow the head, which is a bug of the caller.
    pub fn append<R: ChainRecord>(&mut self, record: &R) -> Result<ChainHead, ChainError> {
        self.require_usable()?;
        assert!(
            record.sequence() == self.head.sequence + 1 && record.previous() == self.head.hash,
            "a record follows the head that its caller read"
        );
        let (line, hash) = line::encode(record);
        if let Err(error) = self.store.append_durably(&line) {
            self.needs_reopen = true;
            return Err(store_error(error));
        }
        self.head = ChainHead { sequence: record.sequence(), hash };
        Ok(self.head)
    }

    /// Whether records can be appended.
    ///
    /// # Errors
    /// [`ChainError::NeedsReopen`] after a failed write.
    pub const fn require_usable(&self) -> Result<(), ChainError> {
        if self.needs_reopen { Err(ChainError::NeedsReopen) } else { Ok(()) }
    }
}

/// Verifies one line (without its line feed) as the next after `head`.
fn follow<R: ChainRecord>(
    head: &ChainHead,
    line: &[u8],
    examine: &mut impl FnMut(&R) -> Result<(), DamageReason>,
) -> Result<(R, [u8; 32]), DamageReason> {
    let (record, hash) = line::decode::<R>(line)?;
    examine(&record)?;
    if record.sequence() != head.sequence + 1 || record.previous() != head.hash {
        return Err(DamageReason::Chain);
    }
    Ok((record, hash))
}

fn store_error(source: impl std::error::Error + Send + Sync + 'static) -> ChainError {
    ChainError::Store { source: Box::new(source) }
}
