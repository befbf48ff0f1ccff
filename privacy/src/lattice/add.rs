//! Adding whole groups of packed coordinates: eight of them are `bits` bytes, so every group begins
//! at a byte.
//!
//! On x86-64 with AVX2 a group is a byte shuffle, a shift and an addition. Elsewhere, and for moduli
//! of 26 to 31 bits, whose coordinates may touch five bytes, it is eight shifts of words.

use super::Lattice;

/// Coordinates of a group.
pub(super) const GROUP: usize = 8;

/// Adds packed groups to a part of a sum, modulo `2^bits`.
///
/// - `values`: shape `[GROUP * groups]`, each below `2^bits`
/// - `bytes`: `bits` bytes a group
pub(super) fn add_groups(lattice: Lattice, values: &mut [u32], bytes: &[u8]) {
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
    const BITS_MAX: u8 = 25;

    /// Bytes that are loaded for half a group.
    const LOAD: usize = 16;

    /// Adds as many groups as it can; returns how many.
    pub(super) fn add(lattice: Lattice, values: &mut [u32], bytes: &[u8]) -> usize {
        match V3::try_new() {
            Some(simd) if lattice.bits <= BITS_MAX => {
                simd.vectorize(Add { simd, lattice, values, bytes })
            }
            _ => 0,
        }
    }

    struct Add<'a> {
        simd: V3,
        lattice: Lattice,
        values: &'a mut [u32],
        bytes: &'a [u8],
    }

    impl pulp::NullaryFnOnce for Add<'_> {
        type Output = usize;

        #[inline(always)]
        fn call(self) -> usize {
            let Self { simd, lattice, values, bytes } = self;
            let width = usize::from(lattice.bits);
            let (places, shifts) = layout(width);
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
                let shifted = simd.avx2._mm256_srlv_epi32(spread, shifts);
                let addend = simd.avx2._mm256_and_si256(shifted, mask);
                let sum = simd.avx2._mm256_add_epi32(cast(*group), addend);
                *group = cast(simd.avx2._mm256_and_si256(sum, mask));
                done += 1;
            }
            done
        }
    }

    /// For each coordinate of a group, its four bytes within its half, and by how much they are
    /// shifted.
    fn layout(width: usize) -> (__m256i, __m256i) {
        let (mut places, mut shifts) = ([0_u8; 4 * GROUP], [0_u32; GROUP]);
        for index in 0..GROUP {
            let start = if index < GROUP / 2 { 0 } else { width / 2 * 8 };
            let bit = index * width - start;
            shifts[index] = (bit % 8) as u32;
            for byte in 0..4 {
                places[4 * index + byte] = (bit / 8 + byte) as u8;
            }
        }
        (cast(places), cast(shifts))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn groups_add_as_single_coordinates(
            values in prop::collection::vec(any::<u32>(), 0..100),
            units in prop::collection::vec(any::<i64>(), 100),
            bits in 8u8..=32,
        ) {
            let lattice = Lattice::new(1.0, bits).expect("valid");
            let whole = values.len() / GROUP * GROUP;
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
            prop_assert_eq!(&fast, &expected);
            prop_assert_eq!(plain, expected);
        }
    }
}
