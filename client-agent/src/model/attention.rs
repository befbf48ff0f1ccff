//! Attention over whole sequences of equal length, with gradients.

use candle_core::{D, Result, Tensor};

/// Mixes the values of each sequence by the likeness of queries and keys.
///
/// - `query`: `[n, time, heads · d]`; `key`, `value`: `[n, time, kv_heads · d]`, each of whose heads
///   serves `heads / kv_heads` neighbouring query heads
/// - `mask`: added to the scores `[n, heads, time, time]`: 0 where a row may look, else -∞
/// - returns: `[n, time, heads · d]`
pub(super) fn attend(
    [query, key, value]: [&Tensor; 3],
    head_dim: usize,
    mask: &Tensor,
) -> Result<Tensor> {
    let (examples, time, width) = query.dims3()?;
    let heads = |rows: &Tensor| -> Result<Tensor> {
        let count = rows.dim(2)? / head_dim;
        rows.reshape((examples, time, count, head_dim))?.transpose(1, 2)?.contiguous()
    };
    let query = heads(query)?;
    let count = query.dim(1)?;
    let shared = |rows: &Tensor| -> Result<Tensor> {
        let heads = heads(rows)?;
        let group = count / heads.dim(1)?;
        if group == 1 {
            return Ok(heads);
        }
        let shape = (examples, heads.dim(1)?, group, time, head_dim);
        heads.unsqueeze(2)?.broadcast_as(shape)?.reshape((examples, count, time, head_dim))
    };
    let (key, value) = (shared(key)?, shared(value)?);
    let scale = (head_dim as f64).sqrt().recip();
    let scores = (query.matmul(&key.transpose(2, 3)?.contiguous()?)? * scale)?;
    let weights = candle_nn::ops::softmax(&scores.broadcast_add(mask)?, D::Minus1)?;
    let mixed = weights.matmul(&value.contiguous()?)?;
    mixed.transpose(1, 2)?.reshape((examples, time, width))
}

/// Lets each row look at itself and what came before: `[time, time]`.
pub(super) fn causal_mask(time: usize) -> Result<Tensor> {
    let mask: Vec<f32> = (0..time)
        .flat_map(|at| (0..time).map(move |other| if other > at { f32::NEG_INFINITY } else { 0.0 }))
        .collect();
    Tensor::from_vec(mask, (time, time), &candle_core::Device::Cpu)
}

/// Hides what lies behind the end of each text: `[n, 1, 1, time]`.
pub(super) fn padding_mask(lengths: &[usize], time: usize) -> Result<Tensor> {
    let mask: Vec<f32> = lengths
        .iter()
        .flat_map(|&length| {
            (0..time).map(move |at| if at >= length { f32::NEG_INFINITY } else { 0.0 })
        })
        .collect();
    Tensor::from_vec(mask, (lengths.len(), 1, 1, time), &candle_core::Device::Cpu)
}
