//! A clipping norm that follows the updates' norms, with central noise.

use std::sync::atomic::{AtomicU32, Ordering};

use tributary_privacy::{
    clip::{AdaptiveClip, AdaptiveClipPlan, ClipError, ClippingNorm},
    noise::NoiseSource,
};
use tributary_protocol::job::AdaptiveClipping;

use super::Ranks;

/// Width of the counts that processes add up.
const COUNT_BITS: u8 = 32;

/// The norm of a round, and the votes on it.
#[derive(Debug)]
pub(super) struct AdaptiveNorm {
    clip: AdaptiveClip,
    /// Updates of the open round within the norm, and beyond it. All threads count.
    unclipped: AtomicU32,
    clipped: AtomicU32,
}

impl AdaptiveNorm {
    /// - `contributors`: the public number of updates that a round expects
    pub(super) fn new(
        spec: &AdaptiveClipping,
        initial_norm: f64,
        contributors: u32,
    ) -> Result<Self, ClipError> {
        let clip = AdaptiveClip::new(AdaptiveClipPlan {
            initial_norm,
            target_quantile: spec.target_quantile,
            learning_rate: spec.learning_rate,
            count_noise_multiplier: spec.count_noise_multiplier,
            contributors_expected: f64::from(contributors),
        })?;
        Ok(Self { clip, unclipped: AtomicU32::new(0), clipped: AtomicU32::new(0) })
    }

    /// The norm of the open round.
    pub(super) const fn norm(&self) -> ClippingNorm {
        self.clip.norm()
    }

    /// Takes the vote of an update that had this norm before it was clipped.
    pub(super) fn vote(&self, norm: f64) {
        let side = if norm <= self.norm().value() { &self.unclipped } else { &self.clipped };
        side.fetch_add(1, Ordering::Relaxed);
    }

    /// Forgets the votes of a round that was given up.
    pub(super) fn forget(&mut self) {
        (*self.unclipped.get_mut(), *self.clipped.get_mut()) = (0, 0);
    }

    /// Moves the norm by the noisy votes of all processes.
    pub(super) fn follow(
        &mut self,
        ranks: &dyn Ranks,
        noise: &mut impl NoiseSource,
    ) -> ClippingNorm {
        let mut votes =
            [std::mem::take(self.unclipped.get_mut()), std::mem::take(self.clipped.get_mut())];
        ranks.sum_modulo(&mut votes, COUNT_BITS);
        self.clip.update(votes[0], votes[1], noise)
    }
}

/// The noise of a sum and of a vote as one: both are released of the same updates.
pub(super) fn with_votes(sum_multiplier: f64, count_multiplier: f64) -> f64 {
    (sum_multiplier.powi(-2) + count_multiplier.powi(-2)).powf(-0.5)
}

/// The noise of the sum that is left to be as private as `total` together with the votes; `None` if
/// the votes alone cost more.
///
/// Source: Andrew et al. 2021, arXiv:1905.03871, theorem 1, with votes of ±1.
pub(super) fn without_votes(total: f64, count_multiplier: f64) -> Option<f64> {
    let left = total.powi(-2) - count_multiplier.powi(-2);
    (left > 0.0).then(|| left.powf(-0.5))
}

#[cfg(test)]
mod tests {
    use tributary_privacy::noise::SeededNoise;

    use super::{super::Alone, *};

    #[test]
    fn sum_and_votes_share_the_budget() {
        let sum = without_votes(1.5, 4.0).expect("votes are cheap");
        assert!(sum > 1.5 && (with_votes(sum, 4.0) - 1.5).abs() < 1e-12);
        assert_eq!(without_votes(1.5, 1.5), None);
    }

    #[test]
    fn the_norm_falls_where_nothing_is_clipped_and_rises_where_all_is() {
        let spec = AdaptiveClipping {
            target_quantile: 0.5,
            learning_rate: 0.2,
            count_noise_multiplier: 0.01,
        };
        for (norm, expected) in [(0.5, -0.1), (2.0, 0.1)] {
            let mut adaptive = AdaptiveNorm::new(&spec, 1.0, 10).expect("valid");
            (0..10).for_each(|_| adaptive.vote(norm));
            let next = adaptive.follow(&Alone, &mut SeededNoise::from_seed([1; 32]));
            assert!((next.value().ln() - expected).abs() < 1e-3, "{next:?}");
        }
    }
}
