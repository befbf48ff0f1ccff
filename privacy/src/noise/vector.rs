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
    /// - `at`: position of its first element
    /// - `draws`: whole numbers, grid units
    /// - `words`: those behind the draws, of which only the lowest `WORD_BITS` bits were used
    /// - returns: whether all is as it must be
    fn apply(
        &self,
        at: usize,
        values: &mut [T; CHUNK],
        draws: &[f64; CHUNK],
        words: &[Words],
    ) -> bool;
}

/// Adds the draws to integers.
pub(super) struct Add;

impl Operation<i64> for Add {
    #[inline(always)]
    fn apply(
        &self,
        _at: usize,
        values: &mut [i64; CHUNK],
        draws: &[f64; CHUNK],
        _words: &[Words],
    ) -> bool {
        for (value, &draw) in values.iter_mut().zip(draws) {
            *value = value.wrapping_add(draw as i64);
        }
        true
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
    fn apply(
        &self,
        _at: usize,
        values: &mut [f32; CHUNK],
        draws: &[f64; CHUNK],
        words: &[Words],
    ) -> bool {
        for (index, value) in values.iter_mut().enumerate() {
            *value = self.noisy(*value, draws[index], words, index);
        }
        true
    }
}

impl RoundAndAdd {
    #[inline(always)]
    fn noisy(&self, value: f32, draw: f64, words: &[Words], index: usize) -> f32 {
        let (per_step, step) = (self.step.recip(), f64::from(self.step));
        let spare = (words[0][index] >> WORD_BITS) << 8 | words[1][index] >> WORD_BITS;
        let threshold = (spare as f32 + 0.5) * (1.0 / 65_536.0);
        let units = value * per_step;
        let below = units.floor();
        let rounded = below + if units - below > threshold { 1.0 } else { 0.0 };
        ((f64::from(rounded) + draw) * step) as f32
    }
}

/// [`RoundAndAdd`] on a sum that is only read; the elements are parameters, to which `scale` times
/// the noisy sum is added. One pass instead of four, and the sum is checked on the way.
pub(crate) struct Descend<'a> {
    pub(crate) rounding: RoundAndAdd,
    /// As long as the parameters, model units.
    pub(crate) sum: &'a [f32],
    /// What no coordinate of the sum may exceed.
    pub(crate) bound: f32,
    pub(crate) scale: f32,
}

impl Operation<f32> for Descend<'_> {
    #[inline(always)]
    fn apply(
        &self,
        at: usize,
        values: &mut [f32; CHUNK],
        draws: &[f64; CHUNK],
        words: &[Words],
    ) -> bool {
        let rest = self.sum.get(at..).unwrap_or_default();
        let mut padded = [0.0; CHUNK];
        let sum = match rest.first_chunk::<CHUNK>() {
            Some(chunk) => chunk,
            None => {
                padded[..rest.len()].copy_from_slice(rest);
                &padded
            }
        };
        let mut within = true;
        for (index, (value, &term)) in values.iter_mut().zip(sum).enumerate() {
            // NaN is not within.
            within &= term.abs() <= self.bound;
            *value += self.scale * self.rounding.noisy(term, draws[index], words, index);
        }
        within
    }
}

/// Draws for all elements, `CHUNK` at a time.
///
/// A chunk takes `PARTS` times `CHUNK` words, those of its first (widest) part before those of the
/// next; the last chunk takes as many, whatever is left to do.
///
/// - returns: whether all chunks are as they must be
pub(super) fn for_each_chunk<const PARTS: usize, T: Copy + Default>(
    gaussian: &DiscreteGaussian,
    noise: &mut impl NoiseSource,
    values: &mut [T],
    operation: &impl Operation<T>,
) -> bool {
    let chunk_bytes = 4 * PARTS * CHUNK;
    let mut buffer = Zeroizing::new([0; BUFFER]);
    let (mut all, mut at) = (true, 0);
    for values in values.chunks_mut(BUFFER / chunk_bytes * CHUNK) {
        let (bytes, length) =
            (&mut buffer[..values.len().div_ceil(CHUNK) * chunk_bytes], values.len());
        noise.fill_bytes(bytes);
        let block = Block::<PARTS, _, _, _> { gaussian, noise, bytes, at, values, operation };
        all &= Arch::new().dispatch(block);
        at += length;
    }
    all
}

/// As many chunks as one buffer serves.
struct Block<'a, const PARTS: usize, T, N, O> {
    gaussian: &'a DiscreteGaussian,
    noise: &'a mut N,
    bytes: &'a [u8],
    at: usize,
    values: &'a mut [T],
    operation: &'a O,
}

impl<const PARTS: usize, T: Copy + Default, N: NoiseSource, O: Operation<T>> WithSimd
    for Block<'_, PARTS, T, N, O>
{
    type Output = bool;

    // Everything is inlined here, where the compiler may use all instructions of S.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> bool {
        let Self { gaussian, noise, bytes, mut at, values, operation } = self;
        let mut all = true;
        let (words, _) = bytes.as_chunks::<4>();
        let (words, _) = words.as_chunks::<CHUNK>();
        let (parts, _) = words.as_chunks::<PARTS>();
        let (chunks, rest) = values.as_chunks_mut::<CHUNK>();
        for (values, parts) in chunks.iter_mut().zip(parts) {
            all &= chunk(gaussian, noise, at, values, parts, operation);
            at += CHUNK;
        }
        if let (false, Some(parts)) = (rest.is_empty(), parts.last()) {
            let mut values = [T::default(); CHUNK];
            values[..rest.len()].copy_from_slice(rest);
            all &= chunk(gaussian, noise, at, &mut values, parts, operation);
            rest.copy_from_slice(&values[..rest.len()]);
        }
        all
    }
}

#[inline(always)]
fn chunk<const PARTS: usize, T>(
    gaussian: &DiscreteGaussian,
    noise: &mut impl Rng,
    at: usize,
    values: &mut [T; CHUNK],
    parts: &[[[u8; 4]; CHUNK]; PARTS],
    operation: &impl Operation<T>,
) -> bool {
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
    operation.apply(at, values, &draws, &words)
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
