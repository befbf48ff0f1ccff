//! Sums of squares with the widest vector instructions that the processor has.

use pulp::{Arch, Simd, WithSimd};

/// Sums that run side by side: one alone would wait for each addition.
pub(crate) const LANES: usize = 16;

/// The sum of squares, products and sums in f64; the same to the bit on every processor.
pub(super) fn sum_of_squares(values: &[f32]) -> f64 {
    Arch::new().dispatch(Squares { values })
}

struct Squares<'a> {
    values: &'a [f32],
}

impl WithSimd for Squares<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> f64 {
        let (chunks, rest) = self.values.as_chunks();
        let mut lanes = [0.0; LANES];
        for chunk in chunks {
            in_lanes(&mut lanes, chunk);
        }
        for (lane, &value) in lanes.iter_mut().zip(rest) {
            *lane += f64::from(value) * f64::from(value);
        }
        lanes.iter().sum()
    }
}

/// Adds each square to its lane.
#[inline(always)]
pub(crate) fn in_lanes(lanes: &mut [f64; LANES], values: &[f32; LANES]) {
    for (lane, &value) in lanes.iter_mut().zip(values) {
        *lane += f64::from(value) * f64::from(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_counts_once() {
        for length in [0, 1, 15, 16, 17, 100] {
            // Whole numbers, whose sums are exact.
            let values: Vec<f32> = (0..length).map(|value| value as f32).collect();
            let expected: u32 = (0..length).map(|value| value * value).sum();
            assert_eq!(sum_of_squares(&values), f64::from(expected));
        }
    }
}
