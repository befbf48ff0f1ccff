//! A decoder's steps as operations on whole tensors.

use candle_core::{Result, Tensor};
use candle_nn::ops::{rms_norm, silu};

use super::{adapters::AdapterTable, attention::Attention};
use crate::model::decoder::{DecoderConfig, Linear, NormSite, Pass, Rope, Site};

/// A batch of rows `[rows, width]`.
pub(super) struct Ragged<'a> {
    pub(super) config: &'a DecoderConfig,
    /// `[rows]`, u32.
    pub(super) tokens: Tensor,
    pub(super) attention: Attention<'a>,
    /// The adapters' factors, and which of them each row has; nothing if no row has any.
    pub(super) adapters: Option<(&'a AdapterTable, Tensor)>,
}

impl Pass for Ragged<'_> {
    fn embed(&mut self, table: &Tensor) -> Result<Tensor> {
        table.index_select(&self.tokens, 0)
    }

    fn norm(&mut self, _site: NormSite, scale: &Tensor, eps: f64, rows: &Tensor) -> Result<Tensor> {
        rms_norm(&rows.contiguous()?, scale, eps as f32)
    }

    fn linear(&mut self, site: Site, linear: &Linear, rows: &Tensor) -> Result<Tensor> {
        let outputs = rows.matmul(&linear.weight.t()?)?;
        let outputs = match &linear.bias {
            Some(bias) => outputs.broadcast_add(bias)?,
            None => outputs,
        };
        match &self.adapters {
            Some((table, mask)) => table.add(site, rows, mask, outputs),
            None => Ok(outputs),
        }
    }

    fn attend(
        &mut self,
        layer: usize,
        _rope: &Rope,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
    ) -> Result<Tensor> {
        self.attention.attend(self.config, layer, query, key, value)
    }

    fn gate(&mut self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        silu(gate)? * up
    }
}
