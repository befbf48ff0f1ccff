//! What the updates of an experiment reveal.

use serde::{Deserialize, Serialize};
use tributary_privacy::clip::{AdaptiveClip, AdaptiveClipPlan, ClipError};
use tributary_protocol::job::{AdaptiveClipping, PrivacyUnit};

use super::{Experiment, ExperimentError, TrainingSpec, check::is_positive};

/// Who adds noise, and how much.
///
/// [`None`](Self::None) exists in the simulator alone: no job can ask an agent for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum PrivacySpec {
    /// Nobody: updates are summed as they are.
    None {
        /// L2 bound that sizes the lattice; longer updates are clipped.
        #[serde(default = "default_update_norm_max")]
        update_norm_max: f64,
    },
    /// Every tenant enough for its own release.
    Local {
        /// Whose presence is hidden.
        unit: PrivacyUnit,
        /// L2 bound of one unit's contribution, in model units.
        clipping_norm: f64,
        /// Noise deviation over clipping norm.
        noise_multiplier: Option<f64>,
        /// The ε to reach instead.
        epsilon: Option<f64>,
        /// The δ of ε.
        delta: f64,
    },
    /// The coordinator, on the sum of clipped updates (`tenant` unit).
    Central {
        /// L2 bound of a tenant's update, in model units; of the first round, if it adapts.
        clipping_norm: f64,
        /// Noise deviation of the sum over clipping norm.
        noise_multiplier: Option<f64>,
        /// The ε to reach instead, votes on the norm included.
        epsilon: Option<f64>,
        /// The δ of ε.
        delta: f64,
        /// Whether and how the norm follows a quantile of the updates' norms.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        adaptive: Option<AdaptiveClipping>,
    },
    /// Every tenant a share, so that the sum has enough whichever tenants report (`tenant` unit).
    Distributed {
        /// L2 bound of a tenant's update, in model units.
        clipping_norm: f64,
        /// Noise deviation of the smallest sum that commits, over clipping norm.
        noise_multiplier: Option<f64>,
        /// The ε to reach instead.
        epsilon: Option<f64>,
        /// The δ of ε.
        delta: f64,
        /// Reporting tenants that may leave out their share, at most.
        #[serde(default)]
        corrupt_max: u32,
    },
}

/// How much noise: a multiplier, or the ε that it shall reach in a whole run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoiseSpec {
    /// L2 bound of one unit's contribution, in model units.
    pub clipping_norm: f64,
    /// Noise deviation over clipping norm, of the protected sum.
    pub noise_multiplier: Option<f64>,
    /// The ε for the tenant that takes part most often; the least noise for it is computed.
    pub epsilon: Option<f64>,
    /// The δ of ε.
    pub delta: f64,
}

const fn default_update_norm_max() -> f64 {
    16.0
}

impl PrivacySpec {
    /// How much noise, if any.
    #[must_use]
    pub const fn noise(&self) -> Option<NoiseSpec> {
        match *self {
            Self::None { .. } => None,
            Self::Local { clipping_norm, noise_multiplier, epsilon, delta, .. }
            | Self::Central { clipping_norm, noise_multiplier, epsilon, delta, .. }
            | Self::Distributed { clipping_norm, noise_multiplier, epsilon, delta, .. } => {
                Some(NoiseSpec { clipping_norm, noise_multiplier, epsilon, delta })
            }
        }
    }

    /// How the norm adapts, if it does.
    #[must_use]
    pub const fn adaptive(&self) -> Option<&AdaptiveClipping> {
        match self {
            Self::Central { adaptive, .. } => adaptive.as_ref(),
            _ => None,
        }
    }

    /// The trust mode's name in results.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::None { .. } => "none",
            Self::Local { .. } => "local",
            Self::Central { .. } => "central",
            Self::Distributed { .. } => "distributed",
        }
    }

    pub(super) fn check(&self, experiment: &Experiment) -> Result<(), ExperimentError> {
        let out_of_range =
            |field, value, range| Err(ExperimentError::OutOfRange { field, value, range });
        let conflict = |field, problem| Err(ExperimentError::Conflict { field, problem });
        let positive = "a finite number above 0";
        if let Self::None { update_norm_max } = *self
            && !is_positive(update_norm_max)
        {
            return out_of_range("privacy.none.update_norm_max", update_norm_max, positive);
        }
        if let Some(noise) = self.noise() {
            if !is_positive(noise.clipping_norm) {
                return out_of_range("privacy.clipping_norm", noise.clipping_norm, positive);
            }
            if !(noise.delta > 0.0 && noise.delta < 1.0) {
                return out_of_range("privacy.delta", noise.delta, "above 0 and below 1");
            }
            match (noise.noise_multiplier, noise.epsilon) {
                (Some(value), None) if !is_positive(value) => {
                    return out_of_range("privacy.noise_multiplier", value, positive);
                }
                (None, Some(value)) if !is_positive(value) => {
                    return out_of_range("privacy.epsilon", value, positive);
                }
                (Some(_), None) | (None, Some(_)) => {}
                _ => {
                    let problem = "give either `noise_multiplier` or `epsilon`";
                    return conflict("privacy", problem);
                }
            }
        }
        if let (Some(adaptive), Some(noise)) = (self.adaptive(), self.noise()) {
            let plan = AdaptiveClipPlan {
                initial_norm: noise.clipping_norm,
                target_quantile: adaptive.target_quantile,
                learning_rate: adaptive.learning_rate,
                count_noise_multiplier: adaptive.count_noise_multiplier,
                contributors_expected: f64::from(experiment.cohort.report_goal()),
            };
            if let Err(ClipError::OutOfRange { field, value, range }) = AdaptiveClip::new(plan) {
                return out_of_range(field, value, range);
            }
        }
        match self {
            Self::Local { unit: PrivacyUnit::Record, .. }
                if !matches!(experiment.training, TrainingSpec::Steps(_)) =>
            {
                let problem = "the record unit needs `training.steps`: steps, sampling rate and \
                               denominator are public and cannot follow from a tenant's size";
                conflict("privacy.local.unit", problem)
            }
            Self::Distributed { corrupt_max, .. } if *corrupt_max >= experiment.cohort.size_min => {
                let problem = "must be below `cohort.size_min`: somebody has to add noise";
                conflict("privacy.distributed.corrupt_max", problem)
            }
            _ => Ok(()),
        }
    }
}
