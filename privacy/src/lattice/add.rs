//! Adding whole groups of packed coordinates: eight of them are `bits` bytes, so every group begins
//! at a byte.
//!
//! On x86-64 with AVX2 a group is a byte shuffle, a shift and an addition, and for moduli of 26 to 31
//! bits, whose coordinates may touch five bytes, a second shuffle for the fifth. Elsewhere it is eight
//! shifts of words.

use super::{BITS_MAX, Lattice};

/// Coordinates of a group.
const GROUP: usize = 8;

/// Adds packed coordinates to a part of a sum, modulo `2^bits`.
///
/// - `values`: shape `[dimension]`, each below `2^bits`
/// - `bytes`: those coordinates, from a byte's begin on; bits beyond the last one are zero
pub(super) fn add_all(lattice: Lattice, values: &mut [u32], bytes: &[u8]) {
    debug_assert_eq!(bytes.len(), lattice.packed_len(values.len()));
    let whole = values.len() / GROUP;
    let (values, rest) = values.split_at_mut(whole * GROUP);
    let (bytes, rest_bytes) = bytes.split_at(whole * usize::from(lattice.bits));
    add_groups(lattice, values, bytes);
    if !rest.is_empty() {
        let (mut group, mut packed) = ([0; GROUP], [0; BITS_MAX as usize]);
        group[..rest.len()].copy_from_slice(rest);
        packed[..rest_bytes.len()].copy_from_slice(rest_bytes);
        add_groups(lattice, &mut group, &packed[..usize::from(lattice.bits)]);
        rest.copy_from_slice(&group[..rest.len()]);
    }
}

/// Adds packed groups to a part of a sum, modulo `2^bits`.
///
/// - `values`: shape `[GROUP * groups]`, each below `2^bits`
/// - `bytes`: `bits` bytes a group
fn add_groups(lattice: Lattice, values: &mut [u32], bytes: &[u8]) {
    debug_assert_eq!(values.len() / GROUP * usize::from(lattice.bits), bytes.len());
    if lattice.bits == 32 {
        let (words, _) = bytes.as_chunks::<4>();
        for (value, &word) in values.iter_mut().zip(words) {
            *value = value.wrapping_add(u32::from_le_bytes(word));
        }
        return;
    }
    #[cfg(target_arch = "x86_64")]
    let done = avx2::add(lattice, values, bytes);
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    let width = usize::from(lattice.bits);
    add_words(lattice, &mut values[done * GROUP..], &bytes[done * width..]);
}

/// One word a coordinate.
fn add_words(lattice: Lattice, values: &mut [u32], bytes: &[u8]) {
    let (width, mask) = (usize::from(lattice.bits), lattice.mask());
    let (groups, _) = values.as_chunks_mut::<GROUP>();
    for (group, bytes) in groups.iter_mut().zip(bytes.chunks_exact(width)) {
        // The last coordinate's word may reach up to seven bytes beyond the group.
        let mut padded = [0_u8; 32 + 8];
        padded[..width].copy_from_slice(bytes);
        for (index, value) in group.iter_mut().enumerate() {
            let (byte, shift) = (index * width / 8, index * width % 8);
            let word = padded[byte..byte + 8].try_into().expect("eight bytes");
            let addend = (u64::from_le_bytes(word) >> shift) as u32;
            *value = value.wrapping_add(addend) & mask;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::__m256i;

    use pulp::{cast, x86::V3};

    use super::{GROUP, Lattice};

    /// The widest coordinate that never touches more than four bytes.
    const FOUR_BYTES_BITS_MAX: u8 = 25;

    /// Bytes that are loaded for half a group; no four coordinates reach beyond.
    const LOAD: usize = 16;

    /// A place that a shuffle fills with zero.
    const NOWHERE: u8 = 0x80;

    /// Adds as many groups as it can; returns how many.
    pub(super) fn add(lattice: Lattice, values: &mut [u32], bytes: &[u8]) -> usize {
        match V3::try_new() {
            Some(simd) if lattice.bits <= FOUR_BYTES_BITS_MAX => {
                simd.vectorize(Add::<false> { simd, lattice, values, bytes })
            }
            Some(simd) => simd.vectorize(Add::<true> { simd, lattice, values, bytes }),
            None => 0,
        }
    }

    /// - `FIVE`: whether a coordinate may touch five bytes
    struct Add<'a, const FIVE: bool> {
        simd: V3,
        lattice: Lattice,
        values: &'a mut [u32],
        bytes: &'a [u8],
    }

    impl<const FIVE: bool> pulp::NullaryFnOnce for Add<'_, FIVE> {
        type Output = usize;

        #[inline(always)]
        fn call(self) -> usize {
            let Self { simd, lattice, values, bytes } = self;
            let width = usize::from(lattice.bits);
            let Layout { places, shifts, fifth_places, fifth_shifts } = Layout::new(width);
            let mask: __m256i = cast([lattice.mask(); GROUP]);
            // Where the second half of a group begins; its first coordinate may begin in the middle.
            let half = width / 2;
            let (groups, _) = values.as_chunks_mut::<GROUP>();
            let mut done = 0;
            for (group, bytes) in groups.iter_mut().zip(bytes.windows(half + LOAD).step_by(width)) {
                let low: [u8; LOAD] = *bytes.first_chunk().expect("the window is longer");
                let high: [u8; LOAD] = *bytes.last_chunk().expect("the window is longer");
                let both = simd.avx._mm256_set_m128i(cast(high), cast(low));
                let spread = simd.avx2._mm256_shuffle_epi8(both, places);
                let mut shifted = simd.avx2._mm256_srlv_epi32(spread, shifts);
                if FIVE {
                    let fifth = simd.avx2._mm256_shuffle_epi8(both, fifth_places);
                    let fifth = simd.avx2._mm256_sllv_epi32(fifth, fifth_shifts);
                    shifted = simd.avx2._mm256_or_si256(shifted, fifth);
                }
                // Bits above the width do not reach those below, and go with the sum's own.
                let sum = simd.avx2._mm256_add_epi32(cast(*group), shifted);
                *group = cast(simd.avx2._mm256_and_si256(sum, mask));
                done += 1;
            }
            done
        }
    }

    /// Where the coordinates of a group lie.
    struct Layout {
        /// Of each, the four bytes from its first one on, within its half.
        places: __m256i,
        /// By how many bits they are shifted down.
        shifts: __m256i,
        /// The byte after them, if the coordinate reaches it.
        fifth_places: __m256i,
        /// By how many bits it is shifted up.
        fifth_shifts: __m256i,
    }

    impl Layout {
        fn new(width: usize) -> Self {
            let (mut places, mut shifts) = ([NOWHERE; 4 * GROUP], [0_u32; GROUP]);
            let (mut fifth_places, mut fifth_shifts) = (places, shifts);
            for index in 0..GROUP {
                let start = if index < GROUP / 2 { 0 } else { width / 2 * 8 };
                let (first, shift) = ((index * width - start) / 8, (index * width - start) % 8);
                for byte in 0..4 {
                    places[4 * index + byte] = (first + byte) as u8;
                }
                shifts[index] = shift as u32;
                if shift + width > 32 {
                    fifth_places[4 * index] = (first + 4) as u8;
                    fifth_shifts[index] = (32 - shift) as u32;
                }
            }
            Self {
                places: cast(places),
                shifts: cast(shifts),
                fifth_places: cast(fifth_places),
                fifth_shifts: cast(fifth_shifts),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::lattice::BITS_MIN;

    proptest! {
        #[test]
        fn groups_of_every_width_add_as_single_coordinates(
            values in prop::collection::vec(any::<u32>(), 0..100),
            units in prop::collection::vec(any::<i64>(), 100),
        ) {
            let whole = values.len() / GROUP * GROUP;
            for bits in BITS_MIN..=BITS_MAX {
                let lattice = Lattice::new(1.0, bits).expect("valid");
                let start: Vec<u32> = values[..whole].iter().map(|&v| v & lattice.mask()).collect();
                let bytes = lattice.pack(&units[..whole]);
                let expected: Vec<u32> = start
                    .iter()
                    .zip(&units)
                    .map(|(value, &unit)| value.wrapping_add(unit as u32) & lattice.mask())
                    .collect();
                let (mut fast, mut plain) = (start.clone(), start);
                add_groups(lattice, &mut fast, &bytes);
                add_words(lattice, &mut plain, &bytes);
                prop_assert_eq!(&fast, &expected, "{} bits", bits);
                prop_assert_eq!(plain, expected, "{} bits", bits);
            }
        }
    }

    /// The words alone would be as right, and several times slower.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn all_but_the_last_groups_of_every_width_are_added_as_vectors() {
        if pulp::x86::V3::try_new().is_none() {
            return eprintln!("skipped: the processor has no AVX2");
        }
        for bits in BITS_MIN..=BITS_MAX - 1 {
            let lattice = Lattice::new(1.0, bits).expect("valid");
            let (mut values, bytes) = ([0; 100 * GROUP], vec![0; 100 * usize::from(bits)]);
            let done = avx2::add(lattice, &mut values, &bytes);
            assert!((98..=100).contains(&done), "{done} groups of {bits} bits");
        }
    }
}
