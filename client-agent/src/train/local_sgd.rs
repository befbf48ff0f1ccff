//! Plain SGD for the `tenant` privacy unit, whose whole update is clipped and noised afterwards.

use std::ops::ControlFlow;

use rand::Rng;

use super::{LocalTask, TrainError, Trainer};
use crate::compute;

/// Trains without noise and returns the client update `trained − base`, in model units.
///
/// Takes the steps of the same plan on Poisson batches, but with the mean over each batch's real
/// size: nothing here is released, the caller clips the whole update. An empty batch is no step.
///
/// - `source`: randomness of the sampling
/// - `progress`: called after each step with its number, from 1, and the number of steps; may stop
///   the training
///
/// # Errors
/// [`TrainError`] for records that do not fit the model, or a gradient or model that is not finite.
pub fn local_sgd(
    task: &LocalTask<'_>,
    source: &mut impl Rng,
    progress: &mut dyn FnMut(u32, u32) -> ControlFlow<()>,
) -> Result<Vec<f32>, TrainError> {
    Trainer::new(task.spec, compute::threads())?.local_sgd(task, source, progress)
}
