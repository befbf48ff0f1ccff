//! Choosing the noise for a target ε.

use super::{AccountantError, Delta, epsilon, pld::estimate};
use crate::mechanism::PrivacyEvent;

/// The smallest noise multiplier that calibration considers.
const NOISE_MULTIPLIER_MIN: f64 = 0.01;
/// The largest noise multiplier that calibration considers.
const NOISE_MULTIPLIER_MAX: f64 = 1e6;
/// Relative width of the bracket at which the search ends.
const PRECISION: f64 = 1e-5;

/// The smallest noise multiplier (to five digits, rounded up) at which `steps` Poisson-subsampled
/// Gaussian releases cost at most `target_epsilon`.
///
/// - `sampling_rate`: in [0, 1]
///
/// # Errors
/// As for [`calibrate`].
pub fn calibrate_noise_multiplier(
    target_epsilon: f64,
    delta: Delta,
    sampling_rate: f64,
    steps: u64,
) -> Result<f64, AccountantError> {
    calibrate(target_epsilon, delta, |noise_multiplier| PrivacyEvent::PoissonGaussian {
        sampling_rate,
        noise_multiplier,
        steps,
    })
}

/// The smallest noise multiplier (to five digits, rounded up) at which an event costs at most
/// `target_epsilon`.
///
/// Root finding on [`epsilon`], which falls as the noise grows; the returned value was itself
/// evaluated and meets the target. There is no closed formula to trust here: the textbook one holds
/// only for ε < 1.
///
/// - `event_of`: the event with a given noise multiplier, everything else being equal
///
/// # Errors
/// [`AccountantError::OutOfRange`] names the parameter that cannot work,
/// [`AccountantError::Unreachable`] if even a noise multiplier of a million is not enough.
pub fn calibrate(
    target_epsilon: f64,
    delta: Delta,
    event_of: impl Fn(f64) -> PrivacyEvent,
) -> Result<f64, AccountantError> {
    if !(target_epsilon.is_finite() && target_epsilon > 0.0) {
        let (field, range) = ("target_epsilon", "a positive finite number");
        return Err(AccountantError::OutOfRange { field, value: target_epsilon, range });
    }
    let event = |noise_multiplier| [event_of(noise_multiplier)];
    super::validate(&event(1.0))?;
    let excess = |noise_multiplier: f64| {
        Ok::<_, AccountantError>((epsilon(&event(noise_multiplier), delta)? / target_epsilon).ln())
    };
    // The quick estimate leaves little for the slow, certain one to search.
    let (mut low, mut high) = (NOISE_MULTIPLIER_MIN, NOISE_MULTIPLIER_MAX);
    while high > low * 1.001 {
        let middle = (low * high).sqrt();
        if estimate(&event(middle), delta) > target_epsilon { low = middle } else { high = middle }
    }
    let guess = high;
    let mut factor = 1.01;
    let (mut above, mut below);
    loop {
        (low, high) = ((guess / factor).max(NOISE_MULTIPLIER_MIN), guess * factor);
        (above, below) = (excess(low)?, excess(high)?);
        if below > 0.0 && high > NOISE_MULTIPLIER_MAX {
            let noise_multiplier_max = NOISE_MULTIPLIER_MAX;
            return Err(AccountantError::Unreachable { target_epsilon, noise_multiplier_max });
        }
        if above <= 0.0 && low == NOISE_MULTIPLIER_MIN {
            return Ok(low);
        }
        if above > 0.0 && below <= 0.0 {
            break;
        }
        factor *= factor;
    }
    // Regula falsi, stepping just beyond the estimated root so that the bracket closes from both
    // sides; ln ε is nearly linear in ln σ. Every fourth step bisects, for certain progress.
    for turn in 1.. {
        let width = (high / low).ln();
        if width <= PRECISION {
            break;
        }
        let share = above / (above - below);
        let beyond = 0.4 * PRECISION * if share < 0.5 { 1.0 } else { -1.0 };
        let position = if turn % 4 == 0 || !share.is_finite() {
            0.5 * width
        } else {
            (share * width + beyond).clamp(0.2 * PRECISION, width - 0.2 * PRECISION)
        };
        let middle = low * position.exp();
        let value = excess(middle)?;
        if value > 0.0 { (low, above) = (middle, value) } else { (high, below) = (middle, value) }
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
