//! A clipping norm that follows a quantile of the norms it clips.

use serde::{Deserialize, Serialize};

use super::{ClipError, ClippingNorm};
use crate::{
    mechanism::PrivacyEvent,
    noise::{ExactDiscreteGaussian, NoiseError, NoiseSource},
};

/// Grid units of one contribution to the count: noise on such a grid is as good as continuous.
const GRID: i64 = 1 << 12;

/// How a clipping norm adapts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdaptiveClipPlan {
    /// The norm of the first round, in model units.
    pub initial_norm: f64,
    /// The share of contributions that should stay unclipped, in (0, 1).
    pub target_quantile: f64,
    /// The rate of the geometric steps, in (0, 2].
    pub learning_rate: f64,
    /// Noise deviation of the count over its sensitivity, which is 1.
    pub count_noise_multiplier: f64,
    /// The public, expected number of contributions to a count.
    pub contributors_expected: f64,
}

/// A clipping norm that moves towards a quantile of the norms, by noisy counts.
///
/// Each contribution votes +1 if its norm is within the clipping norm and -1 if not; the votes are
/// summed with discrete Gaussian noise, and with b the resulting share of unclipped contributions
/// the norm is multiplied by `exp(-learning_rate · (b - target_quantile))`: too many unclipped ones
/// shrink it.
///
/// - Neighbouring relation: add or remove one contribution.
/// - Sensitivity: 1 vote.
/// - Cost: [`event`](Self::event), to be debited in addition to the release of the sum itself.
///
/// A round takes its norm once, at its start ([`norm`](Self::norm)), for both clip and noise.
///
/// Source: Andrew, Thakkar, McMahan, Ramaswamy 2021, arXiv:1905.03871, algorithm 1.
#[derive(Debug, Clone)]
pub struct AdaptiveClip {
    plan: AdaptiveClipPlan,
    norm: ClippingNorm,
    gaussian: ExactDiscreteGaussian,
}

impl AdaptiveClip {
    /// # Errors
    /// [`ClipError`] naming the value that cannot work.
    pub fn new(plan: AdaptiveClipPlan) -> Result<Self, ClipError> {
        let check = |field, value: f64, holds: bool, range| {
            if holds { Ok(()) } else { Err(ClipError::OutOfRange { field, value, range }) }
        };
        let norm = ClippingNorm::new(plan.initial_norm)?;
        let quantile = plan.target_quantile;
        check("target_quantile", quantile, quantile > 0.0 && quantile < 1.0, "between 0 and 1")?;
        let rate = plan.learning_rate;
        check("learning_rate", rate, rate > 0.0 && rate <= 2.0, "above 0 and at most 2")?;
        let expected = plan.contributors_expected;
        let holds = expected.is_finite() && expected >= 1.0;
        check("contributors_expected", expected, holds, "a finite number, at least 1")?;
        let multiplier = plan.count_noise_multiplier;
        let gaussian =
            ExactDiscreteGaussian::new(multiplier * GRID as f64).map_err(|_: NoiseError| {
                ClipError::OutOfRange {
                    field: "count_noise_multiplier",
                    value: multiplier,
                    range: "between 0.001 and 200000",
                }
            })?;
        Ok(Self { plan, norm, gaussian })
    }

    /// The norm to clip and to size the noise with, until the next [`update`](Self::update).
    #[must_use]
    pub const fn norm(&self) -> ClippingNorm {
        self.norm
    }

    /// What one [`update`](Self::update) costs.
    ///
    /// - `sampling_rate`: probability with which each contribution joined (Poisson); 1 if all did
    #[must_use]
    pub const fn event(&self, sampling_rate: f64) -> PrivacyEvent {
        let noise_multiplier = self.plan.count_noise_multiplier;
        PrivacyEvent::PoissonGaussian { sampling_rate, noise_multiplier, steps: 1 }
    }

    /// Moves the norm by a noisy count.
    ///
    /// - `unclipped`: contributions whose norm was at most [`norm`](Self::norm)
    /// - `clipped`: the others
    /// - returns: the new norm
    pub fn update(
        &mut self,
        unclipped: u32,
        clipped: u32,
        noise: &mut impl NoiseSource,
    ) -> ClippingNorm {
        let votes = (i64::from(unclipped) - i64::from(clipped)) * GRID;
        let noisy = (votes + self.gaussian.sample(noise)) as f64 / GRID as f64;
        self.follow(noisy, self.plan.contributors_expected)
    }

    /// Moves the norm by a count that has its noise already; post-processing.
    ///
    /// - `noisy_votes`: votes of those within the norm minus votes of those beyond it
    /// - `contributors`: how many voted, a public number
    /// - returns: the new norm
    pub fn follow(&mut self, noisy_votes: f64, contributors: f64) -> ClippingNorm {
        let (rate, target) = (self.plan.learning_rate, self.plan.target_quantile);
        self.norm = next_norm(self.norm, noisy_votes, contributors, rate, target);
        self.norm
    }
}

/// The norm after a noisy count: `norm · exp(-learning_rate · (b - target_quantile))`, where b is
/// the share of contributions that the count says were unclipped, within [0, 1].
///
/// - `noisy_votes`: votes of those within the norm minus votes of those beyond it
/// - `contributors`: how many voted, a public number
#[must_use]
pub fn next_norm(
    norm: ClippingNorm,
    noisy_votes: f64,
    contributors: f64,
    learning_rate: f64,
    target_quantile: f64,
) -> ClippingNorm {
    let share = (0.5 + 0.5 * noisy_votes / contributors).clamp(0.0, 1.0);
    let exponent = -learning_rate * (share - target_quantile);
    // A norm at the end of the range of f64 stays where it is; so it does without any vote.
    ClippingNorm::new(norm.value() * exponent.exp()).unwrap_or(norm)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::noise::SeededNoise;

    const PLAN: AdaptiveClipPlan = AdaptiveClipPlan {
        initial_norm: 1.0,
        target_quantile: 0.5,
        learning_rate: 0.2,
        count_noise_multiplier: 5.0,
        contributors_expected: 100.0,
    };

    #[test]
    fn impossible_plans_name_their_field() {
        let bad = [
            AdaptiveClipPlan { initial_norm: 0.0, ..PLAN },
            AdaptiveClipPlan { target_quantile: 1.0, ..PLAN },
            AdaptiveClipPlan { learning_rate: f64::NAN, ..PLAN },
            AdaptiveClipPlan { count_noise_multiplier: 0.0, ..PLAN },
            AdaptiveClipPlan { contributors_expected: 0.0, ..PLAN },
        ];
        for plan in bad {
            assert!(AdaptiveClip::new(plan).is_err(), "{plan:?}");
        }
    }

    #[test]
    fn the_bit_is_not_inverted() {
        let mut noise = SeededNoise::from_seed([6; 32]);
        let quiet = AdaptiveClipPlan { count_noise_multiplier: 0.01, ..PLAN };
        let mut clip = AdaptiveClip::new(quiet).expect("valid");
        assert!(clip.update(100, 0, &mut noise).value() < 1.0, "nothing clipped: shrink");
        let mut clip = AdaptiveClip::new(quiet).expect("valid");
        assert!(clip.update(0, 100, &mut noise).value() > 1.0, "all clipped: grow");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Norms are log-uniform around `scale`; the true quantile is known.
        #[test]
        fn the_norm_converges_from_far_too_small_and_far_too_large(
            scale in 1e-3f64..1e3,
            target_quantile in 0.3f64..0.8,
            seed in any::<u8>(),
            start in prop::sample::select(vec![0.01, 1.0, 100.0]),
        ) {
            let mut noise = SeededNoise::from_seed([seed; 32]);
            let truth = scale * ((target_quantile - 0.5) * 2.0).exp();
            let plan = AdaptiveClipPlan { initial_norm: truth * start, target_quantile, ..PLAN };
            let mut clip = AdaptiveClip::new(plan).expect("valid");
            let norms: Vec<f64> =
                (0..100).map(|i| scale * (2.0 * ((f64::from(i) + 0.5) / 100.0 - 0.5)).exp()).collect();
            let mut late = Vec::new();
            for round in 0..300 {
                let norm = clip.norm().value();
                let unclipped = norms.iter().filter(|&&value| value <= norm).count() as u32;
                clip.update(unclipped, 100 - unclipped, &mut noise);
                if round >= 200 {
                    late.push(clip.norm().value().ln());
                }
            }
            let mean = (late.iter().sum::<f64>() / late.len() as f64).exp();
            prop_assert!((mean / truth - 1.0).abs() < 0.1, "{mean} for {truth}");
        }
    }
}
