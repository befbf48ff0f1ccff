//! The noise multiplier that a wanted ε needs.

use tributary_privacy::accountant::{Delta, calibrate_noise_multiplier};

use super::super::HarnessError;
use crate::experiment::{ExperimentError, NoiseSpec};

/// The noise multiplier as given, or as the wanted ε needs.
///
/// - `releases`: events of the tenant that takes part most often, and its participations
pub(super) fn multiplier(
    noise: &NoiseSpec,
    delta: Delta,
    sampling_rate: f64,
    releases: impl FnOnce() -> (u64, u64),
) -> Result<f64, HarnessError> {
    match (noise.noise_multiplier, noise.epsilon) {
        (None, Some(epsilon)) => {
            let (steps, releases) = releases();
            calibrate_noise_multiplier(epsilon, delta, sampling_rate, steps)
                .map_err(|source| ExperimentError::Unreachable { epsilon, releases, source }.into())
        }
        (given, _) => Ok(given.expect("the experiment was checked")),
    }
}

/// The smallest multiplier (up to a thousandth above) that reaches an ε.
///
/// What is reached may lie well below the target where ε jumps: the accountant certifies no finite ε
/// from some 50 on, where the distance of the sampler from its ideal, times e^ε, uses up δ. With less
/// noise than that the target is missed by any margin, so there the search ends.
///
/// - `reached`: ε by multiplier
pub(super) fn smallest(
    target: f64,
    releases: u64,
    reached: impl Fn(f64) -> Result<f64, HarnessError>,
) -> Result<f64, HarnessError> {
    let (mut low, mut high) = (0.05_f64, 0.1_f64);
    let mut least = f64::INFINITY;
    loop {
        match reached(high) {
            Ok(epsilon) if epsilon <= target => break,
            Ok(epsilon) => {
                least = epsilon;
                (low, high) = (high, high * 2.0);
            }
            // More noise than the lattice can hold.
            Err(HarnessError::Lattice(_)) if least.is_finite() => {
                let epsilon = target;
                return Err(ExperimentError::TooMuchNoise { epsilon, releases, least }.into());
            }
            Err(error) => return Err(error),
        }
    }
    while high / low > 1.001 {
        let middle = (low * high).sqrt();
        if reached(middle)? <= target { high = middle } else { low = middle }
    }
    Ok(high)
}
