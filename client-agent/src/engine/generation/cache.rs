//! Keys and values of past tokens, in blocks.

use super::blocks::BlockId;
use crate::model::decoder::DecoderConfig;

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

    /// Width of a head.
    pub(super) const fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Tokens of a block.
    pub(super) const fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// A head's keys in a block, `[head_dim, block_tokens]`.
    pub(super) fn keys(&self, layer: usize, block: BlockId, head: usize) -> &[f32] {
        &self.layers[layer].keys[self.slot(block, head)..][..self.block_len()]
    }

    /// A head's values in a block, `[block_tokens, head_dim]`.
    pub(super) fn values(&self, layer: usize, block: BlockId, head: usize) -> &[f32] {
        &self.layers[layer].values[self.slot(block, head)..][..self.block_len()]
    }
}
