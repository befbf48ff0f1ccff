//! Model folders as the Hugging Face hub has them: configuration, weights, tokenizer, defaults.

mod generation;
mod safetensors;

use std::path::{Path, PathBuf};

use thiserror::Error;
use tributary_protocol::{
    checkpoint::{self, read_spec, read_tensors},
    id::Digest,
    model::{ModelSpec, ModelSpecError},
};

pub use self::{
    generation::GenerationDefaults,
    safetensors::{SafetensorsError, SafetensorsFile, StoredTensor, read_safetensors},
};
use super::decoder::{Decoder, DecoderConfig, Weights};
use crate::{
    durable_file::{FileError, read_bytes},
    text::{ChatTemplate, TextError, Tokenizer},
};

/// A decoder with everything that belongs to it.
pub struct Checkpoint {
    /// Names the content: configuration and weights.
    pub digest: Digest,
    /// The model.
    pub decoder: Decoder,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// Messages to text, if the folder says how.
    pub chat_template: Option<ChatTemplate>,
    /// Sampling where a request does not say.
    pub generation: GenerationDefaults,
}

/// Says why a folder is not a usable checkpoint.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file cannot be read.
    #[error("the model folder lacks a file")]
    File(#[from] FileError),
    /// Configuration or weights cannot be used.
    #[error(transparent)]
    Folder(#[from] checkpoint::CheckpointError),
    /// The model of `config.json` cannot be built.
    #[error("{} cannot be used", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ModelSpecError,
    },
    /// The model writes no text.
    #[error("{} is a model of family {family:?}; text is written by a decoder", directory.display())]
    NotDecoder {
        /// The folder.
        directory: PathBuf,
        /// The family.
        family: &'static str,
    },
    /// The tokenizer makes tokens that the model has no row for.
    #[error("tokenizer.json has {tokens} tokens, config.json a `vocab_size` of {rows}")]
    Vocabulary {
        /// Tokens of the tokenizer.
        tokens: usize,
        /// Rows of the embedding table.
        rows: usize,
    },
    /// Tokenizer or chat template cannot be used.
    #[error(transparent)]
    Text(#[from] TextError),
    /// `generation_config.json` is not readable.
    #[error("generation_config.json cannot be read")]
    Generation(#[source] serde_json::Error),
    /// The tensor library failed.
    #[error("the tensor library failed")]
    Tensor(#[from] candle_core::Error),
}

impl Checkpoint {
    /// Reads a folder.
    ///
    /// # Errors
    /// [`CheckpointError`] naming the file, key or tensor.
    pub fn open(directory: &Path) -> Result<Self, CheckpointError> {
        let path = directory.join("config.json");
        let spec = read_spec(directory)?;
        spec.validate().map_err(|source| CheckpointError::Config { path: path.clone(), source })?;
        let ModelSpec::Decoder(decoder) = &spec else {
            let (directory, family) = (directory.to_owned(), spec.family());
            return Err(CheckpointError::NotDecoder { directory, family });
        };
        let config = DecoderConfig::of_spec(decoder);
        // The cheap files first, so that a mistake shows before the weights are read.
        let tokenizer = Tokenizer::open(&directory.join("tokenizer.json"))?;
        let (tokens, rows) = (tokenizer.vocab_size(), config.vocab_size);
        if tokens > rows {
            return Err(CheckpointError::Vocabulary { tokens, rows });
        }
        let chat_template = ChatTemplate::open(directory)?;
        let generation = GenerationDefaults::open(directory, &read_bytes(&path)?)?;
        let mut weights = Weights::new();
        let digest = read_tensors(directory, &spec, |name, values| {
            weights.insert(name, values);
        })?;
        let decoder = Decoder::new(config, weights)?;
        Ok(Self { digest, decoder, tokenizer, chat_template, generation })
    }
}

/// Reads a file that may be absent.
fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    if path.exists() { read_bytes(path).map(Some) } else { Ok(None) }
}
