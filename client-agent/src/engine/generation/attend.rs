//! Attention of some query heads to one sequence's keys and values in the cache.
//!
//! Every score is one running sum along the head's width and every answer one along the tokens, so
//! neither depends on how many lines are answered together.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::{blocks::BlockId, cache::KvCache};
use crate::model::exp;

/// One query head of one row.
pub(super) struct Line<'a> {
    /// `[head_dim]`.
    pub(super) query: &'a [f32],
    /// The row's position: it sees the tokens up to and with this one.
    pub(super) position: usize,
    /// What it sees, `[head_dim]`.
    pub(super) answer: &'a mut [f32],
}

impl KvCache {
    /// Answers lines that share a key head of one sequence.
    ///
    /// - `lines`: in the order of their positions; `scores`: scratch
    pub(super) fn attend(
        &self,
        (layer, head): (usize, usize),
        table: &[BlockId],
        lines: &mut [Line<'_>],
        scores: &mut Vec<f32>,
    ) {
        Arch::new().dispatch(Attend { cache: self, layer, head, table, lines, scores });
    }
}

/// Some lines, with the widest registers that the machine has.
struct Attend<'a, 'b> {
    cache: &'a KvCache,
    layer: usize,
    head: usize,
    table: &'a [BlockId],
    lines: &'a mut [Line<'b>],
    scores: &'a mut Vec<f32>,
}

impl WithSimd for Attend<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { cache, layer, head, table, lines, scores } = self;
        let (tokens, dim) = (cache.block_tokens(), cache.head_dim());
        let keys = |block: usize| cache.keys(layer, table[block], head);
        let values = |block: usize| cache.values(layer, table[block], head);
        let together = if S::REGISTER_COUNT >= 32 { 8 } else { 4 };
        let scale = (dim as f32).sqrt().recip();
        for lines in lines.chunks_mut(together) {
            let (Some(first), Some(last)) = (lines.first(), lines.last()) else { continue };
            let (shared, blocks) = (first.position + 1, last.position / tokens + 1);
            let span = blocks * tokens;
            scores.clear();
            scores.resize(lines.len() * span, 0.0);
            let compare = Compare { tokens, span, keys };
            match lines.len() {
                8 if S::REGISTER_COUNT >= 32 => compare.run::<S, 8, 2>(simd, lines, scores),
                7 if S::REGISTER_COUNT >= 32 => compare.run::<S, 7, 2>(simd, lines, scores),
                6 if S::REGISTER_COUNT >= 32 => compare.run::<S, 6, 2>(simd, lines, scores),
                5 if S::REGISTER_COUNT >= 32 => compare.run::<S, 5, 2>(simd, lines, scores),
                4 => compare.run::<S, 4, 2>(simd, lines, scores),
                3 => compare.run::<S, 3, 3>(simd, lines, scores),
                2 => compare.run::<S, 2, 4>(simd, lines, scores),
                _ => compare.run::<S, 1, 4>(simd, lines, scores),
            }
            for (line, scores) in lines.iter_mut().zip(scores.chunks_exact_mut(span)) {
                softmax(&mut scores[..=line.position], scale);
                line.answer.fill(0.0);
            }
            let mix = Mix { tokens, span, values };
            match lines.len() {
                8 if S::REGISTER_COUNT >= 32 => mix.run::<S, 8, 2>(simd, 0..shared, scores, lines),
                7 if S::REGISTER_COUNT >= 32 => mix.run::<S, 7, 2>(simd, 0..shared, scores, lines),
                6 if S::REGISTER_COUNT >= 32 => mix.run::<S, 6, 2>(simd, 0..shared, scores, lines),
                5 if S::REGISTER_COUNT >= 32 => mix.run::<S, 5, 2>(simd, 0..shared, scores, lines),
                4 => mix.run::<S, 4, 2>(simd, 0..shared, scores, lines),
                3 => mix.run::<S, 3, 2>(simd, 0..shared, scores, lines),
                2 => mix.run::<S, 2, 4>(simd, 0..shared, scores, lines),
                _ => mix.run::<S, 1, 4>(simd, 0..shared, scores, lines),
            }
            // What only the later ones see.
            for (line, scores) in lines.chunks_mut(1).zip(scores.chunks_exact(span)) {
                mix.run::<S, 1, 4>(simd, shared..line[0].position + 1, scores, line);
            }
        }
    }
}

/// Products of queries with keys.
struct Compare<K> {
    /// Of a block.
    tokens: usize,
    /// Scores of a line.
    span: usize,
    /// The keys of a block, `[head_dim, tokens]`.
    keys: K,
}

impl<'k, K: Fn(usize) -> &'k [f32]> Compare<K> {
    /// Fills the scores `[R, span]` of `R` lines, `C` registers of tokens at a time.
    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(
        &self,
        simd: S,
        lines: &[Line<'_>],
        scores: &mut [f32],
    ) {
        let queries: [&[f32]; R] = std::array::from_fn(|line| lines[line].query);
        if !self.tokens.is_multiple_of(S::F32_LANES) {
            for (query, scores) in queries.iter().zip(scores.chunks_exact_mut(self.span)) {
                for (block, scores) in scores.chunks_exact_mut(self.tokens).enumerate() {
                    for (&query, keys) in
                        query.iter().zip((self.keys)(block).chunks_exact(self.tokens))
                    {
                        for (score, key) in scores.iter_mut().zip(keys) {
                            *score += query * key;
                        }
                    }
                }
            }
            return;
        }
        let columns = self.span / S::F32_LANES;
        let whole = columns - columns % C;
        for column in (0..whole).step_by(C) {
            self.columns::<S, R, C>(simd, column, &queries, scores);
        }
        for column in whole..columns {
            self.columns::<S, R, 1>(simd, column, &queries, scores);
        }
    }

    /// The scores of `C` neighbouring registers of tokens.
    #[inline(always)]
    fn columns<S: Simd, const R: usize, const C: usize>(
        &self,
        simd: S,
        column: usize,
        queries: &[&[f32]; R],
        scores: &mut [f32],
    ) {
        let of_block = self.tokens / S::F32_LANES;
        let keys: [&[S::f32s]; C] = std::array::from_fn(|c| {
            let (block, place) = ((column + c) / of_block, (column + c) % of_block);
            &S::as_simd_f32s((self.keys)(block)).0[place..]
        });
        let mut sums = [[simd.splat_f32s(0.0); C]; R];
        for step in 0..queries[0].len() {
            let keys: [_; C] = std::array::from_fn(|c| keys[c][step * of_block]);
            for r in 0..R {
                let query = simd.splat_f32s(queries[r][step]);
                for c in 0..C {
                    sums[r][c] = simd.mul_add_e_f32s(query, keys[c], sums[r][c]);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            let scores = &mut scores[r * self.span + column * S::F32_LANES..];
            S::as_mut_simd_f32s(scores).0[..C].copy_from_slice(sums);
        }
    }
}

/// Makes weights of scores: exponentials of their multiples that sum to 1.
#[inline(always)]
fn softmax(scores: &mut [f32], scale: f32) {
    const LANES: usize = 16;
    let mut largest = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = scores.as_chunks_mut::<LANES>();
    for chunk in chunks.iter_mut() {
        for (largest, score) in largest.iter_mut().zip(chunk) {
            *score *= scale;
            *largest = if *score > *largest { *score } else { *largest };
        }
    }
    rest.iter_mut().for_each(|score| *score *= scale);
    let largest = largest.iter().chain(&*rest).copied().fold(f32::NEG_INFINITY, f32::max);
    let mut totals = [0.0; LANES];
    for chunk in chunks.iter_mut() {
        for (total, score) in totals.iter_mut().zip(chunk) {
            *score = exp(*score - largest);
            *total += *score;
        }
    }
    for (total, score) in totals.iter_mut().zip(rest) {
        *score = exp(*score - largest);
        *total += *score;
    }
    let factor = totals.iter().sum::<f32>().recip();
    scores.iter_mut().for_each(|score| *score *= factor);
}

/// Sums of values by their weights.
struct Mix<V> {
    /// Of a block.
    tokens: usize,
    /// Weights of a line.
    span: usize,
    /// The values of a block, `[tokens, head_dim]`.
    values: V,
}

impl<'v, V: Fn(usize) -> &'v [f32]> Mix<V> {
    /// Adds the values of some tokens to the answers of `R` lines, `G` registers of them at a time.
    ///
    /// - `weights`: `[R, span]`
    #[inline(always)]
    fn run<S: Simd, const R: usize, const G: usize>(
        &self,
        simd: S,
        tokens: Range<usize>,
        weights: &[f32],
        lines: &mut [Line<'_>],
    ) {
        let dim = lines[0].answer.len();
        if !dim.is_multiple_of(S::F32_LANES) {
            for (line, weights) in lines.iter_mut().zip(weights.chunks_exact(self.span)) {
                for token in tokens.clone() {
                    let values = (self.values)(token / self.tokens);
                    let values = &values[token % self.tokens * dim..][..dim];
                    add_scaled(simd, line.answer, weights[token], values);
                }
            }
            return;
        }
        let registers = dim / S::F32_LANES;
        let whole = registers - registers % G;
        for at in (0..whole).step_by(G) {
            self.registers::<S, R, G>(simd, (at, registers), &tokens, weights, lines);
        }
        for at in whole..registers {
            self.registers::<S, R, 1>(simd, (at, registers), &tokens, weights, lines);
        }
    }

    /// The same for `G` neighbouring registers of the answers, from `at`.
    #[inline(always)]
    fn registers<S: Simd, const R: usize, const G: usize>(
        &self,
        simd: S,
        (at, registers): (usize, usize),
        tokens: &Range<usize>,
        weights: &[f32],
        lines: &mut [Line<'_>],
    ) {
        let mut sums: [[S::f32s; G]; R] = std::array::from_fn(|r| {
            let answer = S::as_simd_f32s(&*lines[r].answer).0;
            std::array::from_fn(|g| answer[at + g])
        });
        let mut start = tokens.start;
        while start < tokens.end {
            let (block, place) = (start / self.tokens, start % self.tokens);
            let count = (self.tokens - place).min(tokens.end - start);
            let rows = &S::as_simd_f32s((self.values)(block)).0[place * registers..];
            let weights: [&[f32]; R] =
                std::array::from_fn(|r| &weights[r * self.span + start..][..count]);
            for token in 0..count {
                let values = &rows[token * registers + at..][..G];
                for r in 0..R {
                    let weight = simd.splat_f32s(weights[r][token]);
                    for g in 0..G {
                        sums[r][g] = simd.mul_add_e_f32s(weight, values[g], sums[r][g]);
                    }
                }
            }
            start += count;
        }
        for (r, sums) in sums.iter().enumerate() {
            S::as_mut_simd_f32s(lines[r].answer).0[at..at + G].copy_from_slice(sums);
        }
    }
}

/// `sums += weight · values`.
#[inline(always)]
fn add_scaled<S: Simd>(simd: S, sums: &mut [f32], weight: f32, values: &[f32]) {
    let (sums, sums_tail) = S::as_mut_simd_f32s(sums);
    let (values, values_tail) = S::as_simd_f32s(values);
    let weight = simd.splat_f32s(weight);
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum = simd.mul_add_e_f32s(weight, *value, *sum);
    }
    if !sums_tail.is_empty() {
        let (sum, value) = (simd.partial_load_f32s(sums_tail), simd.partial_load_f32s(values_tail));
        simd.partial_store_f32s(sums_tail, simd.mul_add_e_f32s(weight, value, sum));
    }
}
