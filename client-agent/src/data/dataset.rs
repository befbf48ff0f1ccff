use candle_core::{Device, Tensor};

use super::{DataError, DataSource, Texts, csv, idx, images, jsonl};
use crate::model::{Batch, Inputs, fractions};

/// Records in memory, as compact as their file had them.
#[derive(Debug, Clone)]
pub struct Dataset {
    features: Features,
    num_features: usize,
    labels: Vec<u32>,
    num_classes: u32,
}

#[derive(Debug, Clone)]
enum Features {
    /// Scaled by 1/255 when a batch is made.
    Bytes(Vec<u8>),
    Floats(Vec<f32>),
    Texts(Texts),
}

impl Dataset {
    /// Reads a dataset from its files.
    ///
    /// With `examples_max` only the first so many records of the file are used. Neighbouring
    /// datasets then differ in one record of the file blanked in place: were it cut out instead,
    /// the record behind the last used one would move up and two records would differ.
    ///
    /// # Errors
    /// [`DataError`] naming file, row and column.
    pub fn load(source: &DataSource, examples_max: Option<usize>) -> Result<Self, DataError> {
        let examples_max = examples_max.unwrap_or(usize::MAX);
        match source {
            DataSource::Idx(source) => idx::load(source, examples_max),
            DataSource::Csv(source) => csv::load(source, examples_max),
            DataSource::Jsonl(source) => jsonl::load(source, examples_max),
            DataSource::Images(source) => images::load(source, examples_max),
            #[cfg(feature = "parquet")]
            DataSource::Parquet(source) => super::parquet::load(source, examples_max),
            #[cfg(not(feature = "parquet"))]
            DataSource::Parquet(source) => {
                Err(DataError::ParquetNotBuilt { path: source.path.clone() })
            }
        }
    }

    /// Makes a dataset of byte features, `[records, num_features]`, each standing for `byte / 255`.
    ///
    /// # Panics
    /// If the lengths do not fit together or a label is not below `num_classes`.
    #[must_use]
    pub fn from_bytes(
        features: Vec<u8>,
        num_features: usize,
        labels: Vec<u32>,
        num_classes: u32,
    ) -> Self {
        assert_eq!(features.len(), num_features * labels.len(), "one row of features a label");
        assert!(labels.iter().all(|&label| label < num_classes), "labels are classes");
        Self { features: Features::Bytes(features), num_features, labels, num_classes }
    }

    /// Makes a dataset of real features, `[records, num_features]`.
    ///
    /// # Panics
    /// If the lengths do not fit together or a label is not below `num_classes`.
    #[must_use]
    pub fn from_floats(
        features: Vec<f32>,
        num_features: usize,
        labels: Vec<u32>,
        num_classes: u32,
    ) -> Self {
        assert_eq!(features.len(), num_features * labels.len(), "one row of features a label");
        assert!(labels.iter().all(|&label| label < num_classes), "labels are classes");
        Self { features: Features::Floats(features), num_features, labels, num_classes }
    }

    /// Makes a dataset of texts with classes.
    ///
    /// # Panics
    /// If there is not one label a text, or one is not below `num_classes`.
    #[must_use]
    pub fn from_texts(texts: Texts, labels: Vec<u32>, num_classes: u32) -> Self {
        assert_eq!(texts.len(), labels.len(), "one label a text");
        assert!(labels.iter().all(|&label| label < num_classes), "labels are classes");
        Self { features: Features::Texts(texts), num_features: 0, labels, num_classes }
    }

    /// Makes a dataset of texts to continue, which have no classes.
    #[must_use]
    pub fn from_continued(texts: Texts) -> Self {
        let labels = vec![0; texts.len()];
        Self { features: Features::Texts(texts), num_features: 0, labels, num_classes: 1 }
    }

    /// The texts, if the records are texts.
    #[must_use]
    pub const fn texts(&self) -> Option<&Texts> {
        match &self.features {
            Features::Texts(texts) => Some(texts),
            Features::Bytes(_) | Features::Floats(_) => None,
        }
    }

    /// The same features with other labels, one a record; for simulated attacks.
    ///
    /// # Panics
    /// If there is not one label a record, or one is not below [`Self::num_classes`].
    #[must_use]
    pub fn relabelled(&self, labels: Vec<u32>) -> Self {
        assert_eq!(labels.len(), self.labels.len(), "one label a record");
        assert!(labels.iter().all(|&label| label < self.num_classes), "labels are classes");
        Self { labels, ..self.clone() }
    }

    /// Whether a model's input with a class could be one of these records.
    ///
    /// - `row`: features, or the tokens of a text as whole numbers, no longer than the longest here
    #[must_use]
    pub fn accepts(&self, row: &[f32], label: u32) -> bool {
        let fits = match &self.features {
            Features::Bytes(_) | Features::Floats(_) => row.len() == self.num_features,
            Features::Texts(texts) => {
                // Whole numbers of that size are exact in f32.
                let known = 0.0..texts.vocab_size() as f32;
                let is_token = |value: &f32| value.fract() == 0.0 && known.contains(value);
                !texts.continued()
                    && (1..=texts.longest_input()).contains(&row.len())
                    && row.iter().all(is_token)
            }
        };
        fits && label < self.num_classes
    }

    /// The same records with more behind them.
    ///
    /// Where the records are bytes, the new features are rounded to the nearest of 0, 1/255, .. 1.
    ///
    /// - `rows`: features or tokens, one row a label
    ///
    /// # Panics
    /// If there is not one row a label, or one that [`Self::accepts`] does not accept.
    #[must_use]
    pub fn appended(&self, rows: &[Vec<f32>], labels: &[u32]) -> Self {
        assert_eq!(rows.len(), labels.len(), "one row a label");
        let mut all = self.clone();
        for (row, &label) in rows.iter().zip(labels) {
            assert!(self.accepts(row, label), "the row fits the records");
            match &mut all.features {
                Features::Bytes(bytes) => {
                    bytes.extend(row.iter().map(|value| (value * 255.0).round() as u8));
                }
                Features::Floats(floats) => floats.extend_from_slice(row),
                Features::Texts(texts) => {
                    let tokens: Vec<u32> = row.iter().map(|&value| value as u32).collect();
                    texts.push(&tokens, 0);
                }
            }
            all.labels.push(label);
        }
        all
    }

    /// Number of records.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no record.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Number of features of each record; 0 for texts.
    #[must_use]
    pub const fn num_features(&self) -> usize {
        self.num_features
    }

    /// Number of classes.
    #[must_use]
    pub const fn num_classes(&self) -> u32 {
        self.num_classes
    }

    /// The class of each record.
    #[must_use]
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// The features of one record, as the model sees them.
    ///
    /// # Panics
    /// If `index` is not below [`Self::len`].
    #[must_use]
    pub fn features(&self, index: usize) -> Vec<f32> {
        let mut row = vec![0.0; self.num_features];
        self.fill_row(index, &mut row);
        row
    }

    /// Tensors of the chosen records: features `[n, num_features]` and classes `[n]` (u32).
    ///
    /// # Errors
    /// The tensor library's, if it cannot hold the batch.
    ///
    /// # Panics
    /// If an index is not below [`Self::len`].
    pub fn batch(&self, indices: &[u32]) -> candle_core::Result<(Tensor, Tensor)> {
        let mut rows = vec![0.0; indices.len() * self.num_features];
        let mut labels = Vec::with_capacity(indices.len());
        self.fill_batch(indices, &mut rows, &mut labels);
        let features = Tensor::from_vec(rows, (indices.len(), self.num_features), &Device::Cpu)?;
        Ok((features, Tensor::from_vec(labels, indices.len(), &Device::Cpu)?))
    }

    /// What a model reads of the chosen records, and what it should answer.
    ///
    /// # Errors
    /// The tensor library's, if it cannot hold the batch.
    ///
    /// # Panics
    /// If an index is not below [`Self::len`].
    pub fn examples(&self, indices: &[u32]) -> candle_core::Result<Batch> {
        if let Features::Texts(texts) = &self.features {
            return texts.examples(indices, &self.labels);
        }
        let mut rows = vec![0.0; indices.len() * self.num_features];
        let mut labels = Vec::with_capacity(indices.len());
        self.fill_batch(indices, &mut rows, &mut labels);
        let features = Tensor::from_vec(rows, (indices.len(), self.num_features), &Device::Cpu)?;
        let weights = vec![1.0; labels.len()];
        Ok(Batch { inputs: Inputs::Features(features), labels, weights })
    }

    /// The same as [`Self::batch`] into memory that is already there: features into `rows`, classes behind `labels`.
    ///
    /// # Panics
    /// If an index is not below [`Self::len`].
    pub(crate) fn fill_batch(&self, indices: &[u32], rows: &mut [f32], labels: &mut Vec<u32>) {
        for (&index, row) in indices.iter().zip(rows.chunks_exact_mut(self.num_features.max(1))) {
            self.fill_row(index as usize, row);
        }
        labels.extend(indices.iter().map(|&index| self.labels[index as usize]));
    }

    /// The hash of the first `count` records, features and classes in their order: two datasets with
    /// the same one agree in them.
    ///
    /// # Panics
    /// If there are fewer records.
    #[must_use]
    pub fn digest(&self, count: usize) -> [u8; 32] {
        const CONTEXT: &str = "tributary 2026 records in their order, version 1";
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        for number in [count, self.num_features, self.num_classes as usize] {
            hasher.update(&(number as u64).to_le_bytes());
        }
        for label in &self.labels[..count] {
            hasher.update(&label.to_le_bytes());
        }
        let end = count * self.num_features;
        match &self.features {
            Features::Bytes(bytes) => {
                hasher.update(b"bytes").update(&bytes[..end]);
            }
            Features::Floats(floats) => {
                hasher.update(b"floats");
                for chunk in floats[..end].chunks(1024) {
                    let bytes: Vec<u8> =
                        chunk.iter().flat_map(|value| value.to_le_bytes()).collect();
                    hasher.update(&bytes);
                }
            }
            Features::Texts(texts) => {
                hasher.update(b"texts");
                texts.hash(count, &mut hasher);
            }
        }
        *hasher.finalize().as_bytes()
    }

    fn fill_row(&self, index: usize, row: &mut [f32]) {
        let range = index * self.num_features..(index + 1) * self.num_features;
        match &self.features {
            Features::Bytes(bytes) => fractions(&bytes[range], row),
            Features::Floats(floats) => row.copy_from_slice(&floats[range]),
            Features::Texts(_) => {}
        }
    }
}
