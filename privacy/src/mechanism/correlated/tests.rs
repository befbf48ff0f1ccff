use proptest::prelude::*;

use super::*;
use crate::{
    accountant::{Delta, calibrate, epsilon},
    noise::SeededNoise,
};

const DIMENSION: usize = 3;

fn run(bands: u32, schedule: ParticipationSchedule, dimension: usize) -> CorrelatedGradientSum {
    let matrix = BandedMatrix::new(bands).expect("valid");
    let norm = ClippingNorm::new(0.7).expect("positive");
    CorrelatedGradientSum::new(norm, 1.5, dimension, matrix, schedule).expect("valid")
}

fn cyclic(steps: u64, groups: u32) -> ParticipationSchedule {
    ParticipationSchedule::cyclic(steps, groups).expect("valid")
}

/// Releases one example's gradient.
fn step(run: &mut CorrelatedGradientSum, gradient: &[f32], noise: &mut SeededNoise) -> Vec<f32> {
    let mut sum = run.begin().expect("not finished");
    sum.add(gradient, 1).expect("finite");
    run.release(sum, noise).expect("clipped")
}

/// How the solved prefix sums follow from the noises `z_t / c_0`: one column of `A C^-1`.
fn prefix_column(bands: u32, steps: usize) -> Vec<f64> {
    let matrix = BandedMatrix::new(bands).expect("valid");
    let mut column: Vec<f64> = Vec::new();
    for _ in 0..steps {
        let earlier = matrix.coefficients()[1..].iter().zip(column.iter().rev());
        let sum: f64 = earlier.map(|(&c, entry)| f64::from(c) * entry).sum();
        column.push(1.0 - sum / f64::from(BandedMatrix::SCALE));
    }
    column
}

/// The covariance of two solved prefix sums, over the variance of `z_t / c_0`.
fn covariance(column: &[f64], one: usize, other: usize) -> f64 {
    (0..=one.min(other)).map(|at| column[one - at] * column[other - at]).sum()
}

/// jax-privacy 2.0.0, `toeplitz.per_query_error` of these coefficients at steps 1, 2, 33 and 64.
#[test]
fn predicted_variances_agree_with_an_independent_implementation() {
    let column = prefix_column(8, 64);
    let expected = [(0, 1.0), (1, 1.25), (32, 4.350_926_995_058_51), (63, 7.486_064_190_732_961)];
    for (at, expected) in expected {
        assert!((covariance(&column, at, at) / expected - 1.0).abs() < 1e-12);
    }
}

#[test]
fn solved_prefix_sums_have_the_predicted_covariance() {
    let (bands, steps, dimension) = (4, 12, 20_000);
    let mut run = run(bands, cyclic(steps, 4), dimension);
    let mut noise = SeededNoise::from_seed([5; 32]);
    let mut prefixes: Vec<Vec<f64>> = Vec::new();
    for _ in 0..steps {
        let sum = run.begin().expect("not finished");
        let mut prefix: Vec<f64> = run
            .release(sum, &mut noise)
            .expect("nothing to refuse")
            .into_iter()
            .map(|value| f64::from(value) / (1.5 * 0.7))
            .collect();
        for (value, before) in prefix.iter_mut().zip(prefixes.last().into_iter().flatten()) {
            *value += before;
        }
        prefixes.push(prefix);
    }
    let column = prefix_column(bands, steps as usize);
    for (at, one) in prefixes.iter().enumerate() {
        for (before, other) in prefixes[..=at].iter().enumerate() {
            let found = one.iter().zip(other).map(|(a, b)| a * b).sum::<f64>() / dimension as f64;
            let expected = covariance(&column, at, before);
            // Five standard errors of a mean of products of Gaussians.
            let variances = covariance(&column, at, at) * covariance(&column, before, before);
            let error = ((variances + expected * expected) / dimension as f64).sqrt();
            assert!((found - expected).abs() < 5.0 * error, "{at} {before}: {found} {expected}");
        }
    }
}

/// The point of it all: at equal ε, the mean squared error of the model (the prefix sum of all
/// steps) is smaller than that of independent noise with the same participation.
#[test]
fn correlated_noise_beats_independent_noise_at_equal_epsilon() {
    for (steps, groups, gain) in [(64, 16, 3.0), (200, 20, 3.5), (1000, 100, 9.0)] {
        let schedule = cyclic(steps, groups);
        let error = |bands: u32| {
            let matrix = BandedMatrix::new(bands).expect("valid");
            let column = prefix_column(bands, steps as usize);
            let variances = (0..steps as usize).map(|at| covariance(&column, at, at));
            matrix.sensitivity(&schedule).powi(2) * variances.sum::<f64>()
        };
        let ratio = error(1) / error(groups);
        assert!(ratio > gain, "{steps} {groups}: {ratio}");
    }
}

#[test]
fn a_run_costs_one_gaussian_of_its_sensitivity() {
    let schedule = cyclic(100, 8);
    let run = run(8, schedule, 1000);
    let delta = Delta::new(1e-6).expect("valid");
    let sensitivity = BandedMatrix::new(8).expect("valid").sensitivity(&schedule);
    let single = PrivacyEvent::Gaussian { noise_multiplier: 1.5 / sensitivity, count: 1 };
    let (ours, expected) =
        (epsilon(&[run.event()], delta).expect("valid"), epsilon(&[single], delta).expect("valid"));
    assert!(ours >= expected && ours < expected * 1.000_01, "{ours} {expected}");

    let event = |noise_multiplier| match run.event() {
        PrivacyEvent::BandedMatrix {
            sigma,
            dimension,
            bands,
            steps,
            separation,
            participations,
            ..
        } => PrivacyEvent::BandedMatrix {
            noise_multiplier,
            sigma: sigma / 1.5 * noise_multiplier,
            dimension,
            bands,
            steps,
            separation,
            participations,
            runs: 1,
        },
        other => other,
    };
    let enough = calibrate(2.0, delta, event).expect("reachable");
    let cost = |noise_multiplier| epsilon(&[event(noise_multiplier)], delta).expect("valid");
    assert!(cost(enough) <= 2.0 && cost(enough * 0.9999) > 2.0);
}

#[test]
fn a_saved_run_goes_on_as_if_it_had_never_stopped() {
    let schedule = cyclic(9, 4);
    let gradient = [0.3, -0.2, 0.1];
    let mut whole = run(4, schedule, DIMENSION);
    let mut parts = run(4, schedule, DIMENSION);
    let (mut one, mut two) = (SeededNoise::from_seed([6; 32]), SeededNoise::from_seed([6; 32]));
    for at in 0..9 {
        assert_eq!(parts.step(), at);
        assert_eq!(step(&mut whole, &gradient, &mut one), step(&mut parts, &gradient, &mut two));
        let bytes = parts.to_secret_bytes();
        parts = run(4, schedule, DIMENSION).resume(&bytes).expect("undamaged");
    }
    assert!(matches!(parts.begin(), Err(MechanismError::RunFinished { steps: 9 })));
    let mut begun = run(4, schedule, DIMENSION);
    let sum = begun.begin().expect("not finished");
    assert!(matches!(parts.release(sum, &mut two), Err(MechanismError::RunFinished { .. })));
    step(&mut begun, &gradient, &mut two);
}

#[test]
fn damaged_and_foreign_states_are_refused() {
    let mut run_of_four = run(4, cyclic(9, 4), DIMENSION);
    step(&mut run_of_four, &[0.1; DIMENSION], &mut SeededNoise::from_seed([7; 32]));
    let bytes = run_of_four.to_secret_bytes();
    for (bands, groups, dimension) in [(3, 4, DIMENSION), (4, 5, DIMENSION), (4, 4, 2)] {
        let other = run(bands, cyclic(9, groups), dimension).resume(&bytes);
        assert!(matches!(other, Err(MechanismError::RunState { .. })));
    }
    for at in 0..bytes.len() {
        let mut damaged = bytes.to_vec();
        damaged[at] ^= 1;
        assert!(run(4, cyclic(9, 4), DIMENSION).resume(&damaged).is_err());
        assert!(run(4, cyclic(9, 4), DIMENSION).resume(&bytes[..at]).is_err());
    }
}

#[test]
fn bad_input_takes_no_step() {
    let mut run = run(4, cyclic(9, 4), DIMENSION);
    let mut noise = SeededNoise::from_seed([8; 32]);
    let mut sum = run.begin().expect("not finished");
    assert!(sum.add(&[f32::NAN; DIMENSION], 1).is_err());
    sum.add(&[5.0, 0.0, 0.0], 1).expect("finite");
    assert!(matches!(run.release(sum, &mut noise), Err(MechanismError::NotClipped { .. })));
    assert_eq!(run.step(), 0);
    let norm = ClippingNorm::new(1.0).expect("positive");
    for noise_multiplier in [0.0, -1.0, f64::NAN, 1e9] {
        let matrix = BandedMatrix::new(2).expect("valid");
        assert!(
            CorrelatedGradientSum::new(norm, noise_multiplier, 1, matrix, cyclic(9, 4)).is_err()
        );
    }
}

/// Deviations beyond the sampler's range come out right.
#[test]
fn wide_noise_has_the_planned_variance() {
    let wide = WideGaussian::new(3.3e9).expect("valid");
    let mut values = vec![0i64; 40_000];
    wide.add_to(&mut SeededNoise::from_seed([9; 32]), &mut values);
    let mean_square = values.iter().map(|&v| (v as f64).powi(2)).sum::<f64>() / 40_000.0;
    let ratio = mean_square / 3.3e9f64.powi(2);
    assert!((ratio - 1.0).abs() < 5.0 * (2.0f64 / 40_000.0).sqrt(), "{ratio}");
    assert!(values.iter().any(|value| value % wide.stride != 0));
}

proptest! {
    /// Without the noise's randomness, the solution is what went in: `ĝ = G + C^-1 z`.
    #[test]
    fn solving_undoes_the_matrix(
        gradients in prop::collection::vec(prop::collection::vec(-0.3f32..0.3, DIMENSION), 12),
        bands in 1u32..7,
        seed in any::<[u8; 32]>(),
    ) {
        let schedule = cyclic(12, 3);
        let (mut with, mut without) =
            (run(bands, schedule, DIMENSION), run(bands, schedule, DIMENSION));
        let (mut one, mut two) = (SeededNoise::from_seed(seed), SeededNoise::from_seed(seed));
        // A gradient is rounded to one of the grid points beside it.
        let tolerance = with.sums().step() as f32 + 1e-5;
        for gradient in gradients {
            let noisy = step(&mut with, &gradient, &mut one);
            let pure = step(&mut without, &[0.0; DIMENSION], &mut two);
            for ((noisy, pure), value) in noisy.into_iter().zip(pure).zip(gradient) {
                prop_assert!((noisy - pure - value).abs() < tolerance, "{noisy} {pure} {value}");
            }
        }
    }
}
