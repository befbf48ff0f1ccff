//! Copies of a whole coordinator, taken while it runs, and how they are put back.
//!
//! ```text
//! coordinator.toml, keys, admin.token   as in the coordinator's folder
//! records.tsv                           every record: table, key, JSON
//! audit.jsonl                           the audit log up to the same moment
//! blobs/<digest>                        the files that records refer to
//! manifest.json                         written last: what the copy must hold
//! ```
//! The core makes a *snapshot* in its own folder between two requests, when everything is durable: records
//! and log are copied, files are linked. Whoever asked copies it elsewhere at leisure.
//!
//! A copy is an older coordinator. Rounds that were committed after it are lost, but agents have
//! spent budget on them and will not release anything else under their numbers. So [`restore()`]
//! moves every job past them.

mod manifest;
mod restore;
mod snapshot;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use thiserror::Error;

pub use self::{
    manifest::{JobMark, Manifest},
    restore::{Restored, restore},
    snapshot::{copy, discard, snapshot},
};
use crate::{audit::AuditError, blobs::BlobError, config::ConfigError, store::StoreError};

/// The snapshot's folder inside of the coordinator's.
pub const SNAPSHOT: &str = "snapshot";

const RECORDS: &str = "records.tsv";
const MANIFEST: &str = "manifest.json";
const BLOBS: &str = "blobs";

/// What is copied as it is, keys included.
const KEPT: [&str; 6] = [
    "coordinator.toml",
    "authority.pem",
    "authority.key",
    "server.pem",
    "server.key",
    "admin.token",
];

/// Says why a copy cannot be made or put back. Nothing of the coordinator's is changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BackupError {
    /// A file or folder cannot be read or written.
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
    /// The target of a copy holds something.
    #[error("{path} is not empty; choose a new folder, nothing was overwritten")]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// The folder holds no finished copy.
    #[error("{path} is not a backup: it has no manifest.json; the copy was not finished")]
    NotABackup {
        /// The folder.
        path: PathBuf,
    },
    /// A file of the copy is not what the manifest says.
    #[error("{path} of the backup is damaged: {reason}; use another backup, nothing was restored")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The coordinator's folder cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Records cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file cannot be read or written.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The audit log does not verify.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

fn on(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BackupError + use<> {
    let path = path.to_owned();
    move |source| BackupError::Io { action, path, source }
}

fn damaged(path: &Path, reason: impl ToString) -> BackupError {
    BackupError::Damaged { path: path.to_owned(), reason: reason.to_string() }
}

/// Copies a file durably, with its mode.
fn copy_file(from: &Path, to: &Path) -> Result<(), BackupError> {
    fs::copy(from, to).map_err(on("copy", from))?;
    File::open(to).and_then(|file| file.sync_all()).map_err(on("flush", to))
}

/// Makes a new folder that only its owner can read: it will hold keys.
fn private_folder(path: &Path) -> Result<(), BackupError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(on("create", path))
}

/// Makes the names in a folder durable.
fn sync_folder(path: &Path) -> Result<(), BackupError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(on("flush", path))
}
