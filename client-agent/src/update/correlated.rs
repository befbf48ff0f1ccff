//! A round as part of a run with correlated noise: from the state that the last round left to the
//! one that the next needs.
//!
//! The state is a file named by the release that it belongs to, written before the release is
//! debited; the ledger's newest entry of the run says which one counts. So a crash at any moment
//! leaves the run either before the round or after it. A state that is missing, damaged, of another
//! plan or of other records is never gone on with: the round begins a new run, which the ledger
//! debits as a whole.

use std::ops::ControlFlow;

use tributary_privacy::{
    clip::ClippingNorm,
    ledger::{ChainStore, RunSteps},
    mechanism::{
        BandedMatrix, CorrelatedGradientSum, MechanismError, ParticipationSchedule, PrivacyEvent,
    },
    noise::SecureNoise,
};
use tributary_protocol::{
    id::Digest,
    job::{CorrelatedNoise, JobSpec},
    message::Assignment,
};
use zeroize::Zeroizing;

use super::{ReleaseFiles, RoundData, SharedLedger, UpdateError, noisy::local_record_update};
use crate::{data::Dataset, policy::Approved};

/// Bytes before the mechanism's own state: the number of records, and the hash of these.
const HEAD: usize = 8 + 32;

/// A packed update, and how it moves its run on.
#[derive(Debug)]
pub struct RunUpdate {
    /// The packed lattice vector.
    pub packed: Vec<u8>,
    /// Its steps of the run.
    pub steps: RunSteps,
    /// What the next round of the run needs; `None` after the last one. As secret as the records.
    pub state: Option<Zeroizing<Vec<u8>>>,
}

/// The plan of a run of a job with correlated noise; `None` for other jobs.
///
/// # Errors
/// [`MechanismError`] naming the number that cannot work.
pub(crate) fn planned_run(job: &JobSpec) -> Result<Option<CorrelatedGradientSum>, MechanismError> {
    let (Some(correlated), Some(steps)) = (job.privacy.correlated, job.steps_of_run()) else {
        return Ok(None);
    };
    let CorrelatedNoise { bands, groups, .. } = correlated;
    let norm = ClippingNorm::new(job.privacy.clipping_norm)?;
    let matrix = BandedMatrix::new(bands)?;
    let schedule = ParticipationSchedule::cyclic(steps, groups)?;
    let (multiplier, dimension) = (job.privacy.noise_multiplier, job.federated_dimension());
    CorrelatedGradientSum::new(norm, multiplier, dimension, matrix, schedule).map(Some)
}

/// Where a round stands in the runs of its job, as far as ledger and files say it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RunPosition {
    /// The steps that the round would release.
    pub(super) steps: RunSteps,
    /// The release whose state the round goes on from; `None` at the start of a run.
    continued: Option<Digest>,
}

impl RunPosition {
    /// The next steps of the newest run, or the first ones of a new run where that one is over, was
    /// planned otherwise, or has lost its state.
    pub(super) fn find<S: ChainStore + Clone>(
        ledger: &SharedLedger<S>,
        files: &ReleaseFiles,
        assignment: &Assignment,
        approved: &Approved,
        event: &PrivacyEvent,
    ) -> Self {
        let (job, local_steps) = (&assignment.job, u64::from(assignment.job.training.local_steps));
        let ledger = ledger.lock();
        let newest = ledger.newest_of_runs(job.name.as_str());
        if let Some((entry, newest)) = newest {
            let release = Digest::from_bytes(entry.release);
            if entry.dataset == approved.dataset.as_str()
                && newest.event == *event
                && newest.steps_left() >= local_steps
                && files.has_state(release)
            {
                let (first_step, end_step) = (newest.end_step, newest.end_step + local_steps);
                let steps = RunSteps { first_step, end_step, ..newest.clone() };
                return Self { steps, continued: Some(release) };
            }
        }
        let run = newest.map_or(0, |(_, newest)| newest.run) + 1;
        Self::start(run, local_steps, event.clone())
    }

    const fn start(run: u64, local_steps: u64, event: PrivacyEvent) -> Self {
        let steps = RunSteps { run, first_step: 0, end_step: local_steps, event };
        Self { steps, continued: None }
    }

    /// The run as the last round left it, or a new one if that cannot be gone on with.
    fn open(
        self,
        files: &ReleaseFiles,
        data: &Dataset,
        plan: impl Fn() -> Result<CorrelatedGradientSum, MechanismError>,
    ) -> Result<(RunSteps, CorrelatedGradientSum), UpdateError> {
        let Some(release) = self.continued else { return Ok((self.steps, plan()?)) };
        match resumed(files, release, data, plan()?, self.steps.first_step) {
            Ok(run) => Ok((self.steps, run)),
            Err(reason) => {
                tracing::warn!(
                    run = self.steps.run,
                    reason,
                    "the run with correlated noise cannot go on; a new one begins, to be paid anew"
                );
                let RunSteps { run, first_step, end_step, event } = self.steps;
                Ok((Self::start(run + 1, end_step - first_step, event).steps, plan()?))
            }
        }
    }
}

fn resumed(
    files: &ReleaseFiles,
    release: Digest,
    data: &Dataset,
    plan: CorrelatedGradientSum,
    first_step: u64,
) -> Result<CorrelatedGradientSum, &'static str> {
    let bytes = files.read_state(release).ok_or("its state is missing")?;
    let (head, state) = bytes.split_first_chunk::<HEAD>().ok_or("its state is cut")?;
    let (count, digest) = head.split_first_chunk::<8>().ok_or("its state is cut")?;
    let count = usize::try_from(u64::from_le_bytes(*count)).ok();
    let count = count.filter(|&count| count <= data.len()).ok_or("records were removed")?;
    if data.digest(count) != digest {
        return Err(
            "records changed, or their order did: nobody knows any more who took part when",
        );
    }
    let run = plan.resume(state).map_err(|error| match error {
        MechanismError::RunState { reason } => reason,
        _ => "its state is damaged",
    })?;
    if run.step() == first_step { Ok(run) } else { Err("its state is of another step") }
}

/// Trains one round with correlated noise and returns its private, packed update.
///
/// - Sampling: none; step t of the run takes group t of the records, see
///   [`Trainer::correlated_sgd`](crate::train::Trainer::correlated_sgd).
/// - Randomness: the operating system's CSPRNG.
/// - `progress`: called after each step with its number, from 1, and the number of steps; may stop
///   the training
///
/// Nothing is released by calling this: the bytes may leave only through
/// [`release_run`](super::release_run()).
///
/// # Errors
/// [`UpdateError`] naming what failed; [`UpdateError::Cancelled`] if `progress` stopped it.
pub fn correlated_update<S: ChainStore + Clone>(
    ledger: &SharedLedger<S>,
    files: &ReleaseFiles,
    assignment: &Assignment,
    approved: &Approved,
    round: RoundData<'_>,
    progress: &mut dyn FnMut(u32, u32) -> ControlFlow<()>,
) -> Result<RunUpdate, UpdateError> {
    let job = &assignment.job;
    let plan = || planned_run(job)?.ok_or(MechanismError::RunState { reason: "it has no plan" });
    let event = plan()?.event();
    let position = RunPosition::find(ledger, files, assignment, approved, &event);
    let (steps, mut run) = position.open(files, round.data, plan)?;
    let mut noise = SecureNoise::new()?;
    let packed = local_record_update(assignment, round, |trainer, task| {
        trainer.correlated_sgd(task, &mut run, &mut noise, progress)
    })?;
    let state = (steps.steps_left() > 0).then(|| {
        let count = round.data.len();
        let own = run.to_secret_bytes();
        let mut bytes = Zeroizing::new(Vec::with_capacity(HEAD + own.len()));
        bytes.extend_from_slice(&(count as u64).to_le_bytes());
        bytes.extend_from_slice(&round.data.digest(count));
        bytes.extend_from_slice(&own);
        bytes
    });
    Ok(RunUpdate { packed, steps, state })
}

#[cfg(test)]
mod tests;
