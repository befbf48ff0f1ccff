//! Answers privacy questions on the command line: what releases cost, and how much noise they need.
//!
//! Checks and names what is asked; the computation is [`tributary_privacy::accountant`].

mod answer;
mod event;
mod mechanism;

use thiserror::Error;
use tributary_privacy::{
    accountant::{self, AccountantError, Delta},
    mechanism::{Neighbouring, PrivacyEvent},
};

pub use self::{
    answer::{AccountAnswer, CalibrateAnswer},
    event::{EventError, MechanismDetails, NoiseCorrelation, NoiseShares, SampledReleases},
    mechanism::{Accountant, Mechanism, neighbouring_from_name, neighbouring_name},
};

/// What is to be accounted.
#[derive(Debug, Clone, PartialEq)]
pub struct AccountRequest {
    /// How the results are made.
    pub mechanism: Mechanism,
    /// Which datasets count as neighbours; `None` for the mechanism's own relation.
    pub neighbouring: Option<Neighbouring>,
    /// How to compute.
    pub accountant: Accountant,
    /// All releases, composed.
    pub releases: Vec<SampledReleases>,
    /// What else the mechanism needs to know.
    pub details: MechanismDetails,
    /// The δ at which ε is wanted.
    pub delta: f64,
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
    #[error("--mechanism {mechanism} takes everybody: its sampling rate is 1, not {sampling_rate}")]
    Unsampled {
        /// The mechanism.
        mechanism: Mechanism,
        /// What was given.
        sampling_rate: f64,
    },
    /// Samples of fixed size need to know of what.
    #[error("--mechanism {mechanism} needs --num-examples, the size of the dataset")]
    NoDatasetSize {
        /// The mechanism.
        mechanism: Mechanism,
    },
    /// Distributed noise needs to know how it is shared out.
    #[error("--mechanism {mechanism} needs --sigma-share, --clients and --dimension")]
    NoShares {
        /// The mechanism.
        mechanism: Mechanism,
    },
    /// Correlated noise needs its matrix and how often a unit takes part.
    #[error("--mechanism {mechanism} needs --bands and --participations")]
    NoCorrelation {
        /// The mechanism.
        mechanism: Mechanism,
    },
    /// The mechanism has a privacy analysis only under the other relation.
    #[error(
        "--mechanism {mechanism} is accounted under {}, not {}",
        neighbouring_name(*only),
        neighbouring_name(*asked)
    )]
    OtherRelation {
        /// The mechanism.
        mechanism: Mechanism,
        /// The relation that works.
        only: Neighbouring,
        /// The relation that was asked for.
        asked: Neighbouring,
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
        let neighbouring = self.neighbouring.unwrap_or(self.mechanism.neighbouring());
        let event = |releases| self.mechanism.event(releases, neighbouring, self.details);
        let events: Vec<PrivacyEvent> =
            self.releases.iter().map(event).collect::<Result<_, _>>()?;
        let epsilon = match self.accountant {
            Accountant::Pld => accountant::epsilon_pld(&events, delta)?,
            Accountant::Rdp => accountant::epsilon_rdp(&events, delta)?,
            Accountant::Zcdp => accountant::epsilon_zcdp(&events, delta)?,
        };
        Ok(AccountAnswer {
            epsilon,
            delta: self.delta,
            mechanism: self.mechanism,
            neighbouring,
            accountant: self.accountant,
        })
    }
}

/// The noise that is wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct CalibrateRequest {
    /// How the results are made.
    pub mechanism: Mechanism,
    /// Which datasets count as neighbours; `None` for the mechanism's own relation.
    pub neighbouring: Option<Neighbouring>,
    /// The most ε that all releases together may cost.
    pub target_epsilon: f64,
    /// The δ of that ε.
    pub delta: f64,
    /// Probability with which each unit joins a sample, in (0, 1].
    pub sampling_rate: f64,
    /// Number of releases.
    pub steps: u64,
    /// What else the mechanism needs to know.
    pub details: MechanismDetails,
}

impl CalibrateRequest {
    /// Finds the least noise multiplier, everything else being as requested.
    ///
    /// # Errors
    /// [`AccountingError`] naming the flag and what would work.
    pub fn answer(&self) -> Result<CalibrateAnswer, AccountingError> {
        let &Self { mechanism, target_epsilon, delta, sampling_rate, steps, details, .. } = self;
        let neighbouring = self.neighbouring.unwrap_or(mechanism.neighbouring());
        let event = |noise_multiplier| {
            let releases = SampledReleases { sampling_rate, noise_multiplier, steps };
            mechanism.event(&releases, neighbouring, details)
        };
        // Any noise passes the check of the other numbers.
        event(1.0)?;
        let valid_delta = Delta::new(delta)?;
        let noise_multiplier = accountant::calibrate(target_epsilon, valid_delta, |multiplier| {
            event(multiplier).expect("only the noise differs from what was checked")
        })?;
        Ok(CalibrateAnswer {
            noise_multiplier,
            epsilon: accountant::epsilon(&[event(noise_multiplier)?], valid_delta)?,
            delta,
            mechanism,
            neighbouring,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(sampling_rate: f64, noise_multiplier: f64, steps: u64) -> AccountRequest {
        AccountRequest {
            mechanism: Mechanism::PoissonGaussian,
            neighbouring: None,
            accountant: Accountant::Pld,
            releases: vec![SampledReleases { sampling_rate, noise_multiplier, steps }],
            details: MechanismDetails::default(),
            delta: 1e-5,
        }
    }

    fn calibration() -> CalibrateRequest {
        CalibrateRequest {
            mechanism: Mechanism::PoissonGaussian,
            neighbouring: None,
            target_epsilon: 2.0,
            delta: 1e-5,
            sampling_rate: 0.01,
            steps: 1000,
            details: MechanismDetails::default(),
        }
    }

    /// The figure is never below `exact` and at most 1 % above.
    fn assert_tight(request: &AccountRequest, exact: f64) {
        let epsilon = request.answer().unwrap().epsilon;
        assert!((exact..=exact * 1.01).contains(&epsilon), "{epsilon} for {exact}");
    }

    #[test]
    fn answers_agree_with_exact_values() {
        // Exact values by inversion of the characteristic function, or in closed form.
        assert_tight(&request(0.01, 1.0, 1000), 1.828_236_667);
        let mut composed = request(0.01, 1.0, 1000);
        composed.releases.push(SampledReleases {
            sampling_rate: 0.02,
            noise_multiplier: 1.5,
            steps: 500,
        });
        assert_tight(&composed, 2.303_128_323);
        let mut gaussian = request(1.0, 2.0, 10);
        gaussian.mechanism = Mechanism::Gaussian;
        assert_tight(&gaussian, 7.511_275_900);
        gaussian.neighbouring = Some(Neighbouring::ReplaceOne);
        assert_tight(&gaussian, 17.856_586_830);
        let mut discrete = request(1.0, 2.0, 1);
        discrete.mechanism = Mechanism::DiscreteGaussian;
        discrete.delta = 1e-6;
        assert_tight(&discrete, 2.275_793_151);
    }

    #[test]
    fn the_renyi_accountant_is_above_the_tight_one() {
        let tight = request(0.01, 1.1, 1000);
        let renyi = AccountRequest { accountant: Accountant::Rdp, ..tight.clone() };
        assert!(renyi.answer().unwrap().epsilon > tight.answer().unwrap().epsilon);
    }

    #[test]
    fn fixed_size_samples_need_the_dataset_size_and_their_own_relation() {
        let mut fixed = request(0.01, 2.0, 100);
        fixed.mechanism = Mechanism::WithoutReplacementGaussian;
        assert!(fixed.answer().unwrap_err().to_string().contains("--num-examples"));
        fixed.details.num_examples = Some(10_000);
        let answer = fixed.answer().unwrap();
        assert_eq!(answer.neighbouring, Neighbouring::ReplaceOne);
        assert!(answer.epsilon > 0.0);
        fixed.details.num_examples = Some(10_050);
        assert!(fixed.answer().unwrap_err().to_string().contains("whole number"));
        fixed.neighbouring = Some(Neighbouring::AddOrRemoveOne);
        assert!(fixed.answer().unwrap_err().to_string().contains("replace-one"));
    }

    #[test]
    fn distributed_noise_needs_its_shares() {
        let mut distributed = request(0.01, 1.0, 1000);
        distributed.mechanism = Mechanism::DistributedDiscreteGaussian;
        assert!(distributed.answer().unwrap_err().to_string().contains("--sigma-share"));
        distributed.details.shares =
            Some(NoiseShares { sigma_share: 1000.0, clients: 10, dimension: 1_000_000 });
        assert_tight(&distributed, 1.828_236_667);
        for accountant in [Accountant::Rdp, Accountant::Zcdp] {
            let other = AccountRequest { accountant, ..distributed.clone() };
            assert!(other.answer().unwrap().epsilon > 1.9);
        }
        distributed.details.shares =
            Some(NoiseShares { sigma_share: 0.1, clients: 10, dimension: 1_000_000 });
        assert!(distributed.answer().unwrap_err().to_string().contains("sigma_share"));
    }

    #[test]
    fn calibrated_noise_meets_its_target() {
        let answer = calibration().answer().unwrap();
        assert!((0.959_101..0.9595).contains(&answer.noise_multiplier), "{answer}");
        assert!((1.99..=2.0).contains(&answer.epsilon), "{answer}");
    }

    #[test]
    fn every_mechanism_can_be_calibrated() {
        let details = MechanismDetails {
            num_examples: Some(10_000),
            shares: Some(NoiseShares { sigma_share: 1000.0, clients: 10, dimension: 1000 }),
            correlation: Some(NoiseCorrelation {
                bands: 10,
                participations: 100,
                separation: None,
            }),
        };
        for mechanism in [
            Mechanism::PoissonGaussian,
            Mechanism::Gaussian,
            Mechanism::WithoutReplacementGaussian,
            Mechanism::DistributedDiscreteGaussian,
            Mechanism::BandedMatrix,
        ] {
            let sampling_rate = if mechanism.takes_everybody() { 1.0 } else { 0.01 };
            let request = CalibrateRequest { mechanism, sampling_rate, details, ..calibration() };
            let answer = request.answer().unwrap();
            assert!((1.99..=2.0).contains(&answer.epsilon), "{answer}");
        }
    }

    #[test]
    fn correlated_noise_needs_its_matrix_and_costs_its_sensitivity() {
        let mut correlated = request(1.0, 20.0, 100);
        correlated.mechanism = Mechanism::BandedMatrix;
        assert!(correlated.answer().unwrap_err().to_string().contains("--bands"));
        let run = NoiseCorrelation { bands: 8, participations: 13, separation: Some(8) };
        correlated.details.correlation = Some(run);
        // The sensitivity is that of jax-privacy.
        let mut single = request(1.0, 20.0 / 4.703_352_102_075_046, 1);
        single.mechanism = Mechanism::Gaussian;
        assert_tight(&correlated, single.answer().unwrap().epsilon);
        correlated.details.correlation = Some(NoiseCorrelation { separation: Some(9), ..run });
        assert!(correlated.answer().unwrap_err().to_string().contains("participations"));
    }

    #[test]
    fn impossible_questions_are_named() {
        for (sampling_rate, noise_multiplier, expected) in [
            (0.0, 1.0, "--sampling-rate is 0"),
            (1.5, 1.0, "--sampling-rate is 1.5"),
            (f64::NAN, 1.0, "--sampling-rate is NaN"),
            (0.1, 0.0, "--noise-multiplier is 0"),
            (0.1, f64::INFINITY, "--noise-multiplier is inf"),
        ] {
            let error = request(sampling_rate, noise_multiplier, 1).answer().unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
        let mut unsampled = request(0.5, 1.0, 1);
        unsampled.mechanism = Mechanism::Gaussian;
        assert!(unsampled.answer().unwrap_err().to_string().contains("sampling rate is 1"));
        for delta in [0.0, 1.0, f64::NAN] {
            assert!(CalibrateRequest { delta, ..calibration() }.answer().is_err());
        }
    }
}
