//! Small durable records: tenants, jobs with their rounds, model versions.
//!
//! A [`Batch`] is applied atomically and is durable when [`Store::apply`] returns. Models and
//! updates are not records but content-addressed files ([`crate::blobs`]).

mod integrity;
mod memory;
mod sled;
#[cfg(test)]
mod tests;

use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

pub use self::{memory::MemoryStore, sled::SledStore};

/// What kind of record a key belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// [`crate::tenants::TenantRecord`] by tenant id.
    Tenants,
    /// [`crate::scheduler::JobRecord`] by job id.
    Jobs,
    /// [`crate::registry::ModelVersion`] by job id and version.
    Models,
    /// [`crate::scheduler::RoundSummary`] by job id and round number.
    Rounds,
    /// [`crate::scheduler::AggregationRecord`] by job id.
    Aggregations,
    /// [`crate::scheduler::AnswerRecord`] by job id and tenant id.
    Answers,
    /// The head of the audit log, under `head`.
    Audit,
    /// [`crate::access::TokenRecord`] by token name.
    Tokens,
    /// [`crate::registry::Promotion`] by job id.
    Promotions,
}

impl Table {
    /// Every table: what a backup copies.
    pub const ALL: [Self; 9] = [
        Self::Tenants,
        Self::Jobs,
        Self::Models,
        Self::Rounds,
        Self::Aggregations,
        Self::Answers,
        Self::Audit,
        Self::Tokens,
        Self::Promotions,
    ];

    /// The name in the store and in backups.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tenants => "tenants",
            Self::Jobs => "jobs",
            Self::Models => "models",
            Self::Rounds => "rounds",
            Self::Aggregations => "aggregations",
            Self::Answers => "answers",
            Self::Audit => "audit",
            Self::Tokens => "tokens",
            Self::Promotions => "promotions",
        }
    }
}

/// Says why records cannot be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has the store open.
    #[error("the store at {path} is in use; is another coordinator running on it?")]
    Locked {
        /// Where.
        path: std::path::PathBuf,
        /// What the store says.
        #[source]
        source: ::sled::Error,
    },
    /// The store failed; nothing of the batch is applied.
    #[error("the store at {path} failed; check the disk, then start again: nothing was reset")]
    Backend {
        /// Where.
        path: std::path::PathBuf,
        /// What the store says.
        #[source]
        source: ::sled::Error,
    },
    /// The store lost records, or they were changed.
    #[error(
        "the store at {path} is damaged: {reason}; nothing was reset, put the newest backup in its \
         place with `tributary-coordinator restore`"
    )]
    Corrupt {
        /// Where.
        path: std::path::PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A record that another one refers to is not there.
    #[error(
        "record {key:?} of table {table} is missing; put the newest backup in place of the store with \
         `tributary-coordinator restore`"
    )]
    Missing {
        /// The table.
        table: &'static str,
        /// The key.
        key: String,
    },
    /// A record does not parse. It is left as it is.
    #[error(
        "record {key:?} of table {table} is damaged or from another version; put the newest backup in \
         its place with `tributary-coordinator restore`"
    )]
    Damaged {
        /// The table.
        table: &'static str,
        /// The key.
        key: String,
        /// What the parser met.
        #[source]
        source: serde_json::Error,
    },
}

/// Writes that become durable together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    writes: Vec<(Table, String, Vec<u8>)>,
}

impl Batch {
    /// Adds a record, replacing an earlier one with this key.
    pub fn put<T: Serialize>(&mut self, table: Table, key: impl Into<String>, record: &T) {
        let value = serde_json::to_vec(record).expect("records are plain data with string keys");
        self.writes.push((table, key.into(), value));
    }

    /// Adds the records of another batch, after its own.
    pub fn append(&mut self, mut later: Self) {
        self.writes.append(&mut later.writes);
    }

    /// Adds a record as it was stored.
    pub(crate) fn put_bytes(&mut self, table: Table, key: String, value: Vec<u8>) {
        self.writes.push((table, key, value));
    }

    /// The tables that it writes to, once for each record.
    #[cfg(test)]
    pub(crate) fn tables(&self) -> impl Iterator<Item = Table> {
        self.writes.iter().map(|(table, ..)| *table)
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

/// A durable map of records.
pub trait Store: Send {
    /// All records of a table, in key order, as bytes.
    ///
    /// # Errors
    /// [`StoreError::Backend`].
    fn scan(&self, table: Table) -> Result<Vec<(String, Vec<u8>)>, StoreError>;

    /// Applies every write of the batch or none; durable on return.
    ///
    /// # Errors
    /// [`StoreError::Backend`].
    fn apply(&mut self, batch: &Batch) -> Result<(), StoreError>;
}

/// Reads and parses a whole table.
///
/// # Errors
/// [`StoreError`]; a record that does not parse stops the read, it is never skipped.
pub fn load<T: DeserializeOwned>(store: &dyn Store, table: Table) -> Result<Vec<T>, StoreError> {
    let parse = |(key, value): (String, Vec<u8>)| {
        serde_json::from_slice(&value).map_err(|source| StoreError::Damaged {
            table: table.name(),
            key,
            source,
        })
    };
    store.scan(table)?.into_iter().map(parse).collect()
}
