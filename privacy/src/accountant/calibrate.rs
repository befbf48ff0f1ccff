//! Choosing the noise for a target ε.

use super::{AccountantError, Delta, epsilon};
use crate::mechanism::PrivacyEvent;

/// The smallest noise multiplier that calibration considers.
const NOISE_MULTIPLIER_MIN: f64 = 0.01;
/// The largest noise multiplier that calibration considers.
const NOISE_MULTIPLIER_MAX: f64 = 1e6;
/// Relative width at which the bisection ends.
const PRECISION: f64 = 1e-6;

/// The smallest noise multiplier (to six digits, rounded up) at which `steps` Poisson-subsampled
/// Gaussian releases cost at most `target_epsilon`.
///
/// Bisection on [`epsilon`], which falls as the noise grows; the returned value was itself
/// evaluated and meets the target. There is no closed formula to trust here: the textbook one holds
/// only for ε < 1.
///
/// - `sampling_rate`: in [0, 1]
///
/// # Errors
/// [`AccountantError::OutOfRange`] names the parameter that cannot work,
/// [`AccountantError::Unreachable`] if even [`NOISE_MULTIPLIER_MAX`] is not enough.
pub fn calibrate_noise_multiplier(
    target_epsilon: f64,
    delta: Delta,
    sampling_rate: f64,
    steps: u64,
) -> Result<f64, AccountantError> {
    if !(target_epsilon.is_finite() && target_epsilon > 0.0) {
        let (field, range) = ("target_epsilon", "a positive finite number");
        return Err(AccountantError::OutOfRange { field, value: target_epsilon, range });
    }
    let meets = |noise_multiplier: f64| {
        let event = PrivacyEvent::PoissonGaussian { sampling_rate, noise_multiplier, steps };
        Ok::<_, AccountantError>(epsilon(&[event], delta)? <= target_epsilon)
    };
    if meets(NOISE_MULTIPLIER_MIN)? {
        return Ok(NOISE_MULTIPLIER_MIN);
    }
    let mut low = NOISE_MULTIPLIER_MIN;
    let mut high = 1.0;
    while !meets(high)? {
        low = high;
        high *= 4.0;
        if high > NOISE_MULTIPLIER_MAX {
            let noise_multiplier_max = NOISE_MULTIPLIER_MAX;
            return Err(AccountantError::Unreachable { target_epsilon, noise_multiplier_max });
        }
    }
    while high > low * (1.0 + PRECISION) {
        let middle = (low * high).sqrt();
        if meets(middle)? { high = middle } else { low = middle }
    }
    Ok(high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_meets_the_target_and_barely_less_noise_does_not() {
        let delta = Delta::new(1e-5).expect("valid");
        for (target, rate, steps) in [(1.0, 1.0, 1), (8.0, 0.01, 10_000), (2.0, 0.01, 1000)] {
            let sigma = calibrate_noise_multiplier(target, delta, rate, steps).expect("reachable");
            let cost = |noise_multiplier| {
                let event =
                    PrivacyEvent::PoissonGaussian { sampling_rate: rate, noise_multiplier, steps };
                epsilon(&[event], delta).expect("valid")
            };
            assert!(cost(sigma) <= target && cost(sigma * 0.9999) > target);
        }
    }

    #[test]
    fn impossible_targets_are_errors() {
        let delta = Delta::new(1e-5).expect("valid");
        for target in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(calibrate_noise_multiplier(target, delta, 0.01, 10).is_err());
        }
        assert!(calibrate_noise_multiplier(1.0, delta, 1.5, 10).is_err());
    }
}
