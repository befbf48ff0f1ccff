//! The experiment file.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tributary_protocol::{
    id::Digest,
    job::{AggregationRule, LocalAlgorithm, ServerOptimizerSpec, TrainingPlan},
    model::{FederatedPart, ModelSpec},
};

use super::{
    AdaptersSpec, AsynchronousSpec, ClockSpec, DatasetSpec, ExperimentError, PartitionSpec,
    PrivacySpec, SecaggSpec,
};

/// One experiment: what is trained, on whose data, by which rules, how often.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// What it is called in results.
    pub name: String,
    /// One run for each; a seed decides everything random in its run.
    #[serde(default = "default_seeds")]
    pub seeds: Vec<u64>,
    /// Rounds of a run.
    pub rounds: u64,
    /// Size of the population; not needed where the partition decides it.
    #[serde(default)]
    pub tenants: Option<usize>,
    /// Rounds between two checkpoints.
    #[serde(default = "default_checkpoint_every")]
    pub checkpoint_every: u64,
    /// The records.
    pub dataset: DatasetSpec,
    /// Who holds which.
    #[serde(default)]
    pub partition: PartitionSpec,
    /// Who takes part in a round.
    pub cohort: CohortSpec,
    /// The model.
    pub model: ModelSpec,
    /// Which part of it the tenants train together.
    #[serde(default)]
    pub federated: FederatedPart,
    /// Local training of a tenant.
    pub training: TrainingSpec,
    /// How the aggregate moves the base model.
    #[serde(default)]
    pub server_optimizer: ServerOptimizerSpec,
    /// How the updates of a round become one.
    #[serde(default)]
    pub aggregation: AggregationRule,
    /// What the updates reveal.
    pub privacy: PrivacySpec,
    /// When and on what the base model is measured.
    #[serde(default)]
    pub evaluation: EvaluationSpec,
    /// Tenants that attack.
    #[serde(default)]
    pub adversary: Option<AdversarySpec>,
    /// Masks on every update.
    #[serde(default)]
    pub secagg: Option<SecaggSpec>,
    /// Virtual time.
    #[serde(default)]
    pub clock: Option<ClockSpec>,
    /// Buffered asynchronous rounds.
    #[serde(default)]
    pub asynchronous: Option<AsynchronousSpec>,
    /// Private adapters on the last base model.
    #[serde(default)]
    pub adapters: Option<AdaptersSpec>,
    /// Where relative paths of data files start.
    #[serde(skip)]
    folder: PathBuf,
}

/// Who takes part in a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CohortSpec {
    /// Tenants invited to a round (on average, if sampled by Poisson), over-selection included.
    pub size: u32,
    /// Updates at which the round commits, and the fixed public denominator of the mean; `size` if
    /// not given.
    #[serde(default)]
    pub report_goal: Option<u32>,
    /// Fewest updates with which a round commits; with fewer it is abandoned.
    #[serde(default = "default_size_min")]
    pub size_min: u32,
    /// Probability with which an invited tenant does not report.
    #[serde(default)]
    pub dropout_rate: f64,
    /// How the invited are drawn.
    #[serde(default)]
    pub sampling: CohortSampling,
}

/// How a round's tenants are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CohortSampling {
    /// As the coordinator does: exactly `size`, without replacement.
    #[default]
    Fixed,
    /// Every tenant joins independently with probability `size / tenants`.
    Poisson,
}

/// What a tenant does in a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum TrainingSpec {
    /// Passes over the tenant's own records; the steps follow from their number.
    Epochs(EpochsSpec),
    /// The same steps for everyone: the plan of production jobs.
    Steps(TrainingPlan),
    /// None: every tenant sends the same zero update. Measures what surrounds training.
    Null {},
}

/// Passes over a tenant's own records.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochsSpec {
    /// Expected records of a batch (Poisson sampling).
    pub batch_size: u32,
    /// Passes in expectation: a tenant of n records takes `ceil(local_epochs n / batch_size)` steps.
    #[serde(default = "default_local_epochs")]
    pub local_epochs: u32,
    /// Step size of SGD.
    pub client_learning_rate: f64,
    /// What keeps the steps from drifting: `sgd` or `fedprox`.
    #[serde(default)]
    pub algorithm: LocalAlgorithm,
}

/// When and on what the base model is measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationSpec {
    /// Rounds between two measurements on the test records; the last round is always measured.
    #[serde(default = "default_every")]
    pub every: u64,
    /// Whether the last model is also measured on each tenant's own records.
    #[serde(default)]
    pub per_tenant: bool,
}

/// Tenants that attack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdversarySpec {
    /// Share of the population that attacks.
    pub share: f64,
    /// What they do.
    pub attack: Attack,
}

/// What an attacking tenant does.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Attack {
    /// Trains on the last class minus the true one.
    LabelFlip,
    /// Sends its update with the opposite sign, `scale` times as long; clipping still applies.
    SignFlip {
        /// Length over that of the honest update.
        scale: f32,
    },
}

fn default_seeds() -> Vec<u64> {
    vec![1]
}

const fn default_checkpoint_every() -> u64 {
    10
}

const fn default_size_min() -> u32 {
    1
}

const fn default_local_epochs() -> u32 {
    1
}

const fn default_every() -> u64 {
    5
}

impl Default for EvaluationSpec {
    fn default() -> Self {
        Self { every: default_every(), per_tenant: false }
    }
}

impl CohortSpec {
    /// The fixed public denominator of the mean.
    #[must_use]
    pub fn report_goal(&self) -> u32 {
        self.report_goal.unwrap_or(self.size)
    }
}

impl TrainingSpec {
    /// The plan of a tenant with so many records; `None` without training.
    #[must_use]
    pub fn plan(&self, num_examples: usize) -> Option<TrainingPlan> {
        match self {
            Self::Epochs(epochs) => {
                let records = num_examples.max(1) as f64;
                let batch = f64::from(epochs.batch_size);
                Some(TrainingPlan {
                    local_steps: (f64::from(epochs.local_epochs) * records / batch).ceil() as u32,
                    sampling_rate: (batch / records).min(1.0),
                    batch_size_expected: epochs.batch_size,
                    client_learning_rate: epochs.client_learning_rate,
                    // Only the release path of the `record` unit reads it, and has its own.
                    update_norm_max: f64::MAX,
                    algorithm: epochs.algorithm,
                })
            }
            Self::Steps(plan) => Some(plan.clone()),
            Self::Null {} => None,
        }
    }
}

impl Experiment {
    /// Reads and checks an experiment file.
    ///
    /// # Errors
    /// [`ExperimentError`] naming the key and what would work.
    pub fn load(path: &Path) -> Result<Self, ExperimentError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ExperimentError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path.parent().unwrap_or(Path::new("")))
    }

    /// Parses and checks an experiment.
    ///
    /// - `folder`: where relative paths of data files start
    ///
    /// # Errors
    /// [`ExperimentError`] naming the key and what would work.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, ExperimentError> {
        let parsed: Self = toml::from_str(text)
            .map_err(|error| ExperimentError::Parse { reason: error.into() })?;
        parsed.checked(folder)
    }

    /// Checks an experiment made of a table, such as one cell of a sweep.
    ///
    /// # Errors
    /// [`ExperimentError`] naming the key and what would work.
    pub fn from_table(table: toml::Table, folder: &Path) -> Result<Self, ExperimentError> {
        let parsed: Self = table
            .try_into()
            .map_err(|error: toml::de::Error| ExperimentError::Parse { reason: error.into() })?;
        parsed.checked(folder)
    }

    /// Digest of everything that decides results.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&serde_json::to_vec(self).expect("an experiment has no map with odd keys"))
    }

    /// What the records depend on: experiments with equal keys have equal records.
    pub(crate) fn data_key(&self, seed: u64) -> Vec<u8> {
        let Self { dataset, partition, tenants, folder, .. } = self;
        serde_json::to_vec(&(dataset, partition, tenants, folder, seed))
            .expect("an experiment has no map with odd keys")
    }

    /// Where relative paths of data files start.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn checked(mut self, folder: &Path) -> Result<Self, ExperimentError> {
        self.folder = folder.to_owned();
        self.check()?;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = r#"
        name = "example"
        rounds = 20
        tenants = 100
        [dataset.synthetic]
        examples = 2000
        features = 8
        classes = 3
        [partition.dirichlet]
        alpha = 0.3
        [cohort]
        size = 10
        [model.mlp]
        inputs = 8
        hidden = [4]
        classes = 3
        [training.epochs]
        batch_size = 20
        client_learning_rate = 0.1
        [privacy.none]
    "#;

    fn message(text: &str) -> String {
        Experiment::parse(text, Path::new("")).expect_err("wrong").to_string()
    }

    #[test]
    fn an_experiment_parses_with_defaults() {
        let experiment = Experiment::parse(EXAMPLE, Path::new("")).expect("valid");
        assert_eq!((experiment.seeds, experiment.evaluation.every), (vec![1], 5));
        let plan = experiment.training.plan(600).expect("trains");
        assert_eq!((plan.local_steps, plan.sampling_rate), (30, 1.0 / 30.0));
        assert_eq!(experiment.training.plan(5).expect("trains").sampling_rate, 1.0);
    }

    #[test]
    fn the_ready_experiments_are_valid() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            // The demo's files are jobs, for agents in processes of their own.
            let jobs = ["fashion-mnist-demo.toml", "fashion-mnist-secagg.toml"];
            let is_job = path.file_name().is_some_and(|name| jobs.iter().any(|job| name == *job));
            if !is_job && path.is_file() {
                Experiment::load(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
                count += 1;
            }
        }
        assert!(count >= 7, "{count}");
    }

    #[test]
    fn unknown_names_get_a_suggestion() {
        let text = message(&EXAMPLE.replace("batch_size", "bach_size"));
        assert!(text.contains("did you mean `batch_size`?"), "{text}");
        let text = message(&EXAMPLE.replace("dirichlet", "dirchlet"));
        assert!(text.contains("did you mean `dirichlet`?"), "{text}");
    }

    #[test]
    fn bad_numbers_are_named_with_what_would_work() {
        for (from, to, field) in [
            ("rounds = 20", "rounds = 0", "rounds"),
            ("size = 10", "size = 10\nreport_goal = 11", "cohort.report_goal"),
            ("size = 10", "size = 10\ndropout_rate = 1.0", "cohort.dropout_rate"),
            ("learning_rate = 0.1", "learning_rate = nan", "training.epochs.client_learning_rate"),
            ("[privacy.none]", "[privacy.none]\nupdate_norm_max = -1.0", "update_norm_max"),
            ("rounds = 20", "rounds = 20\nseeds = []", "seeds"),
            (
                "[privacy.none]",
                "[adversary]\nshare = 2.0\nattack = \"label-flip\"\n[privacy.none]",
                "adversary.share",
            ),
            (
                "[privacy.none]",
                "[privacy.central]\nclipping_norm = 1.0\ndelta = 1e-5",
                "noise_multiplier",
            ),
        ] {
            let text = message(&EXAMPLE.replace(from, to));
            assert!(text.contains(field), "{field}: {text}");
        }
    }
}
