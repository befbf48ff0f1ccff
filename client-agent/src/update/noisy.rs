//! From an approved assignment to packed, noisy bytes, in memory only.

use std::ops::ControlFlow;

use tributary_privacy::{
    clip::{ClippingNorm, clip_l2},
    lattice::Lattice,
    mechanism::{NoisyGradientSum, NoisyUpdate},
    noise::SecureNoise,
};
use tributary_protocol::{job::PrivacyUnit, message::Assignment};

use super::UpdateError;
use crate::{
    data::Dataset,
    train::{LocalTask, dp_sgd, local_sgd},
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
}

/// Trains one round and returns its differentially private, packed update.
///
/// - `record` unit: DP-SGD; the private update is then clipped to `training.update_norm_max` and
///   put on the lattice, which is post-processing.
/// - `tenant` unit: plain SGD; the whole update is clipped and noised on the lattice.
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
    let (privacy, dimension) = (&job.privacy, job.model.num_parameters());
    let task = LocalTask {
        spec: &job.model,
        base: round.base,
        data: round.data,
        train: round.train,
        plan: &job.training,
    };
    let lattice = Lattice::new(assignment.lattice.step, assignment.lattice.bits)?;
    let clipping_norm = ClippingNorm::new(privacy.clipping_norm)?;
    let mut noise = SecureNoise::new()?;
    match privacy.unit {
        PrivacyUnit::Record => {
            let mechanism =
                NoisyGradientSum::new(clipping_norm, privacy.noise_multiplier, dimension)?;
            let mut update = dp_sgd(&task, &mechanism, &mut noise, progress)?;
            let norm_max = ClippingNorm::new(job.training.update_norm_max)?;
            clip_l2(&mut update, norm_max)?;
            Ok(lattice.pack(&lattice.quantize(&update, norm_max)?))
        }
        PrivacyUnit::Tenant => {
            let mechanism =
                NoisyUpdate::new(lattice, clipping_norm, privacy.noise_multiplier, dimension)?;
            let mut update = local_sgd(&task, &mut noise, progress)?;
            Ok(mechanism.release(&mut update, &mut noise)?)
        }
    }
}
