//! Linear layers with ReLU between them.

use candle_core::{Result, Tensor};

use super::flow::Flow;

/// Logits `[n, classes]` of features `[n, inputs]`.
pub(super) fn logits(layers: usize, inputs: &Tensor, flow: Flow<'_>) -> Result<Tensor> {
    let mut hidden = inputs.clone();
    for index in 0..layers {
        // The last layer's outputs are logits.
        hidden = flow.linear(&format!("layers.{index}"), &hidden, index + 1 < layers)?;
    }
    Ok(hidden)
}
