//! Private adapters on top of the last base model.

use serde::{Deserialize, Serialize};
use tributary_agent::adapter::{AdapterOptimizer, AdapterPlan};

use super::ExperimentError;

/// Every tenant trains a private adapter on the last base model, as agents do, and both are
/// measured on records that no training saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdaptersSpec {
    /// Share of a tenant's records that is set aside: half stops the training, half measures.
    pub held_out_fraction: f64,
    /// Rank of every layer's change.
    pub rank: u32,
    /// The change is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Client optimizer.
    pub optimizer: AdapterOptimizer,
    /// Step size.
    pub learning_rate: f64,
    /// Passes over the training records, at most.
    pub epochs_max: u32,
    /// Records of a mini-batch.
    pub batch_size: u32,
    /// Passes without improvement after which training stops.
    pub patience: u32,
}

impl Default for AdaptersSpec {
    fn default() -> Self {
        let AdapterPlan { rank, alpha, optimizer, learning_rate, .. } = AdapterPlan::default();
        let AdapterPlan { epochs_max, batch_size, patience, .. } = AdapterPlan::default();
        Self {
            held_out_fraction: 0.3,
            rank,
            alpha,
            optimizer,
            learning_rate,
            epochs_max,
            batch_size,
            patience,
        }
    }
}

impl AdaptersSpec {
    /// The agent's plan; the simulator never stops it by the clock, which would not repeat.
    #[must_use]
    pub fn plan(&self) -> AdapterPlan {
        let Self {
            rank, alpha, optimizer, learning_rate, epochs_max, batch_size, patience, ..
        } = *self;
        let time_budget_ms = u64::MAX;
        AdapterPlan {
            rank,
            alpha,
            optimizer,
            learning_rate,
            epochs_max,
            batch_size,
            patience,
            time_budget_ms,
        }
    }

    pub(super) fn check(&self) -> Result<(), ExperimentError> {
        let value = self.held_out_fraction;
        if !(value > 0.0 && value < 1.0) {
            let (field, range) = ("adapters.held_out_fraction", "above 0 and below 1");
            return Err(ExperimentError::OutOfRange { field, value, range });
        }
        self.plan().validate().map_err(|error| ExperimentError::Adapters(error.into()))
    }
}
