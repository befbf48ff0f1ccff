use std::path::PathBuf;

use thiserror::Error;

use crate::{experiment::ExperimentError, harness::HarnessError};

/// Says why a sweep cannot be made or stopped.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SweepError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The text is no sweep.
    #[error("{} is no sweep: {}", path.display(), reason.to_string().trim_end())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: Box<toml::de::Error>,
    },
    /// `--set` is not understood.
    #[error("`--set {text}`: write KEY=VALUE,VALUE,…, for example `--set cohort.size=10,20`")]
    Setting {
        /// What was given.
        text: String,
    },
    /// An axis has nothing on it.
    #[error("`{key}` has no values; give a list such as [1, 2, 4]")]
    NoValues {
        /// The key.
        key: String,
    },
    /// A key leads through something that has no keys.
    #[error("`{key}`: `{part}` {problem}")]
    Path {
        /// The whole key.
        key: String,
        /// Where it ends.
        part: String,
        /// Why, and what would work.
        problem: &'static str,
    },
    /// Two cells are the same experiment.
    #[error("`{first}` and `{second}` are the same experiment; remove one")]
    Repeated {
        /// One cell.
        first: String,
        /// The other.
        second: String,
    },
    /// One cell cannot work.
    #[error("the cell `{label}` cannot be run")]
    Cell {
        /// Its settings.
        label: String,
        /// Why.
        #[source]
        source: Box<ExperimentError>,
    },
    /// The user asked to stop; the sweep can be continued.
    #[error("interrupted with {done} of {cells} cells done; the same command goes on")]
    Interrupted {
        /// Finished cells.
        done: usize,
        /// All cells.
        cells: usize,
    },
    /// A result file cannot be written.
    #[error("cannot use {}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A cell failed in a way that concerns all.
    #[error(transparent)]
    Harness(Box<HarnessError>),
}
