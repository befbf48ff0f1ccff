//! Masks: keystreams as vectors modulo `2^bits`.
//!
//! A mask is AES-256 in counter mode, cut into pieces of exactly `bits` bits, so every coordinate
//! is uniform and no byte of the stream is wasted. Masks are added block by block: a block of the
//! vector stays in the first-level cache while all masks pass over it.

use aes::Aes256;
use ctr::{
    Ctr64LE,
    cipher::{KeyIvInit, StreamCipher},
};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Coordinates that all masks are added to before the next ones; a multiple of [`GROUP`].
const BLOCK: usize = 4096;
/// Coordinates that together are whole bytes, whatever the width.
const GROUP: usize = 8;
/// Keystreams that are open at once: their key schedules fit the second-level cache.
const OPEN_MAX: usize = 64;
/// Bytes read beyond the last group, of no effect.
const SLACK: usize = 8;

/// Whether a mask is added or taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// Added.
    Plus,
    /// Subtracted.
    Minus,
}

impl Sign {
    pub(super) const fn opposite(self) -> Self {
        match self {
            Self::Plus => Self::Minus,
            Self::Minus => Self::Plus,
        }
    }
}

/// One mask: the key of its stream and its sign.
///
/// The key is used for this one stream of this one round, so its nonce is zero.
#[derive(Zeroize, ZeroizeOnDrop)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Mask {
    pub(super) key: [u8; 32],
    #[zeroize(skip)]
    pub(super) sign: Sign,
}

/// Adds masks to a vector in place, modulo `2^bits`.
///
/// - `bits`: 8 to 32
/// - `values`: shape `[dimension]`
pub(super) fn apply(masks: &[Mask], bits: u8, values: &mut [u32]) {
    let mut stream = Zeroizing::new(vec![0; BLOCK / 8 * usize::from(bits) + SLACK]);
    for masks in masks.chunks(OPEN_MAX) {
        let mut open: Vec<_> = masks
            .iter()
            .map(|mask| (Ctr64LE::<Aes256>::new(&mask.key.into(), &[0; 16].into()), mask.sign))
            .collect();
        for block in values.chunks_mut(BLOCK) {
            let used = block.len().div_ceil(GROUP) * usize::from(bits);
            for (cipher, sign) in &mut open {
                cipher.write_keystream(&mut stream[..used]);
                add_stream(bits, *sign, &stream, block);
            }
        }
    }
    let low = u32::MAX >> (32 - u32::from(bits));
    values.iter_mut().for_each(|value| *value &= low);
}

/// Adds or subtracts one block of a stream; bits above the width are left for the caller to clear.
fn add_stream(bits: u8, sign: Sign, stream: &[u8], block: &mut [u32]) {
    macro_rules! by_width {
        ($($width:literal)*) => {
            match (bits, sign) {
                $(
                    ($width, Sign::Plus) => add_width::<$width, true>(stream, block),
                    ($width, Sign::Minus) => add_width::<$width, false>(stream, block),
                )*
                _ => unreachable!("a width of 8 to 32 bits"),
            }
        };
    }
    by_width!(8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32);
}

/// With the width known when compiled, every offset and shift is a constant.
fn add_width<const BITS: usize, const PLUS: bool>(stream: &[u8], block: &mut [u32]) {
    let mut groups = block.chunks_exact_mut(GROUP);
    let mut offset = 0;
    for group in &mut groups {
        add_group::<BITS, PLUS>(&stream[offset..], group);
        offset += BITS;
    }
    let rest = groups.into_remainder();
    let mut last = [0; GROUP];
    last[..rest.len()].copy_from_slice(rest);
    if !rest.is_empty() {
        add_group::<BITS, PLUS>(&stream[offset..], &mut last);
    }
    rest.copy_from_slice(&last[..rest.len()]);
}

#[inline(always)]
fn add_group<const BITS: usize, const PLUS: bool>(stream: &[u8], group: &mut [u32]) {
    // One bound check for the whole group; the last read ends at most SLACK bytes behind it.
    let stream = &stream[..BITS + SLACK];
    for (index, value) in group.iter_mut().enumerate().take(GROUP) {
        let start = index * BITS;
        let bytes = &stream[start / 8..start / 8 + 8];
        let word = u64::from_le_bytes(bytes.try_into().expect("eight bytes")) >> (start % 8);
        // Higher bits belong to the next coordinate; they do not reach the lower ones.
        *value =
            if PLUS { value.wrapping_add(word as u32) } else { value.wrapping_sub(word as u32) };
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;

    use super::*;

    /// See `tests/vectors/README.md` for their origin.
    #[test]
    fn masks_are_those_of_an_independent_implementation() {
        let vectors = include_str!("../../tests/vectors/mask.csv");
        let mut rows = csv::Reader::from_reader(vectors.as_bytes());
        let mut count = 0;
        for row in rows.records() {
            let row = row.expect("well formed");
            let key = HEXLOWER.decode(row[0].as_bytes()).expect("hexadecimal");
            let mask = Mask { key: key.try_into().expect("32 bytes"), sign: Sign::Plus };
            let expected: Vec<u32> =
                row[2].split_whitespace().map(|value| value.parse().expect("number")).collect();
            let mut values = vec![0; expected.len()];
            apply(&[mask], row[1].parse().expect("bits"), &mut values);
            assert_eq!(values, expected);
            count += 1;
        }
        assert_eq!(count, 5);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

        /// Over all widths, lengths around the block's borders, and numbers of members.
        #[test]
        fn pairwise_masks_cancel_in_the_sum(
            bits in 8u8..=32,
            dimension in prop_oneof![0usize..40, BLOCK - 9..BLOCK + 9, 3 * BLOCK..3 * BLOCK + 20],
            members in 2usize..12,
            seed in any::<u8>(),
        ) {
            let key = |low: usize, high: usize| {
                blake3::derive_key("test", &[seed, low as u8, high as u8])
            };
            let low_bits = u32::MAX >> (32 - u32::from(bits));
            let mut sum = vec![0u32; dimension];
            for member in 0..members {
                let others = (0..members).filter(|&other| other != member);
                let masks: Vec<Mask> = others
                    .map(|other| Mask {
                        key: key(member.min(other), member.max(other)),
                        sign: if member < other { Sign::Plus } else { Sign::Minus },
                    })
                    .collect();
                let mut masked: Vec<u32> = (0..dimension).map(|index| (index * member) as u32 & low_bits).collect();
                let plain = masked.clone();
                apply(&masks, bits, &mut masked);
                prop_assert!(masked.iter().all(|&value| value <= low_bits));
                prop_assert!(dimension < 8 || masked != plain);
                for (sum, value) in sum.iter_mut().zip(&masked) {
                    *sum = sum.wrapping_add(*value) & low_bits;
                }
            }
            let factor: usize = (0..members).sum();
            for (index, value) in sum.iter().enumerate() {
                prop_assert_eq!(*value, (index * factor) as u32 & low_bits);
            }
        }

        /// Many masks at once are what each alone is, and a prefix does not depend on the length.
        #[test]
        fn masks_add_up_whatever_their_number(
            bits in 8u8..=32,
            count in 60usize..70,
            length in 1usize..200,
        ) {
            let masks: Vec<Mask> = (0..count)
                .map(|index| Mask { key: [index as u8; 32], sign: Sign::Minus })
                .collect();
            let mut together = vec![0; length];
            apply(&masks, bits, &mut together);
            let mut alone = vec![0; length + 100];
            masks.iter().for_each(|mask| apply(std::slice::from_ref(mask), bits, &mut alone));
            prop_assert_eq!(&together[..], &alone[..length]);
        }
    }
}
