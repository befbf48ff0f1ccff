//! A tenant's records: where they lie, how they are read and how batches are made of them.
//!
//! Everything here stays at the site. Files are read whole once; image pixels stay bytes in memory
//! and become numbers batch by batch.

mod csv;
mod dataset;
mod error;
mod idx;
mod images;
mod jsonl;
#[cfg(feature = "parquet")]
mod parquet;
mod split;
mod text_reader;
mod texts;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tributary_protocol::id::Digest;

pub use self::{
    dataset::Dataset,
    error::DataError,
    split::{Split, SplitError},
    text_reader::{TextReader, TextReaders},
    texts::Texts,
};
use crate::{
    durable_file::{FileError, read_bytes},
    text::bytes_tokenizer,
};

/// Where the records of one dataset lie, as in `agent.toml` under `[data.NAME]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum DataSource {
    /// The two files of an IDX image set (MNIST family), plain or gzip-compressed.
    Idx(IdxSource),
    /// One table of comma-separated values.
    Csv(CsvSource),
    /// Texts, one JSON object a line.
    Jsonl(JsonlSource),
    /// A folder of images, one subfolder a class.
    Images(ImagesSource),
    /// One Parquet table; needs an agent built with the feature `parquet`.
    Parquet(ParquetSource),
}

/// A Parquet table of flat columns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParquetSource {
    /// The file.
    pub path: PathBuf,
    /// Name of the column with the label.
    pub label: String,
    /// Every value that the label may take; the position is the class.
    pub labels: Vec<String>,
    /// The columns used as features, in feature order; others are ignored.
    pub columns: Vec<CsvColumn>,
}

impl ParquetSource {
    /// The same table as text would have it.
    #[cfg(feature = "parquet")]
    fn table(&self) -> CsvSource {
        CsvSource {
            path: self.path.clone(),
            has_header: true,
            label: self.label.clone(),
            labels: self.labels.clone(),
            columns: self.columns.clone(),
        }
    }
}

/// A folder with one subfolder of PNG and JPEG files for each class.
///
/// A record's place is that of its file among the names of its class: a neighbouring dataset has one
/// file blanked, not removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImagesSource {
    /// The folder.
    pub path: PathBuf,
    /// The names of the subfolders; the position is the class.
    pub classes: Vec<String>,
    /// Rows of pixels that every image has.
    pub height: u32,
    /// Pixels of a row.
    pub width: u32,
    /// 3 for colour (red, green and blue side by side), 1 for grey; images are converted.
    #[serde(default = "channels_default")]
    pub channels: u32,
}

const fn channels_default() -> u32 {
    3
}

/// Texts as lines of JSON: `{"text": …, "label": …}` to classify; or to continue `{"text": …}`,
/// `{"prompt": …, "completion": …}` or `{"messages": [{"role": …, "content": …}, …]}`, of which the
/// completion or the last message is learnt. Each line is one record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JsonlSource {
    /// The file, plain or gzip-compressed.
    pub path: PathBuf,
    /// What turns text into tokens; it must be that of the model.
    #[serde(default)]
    pub tokenizer: TokenizerSource,
    /// Every value that the label may take; the position is the class. Without any, the texts are
    /// continued.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Tokens of a text that are used, at most; the rest is cut off.
    #[serde(default = "tokens_max_default")]
    pub tokens_max: usize,
}

const fn tokens_max_default() -> usize {
    512
}

/// What turns text into tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum TokenizerSource {
    /// Every byte is a token, 256 in all.
    #[default]
    Bytes,
    /// A model folder with `tokenizer.json` and, for `messages`, a chat template.
    Folder(PathBuf),
}

impl TokenizerSource {
    /// Digest of the `tokenizer.json`; of that which is exported with a model where bytes are tokens.
    ///
    /// # Errors
    /// [`FileError`] naming the file.
    pub fn digest(&self) -> Result<Digest, FileError> {
        match self {
            Self::Bytes => Ok(Digest::of(bytes_tokenizer().as_bytes())),
            Self::Folder(folder) => Ok(Digest::of(&read_bytes(&folder.join("tokenizer.json"))?)),
        }
    }
}

/// An image set in the IDX format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdxSource {
    /// File of unsigned bytes, `[records, ...]`; every byte is scaled from 0..=255 to 0..=1.
    pub images: PathBuf,
    /// File of unsigned bytes, `[records]`, each below `classes`.
    pub labels: PathBuf,
    /// Number of classes.
    pub classes: u32,
}

/// A table of comma-separated values; spaces around values are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CsvSource {
    /// The file, plain or gzip-compressed.
    pub path: PathBuf,
    /// Whether the first line names the columns. Without it columns are called `1`, `2`, ...
    #[serde(default = "has_header_default")]
    pub has_header: bool,
    /// Name of the column with the label.
    pub label: String,
    /// Every value that the label may take; the position is the class.
    pub labels: Vec<String>,
    /// The columns used as features, in feature order; others are ignored.
    pub columns: Vec<CsvColumn>,
}

const fn has_header_default() -> bool {
    true
}

/// One feature column of a table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CsvColumn {
    /// Name of the column.
    pub name: String,
    /// How its text becomes numbers.
    pub kind: CsvColumnKind,
}

/// How the text of a column becomes features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum CsvColumnKind {
    /// One feature: the number, clamped to public bounds and scaled to 0..=1. The bounds are
    /// configuration, never measured on the records, so they cost no privacy.
    Numeric {
        /// Becomes 0.
        min: f64,
        /// Becomes 1.
        max: f64,
    },
    /// One feature a category, 1 for the record's own category and 0 for the rest.
    Categorical {
        /// Every value that the column may take.
        categories: Vec<String>,
    },
}

impl DataSource {
    /// The same source with relative paths taken from `directory`.
    #[must_use]
    pub fn relative_to(&self, directory: &std::path::Path) -> Self {
        let mut source = self.clone();
        match &mut source {
            Self::Idx(idx) => {
                idx.images = directory.join(&idx.images);
                idx.labels = directory.join(&idx.labels);
            }
            Self::Csv(csv) => csv.path = directory.join(&csv.path),
            Self::Jsonl(jsonl) => *jsonl = jsonl.relative_to(directory),
            Self::Images(images) => images.path = directory.join(&images.path),
            Self::Parquet(parquet) => parquet.path = directory.join(&parquet.path),
        }
        source
    }
}

impl JsonlSource {
    /// The same source with relative paths taken from `directory`.
    #[must_use]
    pub fn relative_to(&self, directory: &std::path::Path) -> Self {
        let tokenizer = match &self.tokenizer {
            TokenizerSource::Bytes => TokenizerSource::Bytes,
            TokenizerSource::Folder(folder) => TokenizerSource::Folder(directory.join(folder)),
        };
        Self { path: directory.join(&self.path), tokenizer, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_parse_from_toml_and_unknown_keys_are_named() {
        #[derive(Deserialize)]
        struct File {
            data: std::collections::BTreeMap<String, DataSource>,
        }
        let text = r#"
            [data.fashion-mnist.idx]
            images = "images.gz"
            labels = "labels.gz"
            classes = 10
            [data.adult.csv]
            path = "adult.csv"
            has_header = false
            label = "3"
            labels = ["<=50K", ">50K"]
            columns = [
                { name = "1", kind = { numeric = { min = 17, max = 90 } } },
                { name = "2", kind = { categorical = { categories = ["a", "b"] } } },
            ]
        "#;
        let file: File = toml::from_str(text).expect("valid");
        assert!(matches!(file.data["adult"], DataSource::Csv(_)));
        let moved = file.data["fashion-mnist"].relative_to("/site".as_ref());
        let DataSource::Idx(idx) = moved else { panic!("an IDX source") };
        assert_eq!(idx.images, PathBuf::from("/site/images.gz"));
        let error = toml::from_str::<File>(&text.replace("classes", "clases")).map(|_| ());
        assert!(error.expect_err("typo").to_string().contains("clases"));
    }
}
