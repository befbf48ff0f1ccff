//! Why a file cannot be stored or read.

use std::{
    io,
    path::{Path, PathBuf},
};

use thiserror::Error;
use tributary_protocol::id::Digest;

/// Says why a file cannot be stored or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BlobError {
    /// The disk or the file system failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The content is not what the name says.
    #[error(
        "file {path} is damaged: it has digest {found}, and {expected} was expected; put it back from a \
         backup"
    )]
    Digest {
        /// Where.
        path: PathBuf,
        /// The digest that names it.
        expected: Digest,
        /// The digest of its content.
        found: Digest,
    },
    /// A file that a record refers to is not there.
    #[error("file {path} is missing; put it back from a backup")]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// Another stream writes the file.
    #[error("another stream is still writing {path}")]
    Busy {
        /// Which.
        path: PathBuf,
    },
    /// The key of a tenant cannot be read, or does not open a file.
    #[error("file {path} cannot be opened with its tenant's key")]
    Seal {
        /// The key, or the file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BlobError {
    let path = path.to_owned();
    move |source| BlobError::Io { action, path, source }
}
