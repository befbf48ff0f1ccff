//! What the scheduler asks the driver to do.

use std::collections::{BTreeMap, BTreeSet};

use tributary_protocol::{
    id::{Digest, JobId, RoundNumber, TenantId},
    message::{CoordinatorMessage, LedgerHead},
};

use crate::{audit::AuditEvent, round::Aggregation, store::Batch};

/// What the driver must do, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Make these records durable before going on.
    Persist(Batch),
    /// Record this in the audit log before going on.
    Audit(AuditEvent),
    /// Send a tenant a control message, if it is connected.
    Send(TenantId, CoordinatorMessage),
    /// Sign this ledger head of a connected tenant and welcome it with that.
    Welcome(TenantId, LedgerHead),
    /// Sign this newer ledger head of a tenant, which is durable, and send it the receipt.
    Receipt(TenantId, LedgerHead),
    /// Remove these files: what was persisted before no longer refers to them.
    Discard(BTreeSet<Digest>),
    /// Remove what has arrived of uploads for this round, which is closed.
    Unstage(JobId, RoundNumber),
    /// Aggregate these updates and answer with [`Scheduler::committed`](super::Scheduler::committed).
    Commit(Commit),
}

/// A round that has all its updates.
#[derive(Debug, Clone, PartialEq)]
pub struct Commit {
    /// The job.
    pub job: JobId,
    /// The round.
    pub round: RoundNumber,
    /// Whose updates are summed.
    pub contributors: BTreeMap<TenantId, Digest>,
    /// Removes the masks of the sum, if the updates are masked.
    pub unmask: Option<Box<Aggregation>>,
}

/// What to do with an offered update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfferAnswer {
    /// It is already counted.
    Stored,
    /// Receive it.
    Receive,
}
