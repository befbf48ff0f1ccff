//! What every call, log line and decision about a tenant carries.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use tributary_protocol::{
    id::{Region, TenantId},
    isolation::Isolation,
};

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
    /// The name in files, in logs and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Serve => "serve",
        }
    }

    /// The names of several roles, in one text.
    #[must_use]
    pub fn names(roles: &BTreeSet<Self>) -> String {
        roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(",")
    }

    /// Every role: what a tenant has unless somebody takes it away.
    #[must_use]
    pub fn all() -> BTreeSet<Self> {
        BTreeSet::from([Self::Train, Self::Serve])
    }
}
