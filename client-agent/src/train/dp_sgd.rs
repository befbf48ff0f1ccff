//! DP-SGD on one tenant's records.

use std::ops::ControlFlow;

use tributary_privacy::{
    mechanism::{ClippedGradientSum, GradientSum, NoisyGradientSum},
    noise::NoiseSource,
};

use super::{LocalTask, TrainError, sampling::poisson_batch};
use crate::{
    data::Dataset,
    model::{Model, Tape, cross_entropy_sum},
};

/// Examples of one physical batch, at most; a larger one no longer fits the processor's cache.
const MICRO_BATCH_MAX: usize = 256;

/// Trains privately and returns the client update `trained − base`, in model units.
///
/// Every step draws a Poisson batch, clips each example's gradient, adds noise through
/// `mechanism`, and moves the model by the noisy sum divided by the fixed, public
/// `plan.batch_size_expected`, whatever the batch's real size. An empty batch is a step of pure
/// noise.
///
/// - Neighbouring relation: add or remove one record of `task.train`.
/// - Sensitivity of a step: the mechanism's clipping norm.
/// - Randomness: `noise`, for the sampling and for the mechanism.
/// - `progress`: called after each step with its number, from 1, and the number of steps; may stop
///   the training
///
/// The returned update is a post-processing of `plan.local_steps` releases, each accounted as
/// Poisson-subsampled Gaussian with `plan.sampling_rate` and the mechanism's noise multiplier.
///
/// # Errors
/// [`TrainError`]; nothing is released then.
///
/// Source: Abadi et al. 2016, arXiv:1607.00133.
pub fn dp_sgd(
    task: &LocalTask<'_>,
    mechanism: &NoisyGradientSum,
    noise: &mut impl NoiseSource,
    progress: &mut dyn FnMut(u32, u32) -> ControlFlow<()>,
) -> Result<Vec<f32>, TrainError> {
    let (plan, parameters) = (task.plan, task.spec.num_parameters());
    check_dimension(mechanism.dimension(), parameters)?;
    let model = task.model()?;
    let clipping_norm = mechanism.float_clipping_norm();
    let rate = plan.client_learning_rate / f64::from(plan.batch_size_expected);
    for step in 1..=plan.local_steps {
        let batch = poisson_batch(task.train, plan.sampling_rate, noise);
        let micro_batch = micro_batch_size(batch.len());
        let mut sum = mechanism.begin();
        add_clipped_batch(&model, task.data, &batch, micro_batch, clipping_norm, &mut sum)
            .map_err(|error| error.at(step))?;
        let noisy_sum = mechanism.release(sum, noise)?;
        model.add_scaled(&noisy_sum, -rate as f32)?;
        task.report(step, progress)?;
    }
    task.client_update(&model)
}

/// Takes the one step of a round of federated SGD, but for the noise.
///
/// Draws one Poisson batch, clips each example's gradient, and returns the *negated* sum, the
/// direction in which the model should move, in whole grid units: for jobs whose noise is made of
/// many tenants' shares under secure aggregation. The caller adds its share and its masks; until
/// then **nothing is private**. The sum over all tenants, divided by the fixed, public denominator,
/// is a client update of step size 1.
///
/// - Neighbouring relation: add or remove one record of `task.train`.
/// - Sensitivity: `clipped.sensitivity()` grid units in L2.
/// - Randomness: `noise`, for the sampling and the rounding.
/// - `task.plan`: its `sampling_rate` alone matters
///
/// # Errors
/// [`TrainError`]; nothing is released then.
pub fn clipped_gradient(
    task: &LocalTask<'_>,
    clipped: &ClippedGradientSum,
    noise: &mut impl NoiseSource,
) -> Result<Vec<i64>, TrainError> {
    check_dimension(clipped.dimension(), task.spec.num_parameters())?;
    let model = task.model()?;
    let batch = poisson_batch(task.train, task.plan.sampling_rate, noise);
    let (micro_batch, norm) = (micro_batch_size(batch.len()), clipped.float_clipping_norm());
    let mut sum = clipped.begin();
    add_clipped_batch(&model, task.data, &batch, micro_batch, norm, &mut sum)
        .map_err(|error| error.at(1))?;
    let mut grid = clipped.quantize(sum, noise)?;
    for units in &mut grid {
        *units = -*units;
    }
    Ok(grid)
}

fn check_dimension(mechanism: usize, model: usize) -> Result<(), TrainError> {
    if mechanism == model {
        Ok(())
    } else {
        Err(TrainError::MechanismDimension { mechanism, model })
    }
}

/// The largest micro-batch for which the mechanism's slack covers the summation error.
fn micro_batch_size(batch: usize) -> usize {
    NoisyGradientSum::micro_batch_max(batch).clamp(1, MICRO_BATCH_MAX)
}

/// An error of a step whose number the caller adds.
enum StepError {
    Clipping(crate::model::ClippingError),
    Other(TrainError),
}

impl StepError {
    fn at(self, step: u32) -> TrainError {
        match self {
            Self::Clipping(error) => TrainError::from_clipping(error, step),
            Self::Other(error) => error,
        }
    }
}

impl<E: Into<TrainError>> From<E> for StepError {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

fn add_clipped_batch(
    model: &Model,
    data: &Dataset,
    batch: &[u32],
    micro_batch: usize,
    clipping_norm: f64,
    sum: &mut GradientSum,
) -> Result<(), StepError> {
    let mut micro_sum = vec![0.0; model.spec().num_parameters()];
    for indices in batch.chunks(micro_batch) {
        micro_sum.fill(0.0);
        let (inputs, labels) = data.batch(indices)?;
        let tape = Tape::default();
        let loss = cross_entropy_sum(&model.run(&inputs, Some(&tape))?, &labels)?;
        loss.backward()?;
        tape.add_clipped_sum(indices.len(), clipping_norm, &mut micro_sum)
            .map_err(StepError::Clipping)?;
        sum.add(&micro_sum, indices.len())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tributary_privacy::{clip::ClippingNorm, noise::SecureNoise};
    use tributary_protocol::model::{MlpSpec, ModelSpec};

    use super::*;

    #[test]
    fn micro_batches_keep_within_the_mechanisms_slack() {
        for batch in [0, 1, 255, 256, 500, 512, 1_000, 4_096, 20_000] {
            let size = micro_batch_size(batch);
            assert!(size >= 1 && (size + 5) * batch <= 133_000, "{batch} in {size}");
        }
    }

    #[test]
    fn micro_batches_of_any_size_give_the_same_sum() {
        let spec = ModelSpec::Mlp(MlpSpec { inputs: 6, hidden: vec![5], classes: 3 });
        let flat: Vec<f32> = (0..spec.num_parameters()).map(|i| (i as f32).cos()).collect();
        let features = (0..6 * 90).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
        let data = Dataset::from_floats(features, 6, (0..90).map(|i| i % 3).collect(), 3);
        let batch: Vec<u32> = (0..90).collect();
        let model = Model::new(&spec, &flat).expect("valid");
        let norm = ClippingNorm::new(1.0).expect("positive");
        let mechanism = NoisyGradientSum::new(norm, 0.01, spec.num_parameters()).expect("valid");
        let release = |micro_batch| {
            let mut sum = mechanism.begin();
            let added = add_clipped_batch(&model, &data, &batch, micro_batch, 0.9, &mut sum);
            assert!(added.is_ok());
            let mut noise = SecureNoise::new().expect("entropy");
            mechanism.release(sum, &mut noise).expect("within bounds")
        };
        let whole = release(90);
        for micro_batch in [1, 7, 64] {
            for (one, other) in release(micro_batch).iter().zip(&whole) {
                // The noise of both, 0.01 a coordinate, is all that may differ: six deviations.
                assert!((one - other).abs() < 0.09, "{one} is not {other}");
            }
        }
    }
}
