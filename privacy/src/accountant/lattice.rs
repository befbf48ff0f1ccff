//! What separates integer noise from the continuous Gaussian that it is accounted as.
//!
//! Four steps lead from the noise that is really added to a continuous Gaussian.
//! 0. *Rounding* a sum of gradients to the grid at random leaves the planned sensitivity with
//!    probability [`ROUNDING_FAILURE`] a release, at most. Both neighbours round with the same
//!    randomness, so that probability adds to δ as it is.
//! 1. *The sampler* is within [`DiscreteGaussian::STATISTICAL_DISTANCE`] of the discrete Gaussian,
//!    a draw. Summed over all draws to η, that costs `(1 + e^ε) η` of δ.
//! 2. *Shares.* The sum of n discrete Gaussians of variance σ² is, in every coordinate and at every
//!    point, within a factor `e^±τ` of one of variance n σ², with
//!    `τ = 10 Σ_k exp(-2 π² σ² k / (k + 1))` for k = 1 .. n - 1.
//! 3. *The grid.* Rounding a continuous Gaussian at random to an integer near it, by a discrete
//!    Gaussian of variance r² centred on it, is post-processing. With continuous variance
//!    `s² - r²` the outcome is, at every point, within a factor `e^±(5 exp(-2 π² r²))` of the
//!    discrete Gaussian of variance s²: the normalising sums `Σ_y exp(-(y - x)² / (2 r²))` differ
//!    from `r sqrt(2 π)` by at most a factor `1 ± 2.001 exp(-2 π² r²)` (Poisson summation). So the
//!    noise costs what a continuous Gaussian of variance `s² - r²` costs.
//!
//! Pointwise factors multiply over coordinates and releases, however adaptively these are chosen,
//! and survive mixing over random samples: with their product `e^t`, (ε, δ) of the ideal becomes
//! (ε + 2 t, e^t δ).
//!
//! Sources: Kairouz, Liu, Steinke 2021, arXiv:2102.06387, theorem 1 (shares); Peikert 2010, "An
//! efficient and parallel Gaussian sampler for lattices", theorem 3.1 (randomised rounding).

use std::f64::consts::PI;

use super::{AccountantError, Delta};
use crate::{
    mechanism::{BandedMatrix, ParticipationSchedule, PrivacyEvent, ROUNDING_FAILURE},
    noise::{DiscreteGaussian, SIGMA_MAX},
};

/// The pointwise factor `e^t` that randomised rounding may cost all releases of one event.
const ROUNDING_LOG_RATIO: f64 = 1e-9;
/// The relative loss of variance, or the pointwise factor, from which on another bound may be
/// better.
const COARSE: f64 = 1e-4;
/// The share of δ that sampler and rounding take in ordinary cases, and more if they need it.
const IMPERFECTION_SHARES: [f64; 3] = [1e-6, 1e-3, 0.5];
/// Shares whose contribution to τ is summed one by one; later ones are rounded up.
const SHARES_SUMMED: u32 = 4096;

/// How far all lattice noise together is from the ideal it is accounted as.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Slack {
    /// Logarithm t of the pointwise factor, either way.
    log_ratio: f64,
    /// Statistical distance η of the sampler, over all draws.
    distance: f64,
    /// Probability that the rounding of any release fails.
    failure: f64,
    /// Whether the ideal gives away so much that another bound may be better.
    pub(super) coarse: bool,
}

impl Slack {
    /// The slack of sampler and rounding alone.
    pub(super) fn of_sampler(events: &[PrivacyEvent]) -> Self {
        let mut slack = Self::default();
        for event in events.iter().filter(|event| !event.reveals_nothing()) {
            let (releases, draws) = draws(event);
            slack.failure += releases * ROUNDING_FAILURE;
            slack.distance += draws * DiscreteGaussian::STATISTICAL_DISTANCE;
        }
        slack
    }

    /// Counts the rounding of so many coordinates to a grid, and returns the factor by which it
    /// lowers the noise multiplier.
    ///
    /// - `variance`: of the noise, in grid units
    fn round(&mut self, variance: f64, coordinates: f64) -> f64 {
        let wanted = (5.0 * coordinates / ROUNDING_LOG_RATIO).ln() / (2.0 * PI * PI);
        // The factor holds from r = 1/2 on.
        let smoothing = wanted.clamp(0.25, (0.5 * variance).max(0.25));
        self.log_ratio += coordinates * 5.0 * (-2.0 * PI * PI * smoothing).exp();
        let lost = smoothing / variance;
        self.coarse |= lost > COARSE;
        (1.0 - lost).max(0.0).sqrt()
    }

    /// The ε at `delta` of what is this far from an ideal whose ε `ideal` knows.
    pub(super) fn widen(
        self,
        delta: Delta,
        ideal: impl Fn(Delta) -> Result<f64, AccountantError>,
    ) -> Result<f64, AccountantError> {
        let factor = (-self.log_ratio).exp();
        let shares = if self.distance > 0.0 { &IMPERFECTION_SHARES[..] } else { &[0.0] };
        for share in shares {
            let Ok(rest) = Delta::new(delta.value() * (1.0 - share) * factor) else {
                break;
            };
            let epsilon = 2.0f64.mul_add(self.log_ratio, ideal(rest)?);
            // No distance takes nothing, even of an infinite ε.
            let taken = if *share == 0.0 {
                0.0
            } else {
                (1.0 + epsilon.exp()).mul_add(self.distance, self.failure)
            };
            if taken <= share * delta.value() {
                return Ok(epsilon);
            }
        }
        Ok(f64::INFINITY)
    }
}

/// Releases of integer vectors for an event, and numbers drawn for them, as far as it says so.
fn draws(event: &PrivacyEvent) -> (f64, f64) {
    match *event {
        PrivacyEvent::LatticeGaussian { clients, dimension, steps, .. } => {
            let releases = steps as f64;
            (releases, f64::from(clients) * dimension as f64 * releases)
        }
        PrivacyEvent::BandedMatrix { sigma, dimension, steps, runs, .. } => {
            let releases = steps as f64 * runs as f64;
            let parts = if sigma > SIGMA_MAX { 2.0 } else { 1.0 };
            (releases, parts * dimension as f64 * releases)
        }
        _ => (0.0, 0.0),
    }
}

/// The events with continuous noise in place of lattice noise, and what that neglects.
///
/// - `events`: equal ones counted together
pub(super) fn idealised(events: &[PrivacyEvent]) -> (Vec<PrivacyEvent>, Slack) {
    let mut slack = Slack::of_sampler(events);
    let mut ideal = |event: &PrivacyEvent| match *event {
        _ if event.reveals_nothing() => event.clone(),
        PrivacyEvent::LatticeGaussian {
            sampling_rate,
            noise_multiplier,
            sigma_share,
            clients,
            dimension,
            steps,
        } => {
            let coordinates = dimension as f64 * steps as f64;
            slack.log_ratio += coordinates * share_log_ratio(clients, sigma_share);
            let variance = f64::from(clients) * sigma_share * sigma_share;
            let noise_multiplier = noise_multiplier * slack.round(variance, coordinates);
            PrivacyEvent::PoissonGaussian { sampling_rate, noise_multiplier, steps }
        }
        PrivacyEvent::BandedMatrix { sigma, dimension, steps, runs, .. } => {
            let coordinates = dimension as f64 * steps as f64 * runs as f64;
            let noise_multiplier = run_multiplier(event) * slack.round(sigma * sigma, coordinates);
            PrivacyEvent::Gaussian { noise_multiplier, count: runs }
        }
        _ => event.clone(),
    };
    let events = events.iter().map(&mut ideal).collect();
    slack.coarse |= slack.log_ratio > COARSE;
    (events, slack)
}

/// The deviation over the sensitivity of a whole run with correlated noise: adaptive streams cost
/// what one Gaussian release of the matrix's sensitivity costs.
///
/// Source: Denisov, McMahan, Rush, Smith, Thakurta 2022, arXiv:2202.08312, theorem 2.1.
pub(super) fn run_multiplier(event: &PrivacyEvent) -> f64 {
    let &PrivacyEvent::BandedMatrix {
        noise_multiplier,
        bands,
        steps,
        separation,
        participations,
        ..
    } = event
    else {
        return 0.0;
    };
    let matrix = BandedMatrix::new(bands);
    let schedule = ParticipationSchedule::new(steps, separation, participations);
    match (matrix, schedule) {
        (Ok(matrix), Ok(schedule)) => noise_multiplier / matrix.sensitivity(&schedule),
        // Validation refuses such events; no noise at all is the safe reading.
        _ => 0.0,
    }
}

/// τ: how far, pointwise, the sum of so many shares is from one discrete Gaussian, a coordinate.
///
/// - `sigma_share`: in grid units, at least 1/2
pub(super) fn share_log_ratio(clients: u32, sigma_share: f64) -> f64 {
    let exponent = -2.0 * (PI * sigma_share).powi(2);
    let term = |k: u32| (exponent * f64::from(k) / f64::from(k + 1)).exp();
    let summed = clients.min(SHARES_SUMMED);
    // The terms fall with k.
    let rest = f64::from(clients - summed) * term(summed);
    10.0 * ((1..summed).map(term).sum::<f64>() + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Step 3 by direct summation and quadrature, at the points that matter most.
    #[test]
    fn randomised_rounding_is_as_close_as_claimed() {
        for (sigma, smoothing) in [(1.0_f64, 0.5_f64), (1.3, 0.7), (3.0, 1.0)] {
            let mass = |x: f64, deviation: f64| (-0.5 * (x / deviation).powi(2)).exp();
            let sum = |center: f64, deviation: f64| -> f64 {
                (-60..=60).map(|y| mass(f64::from(y) - center, deviation)).sum()
            };
            let continuous = (sigma * sigma - smoothing * smoothing).sqrt();
            let width = 1e-3;
            let norm = width / (continuous * (2.0 * PI).sqrt());
            let bound = 5.0 * (-2.0 * PI * PI * smoothing * smoothing).exp();
            for outcome in 0..6 {
                let outcome = f64::from(outcome);
                let rounded: f64 = (-12_000..=12_000)
                    .map(|node| {
                        let x = width * f64::from(node);
                        mass(x, continuous) * mass(outcome - x, smoothing) / sum(x, smoothing)
                    })
                    .sum::<f64>()
                    * norm;
                let discrete = mass(outcome, sigma) / sum(0.0, sigma);
                let log_ratio = (rounded / discrete).ln().abs();
                assert!(log_ratio <= bound, "{sigma} {smoothing} {outcome}: {log_ratio} {bound}");
            }
        }
    }

    /// Step 2 by direct convolution.
    #[test]
    fn sums_of_shares_are_as_close_as_claimed() {
        for sigma in [0.5_f64, 0.7, 1.0] {
            let reach = 40;
            let mass = |variance: f64| -> Vec<f64> {
                let weight = |x: i32| (-0.5 * f64::from(x * x) / variance).exp();
                let total: f64 = (-reach..=reach).map(weight).sum();
                (-reach..=reach).map(|x| weight(x) / total).collect()
            };
            let one = mass(sigma * sigma);
            let mut sum = one.clone();
            for clients in 2..=4u32 {
                sum = (0..one.len())
                    .map(|at| {
                        (0..one.len())
                            .filter_map(|first| {
                                let second = (at + reach as usize).checked_sub(first)?;
                                Some(sum[first] * one.get(second)?)
                            })
                            .sum()
                    })
                    .collect();
                let whole = mass(f64::from(clients) * sigma * sigma);
                let bound = share_log_ratio(clients, sigma);
                for at in reach as usize - 5..=reach as usize + 5 {
                    let log_ratio = (sum[at] / whole[at]).ln().abs();
                    assert!(log_ratio <= bound, "{sigma} {clients}: {log_ratio} {bound}");
                }
            }
        }
    }

    #[test]
    fn a_million_shares_are_bounded_quickly() {
        assert!(share_log_ratio(u32::MAX, 2.0) < 1e-7);
        assert_eq!(share_log_ratio(1, 0.5), 0.0);
        assert!(share_log_ratio(2, 0.5) > 0.5);
    }
}
