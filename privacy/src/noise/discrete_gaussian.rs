//! The fast discrete Gaussian for vectors.

use std::fmt;

use zeroize::Zeroizing;

use super::{
    NoiseError, NoiseSource, SIGMA_MAX, SIGMA_MIN,
    table::{AliasTable, TABLE_SIGMA_MAX},
};

/// Bytes of keystream that a vector is served from at a time.
const BUFFER: usize = 4096;
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
/// - Timing: table look-ups without data-dependent branches (but for a tie once in 2^20 draws);
///   the cache lines that a look-up touches depend on the value, so draw whole vectors before a
///   fixed point in time.
///
/// Sources: Walker 1977 (alias method); Micciancio, Walter 2017, arXiv/ePrint 2017/259 (sums).
#[derive(Clone)]
pub struct DiscreteGaussian {
    sigma: f64,
    table: AliasTable,
    /// k.
    stride: i64,
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
        (0..self.parts).fold(0, |value, _| {
            let word = noise.next_u32();
            value * self.stride + self.table.settled(word, noise)
        })
    }

    /// Adds one independent draw to every element.
    ///
    /// - `values`: grid units; the caller leaves room for 64 standard deviations
    pub fn add_to(&self, noise: &mut impl NoiseSource, values: &mut [i64]) {
        match self.parts {
            1 => self.add_parts::<1>(noise, values),
            2 => self.add_parts::<2>(noise, values),
            3 => self.add_parts::<3>(noise, values),
            4 => self.add_parts::<4>(noise, values),
            _ => self.add_parts::<5>(noise, values),
        }
    }

    fn add_parts<const PARTS: usize>(&self, noise: &mut impl NoiseSource, values: &mut [i64]) {
        let mut buffer = Zeroizing::new([0u8; BUFFER]);
        for values in values.chunks_mut(BUFFER / (4 * PARTS)) {
            let bytes = &mut buffer[..values.len() * 4 * PARTS];
            noise.fill_bytes(bytes);
            let (words, _) = bytes.as_chunks::<4>();
            let (groups, _) = words.as_chunks::<PARTS>();
            for (value, group) in values.iter_mut().zip(groups) {
                let (mut drawn, mut tie) = (0, false);
                for bytes in group {
                    let word = u32::from_le_bytes(*bytes);
                    tie |= self.table.is_tie(word);
                    drawn = drawn * self.stride + self.table.outcome(word);
                }
                // Rare enough that the processor never sees a pattern, so it costs nothing.
                if tie {
                    drawn = self.settle(group, noise);
                }
                *value += drawn;
            }
        }
    }

    /// The draw of words of which at least one is a tie.
    #[cold]
    #[inline(never)]
    fn settle(&self, words: &[[u8; 4]], noise: &mut impl NoiseSource) -> i64 {
        words.iter().fold(0, |value, &bytes| {
            value * self.stride + self.table.settled(u32::from_le_bytes(bytes), noise)
        })
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
fn plan(sigma: f64) -> (usize, i64, f64) {
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
                    return (parts as usize, stride as i64, spread);
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
                let whole = part_sigma.hypot(stride as f64 * rest);
                assert!(part_sigma * rest / whole >= 1.99, "{sigma}");
                rest = whole;
            }
            assert!((rest / sigma - 1.0).abs() < 1e-12);
            sigma *= 1.0137;
        }
        assert_eq!(plan(4096.0).0, 2);
        assert_eq!(plan(SIGMA_MAX).0, 5);
    }

    #[test]
    fn single_draws_and_vectors_agree() {
        for sigma in [1.0, 1000.0, 1e7] {
            let gaussian = DiscreteGaussian::new(sigma).expect("in range");
            let mut vector = vec![0; 5];
            gaussian.add_to(&mut SeededNoise::from_seed([4; 32]), &mut vector);
            let mut noise = SeededNoise::from_seed([4; 32]);
            let singles: Vec<i64> = (0..5).map(|_| gaussian.sample(&mut noise)).collect();
            assert_eq!(vector, singles);
        }
    }
}
