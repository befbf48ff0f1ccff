//! What a job trains, how, and under which privacy: the document that a researcher submits, that
//! the coordinator schedules and that every agent checks against its own policy.

mod clipping;
mod evaluation;
mod server_optimizer;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::{
    clipping::{AdaptiveClipping, Clipping},
    evaluation::{EvaluationSpec, Metric, MetricSum},
    server_optimizer::ServerOptimizerSpec,
};
use crate::{
    id::{DatasetName, JobId, Region, RoundNumber},
    model::{ModelSpec, ModelSpecError},
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
    /// The model that is trained.
    pub model: ModelSpec,
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
}

/// Local training within one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingPlan {
    /// Optimizer steps of each agent in a round.
    pub local_steps: u32,
    /// Probability with which each record joins a batch (Poisson sampling), in (0, 1].
    pub sampling_rate: f64,
    /// The public denominator of every batch sum, whatever the batch's real size, in records.
    pub batch_size_expected: u32,
    /// Step size of the client optimizer (SGD).
    pub client_learning_rate: f64,
    /// L2 bound of the client update on the wire for the `record` unit, in model units. It only
    /// sizes the lattice: the update is private before this bound applies.
    #[serde(default = "update_norm_max_default")]
    pub update_norm_max: f64,
}

const fn update_norm_max_default() -> f64 {
    16.0
}

/// Who is trusted to add the noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// Nobody: every tenant's own release is differentially private.
    Local,
    /// Nobody alone: every tenant adds a share of the noise, and secure aggregation shows the
    /// coordinator only the sum, which is differentially private.
    Distributed,
}

impl Trust {
    /// The name in files, logs and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Distributed => "distributed",
        }
    }
}

/// Whose presence the noise hides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrivacyUnit {
    /// One record of one tenant; neighbours differ by adding or removing it.
    Record,
    /// All data of one tenant; neighbours differ by adding or removing the tenant's update.
    Tenant,
}

/// The differential privacy of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrivacyPlan {
    /// Who adds the noise.
    pub trust: Trust,
    /// What one unit of privacy is.
    pub unit: PrivacyUnit,
    /// L2 bound of one unit's contribution: a per-example gradient (`record`) or the whole client
    /// update (`tenant`), in model units.
    pub clipping_norm: f64,
    /// Noise standard deviation divided by the clipping norm.
    pub noise_multiplier: f64,
    /// The δ at which ε is reported.
    pub delta: f64,
    /// How contributions are clipped to the norm.
    #[serde(default)]
    pub clipping: Clipping,
    /// Whether updates are rotated by a public random rotation before they go on the grid, which
    /// spreads them evenly over the coordinates.
    #[serde(default)]
    pub rotation: bool,
    /// Width of the modulus of a sum with trust `local`, in bits, 8 to 32.
    #[serde(default = "lattice_bits_default")]
    pub lattice_bits: u8,
}

const fn lattice_bits_default() -> u8 {
    24
}

/// What secure aggregation must withstand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecaggSpec {
    /// What the coordinator may do.
    pub adversary: Adversary,
    /// The fraction of a cohort that may drop out, in [0, 1). A round with more dropouts is
    /// abandoned, and the noise is sized for it.
    pub dropout_max: f64,
    /// The fraction of a cohort that may collude with the coordinator, in [0, 1). Their noise does
    /// not count.
    pub corrupt_max: f64,
    /// Width of the modulus of the sum, in bits, 8 to 32.
    #[serde(default = "secagg_bits_default")]
    pub bits: u8,
    /// How long the cohort may take for each step but the masked update itself, in milliseconds.
    #[serde(default = "secagg_step_timeout_default")]
    pub step_timeout_ms: u64,
}

/// What the coordinator may do, beside colluding with some of the cohort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Adversary {
    /// It follows the protocol, and looks at everything that it receives.
    SemiHonest,
    /// It does what it likes.
    MaliciousCoordinator,
}

const fn secagg_bits_default() -> u8 {
    32
}

const fn secagg_step_timeout_default() -> u64 {
    30_000
}

/// How rounds are scheduled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundPlan {
    /// Number of rounds to commit.
    pub rounds: u64,
    /// Tenants invited to a round, over-selection included.
    pub cohort_size: u32,
    /// Fewest updates with which a round may commit at its deadline.
    pub cohort_size_min: u32,
    /// Updates at which a round commits at once; also the fixed public denominator of the mean.
    pub report_goal: u32,
    /// How long to wait for a full cohort before going on with at least `cohort_size_min` tenants,
    /// in milliseconds.
    #[serde(default = "selection_timeout_default")]
    pub selection_timeout_ms: u64,
    /// How long invited tenants may take to accept or decline, in milliseconds.
    #[serde(default = "configuration_timeout_default")]
    pub configuration_timeout_ms: u64,
    /// How long tenants that accepted may take to report, in milliseconds.
    #[serde(default = "report_timeout_default")]
    pub report_timeout_ms: u64,
}

const fn selection_timeout_default() -> u64 {
    60_000
}

const fn configuration_timeout_default() -> u64 {
    30_000
}

const fn report_timeout_default() -> u64 {
    600_000
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

    /// Number of coordinates of an update on the wire: the parameters, and one for the vote where
    /// the clipping norm adapts.
    #[must_use]
    pub fn wire_dimension(&self) -> usize {
        self.model.num_parameters() + usize::from(self.privacy.adaptive().is_some())
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
        self.evaluation.as_ref().map_or(Ok(()), EvaluationSpec::validate)?;
        self.validate_secagg()
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

fn is_positive(value: f64) -> bool {
    value.is_finite() && value > 0.0
}

fn in_unit(value: f64) -> bool {
    value > 0.0 && value <= 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = r#"
        name = "census"
        dataset = "adult"
        [model.mlp]
        inputs = 104
        hidden = [32]
        classes = 2
        [training]
        local_steps = 10
        sampling_rate = 0.02
        batch_size_expected = 64
        client_learning_rate = 0.1
        [privacy]
        trust = "local"
        unit = "record"
        clipping_norm = 1.0
        noise_multiplier = 1.0
        delta = 1e-5
        [round]
        rounds = 3
        cohort_size = 4
        cohort_size_min = 2
        report_goal = 3
    "#;

    #[test]
    fn a_job_file_parses_with_defaults() {
        let job: JobSpec = toml::from_str(EXAMPLE).expect("valid");
        job.validate().expect("valid");
        assert_eq!(job.server_optimizer, ServerOptimizerSpec::default());
    }

    #[test]
    fn secure_aggregation_and_distributed_trust_come_together() {
        let table = "[secagg]\nadversary = \"malicious-coordinator\"\ndropout_max = 0.3\n\
                     corrupt_max = 0.1\n";
        let distributed = EXAMPLE
            .replace("trust = \"local\"", "trust = \"distributed\"")
            .replace("local_steps = 10", "local_steps = 1")
            .replace("cohort_size_min = 2", "cohort_size_min = 3");
        let validated = |text: &str| toml::from_str::<JobSpec>(text).expect("parses").validate();
        validated(&(distributed.clone() + table)).expect("valid");
        for (text, expected) in [
            (distributed.clone(), "needs a table `[secagg]`"),
            (EXAMPLE.to_owned() + table, "`privacy.trust` \"distributed\""),
            (distributed.clone() + &table.replace("0.3", "1.0"), "secagg.dropout_max"),
            (distributed.clone() + &table.replace("0.1", "0.7"), "secagg.corrupt_max"),
            (distributed.clone() + &table.replace("0.1", "nan"), "secagg.corrupt_max"),
            (distributed.clone() + table + "bits = 33\n", "secagg.bits"),
            (distributed.clone() + table + "step_timeout_ms = 0\n", "secagg.step_timeout_ms"),
            (
                distributed.replace("local_steps = 1", "local_steps = 2") + table,
                "training.local_steps",
            ),
            (
                distributed.replace("cohort_size_min = 3", "cohort_size_min = 2") + table,
                "round.cohort_size_min",
            ),
        ] {
            let error = validated(&text).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_sample_jobs_are_valid() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/jobs");
        for entry in std::fs::read_dir(folder).expect("samples") {
            let path = entry.expect("an entry").path();
            let text = std::fs::read_to_string(&path).expect("reads");
            let job: JobSpec =
                toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            job.validate().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }

    #[test]
    fn unknown_keys_are_named() {
        let text = EXAMPLE.replace("local_steps", "local_stepz");
        let error = toml::from_str::<JobSpec>(&text).expect_err("typo").to_string();
        assert!(error.contains("local_stepz"), "{error}");
    }

    #[test]
    fn bad_numbers_are_named() {
        let evaluation = "report_goal = 3\n[evaluation]\nevery_rounds = 2\n\
             metrics = [\"accuracy\"]\nnoise_multiplier = 20.0\n";
        let with = |from: &str, to: &str| evaluation.replace(from, to);
        let adaptive = |field: &str| {
            format!("delta = 1e-5\nclipping.adaptive = {{ count_noise_multiplier = 5.0, {field} }}")
        };
        let counts = |text: &str| format!("delta = 1e-5\nclipping.adaptive = {{ {text} }}");
        for (from, to, field) in [
            ("sampling_rate = 0.02", "sampling_rate = nan", "training.sampling_rate"),
            ("sampling_rate = 0.02", "sampling_rate = 0.0", "training.sampling_rate"),
            ("sampling_rate = 0.02", "sampling_rate = -0.1", "training.sampling_rate"),
            ("sampling_rate = 0.02", "sampling_rate = 1.01", "training.sampling_rate"),
            ("local_steps = 10", "local_steps = 0", "training.local_steps"),
            ("batch_size_expected = 64", "batch_size_expected = 0", "batch_size_expected"),
            ("client_learning_rate = 0.1", "client_learning_rate = inf", "client_learning_rate"),
            ("noise_multiplier = 1.0", "noise_multiplier = 0.0", "privacy.noise_multiplier"),
            ("noise_multiplier = 1.0", "noise_multiplier = -1.0", "privacy.noise_multiplier"),
            ("noise_multiplier = 1.0", "noise_multiplier = inf", "privacy.noise_multiplier"),
            ("delta = 1e-5", "delta = 1.0", "privacy.delta"),
            ("delta = 1e-5", "delta = 0.0", "privacy.delta"),
            ("delta = 1e-5", "delta = nan", "privacy.delta"),
            ("delta = 1e-5", "delta = 1e-5\nlattice_bits = 7", "privacy.lattice_bits"),
            ("delta = 1e-5", "delta = 1e-5\nlattice_bits = 33", "privacy.lattice_bits"),
            ("report_goal = 3", "report_goal = 5", "cohort_size"),
            ("report_goal = 3", "report_goal = 1", "cohort_size"),
            ("rounds = 3", "rounds = 0", "round.rounds"),
            ("clipping_norm = 1.0", "clipping_norm = inf", "privacy.clipping_norm"),
            ("clipping_norm = 1.0", "clipping_norm = 0.0", "privacy.clipping_norm"),
            ("clipping_norm = 1.0", "clipping_norm = -2.0", "privacy.clipping_norm"),
            ("inputs = 104", "inputs = 4000000000", "`model` is not usable"),
            ("hidden = [32]", "hidden = [0]", "`model` is not usable"),
            ("classes = 2", "classes = 1", "`model` is not usable"),
            ("report_goal = 3", &with("= 20.0", "= 0.0"), "evaluation.noise_multiplier"),
            ("report_goal = 3", &with("= 20.0", "= nan"), "evaluation.noise_multiplier"),
            ("report_goal = 3", &with("every_rounds = 2", "every_rounds = 0"), "every_rounds"),
            ("report_goal = 3", &with("\"accuracy\"", ""), "evaluation.metrics"),
            ("report_goal = 3", &with("\"accuracy\"", "\"loss\", \"loss\""), "evaluation.metrics"),
            (
                "report_goal = 3",
                &with("every_rounds", "loss_max = -1.0\nevery_rounds"),
                "evaluation.loss_max",
            ),
            ("delta = 1e-5", &adaptive("target_quantile = 1.0"), "target_quantile"),
            ("delta = 1e-5", &adaptive("learning_rate = nan"), "learning_rate"),
            ("delta = 1e-5", &counts("count_noise_multiplier = 0.0"), "count_noise_multiplier"),
        ] {
            let text = EXAMPLE.replace(from, to);
            // Adaptive clipping is for the other unit.
            let text = if to.contains("adaptive") {
                text.replace("unit = \"record\"", "unit = \"tenant\"")
            } else {
                text
            };
            let job: JobSpec =
                toml::from_str(&text).unwrap_or_else(|error| panic!("{to}: {error}"));
            let error = job.validate().expect_err(to).to_string();
            assert!(error.contains(field), "{to}: {error}");
        }
    }

    /// Every clipping with every unit and trust, with and without rotation and evaluation: it is
    /// valid, or refused with the choices and the reason.
    #[test]
    fn every_combination_works_or_says_why_not() {
        let secagg = "[secagg]\nadversary = \"semi-honest\"\ndropout_max = 0.3\n\
             corrupt_max = 0.1\n[evaluation]\nevery_rounds = 2\nmetrics = [\"accuracy\"]\n\
             noise_multiplier = 20.0\n";
        let (mut valid, mut refused) = (0, 0);
        for unit in ["record", "tenant"] {
            for trust in ["local", "distributed"] {
                for clipping in
                    ["\"flat\"", "\"per-layer\"", "{ adaptive = { count_noise_multiplier = 9.0 } }"]
                {
                    for rotation in [false, true] {
                        let text = EXAMPLE
                            .replace("unit = \"record\"", &format!("unit = \"{unit}\""))
                            .replace("trust = \"local\"", &format!("trust = \"{trust}\""))
                            .replace(
                                "delta = 1e-5",
                                &format!(
                                    "delta = 1e-5\nclipping = {clipping}\nrotation = {rotation}"
                                ),
                            );
                        let text = if trust == "distributed" {
                            text.replace("local_steps = 10", "local_steps = 1")
                                .replace("cohort_size_min = 2", "cohort_size_min = 3")
                                + secagg
                        } else {
                            text
                        };
                        match toml::from_str::<JobSpec>(&text).expect("parses").validate() {
                            Ok(()) => valid += 1,
                            Err(JobSpecError::Combination { what, reason }) => {
                                assert!(what.contains("privacy.") && reason.len() > 20);
                                refused += 1;
                            }
                            Err(error) => panic!("{text}: {error}"),
                        }
                    }
                }
            }
        }
        assert_eq!((valid, refused), (12, 12));
    }
}
