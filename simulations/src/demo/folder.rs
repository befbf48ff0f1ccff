//! The folder in which everything of one demo lives.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::error::DemoError;

/// A work folder; a temporary one is removed when dropped, unless it was kept.
#[derive(Debug)]
pub struct WorkFolder {
    path: PathBuf,
    temporary: Option<tempfile::TempDir>,
}

impl WorkFolder {
    /// Makes the folder that the user named, or a temporary one.
    ///
    /// # Errors
    /// [`DemoError::FolderInUse`] if the named folder holds anything: nothing is overwritten.
    pub fn open(named: Option<&Path>) -> Result<Self, DemoError> {
        match named {
            Some(path) => Self::named(path),
            None => Self::temporary(),
        }
    }

    fn named(path: &Path) -> Result<Self, DemoError> {
        let failed = |source| DemoError::File { path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(failed)?;
        if fs::read_dir(path).map_err(failed)?.next().is_some() {
            return Err(DemoError::FolderInUse { path: path.to_owned() });
        }
        let path = path.canonicalize().map_err(failed)?;
        Ok(Self { path, temporary: None })
    }

    fn temporary() -> Result<Self, DemoError> {
        let folder = tempfile::Builder::new()
            .prefix("tributary-demo-")
            .tempdir()
            .map_err(|source| DemoError::File { path: std::env::temp_dir(), source })?;
        Ok(Self { path: folder.path().to_owned(), temporary: Some(folder) })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the folder in place for good; returns where it is.
    pub fn keep(&mut self) -> &Path {
        if let Some(folder) = self.temporary.take() {
            self.path = folder.keep();
        }
        &self.path
    }
}

/// Makes a folder inside the work folder.
pub(super) fn make(path: &Path) -> Result<(), DemoError> {
    fs::create_dir_all(path).map_err(|source| DemoError::File { path: path.to_owned(), source })
}

/// Writes a file inside the work folder.
pub(super) fn write(path: &Path, text: &str) -> Result<(), DemoError> {
    fs::write(path, text).map_err(|source| DemoError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_folders_go_and_kept_ones_stay() {
        let gone = WorkFolder::open(None).unwrap().path().to_owned();
        assert!(!gone.exists());
        let mut folder = WorkFolder::open(None).unwrap();
        let kept = folder.keep().to_owned();
        drop(folder);
        assert!(kept.exists());
        fs::remove_dir(kept).unwrap();
    }

    #[test]
    fn nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("mine"), "").unwrap();
        let error = WorkFolder::open(Some(folder.path())).unwrap_err();
        assert!(matches!(error, DemoError::FolderInUse { .. }), "{error}");
        let new = folder.path().join("a/b");
        assert!(WorkFolder::open(Some(&new)).unwrap().path().ends_with("a/b"));
        assert!(new.exists(), "a named folder is kept");
    }
}
