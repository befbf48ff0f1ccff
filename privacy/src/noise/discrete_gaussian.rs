//! The fast discrete Gaussian for vectors.

use std::fmt;

use super::{
    NoiseError, NoiseSource, SIGMA_MAX, SIGMA_MIN,
    table::{AliasTable, TABLE_SIGMA_MAX},
    vector::{Add, Descend, Operation, RoundAndAdd, for_each_chunk},
};

/// Parts that the widest deviation needs.
const PARTS_MAX: i32 = 5;

/// A fast sampler of the discrete Gaussian: `P(x)` proportional to `exp(-x² / (2 sigma²))`.
///
/// Up to a deviation of about 170 a draw is one look-up in an alias table of 128-bit precision.
/// Wider ones are sums `x_1 + k x_2 + k² x_3 + ...` of up to five such draws, all from the same
/// table: with an integer k at most half the table's deviation, a sum of two discrete Gaussians
/// is again one but for a relative `4 exp(-2 π² s²)`, where s >= 1.99 is the deviation of the inner
/// draw given the outcome (the argument of Poisson summation).
///
/// - Statistical distance: below [`STATISTICAL_DISTANCE`](Self::STATISTICAL_DISTANCE) a draw, from
///   the cut at 12 deviations (2^-107 a part), the sums (2^-110 each) and the thresholds (2^-116 in all);
///   multiply by the number of draws and add to δ.
/// - Variance: the requested one rounded up (relative difference below 2^-50), never down.
/// - Timing: table look-ups without data-dependent branches (but for a tie once in 2^12 draws);
///   the cache lines that a look-up touches depend on the value, so draw whole vectors before a
///   fixed point in time.
///
/// Sources: Walker 1977 (alias method); Micciancio, Walter 2017, arXiv/ePrint 2017/259 (sums).
#[derive(Clone)]
pub struct DiscreteGaussian {
    sigma: f64,
    pub(super) table: AliasTable,
    /// k.
    pub(super) stride: f64,
    parts: usize,
}

impl DiscreteGaussian {
    /// The statistical distance of one draw from the discrete Gaussian, at most.
    pub const STATISTICAL_DISTANCE: f64 = 1.0 / (1u128 << 104) as f64;

    /// Builds the table: about a millisecond.
    ///
    /// - `sigma`: standard deviation in grid units, [`SIGMA_MIN`] to [`SIGMA_MAX`]
    ///
    /// # Errors
    /// [`NoiseError::SigmaOutOfRange`], NaN included.
    pub fn new(sigma: f64) -> Result<Self, NoiseError> {
        if !(SIGMA_MIN..=SIGMA_MAX).contains(&sigma) {
            return Err(NoiseError::SigmaOutOfRange { sigma });
        }
        let (parts, stride, spread) = plan(sigma);
        // The factor absorbs the rounding of the f64 operations: up, never down.
        let variance = sigma * sigma / spread * (1.0 + 4.0 * f64::EPSILON);
        Ok(Self { sigma, table: AliasTable::new(variance), stride, parts })
    }

    /// The requested standard deviation in grid units.
    #[must_use]
    pub const fn sigma(&self) -> f64 {
        self.sigma
    }

    /// Draws one value.
    pub fn sample(&self, noise: &mut impl NoiseSource) -> i64 {
        let draw = (0..self.parts).fold(0.0, |value, _| {
            let word = noise.next_u32();
            value * self.stride + f64::from(self.table.settled(word, noise))
        });
        // Whole numbers far below 2^53 all along.
        draw as i64
    }

    /// Adds one independent draw to every element.
    ///
    /// - `values`: grid units; the caller leaves room for 64 standard deviations
    pub fn add_to(&self, noise: &mut impl NoiseSource, values: &mut [i64]) {
        self.apply(noise, values, &Add);
    }

    /// Rounds every element to the grid at random, adds one independent draw, and returns to model
    /// units: [`RoundAndAdd`] says exactly what happens.
    ///
    /// # Panics
    /// If the deviation is at most 170, where a draw has too few bits left for the rounding.
    pub(crate) fn round_and_add(
        &self,
        noise: &mut impl NoiseSource,
        values: &mut [f32],
        operation: &RoundAndAdd,
    ) {
        assert!(self.parts > 1, "the grid of a sum is fine");
        self.apply(noise, values, operation);
    }

    /// Takes a step of gradient descent with a sum that gets its noise on the way: [`Descend`] says
    /// exactly what happens.
    ///
    /// - returns: whether every element of the sum is within its bound; if not, the parameters are
    ///   of no use
    ///
    /// # Panics
    /// As for [`round_and_add`](Self::round_and_add), or if there are not as many parameters as
    /// elements.
    pub(crate) fn descend(
        &self,
        noise: &mut impl NoiseSource,
        parameters: &mut [f32],
        operation: &Descend<'_>,
    ) -> bool {
        assert!(self.parts > 1, "the grid of a sum is fine");
        assert_eq!(parameters.len(), operation.sum.len(), "a parameter an element");
        self.apply(noise, parameters, operation)
    }

    fn apply<T: Copy + Default>(
        &self,
        noise: &mut impl NoiseSource,
        values: &mut [T],
        operation: &impl Operation<T>,
    ) -> bool {
        match self.parts {
            1 => for_each_chunk::<1, T>(self, noise, values, operation),
            2 => for_each_chunk::<2, T>(self, noise, values, operation),
            3 => for_each_chunk::<3, T>(self, noise, values, operation),
            4 => for_each_chunk::<4, T>(self, noise, values, operation),
            _ => for_each_chunk::<5, T>(self, noise, values, operation),
        }
    }
}

impl fmt::Debug for DiscreteGaussian {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DiscreteGaussian")
            .field("sigma", &self.sigma)
            .field("parts", &self.parts)
            .finish_non_exhaustive()
    }
}

/// The fewest parts, their stride k, and the variance of the sum over that of a part.
fn plan(sigma: f64) -> (usize, f64, f64) {
    for parts in 1..=PARTS_MAX {
        // 1 + k² + k⁴ + ... is at least k^(2 (parts - 1)).
        let mut stride = if parts == 1 {
            1.0
        } else {
            (sigma / TABLE_SIGMA_MAX).powf(f64::from(parts - 1).recip()).floor().max(1.0)
        };
        loop {
            let spread: f64 = (0..parts).map(|part| stride.powi(2 * part)).sum();
            let part_sigma = sigma / spread.sqrt();
            if part_sigma <= TABLE_SIGMA_MAX {
                if parts == 1 || (1.0 + stride * stride).sqrt() * 2.0 <= part_sigma {
                    return (parts as usize, stride, spread);
                }
                break;
            }
            if parts == 1 {
                break;
            }
            stride += 1.0;
        }
    }
    unreachable!("five parts reach beyond the largest deviation")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::SeededNoise;

    #[test]
    fn deviations_outside_the_range_are_refused() {
        for sigma in [0.0, 0.49, -1.0, 1.1e9, f64::NAN, f64::INFINITY] {
            assert!(matches!(
                DiscreteGaussian::new(sigma),
                Err(NoiseError::SigmaOutOfRange { .. })
            ));
        }
    }

    /// The conditions of the statistical distance, over the whole range.
    #[test]
    fn every_plan_overlaps_enough_and_has_the_right_variance() {
        let mut sigma = SIGMA_MIN;
        while sigma <= SIGMA_MAX {
            let (parts, stride, spread) = plan(sigma);
            let part_sigma = sigma / spread.sqrt();
            assert!(part_sigma <= TABLE_SIGMA_MAX && (parts as i32) <= PARTS_MAX);
            // Combining part by part from the widest: x + k y, y being all later parts.
            let mut rest = part_sigma;
            for _ in 1..parts {
                let whole = part_sigma.hypot(stride * rest);
                assert!(part_sigma * rest / whole >= 1.99, "{sigma}");
                rest = whole;
            }
            assert!((rest / sigma - 1.0).abs() < 1e-12);
            sigma *= 1.0137;
        }
        assert_eq!(plan(4096.0).0, 2);
        assert_eq!(plan(SIGMA_MAX).0, 5);
    }

    /// Every length, and with enough draws that ties occur.
    #[test]
    fn vectors_hold_the_draws_of_their_words() {
        use rand::Rng;
        for (sigma, length) in [(1.0, 1), (1000.0, 32), (1e6, 70_001), (1e8, 97), (1e9, 40_000)] {
            let gaussian = DiscreteGaussian::new(sigma).expect("in range");
            let mut vector = vec![7; length];
            gaussian.add_to(&mut SeededNoise::from_seed([4; 32]), &mut vector);
            let (parts, chunks) = (gaussian.parts, length.div_ceil(32));
            let mut noise = SeededNoise::from_seed([4; 32]);
            let mut settled = 0;
            for first in (0..chunks).step_by(4096 / (128 * parts)) {
                let words: Vec<u32> = (0..(chunks - first).min(4096 / (128 * parts)) * 32 * parts)
                    .map(|_| noise.next_u32())
                    .collect();
                for (chunk, words) in (first..).zip(words.chunks(32 * parts)) {
                    let word = |part, lane| words[part * 32 + lane];
                    let is_tie = |index: &usize| {
                        (0..parts).any(|part| gaussian.table.outcome(word(part, *index)).1)
                    };
                    let ties = (0..32).filter(is_tie).count();
                    settled += ties;
                    for lane in 0..32 {
                        let expected = (0..parts).fold(0, |value, part| {
                            let outcome = if ties > 0 {
                                gaussian.table.settled(word(part, lane), &mut noise)
                            } else {
                                gaussian.table.outcome(word(part, lane)).0
                            };
                            value * gaussian.stride as i64 + i64::from(outcome)
                        });
                        if let Some(value) = vector.get(chunk * 32 + lane) {
                            assert_eq!(*value, 7 + expected, "{sigma}: {}", chunk * 32 + lane);
                        }
                    }
                }
            }
            assert!(length < 40_000 || settled > 0, "some ties are among so many draws");
        }
    }
}
