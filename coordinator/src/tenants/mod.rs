//! Who may take part: tenant records, enrolment, quotas and the certificate authority.

pub mod authority;
mod context;
mod enrollment;
pub mod planner;
mod quota;

use serde::{Deserialize, Serialize};
pub use tributary_protocol::isolation::{
    ComputeIsolation, DataIsolation, Isolation, ModelIsolation,
};
use tributary_protocol::{id::Digest, message::LedgerHead, time::Timestamp};

pub use self::{
    context::{TenantContext, TenantRole},
    enrollment::{EnrollmentError, Invitation, invite},
    quota::{QuotaUsedUp, Quotas, Usage, next_day},
};
use crate::store::{Batch, Table};

/// Whether a tenant may act at all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Standing {
    /// It may.
    #[default]
    Active,
    /// Not until it is resumed; its certificate stays registered.
    Suspended {
        /// Why, for its operator.
        reason: String,
        /// Since when.
        since: Timestamp,
    },
    /// Never again with its certificate; a new invitation starts anew.
    Revoked {
        /// Why, for its operator.
        reason: String,
        /// Since when.
        since: Timestamp,
    },
}

impl Standing {
    /// The name in JSON.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended { .. } => "suspended",
            Self::Revoked { .. } => "revoked",
        }
    }
}

/// A tenant as the coordinator knows it, durably.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantRecord {
    /// Id, region, roles, quotas, isolation levels.
    pub context: TenantContext,
    /// Whether it may act at all.
    #[serde(default)]
    pub standing: Standing,
    /// What it has used today.
    #[serde(default)]
    pub usage: Usage,
    /// The outstanding or used invitation.
    pub invitation: Invitation,
    /// BLAKE3 of the certificate that its agent must show; `None` before enrolment.
    pub certificate: Option<Digest>,
    /// BLAKE3 of the certificate that takes its place once it is first shown.
    #[serde(default)]
    pub next_certificate: Option<Digest>,
    /// The newest ledger head that its agent reported.
    pub acknowledged_head: LedgerHead,
    /// When it was added.
    pub added: Timestamp,
}

impl TenantRecord {
    /// Adds the record to a batch.
    pub fn put(&self, batch: &mut Batch) {
        batch.put(Table::Tenants, self.context.id.as_str(), self);
    }

    /// Takes over a newer ledger head; returns whether it was newer.
    pub fn acknowledge(&mut self, head: LedgerHead) -> bool {
        let newer = head.sequence > self.acknowledged_head.sequence;
        if newer {
            self.acknowledged_head = head;
        }
        newer
    }
}
