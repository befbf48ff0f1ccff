//! The log's file. The store's lock keeps a second coordinator out of the folder.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use thiserror::Error;
use tributary_privacy::chain::ChainStore;

/// Says why the file cannot be used.
#[derive(Debug, Error)]
#[error("cannot {action} {path}")]
pub struct AuditFileError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl AuditFileError {
    fn on(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { action, path, source }
    }
}

/// A file that is flushed to the disk after every change.
#[derive(Debug)]
pub struct AuditFile {
    path: PathBuf,
    file: File,
}

impl AuditFile {
    /// Opens the file, or makes it, readable by its owner only.
    ///
    /// # Errors
    /// [`AuditFileError`].
    pub fn open(path: &Path) -> Result<Self, AuditFileError> {
        let mut options = OpenOptions::new();
        options.append(true).create(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(path).map_err(AuditFileError::on("open", path))?;
        file.sync_all().map_err(AuditFileError::on("flush", path))?;
        let folder = path.parent().expect("the log is in a folder");
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(AuditFileError::on("flush the folder of", path))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Everything in the file at `path`; a file that was never made is empty.
    ///
    /// # Errors
    /// [`AuditFileError`].
    pub fn bytes(path: &Path) -> Result<Vec<u8>, AuditFileError> {
        match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            result => result.map_err(AuditFileError::on("read", path)),
        }
    }
}

impl ChainStore for AuditFile {
    type Error = AuditFileError;

    fn read(&mut self) -> Result<Vec<u8>, AuditFileError> {
        Self::bytes(&self.path)
    }

    fn append_durably(&mut self, record: &[u8]) -> Result<(), AuditFileError> {
        self.file
            .write_all(record)
            .and_then(|()| self.file.sync_data())
            .map_err(AuditFileError::on("append to", &self.path))
    }

    fn truncate_durably(&mut self, length: u64) -> Result<(), AuditFileError> {
        self.file
            .set_len(length)
            .and_then(|()| self.file.sync_all())
            .map_err(AuditFileError::on("cut", &self.path))
    }
}
