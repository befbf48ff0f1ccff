//! When a job ends before its last round.

use serde::{Deserialize, Serialize};

use super::{EvaluationSpec, JobSpecError, Metric, first_violation};

/// Ends a job whose noisy federated metric no longer becomes better, or is good enough.
///
/// Only what the cohorts release anyway is looked at, so this costs no privacy. Accuracy is better
/// when larger, loss when smaller.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyStop {
    /// Which of `evaluation.metrics` decides.
    pub metric: Metric,
    /// Evaluated bases in a row that may fail to become better; the job ends at the last of them.
    pub patience: u32,
    /// How much better than the best so far counts as better, in units of the metric. Below about two
    /// standard errors of the metric, noise alone passes for progress.
    #[serde(default)]
    pub min_change: f64,
    /// The value at which the job ends at once.
    #[serde(default)]
    pub target: Option<f64>,
}

impl EarlyStop {
    pub(super) fn validate(&self, evaluation: Option<&EvaluationSpec>) -> Result<(), JobSpecError> {
        let released = evaluation.is_some_and(|spec| spec.metrics.contains(&self.metric));
        if !released {
            return Err(JobSpecError::Combination {
                what: "`early_stop.metric` outside of `evaluation.metrics`",
                reason: "only a metric that the cohorts release can be looked at",
            });
        }
        let target = self.target.unwrap_or_default();
        first_violation([
            ("early_stop.patience", self.patience.into(), self.patience > 0, "at least 1"),
            (
                "early_stop.min_change",
                self.min_change,
                self.min_change.is_finite() && self.min_change >= 0.0,
                "a finite number of at least 0",
            ),
            ("early_stop.target", target, target.is_finite(), "a finite number"),
        ])
    }
}
