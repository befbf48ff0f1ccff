//! The randomised Hadamard rotation: spreads an update evenly over its coordinates.

use std::ops::{Add, Mul, Sub};

use chacha20::ChaCha20Rng;
use rand::{Rng, SeedableRng};

/// An orthogonal map that all parties of a round derive from a public seed.
///
/// Random signs, then a Walsh-Hadamard transform scaled to be orthogonal. Afterwards no coordinate
/// is much larger than the others, so a narrow modulus and coarse grid lose little. Norms, and with
/// them the sensitivity, do not change; the rotation is public and adds no privacy.
///
/// Without padding: where the dimension is not a power of two, the transform acts on the first
/// `2^k` coordinates and then, with fresh signs, on the last `2^k`, for the largest fitting k.
/// Either is orthogonal, the two overlap, and together they reach every coordinate.
///
/// Source: Suresh et al. 2017, arXiv:1611.00429; Kairouz, Liu, Steinke 2021, arXiv:2102.06387.
#[derive(Debug, Clone)]
pub struct Rotation {
    seed: [u8; 32],
    dimension: usize,
}

impl Rotation {
    /// - `seed`: public and common to all contributors of a sum
    /// - `dimension`: number of coordinates
    #[must_use]
    pub const fn new(seed: [u8; 32], dimension: usize) -> Self {
        Self { seed, dimension }
    }

    /// Rotates an update in place; before [`Lattice::quantize`](super::Lattice::quantize).
    ///
    /// # Panics
    /// If `update` does not have the dimension of the rotation: a mistake of the caller.
    pub fn apply(&self, update: &mut [f32]) {
        assert_eq!(update.len(), self.dimension, "a rotation fits one dimension");
        for (pass, block) in self.passes().into_iter().enumerate() {
            let part = &mut update[block];
            self.flip_signs(pass, part, -1.0);
            hadamard(part, |length| (length as f64).sqrt().recip() as f32);
        }
    }

    /// Undoes [`apply`](Self::apply) on a sum, after
    /// [`Lattice::dequantize_sum`](super::Lattice::dequantize_sum).
    ///
    /// # Panics
    /// If `sum` does not have the dimension of the rotation: a mistake of the caller.
    pub fn invert(&self, sum: &mut [f64]) {
        assert_eq!(sum.len(), self.dimension, "a rotation fits one dimension");
        for (pass, block) in self.passes().into_iter().enumerate().rev() {
            let part = &mut sum[block];
            hadamard(part, |length| (length as f64).sqrt().recip());
            self.flip_signs(pass, part, -1.0);
        }
    }

    fn passes(&self) -> Vec<std::ops::Range<usize>> {
        let Some(log) = self.dimension.checked_ilog2() else { return Vec::new() };
        let block = 1 << log;
        let first = 0..block;
        if block == self.dimension {
            vec![first]
        } else {
            vec![first, self.dimension - block..self.dimension]
        }
    }

    fn flip_signs<T: Copy + Mul<Output = T>>(&self, pass: usize, part: &mut [T], minus: T) {
        let mut stream = ChaCha20Rng::from_seed(self.seed);
        stream.set_stream(pass as u64);
        for chunk in part.chunks_mut(64) {
            let bits = stream.next_u64();
            for (index, value) in chunk.iter_mut().enumerate() {
                if bits >> index & 1 == 1 {
                    *value = *value * minus;
                }
            }
        }
    }
}

/// The Walsh-Hadamard transform in place, of a length that is a power of two.
fn hadamard<T>(values: &mut [T], scale: impl Fn(usize) -> T)
where
    T: Copy + Add<Output = T> + Sub<Output = T> + Mul<Output = T>,
{
    let mut half = 1;
    while half < values.len() {
        for pair in values.chunks_exact_mut(2 * half) {
            let (left, right) = pair.split_at_mut(half);
            for (a, b) in left.iter_mut().zip(right) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let factor = scale(values.len());
    for value in values {
        *value = *value * factor;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rotating_keeps_the_norm_and_can_be_undone(
            update in prop::collection::vec(-10f32..10.0, 0..200),
            seed in any::<[u8; 32]>(),
        ) {
            let rotation = Rotation::new(seed, update.len());
            let mut rotated = update.clone();
            rotation.apply(&mut rotated);
            let norm = |values: &[f32]| {
                values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
            };
            prop_assert!((norm(&rotated) - norm(&update)).abs() <= 1e-5 * (1.0 + norm(&update)));
            let mut back: Vec<f64> = rotated.iter().map(|&v| f64::from(v)).collect();
            rotation.invert(&mut back);
            for (old, new) in update.iter().zip(&back) {
                prop_assert!((f64::from(*old) - new).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn a_single_spike_spreads_over_all_coordinates() {
        for dimension in [1024, 1000, 1500] {
            for spike in [0, 511, dimension - 1] {
                let mut update = vec![0.0; dimension];
                update[spike] = 1.0;
                Rotation::new([9; 32], dimension).apply(&mut update);
                let largest = update.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
                // Evenly spread, every coordinate would be 1 / sqrt(dimension) = 0.03.
                assert!(largest < 0.2, "{dimension} {spike}: {largest}");
            }
        }
    }

    #[test]
    fn the_seed_decides() {
        let rotated = |seed| {
            let mut update = vec![1.0; 64];
            Rotation::new([seed; 32], 64).apply(&mut update);
            update
        };
        assert_eq!(rotated(1), rotated(1));
        assert_ne!(rotated(1), rotated(2));
    }
}
