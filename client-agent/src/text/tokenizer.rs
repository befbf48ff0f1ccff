use std::path::Path;

use super::TextError;
use crate::durable_file::read_bytes;

/// A `tokenizer.json`.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Reads a file.
    ///
    /// # Errors
    /// [`TextError`] naming it.
    pub fn open(path: &Path) -> Result<Self, TextError> {
        let bytes = read_bytes(path)?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| {
            TextError::Tokenizer { path: path.to_owned(), message: error.to_string() }
        })?;
        // Padding and cutting are for training batches; here they would change prompts silently.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| TextError::Tokenizer {
            path: path.to_owned(),
            message: error.to_string(),
        })?;
        Ok(Self { inner })
    }

    /// Number of tokens, with those added later.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        // Ids may have gaps: what counts is the largest.
        let vocabulary = self.inner.get_vocab(true);
        vocabulary.values().max().map_or(0, |&largest| largest as usize + 1)
    }

    /// Turns text into tokens.
    ///
    /// - `special`: whether the tokenizer adds its own, such as a beginning of text
    ///
    /// # Errors
    /// [`TextError::Encode`] with what the library said.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, TextError> {
        let encoding = self
            .inner
            .encode_fast(text, special)
            .map_err(|error| TextError::Encode { message: error.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Turns tokens into text without special tokens; invalid UTF-8 becomes U+FFFD.
    #[must_use]
    pub fn decode(&self, tokens: &[u32]) -> String {
        // The library fails only where its decoders reject a token that is not in the vocabulary.
        self.inner.decode(tokens, true).unwrap_or_default()
    }
}
