//! What a job trains and promises, in short: the figures that people look for first.

use serde::{Deserialize, Serialize};
use tributary_protocol::{
    id::{DatasetName, Region},
    job::{JobSpec, PrivacyUnit},
};

/// The terms of a job that people look for first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobTerms {
    /// The dataset that every agent maps to files of its own.
    pub dataset: DatasetName,
    /// Regions whose tenants may take part; empty allows all.
    pub regions: Vec<Region>,
    /// Parameters that the tenants train together.
    pub num_parameters: u64,
    /// Who adds the noise: `local` or `distributed`.
    pub trust: String,
    /// `record` or `tenant`.
    pub unit: PrivacyUnit,
    /// Noise deviation over clipping norm.
    pub noise_multiplier: f64,
    /// The δ at which ε is reported.
    pub delta: f64,
    /// Tenants invited to a round.
    pub cohort_size: u32,
    /// Fewest updates with which a round may commit.
    pub cohort_size_min: u32,
    /// Updates at which a round commits at once.
    pub report_goal: u32,
    /// Whether tenants train at their own pace, and a buffer commits when it is full.
    pub asynchronous: bool,
}

impl JobTerms {
    pub(super) fn new(spec: &JobSpec) -> Self {
        Self {
            dataset: spec.dataset.clone(),
            regions: spec.regions.clone(),
            num_parameters: spec.federated_dimension() as u64,
            trust: spec.privacy.trust.name().to_owned(),
            unit: spec.privacy.unit,
            noise_multiplier: spec.privacy.noise_multiplier,
            delta: spec.privacy.delta,
            cohort_size: spec.round.cohort_size,
            cohort_size_min: spec.round.cohort_size_min,
            report_goal: spec.round.report_goal,
            asynchronous: spec.round.asynchronous.is_some(),
        }
    }
}
