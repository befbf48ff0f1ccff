use serde::{Deserialize, Serialize};

use super::{Initialization, ModelSpecError, TensorSpec, at_least};

/// Sizes of a BERT-class encoder with a classification head, by the names of `config.json`.
///
/// Source: Devlin et al. 2018, arXiv:1810.04805.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderSpec {
    /// Rows of the table of words.
    pub vocab_size: u32,
    /// Width of the hidden state.
    pub hidden_size: u32,
    /// Width between the two layers of a block's second half.
    pub intermediate_size: u32,
    /// Number of blocks.
    pub num_layers: u32,
    /// Number of attention heads; divides `hidden_size`.
    pub num_heads: u32,
    /// Rows of the table of positions: tokens of a text, at most.
    #[serde(default = "positions_default")]
    pub positions: u32,
    /// Rows of the table of segments; every text is in the first.
    #[serde(default = "segments_default")]
    pub segments: u32,
    /// Added to the variance in normalisations.
    #[serde(default = "layer_norm_eps_default")]
    pub layer_norm_eps: f64,
    /// Number of classes.
    pub classes: u32,
}

const fn positions_default() -> u32 {
    512
}

const fn segments_default() -> u32 {
    2
}

const fn layer_norm_eps_default() -> f64 {
    1e-12
}

impl EncoderSpec {
    pub(super) fn validate(&self) -> Result<(), ModelSpecError> {
        at_least([
            ("vocab_size", self.vocab_size, 1),
            ("hidden_size", self.hidden_size, 1),
            ("intermediate_size", self.intermediate_size, 1),
            ("num_layers", self.num_layers, 1),
            ("num_heads", self.num_heads, 1),
            ("positions", self.positions, 1),
            ("segments", self.segments, 1),
            ("classes", self.classes, 2),
        ])?;
        let unfit = |field, value, range| Err(ModelSpecError::Unfit { field, value, range });
        if !self.hidden_size.is_multiple_of(self.num_heads) {
            return unfit("num_heads", self.num_heads.into(), "a divisor of `hidden_size`");
        }
        if self.num_layers > super::decoder::LAYERS_MAX {
            return unfit("num_layers", self.num_layers.into(), "at most 1024");
        }
        if !(self.layer_norm_eps > 0.0 && self.layer_norm_eps < 1.0) {
            return unfit("layer_norm_eps", self.layer_norm_eps, "above 0 and below 1");
        }
        Ok(())
    }

    pub(super) fn tensors(&self) -> Vec<TensorSpec> {
        let (hidden, wide) = (self.hidden_size as usize, self.intermediate_size as usize);
        let mut tensors = Vec::new();
        let tables = [
            ("word", self.vocab_size),
            ("position", self.positions),
            ("token_type", self.segments),
        ];
        for (table, rows) in tables {
            let name = format!("bert.embeddings.{table}_embeddings.weight");
            tensors.push(TensorSpec::new(name, &[rows as usize, hidden], Initialization::SMALL));
        }
        let norm = |module: &str| {
            let weight = format!("{module}.weight");
            [
                TensorSpec::new(weight, &[hidden], Initialization::Ones),
                TensorSpec::new(format!("{module}.bias"), &[hidden], Initialization::Zeros),
            ]
        };
        let linear = |module: &str, sizes| TensorSpec::linear(module, sizes, Initialization::SMALL);
        tensors.extend(norm("bert.embeddings.LayerNorm"));
        for layer in 0..self.num_layers {
            let block = format!("bert.encoder.layer.{layer}");
            for part in ["query", "key", "value"] {
                let module = format!("{block}.attention.self.{part}");
                tensors.extend(linear(&module, [hidden, hidden]));
            }
            tensors.extend(linear(&format!("{block}.attention.output.dense"), [hidden, hidden]));
            tensors.extend(norm(&format!("{block}.attention.output.LayerNorm")));
            tensors.extend(linear(&format!("{block}.intermediate.dense"), [hidden, wide]));
            tensors.extend(linear(&format!("{block}.output.dense"), [wide, hidden]));
            tensors.extend(norm(&format!("{block}.output.LayerNorm")));
        }
        tensors.extend(linear("bert.pooler.dense", [hidden, hidden]));
        tensors.extend(linear("classifier", [hidden, self.classes as usize]));
        tensors
    }
}
