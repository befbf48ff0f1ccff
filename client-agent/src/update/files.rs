use std::{
    fs,
    path::{Path, PathBuf},
};

use tributary_protocol::{id::Digest, message::BlobRef};
use zeroize::Zeroizing;

use crate::durable_file::{Access, FileError, create_directory, write_durably};

/// The directory of packed updates, each named by its digest; and another one of what must never
/// leave: the states of runs with correlated noise, each named by the release after which it is.
#[derive(Debug, Clone)]
pub struct ReleaseFiles {
    directory: PathBuf,
    runs: PathBuf,
}

impl ReleaseFiles {
    /// Opens the directories, making them if there are none.
    ///
    /// - `directory`: of what may leave
    /// - `runs`: of the states of runs
    ///
    /// # Errors
    /// [`FileError`] naming the directory.
    pub fn open(directory: PathBuf, runs: PathBuf) -> Result<Self, FileError> {
        create_directory(&directory)?;
        create_directory(&runs)?;
        Ok(Self { directory, runs })
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

    /// Stores the state of a run as it is after a release, durably and for the owner alone.
    ///
    /// # Errors
    /// [`FileError`] if the disk fails.
    pub(super) fn put_state(&self, release: Digest, state: &[u8]) -> Result<(), FileError> {
        write_durably(&self.state(release), state, Access::Owner)
    }

    /// Whether there is a state of a run after a release.
    pub(super) fn has_state(&self, release: Digest) -> bool {
        self.state(release).is_file()
    }

    /// The state of a run after a release, as far as it is there.
    pub(super) fn read_state(&self, release: Digest) -> Option<Zeroizing<Vec<u8>>> {
        fs::read(self.state(release)).ok().map(Zeroizing::new)
    }

    fn state(&self, release: Digest) -> PathBuf {
        self.runs.join(release.to_string())
    }

    /// Deletes every file, and every state, whose release is not among `kept`.
    ///
    /// # Errors
    /// [`FileError`] if a directory cannot be read or a file not removed.
    pub fn retain(&self, kept: &[Digest]) -> Result<(), FileError> {
        retain_in(&self.directory, kept)?;
        retain_in(&self.runs, kept)
    }
}

fn retain_in(directory: &Path, kept: &[Digest]) -> Result<(), FileError> {
    let failed = || FileError::on("tidy", directory);
    for entry in fs::read_dir(directory).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let digest = entry.file_name().to_str().and_then(|name| name.parse::<Digest>().ok());
        if !digest.is_some_and(|digest| kept.contains(&digest)) {
            fs::remove_file(entry.path()).map_err(FileError::on("remove", &entry.path()))?;
        }
    }
    Ok(())
}
