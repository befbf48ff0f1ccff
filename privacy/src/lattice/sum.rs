//! Summing packed updates modulo `2^bits`, coordinate by coordinate.

use std::fmt;

use super::{Lattice, LatticeError, add::add_all};

/// The running sum of packed updates: memory is one `u32` a coordinate, however many are added.
///
/// Addition modulo `2^bits` is exact and commutes, so neither the order of updates nor the way partial
/// sums are merged can change a bit of the result. Who only adds needs less with a [`PackedSum`].
///
/// [`PackedSum`]: super::PackedSum
#[derive(Clone, PartialEq)]
pub struct ModularSum {
    pub(super) lattice: Lattice,
    pub(super) values: Vec<u32>,
}

impl ModularSum {
    /// Starts at zero.
    ///
    /// - `dimension`: number of coordinates
    #[must_use]
    pub fn new(lattice: Lattice, dimension: usize) -> Self {
        Self { lattice, values: vec![0; dimension] }
    }

    /// Starts again at zero, in the same memory.
    pub fn clear(&mut self) {
        self.values.fill(0);
    }

    /// The lattice that the updates are on.
    #[must_use]
    pub const fn lattice(&self) -> Lattice {
        self.lattice
    }

    /// The sum, shape `[dimension]`, each below `2^bits`.
    #[must_use]
    pub fn values(&self) -> &[u32] {
        &self.values
    }

    /// The sum, for masks to be taken off in place; every value stays below `2^bits`.
    pub(crate) fn values_mut(&mut self) -> &mut [u32] {
        &mut self.values
    }

    /// Adds one whole packed update.
    ///
    /// # Errors
    /// [`LatticeError::Length`] or [`LatticeError::Padding`]; the sum is then unchanged.
    pub fn add_packed(&mut self, bytes: &[u8]) -> Result<(), LatticeError> {
        let expected = self.lattice.packed_len(self.values.len());
        if bytes.len() != expected {
            return Err(LatticeError::Length { length: bytes.len(), expected });
        }
        self.lattice.check_chunk(self.values.len(), 0, bytes)?;
        add_all(self.lattice, &mut self.values, bytes);
        Ok(())
    }

    /// Adds another partial sum over the same lattice and dimension.
    ///
    /// # Errors
    /// [`LatticeError::Mismatch`]; the sum is then unchanged.
    pub fn merge(&mut self, other: &Self) -> Result<(), LatticeError> {
        if self.lattice != other.lattice || self.values.len() != other.values.len() {
            return Err(LatticeError::Mismatch);
        }
        self.add_values(&other.values)
    }

    /// Adds another partial sum, which starts again at zero: [`merge`](Self::merge) and
    /// [`clear`](Self::clear) in one pass.
    ///
    /// # Errors
    /// [`LatticeError::Mismatch`]; both sums are then unchanged.
    pub fn absorb(&mut self, other: &mut Self) -> Result<(), LatticeError> {
        if self.lattice != other.lattice || self.values.len() != other.values.len() {
            return Err(LatticeError::Mismatch);
        }
        let mask = self.lattice.mask();
        for (value, other) in self.values.iter_mut().zip(&mut other.values) {
            *value = value.wrapping_add(std::mem::take(other)) & mask;
        }
        Ok(())
    }

    /// Adds the values of a partial sum over the same lattice, from another process for example.
    ///
    /// - `values`: shape `[dimension]`; reduced modulo `2^bits`
    ///
    /// # Errors
    /// [`LatticeError::Mismatch`] for another dimension; the sum is then unchanged.
    pub fn add_values(&mut self, values: &[u32]) -> Result<(), LatticeError> {
        if self.values.len() != values.len() {
            return Err(LatticeError::Mismatch);
        }
        let mask = self.lattice.mask();
        for (value, &addend) in self.values.iter_mut().zip(values) {
            *value = value.wrapping_add(addend) & mask;
        }
        Ok(())
    }
}

impl fmt::Debug for ModularSum {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ModularSum")
            .field("lattice", &self.lattice)
            .field("dimension", &self.values.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::lattice::{BITS_MAX, BITS_MIN};

    #[test]
    fn malformed_updates_leave_the_sum_unchanged() {
        let lattice = Lattice::new(1.0, 12).expect("valid");
        let mut sum = ModularSum::new(lattice, 3);
        sum.add_packed(&lattice.pack(&[1, 2, 3])).expect("well formed");
        let before = sum.clone();
        assert_eq!(sum.add_packed(&[0; 4]), Err(LatticeError::Length { length: 4, expected: 5 }));
        assert_eq!(sum.add_packed(&[1, 1, 1, 1, 0x10]), Err(LatticeError::Padding { byte: 0x10 }));
        let mut other = ModularSum::new(lattice, 4);
        assert_eq!(sum.merge(&other), Err(LatticeError::Mismatch));
        assert_eq!(sum.absorb(&mut other), Err(LatticeError::Mismatch));
        assert_eq!(sum, before);
        assert_eq!(ModularSum::new(lattice, 0).add_packed(&[]), Ok(()));
    }

    proptest! {
        #[test]
        fn a_packed_update_adds_its_values_at_every_width(
            values in prop::collection::vec(any::<i64>(), 1..200),
        ) {
            for bits in BITS_MIN..=BITS_MAX {
                let lattice = Lattice::new(1.0, bits).expect("valid");
                let packed = lattice.pack(&values);
                prop_assert_eq!(packed.len(), lattice.packed_len(values.len()));
                let mut sum = ModularSum::new(lattice, values.len());
                sum.add_packed(&packed).expect("well formed");
                let expected: Vec<u32> =
                    values.iter().map(|&v| v as u32 & lattice.mask()).collect();
                prop_assert_eq!(sum.values(), &expected[..], "{} bits", bits);
            }
        }

        #[test]
        fn order_and_merging_do_not_matter(
            rows in prop::collection::vec(prop::collection::vec(any::<i64>(), 5), 2..8),
            bits in 8u8..=32,
        ) {
            let lattice = Lattice::new(1.0, bits).expect("valid");
            let sum = |rows: &mut dyn Iterator<Item = &Vec<i64>>| {
                let mut sum = ModularSum::new(lattice, 5);
                for row in rows {
                    sum.add_packed(&lattice.pack(row)).expect("well formed");
                }
                sum
            };
            let forward = sum(&mut rows.iter());
            prop_assert_eq!(&sum(&mut rows.iter().rev()), &forward);
            let mut merged = sum(&mut rows[..1].iter());
            merged.merge(&sum(&mut rows[1..].iter())).expect("same lattice");
            prop_assert_eq!(&merged, &forward);
            let (mut absorbed, mut other) = (sum(&mut rows[1..].iter()), sum(&mut rows[..1].iter()));
            absorbed.absorb(&mut other).expect("same lattice");
            prop_assert_eq!(&absorbed, &forward);
            prop_assert_eq!(other, ModularSum::new(lattice, 5));
            let mut values = sum(&mut rows[..1].iter());
            values.add_values(sum(&mut rows[1..].iter()).values()).expect("same dimension");
            prop_assert_eq!(values, forward);
            prop_assert!(merged.add_values(&[0; 4]).is_err());
        }
    }
}
