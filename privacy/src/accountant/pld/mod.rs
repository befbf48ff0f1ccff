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
mod pair;
mod plan;

use super::{AccountantError, Delta, epsilon_rdp, gaussian_epsilon, validate};
use crate::mechanism::PrivacyEvent;
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
    let merged = merge(events);
    if merged.sampled.is_empty() {
        return Ok(gaussian_epsilon(merged.gaussian_precision, delta.value()));
    }
    let mut worst = 0.0;
    for direction in [Direction::Remove, Direction::Add] {
        worst = compose::epsilon(&merged.components(direction), delta.value(), worst);
    }
    // Where the composition meets its limits, the other bound may still hold.
    if worst.is_finite() { Ok(worst * ROUNDING) } else { epsilon_rdp(events, delta) }
}

/// A quick estimate of [`epsilon_pld`] to a few percent, without any guarantee.
pub(super) fn estimate(events: &[PrivacyEvent], delta: Delta) -> f64 {
    let merged = merge(events);
    if merged.sampled.is_empty() {
        return gaussian_epsilon(merged.gaussian_precision, delta.value());
    }
    compose::estimate(&merged.components(Direction::Remove), delta.value())
}

/// Events by kind, equal ones counted together.
struct Merged {
    /// Sum of `1 / noise_multiplier²` of all unsampled Gaussians: they compose into one.
    gaussian_precision: f64,
    /// Sampling rate, noise multiplier and count.
    sampled: Vec<(f64, f64, u64)>,
}

impl Merged {
    fn components(&self, direction: Direction) -> Vec<Component> {
        let sampled = self.sampled.iter().map(|&(sampling_rate, noise_multiplier, count)| {
            Component { pair: Pair::poisson(direction, sampling_rate, noise_multiplier), count }
        });
        let gaussian = (self.gaussian_precision > 0.0).then(|| Component {
            pair: Pair::poisson(direction, 1.0, self.gaussian_precision.sqrt().recip()),
            count: 1,
        });
        sampled.chain(gaussian).collect()
    }
}

fn merge(events: &[PrivacyEvent]) -> Merged {
    let mut merged = Merged { gaussian_precision: 0.0, sampled: Vec::new() };
    for event in events {
        let (rate, noise_multiplier, count) = match *event {
            PrivacyEvent::Gaussian { noise_multiplier, count } => (1.0, noise_multiplier, count),
            PrivacyEvent::PoissonGaussian { sampling_rate, noise_multiplier, steps } => {
                (sampling_rate, noise_multiplier, steps)
            }
        };
        if count == 0 || rate == 0.0 {
            continue;
        }
        if rate == 1.0 {
            merged.gaussian_precision += count as f64 / (noise_multiplier * noise_multiplier);
            continue;
        }
        let same = |&&mut (r, n, _): &&mut (f64, f64, u64)| r == rate && n == noise_multiplier;
        match merged.sampled.iter_mut().find(same) {
            Some((.., total)) => *total = total.saturating_add(count),
            None => merged.sampled.push((rate, noise_multiplier, count)),
        }
    }
    merged
}
