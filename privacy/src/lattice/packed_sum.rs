//! Summing packed updates without unpacking them.

use std::fmt;

use super::{
    Lattice, LatticeError, ModularSum,
    add::add_all,
    packed_add::{WORD, add_words},
};

/// The running sum of packed updates, packed as they are: memory is that of one update, however many are
/// added, and an addition passes over no more than that.
///
/// Like [`ModularSum`] it is exact and depends neither on the order of updates nor on how they are cut.
///
/// Source of the addition within a word: Warren 2012, "Hacker's Delight", section 2-18; here coordinates
/// may lie across two words.
#[derive(Clone, PartialEq)]
pub struct PackedSum {
    lattice: Lattice,
    dimension: usize,
    /// Coordinate i is in bits `i * bits .. (i + 1) * bits`, the lowest of the first word first.
    words: Vec<u64>,
    /// Of each word the bits that are not the top of a coordinate: a block from any word on.
    below: Vec<u64>,
}

impl PackedSum {
    /// Starts at zero.
    ///
    /// - `dimension`: number of coordinates
    #[must_use]
    pub fn new(lattice: Lattice, dimension: usize) -> Self {
        let words = vec![0; lattice.packed_len(dimension).div_ceil(WORD)];
        Self { lattice, dimension, words, below: below_tops(usize::from(lattice.bits)) }
    }

    /// Adds some bytes of a packed update; all chunks of it add up to the whole.
    ///
    /// Chunks need no alignment, and one that cuts a coordinate adds its part. The caller makes sure
    /// that each byte is added exactly once and that the update is complete before the sum is used.
    ///
    /// - `first_byte`: offset of `bytes` within the packed update
    ///
    /// # Errors
    /// [`LatticeError::ChunkOutOfRange`] or [`LatticeError::Padding`]; the sum is then unchanged.
    pub fn add_chunk(&mut self, first_byte: usize, bytes: &[u8]) -> Result<(), LatticeError> {
        self.lattice.check_chunk(self.dimension, first_byte, bytes)?;
        // A word that began before the chunk, whole ones, and one that the chunk does not end.
        let skipped = first_byte % WORD;
        let head = if skipped == 0 { 0 } else { bytes.len().min(WORD - skipped) };
        let (head, rest) = bytes.split_at(head);
        let (whole, tail) = rest.as_chunks::<WORD>();
        let head = (!head.is_empty()).then(|| padded(skipped, head));
        let tail = (!tail.is_empty()).then(|| padded(0, tail));
        let blocks = [head.as_slice()].into_iter().chain(whole.chunks(BLOCK));
        let (mut at, mut carry) = (first_byte / WORD, 0);
        for words in blocks.chain([tail.as_slice()]) {
            carry = self.add(at, words, carry);
            at += words.len();
        }
        if carry > 0 {
            // Into the rest of a coordinate that the chunk cuts; the top of that is in this word.
            let _ = self.add(at, &[[0; WORD]], carry);
        }
        Ok(())
    }

    /// Adds some words.
    ///
    /// - `first`: index of the first one
    /// - `carry`: 1 or 0 of the word before
    /// - returns: that of the last word
    fn add(&mut self, first: usize, words: &[[u8; WORD]], carry: u64) -> u64 {
        let sums = &mut self.words[first..first + words.len()];
        // After as many words as a coordinate has bits, the places of coordinates repeat.
        let below = &self.below[first % usize::from(self.lattice.bits)..];
        add_words(sums, words, below, carry)
    }

    /// The sum with a word for each coordinate.
    #[must_use]
    pub fn unpack(&self) -> ModularSum {
        let mut sum = ModularSum::new(self.lattice, self.dimension);
        // As many words as a coordinate has bits hold whole coordinates, one for each bit of a word.
        let width = usize::from(self.lattice.bits);
        let mut bytes = vec![[0; WORD]; UNPACKED * width];
        let values = sum.values_mut().chunks_mut(UNPACKED * u64::BITS as usize);
        for (values, words) in values.zip(self.words.chunks(UNPACKED * width)) {
            bytes.iter_mut().zip(words).for_each(|(place, word)| *place = word.to_le_bytes());
            let length = self.lattice.packed_len(values.len());
            add_all(self.lattice, values, &bytes.as_flattened()[..length]);
        }
        sum
    }
}

impl fmt::Debug for PackedSum {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PackedSum")
            .field("lattice", &self.lattice)
            .field("dimension", &self.dimension)
            .finish_non_exhaustive()
    }
}

/// Words that are added in one go: few enough for the masks to stay in the first-level cache.
const BLOCK: usize = 512;

/// What is unpacked in one go, in words for each bit of a coordinate.
const UNPACKED: usize = 64;

/// A word of an update of which only some bytes are at hand.
fn padded(skipped: usize, bytes: &[u8]) -> [u8; WORD] {
    let mut word = [0; WORD];
    word[skipped..skipped + bytes.len()].copy_from_slice(bytes);
    word
}

/// Which bits of each word are not the top of a coordinate, for a block that begins at any place of one.
fn below_tops(width: usize) -> Vec<u64> {
    let mut masks = vec![u64::MAX; width + BLOCK];
    let bits = masks.len() * u64::BITS as usize;
    for top in (width - 1..bits).step_by(width) {
        masks[top / 64] &= !(1 << (top % 64));
    }
    masks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::lattice::{BITS_MAX, BITS_MIN};

    #[test]
    fn malformed_chunks_leave_the_sum_unchanged() {
        let lattice = Lattice::new(1.0, 12).expect("valid");
        let mut sum = PackedSum::new(lattice, 3);
        sum.add_chunk(0, &lattice.pack(&[1, 2, 3])).expect("well formed");
        let before = sum.clone();
        let out_of_range = LatticeError::ChunkOutOfRange { offset: 4, length: 2, expected: 5 };
        assert_eq!(sum.add_chunk(4, &[0; 2]), Err(out_of_range));
        assert!(sum.add_chunk(usize::MAX, &[0; 2]).is_err());
        assert_eq!(sum.add_chunk(4, &[0x10]), Err(LatticeError::Padding { byte: 0x10 }));
        assert_eq!(sum, before);
        assert_eq!(sum.add_chunk(5, &[]), Ok(()));
        assert_eq!(PackedSum::new(lattice, 0).add_chunk(0, &[]), Ok(()));
    }

    proptest! {
        #[test]
        fn packed_and_unpacked_sums_are_the_same_at_every_width_and_cut(
            updates in prop::collection::vec(prop::collection::vec(any::<i64>(), 150), 1..5),
            dimension in 0..150_usize,
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            for bits in BITS_MIN..=BITS_MAX {
                let lattice = Lattice::new(1.0, bits).expect("valid");
                let mut packed = PackedSum::new(lattice, dimension);
                let mut expected = ModularSum::new(lattice, dimension);
                for update in &updates {
                    let bytes = lattice.pack(&update[..dimension]);
                    expected.add_packed(&bytes).expect("well formed");
                    let ends = bytes.len() + 1;
                    let mut borders: Vec<usize> = cuts.iter().map(|cut| cut.index(ends)).collect();
                    borders.extend([0, bytes.len()]);
                    borders.sort_unstable();
                    for border in borders.windows(2).rev() {
                        packed.add_chunk(border[0], &bytes[border[0]..border[1]]).expect("in range");
                    }
                }
                prop_assert_eq!(packed.unpack(), expected, "{} bits", bits);
            }
        }
    }

    /// Longer than a block, and every coordinate carries.
    #[test]
    fn carries_pass_from_block_to_block() {
        for bits in BITS_MIN..=BITS_MAX {
            let lattice = Lattice::new(1.0, bits).expect("valid");
            let dimension = 3 * BLOCK * 64 / usize::from(bits);
            let bytes = lattice.pack(&vec![-1; dimension]);
            let (mut packed, mut plain) =
                (PackedSum::new(lattice, dimension), ModularSum::new(lattice, dimension));
            for _ in 0..3 {
                packed.add_chunk(0, &bytes).expect("well formed");
                plain.add_packed(&bytes).expect("well formed");
            }
            assert_eq!(packed.unpack(), plain, "{bits} bits");
        }
    }
}
