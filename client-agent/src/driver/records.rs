//! The tenant's datasets in memory, each read once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use thiserror::Error;
use tributary_protocol::id::DatasetName;

use crate::{
    config::Config,
    data::{DataError, Dataset, Split, SplitError},
    feedback::{Examples, with_examples},
};

/// Fixes which records train, for the life of a site: measurements stay comparable, and no record
/// that trained is ever held out later.
const SPLIT_SEED: u64 = 0x7452_4942;

/// One dataset with its parts.
#[derive(Debug)]
pub struct Records {
    /// All records that the policy lets be used.
    pub data: Dataset,
    /// Which train, validate and measure.
    pub split: Split,
}

/// Says why a dataset cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RecordsError {
    /// The configuration has no such dataset.
    #[error("the agent has no section `data.{dataset}`")]
    Missing {
        /// The dataset.
        dataset: DatasetName,
    },
    /// The files cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The records cannot be split.
    #[error(transparent)]
    Split(#[from] SplitError),
}

impl Records {
    /// Reads a configured dataset.
    ///
    /// # Errors
    /// [`RecordsError`] naming file, row and column.
    pub fn load(
        config: &Config,
        dataset: &DatasetName,
        examples_max: Option<usize>,
    ) -> Result<Self, RecordsError> {
        let source = config
            .datasets
            .get(dataset)
            .ok_or_else(|| RecordsError::Missing { dataset: dataset.clone() })?;
        let data = Dataset::load(source, examples_max)?;
        let split = Split::new(data.len(), config.held_out_fraction, SPLIT_SEED)?;
        Ok(Self { data, split })
    }

    /// The same with labelled predictions behind them, for the private adapter alone.
    #[must_use]
    pub fn with_examples(&self, examples: &Examples, held_out_fraction: f64) -> Self {
        let parts = (&self.data, &self.split);
        let (data, split) = with_examples(parts, examples, held_out_fraction);
        Self { data, split }
    }
}

/// Datasets by name, read on first use.
#[derive(Debug, Default)]
pub(super) struct RecordsCache(Mutex<HashMap<DatasetName, Arc<Records>>>);

impl RecordsCache {
    pub(super) fn load(
        &self,
        config: &Config,
        dataset: &DatasetName,
        examples_max: Option<usize>,
    ) -> Result<Arc<Records>, RecordsError> {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(records) = cache.get(dataset) {
            return Ok(records.clone());
        }
        let records = Arc::new(Records::load(config, dataset, examples_max)?);
        cache.insert(dataset.clone(), records.clone());
        Ok(records)
    }
}
