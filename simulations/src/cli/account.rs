//! `tributary-sim account` and `tributary-sim calibrate`.

use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use thiserror::Error;
use tributary_privacy::mechanism::Neighbouring;

use super::output;
use crate::accounting::{
    AccountRequest, Accountant, AccountingError, CalibrateRequest, Mechanism, MechanismDetails,
    NoiseCorrelation, NoiseShares, SampledReleases, neighbouring_from_name, neighbouring_name,
};

/// Computes the ε of a sequence of noisy releases.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct AccountArguments {
    /// How the results are made
    #[arg(long, value_enum, default_value_t = Mechanism::PoissonGaussian)]
    mechanism: Mechanism,
    /// Probability with which each unit joins a sample, in (0, 1] [default: 1 where nothing is sampled]
    #[arg(long, value_name = "Q")]
    sampling_rate: Option<f64>,
    /// Noise standard deviation over clipping norm
    #[arg(long, value_name = "S", requires = "steps")]
    noise_multiplier: Option<f64>,
    /// Number of releases
    #[arg(long, value_name = "N", requires = "noise_multiplier")]
    steps: Option<u64>,
    /// The δ at which ε is wanted
    #[arg(long, value_name = "D")]
    delta: f64,
    /// How to compute
    #[arg(long, value_enum, default_value_t = Accountant::Pld)]
    accountant: Accountant,
    /// Which datasets count as neighbours [default: the mechanism's own, mostly add-or-remove-one]
    #[arg(long, value_parser = neighbouring_parser())]
    neighbouring: Option<Neighbouring>,
    #[command(flatten)]
    details: DetailArguments,
    /// More releases, composed with the rest; may be repeated
    #[arg(long = "event", value_name = "Q:SIGMA:STEPS")]
    events: Vec<SampledReleases>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What only some mechanisms need.
#[derive(Debug, Args)]
pub struct DetailArguments {
    /// Size of the dataset, for samples of fixed size
    #[arg(long, value_name = "N")]
    num_examples: Option<u64>,
    /// Noise deviation of one client's share in grid units, for distributed noise
    #[arg(long, value_name = "S", requires_all = ["clients", "dimension"])]
    sigma_share: Option<f64>,
    /// Shares in the smallest surviving set of honest clients, for distributed noise
    #[arg(long, value_name = "N", requires = "sigma_share")]
    clients: Option<u32>,
    /// Coordinates of the vector, for distributed noise
    #[arg(long, value_name = "N", requires = "sigma_share")]
    dimension: Option<u64>,
    /// Bands of the matrix that correlates the noise
    #[arg(long, value_name = "N", requires = "participations")]
    bands: Option<u32>,
    /// How often one unit takes part in a run with correlated noise, at most
    #[arg(long, value_name = "N", requires = "bands")]
    participations: Option<u32>,
    /// Steps between two participations, at least [default: steps / participations]
    #[arg(long, value_name = "N", requires = "bands")]
    separation: Option<u32>,
}

impl DetailArguments {
    fn details(&self) -> MechanismDetails {
        let &Self { num_examples, sigma_share, clients, dimension, .. } = self;
        let shares =
            sigma_share.zip(clients).zip(dimension).map(|((sigma_share, clients), dimension)| {
                NoiseShares { sigma_share, clients, dimension }
            });
        let separation = self.separation;
        let correlation = self
            .bands
            .zip(self.participations)
            .map(|(bands, participations)| NoiseCorrelation { bands, participations, separation });
        MechanismDetails { num_examples, shares, correlation }
    }
}

/// Finds the noise multiplier for a wanted ε.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct CalibrateArguments {
    /// How the results are made
    #[arg(long, value_enum, default_value_t = Mechanism::PoissonGaussian)]
    mechanism: Mechanism,
    /// The most ε that all releases together may cost
    #[arg(long, value_name = "E")]
    target_epsilon: f64,
    /// The δ of that ε
    #[arg(long, value_name = "D")]
    delta: f64,
    /// Probability with which each unit joins a sample, in (0, 1] [default: 1 where nothing is sampled]
    #[arg(long, value_name = "Q")]
    sampling_rate: Option<f64>,
    /// Number of releases
    #[arg(long, value_name = "N")]
    steps: u64,
    /// Which datasets count as neighbours [default: the mechanism's own, mostly add-or-remove-one]
    #[arg(long, value_parser = neighbouring_parser())]
    neighbouring: Option<Neighbouring>,
    #[command(flatten)]
    details: DetailArguments,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Says why there is no answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AccountCommandError {
    /// The question cannot be answered.
    #[error(transparent)]
    Accounting(#[from] AccountingError),
    /// A needed flag is missing.
    #[error("--mechanism {mechanism} needs --sampling-rate Q, above 0 and at most 1")]
    NoSamplingRate {
        /// The mechanism.
        mechanism: Mechanism,
    },
    /// The answer cannot be printed.
    #[error("cannot write to standard output")]
    Output(#[from] std::io::Error),
}

fn neighbouring_parser() -> impl TypedValueParser<Value = Neighbouring> {
    let names = [Neighbouring::AddOrRemoveOne, Neighbouring::ReplaceOne].map(neighbouring_name);
    PossibleValuesParser::new(names)
        .map(|name| neighbouring_from_name(&name).expect("one of the possible values"))
}

/// The rate that was given, or that of a mechanism that takes everybody.
fn sampling_rate(mechanism: Mechanism, given: Option<f64>) -> Result<f64, AccountCommandError> {
    given
        .or(mechanism.takes_everybody().then_some(1.0))
        .ok_or(AccountCommandError::NoSamplingRate { mechanism })
}

impl AccountArguments {
    /// Prints the ε.
    ///
    /// # Errors
    /// [`AccountCommandError`] naming the flag and what would work.
    pub fn run(self) -> Result<(), AccountCommandError> {
        let mut releases = self.events;
        if let (Some(noise_multiplier), Some(steps)) = (self.noise_multiplier, self.steps) {
            let sampling_rate = sampling_rate(self.mechanism, self.sampling_rate)?;
            releases.push(SampledReleases { sampling_rate, noise_multiplier, steps });
        }
        let request = AccountRequest {
            mechanism: self.mechanism,
            neighbouring: self.neighbouring,
            accountant: self.accountant,
            releases,
            details: self.details.details(),
            delta: self.delta,
        };
        let answer = request.answer()?;
        let printed =
            if self.json { output::json(&answer) } else { output::line(&answer.to_string()) };
        Ok(printed?)
    }
}

impl CalibrateArguments {
    /// Prints the noise multiplier.
    ///
    /// # Errors
    /// [`AccountCommandError`] naming the flag and what would work.
    pub fn run(self) -> Result<(), AccountCommandError> {
        let request = CalibrateRequest {
            mechanism: self.mechanism,
            neighbouring: self.neighbouring,
            target_epsilon: self.target_epsilon,
            delta: self.delta,
            sampling_rate: sampling_rate(self.mechanism, self.sampling_rate)?,
            steps: self.steps,
            details: self.details.details(),
        };
        let answer = request.answer()?;
        let printed =
            if self.json { output::json(&answer) } else { output::line(&answer.to_string()) };
        Ok(printed?)
    }
}
