//! Plain SGD for the `tenant` privacy unit, whose whole update is clipped and noised afterwards.

use std::ops::ControlFlow;

use rand::Rng;

use super::{LocalTask, TrainError, sampling::poisson_batch};
use crate::model::{Tape, cross_entropy_sum};

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
    const MICRO_BATCH: usize = 256;
    let plan = task.plan;
    let model = task.model()?;
    let mut sum = vec![0.0; task.spec.num_parameters()];
    for step in 1..=plan.local_steps {
        let batch = poisson_batch(task.train, plan.sampling_rate, source);
        sum.fill(0.0);
        for indices in batch.chunks(MICRO_BATCH) {
            let (inputs, labels) = task.data.batch(indices)?;
            let tape = Tape::default();
            cross_entropy_sum(&model.run(&inputs, Some(&tape))?, &labels)?.backward()?;
            tape.add_sum(&mut sum)?;
        }
        if sum.iter().any(|value| !value.is_finite()) {
            return Err(TrainError::NonFiniteGradient { step });
        }
        if !batch.is_empty() {
            let rate = plan.client_learning_rate / batch.len() as f64;
            model.add_scaled(&sum, -rate as f32)?;
        }
        task.report(step, progress)?;
    }
    task.client_update(&model)
}
