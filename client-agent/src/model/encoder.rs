//! BERT-class encoders with a classification head.
//!
//! Source: Devlin et al. 2018, arXiv:1810.04805; modules and names as in the transformers library.

use candle_core::{Result, Tensor};
use tributary_protocol::model::EncoderSpec;

use super::{
    attention::{attend, padding_mask},
    flow::Flow,
};

/// Logits `[n, classes]` of tokens `[n, time]` (u32), of which the first of each `lengths` count.
pub(super) fn logits(
    spec: &EncoderSpec,
    ids: &Tensor,
    lengths: &[usize],
    flow: Flow<'_>,
) -> Result<Tensor> {
    let (examples, time) = ids.dims2()?;
    let eps = spec.layer_norm_eps;
    let positions: Vec<u32> = (0..examples).flat_map(|_| 0..time as u32).collect();
    let positions = Tensor::from_vec(positions, (examples, time), ids.device())?;
    let words = flow.embedding("bert.embeddings.word_embeddings", ids)?;
    let segments = flow.embedding("bert.embeddings.token_type_embeddings", &ids.zeros_like()?)?;
    let positions = flow.embedding("bert.embeddings.position_embeddings", &positions)?;
    let sum = ((words + segments)? + positions)?;
    let mut hidden = flow.layer_norm("bert.embeddings.LayerNorm", &sum, eps)?;
    let mask = padding_mask(lengths, time)?;
    let head_dim = (spec.hidden_size / spec.num_heads) as usize;
    for layer in 0..spec.num_layers {
        let block = format!("bert.encoder.layer.{layer}");
        let linear =
            |part: &str, rows: &Tensor| flow.linear(&format!("{block}.{part}"), rows, false);
        let norm = |part: &str, rows: &Tensor| {
            flow.layer_norm(&format!("{block}.{part}.LayerNorm"), rows, eps)
        };
        let query = linear("attention.self.query", &hidden)?;
        let key = linear("attention.self.key", &hidden)?;
        let value = linear("attention.self.value", &hidden)?;
        let mixed = attend([&query, &key, &value], head_dim, &mask)?;
        let mixed = linear("attention.output.dense", &mixed)?;
        hidden = norm("attention.output", &(hidden + mixed)?)?;
        let wide = linear("intermediate.dense", &hidden)?.gelu_erf()?;
        let narrow = linear("output.dense", &wide)?;
        hidden = norm("output", &(hidden + narrow)?)?;
    }
    // The first token stands for the whole text.
    let first = hidden.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?;
    let pooled = flow.linear("bert.pooler.dense", &first, false)?.tanh()?;
    flow.linear("classifier", &pooled, false)
}
