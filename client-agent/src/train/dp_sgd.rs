//! DP-SGD on one tenant's records.

use std::ops::ControlFlow;

use tributary_privacy::{
    mechanism::{ClippedGradientSum, NoisyGradientSum},
    noise::NoiseSource,
};

use super::{LocalTask, TrainError, Trainer};
use crate::compute;

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
    Trainer::new(task.spec, compute::threads())?.dp_sgd(task, mechanism, noise, progress)
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
    Trainer::new(task.spec, compute::threads())?.clipped_gradient(task, clipped, noise)
}

#[cfg(test)]
mod tests {
    use tributary_privacy::{clip::ClippingNorm, noise::SecureNoise};
    use tributary_protocol::model::{MlpSpec, ModelSpec};

    use super::{super::trainer::micro_batch_size, *};
    use crate::{
        data::Dataset,
        model::{ExampleClip, Model, Tape, cross_entropy_sum},
    };

    #[test]
    fn micro_batches_keep_within_the_mechanisms_slack() {
        for batch in [0, 1, 255, 256, 500, 512, 1_000, 4_096, 20_000] {
            let size = micro_batch_size(batch, 256);
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
        let mut trainer = Trainer::new(&spec, 1).expect("valid");
        trainer.load(&flat).expect("finite");
        let norm = ClippingNorm::new(1.0).expect("positive");
        let mechanism = NoisyGradientSum::new(norm, 0.01, spec.num_parameters()).expect("valid");
        let mut release = |micro_batch| {
            let mut sum = mechanism.begin();
            trainer
                .add_clipped_in(micro_batch, &data, &batch, 0.9, &mut sum)
                .expect("finite gradients");
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

    /// The trainer's own layers against the recorded graph.
    #[test]
    fn kept_memory_and_graph_give_the_same_sums() {
        let spec = ModelSpec::Mlp(MlpSpec { inputs: 6, hidden: vec![5, 4], classes: 3 });
        let flat: Vec<f32> = (0..spec.num_parameters()).map(|i| (i as f32).cos()).collect();
        let features = (0..6 * 90).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
        let data = Dataset::from_floats(features, 6, (0..90).map(|i| i % 3).collect(), 3);
        let batch: Vec<u32> = (0..90).collect();
        let model = Model::new(&spec, &flat).expect("valid");
        let graph = || {
            let (inputs, labels) = data.batch(&batch).expect("fits");
            let tape = Tape::default();
            let outputs = model.run(&inputs, Some(&tape)).expect("runs");
            cross_entropy_sum(&outputs, &labels).and_then(|loss| loss.backward()).expect("runs");
            tape
        };
        let mut trainer = Trainer::new(&spec, 2).expect("valid");
        let close = |found: &[f32], expected: &[f32]| {
            for (found, expected) in found.iter().zip(expected) {
                assert!(
                    (found - expected).abs() < 1e-4 * (1.0 + expected.abs()),
                    "{found} {expected}"
                );
            }
        };
        let mut expected = vec![0.0; flat.len()];
        graph().add_clipped_sum(90, 0.9, &mut expected).expect("finite");
        let norm = ClippingNorm::new(1.0).expect("positive");
        let clipped = ClippedGradientSum::new(norm, 1e-9, flat.len()).expect("valid");
        let mut noise = SecureNoise::new().expect("entropy");
        for micro_batch in [90, 32, 1] {
            trainer.load(&flat).expect("finite");
            let mut sum = clipped.begin();
            trainer.add_clipped_in(micro_batch, &data, &batch, 0.9, &mut sum).expect("finite");
            let grid = clipped.quantize(sum, &mut noise).expect("in bounds");
            let found: Vec<f32> = grid.iter().map(|&units| units as f32 * 1e-9).collect();
            close(&found, &expected);
        }
        let mut sum = vec![0.0; flat.len()];
        graph().add_sum(&mut sum).expect("runs");
        let stepped: Vec<f32> = flat.iter().zip(&sum).map(|(p, g)| p - 0.5 * g / 90.0).collect();
        trainer.load(&flat).expect("finite");
        trainer.step(&data, &batch, 0.5).expect("finite");
        close(trainer.parameters(), &stepped);
    }

    #[test]
    fn threads_and_earlier_use_change_no_bit() {
        let spec = ModelSpec::Mlp(MlpSpec { inputs: 300, hidden: vec![200], classes: 10 });
        let flat: Vec<f32> = (0..spec.num_parameters()).map(|i| (i as f32).cos() * 0.1).collect();
        let pixels = (0..300 * 200).map(|i: u32| (i * 7919 % 251) as u8).collect();
        let data = Dataset::from_bytes(pixels, 300, (0..200).map(|i| i % 10).collect(), 10);
        let all: Vec<u32> = (0..200).collect();
        let trained = |trainer: &mut Trainer| {
            trainer.load(&flat).expect("finite");
            for batch in all.chunks(64) {
                trainer.step(&data, batch, 0.1).expect("finite");
            }
            trainer.update(&flat).expect("finite")
        };
        let mut one = Trainer::new(&spec, 1).expect("valid");
        let first = trained(&mut one);
        one.step(&data, &[3], 9.0).expect("finite");
        assert_eq!(first, trained(&mut one));
        assert_eq!(first, trained(&mut Trainer::new(&spec, 2).expect("valid")));
    }

    #[test]
    fn per_layer_clipping_bounds_every_layer_of_every_example() {
        let spec = ModelSpec::Mlp(MlpSpec { inputs: 6, hidden: vec![5], classes: 3 });
        let flat: Vec<f32> = (0..spec.num_parameters()).map(|i| (i as f32).cos()).collect();
        let features = (0..6 * 9).map(|i| (i as f32 * 0.37).sin() * 9.0).collect();
        let data = Dataset::from_floats(features, 6, (0..9).map(|i| i % 3).collect(), 3);
        let layers = spec.layer_lengths();
        let norm = ClippingNorm::new(1.0).expect("positive");
        let sums = ClippedGradientSum::new(norm, 1e-9, flat.len()).expect("valid");
        let mut noise = SecureNoise::new().expect("entropy");
        let mut clipped = |clip, example: u32| -> Vec<f64> {
            let mut trainer = Trainer::new(&spec, 1).expect("valid").clipping(clip);
            trainer.load(&flat).expect("finite");
            let mut sum = sums.begin();
            trainer.add_clipped_in(1, &data, &[example], 0.5, &mut sum).expect("finite");
            let grid = sums.quantize(sum, &mut noise).expect("in bounds");
            grid.iter().map(|&units| units as f64 * 1e-9).collect()
        };
        let length = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>().sqrt();
        for example in 0..9 {
            let plain = clipped(ExampleClip::Flat, example);
            let split = clipped(ExampleClip::PerLayer, example);
            assert!(length(&split) <= 0.5 * (1.0 + 1e-6));
            let share = 0.5 / 2.0_f64.sqrt();
            for range in [0..layers[0], layers[0]..flat.len()] {
                let (layer, of_flat) = (&split[range.clone()], &plain[range]);
                assert!(length(layer) <= share * (1.0 + 1e-6));
                // The direction of a layer does not depend on how it is clipped.
                let dot: f64 = layer.iter().zip(of_flat).map(|(a, b)| a * b).sum();
                assert!((dot - length(layer) * length(of_flat)).abs() < 1e-6);
            }
        }
    }
}
