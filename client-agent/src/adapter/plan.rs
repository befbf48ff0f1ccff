use serde::{Deserialize, Serialize};

use super::AdapterError;

/// How a tenant trains its adapter, as in `agent.toml` under `[adapter]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdapterPlan {
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
    /// Passes without improvement on the validation records after which training stops.
    pub patience: u32,
    /// Time after which training stops, in milliseconds.
    pub time_budget_ms: u64,
}

/// The rule that turns gradients into steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdapterOptimizer {
    /// Kingma and Ba 2014, with β₁ = 0.9, β₂ = 0.999.
    Adam,
    /// Plain stochastic gradient descent.
    Sgd,
}

impl Default for AdapterPlan {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            optimizer: AdapterOptimizer::Adam,
            learning_rate: 1e-3,
            epochs_max: 8,
            batch_size: 64,
            patience: 2,
            time_budget_ms: 60_000,
        }
    }
}

impl AdapterPlan {
    /// Checks every number.
    ///
    /// # Errors
    /// [`AdapterError::Plan`] naming the key and what would work.
    pub fn validate(&self) -> Result<(), AdapterError> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let checks = [
            ("rank", f64::from(self.rank), (1..=256).contains(&self.rank), "between 1 and 256"),
            ("alpha", self.alpha, positive(self.alpha), "a finite number above 0"),
            (
                "learning_rate",
                self.learning_rate,
                positive(self.learning_rate),
                "a finite number above 0",
            ),
            ("batch_size", f64::from(self.batch_size), self.batch_size > 0, "at least 1"),
        ];
        match checks.into_iter().find(|&(_, _, holds, _)| !holds) {
            Some((field, value, _, range)) => Err(AdapterError::Plan { field, value, range }),
            None => Ok(()),
        }
    }
}
