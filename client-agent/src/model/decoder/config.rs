//! `config.json` of a decoder, parsed into what this crate can run.

use serde::Deserialize;
use thiserror::Error;
use tributary_protocol::model::{DecoderSpec, RopeScalingSpec};

use super::rope::RopeScaling;

/// Layers, heads and widths above which a configuration is taken for a mistake.
const SIZE_MAX: usize = 1 << 20;

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

/// Says why `config.json` is not a decoder that can be run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DecoderConfigError {
    /// Not JSON, a missing key, or a value of the wrong type.
    #[error("config.json cannot be read")]
    Parse(#[source] serde_json::Error),
    /// Another family of models.
    #[error(
        "config.json names the architecture {found:?}; LlamaForCausalLM and Qwen2ForCausalLM are known"
    )]
    Architecture {
        /// What it names.
        found: Vec<String>,
    },
    /// A number that cannot work.
    #[error("config.json: `{key}` is {found}; it must be {range}")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// What was given.
        found: f64,
        /// What would work.
        range: &'static str,
    },
    /// A feature that is not built.
    #[error("config.json: `{key}` = {found} is not supported; {known} is")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// What was given.
        found: String,
        /// What would work.
        known: &'static str,
    },
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    architectures: Vec<String>,
    model_type: Option<String>,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeFile>,
    rope_parameters: Option<RopeFile>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default)]
    use_sliding_window: bool,
    quantization_config: Option<serde_json::Value>,
}

/// `rope_scaling`, and the newer `rope_parameters` that also holds theta.
#[derive(Deserialize)]
struct RopeFile {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
}

fn silu() -> String {
    "silu".to_owned()
}

impl DecoderConfig {
    /// Reads and checks the text of a `config.json`.
    ///
    /// # Errors
    /// [`DecoderConfigError`] naming the key.
    pub fn parse(text: &[u8]) -> Result<Self, DecoderConfigError> {
        let file: File = serde_json::from_slice(text).map_err(DecoderConfigError::Parse)?;
        let qwen = family(&file)?;
        refuse_unsupported(&file)?;
        let num_kv_heads = file.num_key_value_heads.unwrap_or(file.num_attention_heads);
        for (key, found) in [
            ("vocab_size", file.vocab_size),
            ("hidden_size", file.hidden_size),
            ("intermediate_size", file.intermediate_size),
            ("num_hidden_layers", file.num_hidden_layers),
            ("num_attention_heads", file.num_attention_heads),
            ("num_key_value_heads", num_kv_heads),
            ("max_position_embeddings", file.max_position_embeddings),
        ] {
            // Contexts of more than a million tokens exist; the cache bounds them anyway.
            let largest = if key == "max_position_embeddings" { usize::MAX } else { SIZE_MAX };
            require(key, found as f64, (1..=largest).contains(&found), "between 1 and 2^20")?;
        }
        let divides = file.num_attention_heads.is_multiple_of(num_kv_heads);
        let range = "a divisor of num_attention_heads";
        require("num_key_value_heads", num_kv_heads as f64, divides, range)?;
        let head_dim = file.head_dim.unwrap_or(file.hidden_size / file.num_attention_heads);
        let even = head_dim > 0 && head_dim <= SIZE_MAX && head_dim.is_multiple_of(2);
        require("head_dim", head_dim as f64, even, "even, above 0")?;
        let eps = file.rms_norm_eps;
        require("rms_norm_eps", eps, eps.is_finite() && eps > 0.0, "finite and above 0")?;
        let rope = file.rope_parameters.as_ref();
        let rope_theta =
            rope.and_then(|rope| rope.rope_theta).or(file.rope_theta).unwrap_or(10_000.0);
        let finite = rope_theta.is_finite() && rope_theta >= 1.0;
        require("rope_theta", rope_theta, finite, "finite and at least 1")?;
        let rope_scaling = match rope.or(file.rope_scaling.as_ref()) {
            Some(rope) => scaling(rope, file.max_position_embeddings)?,
            None => RopeScaling::None,
        };
        Ok(Self {
            vocab_size: file.vocab_size,
            hidden_size: file.hidden_size,
            intermediate_size: file.intermediate_size,
            num_layers: file.num_hidden_layers,
            num_heads: file.num_attention_heads,
            num_kv_heads,
            head_dim,
            context_max: file.max_position_embeddings,
            rms_norm_eps: eps,
            rope_theta,
            rope_scaling,
            tied: file.tie_word_embeddings,
            qkv_bias: qwen || file.attention_bias,
            output_bias: !qwen && file.attention_bias,
            mlp_bias: !qwen && file.mlp_bias,
        })
    }

    /// The configuration of a job's model, whose sizes were checked.
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

/// Whether it is Qwen2, which has biases in its query, key and value projections.
fn family(file: &File) -> Result<bool, DecoderConfigError> {
    let named = match (file.architectures.as_slice(), file.model_type.as_deref()) {
        ([one], _) => one.as_str(),
        ([], Some("llama")) => "LlamaForCausalLM",
        ([], Some("qwen2")) => "Qwen2ForCausalLM",
        _ => "",
    };
    match named {
        "LlamaForCausalLM" => Ok(false),
        "Qwen2ForCausalLM" => Ok(true),
        _ => {
            let mut found = file.architectures.clone();
            if found.is_empty() {
                found.extend(file.model_type.clone());
            }
            Err(DecoderConfigError::Architecture { found })
        }
    }
}

fn refuse_unsupported(file: &File) -> Result<(), DecoderConfigError> {
    let refusals = [
        ("hidden_act", file.hidden_act != "silu", file.hidden_act.clone(), "silu"),
        ("use_sliding_window", file.use_sliding_window, "true".to_owned(), "false"),
        (
            "quantization_config",
            file.quantization_config.as_ref().is_some_and(|value| !value.is_null()),
            "a quantised checkpoint".to_owned(),
            "F32, F16 or BF16 weights",
        ),
    ];
    match refusals.into_iter().find(|(_, refused, ..)| *refused) {
        Some((key, _, found, known)) => Err(DecoderConfigError::Unsupported { key, found, known }),
        None => Ok(()),
    }
}

fn scaling(rope: &RopeFile, context_max: usize) -> Result<RopeScaling, DecoderConfigError> {
    let number = |key: &'static str, value: Option<f64>| {
        let found = value.unwrap_or(f64::NAN);
        require(key, found, found.is_finite() && found > 0.0, "finite and above 0").map(|()| found)
    };
    match rope.rope_type.as_deref() {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => {
            Ok(RopeScaling::Linear { factor: number("rope_scaling.factor", rope.factor)? })
        }
        Some("llama3") => {
            let low = number("rope_scaling.low_freq_factor", rope.low_freq_factor)?;
            let high = number("rope_scaling.high_freq_factor", rope.high_freq_factor)?;
            let range = "above low_freq_factor";
            require("rope_scaling.high_freq_factor", high, high > low, range)?;
            let original = rope.original_max_position_embeddings.unwrap_or(context_max);
            Ok(RopeScaling::Llama3 {
                factor: number("rope_scaling.factor", rope.factor)?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_context: original as f64,
            })
        }
        Some(other) => Err(DecoderConfigError::Unsupported {
            key: "rope_scaling.rope_type",
            found: other.to_owned(),
            known: "default, linear or llama3",
        }),
    }
}

fn require(
    key: &'static str,
    found: f64,
    holds: bool,
    range: &'static str,
) -> Result<(), DecoderConfigError> {
    if holds { Ok(()) } else { Err(DecoderConfigError::OutOfRange { key, found, range }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMOLLM: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": true}"#;

    #[test]
    fn smollm_is_understood() {
        let config = DecoderConfig::parse(SMOLLM.as_bytes()).unwrap();
        assert_eq!((config.head_dim, config.kv_width(), config.tied), (64, 192, true));
        assert!(!config.qkv_bias && config.rope_scaling == RopeScaling::None);
        let qwen = SMOLLM.replace("Llama", "Qwen2");
        let config = DecoderConfig::parse(qwen.as_bytes()).unwrap();
        assert!(config.qkv_bias && !config.output_bias);
    }

    #[test]
    fn what_cannot_run_is_named() {
        for (from, to, wanted) in [
            ("LlamaForCausalLM", "BertModel", "BertModel"),
            ("\"silu\"", "\"gelu\"", "hidden_act"),
            ("576", "0", "hidden_size"),
            ("\"num_key_value_heads\": 3", "\"num_key_value_heads\": 2", "num_key_value_heads"),
            ("1e-05", "-1.0", "rms_norm_eps"),
            ("10000.0", "0.0", "rope_theta"),
            ("\"vocab_size\": 49152,", "", "config.json cannot be read"),
            ("\"tie", "\"rope_scaling\": {\"type\": \"yarn\"}, \"tie", "yarn"),
            ("\"tie", "\"rope_scaling\": {\"type\": \"linear\"}, \"tie", "rope_scaling.factor"),
            ("\"tie", "\"quantization_config\": {\"bits\": 4}, \"tie", "quantization_config"),
            ("\"tie", "\"use_sliding_window\": true, \"tie", "use_sliding_window"),
        ] {
            let text = SMOLLM.replacen(from, to, 1);
            let error = DecoderConfig::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(wanted), "{wanted}: {error}");
        }
    }
}
