//! From an approved assignment to packed, noisy bytes, in memory only.

use std::ops::ControlFlow;

use tributary_privacy::{
    clip::{ClippingNorm, LayerNorms, clip_l2, l2_norm},
    lattice::{Lattice, Rotation},
    mechanism::{ClipVote, MechanismError, NoisyGradientSum, NoisyUpdate},
    noise::SecureNoise,
};
use tributary_protocol::{
    job::{Clipping, JobSpec, PrivacyUnit},
    message::Assignment,
};

use super::UpdateError;
use crate::{
    compute,
    data::Dataset,
    model::ExampleClip,
    train::{LocalTask, TrainError, Trainer},
};

/// What a round trains from and on.
#[derive(Debug, Clone, Copy)]
pub struct RoundData<'a> {
    /// The flat parameters of the round's base.
    pub base: &'a [f32],
    /// The tenant's records.
    pub data: &'a Dataset,
    /// Which of them train.
    pub train: &'a [u32],
    /// By which SCAFFOLD corrects every step; empty for none.
    pub correction: &'a [f32],
}

impl<'a> RoundData<'a> {
    /// The round's training, as the job describes it.
    fn task(&self, job: &'a JobSpec) -> LocalTask<'a> {
        LocalTask {
            spec: &job.model,
            base: self.base,
            data: self.data,
            train: self.train,
            plan: &job.training,
        }
    }
}

/// Trains one round and returns its differentially private, packed update.
///
/// - `record` unit: DP-SGD; the private update is then clipped to `training.update_norm_max` and
///   put on the lattice, which is post-processing.
/// - `tenant` unit: plain SGD; the whole update is clipped and noised on the lattice. Where the
///   clipping norm adapts, a noisy vote on it is one more coordinate.
/// - Clipping is flat or per layer, and the clipped update is rotated, as the job says.
/// - Noise that is correlated over rounds is not made here, but by
///   [`correlated_update`](super::correlated_update()).
/// - Randomness: the operating system's CSPRNG.
/// - `progress`: called after each step with its number, from 1, and the number of steps; may stop
///   the training
///
/// Nothing is released by calling this: the bytes may leave only through
/// [`release`](super::release()).
///
/// # Errors
/// [`UpdateError`] naming what failed; [`UpdateError::Cancelled`] if `progress` stopped it.
pub fn noisy_update(
    assignment: &Assignment,
    round: RoundData<'_>,
    progress: &mut dyn FnMut(u32, u32) -> ControlFlow<()>,
) -> Result<Vec<u8>, UpdateError> {
    let job = &assignment.job;
    let (privacy, dimension) = (&job.privacy, job.federated_dimension());
    let lattice = Lattice::new(assignment.lattice.step, assignment.lattice.bits)?;
    let clipping_norm = ClippingNorm::new(privacy.clipping_norm)?;
    let mut noise = SecureNoise::new()?;
    match privacy.unit {
        PrivacyUnit::Record if privacy.correlated.is_some() => {
            let reason = "this round was not trained as a part of its run";
            Err(MechanismError::RunState { reason }.into())
        }
        PrivacyUnit::Record => {
            let mechanism =
                NoisyGradientSum::new(clipping_norm, privacy.noise_multiplier, dimension)?;
            local_record_update(assignment, round, |trainer, task| {
                trainer.dp_sgd(task, &mechanism, &mut noise, progress)
            })
        }
        PrivacyUnit::Tenant => {
            let task = round.task(job);
            let mechanism =
                NoisyUpdate::new(lattice, clipping_norm, privacy.noise_multiplier, dimension)?;
            let mut trainer = Trainer::of(&job.model, job.federated, compute::threads())?;
            trainer.correct_by(round.correction.to_vec());
            let mut update = trainer.local_sgd(&task, &mut noise, progress)?;
            let norm = l2_norm(&update)?;
            if privacy.clipping == Clipping::PerLayer {
                let layers = job.federated.layer_lengths(&job.model);
                LayerNorms::even(&layers, clipping_norm)?.clip(&mut update)?;
            } else {
                clip_l2(&mut update, clipping_norm)?;
            }
            rotate(assignment, &mut update);
            let mut grid = mechanism.noised(&mut update, &mut noise)?;
            if let Some(vote) = clip_vote(job, lattice)? {
                grid.push(vote.cast(norm <= clipping_norm.value(), &mut noise));
            }
            Ok(lattice.pack(&grid))
        }
    }
}

/// Trains with noise at every step, and brings the private update to the lattice, which is
/// post-processing.
pub(super) fn local_record_update(
    assignment: &Assignment,
    round: RoundData<'_>,
    train: impl FnOnce(&mut Trainer, &LocalTask<'_>) -> Result<Vec<f32>, TrainError>,
) -> Result<Vec<u8>, UpdateError> {
    let job = &assignment.job;
    let lattice = Lattice::new(assignment.lattice.step, assignment.lattice.bits)?;
    let clip = match job.privacy.clipping {
        Clipping::PerLayer => ExampleClip::PerLayer,
        Clipping::Flat | Clipping::Adaptive(_) => ExampleClip::Flat,
    };
    let mut trainer = Trainer::of(&job.model, job.federated, compute::threads())?.clipping(clip);
    trainer.correct_by(round.correction.to_vec());
    let mut update = train(&mut trainer, &round.task(job))?;
    let norm_max = ClippingNorm::new(job.training.update_norm_max)?;
    clip_l2(&mut update, norm_max)?;
    rotate(assignment, &mut update);
    Ok(lattice.pack(&lattice.quantize(&update, norm_max)?))
}

/// Applies the round's rotation, if the job has one.
fn rotate(assignment: &Assignment, update: &mut [f32]) {
    if let Some(seed) = assignment.job.rotation_seed(assignment.round) {
        Rotation::new(seed, update.len()).apply(update);
    }
}

/// The vote on the clipping norm, where it adapts.
///
/// # Errors
/// [`MechanismError`] if the lattice cannot carry it.
pub(crate) fn clip_vote(
    job: &JobSpec,
    lattice: Lattice,
) -> Result<Option<ClipVote>, MechanismError> {
    let Some(adaptive) = job.privacy.adaptive() else { return Ok(None) };
    let clipping_norm = ClippingNorm::new(job.privacy.clipping_norm)?;
    let multiplier = job.privacy.noise_multiplier;
    ClipVote::new(lattice, clipping_norm, multiplier, adaptive.count_noise_multiplier).map(Some)
}
