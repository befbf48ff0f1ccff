//! `config.json`: what the model of a folder is.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;

use super::{CheckpointError, json};
use crate::model::{DecoderSpec, EncoderSpec, ModelSpec, RopeScalingSpec};

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    architectures: Vec<String>,
    model_type: Option<String>,
    vocab_size: u32,
    hidden_size: u32,
    intermediate_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    max_position_embeddings: u32,
    hidden_act: Option<String>,
    quantization_config: Option<serde_json::Value>,
    // Decoders.
    num_key_value_heads: Option<u32>,
    head_dim: Option<u32>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Rope>,
    rope_parameters: Option<Rope>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    // Encoders.
    type_vocab_size: Option<u32>,
    layer_norm_eps: Option<f64>,
    #[serde(default)]
    id2label: BTreeMap<String, String>,
    position_embedding_type: Option<String>,
}

#[derive(Deserialize)]
struct Rope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<u32>,
}

/// Reads what the model of a folder is: a Llama, Qwen2 or SmolLM decoder, or a BERT classifier.
///
/// # Errors
/// [`CheckpointError`] naming the key; the sizes themselves are checked with the job.
pub fn read_spec(directory: &Path) -> Result<ModelSpec, CheckpointError> {
    let path = directory.join("config.json");
    let config: Config = json(&path)?;
    let architecture = match (config.architectures.as_slice(), config.model_type.as_deref()) {
        ([first, ..], _) => first.as_str(),
        ([], Some("llama")) => "LlamaForCausalLM",
        ([], Some("qwen2")) => "Qwen2ForCausalLM",
        _ => "",
    };
    let unsupported = |key, found: String, known| {
        Err(CheckpointError::Unsupported { path: path.clone(), key, found, known })
    };
    if config.quantization_config.as_ref().is_some_and(|value| !value.is_null()) {
        let found = "a quantised checkpoint".to_owned();
        return unsupported("quantization_config", found, "F32, F16 or BF16 weights");
    }
    let act = config.hidden_act.clone().unwrap_or_default();
    match architecture {
        "LlamaForCausalLM" | "Qwen2ForCausalLM" if !["", "silu"].contains(&act.as_str()) => {
            unsupported("hidden_act", act, "silu")
        }
        "LlamaForCausalLM" | "Qwen2ForCausalLM" if config.use_sliding_window => {
            unsupported("use_sliding_window", "true".to_owned(), "false")
        }
        "LlamaForCausalLM" => decoder(&config, false, &path).map(ModelSpec::Decoder),
        "Qwen2ForCausalLM" => decoder(&config, true, &path).map(ModelSpec::Decoder),
        "BertForSequenceClassification" if !["", "gelu"].contains(&act.as_str()) => {
            unsupported("hidden_act", act, "gelu")
        }
        "BertForSequenceClassification" => match config.position_embedding_type.as_deref() {
            None | Some("absolute") => Ok(ModelSpec::Encoder(encoder(&config))),
            Some(other) => unsupported("position_embedding_type", other.to_owned(), "absolute"),
        },
        _ => unsupported(
            "architectures",
            format!("{:?}", config.architectures),
            "LlamaForCausalLM, Qwen2ForCausalLM or BertForSequenceClassification",
        ),
    }
}

fn encoder(config: &Config) -> EncoderSpec {
    EncoderSpec {
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        num_layers: config.num_hidden_layers,
        num_heads: config.num_attention_heads,
        positions: config.max_position_embeddings,
        segments: config.type_vocab_size.unwrap_or(2),
        layer_norm_eps: config.layer_norm_eps.unwrap_or(1e-12),
        // Without names there are two classes.
        classes: if config.id2label.is_empty() { 2 } else { config.id2label.len() as u32 },
    }
}

fn decoder(config: &Config, qwen: bool, path: &Path) -> Result<DecoderSpec, CheckpointError> {
    let rope = config.rope_parameters.as_ref().or(config.rope_scaling.as_ref());
    let number = |value: Option<f64>| value.unwrap_or(f64::NAN);
    let rope_scaling = match rope.and_then(|rope| Some((rope, rope.rope_type.as_deref()?))) {
        None | Some((_, "default")) => None,
        Some((rope, "linear")) => Some(RopeScalingSpec::Linear { factor: number(rope.factor) }),
        Some((rope, "llama3")) => Some(RopeScalingSpec::Llama3 {
            factor: number(rope.factor),
            low_freq_factor: number(rope.low_freq_factor),
            high_freq_factor: number(rope.high_freq_factor),
            original_context: rope
                .original_max_position_embeddings
                .unwrap_or(config.max_position_embeddings)
                .into(),
        }),
        Some((_, other)) => {
            return Err(CheckpointError::Unsupported {
                path: path.to_owned(),
                key: "rope_scaling.rope_type",
                found: other.to_owned(),
                known: "default, linear or llama3",
            });
        }
    };
    let theta = config.rope_parameters.as_ref().and_then(|rope| rope.rope_theta);
    Ok(DecoderSpec {
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        num_layers: config.num_hidden_layers,
        num_heads: config.num_attention_heads,
        num_kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        context_max: config.max_position_embeddings,
        rms_norm_eps: config.rms_norm_eps.unwrap_or(1e-6),
        rope_theta: theta.or(config.rope_theta).unwrap_or(10_000.0),
        rope_scaling,
        tied: config.tie_word_embeddings,
        qkv_bias: qwen || config.attention_bias,
        output_bias: !qwen && config.attention_bias,
        mlp_bias: !qwen && config.mlp_bias,
    })
}

/// What `config.json` of a folder with this model says; nothing for families without such folders.
#[must_use]
pub fn config(spec: &ModelSpec) -> Option<serde_json::Value> {
    match spec {
        ModelSpec::Mlp(_) | ModelSpec::Cnn(_) => None,
        ModelSpec::Encoder(encoder) => Some(serde_json::json!({
            "architectures": ["BertForSequenceClassification"],
            "model_type": "bert",
            "vocab_size": encoder.vocab_size,
            "hidden_size": encoder.hidden_size,
            "intermediate_size": encoder.intermediate_size,
            "num_hidden_layers": encoder.num_layers,
            "num_attention_heads": encoder.num_heads,
            "max_position_embeddings": encoder.positions,
            "type_vocab_size": encoder.segments,
            "layer_norm_eps": encoder.layer_norm_eps,
            "hidden_act": "gelu",
            "id2label": (0..encoder.classes)
                .map(|class| (class.to_string(), format!("LABEL_{class}")))
                .collect::<BTreeMap<_, _>>(),
        })),
        ModelSpec::Decoder(decoder) => {
            // The layout with biases in queries, keys and values only is Qwen2's.
            let qwen = decoder.qkv_bias && !decoder.output_bias;
            let rope = decoder.rope_scaling.map(|scaling| match scaling {
                RopeScalingSpec::Linear { factor } => {
                    serde_json::json!({"rope_type": "linear", "factor": factor})
                }
                RopeScalingSpec::Llama3 {
                    factor,
                    low_freq_factor,
                    high_freq_factor,
                    original_context,
                } => serde_json::json!({
                    "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
                    "high_freq_factor": high_freq_factor,
                    "original_max_position_embeddings": original_context as u64,
                }),
            });
            Some(serde_json::json!({
                "architectures": [if qwen { "Qwen2ForCausalLM" } else { "LlamaForCausalLM" }],
                "model_type": if qwen { "qwen2" } else { "llama" },
                "vocab_size": decoder.vocab_size,
                "hidden_size": decoder.hidden_size,
                "intermediate_size": decoder.intermediate_size,
                "num_hidden_layers": decoder.num_layers,
                "num_attention_heads": decoder.num_heads,
                "num_key_value_heads": decoder.kv_heads(),
                "head_dim": decoder.head_width(),
                "max_position_embeddings": decoder.context_max,
                "rms_norm_eps": decoder.rms_norm_eps,
                "rope_theta": decoder.rope_theta,
                "rope_scaling": rope,
                "tie_word_embeddings": decoder.tied,
                "attention_bias": decoder.output_bias,
                "mlp_bias": decoder.mlp_bias,
                "hidden_act": "silu",
            }))
        }
    }
}
