//! Adding packed coordinates side by side, in words of 64 bits.
//!
//! The bits below the tops of coordinates are added as whole words: no carry passes a top, since tops
//! count as zero there. The tops are what the carries that reach them make of their own sum. A coordinate
//! across two words takes its carry from the first into the second.
//!
//! On x86-64 with AVX2 four words go at once.

/// Bytes of a word.
pub(super) const WORD: usize = 8;

/// Adds words of an update to as many of a sum.
///
/// - `below`: of each word the bits that are not the top of a coordinate; as many or more
/// - `carry`: 1 or 0, from the word before
/// - returns: the carry of the last word
pub(super) fn add_words(sums: &mut [u64], words: &[[u8; WORD]], below: &[u64], carry: u64) -> u64 {
    debug_assert!(sums.len() == words.len() && sums.len() <= below.len());
    #[cfg(target_arch = "x86_64")]
    let (done, carry) = avx2::add(sums, words, below, carry);
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    add_singly(&mut sums[done..], &words[done..], &below[done..], carry)
}

/// One word at a time.
fn add_singly(sums: &mut [u64], words: &[[u8; WORD]], below: &[u64], mut carry: u64) -> u64 {
    for ((sum, &word), below) in sums.iter_mut().zip(words).zip(below) {
        let word = u64::from_le_bytes(word);
        let own = *sum & below;
        let low = own.wrapping_add(word & below);
        // The carry ends at a top of this word, so it changes nothing of what goes to the next.
        *sum = low.wrapping_add(carry) ^ ((*sum ^ word) & !below);
        carry = u64::from(low < own);
    }
    carry
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::__m256i;

    use pulp::{cast, x86::V3};

    use super::WORD;

    /// Words of a vector.
    const LANES: usize = 4;

    /// Adds as many words as it can; returns how many, and the carry of the last.
    pub(super) fn add(
        sums: &mut [u64],
        words: &[[u8; WORD]],
        below: &[u64],
        carry: u64,
    ) -> (usize, u64) {
        match V3::try_new() {
            Some(simd) => simd.vectorize(Add { simd, sums, words, below, carry }),
            None => (0, carry),
        }
    }

    struct Add<'a> {
        simd: V3,
        sums: &'a mut [u64],
        words: &'a [[u8; WORD]],
        below: &'a [u64],
        carry: u64,
    }

    impl pulp::NullaryFnOnce for Add<'_> {
        type Output = (usize, u64);

        #[inline(always)]
        fn call(self) -> (usize, u64) {
            let Self { simd: V3 { avx2, .. }, sums, words, below, carry } = self;
            let (sums, _) = sums.as_chunks_mut::<LANES>();
            let (words, _) = words.as_chunks::<LANES>();
            let (below, _) = below.as_chunks::<LANES>();
            // The carry into a vector's first word, in its first lane.
            let mut before: __m256i = cast([carry, 0, 0, 0]);
            for ((sums, words), below) in sums.iter_mut().zip(words).zip(below) {
                let (sum, word, below): (__m256i, __m256i, __m256i) =
                    (cast(*sums), cast(*words), cast(*below));
                let own = avx2._mm256_and_si256(sum, below);
                let other = avx2._mm256_and_si256(word, below);
                let low = avx2._mm256_add_epi64(own, other);
                // The highest bit went over if both had it, or one had it and the sum has not.
                let both = avx2._mm256_and_si256(own, other);
                let either = avx2._mm256_andnot_si256(low, avx2._mm256_or_si256(own, other));
                let over = avx2._mm256_srli_epi64::<63>(avx2._mm256_or_si256(both, either));
                // Every lane's carry goes to the next one, that of the last to the next vector.
                let turned = avx2._mm256_permute4x64_epi64::<0b10_01_00_11>(over);
                let carries = avx2._mm256_blend_epi32::<0b11>(turned, before);
                let tops = avx2._mm256_andnot_si256(below, avx2._mm256_xor_si256(sum, word));
                let low = avx2._mm256_add_epi64(low, carries);
                *sums = cast(avx2._mm256_xor_si256(low, tops));
                before = turned;
            }
            let [carry, ..]: [u64; LANES] = cast(before);
            (sums.len() * LANES, carry)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn vectors_add_as_single_words(
            rows in prop::collection::vec((any::<u64>(), any::<u64>()), 0..40),
            width in 8..=32_usize,
            carry in 0..=1_u64,
        ) {
            let below: Vec<u64> = (0..rows.len())
                .map(|word| !(64 * word..64 * (word + 1))
                    .filter(|bit| bit % width == width - 1)
                    .fold(0, |tops, bit| tops | 1 << (bit % 64)))
                .collect();
            let sums: Vec<u64> = rows.iter().map(|row| row.0).collect();
            let words: Vec<_> = rows.iter().map(|row| row.1.to_le_bytes()).collect();
            let (mut fast, mut plain) = (sums.clone(), sums);
            let over = add_words(&mut fast, &words, &below, carry);
            prop_assert_eq!(over, add_singly(&mut plain, &words, &below, carry));
            prop_assert_eq!(fast, plain);
        }
    }

    /// Single words would be as right, and several times slower.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn all_but_the_last_words_are_added_as_vectors() {
        if pulp::x86::V3::try_new().is_none() {
            return eprintln!("skipped: the processor has no AVX2");
        }
        let (done, _) = avx2::add(&mut [0; 103], &[[0; WORD]; 103], &[u64::MAX; 103], 0);
        assert_eq!(done, 100);
    }
}
