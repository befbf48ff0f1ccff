//! Batches on a device that the tensor library drives: whole-tensor steps, no kernels of our own.
//!
//! Weights, cache and adapters stay on the device; tokens and indices go there, logits come back.
//! Sums run in whatever order the library's kernels choose, so a request's answer can differ in the
//! last bits with its batch, unlike on the processor.

mod adapters;
mod attention;
mod pass;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};

use self::{adapters::AdapterTable, attention::Attention, pass::Ragged};
use super::backend::{Backend, Computed, SequenceRows, Wanted};
use crate::model::decoder::Decoder;

/// A decoder on a device.
pub(super) struct Accelerator {
    decoder: Arc<Decoder>,
    cache: DeviceCache,
    adapters: AdapterTable,
}

/// Keys and values of past tokens: per layer both `[slots, kv_heads · head_dim]`, a slot for each
/// token of each block.
struct DeviceCache {
    layers: Vec<(Tensor, Tensor)>,
    block_tokens: usize,
}

impl DeviceCache {
    /// Where a sequence's token is kept.
    fn slot(&self, sequence: &SequenceRows, position: usize) -> u32 {
        let block = sequence.table[position / self.block_tokens].0;
        // Blocks times their tokens fit: the cache's tensors have that many rows.
        block * self.block_tokens as u32 + (position % self.block_tokens) as u32
    }
}

impl Accelerator {
    /// A backend with an empty cache.
    ///
    /// # Errors
    /// The tensor library's, if the device has no room for the cache.
    pub(super) fn new(decoder: Arc<Decoder>, blocks: usize, block_tokens: usize) -> Result<Self> {
        let config = decoder.config();
        let shape = (blocks * block_tokens, config.kv_width());
        let (dtype, device) = (decoder.dtype(), decoder.device());
        let layer = |_| {
            let zeros = || Tensor::zeros(shape, dtype, device);
            Ok((zeros()?, zeros()?))
        };
        let layers = (0..config.num_layers).map(layer).collect::<Result<_>>()?;
        let adapters = AdapterTable::new(dtype, device);
        Ok(Self { cache: DeviceCache { layers, block_tokens }, adapters, decoder })
    }
}

impl Backend for Accelerator {
    fn run(&mut self, tokens: &[u32], sequences: &[SequenceRows]) -> Result<Computed> {
        let decoder = &self.decoder;
        let (config, device) = (decoder.config(), decoder.device());
        let mask = self.adapters.load(config, sequences, tokens.len())?;
        let mut pass = Ragged {
            config,
            tokens: Tensor::from_slice(tokens, tokens.len(), device)?,
            attention: Attention::new(decoder, &self.cache, sequences)?,
            adapters: mask.map(|mask| (&self.adapters, mask)),
        };
        let all = decoder.hidden(&mut pass)?;
        let (mut last, mut hidden) = (Vec::new(), Vec::new());
        for sequence in sequences {
            let rows = sequence.rows.start as u32..sequence.rows.end as u32;
            match sequence.wanted {
                Wanted::Nothing => {}
                Wanted::Logits => last.push(rows.end - 1),
                Wanted::Hidden => hidden.extend(rows),
            }
        }
        let chosen = |rows: Vec<u32>| {
            let count = rows.len();
            all.index_select(&Tensor::from_vec(rows, count, device)?, 0)
        };
        let host = |values: Tensor| values.to_dtype(DType::F32)?.flatten_all()?.to_vec1();
        let logits = if last.is_empty() {
            Vec::new()
        } else {
            host(chosen(last)?.matmul(&decoder.head().t()?)?)?
        };
        let hidden = if hidden.is_empty() { Vec::new() } else { host(chosen(hidden)?)? };
        Ok(Computed { logits, hidden })
    }
}
