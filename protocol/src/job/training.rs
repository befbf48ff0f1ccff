//! Local training.

use serde::{Deserialize, Serialize};

use super::{JobSpecError, first_violation, is_positive};

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
    /// What keeps the steps of a tenant from drifting towards its own optimum.
    #[serde(default)]
    pub algorithm: LocalAlgorithm,
}

/// What keeps the local steps of a tenant from drifting towards its own optimum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum LocalAlgorithm {
    /// Nothing: plain steps, as in FedAvg.
    #[default]
    Sgd,
    /// Every step is pulled towards the base. The pull follows from the parameters alone, so it
    /// costs no privacy.
    ///
    /// Source: Li et al. 2020, arXiv:1812.06127 (FedProx).
    Fedprox {
        /// Strength of the quadratic pull (µ), a finite number above 0.
        proximal: f64,
    },
    /// Every step is corrected by the difference of two control variates: the tenant's own, made
    /// of nothing but its own releases, and the population's, made of the aggregates.
    ///
    /// Source: Karimireddy et al. 2020, arXiv:1910.06378 (SCAFFOLD, option II).
    Scaffold {
        /// Tenants whose control variates the population's is the mean of: a fixed, public number
        /// of at least `round.cohort_size`.
        population: u32,
    },
}

impl LocalAlgorithm {
    /// Checks the algorithm's numbers.
    ///
    /// # Errors
    /// [`JobSpecError::OutOfRange`] naming the key.
    pub fn validate(&self, cohort_size: u32) -> Result<(), JobSpecError> {
        first_violation(match *self {
            Self::Sgd => None,
            Self::Fedprox { proximal } => Some((
                "training.algorithm.fedprox.proximal",
                proximal,
                is_positive(proximal),
                "a finite number above 0",
            )),
            Self::Scaffold { population } => Some((
                "training.algorithm.scaffold.population",
                population.into(),
                population >= cohort_size,
                "at least `round.cohort_size`",
            )),
        })
    }
}

const fn update_norm_max_default() -> f64 {
    16.0
}
