//! Metrics of the base that leave the sites, with noise.

use serde::{Deserialize, Serialize};

use super::JobSpecError;

/// Which metrics of the base the cohort releases, how often and with how much noise.
///
/// Without this table no metric leaves a site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationSpec {
    /// The base is evaluated in the rounds that start from a version divisible by this.
    pub every_rounds: u64,
    /// What is released; each metric is a release of its own.
    pub metrics: Vec<Metric>,
    /// Noise deviation over one unit's largest contribution to the pair of sum and count, for each
    /// metric.
    pub noise_multiplier: f64,
    /// Losses are clipped to between 0 and this, in nats.
    #[serde(default = "loss_max_default")]
    pub loss_max: f64,
}

const fn loss_max_default() -> f64 {
    4.0
}

/// What is measured at the sites: the base on held-out records, or what became of predictions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Whether the most probable class is right: 0 or 1.
    Accuracy,
    /// Cross-entropy, in nats.
    Loss,
    /// Whether a prediction that a tenant served was right, by the outcomes told to it: 0 or 1.
    FeedbackAccuracy,
}

impl Metric {
    /// The name in files, logs and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::Loss => "loss",
            Self::FeedbackAccuracy => "feedback-accuracy",
        }
    }
}

/// One tenant's noisy sum of one metric: all that is known of it outside its site.
///
/// With the middle m and half-width h of the metric's clipping range, `centred_sum` estimates the
/// sum of `(value - m) / h` over the tenant's units and `count` their number, each with the noise
/// that the job asks for; either may be negative.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricSum {
    /// What was measured.
    pub metric: Metric,
    /// In half-widths of the clipping range.
    pub centred_sum: f64,
    /// Units.
    pub count: f64,
}

impl EvaluationSpec {
    /// Whether the rounds that start from this version evaluate it.
    #[must_use]
    pub const fn is_due(&self, base_version: u64) -> bool {
        base_version.is_multiple_of(self.every_rounds)
    }

    /// The range to which values of a metric are clipped.
    #[must_use]
    pub const fn bounds(&self, metric: Metric) -> (f64, f64) {
        match metric {
            Metric::Accuracy | Metric::FeedbackAccuracy => (0.0, 1.0),
            Metric::Loss => (0.0, self.loss_max),
        }
    }

    pub(super) fn validate(&self) -> Result<(), JobSpecError> {
        let mut distinct = self.metrics.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let checks = [
            (
                "evaluation.every_rounds",
                self.every_rounds as f64,
                self.every_rounds > 0,
                "at least 1",
            ),
            (
                "evaluation.metrics",
                self.metrics.len() as f64,
                !distinct.is_empty() && distinct.len() == self.metrics.len(),
                "a list of different metrics, as [\"accuracy\", \"loss\"]",
            ),
            (
                "evaluation.noise_multiplier",
                self.noise_multiplier,
                (0.01..=900.0).contains(&self.noise_multiplier),
                "between 0.01 and 900",
            ),
            (
                "evaluation.loss_max",
                self.loss_max,
                self.loss_max.is_finite() && self.loss_max > 0.0,
                "a finite number above 0",
            ),
        ];
        match checks.into_iter().find(|&(_, _, holds, _)| !holds) {
            Some((field, value, _, range)) => Err(JobSpecError::OutOfRange { field, value, range }),
            None => Ok(()),
        }
    }
}
