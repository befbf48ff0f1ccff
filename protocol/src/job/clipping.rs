//! How one unit's contribution is clipped.

use serde::{Deserialize, Serialize};

use super::{JobSpecError, PrivacyPlan, PrivacyUnit, Trust};

/// The kind of L2 clipping.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Clipping {
    /// One norm over all parameters.
    #[default]
    Flat,
    /// Every layer to an equal share of the norm, `clipping_norm / sqrt(layers)`; the shares'
    /// squares add up, so the sensitivity of the whole is `clipping_norm`.
    PerLayer,
    /// One norm over all parameters that follows a quantile of the norms of the client updates.
    Adaptive(AdaptiveClipping),
}

/// How a clipping norm follows a quantile, by noisy counts of the updates that it did not clip.
///
/// `privacy.clipping_norm` is the norm of the first round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdaptiveClipping {
    /// The share of updates that should stay unclipped, in (0, 1).
    #[serde(default = "target_quantile_default")]
    pub target_quantile: f64,
    /// The rate of the geometric steps, in (0, 2].
    #[serde(default = "learning_rate_default")]
    pub learning_rate: f64,
    /// Noise deviation of one tenant's vote over the vote's size. Each vote is a release of its own
    /// beside the update and is debited.
    pub count_noise_multiplier: f64,
}

const fn target_quantile_default() -> f64 {
    0.5
}

const fn learning_rate_default() -> f64 {
    0.2
}

impl PrivacyPlan {
    /// The adaptive clipping, if the job has it.
    #[must_use]
    pub const fn adaptive(&self) -> Option<&AdaptiveClipping> {
        match &self.clipping {
            Clipping::Adaptive(adaptive) => Some(adaptive),
            Clipping::Flat | Clipping::PerLayer => None,
        }
    }

    pub(super) fn validate_clipping(&self) -> Result<(), JobSpecError> {
        let combination = |what, reason| Err(JobSpecError::Combination { what, reason });
        if self.trust == Trust::Distributed {
            if self.rotation {
                return combination(
                    "`privacy.rotation` with trust \"distributed\"",
                    "what a masked sum may hold is checked coordinate by coordinate before it \
                     could be rotated back",
                );
            }
            if self.clipping != Clipping::Flat {
                return combination(
                    "`privacy.clipping` other than \"flat\" with trust \"distributed\"",
                    "the shares of noise are sized for one norm over the whole update",
                );
            }
        }
        let Clipping::Adaptive(adaptive) = self.clipping else { return Ok(()) };
        if self.unit == PrivacyUnit::Record {
            return combination(
                "`privacy.clipping.adaptive` with unit \"record\"",
                "counting unclipped examples would cost a further release at every local step; use \
                 \"flat\" or \"per-layer\"",
            );
        }
        let AdaptiveClipping { target_quantile, learning_rate, count_noise_multiplier } = adaptive;
        let checks = [
            (
                "privacy.clipping.adaptive.target_quantile",
                target_quantile,
                target_quantile > 0.0 && target_quantile < 1.0,
                "above 0 and below 1",
            ),
            (
                "privacy.clipping.adaptive.learning_rate",
                learning_rate,
                learning_rate > 0.0 && learning_rate <= 2.0,
                "above 0 and at most 2",
            ),
            (
                "privacy.clipping.adaptive.count_noise_multiplier",
                count_noise_multiplier,
                count_noise_multiplier.is_finite() && count_noise_multiplier > 0.0,
                "a finite number above 0",
            ),
        ];
        match checks.into_iter().find(|&(_, _, holds, _)| !holds) {
            Some((field, value, _, range)) => Err(JobSpecError::OutOfRange { field, value, range }),
            None => Ok(()),
        }
    }
}
