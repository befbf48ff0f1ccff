use std::path::PathBuf;

use thiserror::Error;

use crate::text::TextError;

/// Says which file, row and column cannot be used, and what would work.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A gzip file ends early or is damaged.
    #[error(
        "{} is not a whole gzip file (readable up to byte {readable} of its content); copy it again",
        path.display()
    )]
    Gzip {
        /// The file.
        path: PathBuf,
        /// Bytes of content read before the damage.
        readable: usize,
        /// What the decoder saw.
        #[source]
        source: std::io::Error,
    },
    /// The file does not start as an IDX file of unsigned bytes does.
    #[error(
        "{} starts with {found:02x?}; an IDX file of unsigned bytes starts with [00, 00, 08, {dimensions_wanted}]",
        path.display()
    )]
    IdxMagic {
        /// The file.
        path: PathBuf,
        /// Its first bytes.
        found: Vec<u8>,
        /// What the fourth byte, the number of dimensions, may be.
        dimensions_wanted: &'static str,
    },
    /// The header of an IDX file promises another length than the file has.
    #[error(
        "{} has {found} bytes of content but its header, dimensions {dimensions:?}, needs {expected}",
        path.display()
    )]
    IdxLength {
        /// The file.
        path: PathBuf,
        /// The header's dimensions.
        dimensions: Vec<u64>,
        /// Bytes that the header needs, itself included.
        expected: u128,
        /// Bytes in the file.
        found: usize,
    },
    /// The two files of an image set hold different numbers of records.
    #[error(
        "{} holds {images} images but {} holds {labels} labels; they must be a pair",
        images_path.display(),
        labels_path.display()
    )]
    CountMismatch {
        /// The image file.
        images_path: PathBuf,
        /// Records in it.
        images: usize,
        /// The label file.
        labels_path: PathBuf,
        /// Records in it.
        labels: usize,
    },
    /// A label is not a class.
    #[error(
        "{}, record {record}: label {label} is not below `classes` = {classes}",
        path.display()
    )]
    LabelRange {
        /// The label file.
        path: PathBuf,
        /// The record, from 1.
        record: usize,
        /// The label.
        label: u8,
        /// Number of classes in the configuration.
        classes: u32,
    },
    /// There is no record at all.
    #[error("{} holds no records", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A number of the configuration cannot work.
    #[error("`{field}` is {value}; it must be {range}")]
    Config {
        /// The config key.
        field: String,
        /// What was given.
        value: String,
        /// What would work.
        range: &'static str,
    },
    /// A configured column is not in the file.
    #[error("{} has no column {column:?}; it has {available:?}", path.display())]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// The configured name.
        column: String,
        /// The names in the file.
        available: Vec<String>,
    },
    /// A row has more or fewer values than the first.
    #[error("{}, row {row}: {found} values where {expected} are needed", path.display())]
    Ragged {
        /// The file.
        path: PathBuf,
        /// The line, as an editor shows it.
        row: u64,
        /// Values in the row.
        found: usize,
        /// Values in the first row.
        expected: usize,
    },
    /// A row is not UTF-8 text or has broken quotes.
    #[error("{}, row {row}: not readable as comma-separated UTF-8 text", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// The line, as an editor shows it.
        row: u64,
        /// What the parser saw.
        #[source]
        source: csv::Error,
    },
    /// A file is neither PNG nor JPEG, whatever its name.
    #[error("{} is neither PNG nor JPEG", path.display())]
    ImageFormat {
        /// The file.
        path: PathBuf,
    },
    /// An image has another size than the configuration says.
    #[error(
        "{} has {} by {} pixels (height by width) where {} by {} are needed; scale it first",
        path.display(), found[0], found[1], expected[0], expected[1]
    )]
    ImageSize {
        /// The file.
        path: PathBuf,
        /// Its height and width.
        found: [u32; 2],
        /// Those of the configuration.
        expected: [u32; 2],
    },
    /// An image is cut short or damaged.
    #[error("{} cannot be decoded; copy it again", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What the decoder saw.
        #[source]
        source: image::ImageError,
    },
    /// A file is no Parquet table, or damaged.
    #[cfg(feature = "parquet")]
    #[error("{} is not a readable Parquet table", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the reader saw.
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// This agent cannot read Parquet.
    #[error(
        "{} needs an agent built with `--features parquet`; or convert the table to CSV", path.display()
    )]
    ParquetNotBuilt {
        /// The file.
        path: PathBuf,
    },
    /// A line is not the JSON object that it should be.
    #[error("{}, line {row} is not a JSON object with texts as values", path.display())]
    JsonLine {
        /// The file.
        path: PathBuf,
        /// The line, as an editor shows it.
        row: u64,
        /// What the parser saw.
        #[source]
        source: serde_json::Error,
    },
    /// A line has not the keys that it needs.
    #[error("{}, line {row} needs {needed}, and has {found:?}", path.display())]
    JsonKeys {
        /// The file.
        path: PathBuf,
        /// The line, as an editor shows it.
        row: u64,
        /// What would work.
        needed: &'static str,
        /// The keys that are there.
        found: Vec<&'static str>,
    },
    /// A text has no tokens.
    #[error("{}, line {row}: the text cannot be turned into tokens", path.display())]
    Tokenize {
        /// The file.
        path: PathBuf,
        /// The line, as an editor shows it.
        row: u64,
        /// Why.
        #[source]
        source: TextError,
    },
    /// The tokenizer cannot be read.
    #[error("the tokenizer of the dataset cannot be used")]
    Tokenizer(#[from] TextError),
    /// A value of a numeric column is not a finite number.
    #[error(
        "{}, row {row}, column {column:?}: {value:?} is not a number; write one such as 12 or 0.5",
        path.display()
    )]
    NotANumber {
        /// The file.
        path: PathBuf,
        /// The line, as an editor shows it.
        row: u64,
        /// The column.
        column: String,
        /// The text found, cut to a printable length.
        value: String,
    },
    /// A value is not among those that the configuration lists.
    #[error(
        "{}, row {row}, column {column:?}: {value:?} is not one of {known:?}; add it to the configuration or correct the row",
        path.display()
    )]
    UnknownValue {
        /// The file.
        path: PathBuf,
        /// The line, as an editor shows it.
        row: u64,
        /// The column.
        column: String,
        /// The text found, cut to a printable length.
        value: String,
        /// The values that would work.
        known: Vec<String>,
    },
}

/// Cuts a value from a file to a length that is safe to print.
pub(super) fn printable(value: &str) -> String {
    const LENGTH_MAX: usize = 64;
    value.chars().take(LENGTH_MAX).collect()
}
