//! How far a tenant is kept apart from others.

use serde::{Deserialize, Serialize};

/// How far a tenant is kept apart from others: what it needs at least, per resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Isolation {
    /// Its data.
    pub data: DataIsolation,
    /// Its model.
    pub model: ModelIsolation,
    /// What computes for it.
    pub compute: ComputeIsolation,
}

/// Levels for data, lowest first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataIsolation {
    /// 0: a store that it shares.
    #[default]
    SharedStore,
    /// 1: a keyspace and an encryption key of its own.
    OwnKeyspace,
    /// 2: a database of its own.
    OwnDatabase,
}

/// Levels for the model, lowest first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelIsolation {
    /// 0: the base model only.
    #[default]
    BaseOnly,
    /// 1: base and a private adapter.
    Adapter,
    /// 2: an independent copy.
    IndependentCopy,
}

/// Levels for computation, lowest first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ComputeIsolation {
    /// 0: a queue that it shares.
    #[default]
    SharedQueue,
    /// 1: a worker of its own.
    DedicatedWorker,
    /// 2: a process or device of its own.
    DedicatedDevice,
}
