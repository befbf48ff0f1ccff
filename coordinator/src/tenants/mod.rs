//! Who may take part: tenant records, enrolment and the certificate authority.

pub mod authority;
mod enrollment;

use serde::{Deserialize, Serialize};
use tributary_protocol::{
    id::{Digest, Region, TenantId},
    message::LedgerHead,
    time::Timestamp,
};

pub use self::enrollment::{EnrollmentError, Invitation, invite};
use crate::store::{Batch, Table};

/// What every call, log line and decision about a tenant carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantContext {
    /// Who.
    pub id: TenantId,
    /// Where its agent and data are.
    pub region: Region,
}

/// A tenant as the coordinator knows it, durably.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantRecord {
    /// Id and region.
    pub context: TenantContext,
    /// The outstanding or used invitation.
    pub invitation: Invitation,
    /// BLAKE3 of the certificate that its agent must show; `None` before enrolment.
    pub certificate: Option<Digest>,
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
