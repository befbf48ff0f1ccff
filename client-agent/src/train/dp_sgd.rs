//! DP-SGD on one tenant's records.

use tributary_privacy::{
    mechanism::{GradientSum, NoisyGradientSum},
    noise::NoiseSource,
};
use tributary_protocol::model::ModelSpec;

use super::{LocalTask, TrainError, sampling::poisson_batch};
use crate::{
    data::Dataset,
    model::{ClippingError, Model, Tape, cross_entropy_sum},
};

/// Examples of one physical batch, at most; a larger one no longer fits the processor's cache.
const MICRO_BATCH_MAX: usize = 256;

/// How each example's gradient is clipped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExampleClip {
    /// All parameters jointly.
    #[default]
    Flat,
    /// Every layer to an equal share of the norm: of n layers, each to `norm / sqrt(n)`, so the
    /// whole gradient stays within the norm. The float slack of the mechanism holds as for flat
    /// clipping: each of its terms is one per coordinate, and adds up over layers in squares.
    PerLayer,
}

/// Trains privately with flat clipping; see [`dp_sgd_clipped`].
///
/// # Errors
/// [`TrainError`]; nothing is released then.
pub fn dp_sgd(
    task: &LocalTask<'_>,
    mechanism: &NoisyGradientSum,
    noise: &mut impl NoiseSource,
    progress: &mut dyn FnMut(u32, u32),
) -> Result<Vec<f32>, TrainError> {
    dp_sgd_clipped(task, ExampleClip::Flat, mechanism, noise, progress)
}

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
/// - `progress`: called after each step with its number, from 1, and the number of steps
///
/// The returned update is a post-processing of `plan.local_steps` releases, each accounted as
/// Poisson-subsampled Gaussian with `plan.sampling_rate` and the mechanism's noise multiplier.
///
/// # Errors
/// [`TrainError`]; nothing is released then.
///
/// Source: Abadi et al. 2016, arXiv:1607.00133.
pub fn dp_sgd_clipped(
    task: &LocalTask<'_>,
    clip: ExampleClip,
    mechanism: &NoisyGradientSum,
    noise: &mut impl NoiseSource,
    progress: &mut dyn FnMut(u32, u32),
) -> Result<Vec<f32>, TrainError> {
    let (plan, parameters) = (task.plan, task.spec.num_parameters());
    if mechanism.dimension() != parameters {
        let mechanism = mechanism.dimension();
        return Err(TrainError::MechanismDimension { mechanism, model: parameters });
    }
    let model = task.model()?;
    let clipping = BatchClip::new(clip, task.spec, mechanism.float_clipping_norm());
    let rate = plan.client_learning_rate / f64::from(plan.batch_size_expected);
    for step in 1..=plan.local_steps {
        let batch = poisson_batch(task.train, plan.sampling_rate, noise);
        let micro_batch = micro_batch_size(batch.len());
        let mut sum = mechanism.begin();
        add_clipped_batch(&model, task.data, &batch, micro_batch, &clipping, &mut sum)
            .map_err(|error| error.at(step))?;
        let noisy_sum = mechanism.release(sum, noise)?;
        model.add_scaled(&noisy_sum, -rate as f32)?;
        progress(step, plan.local_steps);
    }
    task.client_update(&model)
}

/// The clipping of every batch of a round.
struct BatchClip {
    /// Number of parameters of each layer; `None` clips flat.
    layers: Option<Vec<usize>>,
    /// Of the whole gradient, or of each layer.
    norm_max: f64,
}

impl BatchClip {
    fn new(clip: ExampleClip, spec: &ModelSpec, norm_max: f64) -> Self {
        match clip {
            ExampleClip::Flat => Self { layers: None, norm_max },
            ExampleClip::PerLayer => {
                let layers = spec.layer_lengths();
                let norm_max = norm_max / (layers.len() as f64).sqrt();
                Self { layers: Some(layers), norm_max }
            }
        }
    }

    fn add_to(&self, tape: &Tape, examples: usize, sum: &mut [f32]) -> Result<(), ClippingError> {
        match &self.layers {
            None => tape.add_clipped_sum(examples, self.norm_max, sum).map(drop),
            Some(layers) => tape.add_layer_clipped_sum(examples, layers, self.norm_max, sum),
        }
    }
}

/// The largest micro-batch for which the mechanism's slack covers the summation error.
fn micro_batch_size(batch: usize) -> usize {
    NoisyGradientSum::micro_batch_max(batch).clamp(1, MICRO_BATCH_MAX)
}

/// An error of a step whose number the caller adds.
enum StepError {
    Clipping(ClippingError),
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
    clip: &BatchClip,
    sum: &mut GradientSum,
) -> Result<(), StepError> {
    let mut micro_sum = vec![0.0; model.spec().num_parameters()];
    for indices in batch.chunks(micro_batch) {
        micro_sum.fill(0.0);
        let (inputs, labels) = data.batch(indices)?;
        let tape = Tape::default();
        let loss = cross_entropy_sum(&model.run(&inputs, Some(&tape))?, &labels)?;
        loss.backward()?;
        clip.add_to(&tape, indices.len(), &mut micro_sum).map_err(StepError::Clipping)?;
        sum.add(&micro_sum, indices.len())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tributary_privacy::{clip::ClippingNorm, noise::SecureNoise};
    use tributary_protocol::model::MlpSpec;

    use super::*;

    #[test]
    fn micro_batches_keep_within_the_mechanisms_slack() {
        for batch in [0, 1, 255, 256, 500, 512, 1_000, 4_096, 20_000, 60_000] {
            let size = micro_batch_size(batch);
            let (whole, rest) = (batch / size, batch % size);
            let work = whole * size * (size + 1) + rest * (rest + 1);
            assert!(size >= 1 && work <= 133_000, "{batch} in {size}: {work}");
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
            let clip = BatchClip::new(ExampleClip::Flat, &spec, 0.9);
            let added = add_clipped_batch(&model, &data, &batch, micro_batch, &clip, &mut sum);
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

    #[test]
    fn per_layer_clipping_bounds_every_layer_of_every_example() {
        let spec = ModelSpec::Mlp(MlpSpec { inputs: 6, hidden: vec![5], classes: 3 });
        let flat: Vec<f32> = (0..spec.num_parameters()).map(|i| (i as f32).cos()).collect();
        let features = (0..6 * 9).map(|i| (i as f32 * 0.37).sin() * 9.0).collect();
        let data = Dataset::from_floats(features, 6, (0..9).map(|i| i % 3).collect(), 3);
        let model = Model::new(&spec, &flat).expect("valid");
        let layers = spec.layer_lengths();
        let clipped = |clip, example: u32| {
            let clip = BatchClip::new(clip, &spec, 0.5);
            let (inputs, labels) = data.batch(&[example]).expect("there");
            let tape = Tape::default();
            let logits = model.run(&inputs, Some(&tape)).expect("runs");
            cross_entropy_sum(&logits, &labels).expect("fits").backward().expect("differentiates");
            let mut sum = vec![0.0; spec.num_parameters()];
            clip.add_to(&tape, 1, &mut sum).expect("finite");
            sum
        };
        let norm = |values: &[f32]| {
            values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt()
        };
        for example in 0..9 {
            let plain = clipped(ExampleClip::Flat, example);
            let split = clipped(ExampleClip::PerLayer, example);
            assert!(norm(&split) <= 0.5 * (1.0 + 1e-6));
            let share = 0.5 / 2.0_f64.sqrt();
            for range in [0..layers[0], layers[0]..spec.num_parameters()] {
                let (layer, of_flat) = (&split[range.clone()], &plain[range]);
                assert!(norm(layer) <= share * (1.0 + 1e-6));
                // The direction of a layer does not depend on how it is clipped.
                let dot: f64 = layer.iter().zip(of_flat).map(|(a, b)| f64::from(a * b)).sum();
                assert!((dot - norm(layer) * norm(of_flat)).abs() < 1e-6);
            }
        }
    }
}
