//! Accountants: what a sequence of releases costs, as an upper bound of ε at a given δ.

mod calibrate;
mod gaussian;
mod lattice;
mod normal;
mod pld;
mod rdp;
mod zcdp;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::{
    calibrate::{calibrate, calibrate_noise_multiplier},
    pld::epsilon_pld,
    rdp::epsilon_rdp,
    zcdp::{distributed_discrete_gaussian_rho, epsilon_zcdp, zcdp_epsilon},
};
use crate::{
    mechanism::{BandedMatrix, MechanismError, ParticipationSchedule, PrivacyEvent},
    noise::{SIGMA_MAX, SIGMA_MIN},
};

/// The largest deviation of an accounted scalar discrete Gaussian; finer noise is as good as
/// continuous.
const DISCRETE_SIGMA_MAX: f64 = 10_000.0;
use gaussian::gaussian_epsilon;

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
    /// The accountant knows no bound for a kind of event; another one does.
    #[error("the {accountant} accountant has no bound for {mechanism}; {instead} has")]
    NoBound {
        /// Which accountant was asked.
        accountant: &'static str,
        /// The kind of event.
        mechanism: &'static str,
        /// Which accountant answers.
        instead: &'static str,
    },
    /// Events under different neighbouring relations do not compose.
    #[error("the events mix add-or-remove-one and replace-one")]
    MixedNeighbouring,
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
    epsilon_pld(events, delta)
}

/// The same events, equal ones counted together, in a fixed order of first appearance.
pub(crate) fn coalesced(events: &[PrivacyEvent]) -> Vec<PrivacyEvent> {
    let mut merged: Vec<PrivacyEvent> = Vec::new();
    for event in events {
        let same = |other: &&mut PrivacyEvent| other.with_count(0) == event.with_count(0);
        match merged.iter_mut().find(same) {
            Some(other) => *other = other.with_count(other.count().saturating_add(event.count())),
            None => merged.push(event.clone()),
        }
    }
    merged
}

/// What a plan inside an event refuses.
fn planned<T>(plan: Result<T, MechanismError>) -> Result<T, AccountantError> {
    plan.map_err(|error| match error {
        MechanismError::OutOfRange { field, value, range } => {
            AccountantError::OutOfRange { field, value, range }
        }
        _ => unreachable!("matrices and schedules are made of numbers and refuse only these"),
    })
}

/// Checks that the parameters of every event make sense, and that all share one relation.
fn validate(events: &[PrivacyEvent]) -> Result<(), AccountantError> {
    let check = |field, value: f64, holds: bool, range| {
        if holds { Ok(()) } else { Err(AccountantError::OutOfRange { field, value, range }) }
    };
    // A noise multiplier of 0 (no noise) is a fact that costs infinity, not a mistake.
    let multiplier = |value: f64| {
        let holds = value.is_finite() && value >= 0.0;
        check("noise_multiplier", value, holds, "a finite number, at least 0")
    };
    let rate =
        |value: f64| check("sampling_rate", value, (0.0..=1.0).contains(&value), "between 0 and 1");
    for event in events {
        match *event {
            PrivacyEvent::Gaussian { noise_multiplier, .. }
            | PrivacyEvent::GaussianReplaceOne { noise_multiplier, .. } => {
                multiplier(noise_multiplier)?;
            }
            PrivacyEvent::PoissonGaussian { sampling_rate, noise_multiplier, .. }
            | PrivacyEvent::PoissonGaussianReplaceOne { sampling_rate, noise_multiplier, .. } => {
                multiplier(noise_multiplier)?;
                rate(sampling_rate)?;
            }
            PrivacyEvent::WithoutReplacementGaussian {
                batch_size,
                num_examples,
                noise_multiplier,
                ..
            } => {
                multiplier(noise_multiplier)?;
                check("num_examples", num_examples as f64, num_examples > 0, "at least 1")?;
                let holds = batch_size <= num_examples;
                check("batch_size", batch_size as f64, holds, "at most num_examples")?;
            }
            PrivacyEvent::LatticeGaussian {
                sampling_rate,
                noise_multiplier,
                sigma_share,
                clients,
                dimension,
                ..
            } => {
                rate(sampling_rate)?;
                let holds = noise_multiplier.is_finite() && noise_multiplier > 0.0;
                check("noise_multiplier", noise_multiplier, holds, "a finite number above 0")?;
                let holds = (SIGMA_MIN..=SIGMA_MAX).contains(&sigma_share);
                check("sigma_share", sigma_share, holds, "between 0.5 and 1e9 grid units")?;
                check("clients", f64::from(clients), clients > 0, "at least 1")?;
                check("dimension", dimension as f64, dimension > 0, "at least 1")?;
            }
            PrivacyEvent::BandedMatrix {
                noise_multiplier,
                sigma,
                dimension,
                bands,
                steps,
                separation,
                participations,
                ..
            } => {
                multiplier(noise_multiplier)?;
                let holds = (SIGMA_MIN..=SIGMA_MAX * SIGMA_MAX).contains(&sigma);
                check("sigma", sigma, holds, "between 0.5 and 1e18 units")?;
                check("dimension", dimension as f64, dimension > 0, "at least 1")?;
                planned(BandedMatrix::new(bands))?;
                planned(ParticipationSchedule::new(steps, separation, participations))?;
            }
            PrivacyEvent::DiscreteGaussian { sigma, sensitivity, .. } => {
                let holds = (SIGMA_MIN..=DISCRETE_SIGMA_MAX).contains(&sigma);
                check("sigma", sigma, holds, "between 0.5 and 10000")?;
                let holds = f64::from(sensitivity) <= 8.0 * sigma;
                check("sensitivity", f64::from(sensitivity), holds, "at most 8 sigma")?;
            }
            PrivacyEvent::Skellam { variance, sensitivity, .. } => {
                let holds = (0.25..=DISCRETE_SIGMA_MAX.powi(2)).contains(&variance);
                check("variance", variance, holds, "between 0.25 and 1e8")?;
                let holds = f64::from(sensitivity) <= 8.0 * variance.sqrt();
                check("sensitivity", f64::from(sensitivity), holds, "at most 8 deviations")?;
            }
        }
    }
    match events {
        [first, rest @ ..]
            if rest.iter().any(|event| event.neighbouring() != first.neighbouring()) =>
        {
            Err(AccountantError::MixedNeighbouring)
        }
        _ => Ok(()),
    }
}
