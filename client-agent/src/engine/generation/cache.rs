//! Keys and values of past tokens, in blocks.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::blocks::BlockId;
use crate::model::decoder::DecoderConfig;

/// Storage of all blocks: per layer `[blocks, kv_heads, block_tokens, head_dim]`.
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
pub(super) const fn block_bytes(config: &DecoderConfig, block_tokens: usize) -> usize {
    2 * config.num_layers * config.kv_width() * block_tokens * size_of::<f32>()
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

    const fn slot(&self, block: BlockId, head: usize, token: usize) -> usize {
        ((block.0 as usize * self.kv_heads + head) * self.block_tokens + token) * self.head_dim
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
        let block = table[position / self.block_tokens];
        for head in 0..self.kv_heads {
            let start = self.slot(block, head, position % self.block_tokens);
            let from = head * self.head_dim..(head + 1) * self.head_dim;
            let to = start..start + self.head_dim;
            let layer = &mut self.layers[layer];
            layer.keys[to.clone()].copy_from_slice(&key[from.clone()]);
            layer.values[to].copy_from_slice(&value[from]);
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

    /// Where the tokens up to and with `position` lie, block by block.
    fn runs(
        &self,
        head: usize,
        table: &[BlockId],
        position: usize,
    ) -> impl Iterator<Item = Range<usize>> {
        let blocks = table.iter().zip((0..=position).step_by(self.block_tokens));
        blocks.map(move |(&block, first)| {
            let count = (position + 1 - first).min(self.block_tokens);
            let start = self.slot(block, head, 0);
            start..start + count * self.head_dim
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
        scores.clear();
        for run in cache.runs(head, table, position) {
            for key in layer.keys[run].chunks_exact(cache.head_dim) {
                scores.push(dot(simd, query, key) * scale);
            }
        }
        let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut total = 0.0;
        for score in scores.iter_mut() {
            *score = (*score - largest).exp();
            total += *score;
        }
        answer.fill(0.0);
        let mut weights = scores.iter().map(|score| score / total);
        for run in cache.runs(head, table, position) {
            for value in layer.values[run].chunks_exact(cache.head_dim) {
                add_scaled(simd, answer, weights.next().unwrap_or(0.0), value);
            }
        }
    }
}

#[inline(always)]
fn dot<S: Simd>(simd: S, left: &[f32], right: &[f32]) -> f32 {
    let (left, left_tail) = S::as_simd_f32s(left);
    let (right, right_tail) = S::as_simd_f32s(right);
    let mut sum = simd.splat_f32s(0.0);
    for (left, right) in left.iter().zip(right) {
        sum = simd.mul_add_e_f32s(*left, *right, sum);
    }
    if !left_tail.is_empty() {
        let (left, right) = (simd.partial_load_f32s(left_tail), simd.partial_load_f32s(right_tail));
        sum = simd.mul_add_e_f32s(left, right, sum);
    }
    simd.reduce_sum_f32s(sum)
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
