//! What a job trains, how, and under which privacy: the document that a researcher submits, that
//! the coordinator schedules and that every agent checks against its own policy.

mod aggregation;
mod clipping;
mod combination;
mod correlated;
mod early_stop;
mod evaluation;
mod privacy;
mod round;
mod secagg;
mod server_optimizer;
mod training;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::{
    aggregation::AggregationRule,
    clipping::{AdaptiveClipping, Clipping},
    correlated::CorrelatedNoise,
    early_stop::EarlyStop,
    evaluation::{EvaluationSpec, Metric, MetricSum},
    privacy::{PrivacyPlan, PrivacyUnit, Trust},
    round::{AsynchronousPlan, CohortSampling, RoundPlan},
    secagg::{Adversary, SecaggSpec},
    server_optimizer::ServerOptimizerSpec,
    training::{LocalAlgorithm, TrainingPlan},
};
use crate::{
    id::{DatasetName, Digest, JobId, Region, RoundNumber},
    model::{FederatedPart, ModelSpec, ModelSpecError},
};

/// A complete job description, as in the TOML file of `job submit`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// Name of the job, unique at its coordinator.
    pub name: JobId,
    /// The dataset that every agent maps to files of its own.
    pub dataset: DatasetName,
    /// Regions whose tenants may take part; empty allows all.
    #[serde(default)]
    pub regions: Vec<Region>,
    /// Digest of the `tokenizer.json` that the model of texts belongs to: an agent with another one
    /// does not train. Absent, agents do not compare theirs.
    #[serde(default)]
    pub tokenizer: Option<Digest>,
    /// The model that is trained.
    pub model: ModelSpec,
    /// Which part of it the tenants train together: everything, the head, or low-rank changes.
    #[serde(default)]
    pub federated: FederatedPart,
    /// Local training at each tenant.
    pub training: TrainingPlan,
    /// The promise that the agent keeps.
    pub privacy: PrivacyPlan,
    /// How rounds are scheduled.
    pub round: RoundPlan,
    /// How the aggregate moves the base model.
    #[serde(default)]
    pub server_optimizer: ServerOptimizerSpec,
    /// How the cohort's sum is formed without showing its parts; with trust `distributed`, and only
    /// there.
    #[serde(default)]
    pub secagg: Option<SecaggSpec>,
    /// Which metrics of the base leave the sites, with noise; absent, none.
    #[serde(default)]
    pub evaluation: Option<EvaluationSpec>,
    /// How the updates of a round become one.
    #[serde(default)]
    pub aggregation: AggregationRule,
    /// When the job ends before its last round; absent, never.
    #[serde(default)]
    pub early_stop: Option<EarlyStop>,
}

/// Says which value of a job cannot work.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum JobSpecError {
    /// A number lies outside its range (NaN included).
    #[error("`{field}` is {value}; it must be {range}")]
    OutOfRange {
        /// The config key.
        field: &'static str,
        /// What was given.
        value: f64,
        /// What would work.
        range: &'static str,
    },
    /// Cohort numbers contradict each other.
    #[error(
        "`round` needs 1 <= cohort_size_min <= report_goal <= cohort_size, but has {cohort_size_min}, {report_goal}, {cohort_size}"
    )]
    Cohort {
        /// `round.cohort_size_min`.
        cohort_size_min: u32,
        /// `round.report_goal`.
        report_goal: u32,
        /// `round.cohort_size`.
        cohort_size: u32,
    },
    /// Two choices do not go together.
    #[error("{what} cannot be: {reason}")]
    Combination {
        /// The choices.
        what: &'static str,
        /// Why they do not go together.
        reason: &'static str,
    },
    /// The model cannot be built.
    #[error("`model` is not usable")]
    Model(#[source] ModelSpecError),
    /// Distributed noise without secure aggregation would show each tenant's small share of noise.
    #[error("`privacy.trust` is \"distributed\", which needs a table `[secagg]`")]
    SecaggMissing,
    /// Secure aggregation without distributed noise.
    #[error("the table `[secagg]` needs `privacy.trust` \"distributed\", not {trust:?}")]
    SecaggUnused {
        /// The job's trust.
        trust: &'static str,
    },
}

/// What the lattice must carry of each client update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateBound {
    /// L2 bound of an update without its noise, in units of the wire.
    pub norm_max: f64,
    /// Standard deviation of the noise per coordinate, in units of the wire: what one agent adds on
    /// the lattice (0 where the update is noised before it gets there), or with trust `distributed`
    /// what the sum has at least.
    pub noise_sigma: f64,
}

impl JobSpec {
    /// How large an update of this job and its noise can be: what coordinator and agents size and
    /// check the lattice by.
    #[must_use]
    pub fn update_bound(&self) -> UpdateBound {
        let clipping_norm = self.privacy.clipping_norm;
        let noise_sigma = clipping_norm * self.privacy.noise_multiplier;
        if self.privacy.trust == Trust::Distributed {
            let norm_max = match self.privacy.unit {
                PrivacyUnit::Record => self.training.update_norm_max / self.wire_scale(),
                PrivacyUnit::Tenant => clipping_norm,
            };
            return UpdateBound { norm_max, noise_sigma };
        }
        match self.privacy.unit {
            // The noise of the single steps is inside the update, which the bound covers as a whole.
            PrivacyUnit::Record => {
                UpdateBound { norm_max: self.training.update_norm_max, noise_sigma: 0.0 }
            }
            PrivacyUnit::Tenant => UpdateBound { norm_max: clipping_norm, noise_sigma },
        }
    }

    /// Number of parameters that the tenants train together.
    #[must_use]
    pub fn federated_dimension(&self) -> usize {
        self.federated.dimension(&self.model)
    }

    /// Number of coordinates of an update on the wire: the federated parameters, and one for the vote
    /// where the clipping norm adapts.
    #[must_use]
    pub fn wire_dimension(&self) -> usize {
        self.federated_dimension() + usize::from(self.privacy.adaptive().is_some())
    }

    /// The public seed of a round's rotation; `None` if updates are not rotated.
    #[must_use]
    pub fn rotation_seed(&self, round: RoundNumber) -> Option<[u8; 32]> {
        const CONTEXT: &str = "tributary 2026 rotation of a round's updates, version 1";
        let name = self.name.as_str().as_bytes();
        let material = [name, &[0], &round.0.to_le_bytes()].concat();
        self.privacy.rotation.then(|| blake3::derive_key(CONTEXT, &material))
    }

    /// Model units of a client update per unit of what is on the wire.
    ///
    /// With trust `distributed` and unit `record`, the negated sum of one batch's clipped gradients
    /// is on the wire, and the coordinator takes the step of gradient descent; else it is 1.
    #[must_use]
    pub fn wire_scale(&self) -> f64 {
        match (self.privacy.trust, self.privacy.unit) {
            (Trust::Distributed, PrivacyUnit::Record) => {
                let training = &self.training;
                training.client_learning_rate / f64::from(training.batch_size_expected)
            }
            _ => 1.0,
        }
    }

    /// Checks every number once, so that inner code can trust it.
    ///
    /// # Errors
    /// [`JobSpecError`] naming the key, the value and the range that would work.
    pub fn validate(&self) -> Result<(), JobSpecError> {
        self.model.validate().map_err(JobSpecError::Model)?;
        self.federated.validate(&self.model).map_err(JobSpecError::Model)?;
        self.server_optimizer.validate()?;
        let (training, privacy, round) = (&self.training, &self.privacy, &self.round);
        let positive = "a finite number above 0";
        let checks: [(&'static str, f64, bool, &'static str); 11] = [
            (
                "training.local_steps",
                training.local_steps.into(),
                training.local_steps > 0,
                "at least 1",
            ),
            (
                "training.sampling_rate",
                training.sampling_rate,
                in_unit(training.sampling_rate),
                "in (0, 1]",
            ),
            (
                "training.batch_size_expected",
                training.batch_size_expected.into(),
                training.batch_size_expected > 0,
                "at least 1",
            ),
            (
                "training.client_learning_rate",
                training.client_learning_rate,
                is_positive(training.client_learning_rate),
                positive,
            ),
            (
                "training.update_norm_max",
                training.update_norm_max,
                is_positive(training.update_norm_max),
                positive,
            ),
            (
                "privacy.clipping_norm",
                privacy.clipping_norm,
                is_positive(privacy.clipping_norm),
                positive,
            ),
            (
                "privacy.noise_multiplier",
                privacy.noise_multiplier,
                is_positive(privacy.noise_multiplier),
                positive,
            ),
            (
                "privacy.delta",
                privacy.delta,
                privacy.delta > 0.0 && privacy.delta < 1.0,
                "between 0 and 1",
            ),
            (
                "privacy.lattice_bits",
                privacy.lattice_bits.into(),
                (8..=32).contains(&privacy.lattice_bits),
                "between 8 and 32",
            ),
            ("round.rounds", round.rounds as f64, round.rounds > 0, "at least 1"),
            (
                "round.report_timeout_ms",
                round.report_timeout_ms as f64,
                round.report_timeout_ms > 0 && round.configuration_timeout_ms > 0,
                "at least 1, as `round.configuration_timeout_ms`",
            ),
        ];
        for (field, value, holds, range) in checks {
            if !holds {
                return Err(JobSpecError::OutOfRange { field, value, range });
            }
        }
        if !(1 <= round.cohort_size_min
            && round.cohort_size_min <= round.report_goal
            && round.report_goal <= round.cohort_size)
        {
            return Err(JobSpecError::Cohort {
                cohort_size_min: round.cohort_size_min,
                report_goal: round.report_goal,
                cohort_size: round.cohort_size,
            });
        }
        privacy.validate_clipping()?;
        self.validate_correlated()?;
        self.evaluation.as_ref().map_or(Ok(()), EvaluationSpec::validate)?;
        self.validate_secagg()?;
        training.algorithm.validate(round.cohort_size)?;
        round.asynchronous.as_ref().map_or(Ok(()), AsynchronousPlan::validate)?;
        self.aggregation.validate(round.cohort_size_min)?;
        if let Some(early_stop) = &self.early_stop {
            early_stop.validate(self.evaluation.as_ref())?;
        }
        self.validate_combinations()
    }

    fn validate_secagg(&self) -> Result<(), JobSpecError> {
        let secagg = match (self.privacy.trust, &self.secagg) {
            (Trust::Local, None) => return Ok(()),
            (Trust::Distributed, None) => return Err(JobSpecError::SecaggMissing),
            (Trust::Distributed, Some(secagg)) => secagg,
            (trust, Some(_)) => return Err(JobSpecError::SecaggUnused { trust: trust.name() }),
        };
        let fraction = |value: f64| (0.0..1.0).contains(&value);
        let (steps, cohort) = (self.training.local_steps, self.round.cohort_size_min);
        let by_record = self.privacy.unit == PrivacyUnit::Record;
        let checks: [(&'static str, f64, bool, &'static str); 6] = [
            (
                "secagg.dropout_max",
                secagg.dropout_max,
                fraction(secagg.dropout_max),
                "at least 0 and below 1",
            ),
            (
                "secagg.corrupt_max",
                secagg.corrupt_max,
                fraction(secagg.corrupt_max) && secagg.corrupt_max + secagg.dropout_max < 1.0,
                "at least 0, and below 1 together with `secagg.dropout_max`",
            ),
            (
                "secagg.bits",
                secagg.bits.into(),
                (8..=32).contains(&secagg.bits),
                "between 8 and 32",
            ),
            (
                "secagg.step_timeout_ms",
                secagg.step_timeout_ms as f64,
                secagg.step_timeout_ms > 0,
                "at least 1",
            ),
            (
                "training.local_steps",
                steps.into(),
                !by_record || steps == 1,
                "1 with trust \"distributed\" and unit \"record\": one gradient a round is summed",
            ),
            (
                "round.cohort_size_min",
                cohort.into(),
                cohort >= 3,
                "at least 3 with trust \"distributed\": of two, each learns the other's part",
            ),
        ];
        match checks.into_iter().find(|&(_, _, holds, _)| !holds) {
            Some((field, value, _, range)) => Err(JobSpecError::OutOfRange { field, value, range }),
            None => Ok(()),
        }
    }
}

/// The first of these checks that fails: a key, its value, whether it holds, and what would.
fn first_violation(
    checks: impl IntoIterator<Item = (&'static str, f64, bool, &'static str)>,
) -> Result<(), JobSpecError> {
    match checks.into_iter().find(|&(_, _, holds, _)| !holds) {
        Some((field, value, _, range)) => Err(JobSpecError::OutOfRange { field, value, range }),
        None => Ok(()),
    }
}

fn is_positive(value: f64) -> bool {
    value.is_finite() && value > 0.0
}

fn in_unit(value: f64) -> bool {
    value > 0.0 && value <= 1.0
}

#[cfg(test)]
mod tests;
