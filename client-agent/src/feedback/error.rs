use std::path::PathBuf;

use thiserror::Error;

use super::PredictionId;
use crate::{durable_file::FileError, ledger_file::LedgerFileError};

/// Says why feedback cannot be taken, found or kept.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FeedbackError {
    /// No prediction has this id.
    #[error("there is no prediction {id}; ids come with the answers of /v1/predict")]
    Unknown {
        /// The id.
        id: PredictionId,
    },
    /// The prediction is no longer kept.
    #[error(
        "prediction {id} is no longer kept: it was deleted, or is beyond the limits of [feedback]"
    )]
    Expired {
        /// The id.
        id: PredictionId,
    },
    /// The label is no class of the model that predicted.
    #[error("label {label} is no class of the model; classes are 0 to {}", classes.saturating_sub(1))]
    Label {
        /// The label.
        label: u32,
        /// Classes of the model.
        classes: u32,
    },
    /// Another label was given before.
    #[error("prediction {id} has the label {found} already; delete it first to correct it")]
    Labelled {
        /// The id.
        id: PredictionId,
        /// Its label.
        found: u32,
    },
    /// A file is damaged in a way that a crash does not explain.
    #[error(
        "{} is damaged at byte {offset}; move the file away to go on without its records",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the first unreadable record starts.
        offset: u64,
    },
    /// A write failed before and could not be taken back.
    #[error("{} could not be written; free some space and restart the agent", path.display())]
    Broken {
        /// The folder.
        path: PathBuf,
    },
    /// Another process holds the folder.
    #[error("the feedback's folder cannot be used")]
    InUse(#[from] LedgerFileError),
    /// The disk failed.
    #[error(transparent)]
    File(#[from] FileError),
}
