use std::ops::ControlFlow;

use tributary_privacy::{clip::ClippingNorm, mechanism::ClippedGradientSum, noise::SecureNoise};
use tributary_protocol::{
    job::{LocalAlgorithm, TrainingPlan},
    model::{MlpSpec, ModelSpec},
};

use super::*;
use crate::data::Dataset;

fn spec() -> ModelSpec {
    ModelSpec::Mlp(MlpSpec { inputs: 4, hidden: vec![8], classes: 2 })
}

fn plan(local_steps: u32) -> TrainingPlan {
    TrainingPlan {
        local_steps,
        sampling_rate: 0.25,
        batch_size_expected: 50,
        client_learning_rate: 0.5,
        update_norm_max: 16.0,
        algorithm: LocalAlgorithm::Sgd,
    }
}

/// 200 records whose class is the sign of the first feature.
fn records() -> Dataset {
    let labels: Vec<u32> = (0..200).map(|index| index % 2).collect();
    let features = labels
        .iter()
        .zip(0_u32..)
        .flat_map(|(&label, index)| {
            let wiggle = (index as f32 * 0.7).sin() * 0.3;
            [label as f32 * 2.0 - 1.0 + wiggle, wiggle, 0.5, -wiggle]
        })
        .collect();
    Dataset::from_floats(features, 4, labels, 2)
}

fn base() -> Vec<f32> {
    (0..spec().num_parameters()).map(|index| ((index as f32) * 1.3).sin() * 0.5).collect()
}

fn mechanism(noise_multiplier: f64) -> tributary_privacy::mechanism::NoisyGradientSum {
    let norm = ClippingNorm::new(1.0).expect("positive");
    tributary_privacy::mechanism::NoisyGradientSum::new(
        norm,
        noise_multiplier,
        spec().num_parameters(),
    )
    .expect("valid")
}

fn train(
    data: &Dataset,
    indices: &[u32],
    plan: &TrainingPlan,
    noise_multiplier: f64,
) -> Result<Vec<f32>, TrainError> {
    let (spec, base) = (spec(), base());
    let task = LocalTask { spec: &spec, base: &base, data, train: indices, plan };
    let mut noise = SecureNoise::new().expect("entropy");
    dp_sgd(&task, &mechanism(noise_multiplier), &mut noise, &mut |_, _| ControlFlow::Continue(()))
}

fn accuracy_after(update: &[f32]) -> f64 {
    let trained: Vec<f32> = base().iter().zip(update).map(|(base, delta)| base + delta).collect();
    let indices: Vec<u32> = (0..200).collect();
    evaluate(&spec(), &trained, None, &records(), &indices).expect("valid").accuracy
}

#[test]
fn private_training_learns_and_reports_each_step() {
    let (spec, base, data, plan) = (spec(), base(), records(), plan(40));
    let indices: Vec<u32> = (0..200).collect();
    let task = LocalTask { spec: &spec, base: &base, data: &data, train: &indices, plan: &plan };
    let mut noise = SecureNoise::new().expect("entropy");
    let mut steps = Vec::new();
    let update = dp_sgd(&task, &mechanism(0.5), &mut noise, &mut |step, of| {
        steps.push((step, of));
        ControlFlow::Continue(())
    })
    .expect("trains");
    assert_eq!(steps, (1..=40).map(|step| (step, 40)).collect::<Vec<_>>());
    assert!(accuracy_after(&update) > 0.95);
}

#[test]
fn plain_training_learns() {
    use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
    let (spec, base, data, plan) = (spec(), base(), records(), plan(40));
    let indices: Vec<u32> = (0..200).collect();
    let task = LocalTask { spec: &spec, base: &base, data: &data, train: &indices, plan: &plan };
    let run = || {
        let mut source = Xoshiro256PlusPlus::seed_from_u64(9);
        local_sgd(&task, &mut source, &mut |_, _| ControlFlow::Continue(())).expect("trains")
    };
    assert!(accuracy_after(&run()) > 0.95);
    assert_eq!(run(), run());
}

#[test]
fn empty_batches_are_steps_of_pure_noise_of_the_stated_size() {
    let update = train(&records(), &[], &plan(400), 2.0).expect("noise only");
    // 400 steps of deviation rate · noise multiplier · clipping norm / denominator.
    let expected = 20.0 * 0.5 * 2.0 / 50.0;
    let count = update.len() as f64;
    let deviation = (update.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / count).sqrt();
    assert!((0.6..1.5).contains(&(deviation / expected)), "{deviation} is not {expected}");
}

#[test]
fn the_update_is_bounded_by_clipping_whatever_the_records() {
    let mut features = vec![0.0; 800];
    for (index, value) in features.iter_mut().enumerate() {
        *value = if index % 3 == 0 { 1e6 } else { -1e6 };
    }
    let data = Dataset::from_floats(features, 4, vec![1; 200], 2);
    let indices: Vec<u32> = (0..200).collect();
    let plan = TrainingPlan { sampling_rate: 1.0, ..plan(1) };
    let update = train(&data, &indices, &plan, 0.01).expect("finite");
    let norm = update.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    // 200 clipped gradients over the public denominator of 50, times the step size.
    assert!(norm <= 0.5 * 200.0 / 50.0 * 1.01, "{norm}");
}

#[test]
fn poisoned_records_release_nothing() {
    let mut features = vec![0.1; 800];
    features[7] = f32::NAN;
    let data = Dataset::from_floats(features, 4, vec![1; 200], 2);
    let indices: Vec<u32> = (0..200).collect();
    let plan = TrainingPlan { sampling_rate: 1.0, ..plan(3) };
    let error = train(&data, &indices, &plan, 1.0).expect_err("NaN");
    assert!(matches!(error, TrainError::NonFiniteGradient { step: 1 }), "{error}");
}

#[test]
fn a_diverging_step_size_releases_nothing() {
    let indices: Vec<u32> = (0..200).collect();
    let plan = TrainingPlan { client_learning_rate: 1e41, ..plan(1) };
    let error = train(&records(), &indices, &plan, 1.0).expect_err("infinite");
    assert!(matches!(error, TrainError::Diverged { .. }), "{error}");
}

#[test]
fn tasks_that_do_not_fit_are_named() {
    let data = records();
    let error = train(&data, &[200], &plan(1), 1.0).expect_err("no such record");
    assert!(matches!(error, TrainError::Index { index: 200, len: 200 }), "{error}");
    let narrow = Dataset::from_bytes(vec![0; 6], 3, vec![0, 1], 2);
    let error = train(&narrow, &[0], &plan(1), 1.0).expect_err("too narrow");
    assert_eq!(error.to_string(), "the model has 4 inputs but the dataset has 3");
    let error = evaluate(&spec(), &base(), None, &data, &[]).expect_err("nothing to measure");
    assert!(matches!(error, TrainError::NoRecords), "{error}");
}

#[test]
fn training_stops_between_steps() {
    let (spec, base, data, plan) = (spec(), base(), records(), plan(40));
    let indices: Vec<u32> = (0..200).collect();
    let task = LocalTask { spec: &spec, base: &base, data: &data, train: &indices, plan: &plan };
    let mut noise = SecureNoise::new().expect("entropy");
    let mut third =
        |step, _| if step < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) };
    let private = dp_sgd(&task, &mechanism(1.0), &mut noise, &mut third).expect_err("stopped");
    let plain = local_sgd(&task, &mut noise, &mut third).expect_err("stopped");
    for error in [private, plain] {
        assert!(matches!(error, TrainError::Stopped { step: 3, steps: 40 }), "{error}");
    }
}

/// The gradient of a batch of all records, against the update of one plain step.
#[test]
fn a_clipped_gradient_points_where_a_step_goes() {
    let (spec, base, data) = (spec(), base(), records());
    let indices: Vec<u32> = (0..200).collect();
    let plan = TrainingPlan { sampling_rate: 1.0, client_learning_rate: 1.0, ..plan(1) };
    let task = LocalTask { spec: &spec, base: &base, data: &data, train: &indices, plan: &plan };
    let mut noise = SecureNoise::new().expect("entropy");
    let step = local_sgd(&task, &mut noise, &mut |_, _| ControlFlow::Continue(())).expect("trains");
    // No gradient is as long as 100, so nothing is clipped.
    let norm = ClippingNorm::new(100.0).expect("positive");
    let clipped = ClippedGradientSum::new(norm, 0.01, spec.num_parameters()).expect("valid");
    let grid = clipped_gradient(&task, &clipped, &mut noise).expect("finite");
    for (units, step) in grid.iter().zip(&step) {
        let mean = *units as f32 * 0.01 / 200.0;
        assert!((mean - step).abs() < 1e-4, "{mean} is not {step}");
    }
    let short = ClippedGradientSum::new(norm, 0.01, 3).expect("valid");
    let error = clipped_gradient(&task, &short, &mut noise).expect_err("another model");
    assert!(matches!(error, TrainError::MechanismDimension { mechanism: 3, .. }), "{error}");
}
