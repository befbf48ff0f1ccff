//! Whole sequences of equal length, with gradients for an adapter's factors.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var};

use super::{Decoder, DecoderAdapter, DecoderConfig, Linear, Pass, Rope, Site};
use crate::model::{
    Tape,
    attention::{attend, causal_mask},
    layer::{Recording, Spans, embedding, linear},
};

/// A pass over `[n, time]` tokens, each sequence from its beginning.
pub struct Dense<'a> {
    config: &'a DecoderConfig,
    tokens: Tensor,
    adapter: Option<&'a DenseAdapter>,
    tape: Option<&'a Tape>,
}

/// An adapter's factors as variables, and where each lies in their flat vector.
pub struct DenseAdapter {
    scale: f64,
    sites: BTreeMap<Site, DenseFactors>,
    num_parameters: usize,
}

struct DenseFactors {
    a: Var,
    a_spans: Spans,
    b: Var,
    b_spans: Spans,
}

impl DenseAdapter {
    /// Makes variables of an adapter's factors, in the flat order A, B of each site.
    ///
    /// # Errors
    /// The tensor library's.
    pub fn new(config: &DecoderConfig, adapter: &DecoderAdapter) -> Result<Self> {
        let (mut sites, mut offset) = (BTreeMap::new(), 0);
        let mut variable = |tensor: Tensor| -> Result<(Var, Spans)> {
            let weight = offset..offset + tensor.elem_count();
            offset = weight.end;
            Ok((Var::from_tensor(&tensor)?, Spans { weight, bias: None }))
        };
        for site in config.sites() {
            if let Some(factors) = adapter.factors(site) {
                let (a, b) = factors.tensors()?;
                let ((a, a_spans), (b, b_spans)) = (variable(a)?, variable(b)?);
                sites.insert(site, DenseFactors { a, a_spans, b, b_spans });
            }
        }
        Ok(Self { scale: f64::from(adapter.scale()), sites, num_parameters: offset })
    }

    /// Elements of all factors together.
    #[must_use]
    pub const fn num_parameters(&self) -> usize {
        self.num_parameters
    }
}

impl<'a> Dense<'a> {
    /// A pass over tokens `[n, time]` (u32).
    #[must_use]
    pub const fn new(config: &'a DecoderConfig, tokens: Tensor) -> Self {
        Self { config, tokens, adapter: None, tape: None }
    }

    /// The same with an adapter; with a tape, the backward pass of a loss records there what the
    /// gradients of its factors need.
    #[must_use]
    pub fn with_adapter(self, adapter: &'a DenseAdapter, tape: Option<&'a Tape>) -> Self {
        Self { adapter: Some(adapter), tape, ..self }
    }

    /// Logits `[n, time, vocabulary]`.
    ///
    /// # Errors
    /// The tensor library's, for a token outside the vocabulary.
    pub fn logits(&mut self, decoder: &Decoder) -> Result<Tensor> {
        let hidden = decoder.hidden(self)?;
        linear(&hidden, decoder.head(), None, false, None)
    }
}

impl Pass for Dense<'_> {
    fn embed(&mut self, table: &Tensor) -> Result<Tensor> {
        embedding(&self.tokens, table, None)
    }

    fn linear(&mut self, site: Site, layer: &Linear, rows: &Tensor) -> Result<Tensor> {
        let frozen = linear(rows, &layer.weight, layer.bias.as_ref(), false, None)?;
        let Some((adapter, factors)) =
            self.adapter.and_then(|adapter| Some((adapter, adapter.sites.get(&site)?)))
        else {
            return Ok(frozen);
        };
        let recording = |spans: &Spans| {
            self.tape.map(|tape| Recording { tape: tape.clone(), spans: spans.clone() })
        };
        let low = linear(rows, &factors.a, None, false, recording(&factors.a_spans))?;
        let change = linear(&low, &factors.b, None, false, recording(&factors.b_spans))?;
        frozen + (change * adapter.scale)?
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
        let mask = causal_mask(query.dim(1)?)?;
        attend([&query, &key, value], self.config.head_dim, &mask)
    }

    fn gate(&mut self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        gate.silu()? * up
    }
}
