//! The integer lattice on which every update travels: grid, norm enforcement, modulus, packing.
//!
//! A coordinate is a whole number of `step` model units, reduced modulo `2^bits`. Sums of such
//! vectors are exact, independent of order, and can be masked; see [`ModularSum`] and [`PackedSum`].

mod add;
mod pack;
mod packed_add;
mod packed_sum;
mod plan;
mod rotation;
mod sum;
mod whole;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::{packed_sum::PackedSum, plan::LatticeRequest, rotation::Rotation, sum::ModularSum};
use crate::clip::ClippingNorm;

/// The narrowest modulus, in bits.
pub const BITS_MIN: u8 = 8;
/// The widest modulus, in bits.
pub const BITS_MAX: u8 = 32;
/// The largest norm, in grid units.
const UNITS_PER_NORM_MAX: f64 = (1u64 << 52) as f64;

/// Says why values do not go on the lattice or a packed vector does not come off it.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum LatticeError {
    /// The grid step is not a usable number.
    #[error("grid step {step} is not a positive normal number")]
    Step {
        /// What was given, in model units.
        step: f64,
    },
    /// The modulus is outside the supported range.
    #[error("a modulus of {bits} bits is outside {BITS_MIN} to {BITS_MAX}")]
    Bits {
        /// What was given.
        bits: u8,
    },
    /// A planned number lies outside its range (NaN included).
    #[error("`{field}` is {value}; it must be {range}")]
    OutOfRange {
        /// The name of the parameter.
        field: &'static str,
        /// What was given.
        value: f64,
        /// What would work.
        range: &'static str,
    },
    /// The modulus cannot hold the sum without wrapping at any usable step.
    #[error(
        "{bits} bits leave {units} grid units of noise deviation, below {units_min}; use more bits \
         or fewer contributors"
    )]
    TooFewBits {
        /// The modulus in bits.
        bits: u8,
        /// Noise deviation of one contributor at the finest step, in grid units.
        units: f64,
        /// The smallest deviation that can be sampled.
        units_min: f64,
    },
    /// The norm is too many grid units for exact arithmetic.
    #[error("the norm {norm_max} is more than 2^52 steps of {step}")]
    NormTooFine {
        /// The norm in model units.
        norm_max: f64,
        /// The step in model units.
        step: f64,
    },
    /// An element is NaN or infinite.
    #[error("element {index} is {value}; nothing was quantised")]
    NonFinite {
        /// Position of the first such element.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// A packed vector has the wrong number of bytes.
    #[error("{length} packed bytes where {expected} were expected")]
    Length {
        /// Bytes given.
        length: usize,
        /// Bytes of a whole packed vector.
        expected: usize,
    },
    /// A chunk reaches beyond the packed vector.
    #[error("a chunk of {length} bytes at {offset} reaches beyond {expected} packed bytes")]
    ChunkOutOfRange {
        /// Where the chunk starts, in bytes.
        offset: usize,
        /// Bytes in the chunk.
        length: usize,
        /// Bytes of a whole packed vector.
        expected: usize,
    },
    /// The unused bits of the last byte are not zero.
    #[error("the unused bits of the last byte {byte:#010b} are not zero")]
    Padding {
        /// The last byte.
        byte: u8,
    },
    /// Two sums over different lattices or dimensions cannot be merged.
    #[error("the sums differ in lattice or dimension")]
    Mismatch,
}

/// A grid and a modulus, as both sides of the wire agree on them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "LatticeFields")]
pub struct Lattice {
    step: f64,
    bits: u8,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LatticeFields {
    step: f64,
    bits: u8,
}

impl TryFrom<LatticeFields> for Lattice {
    type Error = LatticeError;
    fn try_from(fields: LatticeFields) -> Result<Self, LatticeError> {
        Self::new(fields.step, fields.bits)
    }
}

impl Lattice {
    /// Makes a lattice of known step and modulus.
    ///
    /// - `step`: model units per grid unit
    /// - `bits`: coordinates are taken modulo `2^bits`, [`BITS_MIN`] to [`BITS_MAX`]
    ///
    /// # Errors
    /// [`LatticeError::Step`] or [`LatticeError::Bits`].
    pub fn new(step: f64, bits: u8) -> Result<Self, LatticeError> {
        if !(step.is_normal() && step > 0.0) {
            return Err(LatticeError::Step { step });
        }
        if !(BITS_MIN..=BITS_MAX).contains(&bits) {
            return Err(LatticeError::Bits { bits });
        }
        Ok(Self { step, bits })
    }

    /// Model units per grid unit.
    #[must_use]
    pub const fn step(&self) -> f64 {
        self.step
    }

    /// Width of the modulus.
    #[must_use]
    pub const fn bits(&self) -> u8 {
        self.bits
    }

    /// All `bits` ones.
    const fn mask(&self) -> u32 {
        u32::MAX >> (32 - self.bits as u32)
    }

    /// Rounds an update to the grid with its L2 norm enforced in integer arithmetic.
    ///
    /// Every element is rounded to the nearest grid point. If the integer vector is then longer
    /// than `norm_max`, elements are truncated towards zero instead; if the update itself was too
    /// long (float clipping leaves a few units in the last place), it is scaled down until the
    /// integers fit. The returned vector `v` always meets `‖v‖₂ step <= norm_max`, checked on
    /// integers, so the sensitivity is exact whatever the floats did.
    ///
    /// - `update`: shape `[dimension]`, model units
    /// - `norm_max`: model units
    /// - returns: shape `[dimension]`, grid units
    ///
    /// # Errors
    /// [`LatticeError::NonFinite`] on NaN or infinity, [`LatticeError::NormTooFine`] if `norm_max`
    /// is more than 2^52 steps.
    pub fn quantize(
        &self,
        update: &[f32],
        norm_max: ClippingNorm,
    ) -> Result<Vec<i64>, LatticeError> {
        if let Some(index) = update.iter().position(|value| !value.is_finite()) {
            return Err(LatticeError::NonFinite { index, value: update[index] });
        }
        let (norm_max, step) = (norm_max.value(), self.step);
        let units = norm_max / step;
        if units > UNITS_PER_NORM_MAX {
            return Err(LatticeError::NormTooFine { norm_max, step });
        }
        // Rounded down by more than the two f64 operations can have rounded up.
        let squared_max = (units * units * (1.0 - 4.0 * f64::EPSILON)) as u128;
        let inverse = step.recip();
        let on_grid = |factor: f64, round: fn(f64) -> f64| -> Option<Vec<i64>> {
            let factor = factor * inverse;
            let mut squared = 0u128;
            let mut grid = Vec::with_capacity(update.len());
            for &value in update {
                let rounded = round(f64::from(value) * factor);
                // Larger elements alone exceed any norm, and their squares must not overflow.
                if rounded.abs() > UNITS_PER_NORM_MAX {
                    return None;
                }
                let coordinate = rounded as i64;
                squared += u128::from(coordinate.unsigned_abs()).pow(2);
                grid.push(coordinate);
            }
            (squared <= squared_max).then_some(grid)
        };
        if let Some(grid) = on_grid(1.0, f64::round_ties_even) {
            return Ok(grid);
        }
        let norm = update.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
        let mut factor = (norm_max / norm).min(1.0);
        let mut shrink = 2.0_f64.powi(-48);
        loop {
            if let Some(grid) = on_grid(factor, f64::trunc) {
                return Ok(grid);
            }
            factor *= 1.0 - shrink;
            shrink = (shrink * 4.0).min(0.5);
        }
    }

    /// The sum in model units, from coordinates modulo `2^bits`.
    ///
    /// Takes the representative in `-2^(bits-1)..2^(bits-1)`, which is the true sum unless it
    /// wrapped; see [`Lattice::plan`].
    ///
    /// - `sum`: shape `[dimension]`, as [`ModularSum::values`] gives it
    #[must_use]
    pub fn dequantize_sum(&self, sum: &[u32]) -> Vec<f64> {
        let mut values = vec![0.0; sum.len()];
        self.dequantize_sum_into(sum, &mut values);
        values
    }

    /// [`dequantize_sum`](Self::dequantize_sum) into memory that is there.
    ///
    /// - `values`: overwritten, shape `[dimension]`
    pub fn dequantize_sum_into(&self, sum: &[u32], values: &mut [f64]) {
        debug_assert_eq!(sum.len(), values.len());
        let unused = 32 - u32::from(self.bits);
        // Moving the sign bit to the top and back extends it.
        let centred = |value: u32| (value << unused).cast_signed() >> unused;
        for (value, &units) in values.iter_mut().zip(sum) {
            *value = f64::from(centred(units)) * self.step;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn norm(value: f64) -> ClippingNorm {
        ClippingNorm::new(value).expect("positive")
    }

    #[test]
    fn bad_lattices_are_named() {
        for step in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-320] {
            assert!(matches!(Lattice::new(step, 16), Err(LatticeError::Step { .. })));
        }
        for bits in [0, 7, 33, 255] {
            assert_eq!(Lattice::new(1.0, bits), Err(LatticeError::Bits { bits }));
        }
        assert!(serde_json::from_str::<Lattice>(r#"{"step":0.5,"bits":40}"#).is_err());
        let lattice: Lattice = serde_json::from_str(r#"{"step":0.5,"bits":20}"#).expect("valid");
        assert_eq!(lattice, Lattice::new(0.5, 20).expect("valid"));
    }

    #[test]
    fn non_finite_elements_are_refused() {
        let lattice = Lattice::new(0.1, 16).expect("valid");
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = lattice.quantize(&[0.0, value], norm(1.0)).expect_err("not finite");
            assert!(matches!(error, LatticeError::NonFinite { index: 1, .. }));
        }
        assert!(matches!(
            Lattice::new(1e-20, 16).expect("valid").quantize(&[0.0], norm(1.0)),
            Err(LatticeError::NormTooFine { .. })
        ));
    }

    #[test]
    fn a_zero_or_empty_update_stays_so() {
        let lattice = Lattice::new(0.1, 16).expect("valid");
        assert_eq!(lattice.quantize(&[0.0; 3], norm(1.0)), Ok(vec![0; 3]));
        assert_eq!(lattice.quantize(&[], norm(1.0)), Ok(vec![]));
    }

    #[test]
    fn absurd_elements_end_within_the_norm() {
        let lattice = Lattice::new(1e-3, 32).expect("valid");
        let grid = lattice.quantize(&[f32::MAX, f32::MIN, f32::MIN_POSITIVE], norm(1.0));
        let grid = grid.expect("finite");
        assert!(grid[0] > 700 && grid[0] <= 708 && grid[1] == -grid[0] && grid[2] == 0);
    }

    proptest! {
        #[test]
        fn the_integer_norm_never_exceeds_the_bound(
            mut update in prop::collection::vec(-1e3f32..1e3, 1..200),
            step in 1e-6f64..10.0,
            norm_max in 1e-2f64..1e4,
        ) {
            let lattice = Lattice::new(step, 16).expect("valid");
            let unclipped = lattice.quantize(&update, norm(norm_max)).expect("finite");
            crate::clip::clip_l2(&mut update, norm(norm_max)).expect("finite");
            let clipped = lattice.quantize(&update, norm(norm_max)).expect("finite");
            for grid in [&unclipped, &clipped] {
                let squared: i128 = grid.iter().map(|&v| i128::from(v).pow(2)).sum();
                prop_assert!((squared as f64).sqrt() <= norm_max / step * (1.0 + 1e-15));
            }
            for (&value, &units) in update.iter().zip(&clipped) {
                prop_assert!((f64::from(value) / step - units as f64).abs() <= 1.0 + 1e-6 / step);
            }
        }

        #[test]
        fn sums_decode_to_the_integer_sum(
            rows in prop::collection::vec(prop::collection::vec(-100i64..=100, 7), 1..6),
            bits in 11u8..=32,
        ) {
            let lattice = Lattice::new(0.25, bits).expect("valid");
            let mut sum = ModularSum::new(lattice, 7);
            for row in &rows {
                sum.add_packed(&lattice.pack(row)).expect("well formed");
            }
            let decoded = lattice.dequantize_sum(sum.values());
            for (index, value) in decoded.iter().enumerate() {
                let expected: i64 = rows.iter().map(|row| row[index]).sum();
                prop_assert_eq!(*value, expected as f64 * 0.25);
            }
        }
    }
}
