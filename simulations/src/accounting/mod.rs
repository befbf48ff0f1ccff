//! Answers privacy questions on the command line: what releases cost, and how much noise they need.
//!
//! Checks and names what is asked; the computation is [`tributary_privacy::accountant`].

mod event;

use std::fmt;

use serde::Serialize;
use thiserror::Error;
use tributary_privacy::{
    accountant::{self, AccountantError, Delta},
    mechanism::PrivacyEvent,
};

pub use self::event::{EventError, SampledReleases};

/// How the noisy results are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mechanism {
    /// Gaussian noise on the sum over a Poisson sample: each unit joins independently.
    PoissonGaussian,
    /// Gaussian noise on the sum over everybody.
    Gaussian,
}

/// How the accountant computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Accountant {
    /// Rényi differential privacy: fast, never below the truth, usually a few per cent above.
    Rdp,
}

/// Which datasets count as neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Neighbouring {
    /// One unit is added or removed.
    AddOrRemoveOne,
    /// One unit is replaced by another.
    ReplaceOne,
}

/// What is to be accounted.
#[derive(Debug, Clone, PartialEq)]
pub struct AccountRequest {
    /// How the results are made.
    pub mechanism: Mechanism,
    /// Which datasets count as neighbours.
    pub neighbouring: Neighbouring,
    /// How to compute.
    pub accountant: Accountant,
    /// All releases, composed.
    pub releases: Vec<SampledReleases>,
    /// The δ at which ε is wanted.
    pub delta: f64,
}

/// The cost of some releases.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AccountAnswer {
    /// An upper bound of ε; `null` in JSON if it is infinite.
    pub epsilon: f64,
    /// The δ of that ε.
    pub delta: f64,
    /// How the results are made.
    pub mechanism: Mechanism,
    /// Which datasets count as neighbours.
    pub neighbouring: Neighbouring,
    /// How it was computed.
    pub accountant: Accountant,
}

/// The noise for a wanted ε.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CalibrateAnswer {
    /// Noise standard deviation over clipping norm.
    pub noise_multiplier: f64,
    /// The ε that this noise costs, at most the wanted one.
    pub epsilon: f64,
    /// The δ of that ε.
    pub delta: f64,
    /// How the results are made.
    pub mechanism: Mechanism,
    /// Which datasets count as neighbours.
    pub neighbouring: Neighbouring,
}

/// Says which question has no answer.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum AccountingError {
    /// The accountant refuses a number.
    #[error(transparent)]
    Accountant(#[from] AccountantError),
    /// A number lies outside its range (NaN included).
    #[error("--{flag} is {value}; it must be {range}")]
    OutOfRange {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: f64,
        /// What would work.
        range: &'static str,
    },
    /// Nothing was asked.
    #[error("nothing to account: give --noise-multiplier and --steps, or --event q:sigma:steps")]
    Nothing,
    /// A mechanism without sampling was given a sampling rate.
    #[error("--mechanism gaussian takes everybody: its sampling rate is 1, not {sampling_rate}")]
    SampledGaussian {
        /// What was given.
        sampling_rate: f64,
    },
    /// There is no accountant for this pair.
    #[error(
        "no accountant here knows {mechanism} under {neighbouring}; use --neighbouring {}",
        Neighbouring::AddOrRemoveOne
    )]
    Unsupported {
        /// The mechanism.
        mechanism: Mechanism,
        /// The neighbouring relation.
        neighbouring: Neighbouring,
    },
}

impl AccountRequest {
    /// Computes the cost.
    ///
    /// # Errors
    /// [`AccountingError`] naming the flag and what would work.
    pub fn answer(&self) -> Result<AccountAnswer, AccountingError> {
        if self.releases.is_empty() {
            return Err(AccountingError::Nothing);
        }
        let delta = Delta::new(self.delta)?;
        let events: Vec<PrivacyEvent> =
            self.releases.iter().map(|releases| self.event(releases)).collect::<Result<_, _>>()?;
        let epsilon = match self.accountant {
            Accountant::Rdp => accountant::epsilon_rdp(&events, delta)?,
        };
        Ok(AccountAnswer {
            epsilon,
            delta: self.delta,
            mechanism: self.mechanism,
            neighbouring: self.neighbouring,
            accountant: self.accountant,
        })
    }

    fn event(&self, releases: &SampledReleases) -> Result<PrivacyEvent, AccountingError> {
        let SampledReleases { sampling_rate, noise_multiplier, steps } = *releases;
        releases.validate()?;
        let (mechanism, neighbouring) = (self.mechanism, self.neighbouring);
        match (mechanism, neighbouring) {
            (Mechanism::Gaussian, _) if sampling_rate != 1.0 => {
                Err(AccountingError::SampledGaussian { sampling_rate })
            }
            (Mechanism::Gaussian, Neighbouring::AddOrRemoveOne) => {
                Ok(PrivacyEvent::Gaussian { noise_multiplier, count: steps })
            }
            // Replacing one unit moves the sum by up to twice the clipping norm.
            (Mechanism::Gaussian, Neighbouring::ReplaceOne) => Ok(PrivacyEvent::Gaussian {
                noise_multiplier: noise_multiplier / 2.0,
                count: steps,
            }),
            (Mechanism::PoissonGaussian, Neighbouring::AddOrRemoveOne) => {
                Ok(PrivacyEvent::PoissonGaussian { sampling_rate, noise_multiplier, steps })
            }
            (Mechanism::PoissonGaussian, Neighbouring::ReplaceOne) => {
                Err(AccountingError::Unsupported { mechanism, neighbouring })
            }
        }
    }
}

/// Finds the least noise with which `steps` Poisson-subsampled Gaussian releases cost at most
/// `target_epsilon`, under add-or-remove-one.
///
/// # Errors
/// [`AccountingError`] naming the flag and what would work.
pub fn calibrate(
    target_epsilon: f64,
    delta: f64,
    sampling_rate: f64,
    steps: u64,
) -> Result<CalibrateAnswer, AccountingError> {
    // Any noise passes the check of the other numbers.
    SampledReleases { sampling_rate, noise_multiplier: 1.0, steps }.validate()?;
    let valid_delta = Delta::new(delta)?;
    let noise_multiplier =
        accountant::calibrate_noise_multiplier(target_epsilon, valid_delta, sampling_rate, steps)?;
    let event = PrivacyEvent::PoissonGaussian { sampling_rate, noise_multiplier, steps };
    Ok(CalibrateAnswer {
        noise_multiplier,
        epsilon: accountant::epsilon(&[event], valid_delta)?,
        delta,
        mechanism: Mechanism::PoissonGaussian,
        neighbouring: Neighbouring::AddOrRemoveOne,
    })
}

impl fmt::Display for AccountAnswer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "ε ≤ {:.6} at δ = {:e} ({}, neighbouring relation {}, {} accountant)",
            self.epsilon, self.delta, self.mechanism, self.neighbouring, self.accountant
        )
    }
}

impl fmt::Display for CalibrateAnswer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "noise multiplier {:.6} gives ε ≤ {:.6} at δ = {:e} ({}, neighbouring relation {})",
            self.noise_multiplier, self.epsilon, self.delta, self.mechanism, self.neighbouring
        )
    }
}

/// Displays a value by the name that its flag takes.
macro_rules! display_as_flag {
    ($($name:ty),+) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                let value = clap::ValueEnum::to_possible_value(self);
                formatter.pad(value.expect("no variant is hidden").get_name())
            }
        }
    )+};
}

display_as_flag!(Mechanism, Accountant, Neighbouring);

#[cfg(test)]
mod tests {
    use super::*;

    fn request(sampling_rate: f64, noise_multiplier: f64, steps: u64) -> AccountRequest {
        AccountRequest {
            mechanism: Mechanism::PoissonGaussian,
            neighbouring: Neighbouring::AddOrRemoveOne,
            accountant: Accountant::Rdp,
            releases: vec![SampledReleases { sampling_rate, noise_multiplier, steps }],
            delta: 1e-5,
        }
    }

    #[test]
    fn equal_releases_compose_as_one_event_or_several() {
        let whole = request(0.01, 1.1, 1000).answer().unwrap();
        let mut parts = request(0.01, 1.1, 400);
        parts.releases.push(SampledReleases { steps: 600, ..parts.releases[0] });
        let parts = parts.answer().unwrap();
        assert!((whole.epsilon - parts.epsilon).abs() < 1e-9 * whole.epsilon);
    }

    #[test]
    fn replacing_costs_more_than_adding() {
        let mut gaussian = request(1.0, 4.0, 1);
        gaussian.mechanism = Mechanism::Gaussian;
        let add = gaussian.answer().unwrap().epsilon;
        gaussian.neighbouring = Neighbouring::ReplaceOne;
        let replace = gaussian.answer().unwrap().epsilon;
        assert!(replace > 1.5 * add, "{replace} {add}");
    }

    #[test]
    fn answers_name_mechanism_and_neighbouring_relation() {
        let text = request(0.01, 1.1, 1000).answer().unwrap().to_string();
        assert!(text.contains("poisson-gaussian") && text.contains("add-or-remove-one"), "{text}");
        let text = calibrate(2.0, 1e-5, 0.01, 1000).unwrap().to_string();
        assert!(text.contains("poisson-gaussian") && text.contains("add-or-remove-one"), "{text}");
    }

    #[test]
    fn impossible_questions_are_named() {
        for (sampling_rate, noise_multiplier, steps, expected) in [
            (0.0, 1.0, 1, "--sampling-rate is 0"),
            (1.5, 1.0, 1, "--sampling-rate is 1.5"),
            (f64::NAN, 1.0, 1, "--sampling-rate is NaN"),
            (0.1, 0.0, 1, "--noise-multiplier is 0"),
            (0.1, f64::INFINITY, 1, "--noise-multiplier is inf"),
            (0.1, 1.0, 0, "--steps is 0"),
        ] {
            let request = request(sampling_rate, noise_multiplier, steps);
            let error = request.answer().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let mut replace = request(0.1, 1.0, 1);
        replace.neighbouring = Neighbouring::ReplaceOne;
        assert!(replace.answer().unwrap_err().to_string().contains("poisson-gaussian"));
        for delta in [0.0, 1.0, f64::NAN] {
            assert!(calibrate(1.0, delta, 0.1, 10).is_err());
        }
    }
}
