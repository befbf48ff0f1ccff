//! What goes into a round and what comes out of it.

use std::collections::{BTreeMap, BTreeSet};

use tributary_privacy::secagg::Blob;
use tributary_protocol::{
    error_code::Refusal,
    id::{Digest, RoundNumber, TenantId},
    time::Timestamp,
};

use super::{Aggregation, Answer, Request, RoundRecord};

/// What happened outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Who could take part.
    Available {
        /// Connected, eligible and not declining the job.
        tenants: BTreeSet<TenantId>,
        /// How many tenants could be available if all were connected.
        population: usize,
    },
    /// A tenant (re)connected and should hear again what it is to do.
    Connected(TenantId),
    /// A cohort member starts training, or goes on after a reconnection.
    Accepted {
        /// Who.
        tenant: TenantId,
        /// What its signatures are verified with, where the round needs that.
        credential: Option<Blob>,
    },
    /// A cohort member will not report.
    Declined(TenantId, Refusal),
    /// A cohort member's update is durable at the coordinator.
    Reported(TenantId, Digest),
}

/// What the driver must do, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Make this record durable before going on.
    Persist(Box<RoundRecord>),
    /// Make this answer durable before going on: with it, the record before is the round's.
    Note(Answer),
    /// Send the tenant its assignment; the report is due at the given time.
    Configure(TenantId, Timestamp),
    /// Ask the tenant for its part in a step of secure aggregation.
    Ask(TenantId, Request),
    /// Aggregate these updates and make the new model durable together with this round's record.
    Commit {
        /// Whose updates are summed.
        contributors: BTreeMap<TenantId, Digest>,
        /// Removes the masks of the sum, if the updates are masked.
        unmask: Option<Box<Aggregation>>,
    },
    /// Tell a tenant that its part in an asynchronous round has ended.
    Dismiss {
        /// Who.
        tenant: TenantId,
        /// The round under which it reported, or would have.
        round: RoundNumber,
        /// Why its update is not wanted, unless it is counted.
        abandoned: Option<String>,
    },
    /// Tell these tenants that the round is closed and why it was abandoned, if it was.
    Close {
        /// Everyone who was invited.
        tenants: BTreeSet<TenantId>,
        /// The reason, unless it committed.
        abandoned: Option<String>,
    },
}
