//! Local training.

use serde::{Deserialize, Serialize};

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
