use std::path::Path;

use serde::Deserialize;

use super::{CheckpointError, read_optional};

/// How a checkpoint's authors want text to be generated, where a request does not say.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GenerationDefaults {
    /// Tokens that end a text.
    pub end_tokens: Vec<u32>,
    /// Softmax temperature.
    pub temperature: Option<f32>,
    /// Cumulative probability that is kept.
    pub top_p: Option<f32>,
    /// Tokens that are kept.
    pub top_k: Option<u32>,
    /// Divides the logits of tokens that were seen.
    pub repetition_penalty: Option<f32>,
}

#[derive(Deserialize, Default)]
struct File {
    eos_token_id: Option<OneOrMany>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    repetition_penalty: Option<f32>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl GenerationDefaults {
    /// Reads `generation_config.json`; end tokens that it does not name are those of `config.json`.
    pub(super) fn open(directory: &Path, config: &[u8]) -> Result<Self, CheckpointError> {
        let read = |text: &[u8]| serde_json::from_slice(text).map_err(CheckpointError::Generation);
        let file: File = match read_optional(&directory.join("generation_config.json"))? {
            Some(text) => read(&text)?,
            None => File::default(),
        };
        let end = match file.eos_token_id {
            Some(end) => Some(end),
            None => read(config)?.eos_token_id,
        };
        let end_tokens = match end {
            Some(OneOrMany::One(token)) => vec![token],
            Some(OneOrMany::Many(tokens)) => tokens,
            None => Vec::new(),
        };
        Ok(Self {
            end_tokens,
            temperature: file.temperature,
            top_p: file.top_p,
            top_k: file.top_k,
            repetition_penalty: file.repetition_penalty,
        })
    }
}
