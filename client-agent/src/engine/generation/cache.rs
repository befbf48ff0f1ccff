//! Keys and values of past tokens, in blocks.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::blocks::BlockId;
use crate::model::{decoder::DecoderConfig, exp};

/// Storage of all blocks: per layer values `[blocks, kv_heads, block_tokens, head_dim]`, and keys
/// `[blocks, kv_heads, head_dim, block_tokens]`, so that a query is compared with many tokens at once.
pub(super) struct KvCache {
    layers: Vec<LayerCache>,
    kv_heads: usize,
    head_dim: usize,
    block_tokens: usize,
}

struct LayerCache {
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// Bytes of a block's keys and values over all layers.
pub(super) const fn block_bytes(
    config: &DecoderConfig,
    block_tokens: usize,
    element_bytes: usize,
) -> usize {
    2 * config.num_layers * config.kv_width() * block_tokens * element_bytes
}

impl KvCache {
    pub(super) fn new(config: &DecoderConfig, blocks: usize, block_tokens: usize) -> Self {
        let length = blocks * config.kv_width() * block_tokens;
        let layer = |_| LayerCache { keys: vec![0.0; length], values: vec![0.0; length] };
        Self {
            layers: (0..config.num_layers).map(layer).collect(),
            kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            block_tokens,
        }
    }

    /// Where a head's part of a block begins.
    const fn slot(&self, block: BlockId, head: usize) -> usize {
        (block.0 as usize * self.kv_heads + head) * self.block_len()
    }

    /// Elements of a head's part of a block.
    const fn block_len(&self) -> usize {
        self.block_tokens * self.head_dim
    }

    /// Keeps a token's key and value, each `[kv_heads · head_dim]`.
    pub(super) fn write(
        &mut self,
        layer: usize,
        table: &[BlockId],
        position: usize,
        key: &[f32],
        value: &[f32],
    ) {
        let (block, place) = (table[position / self.block_tokens], position % self.block_tokens);
        let heads = key.chunks_exact(self.head_dim).zip(value.chunks_exact(self.head_dim));
        for (head, (key, value)) in heads.enumerate() {
            let slot = self.slot(block, head);
            let end = slot + self.block_len();
            let start = slot + place * self.head_dim;
            let layer = &mut self.layers[layer];
            layer.values[start..start + self.head_dim].copy_from_slice(value);
            let places = layer.keys[slot + place..end].iter_mut().step_by(self.block_tokens);
            places.zip(key).for_each(|(place, &element)| *place = element);
        }
    }

    /// What one query head sees in the tokens up to and with `position`.
    ///
    /// - `query`, `answer`: `[head_dim]`; `scores`: scratch
    ///
    /// Sums run over the tokens in order, so the answer does not depend on the batch.
    pub(super) fn attend(
        &self,
        (layer, head): (usize, usize),
        (table, position): (&[BlockId], usize),
        query: &[f32],
        scores: &mut Vec<f32>,
        answer: &mut [f32],
    ) {
        let attend = Attend {
            cache: self,
            layer: &self.layers[layer],
            head,
            table,
            position,
            query,
            scores,
            answer,
        };
        Arch::new().dispatch(attend);
    }

    /// A head's parts of the blocks that hold the tokens up to and with `position`.
    fn parts(
        &self,
        head: usize,
        table: &[BlockId],
        position: usize,
    ) -> impl Iterator<Item = Range<usize>> {
        table.iter().take(position / self.block_tokens + 1).map(move |&block| {
            let start = self.slot(block, head);
            start..start + self.block_len()
        })
    }
}

/// One head of one row, with the widest registers that the machine has.
struct Attend<'a> {
    cache: &'a KvCache,
    layer: &'a LayerCache,
    head: usize,
    table: &'a [BlockId],
    position: usize,
    query: &'a [f32],
    scores: &'a mut Vec<f32>,
    answer: &'a mut [f32],
}

impl WithSimd for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { cache, layer, head, table, position, query, scores, answer } = self;
        let scale = (cache.head_dim as f32).sqrt().recip();
        let tokens = cache.block_tokens;
        scores.clear();
        scores.resize((position / tokens + 1) * tokens, 0.0);
        for (scores, part) in
            scores.chunks_exact_mut(tokens).zip(cache.parts(head, table, position))
        {
            compare(simd, query, &layer.keys[part], scores);
        }
        scores.truncate(position + 1);
        softmax(scores, scale);
        answer.fill(0.0);
        let parts = cache.parts(head, table, position);
        for (weights, part) in scores.chunks(tokens).zip(parts) {
            mix(simd, weights, &layer.values[part], answer);
        }
    }
}

/// The products of a query `[head_dim]` with the keys of a block `[head_dim, block_tokens]`.
#[inline(always)]
fn compare<S: Simd>(simd: S, query: &[f32], keys: &[f32], scores: &mut [f32]) {
    /// Registers of sums that are under way at once.
    const SUMS: usize = 4;
    let tokens = scores.len();
    if !tokens.is_multiple_of(S::F32_LANES) {
        for (&query, keys) in query.iter().zip(keys.chunks_exact(tokens)) {
            for (score, key) in scores.iter_mut().zip(keys) {
                *score += query * key;
            }
        }
        return;
    }
    let (keys, _) = S::as_simd_f32s(keys);
    let (scores, _) = S::as_mut_simd_f32s(scores);
    for (place, scores) in scores.iter_mut().enumerate() {
        let mut column = keys[place..].iter().step_by(tokens / S::F32_LANES);
        // Quarters of the dimension side by side: one sum alone would wait for itself.
        let mut sums = [simd.splat_f32s(0.0); SUMS];
        for query in query.chunks(SUMS) {
            for ((sum, &query), &key) in sums.iter_mut().zip(query).zip(&mut column) {
                *sum = simd.mul_add_e_f32s(simd.splat_f32s(query), key, *sum);
            }
        }
        let [a, b, c, d] = sums;
        *scores = simd.add_f32s(simd.add_f32s(a, b), simd.add_f32s(c, d));
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

/// `sums += weightsᵀ · rows`, four registers of sums at a time.
///
/// - `weights`: `[n]`; `rows`: at least `[n, sums]`
#[inline(always)]
fn mix<S: Simd>(simd: S, weights: &[f32], rows: &[f32], sums: &mut [f32]) {
    const SUMS: usize = 4;
    let width = sums.len();
    if !width.is_multiple_of(SUMS * S::F32_LANES) {
        for (&weight, row) in weights.iter().zip(rows.chunks_exact(width)) {
            add_scaled(simd, sums, weight, row);
        }
        return;
    }
    let (rows, _) = S::as_simd_f32s(rows);
    let (sums, _) = S::as_mut_simd_f32s(sums);
    let registers = sums.len();
    let (groups, _) = sums.as_chunks_mut::<SUMS>();
    for (group, sums) in groups.iter_mut().enumerate() {
        let mut own = *sums;
        for (&weight, row) in weights.iter().zip(rows.chunks_exact(registers)) {
            let weight = simd.splat_f32s(weight);
            for (sum, value) in own.iter_mut().zip(&row[group * SUMS..]) {
                *sum = simd.mul_add_e_f32s(weight, *value, *sum);
            }
        }
        *sums = own;
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
