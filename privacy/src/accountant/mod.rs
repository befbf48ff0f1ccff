//! Accountants: what a sequence of releases costs, as an upper bound of ε at a given δ.

mod calibrate;
mod rdp;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::{calibrate::calibrate_noise_multiplier, rdp::epsilon_rdp};
use crate::mechanism::PrivacyEvent;

/// Says why no ε can be given.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum AccountantError {
    /// A number lies outside its range (NaN included).
    #[error("`{field}` is {value}; it must be {range}")]
    OutOfRange {
        /// The name of the parameter.
        field: &'static str,
        /// What was given.
        value: f64,
        /// What would work.
        range: &'static str,
    },
    /// No noise within the supported range reaches the target.
    #[error("no noise multiplier up to {noise_multiplier_max} reaches epsilon {target_epsilon}")]
    Unreachable {
        /// What was asked for.
        target_epsilon: f64,
        /// The largest noise multiplier that was tried.
        noise_multiplier_max: f64,
    },
}

/// The δ of (ε, δ)-differential privacy, strictly between 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Delta(f64);

impl Delta {
    /// Checks the value once, so that inner code can trust it.
    ///
    /// # Errors
    /// [`AccountantError::OutOfRange`] unless 0 < `delta` < 1.
    pub fn new(delta: f64) -> Result<Self, AccountantError> {
        if delta > 0.0 && delta < 1.0 {
            Ok(Self(delta))
        } else {
            let range = "above 0 and below 1";
            Err(AccountantError::OutOfRange { field: "delta", value: delta, range })
        }
    }

    /// The number itself.
    #[must_use]
    pub const fn value(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Delta {
    type Error = AccountantError;
    fn try_from(delta: f64) -> Result<Self, AccountantError> {
        Self::new(delta)
    }
}

impl From<Delta> for f64 {
    fn from(delta: Delta) -> Self {
        delta.0
    }
}

/// The ε of all `events` together at `delta`: an upper bound, the tightest this crate has.
///
/// Nothing released costs 0; a release without noise costs infinity. Events may be chosen
/// adaptively only in so far as their parameters were fixed beforehand.
///
/// # Errors
/// [`AccountantError::OutOfRange`] names the parameter of an event that cannot be.
pub fn epsilon(events: &[PrivacyEvent], delta: Delta) -> Result<f64, AccountantError> {
    epsilon_rdp(events, delta)
}

/// Checks that the parameters of every event make sense.
fn validate(events: &[PrivacyEvent]) -> Result<(), AccountantError> {
    let multiplier = |value: f64| {
        // A noise multiplier of 0 (no noise) is a fact that costs infinity, not a mistake.
        let range = "a finite number, at least 0";
        if value.is_finite() && value >= 0.0 {
            Ok(())
        } else {
            Err(AccountantError::OutOfRange { field: "noise_multiplier", value, range })
        }
    };
    for event in events {
        match *event {
            PrivacyEvent::Gaussian { noise_multiplier, .. } => multiplier(noise_multiplier)?,
            PrivacyEvent::PoissonGaussian { sampling_rate, noise_multiplier, .. } => {
                multiplier(noise_multiplier)?;
                if !(0.0..=1.0).contains(&sampling_rate) {
                    let (field, range) = ("sampling_rate", "between 0 and 1");
                    return Err(AccountantError::OutOfRange { field, value: sampling_rate, range });
                }
            }
        }
    }
    Ok(())
}
