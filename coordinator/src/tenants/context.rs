//! What every call, log line and decision about a tenant carries.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use tributary_protocol::id::{Region, TenantId};

use super::Quotas;

/// Who a tenant is, and what it may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantContext {
    /// Who.
    pub id: TenantId,
    /// Where its agent and data are.
    pub region: Region,
    /// What it takes part in.
    #[serde(default = "TenantRole::all")]
    pub roles: BTreeSet<TenantRole>,
    /// How much of it.
    #[serde(default)]
    pub quotas: Quotas,
    /// How far it is kept apart from others.
    #[serde(default)]
    pub isolation: Isolation,
}

impl TenantContext {
    /// A tenant with every role, no quotas, and the lowest isolation levels.
    #[must_use]
    pub fn new(id: TenantId, region: Region) -> Self {
        let (quotas, isolation) = (Quotas::default(), Isolation::default());
        Self { id, region, roles: TenantRole::all(), quotas, isolation }
    }
}

/// What a tenant takes part in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TenantRole {
    /// It is invited to rounds.
    Train,
    /// It hears of new base models.
    Serve,
}

impl TenantRole {
    /// Every role: what a tenant has unless somebody takes it away.
    #[must_use]
    pub fn all() -> BTreeSet<Self> {
        BTreeSet::from([Self::Train, Self::Serve])
    }
}

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
