//! Model folders as the Hugging Face hub has them: configuration, weights, tokenizer, defaults.

mod generation;
mod weights;

use std::path::{Path, PathBuf};

use thiserror::Error;
use tributary_protocol::id::Digest;

pub use self::{
    generation::GenerationDefaults,
    weights::{SafetensorsError, SafetensorsFile, StoredTensor, read_safetensors},
};
use super::decoder::{Decoder, DecoderConfig, DecoderConfigError};
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
    /// `config.json` is not a known model.
    #[error("{} cannot be used", directory.display())]
    Config {
        /// The folder.
        directory: PathBuf,
        /// Why.
        #[source]
        source: DecoderConfigError,
    },
    /// A file of weights cannot be used.
    #[error("{} cannot be used", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: SafetensorsError,
    },
    /// The index of the weights is not readable.
    #[error("{} cannot be read", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The index names a file outside the folder.
    #[error("{} names the file {name:?}; shards lie in the same folder", path.display())]
    ShardName {
        /// The index.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// Neither `model.safetensors` nor an index.
    #[error("{} has neither model.safetensors nor model.safetensors.index.json", directory.display())]
    NoWeights {
        /// The folder.
        directory: PathBuf,
    },
    /// A parameter is in no file.
    #[error("{} has no tensor {tensor:?}", directory.display())]
    Missing {
        /// The folder.
        directory: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A parameter is in two files.
    #[error("{} has the tensor {tensor:?} a second time", path.display())]
    Twice {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor that the configuration does not have.
    #[error("{} has the tensor {tensor:?}, which config.json does not account for", path.display())]
    Unexpected {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error(
        "{}: tensor {tensor:?} has shape {found:?}; config.json makes it {expected:?}", path.display()
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape of the configuration.
        expected: Vec<usize>,
        /// The file's.
        found: Vec<usize>,
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
        let text = read_bytes(&directory.join("config.json"))?;
        let config = DecoderConfig::parse(&text).map_err(|source| CheckpointError::Config {
            directory: directory.to_owned(),
            source,
        })?;
        // The cheap files first, so that a mistake shows before the weights are read.
        let tokenizer = Tokenizer::open(&directory.join("tokenizer.json"))?;
        let (tokens, rows) = (tokenizer.vocab_size(), config.vocab_size);
        if tokens > rows {
            return Err(CheckpointError::Vocabulary { tokens, rows });
        }
        let chat_template = ChatTemplate::open(directory)?;
        let generation = GenerationDefaults::open(directory, &text)?;
        let (weights, digest) = weights::read(directory, &config, &text)?;
        let decoder = Decoder::new(config, weights)?;
        Ok(Self { digest, decoder, tokenizer, chat_template, generation })
    }
}

/// Reads a file that may be absent.
fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    if path.exists() { read_bytes(path).map(Some) } else { Ok(None) }
}
