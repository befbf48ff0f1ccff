//! The running sums of all jobs.

use std::collections::BTreeMap;

use tributary_protocol::{
    id::{JobId, TenantId},
    message::UploadOffer,
};

use super::{AggregationError, Committing, NextModel, RoundSum, lattice, make};
use crate::{
    blobs::BlobStore,
    scheduler::{Commit, Job, Scheduler},
};

/// The sums of the open rounds, by job. Nothing here is durable: what a restart forgets is added
/// again from the files when a round commits.
#[derive(Debug, Default)]
pub struct RoundSums(BTreeMap<JobId, RoundSum>);

impl RoundSums {
    /// Adds a stored update to the sum of its job's open round.
    ///
    /// - `job`: of the offer, which was checked before
    ///
    /// # Errors
    /// [`AggregationError`]; the sum is then dropped, since part of the update may be in it.
    pub fn add(
        &mut self,
        job: &Job,
        tenant: &TenantId,
        offer: &UploadOffer,
        blobs: &BlobStore,
    ) -> Result<(), AggregationError> {
        let (record, round) = (job.record(), job.round().number);
        let staleness = round.0.saturating_sub(offer.round.0) as u32;
        let mut sum = match self.0.remove(&offer.job) {
            Some(sum) if sum.round() == round => sum,
            _ => RoundSum::new(round, lattice(record.lattice)?, record.spec.wire_dimension()),
        };
        sum.add(tenant, offer.update.digest, staleness, blobs)?;
        self.0.insert(offer.job.clone(), sum);
        Ok(())
    }

    /// Makes the next base model of a round that has all its updates, durably.
    ///
    /// # Errors
    /// [`AggregationError`].
    ///
    /// # Panics
    /// If the commit is not the scheduler's.
    pub fn commit(
        &mut self,
        scheduler: &Scheduler,
        commit: &Commit,
        blobs: &BlobStore,
    ) -> Result<NextModel, AggregationError> {
        let sum = self.0.remove(&commit.job);
        let job = scheduler.job(&commit.job).expect("the commit came from this job");
        let committing = Committing {
            job: &job.record().spec,
            lattice: job.record().lattice,
            round: job.round(),
            base: scheduler.models().latest(&commit.job).expect("every job has version 0"),
            contributors: &commit.contributors,
            unmask: commit.unmask.as_deref(),
        };
        make(committing, sum, blobs)
    }
}
