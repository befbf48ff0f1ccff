//! Secure aggregation in an experiment.

use serde::{Deserialize, Serialize};
use tributary_privacy::secagg::Adversary;

use super::{CohortSampling, Experiment, ExperimentError, PrivacySpec};

/// Masks on every update, with the messages that agents and coordinator exchange in production.
///
/// The model is the same to the bit as without, since masks cancel exactly; the bytes and the
/// minimum number of survivors are not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecaggSpec {
    /// Whom the protocol withstands beside corrupt tenants.
    #[serde(default = "default_adversary")]
    pub adversary: Adversary,
    /// Share of the invited that may be lost; with more the round is abandoned.
    #[serde(default = "default_dropout_max")]
    pub dropout_max: f64,
    /// Share of the invited that may collude with the coordinator.
    #[serde(default)]
    pub corrupt_max: f64,
}

const fn default_adversary() -> Adversary {
    Adversary::SemiHonest
}

const fn default_dropout_max() -> f64 {
    0.3
}

impl SecaggSpec {
    pub(super) fn check(&self, experiment: &Experiment) -> Result<(), ExperimentError> {
        let conflict = |field, problem| Err(ExperimentError::Conflict { field, problem });
        if experiment.cohort.sampling == CohortSampling::Poisson {
            let problem = "needs cohorts of one size; remove `cohort.sampling`";
            return conflict("secagg", problem);
        }
        if let PrivacySpec::Distributed { corrupt_max: 1.., .. } = experiment.privacy {
            let problem = "with `[secagg]`, those who leave out their share of the noise are among \
                           the colluding of `secagg.corrupt_max`; remove this key";
            return conflict("privacy.distributed.corrupt_max", problem);
        }
        Ok(())
    }
}
