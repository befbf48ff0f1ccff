//! Texts of requests, read as the records of a dataset are.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use tributary_protocol::id::DatasetName;

use super::{DataError, DataSource, JsonlSource, jsonl::Words};
use crate::text::TextError;

/// Turns texts into the tokens that a model of one dataset reads.
pub struct TextReader {
    words: Words,
    tokens_max: usize,
}

impl TextReader {
    /// Opens the tokenizer of a dataset.
    ///
    /// # Errors
    /// [`DataError`] naming the tokenizer's file.
    pub fn open(source: &JsonlSource) -> Result<Self, DataError> {
        Ok(Self { words: Words::open(&source.tokenizer)?, tokens_max: source.tokens_max })
    }

    /// The tokens of a text, cut where those of a record would be.
    ///
    /// # Errors
    /// [`TextError::Encode`] with what the tokenizer said.
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let mut tokens = self.words.encode(text, true)?;
        tokens.truncate(self.tokens_max);
        Ok(tokens)
    }
}

/// The readers of all datasets of texts, each opened on first use.
#[derive(Default)]
pub struct TextReaders {
    sources: BTreeMap<DatasetName, JsonlSource>,
    open: Mutex<HashMap<DatasetName, Arc<TextReader>>>,
}

impl TextReaders {
    /// The readers of those of the datasets that are texts.
    #[must_use]
    pub fn new(datasets: &BTreeMap<DatasetName, DataSource>) -> Self {
        let texts = datasets.iter().filter_map(|(name, source)| match source {
            DataSource::Jsonl(source) => Some((name.clone(), source.clone())),
            _ => None,
        });
        Self { sources: texts.collect(), open: Mutex::default() }
    }

    /// The reader of a dataset; `None` if it is not one of texts.
    ///
    /// # Errors
    /// [`DataError`] naming the tokenizer's file.
    pub fn of(&self, dataset: &DatasetName) -> Result<Option<Arc<TextReader>>, DataError> {
        let Some(source) = self.sources.get(dataset) else { return Ok(None) };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reader) = open.get(dataset) {
            return Ok(Some(reader.clone()));
        }
        let reader = Arc::new(TextReader::open(source)?);
        open.insert(dataset.clone(), reader.clone());
        Ok(Some(reader))
    }
}
