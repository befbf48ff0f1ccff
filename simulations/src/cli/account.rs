//! `tributary-sim account` and `tributary-sim calibrate`.

use clap::Args;
use thiserror::Error;

use super::output;
use crate::accounting::{
    self, AccountRequest, Accountant, AccountingError, Mechanism, Neighbouring, SampledReleases,
};

/// Computes the ε of a sequence of noisy releases.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct AccountArguments {
    /// How the results are made
    #[arg(long, value_enum, default_value_t = Mechanism::PoissonGaussian)]
    mechanism: Mechanism,
    /// Probability with which each unit joins a sample, in (0, 1] [default: 1 for gaussian]
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
    #[arg(long, value_enum, default_value_t = Accountant::Rdp)]
    accountant: Accountant,
    /// Which datasets count as neighbours
    #[arg(long, value_enum, default_value_t = Neighbouring::AddOrRemoveOne)]
    neighbouring: Neighbouring,
    /// More releases, composed with the rest; may be repeated
    #[arg(long = "event", value_name = "Q:SIGMA:STEPS")]
    events: Vec<SampledReleases>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Finds the noise multiplier for a wanted ε.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct CalibrateArguments {
    /// The most ε that all releases together may cost
    #[arg(long, value_name = "E")]
    target_epsilon: f64,
    /// The δ of that ε
    #[arg(long, value_name = "D")]
    delta: f64,
    /// Probability with which each unit joins a sample, in (0, 1]
    #[arg(long, value_name = "Q")]
    sampling_rate: f64,
    /// Number of releases
    #[arg(long, value_name = "N")]
    steps: u64,
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
    #[error("--mechanism poisson-gaussian needs --sampling-rate Q, above 0 and at most 1")]
    NoSamplingRate,
    /// The answer cannot be printed.
    #[error("cannot write to standard output")]
    Output(#[from] std::io::Error),
}

impl AccountArguments {
    /// Prints the ε.
    ///
    /// # Errors
    /// [`AccountCommandError`] naming the flag and what would work.
    pub fn run(self) -> Result<(), AccountCommandError> {
        let mut releases = self.events;
        if let (Some(noise_multiplier), Some(steps)) = (self.noise_multiplier, self.steps) {
            let everybody = (self.mechanism == Mechanism::Gaussian).then_some(1.0);
            let sampling_rate =
                self.sampling_rate.or(everybody).ok_or(AccountCommandError::NoSamplingRate)?;
            releases.push(SampledReleases { sampling_rate, noise_multiplier, steps });
        }
        let request = AccountRequest {
            mechanism: self.mechanism,
            neighbouring: self.neighbouring,
            accountant: self.accountant,
            releases,
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
        let Self { target_epsilon, delta, sampling_rate, steps, json } = self;
        let answer = accounting::calibrate(target_epsilon, delta, sampling_rate, steps)?;
        let printed = if json { output::json(&answer) } else { output::line(&answer.to_string()) };
        Ok(printed?)
    }
}
