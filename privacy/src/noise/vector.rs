//! Draws for whole vectors, with the widest vector instructions that the processor has.

use pulp::{Arch, Simd, WithSimd};
use rand::Rng;
use zeroize::Zeroizing;

use super::{DiscreteGaussian, NoiseSource, table::WORD_BITS};

/// Elements that are handled together.
const CHUNK: usize = 32;
/// Bytes of keystream that a vector is served from at a time; they stay in the fastest cache.
const BUFFER: usize = 4096;

/// One word of keystream for each element of a chunk.
type Words = [u32; CHUNK];

/// What becomes of the elements and their draws.
pub(super) trait Operation<T> {
    /// Handles one chunk.
    ///
    /// - `draws`: whole numbers, grid units
    /// - `words`: those behind the draws, of which only the lowest `WORD_BITS` bits were used
    fn apply(&self, values: &mut [T; CHUNK], draws: &[f64; CHUNK], words: &[Words]);
}

/// Adds the draws to integers.
pub(super) struct Add;

impl Operation<i64> for Add {
    #[inline(always)]
    fn apply(&self, values: &mut [i64; CHUNK], draws: &[f64; CHUNK], _words: &[Words]) {
        for (value, &draw) in values.iter_mut().zip(draws) {
            *value = value.wrapping_add(draw as i64);
        }
    }
}

/// Rounds floats to a grid at random, adds the draws, and returns to model units.
///
/// With x the element over `step`, the result is `⌊x⌋ + [x − ⌊x⌋ > u] + draw` times `step`, where u
/// is uniform over the odd multiples of 2⁻¹⁷ in (0, 1). The rounded element is a whole number that
/// is exact in f32 (from 2²³ on every f32 is one, and nothing is rounded); the sum is exact in
/// f64; and the result is a function of that whole number alone.
pub(crate) struct RoundAndAdd {
    /// A power of two, model units.
    pub(crate) step: f32,
}

impl Operation<f32> for RoundAndAdd {
    #[inline(always)]
    fn apply(&self, values: &mut [f32; CHUNK], draws: &[f64; CHUNK], words: &[Words]) {
        let (per_step, step) = (self.step.recip(), f64::from(self.step));
        for (index, value) in values.iter_mut().enumerate() {
            let spare = (words[0][index] >> WORD_BITS) << 8 | words[1][index] >> WORD_BITS;
            let threshold = (spare as f32 + 0.5) * (1.0 / 65_536.0);
            let units = *value * per_step;
            let below = units.floor();
            let rounded = below + if units - below > threshold { 1.0 } else { 0.0 };
            *value = ((f64::from(rounded) + draws[index]) * step) as f32;
        }
    }
}

/// Draws for all elements, `CHUNK` at a time.
///
/// A chunk takes `PARTS` times `CHUNK` words, those of its first (widest) part before those of the
/// next; the last chunk takes as many, whatever is left to do.
pub(super) fn for_each_chunk<const PARTS: usize, T: Copy + Default>(
    gaussian: &DiscreteGaussian,
    noise: &mut impl NoiseSource,
    values: &mut [T],
    operation: &impl Operation<T>,
) {
    let chunk_bytes = 4 * PARTS * CHUNK;
    let mut buffer = Zeroizing::new([0; BUFFER]);
    for values in values.chunks_mut(BUFFER / chunk_bytes * CHUNK) {
        let bytes = &mut buffer[..values.len().div_ceil(CHUNK) * chunk_bytes];
        noise.fill_bytes(bytes);
        let block = Block::<PARTS, _, _, _> { gaussian, noise, bytes, values, operation };
        Arch::new().dispatch(block);
    }
}

/// As many chunks as one buffer serves.
struct Block<'a, const PARTS: usize, T, N, O> {
    gaussian: &'a DiscreteGaussian,
    noise: &'a mut N,
    bytes: &'a [u8],
    values: &'a mut [T],
    operation: &'a O,
}

impl<const PARTS: usize, T: Copy + Default, N: NoiseSource, O: Operation<T>> WithSimd
    for Block<'_, PARTS, T, N, O>
{
    type Output = ();

    // Everything is inlined here, where the compiler may use all instructions of S.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self { gaussian, noise, bytes, values, operation } = self;
        let (words, _) = bytes.as_chunks::<4>();
        let (words, _) = words.as_chunks::<CHUNK>();
        let (parts, _) = words.as_chunks::<PARTS>();
        let (chunks, rest) = values.as_chunks_mut::<CHUNK>();
        for (values, parts) in chunks.iter_mut().zip(parts) {
            chunk(gaussian, noise, values, parts, operation);
        }
        if let (false, Some(parts)) = (rest.is_empty(), parts.last()) {
            let mut values = [T::default(); CHUNK];
            values[..rest.len()].copy_from_slice(rest);
            chunk(gaussian, noise, &mut values, parts, operation);
            rest.copy_from_slice(&values[..rest.len()]);
        }
    }
}

#[inline(always)]
fn chunk<const PARTS: usize, T>(
    gaussian: &DiscreteGaussian,
    noise: &mut impl Rng,
    values: &mut [T; CHUNK],
    parts: &[[[u8; 4]; CHUNK]; PARTS],
    operation: &impl Operation<T>,
) {
    let mut words = [[0; CHUNK]; PARTS];
    for (words, part) in words.iter_mut().zip(parts) {
        for (word, &bytes) in words.iter_mut().zip(part) {
            *word = u32::from_le_bytes(bytes);
        }
    }
    let (mut draws, tie) = draw(gaussian, &words);
    // Rare enough that the processor never sees a pattern.
    if tie {
        settle(gaussian, &words, noise, &mut draws);
    }
    operation.apply(values, &draws, &words);
}

/// The draws of a chunk, whole numbers, and whether any of their words was a tie.
#[inline(always)]
fn draw<const PARTS: usize>(
    gaussian: &DiscreteGaussian,
    words: &[Words; PARTS],
) -> ([f64; CHUNK], bool) {
    let (mut draws, mut ties) = ([0.0; CHUNK], false);
    for words in words {
        for (draw, &word) in draws.iter_mut().zip(words) {
            let (outcome, tie) = gaussian.table.outcome(word);
            // Exact: whole numbers below 2^53.
            *draw = *draw * gaussian.stride + f64::from(outcome);
            ties |= tie;
        }
    }
    (draws, ties)
}

/// The draws of a chunk of which some words are ties.
#[cold]
#[inline(never)]
fn settle<const PARTS: usize>(
    gaussian: &DiscreteGaussian,
    words: &[Words; PARTS],
    noise: &mut impl Rng,
    draws: &mut [f64; CHUNK],
) {
    for (index, draw) in draws.iter_mut().enumerate() {
        *draw = words.iter().fold(0.0, |draw, words| {
            let outcome = gaussian.table.settled(words[index], noise);
            draw * gaussian.stride + f64::from(outcome)
        });
    }
}
