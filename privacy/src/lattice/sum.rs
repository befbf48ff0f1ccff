//! Summing packed updates modulo `2^bits`, whole or in chunks.

use std::fmt;

use super::{
    Lattice, LatticeError,
    add::{GROUP, add_groups},
};

/// The running sum of packed updates: memory is one `u32` a coordinate, however many are added.
///
/// Addition modulo `2^bits` is exact and commutes, so neither the order of updates and chunks nor
/// the way partial sums are merged can change a bit of the result.
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
        self.add_chunk(0, bytes)
    }

    /// Adds some bytes of a packed update; all chunks of it add up to [`add_packed`] of the whole.
    ///
    /// A coordinate cut by a chunk's border is added in parts, which is the same modulo `2^bits`;
    /// so chunks need no alignment. The caller makes sure that each byte is added exactly once and
    /// that the update is complete before the sum is used.
    ///
    /// - `first_byte`: offset of `bytes` within the packed update
    ///
    /// # Errors
    /// [`LatticeError::ChunkOutOfRange`] or [`LatticeError::Padding`]; the sum is then unchanged.
    ///
    /// [`add_packed`]: Self::add_packed
    pub fn add_chunk(&mut self, first_byte: usize, bytes: &[u8]) -> Result<(), LatticeError> {
        let dimension = self.values.len();
        let expected = self.lattice.packed_len(dimension);
        let (offset, length) = (first_byte, bytes.len());
        match offset.checked_add(length) {
            Some(end) if end <= expected => self.check_padding(end == expected, bytes)?,
            _ => return Err(LatticeError::ChunkOutOfRange { offset, length, expected }),
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let width = usize::from(self.lattice.bits);
        let end = offset + length;
        // Groups that lie in the chunk whole; what is left of others is added bit by bit.
        let groups = offset.div_ceil(width)..(end / width).min(dimension / GROUP);
        if groups.is_empty() {
            self.add_bits(offset, bytes);
            return Ok(());
        }
        let (first, last) = (groups.start * width - offset, groups.end * width - offset);
        let coordinates = groups.start * GROUP..groups.end * GROUP;
        self.add_bits(offset, &bytes[..first]);
        add_groups(self.lattice, &mut self.values[coordinates], &bytes[first..last]);
        self.add_bits(offset + last, &bytes[last..]);
        Ok(())
    }

    /// Adds bytes whatever they cut, coordinate by coordinate.
    fn add_bits(&mut self, offset: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let dimension = self.values.len();
        let width = usize::from(self.lattice.bits);
        let mask = self.lattice.mask();
        let bits = offset * 8..(offset + bytes.len()) * 8;
        let first = bits.start / width;
        let last = bits.end.div_ceil(width).min(dimension);
        for (index, value) in self.values[first..last.max(first)].iter_mut().enumerate() {
            let start = (first + index) * width;
            // The part of the coordinate that lies in this chunk, and where it sits within it.
            let part_start = start.max(bits.start);
            let part_bits = (start + width).min(bits.end) - part_start;
            let position = part_start - bits.start;
            let part = read_bits(bytes, position) & (u64::MAX >> (64 - part_bits));
            let addend = (part << (part_start - start)) as u32;
            *value = value.wrapping_add(addend) & mask;
        }
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

    fn check_padding(&self, reaches_end: bool, bytes: &[u8]) -> Result<(), LatticeError> {
        let used = (self.values.len() * usize::from(self.lattice.bits)) % 8;
        match bytes.last() {
            Some(&byte) if reaches_end && used > 0 && byte >> used != 0 => {
                Err(LatticeError::Padding { byte })
            }
            _ => Ok(()),
        }
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

/// At least 57 bits of `bytes` from bit `position` on; zeros beyond the end.
fn read_bits(bytes: &[u8], position: usize) -> u64 {
    let byte = position / 8;
    let word = match bytes.get(byte..byte + 8) {
        Some(whole) => u64::from_le_bytes(whole.try_into().expect("eight bytes")),
        None => {
            let mut padded = [0u8; 8];
            let rest = &bytes[byte..];
            padded[..rest.len()].copy_from_slice(rest);
            u64::from_le_bytes(padded)
        }
    };
    word >> (position % 8)
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
        let out_of_range = LatticeError::ChunkOutOfRange { offset: 4, length: 2, expected: 5 };
        assert_eq!(sum.add_chunk(4, &[0; 2]), Err(out_of_range));
        assert!(sum.add_chunk(usize::MAX, &[0; 2]).is_err());
        assert_eq!(sum.add_chunk(4, &[0x10]), Err(LatticeError::Padding { byte: 0x10 }));
        let mut other = ModularSum::new(lattice, 4);
        assert_eq!(sum.merge(&other), Err(LatticeError::Mismatch));
        assert_eq!(sum.absorb(&mut other), Err(LatticeError::Mismatch));
        assert_eq!(sum, before);
        assert_eq!(sum.add_chunk(5, &[]), Ok(()));
        assert_eq!(ModularSum::new(lattice, 0).add_packed(&[]), Ok(()));
    }

    proptest! {
        #[test]
        fn chunks_of_any_cut_equal_the_whole_at_every_width(
            values in prop::collection::vec(any::<i64>(), 1..200),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
        ) {
            for bits in BITS_MIN..=BITS_MAX {
                let lattice = Lattice::new(1.0, bits).expect("valid");
                let packed = lattice.pack(&values);
                prop_assert_eq!(packed.len(), lattice.packed_len(values.len()));
                let mut whole = ModularSum::new(lattice, values.len());
                whole.add_packed(&packed).expect("well formed");
                let expected: Vec<u32> =
                    values.iter().map(|&v| v as u32 & lattice.mask()).collect();
                prop_assert_eq!(whole.values(), &expected[..], "{} bits", bits);

                let mut borders: Vec<usize> =
                    cuts.iter().map(|cut| cut.index(packed.len())).collect();
                borders.extend([0, packed.len()]);
                borders.sort_unstable();
                let mut pieces = ModularSum::new(lattice, values.len());
                // Backwards, as the order does not matter.
                for border in borders.windows(2).rev() {
                    pieces.add_chunk(border[0], &packed[border[0]..border[1]]).expect("in range");
                }
                prop_assert_eq!(&pieces, &whole, "{} bits", bits);
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
