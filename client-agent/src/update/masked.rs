//! From an approved assignment to packed, masked bytes, in memory only.

use std::ops::ControlFlow;

use tributary_privacy::{
    clip::{ClippingNorm, clip_l2},
    distributed::DistributedNoise,
    lattice::Lattice,
    mechanism::{ClippedGradientSum, PrivacyEvent},
    noise::SecureNoise,
    secagg::SecaggError,
};
use tributary_protocol::{job::PrivacyUnit, message::Assignment};

use super::{RoundData, UpdateError};
use crate::{
    compute,
    secagg::{self, Exchange},
    train::{LocalTask, Trainer},
};

/// A masked update, and what the sum that it goes into reveals at most.
#[derive(Debug, Clone, PartialEq)]
pub struct Masked {
    /// The packed lattice vector: uniformly random to everybody without the cohort's keys.
    pub packed: Vec<u8>,
    /// What the smallest sum of the cohort reveals.
    pub event: PrivacyEvent,
}

/// Trains one round and returns its update with a share of the cohort's noise, masked and packed.
///
/// - `record` unit: the clipped gradients of one Poisson batch, summed on the lattice; the
///   coordinator takes the step.
/// - `tenant` unit: plain SGD; the whole update is clipped on the lattice.
/// - The share is sized for the fewest honest members that any committed sum of this cohort has.
/// - Randomness: the operating system's CSPRNG.
/// - `progress`: called after each step with its number, from 1, and the number of steps
///
/// Nothing is released by calling this: the bytes may leave only through
/// [`release`](super::release()).
///
/// # Errors
/// [`UpdateError`] naming what failed.
pub fn masked_update(
    assignment: &Assignment,
    round: RoundData<'_>,
    exchange: &Exchange,
    progress: &mut dyn FnMut(u32, u32) -> ControlFlow<()>,
) -> Result<Masked, UpdateError> {
    let job = &assignment.job;
    let task = LocalTask {
        spec: &job.model,
        base: round.base,
        data: round.data,
        train: round.train,
        plan: &job.training,
    };
    let lattice = Lattice::new(assignment.lattice.step, assignment.lattice.bits)?;
    let clipping_norm = ClippingNorm::new(job.privacy.clipping_norm)?;
    let mut noise = SecureNoise::new()?;
    let mut trainer = Trainer::of(&job.model, job.federated, compute::threads())?;
    let grid = match job.privacy.unit {
        PrivacyUnit::Tenant => {
            let mut update = trainer.local_sgd(&task, &mut noise, progress)?;
            clip_l2(&mut update, clipping_norm)?;
            lattice.quantize(&update, clipping_norm)?
        }
        PrivacyUnit::Record => {
            let dimension = job.federated_dimension();
            let clipped = ClippedGradientSum::new(clipping_norm, lattice.step(), dimension)?;
            trainer.clipped_gradient(&task, &clipped, &mut noise)?
        }
    };
    let terms = secagg::noise(job).ok_or(SecaggError::Context)?;
    mask(assignment, &terms, lattice, grid, exchange, &mut noise)
}

fn mask(
    assignment: &Assignment,
    terms: &DistributedNoise,
    lattice: Lattice,
    grid: Vec<i64>,
    exchange: &Exchange,
    noise: &mut SecureNoise,
) -> Result<Masked, UpdateError> {
    let plan = exchange.plan();
    let mut update = terms.add_share(&plan, lattice, grid, noise)?;
    exchange.mask(&mut update)?;
    let values: Vec<i64> = update.into_iter().map(i64::from).collect();
    let event = secagg::event(&assignment.job, terms, &plan, lattice);
    Ok(Masked { packed: lattice.pack(&values), event })
}
