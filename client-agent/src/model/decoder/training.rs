//! Whole sequences of equal length, with gradients for whatever the flow records.

use candle_core::{Result, Tensor};

use super::{Decoder, DecoderConfig, Linear, NormSite, Pass, Rope, Site};
use crate::model::{
    attention::{attend, causal_mask},
    flow::Flow,
};

/// Logits `[n, time, vocabulary]` of tokens `[n, time]` (u32), each text from its beginning.
pub(in crate::model) fn logits(decoder: &Decoder, ids: &Tensor, flow: Flow<'_>) -> Result<Tensor> {
    let mask = causal_mask(ids.dim(1)?)?;
    let mut pass = Training { config: decoder.config(), ids, mask, flow };
    let hidden = decoder.hidden(&mut pass)?;
    let head = if decoder.config().tied { "model.embed_tokens" } else { "lm_head" };
    flow.linear(head, &hidden, false)
}

struct Training<'a> {
    config: &'a DecoderConfig,
    ids: &'a Tensor,
    mask: Tensor,
    flow: Flow<'a>,
}

impl Pass for Training<'_> {
    fn embed(&mut self, _table: &Tensor) -> Result<Tensor> {
        self.flow.embedding("model.embed_tokens", self.ids)
    }

    fn norm(&mut self, site: NormSite, _scale: &Tensor, eps: f64, rows: &Tensor) -> Result<Tensor> {
        self.flow.rms_norm(&site.to_string(), rows, eps)
    }

    fn linear(&mut self, site: Site, _layer: &Linear, rows: &Tensor) -> Result<Tensor> {
        self.flow.linear(&site.to_string(), rows, false)
    }

    fn attend(
        &mut self,
        _layer: usize,
        rope: &Rope,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
    ) -> Result<Tensor> {
        let (query, key) = (rope.turn(query)?, rope.turn(key)?);
        attend([&query, &key, value], self.config.head_dim, &self.mask)
    }

    fn gate(&mut self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        gate.silu()? * up
    }
}
