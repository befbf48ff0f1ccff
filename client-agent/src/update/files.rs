use std::{fs, path::PathBuf};

use tributary_protocol::{id::Digest, message::BlobRef};

use crate::durable_file::{Access, FileError, create_directory, write_durably};

/// The directory of packed updates, each named by its digest.
#[derive(Debug, Clone)]
pub struct ReleaseFiles {
    directory: PathBuf,
}

impl ReleaseFiles {
    /// Opens the directory, making it if there is none.
    ///
    /// # Errors
    /// [`FileError`] naming it.
    pub fn open(directory: PathBuf) -> Result<Self, FileError> {
        create_directory(&directory)?;
        Ok(Self { directory })
    }

    /// Where the bytes of a release lie.
    #[must_use]
    pub fn path(&self, digest: Digest) -> PathBuf {
        self.directory.join(digest.to_string())
    }

    /// Stores bytes durably under their digest.
    ///
    /// # Errors
    /// [`FileError`] if the disk fails.
    pub fn put(&self, bytes: &[u8]) -> Result<BlobRef, FileError> {
        let digest = Digest::of(bytes);
        write_durably(&self.path(digest), bytes, Access::Shared)?;
        Ok(BlobRef { digest, length: bytes.len() as u64 })
    }

    /// The stored release, if its file is there and unchanged.
    #[must_use]
    pub fn find(&self, digest: Digest) -> Option<BlobRef> {
        self.read(digest).map(|bytes| BlobRef { digest, length: bytes.len() as u64 })
    }

    /// The bytes of a stored release, if its file is there and unchanged.
    #[must_use]
    pub fn read(&self, digest: Digest) -> Option<Vec<u8>> {
        let bytes = fs::read(self.path(digest)).ok()?;
        (Digest::of(&bytes) == digest).then_some(bytes)
    }

    /// Deletes every file that is not among `kept`.
    ///
    /// # Errors
    /// [`FileError`] if the directory cannot be read or a file not removed.
    pub fn retain(&self, kept: &[Digest]) -> Result<(), FileError> {
        let failed = || FileError::on("tidy", &self.directory);
        for entry in fs::read_dir(&self.directory).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            let digest = entry.file_name().to_str().and_then(|name| name.parse::<Digest>().ok());
            if !digest.is_some_and(|digest| kept.contains(&digest)) {
                fs::remove_file(entry.path()).map_err(FileError::on("remove", &entry.path()))?;
            }
        }
        Ok(())
    }
}
