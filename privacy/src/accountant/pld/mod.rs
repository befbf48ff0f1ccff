//! The tight accountant: privacy loss distributions composed by FFT, as an upper bound.
//!
//! For each neighbouring direction, every event has a dominating pair (P, Q) whose privacy loss
//! `L = ln(P / Q)` under P is put on a grid so that the hockey-stick divergence only grows (`pair`),
//! all events are composed by one FFT of an exponentially tilted distribution (`compose`), and ε is
//! read off where the divergence meets δ. What is cut off or wraps around is bounded and taken out
//! of δ, so the answer is an upper bound up to the rounding of f64, for which ε is raised by a
//! millionth.
//!
//! Sources: Koskela, Jälkö, Honkela 2020, arXiv:1906.03049 (FFT); Doroshenko et al. 2022,
//! arXiv:2207.04380 (the grid); Zhu, Dong, Wang 2022, arXiv:2106.08567 (dominating pairs).

mod compose;
mod mixture;
mod pair;
mod plan;
mod replace;

use std::cell::Cell;

use super::{
    AccountantError, Delta, coalesced, epsilon_rdp, gaussian_epsilon, lattice::idealised, validate,
};
use crate::mechanism::{Neighbouring, PrivacyEvent};
use pair::{Direction, Pair};

/// Covers the rounding of f64 in the composition.
const ROUNDING: f64 = 1.0 + 1e-6;

/// Equal dominating pairs that compose.
#[derive(Debug, Clone)]
struct Component {
    pair: Pair,
    count: u64,
}

/// The ε of all `events` together at `delta`, by privacy loss distributions: an upper bound.
///
/// Within a millionth of the exact figure for typical training runs, and the exact formula if all
/// events are Gaussian.
///
/// # Errors
/// [`AccountantError::OutOfRange`] names the parameter of an event that cannot be.
pub fn epsilon_pld(events: &[PrivacyEvent], delta: Delta) -> Result<f64, AccountantError> {
    validate(events)?;
    let (ideal, slack) = idealised(&coalesced(events));
    let fine = Cell::new(!slack.coarse);
    let tight = slack.widen(delta, |delta| {
        let (epsilon, is_fine) = ideal_epsilon(&ideal, delta);
        fine.set(fine.get() && is_fine);
        Ok(epsilon)
    })?;
    // Where the composition meets its limits or the noise is too coarse for continuous accounting,
    // the other bound may be better.
    if tight.is_finite() && fine.get() {
        return Ok(tight);
    }
    match epsilon_rdp(events, delta) {
        Ok(other) => Ok(tight.min(other)),
        Err(AccountantError::NoBound { .. }) => Ok(tight),
        Err(error) => Err(error),
    }
}

/// The ε of events without lattice noise, and whether the composition is as fine as it should be;
/// infinite where it meets its limits.
fn ideal_epsilon(events: &[PrivacyEvent], delta: Delta) -> (f64, bool) {
    let merged = merge(events);
    if merged.others.is_empty() {
        return (gaussian_epsilon(merged.gaussian_precision, delta.value()), true);
    }
    // Composed total variation is at most the sum; if even that is below δ, nothing is spent.
    let total: f64 =
        merged.others.iter().map(|(event, count)| total_variation(event) * *count as f64).sum();
    if merged.gaussian_precision == 0.0 && total <= delta.value() {
        return (0.0, true);
    }
    // Pairs under replace-one are their own mirror images.
    let directions = match events.first().map(PrivacyEvent::neighbouring) {
        Some(Neighbouring::ReplaceOne) => &[Direction::Remove][..],
        _ => &[Direction::Remove, Direction::Add],
    };
    let (mut worst, mut fine) = (0.0, true);
    for &direction in directions {
        let (epsilon, is_fine) =
            compose::epsilon(&merged.components(direction), delta.value(), worst);
        worst = epsilon;
        fine &= is_fine;
    }
    (worst * ROUNDING, fine)
}

/// A quick estimate of [`epsilon_pld`] to a few percent, without any guarantee.
pub(super) fn estimate(events: &[PrivacyEvent], delta: Delta) -> f64 {
    let merged = merge(&idealised(&coalesced(events)).0);
    if merged.others.is_empty() {
        return gaussian_epsilon(merged.gaussian_precision, delta.value());
    }
    compose::estimate(&merged.components(Direction::Remove), delta.value())
}

/// Events by kind, equal ones counted together.
struct Merged {
    /// Sum of `1 / noise_multiplier²` of all unsampled Gaussians: they compose into one.
    gaussian_precision: f64,
    /// All others, with their counts.
    others: Vec<(PrivacyEvent, u64)>,
}

impl Merged {
    fn components(&self, direction: Direction) -> Vec<Component> {
        let others = self
            .others
            .iter()
            .map(|(event, count)| Component { pair: pair_of(event, direction), count: *count });
        let gaussian = (self.gaussian_precision > 0.0).then(|| Component {
            pair: Pair::poisson(direction, 1.0, self.gaussian_precision.sqrt().recip()),
            count: 1,
        });
        others.chain(gaussian).collect()
    }
}

fn pair_of(event: &PrivacyEvent, direction: Direction) -> Pair {
    match *event {
        PrivacyEvent::PoissonGaussian { sampling_rate, noise_multiplier, .. } => {
            Pair::poisson(direction, sampling_rate, noise_multiplier)
        }
        PrivacyEvent::PoissonGaussianReplaceOne { sampling_rate, noise_multiplier, .. } => {
            Pair::replace_one(sampling_rate, noise_multiplier)
        }
        PrivacyEvent::WithoutReplacementGaussian {
            batch_size,
            num_examples,
            noise_multiplier,
            ..
        } => Pair::without_replacement(batch_size as f64 / num_examples as f64, noise_multiplier),
        PrivacyEvent::DiscreteGaussian { sigma, sensitivity, .. } => {
            Pair::shifted_integers(&discrete_gaussian_log_mass(sigma), sensitivity as usize)
        }
        PrivacyEvent::Skellam { variance, sensitivity, .. } => {
            Pair::shifted_integers(&skellam_log_mass(variance), sensitivity as usize)
        }
        PrivacyEvent::Gaussian { .. } | PrivacyEvent::GaussianReplaceOne { .. } => {
            unreachable!("plain Gaussians are merged into one")
        }
        PrivacyEvent::LatticeGaussian { .. } | PrivacyEvent::BandedMatrix { .. } => {
            unreachable!("lattice noise was replaced by its ideal")
        }
    }
}

/// The hockey-stick divergence of one release at ε = 0, or 1.
fn total_variation(event: &PrivacyEvent) -> f64 {
    // Two Gaussians whose centres are `distance` deviations apart.
    let gaussians = |distance: f64| libm::erf(distance * 0.5 * std::f64::consts::FRAC_1_SQRT_2);
    match *event {
        PrivacyEvent::PoissonGaussian { sampling_rate, noise_multiplier, .. } => {
            sampling_rate * gaussians(noise_multiplier.recip())
        }
        PrivacyEvent::PoissonGaussianReplaceOne { sampling_rate, .. } => sampling_rate,
        PrivacyEvent::WithoutReplacementGaussian {
            batch_size,
            num_examples,
            noise_multiplier,
            ..
        } => batch_size as f64 / num_examples as f64 * gaussians(2.0 / noise_multiplier),
        _ => 1.0,
    }
}

/// `ln P(x)` of the discrete Gaussian for x = 0, 1, 2... as far as f64 reaches.
fn discrete_gaussian_log_mass(sigma: f64) -> Vec<f64> {
    let exponent = |x: f64| -0.5 * (x / sigma).powi(2);
    let reach = (38.0 * sigma).ceil() as u32 + 1;
    let tail: f64 = (1..reach).rev().map(|x| exponent(f64::from(x)).exp()).sum();
    let log_total = (2.0 * tail).ln_1p();
    (0..reach).map(|x| exponent(f64::from(x)) - log_total).collect()
}

/// `ln P(x)` of the Skellam distribution (the difference of two equal Poissons) for x = 0, 1, 2...
///
/// `P(x) = e^-μ I_x(μ)`; the ratios of neighbouring Bessel functions come from their recurrence,
/// run downwards, where it is stable.
fn skellam_log_mass(variance: f64) -> Vec<f64> {
    let reach = (40.0 * variance.sqrt() + 100.0).ceil() as usize;
    let mut log_ratios = vec![0.0; reach];
    let mut ratio = 0.0;
    for x in (1..reach).rev() {
        ratio = (2.0 * x as f64 / variance + ratio).recip();
        log_ratios[x] = ratio.ln();
    }
    let mut log_mass: Vec<f64> = log_ratios
        .into_iter()
        .scan(0.0, |sum, log_ratio| {
            *sum += log_ratio;
            Some(*sum)
        })
        .collect();
    let log_total = (2.0 * log_mass[1..].iter().rev().map(|mass| mass.exp()).sum::<f64>()).ln_1p();
    for mass in &mut log_mass {
        *mass -= log_total;
    }
    log_mass
}

/// Joins equal events and all plain Gaussians; drops those that reveal nothing.
fn merge(events: &[PrivacyEvent]) -> Merged {
    let mut merged = Merged { gaussian_precision: 0.0, others: Vec::new() };
    for event in events {
        let count = event.count();
        if let Some(noise_multiplier) = event.as_gaussian() {
            if count > 0 {
                merged.gaussian_precision += count as f64 / (noise_multiplier * noise_multiplier);
            }
            continue;
        }
        if event.reveals_nothing() {
            continue;
        }
        let single = event.with_count(1);
        match merged.others.iter_mut().find(|(other, _)| *other == single) {
            Some((_, total)) => *total = total.saturating_add(count),
            None => merged.others.push((single, count)),
        }
    }
    merged
}
