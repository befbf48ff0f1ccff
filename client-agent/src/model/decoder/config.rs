//! The shape of a decoder, in the sizes that this crate computes with.

use tributary_protocol::model::{DecoderSpec, RopeScalingSpec};

use super::rope::RopeScaling;

/// The shape of a Llama-class decoder, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the hidden state.
    pub hidden_size: usize,
    /// Width of the SwiGLU layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Number of query heads.
    pub num_heads: usize,
    /// Number of key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Tokens that the positions were trained for.
    pub context_max: usize,
    /// Added to the mean square in the normalisation.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the frequencies are stretched.
    pub rope_scaling: RopeScaling,
    /// Whether the head is the embedding table.
    pub tied: bool,
    /// Whether the query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub output_bias: bool,
    /// Whether the SwiGLU projections have biases.
    pub mlp_bias: bool,
}

impl DecoderConfig {
    /// The configuration of a model whose sizes were checked.
    #[must_use]
    pub fn of_spec(spec: &DecoderSpec) -> Self {
        Self {
            vocab_size: spec.vocab_size as usize,
            hidden_size: spec.hidden_size as usize,
            intermediate_size: spec.intermediate_size as usize,
            num_layers: spec.num_layers as usize,
            num_heads: spec.num_heads as usize,
            num_kv_heads: spec.kv_heads(),
            head_dim: spec.head_width(),
            context_max: spec.context_max as usize,
            rms_norm_eps: spec.rms_norm_eps,
            rope_theta: spec.rope_theta,
            rope_scaling: match spec.rope_scaling {
                None => RopeScaling::None,
                Some(RopeScalingSpec::Linear { factor }) => RopeScaling::Linear { factor },
                Some(RopeScalingSpec::Llama3 {
                    factor,
                    low_freq_factor,
                    high_freq_factor,
                    original_context,
                }) => RopeScaling::Llama3 {
                    factor,
                    low_freq_factor,
                    high_freq_factor,
                    original_context,
                },
            },
            tied: spec.tied,
            qkv_bias: spec.qkv_bias,
            output_bias: spec.output_bias,
            mlp_bias: spec.mlp_bias,
        }
    }

    /// Width of all query heads together.
    #[must_use]
    pub const fn query_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of all key heads together, or of all value heads.
    #[must_use]
    pub const fn kv_width(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }
}
