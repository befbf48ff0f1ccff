//! Bit packing: coordinate i occupies bits `i * bits .. (i + 1) * bits`, little endian.

use super::{Lattice, LatticeError};

impl Lattice {
    /// Bytes of a packed vector.
    ///
    /// - `dimension`: number of coordinates
    #[must_use]
    pub const fn packed_len(&self, dimension: usize) -> usize {
        // In u128 so that no dimension can overflow.
        (dimension as u128 * self.bits as u128).div_ceil(8) as usize
    }

    /// Checks that some bytes can be a chunk of a packed vector.
    ///
    /// # Errors
    /// [`LatticeError::ChunkOutOfRange`], or [`LatticeError::Padding`] if it reaches the end and sets bits
    /// beyond the last coordinate.
    pub(super) fn check_chunk(
        &self,
        dimension: usize,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), LatticeError> {
        let (expected, length) = (self.packed_len(dimension), bytes.len());
        let end = offset.checked_add(length).filter(|&end| end <= expected);
        let end = end.ok_or(LatticeError::ChunkOutOfRange { offset, length, expected })?;
        let used = dimension * usize::from(self.bits) % 8;
        match bytes.last() {
            Some(&byte) if end == expected && used > 0 && byte >> used != 0 => {
                Err(LatticeError::Padding { byte })
            }
            _ => Ok(()),
        }
    }

    /// Reduces modulo `2^bits` and packs; the unused bits of the last byte are zero.
    ///
    /// - `values`: shape `[dimension]`, grid units
    /// - returns: [`packed_len`](Self::packed_len) bytes
    #[must_use]
    pub fn pack(&self, values: &[i64]) -> Vec<u8> {
        let mask = u64::from(self.mask());
        let mut bytes = Vec::with_capacity(self.packed_len(values.len()));
        let (mut pending, mut filled) = (0u64, 0u32);
        for value in values {
            // At most 7 bits are pending, so 39 are used.
            pending |= (value.cast_unsigned() & mask) << filled;
            filled += u32::from(self.bits);
            while filled >= 8 {
                bytes.push(pending as u8);
                pending >>= 8;
                filled -= 8;
            }
        }
        if filled > 0 {
            bytes.push(pending as u8);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Independent of the implementation: written out by hand.
    #[test]
    fn packing_has_this_exact_form() {
        let lattice = Lattice::new(1.0, 12).expect("valid");
        assert_eq!(lattice.pack(&[0x123, -1, 0xabc]), [0x23, 0xf1, 0xff, 0xbc, 0x0a]);
        assert_eq!(lattice.packed_len(3), 5);
        let lattice = Lattice::new(1.0, 32).expect("valid");
        assert_eq!(lattice.pack(&[-2, 1 << 32]), [0xfe, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
        assert!(lattice.pack(&[]).is_empty());
    }
}
