//! `tributary-sim audit`.

use clap::{Args, ValueEnum};
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
use thiserror::Error;
use tributary_privacy::noise::{NoiseError, NoiseSource, SecureNoise, SeededNoise};
use tributary_protocol::job::PrivacyUnit;

use super::output;
use crate::{
    audit::{AuditPlan, AuditReport, AuditRunError, CanaryKind, CanarySet, PlantedFault},
    data::{
        fashion_mnist::DatasetError,
        fetch::{FetchError, Locations},
    },
    deadline::Stop,
};

/// Audits the trainer that agents run.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct AuditArguments {
    /// Whose presence the attacker guesses
    #[arg(long, value_enum, default_value_t = Unit::Record)]
    unit: Unit,
    /// What the canaries look like, and with it what the attacker sees
    #[arg(long, value_enum, default_value_t = CanaryKind::Dirac)]
    canary: CanaryKind,
    /// Number of canaries, each put in by a fair coin; more give tighter bounds
    #[arg(long, value_name = "N", default_value_t = 1000)]
    canaries: usize,
    /// Plant a fault into the audited build, to see it found
    #[arg(long, value_enum)]
    fault: Option<PlantedFault>,
    /// Noise standard deviation over clipping norm, as claimed
    #[arg(long, value_name = "S", default_value_t = 3.0)]
    noise_multiplier: f64,
    /// The δ of the claim
    #[arg(long, value_name = "D", default_value_t = 1e-5)]
    delta: f64,
    /// Probability that the lower bound holds
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    confidence: f64,
    /// Repeat coins and noise from this seed [default: the operating system's entropy]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A privacy unit by its name on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Unit {
    /// One record of one tenant
    Record,
    /// All data of one tenant
    Tenant,
}

/// Says why an audit failed, or what it found.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AuditCommandError {
    /// The promise is broken.
    #[error(
        "the audited build leaks more than it claims: epsilon is at least {lower_bound:.3}, \
         claimed {claimed_epsilon:.3}"
    )]
    Refuted {
        /// What the guesses prove.
        lower_bound: f64,
        /// What the accountant says.
        claimed_epsilon: f64,
    },
    /// There is no result.
    #[error(transparent)]
    Audit(#[from] AuditRunError),
    /// There is no entropy.
    #[error(transparent)]
    Noise(#[from] NoiseError),
    /// The images are not here.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The images changed meanwhile.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The result cannot be printed.
    #[error("cannot write to standard output")]
    Output(#[from] std::io::Error),
}

impl AuditArguments {
    /// Prints what the audit found.
    ///
    /// # Errors
    /// [`AuditCommandError::Refuted`] if the lower bound is above the claim; otherwise what would
    /// work.
    pub fn run(self) -> Result<(), AuditCommandError> {
        let report = match self.seed {
            Some(seed) => self.audit(&mut seeded(seed))?,
            None => self.audit(&mut SecureNoise::new()?)?,
        };
        if self.json {
            output::json(&report)?
        } else {
            output::line(&report.to_string())?
        }
        let AuditReport { refuted, lower_bound, claimed_epsilon, .. } = report;
        if refuted {
            return Err(AuditCommandError::Refuted { lower_bound, claimed_epsilon });
        }
        Ok(())
    }

    fn audit(&self, noise: &mut impl NoiseSource) -> Result<AuditReport, AuditCommandError> {
        let images = match self.canary {
            CanaryKind::Mislabelled => {
                let fetched = Locations::of_this_machine().find_or_download(&Stop::default())?;
                Some(fetched.dataset.training_set()?)
            }
            CanaryKind::Dirac | CanaryKind::Random | CanaryKind::Blank => None,
        };
        let plan = AuditPlan {
            unit: match self.unit {
                Unit::Record => PrivacyUnit::Record,
                Unit::Tenant => PrivacyUnit::Tenant,
            },
            fault: self.fault,
            noise_multiplier: self.noise_multiplier,
            delta: self.delta,
            confidence: self.confidence,
        };
        let set = CanarySet::new(self.canary, self.canaries, images.as_ref(), noise)?;
        Ok(plan.run(&set, noise)?)
    }
}

/// A stream of noise that a seed repeats.
fn seeded(seed: u64) -> SeededNoise {
    let mut bytes = [0; 32];
    rand::Rng::fill_bytes(&mut Xoshiro256PlusPlus::seed_from_u64(seed), &mut bytes);
    SeededNoise::from_seed(bytes)
}
