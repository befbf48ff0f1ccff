//! An alias table for one small discrete Gaussian, at 128 bits of precision.

use rand::Rng;

use super::fixed::Fixed;

/// Most index bits: with 4 bytes an entry, the table fits the first-level cache.
const INDEX_BITS_MAX: u32 = 12;
/// Low bits of an entry that hold the alias; the upper part of the threshold follows.
const ALIAS_BITS: u32 = 12;
const ALIAS_MASK: u32 = (1 << ALIAS_BITS) - 1;
/// Bits of a threshold in an entry.
const UPPER_BITS: u32 = 12;
const UPPER_MASK: u32 = (1 << UPPER_BITS) - 1;
/// Low bits of a word that make a draw; the others are free for another use.
pub(super) const WORD_BITS: u32 = ALIAS_BITS + UPPER_BITS;
/// Bits of a threshold that are kept for ties.
const TIE_BITS: u32 = 104;
const TIE_MASK: u128 = (1 << TIE_BITS) - 1;
/// Bits of a threshold: those in the entry, and those for ties.
const THRESHOLD_BITS: u32 = UPPER_BITS + TIE_BITS;

/// Outcomes farther than this many deviations are cut off.
const REACH: f64 = 12.04;
/// The largest deviation whose outcomes fit the largest table.
pub(super) const TABLE_SIGMA_MAX: f64 = 169.9;

/// The discrete Gaussian of one variance, cut off at 12 deviations.
///
/// Walker's alias method on integers: bucket i is chosen by `index_bits` uniform bits, and yields
/// outcome i or its alias as the next 116 bits are below its threshold or not. The first 12 of them
/// settle it but once in 2^12 draws; 24 bits of one word, one load and one selection without a
/// data-dependent branch make a draw, so that whole vectors are drawn at once.
///
/// Statistical distance: 2^-128 a bucket from rounding, and the tail beyond 12.04 deviations,
/// `2 Φ(-12) < 2^-107`.
#[derive(Clone)]
pub(super) struct AliasTable {
    /// Always `2^INDEX_BITS_MAX` of them, so that no index needs a bounds check.
    entries: Box<[u32; 1 << INDEX_BITS_MAX]>,
    ties: Vec<u128>,
    index_mask: u32,
    /// The outcome of bucket 0, negated.
    center: i32,
}

impl AliasTable {
    /// - `variance`: 0.25 to the square of [`TABLE_SIGMA_MAX`]
    pub(super) fn new(variance: f64) -> Self {
        let reach = (REACH * variance.sqrt()).ceil() as usize;
        let index_bits = (2 * reach + 1).next_power_of_two().ilog2();
        debug_assert!(index_bits <= INDEX_BITS_MAX, "the deviation is bounded");
        let weights = weights(variance, reach, index_bits);
        let (thresholds, aliases) = alias(weights, 1 << THRESHOLD_BITS);
        let mut entries = Box::new([0; 1 << INDEX_BITS_MAX]);
        for ((entry, &threshold), &alias) in entries.iter_mut().zip(&thresholds).zip(&aliases) {
            *entry = ((threshold >> TIE_BITS) as u32) << ALIAS_BITS | alias;
        }
        let ties = thresholds.iter().map(|&threshold| threshold & TIE_MASK).collect();
        let index_mask = (1 << index_bits) - 1;
        Self { entries, ties, index_mask, center: reach as i32 }
    }

    /// Turns a uniform word into an outcome, and says whether it was a tie: then the outcome is
    /// not to be used, but that of [`settled`](Self::settled).
    #[inline(always)]
    pub(super) fn outcome(&self, word: u32) -> (i32, bool) {
        let index = word & self.index_mask & ALIAS_MASK;
        let entry = self.entries[index as usize];
        let upper = word >> ALIAS_BITS & UPPER_MASK;
        let threshold = entry >> ALIAS_BITS;
        let chosen = if upper < threshold { index } else { entry & ALIAS_MASK };
        // Wrapping, as a check would keep the compiler from drawing several at once.
        (chosen.cast_signed().wrapping_sub(self.center), upper == threshold)
    }

    /// Turns a uniform word into an outcome; draws more bits only on a tie.
    pub(super) fn settled(&self, word: u32, source: &mut (impl Rng + ?Sized)) -> i32 {
        let (outcome, tie) = self.outcome(word);
        if !tie {
            return outcome;
        }
        let index = word & self.index_mask;
        let drawn = u128::from(source.next_u64()) << 64 | u128::from(source.next_u64());
        let below = drawn & TIE_MASK < self.ties[index as usize];
        let chosen = if below { index } else { self.entries[index as usize] & ALIAS_MASK };
        chosen.cast_signed() - self.center
    }
}

/// Probabilities of `-reach..=reach` in units of `2^-(index_bits + THRESHOLD_BITS)`, padded with
/// zeros to `2^index_bits`; they add up to 1 exactly (modulo 2^128).
fn weights(variance: f64, reach: usize, index_bits: u32) -> Vec<u128> {
    // exp(-x² / 2v), by exp(-(x + 1)² / 2v) = exp(-x² / 2v) · b^(2x + 1) with b = exp(-1 / 2v).
    let base = Fixed::gaussian_base(variance);
    let squared = base.times(base);
    let (mut mass, mut ratio) = (Fixed::ONE, base);
    let mut masses = Vec::with_capacity(reach + 1);
    for _ in 0..=reach {
        // Scaled by 2^-10, so that the total stays below 1: it is at most 2.51 · 170.
        masses.push(mass.divided(1 << 10));
        mass = mass.times(ratio);
        ratio = ratio.times(squared);
    }
    let tail = masses[1..].iter().rev().fold(Fixed::ZERO, |sum, &mass| sum.plus(mass));
    let total = masses[0].plus(tail).plus(tail);
    let unused = 128 - index_bits - THRESHOLD_BITS;
    let mut weights = vec![0u128; 1 << index_bits];
    // 2^128 itself is 0 modulo 2^128.
    let mut rest = 1u128.checked_shl(128 - unused).unwrap_or(0);
    for (x, mass) in masses.iter().enumerate().skip(1) {
        let weight = mass.ratio(total) >> unused;
        weights[reach - x] = weight;
        weights[reach + x] = weight;
        rest = rest.wrapping_sub(2 * weight);
    }
    // The centre takes the rounding of all others.
    weights[reach] = rest;
    weights
}

/// Vose's construction, on integers: `weights` add up to `capacity` times their number.
fn alias(mut weights: Vec<u128>, capacity: u128) -> (Vec<u128>, Vec<u32>) {
    let mut thresholds = vec![0; weights.len()];
    // An entry whose threshold is 0 always yields its alias: itself.
    let mut aliases: Vec<u32> = (0..weights.len() as u32).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) =
        (0..weights.len()).partition(|&index| weights[index] < capacity);
    while let (Some(&donor), Some(index)) = (large.last(), small.pop()) {
        thresholds[index] = weights[index];
        aliases[index] = donor as u32;
        weights[donor] -= capacity - weights[index];
        if weights[donor] < capacity {
            large.pop();
            small.push(donor);
        }
    }
    (thresholds, aliases)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table's own probability of every outcome, in exact integers.
    fn exact_masses(table: &AliasTable) -> Vec<f64> {
        let size = table.ties.len();
        let scale = 2.0_f64.powi(-(THRESHOLD_BITS as i32)) / size as f64;
        let mut masses = vec![0.0; size];
        for index in 0..size {
            let entry = table.entries[index];
            let high = u128::from(entry >> ALIAS_BITS) << TIE_BITS;
            let threshold = high | table.ties[index];
            masses[index] += threshold as f64 * scale;
            let other = ((1u128 << THRESHOLD_BITS) - threshold) as f64 * scale;
            masses[(entry & ALIAS_MASK) as usize] += other;
        }
        masses
    }

    #[test]
    fn the_table_holds_the_distribution_far_into_the_tails() {
        for sigma in [0.5, 0.8, 1.0, 2.5, 20.0, 85.0, 169.9_f64] {
            let table = AliasTable::new(sigma * sigma);
            let exponent = |x: f64| -0.5 * (x / sigma).powi(2);
            let reach = i64::from(table.center);
            let total: f64 =
                (-3 * reach..=3 * reach).map(|x| exponent(x as f64).exp()).sum::<f64>();
            for (index, mass) in exact_masses(&table).into_iter().enumerate() {
                let x = index as i64 - reach;
                if x > reach {
                    assert_eq!(mass, 0.0);
                    continue;
                }
                let expected = exponent(x as f64).exp() / total;
                // f64 resolves the comparison to 1e-13, also 11 deviations out, where the mass is
                // 1e-27 of the largest.
                let tolerance = 1e-12 * expected + 1e-36;
                assert!((mass - expected).abs() < tolerance, "{sigma} {x}: {mass} {expected}");
            }
        }
    }

    #[test]
    fn ties_are_settled_by_the_rest_of_the_threshold() {
        use crate::noise::SeededNoise;
        let table = AliasTable::new(2.0);
        let mut noise = SeededNoise::from_seed([2; 32]);
        for index in 0..table.ties.len() as u32 {
            let word = (table.entries[index as usize] & !ALIAS_MASK) | index | 0xab << WORD_BITS;
            assert!(table.outcome(word).1);
            let alias = table.entries[index as usize] & ALIAS_MASK;
            let own = (0..1000)
                .filter(|_| table.settled(word, &mut noise) == index.cast_signed() - table.center)
                .count() as f64;
            let expected = table.ties[index as usize] as f64 / 2.0_f64.powi(TIE_BITS as i32);
            let expected = if alias == index { 1.0 } else { expected };
            assert!((own / 1000.0 - expected).abs() < 0.08, "{index}: {own} {expected}");
        }
    }
}
