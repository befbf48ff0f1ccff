//! The audit log: every administrative act and every privacy decision, in a file that only grows.
//!
//! It is a [`tributary_privacy::chain`], like the privacy ledger of an agent, so an edit, a removal
//! or a reordering of lines breaks it. That lines were cut off its end shows against the head that
//! the store keeps, or against a head that an auditor noted elsewhere.
//!
//! An act is in the log before it takes effect: a crash between the two leaves an entry of something
//! that did not become durable, or an entry twice, never an act without entry.
//!
//! Trust: the log guards against accidents, restored backups and edits by people who cannot also
//! rewrite the store. Whoever owns the whole machine can make a new log; only a head noted elsewhere
//! shows that.

mod entry;
mod file;

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
};

use thiserror::Error;
use tributary_privacy::chain::{ChainError, ChainHead, HashChain, MemoryChainStore};
use tributary_protocol::{id::Digest, time::Timestamp};

pub use self::{
    entry::{Act, Actor, AuditEntry, AuditEvent, Outcome},
    file::{AuditFile, AuditFileError},
};

/// Name of the log in the coordinator's folder.
pub const FILE_NAME: &str = "audit.jsonl";

/// Separates the hashes of this log from all others.
const GENESIS_CONTEXT: &str = "tributary 2026 audit log, version 1, genesis";

/// Says why the audit log cannot be used. It is left as it is.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] AuditFileError),
    /// A line is damaged, or the disk failed.
    #[error("the audit log cannot be used; nothing was reset")]
    Chain(#[source] ChainError),
    /// Lines are missing at its end.
    #[error(
        "the audit log ends at entry {found}, but entry {noted} was noted: lines were cut off, or \
         the file is an older copy; put the newer file back"
    )]
    Cut {
        /// The last entry.
        found: u64,
        /// The entry that was noted.
        noted: u64,
    },
    /// The log is whole in itself, but another one than was noted.
    #[error("entry {sequence} of the audit log is not the one that was noted; it was rewritten")]
    Rewritten {
        /// The entry.
        sequence: u64,
    },
}

/// The log of a running coordinator.
#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
    genesis: [u8; 32],
    chain: HashChain<AuditFile>,
    last_recorded: Timestamp,
}

impl AuditLog {
    /// Opens the log of a folder, makes an empty one if there is none, and verifies it.
    ///
    /// - `authority`: fingerprint of the coordinator's authority; a log of another does not fit
    /// - `noted`: the head that the store keeps
    ///
    /// # Errors
    /// [`AuditError`] if it is damaged, cut or rewritten.
    pub fn open(
        folder: &Path,
        authority: Digest,
        noted: Option<ChainHead>,
    ) -> Result<Self, AuditError> {
        let (path, genesis) = (folder.join(FILE_NAME), genesis(authority));
        let mut replay = Replay::new(noted, genesis);
        let file = AuditFile::open(&path)?;
        let chain = HashChain::open(
            file,
            genesis,
            |_: &AuditEntry| Ok(()),
            |entry, hash| {
                replay.take(&entry, hash);
            },
        )
        .map_err(AuditError::Chain)?;
        replay.finish(chain.head())?;
        Ok(Self { path, genesis, chain, last_recorded: replay.last_recorded })
    }

    /// Where the log ends.
    #[must_use]
    pub const fn head(&self) -> ChainHead {
        self.chain.head()
    }

    /// Appends an event; it is durable on return.
    ///
    /// # Errors
    /// [`AuditError::Chain`]; the coordinator must then stop.
    pub fn append(&mut self, event: AuditEvent, now: Timestamp) -> Result<(), AuditError> {
        // A clock that runs backwards is recorded as standing still.
        self.last_recorded = self.last_recorded.max(now);
        let entry = AuditEntry::new(self.chain.head(), self.last_recorded, event);
        self.chain.append(&entry).map(|_| ()).map_err(AuditError::Chain)
    }

    /// Reads the file beside the log, up to here and what comes later.
    #[must_use]
    pub fn reader(&self) -> AuditReader {
        AuditReader { path: self.path.clone(), genesis: self.genesis, noted: Some(self.head()) }
    }
}

/// Reads and verifies the file of a log without changing it.
#[derive(Debug, Clone)]
pub struct AuditReader {
    path: PathBuf,
    genesis: [u8; 32],
    noted: Option<ChainHead>,
}

impl AuditReader {
    /// The log of a folder, beside a running coordinator or without one.
    ///
    /// - `noted`: a head that somebody wrote down
    #[must_use]
    pub fn new(folder: &Path, authority: Digest, noted: Option<ChainHead>) -> Self {
        Self { path: folder.join(FILE_NAME), genesis: genesis(authority), noted }
    }

    /// Verifies every line, and that the noted head is among them.
    ///
    /// # Errors
    /// [`AuditError`] naming the first line that does not hold.
    pub fn verify(&self) -> Result<ChainHead, AuditError> {
        self.replay(|_| {})
    }

    /// The newest entries, oldest first.
    ///
    /// - `last`: how many at most
    ///
    /// # Errors
    /// [`AuditError`] if the file no longer verifies.
    pub fn tail(&self, last: usize) -> Result<Vec<AuditEntry>, AuditError> {
        self.page(last, None)
    }

    /// The newest entries before one, oldest first.
    ///
    /// - `last`: how many at most
    /// - `before`: the number of the entry before which they end; `None` at the end of the log
    ///
    /// # Errors
    /// [`AuditError`] if the file no longer verifies.
    pub fn page(&self, last: usize, before: Option<u64>) -> Result<Vec<AuditEntry>, AuditError> {
        let mut entries = VecDeque::new();
        self.replay(|entry| {
            if before.is_some_and(|before| entry.sequence >= before) {
                return;
            }
            entries.push_back(entry);
            if entries.len() > last {
                entries.pop_front();
            }
        })?;
        Ok(entries.into())
    }

    fn replay(&self, take: impl FnMut(AuditEntry)) -> Result<ChainHead, AuditError> {
        verify(AuditFile::bytes(&self.path)?, self.genesis, self.noted, take)
    }
}

fn genesis(authority: Digest) -> [u8; 32] {
    blake3::derive_key(GENESIS_CONTEXT, authority.as_bytes())
}

fn verify(
    bytes: Vec<u8>,
    genesis: [u8; 32],
    noted: Option<ChainHead>,
    mut take: impl FnMut(AuditEntry),
) -> Result<ChainHead, AuditError> {
    let mut replay = Replay::new(noted, genesis);
    let copy = MemoryChainStore::with_bytes(bytes);
    let chain = HashChain::open(
        copy,
        genesis,
        |_: &AuditEntry| Ok(()),
        |entry, hash| {
            replay.take(&entry, hash);
            take(entry);
        },
    )
    .map_err(AuditError::Chain)?;
    replay.finish(chain.head())?;
    Ok(chain.head())
}

/// Looks for the noted head while the chain is read.
struct Replay {
    noted: Option<ChainHead>,
    found: bool,
    last_recorded: Timestamp,
}

impl Replay {
    fn new(noted: Option<ChainHead>, genesis: [u8; 32]) -> Self {
        let found = noted.is_none_or(|noted| noted == ChainHead { sequence: 0, hash: genesis });
        Self { noted, found, last_recorded: Timestamp(0) }
    }

    fn take(&mut self, entry: &AuditEntry, hash: [u8; 32]) {
        self.last_recorded = Timestamp(entry.recorded_ms);
        self.found |= self.noted == Some(ChainHead { sequence: entry.sequence, hash });
    }

    const fn finish(&self, head: ChainHead) -> Result<(), AuditError> {
        match self.noted {
            Some(noted) if noted.sequence > head.sequence => {
                Err(AuditError::Cut { found: head.sequence, noted: noted.sequence })
            }
            Some(noted) if !self.found => Err(AuditError::Rewritten { sequence: noted.sequence }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
