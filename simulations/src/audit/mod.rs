//! Audits the trainer that agents run: an empirical lower bound of ε, from planted canaries.
//!
//! Many canaries are each put in or left out by a fair coin, the production code trains, and an
//! attacker who sees what the coordinator sees guesses the coins. If he guesses better than the
//! claimed ε allows, the claim is wrong, whatever the proofs say. The converse does not hold: a low
//! bound only means that this attacker learnt little.
//!
//! What is audited is the code of the agent itself: [`tributary_agent::train::dp_sgd`] for the
//! `record` unit, [`tributary_agent::train::local_sgd`] with
//! [`tributary_privacy::mechanism::NoisyUpdate`] for the `tenant` unit. A canary is a record whose
//! gradient, after the real forward, backward and clipping, points where no other record's does; so
//! nothing has to be injected beside the trainer.
//!
//! Source: Steinke, Nasr, Jagielski 2023, arXiv:2305.08846.

mod canary;
mod fault;
mod record;
mod report;
mod tenant;

use thiserror::Error;
use tributary_agent::{
    model::{ClippingError, ModelError},
    train::TrainError,
};
use tributary_privacy::{
    accountant::{AccountantError, Delta},
    audit::{AuditError, AuditOutcome, CanaryAssignment},
    clip::ClipError,
    lattice::LatticeError,
    mechanism::MechanismError,
    noise::NoiseSource,
};
use tributary_protocol::job::PrivacyUnit;

pub use self::{
    canary::{CanaryKind, CanarySet, View},
    fault::PlantedFault,
    report::AuditReport,
};

/// The fewest canaries from which a bound can follow.
pub const CANARIES_MIN: usize = 10;
/// The most canaries; each has a feature of its own, so memory grows with their square.
pub const CANARIES_MAX: usize = 5_000;

/// The clipping norm of every audited mechanism; far below the gradient norm of any canary.
const CLIPPING_NORM: f64 = 0.25;
/// Shares of the canaries that the attacker guesses about. The error probability is split evenly
/// over them, so that choosing the best afterwards is paid for.
const GUESSED_SHARES: [usize; 3] = [1, 4, 10];

/// What is audited, and how.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AuditPlan {
    /// Whose presence is guessed: a record's or a tenant's.
    pub unit: PrivacyUnit,
    /// The fault planted into the build under audit, if any.
    pub fault: Option<PlantedFault>,
    /// Noise deviation over clipping norm, as claimed.
    pub noise_multiplier: f64,
    /// The δ of the claim.
    pub delta: f64,
    /// Probability that the lower bound holds.
    pub confidence: f64,
}

/// Says why an audit has no result.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AuditRunError {
    /// The number of canaries is not usable.
    #[error("{canaries} canaries; an audit takes {CANARIES_MIN} to {CANARIES_MAX}")]
    Canaries {
        /// What was given.
        canaries: usize,
    },
    /// There are not enough images for so many canaries.
    #[error("{canaries} canaries from {images} images; ask for at most {images}")]
    Images {
        /// Canaries asked for.
        canaries: usize,
        /// Images there are.
        images: usize,
    },
    /// The claim itself cannot be computed.
    #[error("the claimed epsilon cannot be computed")]
    Claim(#[from] AccountantError),
    /// The mechanism cannot be built with these numbers.
    #[error("the mechanism cannot be built")]
    Mechanism(#[from] MechanismError),
    /// The norm cannot be used.
    #[error("the clipping norm cannot be used")]
    Clip(#[from] ClipError),
    /// The noise and norms fit no lattice.
    #[error("the updates fit no lattice")]
    Lattice(#[from] LatticeError),
    /// Training failed.
    #[error("the trainer under audit failed")]
    Train(#[from] TrainError),
    /// A canary's gradient cannot be computed.
    #[error("the gradient of a canary cannot be computed")]
    Gradient(#[from] ClippingError),
    /// The model cannot be built or asked.
    #[error("the model under audit failed")]
    Model(#[from] ModelError),
    /// The guesses cannot be judged.
    #[error(transparent)]
    Judgement(#[from] AuditError),
}

/// What an attacker has after training: how much each canary looks as if it were in.
struct Observation {
    scores: Vec<f64>,
    claimed_epsilon: f64,
}

impl AuditPlan {
    /// Tosses the coins, trains, guesses and judges.
    ///
    /// - `set`: the canaries and the ordinary records beside them
    /// - `noise`: coins, samples and noise; the operating system's, or a seeded stream to repeat it
    ///
    /// # Errors
    /// [`AuditRunError`] naming the number that cannot work.
    pub fn run(
        &self,
        set: &CanarySet,
        noise: &mut impl NoiseSource,
    ) -> Result<AuditReport, AuditRunError> {
        let delta = Delta::new(self.delta)?;
        if !(self.confidence > 0.0 && self.confidence < 1.0) {
            return Err(AuditError::Confidence.into());
        }
        let canaries = set.canaries();
        let assignment = CanaryAssignment::draw(canaries, noise);
        let observation = match self.unit {
            PrivacyUnit::Record => record::observe(self, set, assignment.included(), noise)?,
            PrivacyUnit::Tenant => tenant::observe(self, set, assignment.included(), noise)?,
        };
        let confidence = 1.0 - (1.0 - self.confidence) / GUESSED_SHARES.len() as f64;
        let mut best: Option<(f64, AuditOutcome, usize)> = None;
        for share in GUESSED_SHARES {
            let guesses = (canaries / share) & !1;
            let outcome = assignment.judge(&observation.scores, guesses)?;
            let bound = outcome.epsilon_lower_bound(delta, confidence)?;
            if best.is_none_or(|(highest, ..)| bound > highest) {
                best = Some((bound, outcome, guesses));
            }
        }
        let (lower_bound, outcome, guesses) = best.expect("several shares are guessed");
        Ok(AuditReport {
            unit: self.unit,
            canary: set.kind(),
            view: set.kind().view(),
            fault: self.fault,
            canaries,
            guesses,
            correct: outcome.correct(),
            claimed_epsilon: observation.claimed_epsilon,
            lower_bound,
            delta: self.delta,
            confidence: self.confidence,
            noise_multiplier: self.noise_multiplier,
            refuted: lower_bound > observation.claimed_epsilon,
        })
    }
}

#[cfg(test)]
mod tests;
