//! What computes the rows of a batch.

use std::{ops::Range, sync::Arc};

use candle_core::{Device, Result};

use super::{blocks::BlockId, cache::KvCache, pass::Cached};
use crate::model::{
    decoder::{Decoder, DecoderAdapter, panel_product},
    with_elements,
};

/// The rows of one sequence within a batch.
pub(super) struct SequenceRows {
    /// Which rows of the batch.
    pub(super) rows: Range<usize>,
    /// Position of the first.
    pub(super) position: usize,
    /// The sequence's blocks.
    pub(super) table: Vec<BlockId>,
    /// Its adapter.
    pub(super) adapter: Option<Arc<DecoderAdapter>>,
    /// What its rows are computed for.
    pub(super) wanted: Wanted,
}

/// What a sequence's rows lead to, beside their keys and values in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Nothing: more of the prompt follows.
    Nothing,
    /// The logits behind the last row.
    Logits,
    /// The hidden state of every row.
    Hidden,
}

/// What a batch led to.
pub(super) struct Computed {
    /// `[sequences that want them, vocabulary]`.
    pub(super) logits: Vec<f32>,
    /// `[rows of sequences that want them, hidden]`.
    pub(super) hidden: Vec<f32>,
}

/// A decoder with the cache of its keys and values.
pub(super) trait Backend: Send {
    /// Computes a batch. Sequences with the same adapter lie next to each other.
    ///
    /// - `tokens`: of all rows
    ///
    /// # Errors
    /// The tensor library's.
    fn run(&mut self, tokens: &[u32], sequences: &[SequenceRows]) -> Result<Computed>;
}

/// The backend for where a decoder's weights are.
///
/// # Errors
/// The tensor library's, if the device has no room for the cache.
pub(super) fn backend(
    decoder: Arc<Decoder>,
    blocks: usize,
    block_tokens: usize,
) -> Result<Box<dyn Backend>> {
    match decoder.device() {
        Device::Cpu => {
            let cache = KvCache::new(decoder.config(), blocks, block_tokens);
            let decoder = if decoder.is_in_panels() {
                decoder
            } else {
                Arc::new(Arc::unwrap_or_clone(decoder).in_panels()?)
            };
            Ok(Box::new(Processor { decoder, cache }))
        }
        #[cfg(feature = "cuda")]
        _ => Ok(Box::new(super::device::Accelerator::new(decoder, blocks, block_tokens)?)),
        #[cfg(not(feature = "cuda"))]
        device => candle_core::bail!("no backend for {device:?} in this build"),
    }
}

/// The processor: kernels with a fixed order of sums, so that a request's tokens are the same alone
/// and in any batch.
struct Processor {
    /// In panels.
    decoder: Arc<Decoder>,
    cache: KvCache,
}

impl Backend for Processor {
    fn run(&mut self, tokens: &[u32], sequences: &[SequenceRows]) -> Result<Computed> {
        let decoder = &self.decoder;
        let config = decoder.config();
        let mut pass = Cached {
            config,
            cache: &mut self.cache,
            tokens,
            sequences,
            angles: Default::default(),
        };
        let all = decoder.hidden(&mut pass)?;
        let width = config.hidden_size;
        let (mut last, mut hidden) = (Vec::new(), Vec::new());
        with_elements(&all, |all| {
            for sequence in sequences {
                let Range { start, end } = sequence.rows;
                match sequence.wanted {
                    Wanted::Nothing => {}
                    Wanted::Logits => last.extend_from_slice(&all[(end - 1) * width..end * width]),
                    Wanted::Hidden => hidden.extend_from_slice(&all[start * width..end * width]),
                }
            }
        })?;
        let logits = with_elements(decoder.head(), |head| {
            panel_product(&last, head, width, config.vocab_size)
        })?;
        Ok(Computed { logits, hidden })
    }
}
