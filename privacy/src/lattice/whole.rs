//! Adding whole updates where they were made, without packing them.

use pulp::{Arch, Simd, WithSimd};

use super::{LatticeError, ModularSum, UNITS_PER_NORM_MAX};
use crate::clip::{ClippingNorm, LANES, in_lanes};

/// Adding it to a number of at most 2^51 in magnitude leaves the nearest integer (ties to even) in
/// the low bits: a rounding that every processor does four or eight at a time.
const ROUNDING: f64 = 1.5 * (1_u64 << 52) as f64;
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
        if self.add_unclipped(update, norm_max).is_some() {
            return Ok(());
        }
        self.add_grid(&self.lattice.quantize(update, norm_max)?)
    }

    /// Adds an update that needs no clipping, in one pass over both: the same as
    /// [`clip_l2`](crate::clip::clip_l2) and [`add_update`](Self::add_update).
    ///
    /// - `update`: shape `[dimension]`, model units
    /// - `norm_max`: model units
    /// - returns: the update's norm, model units; `None`, with the sum unchanged, if the update is
    ///   longer, not finite, of another dimension, or so close to the norm that the grid decides
    pub fn add_unclipped(&mut self, update: &[f32], norm_max: ClippingNorm) -> Option<f64> {
        if update.len() != self.values.len() {
            return None;
        }
        let units = norm_max.value() / self.lattice.step();
        let [own, on_grid] = self.add_rounded(update, false);
        let norm = own.sqrt();
        // Not finite, too long, or too close to tell in floats: take it back.
        if units <= UNITS_PER_NORM_MAX / 2.0
            && on_grid <= units * units * (1.0 - MARGIN)
            && norm <= norm_max.value()
        {
            return Some(norm);
        }
        self.add_rounded(update, true);
        None
    }

    /// Adds or takes away the nearest grid points; returns the sums of squares of the update and of
    /// the grid points, in model units and grid units.
    ///
    /// An element beyond 2^51 grid units gives nonsense but, as the same nonsense both times, can
    /// be taken away again; its square tells.
    fn add_rounded(&mut self, update: &[f32], take_away: bool) -> [f64; 2] {
        let (mask, inverse) = (self.lattice.mask(), self.lattice.step().recip());
        let values = &mut self.values;
        Arch::new().dispatch(Rounded { values, update, mask, inverse, take_away })
    }
}

/// What [`ModularSum::add_rounded`] does, for every width of vectors.
struct Rounded<'a> {
    values: &'a mut [u32],
    update: &'a [f32],
    mask: u32,
    inverse: f64,
    take_away: bool,
}

impl WithSimd for Rounded<'_> {
    type Output = [f64; 2];

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> [f64; 2] {
        let Self { values, update, mask, inverse, take_away } = self;
        let rounding = Rounding { mask, inverse, sign: if take_away { u32::MAX } else { 0 } };
        let mut squares = [[0.0; LANES]; 2];
        let (whole, rest) = values.as_chunks_mut();
        let (elements, last) = update.as_chunks();
        for (values, elements) in whole.iter_mut().zip(elements) {
            rounding.chunk(values, elements, &mut squares);
        }
        // Filled up with zeros, which add nothing to sums and squares.
        let (mut padded, mut filled) = ([0; LANES], [0.0; LANES]);
        padded[..rest.len()].copy_from_slice(rest);
        filled[..last.len()].copy_from_slice(last);
        rounding.chunk(&mut padded, &filled, &mut squares);
        rest.copy_from_slice(&padded[..rest.len()]);
        squares.map(|lanes| lanes.iter().sum())
    }
}

/// What is the same for all elements.
#[derive(Clone, Copy)]
struct Rounding {
    mask: u32,
    inverse: f64,
    /// All ones turn units into their negative, which is their complement and one more.
    sign: u32,
}

impl Rounding {
    // Not a closure, which would keep to the instructions that every processor has.
    #[inline(always)]
    fn chunk(
        self,
        values: &mut [u32; LANES],
        elements: &[f32; LANES],
        [own, on_grid]: &mut [[f64; LANES]; 2],
    ) {
        in_lanes(own, elements);
        for ((value, &element), lane) in values.iter_mut().zip(elements).zip(on_grid) {
            let shifted = f64::from(element) * self.inverse + ROUNDING;
            let rounded = shifted - ROUNDING;
            *lane += rounded * rounded;
            let units = (shifted.to_bits() as u32 ^ self.sign).wrapping_sub(self.sign);
            *value = value.wrapping_add(units) & self.mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{clip::clip_l2, lattice::Lattice};

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

        #[test]
        fn an_update_that_needs_no_clipping_adds_as_a_clipped_one(
            update in prop::collection::vec(-1f32..1.0, 0..100),
            norm_max in 1f64..8.0,
        ) {
            let lattice = Lattice::new(1e-3, 24).expect("valid");
            let mut sum = ModularSum::new(lattice, update.len());
            sum.add_update(&vec![0.25; update.len()], norm(1e3)).expect("finite");
            let mut apart = sum.clone();
            let mut clipped = update.clone();
            let before = clip_l2(&mut clipped, norm(norm_max)).expect("finite");
            apart.add_update(&clipped, norm(norm_max)).expect("finite");
            match sum.add_unclipped(&update, norm(norm_max)) {
                Some(found) => prop_assert_eq!(found, before),
                None => {
                    // Only what clipping or the grid may shorten.
                    prop_assert!(before > norm_max * 0.99);
                    sum.add_update(&clipped, norm(norm_max)).expect("finite");
                }
            }
            prop_assert_eq!(sum, apart);
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
            assert_eq!(sum.add_unclipped(&update, norm(100.0)), None);
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
