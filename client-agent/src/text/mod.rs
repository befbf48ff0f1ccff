//! Text to tokens and back, messages to prompts.

mod bytes;
mod chat;
mod stop;
mod stream;
mod tokenizer;

use std::path::PathBuf;

use thiserror::Error;

pub use self::{
    bytes::bytes_tokenizer,
    chat::{ChatMessage, ChatTemplate},
    stop::{StopFilter, Stopped},
    stream::TextStream,
    tokenizer::Tokenizer,
};
use crate::durable_file::FileError;

/// Says why text cannot be turned into tokens or back.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TextError {
    /// A file cannot be read.
    #[error("a file of the tokenizer is missing")]
    File(#[from] FileError),
    /// `tokenizer.json` is not a tokenizer.
    #[error("{} is not a readable tokenizer: {message}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What the library said.
        message: String,
    },
    /// `tokenizer_config.json` is not readable.
    #[error("{} cannot be read", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The chat template is not a template.
    #[error("the chat template of the model is broken: {message}")]
    Template {
        /// What the library said, with its line.
        message: String,
    },
    /// The chat template refuses these messages.
    #[error("the chat template of the model refuses these messages: {message}")]
    Messages {
        /// What it said.
        message: String,
    },
    /// There are messages but no way to write them.
    #[error("the tokenizer has no chat template, which `messages` need")]
    NoTemplate,
    /// The tokenizer cannot take this text.
    #[error("the tokenizer cannot take this text: {message}")]
    Encode {
        /// What the library said.
        message: String,
    },
}
