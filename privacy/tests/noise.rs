//! Goodness of fit of the discrete Gaussian samplers, tails included, against the exact
//! probabilities and against opendp's exact sampler.
//!
//! Every statistic is compared with a threshold that a right sampler exceeds once in a million
//! runs; the randomness is the operating system's, as in production.

use opendp::traits::samplers::sample_discrete_gaussian;
use tributary_privacy::noise::{DiscreteGaussian, ExactDiscreteGaussian, SecureNoise};

/// Borders of the bins, in deviations; dense in the tails.
const BORDERS: [f64; 17] =
    [-4.5, -4.0, -3.5, -3.0, -2.5, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5];

/// The value of chi-square with `degrees` that is exceeded with probability below 1e-6
/// (Wilson and Hilferty's approximation, 4.75 deviations out).
fn threshold(degrees: usize) -> f64 {
    let scale = 2.0 / (9.0 * degrees as f64);
    degrees as f64 * (1.0 - scale + 4.9 * scale.sqrt()).powi(3)
}

/// The bin of each draw: how many borders it exceeds.
fn bin(draw: i64, sigma: f64) -> usize {
    BORDERS.iter().filter(|&&border| draw as f64 > border * sigma).count()
}

/// Exact probabilities of the bins, by summation of the distribution itself.
fn exact_bins(sigma: f64) -> Vec<f64> {
    let mut masses = vec![0.0; BORDERS.len() + 1];
    let reach = (13.0 * sigma).ceil() as i64;
    for x in -reach..=reach {
        masses[bin(x, sigma)] += (-0.5 * (x as f64 / sigma).powi(2)).exp();
    }
    let total: f64 = masses.iter().sum();
    masses.iter().map(|mass| mass / total).collect()
}

fn counts(draws: &[i64], sigma: f64) -> Vec<f64> {
    let mut counts = vec![0.0; BORDERS.len() + 1];
    for &draw in draws {
        counts[bin(draw, sigma)] += 1.0;
    }
    counts
}

/// Pearson's statistic over the bins with an expectation of at least 5; the rest is one bin.
fn assert_fits(what: &str, observed: &[f64], expected: &[f64]) {
    let (mut statistic, mut degrees) = (0.0, 0);
    let (mut rest_observed, mut rest_expected) = (0.0, 0.0);
    for (&o, &e) in observed.iter().zip(expected) {
        if e >= 5.0 {
            statistic += (o - e).powi(2) / e;
            degrees += 1;
        } else {
            rest_observed += o;
            rest_expected += e;
        }
    }
    // Poisson's tail: a mean below 5 per bin is checked on its own.
    assert!(rest_observed <= 3.0 * rest_expected + 20.0, "{what}: {rest_observed} rare draws");
    let limit = threshold(degrees.max(2) - 1);
    assert!(statistic < limit, "{what}: chi-square {statistic} above {limit}");
}

fn fast(sigma: f64, draws: usize) -> Vec<i64> {
    let mut noise = SecureNoise::new().expect("entropy");
    let mut values = vec![0; draws];
    DiscreteGaussian::new(sigma).expect("in range").add_to(&mut noise, &mut values);
    values
}

#[test]
fn the_fast_sampler_fits_the_exact_probabilities() {
    for sigma in [0.5, 0.9, 1.0, 3.7, 50.0, 169.0, 171.0, 777.7, 4096.0, 30_000.0] {
        let draws = fast(sigma, 1_000_000);
        let expected: Vec<f64> = exact_bins(sigma).iter().map(|mass| mass * 1e6).collect();
        assert_fits(&format!("deviation {sigma}"), &counts(&draws, sigma), &expected);
    }
}

#[test]
fn single_integers_have_their_exact_probabilities() {
    // Far out included: at deviation 1, x = 5 comes three times in two million draws.
    for sigma in [0.5, 1.0, 2.0_f64] {
        let draws = fast(sigma, 2_000_000);
        let reach = (6.0 * sigma).ceil() as i64;
        let total: f64 = (-40..=40).map(|x| (-0.5 * (f64::from(x) / sigma).powi(2)).exp()).sum();
        let mut observed = vec![0.0; 2 * reach as usize + 1];
        for draw in draws {
            assert!(draw.abs() <= reach + 2, "{draw} at deviation {sigma}");
            if let Some(count) = observed.get_mut((draw + reach) as usize) {
                *count += 1.0;
            }
        }
        let expected: Vec<f64> = (-reach..=reach)
            .map(|x| 2e6 * (-0.5 * (x as f64 / sigma).powi(2)).exp() / total)
            .collect();
        assert_fits(&format!("integers at {sigma}"), &observed, &expected);
    }
}

/// A sum of strided draws that did not overlap enough would prefer some residues.
#[test]
fn wide_draws_prefer_no_residue() {
    for sigma in [400.0, 4096.0, 1e6, 1e9] {
        let draws = fast(sigma, 400_000);
        for modulus in [2, 3, 16, 25, 64, 84, 85] {
            let mut observed = vec![0.0; modulus as usize];
            for draw in &draws {
                observed[draw.rem_euclid(modulus) as usize] += 1.0;
            }
            let expected = vec![400_000.0 / modulus as f64; modulus as usize];
            assert_fits(&format!("{sigma} modulo {modulus}"), &observed, &expected);
        }
    }
}

#[test]
fn wide_draws_have_gaussian_moments() {
    for sigma in [1e5, 1e6, 1e8, 1e9] {
        let draws = fast(sigma, 1_000_000);
        let moment =
            |power: i32| draws.iter().map(|&x| (x as f64 / sigma).powi(power)).sum::<f64>() / 1e6;
        // Five standard errors.
        assert!(moment(1).abs() < 5e-3);
        assert!((moment(2) - 1.0).abs() < 5e-3 * 2.0_f64.sqrt());
        assert!((moment(4) - 3.0).abs() < 5e-3 * 96.0_f64.sqrt());
        assert!((moment(6) - 15.0).abs() < 5e-3 * 10_170.0_f64.sqrt());
    }
}

/// Two samples of equal size: `Σ (a - b)² / (a + b)` is chi-square.
#[test]
fn both_samplers_agree_with_opendp() {
    let size = 20_000;
    for sigma in [0.5, 1.0, 30.0, 1000.0, 1e6] {
        let scale: Vec<i64> = (0..size)
            .map(|_| {
                let scale = sigma.try_into().expect("finite");
                let draw = sample_discrete_gaussian(scale).expect("entropy");
                draw.try_into().expect("small")
            })
            .collect();
        let reference = counts(&scale, sigma);
        let mut noise = SecureNoise::new().expect("entropy");
        let mut exact = vec![0; size];
        ExactDiscreteGaussian::new(sigma).expect("in range").add_to(&mut noise, &mut exact);
        for (what, draws) in [("fast", fast(sigma, size)), ("exact", exact)] {
            let ours = counts(&draws, sigma);
            let (mut statistic, mut degrees) = (0.0, 0);
            for (a, b) in ours.iter().zip(&reference) {
                if a + b >= 10.0 {
                    statistic += (a - b).powi(2) / (a + b);
                    degrees += 1;
                }
            }
            assert!(statistic < threshold(degrees), "{what} at {sigma}: {statistic}");
        }
    }
}
