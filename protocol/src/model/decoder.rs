use serde::{Deserialize, Serialize};

use super::{Initialization, ModelSpecError, TensorSpec, at_least};

/// Blocks above which a model is taken for a mistake.
pub(super) const LAYERS_MAX: u32 = 1024;

/// Sizes of a Llama-class decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU.
///
/// Llama and SmolLM need no more than sizes; Qwen2 has `qkv_bias`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderSpec {
    /// Rows of the table of tokens.
    pub vocab_size: u32,
    /// Width of the hidden state.
    pub hidden_size: u32,
    /// Width of the SwiGLU layer.
    pub intermediate_size: u32,
    /// Number of blocks.
    pub num_layers: u32,
    /// Number of query heads.
    pub num_heads: u32,
    /// Number of key and value heads; divides `num_heads`. All of them if absent.
    #[serde(default)]
    pub num_kv_heads: Option<u32>,
    /// Width of a head, even; `hidden_size / num_heads` if absent.
    #[serde(default)]
    pub head_dim: Option<u32>,
    /// Tokens of a text, at most.
    pub context_max: u32,
    /// Added to the mean square in normalisations.
    #[serde(default = "rms_norm_eps_default")]
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    #[serde(default = "rope_theta_default")]
    pub rope_theta: f64,
    /// How the rotary frequencies are stretched; absent, not at all.
    #[serde(default)]
    pub rope_scaling: Option<RopeScalingSpec>,
    /// Whether the head is the table of tokens.
    #[serde(default)]
    pub tied: bool,
    /// Whether the query, key and value projections have biases.
    #[serde(default)]
    pub qkv_bias: bool,
    /// Whether attention's output projection has a bias.
    #[serde(default)]
    pub output_bias: bool,
    /// Whether the SwiGLU projections have biases.
    #[serde(default)]
    pub mlp_bias: bool,
}

/// How the rotary frequencies are stretched for contexts longer than the one first trained on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum RopeScalingSpec {
    /// All frequencies divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Low frequencies divided, high ones kept, those between blended.
    Llama3 {
        /// The divisor of the low frequencies.
        factor: f64,
        /// Turns within the original context below which a frequency is low.
        low_freq_factor: f64,
        /// Turns within the original context above which a frequency is high.
        high_freq_factor: f64,
        /// Tokens of the original context.
        original_context: f64,
    },
}

const fn rms_norm_eps_default() -> f64 {
    1e-5
}

const fn rope_theta_default() -> f64 {
    10_000.0
}

impl DecoderSpec {
    /// Number of key and value heads.
    #[must_use]
    pub fn kv_heads(&self) -> usize {
        self.num_kv_heads.unwrap_or(self.num_heads) as usize
    }

    /// Width of a head.
    #[must_use]
    pub fn head_width(&self) -> usize {
        self.head_dim.unwrap_or_else(|| self.hidden_size / self.num_heads.max(1)) as usize
    }

    pub(super) fn validate(&self) -> Result<(), ModelSpecError> {
        let (kv_heads, head_dim) = (self.kv_heads() as u32, self.head_width() as u32);
        at_least([
            ("vocab_size", self.vocab_size, 1),
            ("hidden_size", self.hidden_size, 1),
            ("intermediate_size", self.intermediate_size, 1),
            ("num_layers", self.num_layers, 1),
            ("num_heads", self.num_heads, 1),
            ("num_kv_heads", kv_heads, 1),
            ("head_dim", head_dim, 2),
            ("context_max", self.context_max, 2),
        ])?;
        let above_zero = |value: f64| value.is_finite() && value > 0.0;
        let scaling = self.rope_scaling.is_none_or(|scaling| match scaling {
            RopeScalingSpec::Linear { factor } => above_zero(factor),
            RopeScalingSpec::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                [factor, low_freq_factor, original_context].into_iter().all(above_zero)
                    && high_freq_factor.is_finite()
                    && high_freq_factor > low_freq_factor
            }
        });
        let checks = [
            (
                "num_kv_heads",
                kv_heads.into(),
                self.num_heads.is_multiple_of(kv_heads),
                "a divisor of `num_heads`",
            ),
            ("head_dim", head_dim.into(), head_dim.is_multiple_of(2), "even"),
            ("num_layers", self.num_layers.into(), self.num_layers <= LAYERS_MAX, "at most 1024"),
            (
                "rms_norm_eps",
                self.rms_norm_eps,
                above_zero(self.rms_norm_eps) && self.rms_norm_eps < 1.0,
                "above 0 and below 1",
            ),
            (
                "rope_theta",
                self.rope_theta,
                self.rope_theta.is_finite() && self.rope_theta >= 1.0,
                "finite and at least 1",
            ),
            (
                "rope_scaling",
                f64::NAN,
                scaling,
                "of finite numbers above 0, `high_freq_factor` above `low_freq_factor`",
            ),
        ];
        match checks.into_iter().find(|&(_, _, holds, _)| !holds) {
            Some((field, value, _, range)) => Err(ModelSpecError::Unfit { field, value, range }),
            None => Ok(()),
        }
    }

    pub(super) fn tensors(&self) -> Vec<TensorSpec> {
        let (hidden, wide) = (self.hidden_size as usize, self.intermediate_size as usize);
        let query = self.num_heads as usize * self.head_width();
        let kv = self.kv_heads() * self.head_width();
        let small = Initialization::SMALL;
        let table = [self.vocab_size as usize, hidden];
        let mut tensors = vec![TensorSpec::new("model.embed_tokens.weight", &table, small)];
        for layer in 0..self.num_layers {
            let block = format!("model.layers.{layer}");
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                let name = format!("{block}.{norm}.weight");
                tensors.push(TensorSpec::new(name, &[hidden], Initialization::Ones));
            }
            for (part, sizes, bias) in [
                ("self_attn.q_proj", [hidden, query], self.qkv_bias),
                ("self_attn.k_proj", [hidden, kv], self.qkv_bias),
                ("self_attn.v_proj", [hidden, kv], self.qkv_bias),
                ("self_attn.o_proj", [query, hidden], self.output_bias),
                ("mlp.gate_proj", [hidden, wide], self.mlp_bias),
                ("mlp.up_proj", [hidden, wide], self.mlp_bias),
                ("mlp.down_proj", [wide, hidden], self.mlp_bias),
            ] {
                let linear = TensorSpec::linear(&format!("{block}.{part}"), sizes, small);
                tensors.extend(linear.into_iter().take(if bias { 2 } else { 1 }));
            }
        }
        tensors.push(TensorSpec::new("model.norm.weight", &[hidden], Initialization::Ones));
        if !self.tied {
            tensors.push(TensorSpec::new("lm_head.weight", &table, small));
        }
        tensors
    }
}
