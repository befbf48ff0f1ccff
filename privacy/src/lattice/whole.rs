//! Adding whole updates where they were made, without packing them.

use super::{LatticeError, ModularSum, UNITS_PER_NORM_MAX};
use crate::clip::ClippingNorm;

/// Adding it to a number of at most 2^51 in magnitude leaves the nearest integer (ties to even) in
/// the low bits: a rounding that every processor does four or eight at a time.
const ROUNDING: f64 = 1.5 * (1_u64 << 52) as f64;
/// Sums of squares that run side by side.
const LANES: usize = 8;
/// Relative margin for the float sum of squares of up to 2^31 integers.
const MARGIN: f64 = 1.0 / (1_u64 << 20) as f64;

impl ModularSum {
    /// Adds integers, reduced modulo `2^bits`.
    ///
    /// - `grid`: shape `[dimension]`, grid units
    ///
    /// # Errors
    /// [`LatticeError::Mismatch`] for another dimension; the sum is then unchanged.
    pub fn add_grid(&mut self, grid: &[i64]) -> Result<(), LatticeError> {
        if grid.len() != self.values.len() {
            return Err(LatticeError::Mismatch);
        }
        let mask = self.lattice.mask();
        for (value, &units) in self.values.iter_mut().zip(grid) {
            *value = value.wrapping_add(units as u32) & mask;
        }
        Ok(())
    }

    /// Rounds an update to the grid with its norm enforced, and adds it: the same as
    /// [`add_packed`](Self::add_packed) of what [`quantize`](super::Lattice::quantize) and
    /// [`pack`](super::Lattice::pack) give, in one pass and without memory of its own.
    ///
    /// For simulations, where client and coordinator share a process.
    ///
    /// - `update`: shape `[dimension]`, model units
    /// - `norm_max`: model units
    ///
    /// # Errors
    /// Those of [`quantize`](super::Lattice::quantize), and [`LatticeError::Mismatch`] for another
    /// dimension; the sum is then unchanged.
    pub fn add_update(
        &mut self,
        update: &[f32],
        norm_max: ClippingNorm,
    ) -> Result<(), LatticeError> {
        if update.len() != self.values.len() {
            return Err(LatticeError::Mismatch);
        }
        let units = norm_max.value() / self.lattice.step();
        let squares = self.add_rounded(update, u32::wrapping_add);
        // Not finite, too long, or too close to tell in floats: take it back and do it with care.
        if units <= UNITS_PER_NORM_MAX / 2.0 && squares <= units * units * (1.0 - MARGIN) {
            return Ok(());
        }
        self.add_rounded(update, u32::wrapping_sub);
        self.add_grid(&self.lattice.quantize(update, norm_max)?)
    }

    /// Adds or takes away the nearest grid points; returns the sum of their squares.
    ///
    /// An element beyond 2^51 grid units gives nonsense but, as the same nonsense both times, can
    /// be taken away again; its square tells.
    fn add_rounded(&mut self, update: &[f32], combine: impl Fn(u32, u32) -> u32) -> f64 {
        let (mask, inverse) = (self.lattice.mask(), self.lattice.step().recip());
        let mut lanes = [0.0_f64; LANES];
        let one = |value: &mut u32, element: f32, lane: &mut f64| {
            let shifted = f64::from(element) * inverse + ROUNDING;
            let rounded = shifted - ROUNDING;
            *lane += rounded * rounded;
            *value = combine(*value, shifted.to_bits() as u32) & mask;
        };
        let values = self.values.chunks_exact_mut(LANES);
        let elements = update.chunks_exact(LANES);
        let rest = elements.remainder();
        for (values, elements) in values.zip(elements) {
            for ((value, &element), lane) in values.iter_mut().zip(elements).zip(&mut lanes) {
                one(value, element, lane);
            }
        }
        let first = update.len() - rest.len();
        for (value, &element) in self.values[first..].iter_mut().zip(rest) {
            one(value, element, &mut lanes[0]);
        }
        lanes.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::lattice::Lattice;

    fn norm(value: f64) -> ClippingNorm {
        ClippingNorm::new(value).expect("positive")
    }

    proptest! {
        #[test]
        fn whole_updates_add_as_packed_ones(
            update in prop::collection::vec(
                prop_oneof![-1e3f32..1e3, Just(f32::MAX), Just(0.0), Just(0.125)], 0..50,
            ),
            step in prop::sample::select(vec![0.25, 1e-3, 0.7]),
            norm_max in 1e-2f64..1e5,
            bits in 8u8..=32,
        ) {
            let lattice = Lattice::new(step, bits).expect("valid");
            let mut packed = ModularSum::new(lattice, update.len());
            packed.add_packed(&lattice.pack(&vec![7; update.len()])).expect("well formed");
            let mut whole = packed.clone();
            let grid = lattice.quantize(&update, norm(norm_max)).expect("finite");
            packed.add_packed(&lattice.pack(&grid)).expect("well formed");
            whole.add_update(&update, norm(norm_max)).expect("finite");
            prop_assert_eq!(whole, packed);
        }
    }

    #[test]
    fn a_bad_update_leaves_the_sum_unchanged() {
        let mut sum = ModularSum::new(Lattice::new(0.5, 24).expect("valid"), 9);
        sum.add_update(&[1.5; 9], norm(100.0)).expect("finite");
        let before = sum.clone();
        for value in [f32::NAN, f32::INFINITY] {
            let mut update = [1.0; 9];
            update[8] = value;
            assert!(matches!(
                sum.add_update(&update, norm(100.0)),
                Err(LatticeError::NonFinite { index: 8, .. })
            ));
        }
        assert_eq!(sum.add_update(&[1.0; 8], norm(1.0)), Err(LatticeError::Mismatch));
        assert_eq!(sum.add_grid(&[1; 8]), Err(LatticeError::Mismatch));
        assert!(sum.add_update(&[1.0; 9], norm(1e30)).is_err());
        assert_eq!(sum, before);
    }
}
