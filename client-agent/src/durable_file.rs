//! Whole files that appear at once and survive a loss of power.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use thiserror::Error;

/// Says which file cannot be read or written.
#[derive(Debug, Error)]
#[error("cannot {action} {}", path.display())]
pub struct FileError {
    /// What was attempted.
    pub action: &'static str,
    /// On which file.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: std::io::Error,
}

impl FileError {
    /// Turns an I/O error into one that names file and action.
    pub fn on(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { action, path, source }
    }
}

/// What helps against a full disk, for people.
pub const FULL_DISK: &str = "the disk is full, or a file may not grow: make room; a running agent then \
                             goes on by itself, and nothing is debited before its bytes are stored";

/// Whether an error, or a cause of it, is a disk without room.
#[must_use]
pub fn is_full_disk(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::{Error, ErrorKind};
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|cause| cause.downcast_ref::<Error>())
        .any(|error| {
            let kind = error.kind();
            matches!(
                kind,
                ErrorKind::StorageFull | ErrorKind::FileTooLarge | ErrorKind::QuotaExceeded
            )
        })
}

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// As the process's file mode mask has it.
    Shared,
    /// Only the owner: private keys.
    Owner,
}

/// Replaces `path` by `bytes`: temporary file, fsync, rename, fsync of the directory.
///
/// A reader sees the old file or the new one, never a part.
///
/// # Errors
/// [`FileError`]; the old file, if any, is then still there.
pub fn write_durably(path: &Path, bytes: &[u8], access: Access) -> Result<(), FileError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.new"));
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    if access == Access::Owner {
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        // The mode is set only on creation: a leftover of another mode must not stay.
        let _ = fs::remove_file(&temporary);
    }
    let mut file = options.open(&temporary).map_err(FileError::on("create", &temporary))?;
    file.write_all(bytes).map_err(FileError::on("write", &temporary))?;
    file.sync_all().map_err(FileError::on("flush", &temporary))?;
    fs::rename(&temporary, path).map_err(FileError::on("put in place", path))?;
    sync_directory(path)
}

/// Makes the directory entry of `path` durable.
///
/// # Errors
/// [`FileError`] if the directory cannot be flushed.
pub fn sync_directory(path: &Path) -> Result<(), FileError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(FileError::on("flush", directory))
}

/// Makes a directory and its missing parents.
///
/// # Errors
/// [`FileError`] naming it.
pub fn create_directory(path: &Path) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(FileError::on("create directory", path))
}

/// Reads a text file.
///
/// # Errors
/// [`FileError`] naming it.
pub fn read_text(path: &Path) -> Result<String, FileError> {
    fs::read_to_string(path).map_err(FileError::on("read", path))
}

/// Reads a file.
///
/// # Errors
/// [`FileError`] naming it.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>, FileError> {
    fs::read(path).map_err(FileError::on("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_replaced_whole_and_leave_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("current.json");
        write_durably(&path, b"one", Access::Shared).unwrap();
        write_durably(&path, b"two", Access::Shared).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        let error = write_durably(&directory.path().join("no/such"), b"", Access::Shared);
        assert!(error.unwrap_err().to_string().contains("no/.such.new"));
    }

    #[cfg(unix)]
    #[test]
    fn keys_are_readable_by_their_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        write_durably(&path, b"secret", Access::Owner).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
