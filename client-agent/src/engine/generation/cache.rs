//! Keys and values of past tokens, in blocks.

use super::blocks::BlockId;
use crate::model::decoder::{DecoderConfig, dot};

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
        let layer = &self.layers[layer];
        let scale = (self.head_dim as f32).sqrt().recip();
        scores.clear();
        self.for_each_run(head, table, position, |run| {
            let keys = layer.keys[run].chunks_exact(self.head_dim);
            scores.extend(keys.map(|key| dot(query, key) * scale));
        });
        let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut total = 0.0;
        for score in scores.iter_mut() {
            *score = (*score - largest).exp();
            total += *score;
        }
        answer.fill(0.0);
        let mut token = 0;
        self.for_each_run(head, table, position, |run| {
            for value in layer.values[run].chunks_exact(self.head_dim) {
                let weight = scores[token] / total;
                token += 1;
                for (sum, value) in answer.iter_mut().zip(value) {
                    *sum += weight * value;
                }
            }
        });
    }

    fn for_each_run(
        &self,
        head: usize,
        table: &[BlockId],
        position: usize,
        mut f: impl FnMut(std::ops::Range<usize>),
    ) {
        for (index, &block) in table.iter().enumerate() {
            let first = index * self.block_tokens;
            if first > position {
                break;
            }
            let count = (position + 1 - first).min(self.block_tokens);
            let start = self.slot(block, head, 0);
            f(start..start + count * self.head_dim);
        }
    }
}
