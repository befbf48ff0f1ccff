//! Content-addressed files: models and updates, named by their BLAKE3.
//!
//! ```text
//! blobs/<digest>                             complete, never changed
//! staging/<job>.<round>/<tenant>.<digest>    an upload in progress; its length says where it resumes
//! ```
//! The updates of tenants that are kept apart lie sealed in [keyspaces](Keyspace) of their own.
//!
//! A file is written under another name, flushed to the disk, and then renamed, so a name that
//! exists always has its whole content.

mod error;
mod found;
mod keyspace;
mod seal;
mod staging;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use tributary_protocol::{
    id::{Digest, JobId, RoundNumber, TenantId},
    isolation::DataIsolation,
    message::BlobRef,
};

pub use self::{error::BlobError, keyspace::Keyspace, seal::Seal, staging::Staged};
use self::{
    error::io_error,
    found::Found,
    staging::{Staging, staging_name},
};

/// The two folders, and those of tenants that are kept apart.
#[derive(Debug, Clone)]
pub struct BlobStore {
    folder: PathBuf,
    blobs: PathBuf,
    staging: Arc<Staging>,
    keyspaces: Arc<Mutex<BTreeMap<PathBuf, Arc<Keyspace>>>>,
}

impl BlobStore {
    /// Opens, and creates if needed, the folders under `folder`.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn open(folder: &Path) -> Result<Self, BlobError> {
        let blobs = folder.join("blobs");
        fs::create_dir_all(&blobs).map_err(io_error("create", &blobs))?;
        let staging = Arc::new(Staging::open(folder.join("staging"))?);
        let store = Self { folder: folder.to_owned(), blobs, staging, keyspaces: Arc::default() };
        // Also those of tenants whose level has changed since.
        for level in [DataIsolation::OwnKeyspace, DataIsolation::OwnDatabase] {
            let Some(keyspaces) = keyspace::folder_name(level) else { continue };
            let path = folder.join(keyspaces);
            if !path.exists() {
                continue;
            }
            for own in list(&path)? {
                if let Some(tenant) = name(&own).and_then(|name| name.parse().ok()) {
                    store.keyspace(&tenant, level)?;
                }
            }
        }
        Ok(store)
    }

    /// Where a tenant's updates lie by themselves, made if needed; `None` for a shared store.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn keyspace(
        &self,
        tenant: &TenantId,
        level: DataIsolation,
    ) -> Result<Option<Arc<Keyspace>>, BlobError> {
        let Some(name) = keyspace::folder_name(level) else { return Ok(None) };
        let folder = self.folder.join(name).join(tenant.as_str());
        let mut known = self.keyspaces.lock().expect("no panic while it is held");
        if let Some(keyspace) = known.get(&folder) {
            return Ok(Some(keyspace.clone()));
        }
        let keyspace = Arc::new(Keyspace::open(folder.clone())?);
        known.insert(folder, keyspace.clone());
        Ok(Some(keyspace))
    }

    fn keyspaces(&self) -> Vec<Arc<Keyspace>> {
        self.keyspaces.lock().expect("no panic while it is held").values().cloned().collect()
    }

    /// Opens a complete file, and says what opens its content if it is sealed.
    fn find(&self, digest: Digest) -> Result<Found, BlobError> {
        let keyspaces = self.keyspaces();
        let own = keyspaces.iter().find(|keyspace| keyspace.contains(digest));
        let path = own.map_or_else(|| self.path(digest), |keyspace| keyspace.path(digest));
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(BlobError::Missing { path });
            }
            opened => opened.map_err(io_error("open", &path))?,
        };
        let seal = own.map(|keyspace| keyspace.seal()).transpose()?;
        Ok(Found { path, file, seal })
    }

    /// Where a complete file of no tenant's own is.
    #[must_use]
    pub fn path(&self, digest: Digest) -> PathBuf {
        self.blobs.join(digest.to_string())
    }

    /// Whether the complete file is here.
    #[must_use]
    pub fn contains(&self, digest: Digest) -> bool {
        self.path(digest).exists() || self.keyspaces().iter().any(|it| it.contains(digest))
    }

    /// Whether the complete file is here, and as long as somebody says.
    #[must_use]
    pub fn holds(&self, file: BlobRef) -> bool {
        fs::metadata(self.path(file.digest)).is_ok_and(|found| found.len() == file.length)
    }

    /// Stores `bytes`; durable on return.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, BlobError> {
        let digest = Digest::of(bytes);
        if self.path(digest).exists() {
            return Ok(digest);
        }
        let staged = self.staging.folder().join(format!("{digest}.put"));
        let mut file = File::create(&staged).map_err(io_error("create", &staged))?;
        file.write_all(bytes).map_err(io_error("write", &staged))?;
        finish(&file, &staged, &self.blobs, digest)?;
        Ok(digest)
    }

    /// Reads a complete file and checks it.
    ///
    /// # Errors
    /// [`BlobError`].
    pub fn read(&self, digest: Digest) -> Result<Vec<u8>, BlobError> {
        let mut bytes = Vec::new();
        self.find(digest)?.each(digest, |_, piece| {
            bytes.extend_from_slice(piece);
            Ok::<_, BlobError>(())
        })?;
        let found = Digest::of(&bytes);
        if found == digest {
            Ok(bytes)
        } else {
            let Found { path, .. } = self.find(digest)?;
            Err(BlobError::Digest { path, expected: digest, found })
        }
    }

    /// Checks that a complete file is here and whole, in little memory.
    ///
    /// # Errors
    /// [`BlobError`] naming it.
    pub fn verify(&self, digest: Digest) -> Result<(), BlobError> {
        let mut file = self.find(digest)?;
        let path = file.path.clone();
        let found = file.digest(digest)?;
        if found == digest {
            Ok(())
        } else {
            Err(BlobError::Digest { path, expected: digest, found })
        }
    }

    /// Gives every complete file a second name in another folder of the same file system, which
    /// outlives the first.
    ///
    /// - returns: digests and lengths, in bytes
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn link_all(&self, folder: &Path) -> Result<Vec<(Digest, u64)>, BlobError> {
        let mut linked = Vec::new();
        for path in list(&self.blobs)? {
            let Some(digest) = name(&path).and_then(|name| name.parse::<Digest>().ok()) else {
                continue;
            };
            let length = fs::metadata(&path).map_err(io_error("read", &path))?.len();
            fs::hard_link(&path, folder.join(digest.to_string()))
                .map_err(io_error("link", &path))?;
            linked.push((digest, length));
        }
        Ok(linked)
    }

    /// Hands a complete file to `take` piece by piece, with the offset of each; it is not kept in memory
    /// for others who would read it.
    ///
    /// # Errors
    /// [`BlobError`], or what `take` returns.
    pub fn stream<E: From<BlobError>>(
        &self,
        digest: Digest,
        take: impl FnMut(usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut file = self.find(digest)?;
        file.each(digest, take)?;
        file.forget();
        Ok(())
    }

    /// Reads some bytes of a complete file, whose content was checked before.
    ///
    /// # Errors
    /// [`BlobError`], also if the file ends before.
    pub fn read_at(&self, digest: Digest, offset: u64, bytes: &mut [u8]) -> Result<(), BlobError> {
        let Found { path, file, seal } = self.find(digest)?;
        match seal {
            None => file.read_exact_at(bytes, offset).map_err(io_error("read", &path)),
            Some(seal) => seal
                .read_at(digest, &file, offset, bytes)
                .map_err(|source| BlobError::Seal { path, source }),
        }
    }

    /// Opens the staging file of a tenant's upload; its length is what has arrived so far. What
    /// arrived of another upload of the tenant in this round is removed: each has one at a time.
    ///
    /// - `keyspace`: where the tenant's updates lie, if by themselves
    ///
    /// # Errors
    /// [`BlobError::Busy`] while another stream writes it, or [`BlobError::Io`].
    pub fn stage(
        &self,
        keyspace: Option<&Keyspace>,
        job: &JobId,
        round: RoundNumber,
        tenant: &TenantId,
        digest: Digest,
    ) -> Result<Staged, BlobError> {
        if let Some(keyspace) = keyspace {
            return keyspace.stage(job, round, digest);
        }
        let (path, file) = self.staging.stage(job, round, tenant, digest)?;
        let length = file.metadata().map_err(io_error("read", &path))?.len();
        Ok(Staged { digest, path, home: self.blobs.clone(), file, length, seal: None })
    }

    /// Completes a staged upload: checks its digest, makes it durable, gives it its name.
    ///
    /// - `found`: the digest of what was written, if the writer saw all of it
    ///
    /// # Errors
    /// [`BlobError::Digest`] if the content is not what was announced (the staging file is then removed, since a
    /// resumption could not mend it), or [`BlobError::Io`].
    pub fn complete(&self, staged: &Staged, found: Option<Digest>) -> Result<(), BlobError> {
        let found = match found {
            Some(found) => found,
            None => self.read_staged(staged)?,
        };
        if found != staged.digest {
            fs::remove_file(&staged.path).map_err(io_error("remove", &staged.path))?;
            return Err(BlobError::Digest {
                path: staged.path.clone(),
                expected: staged.digest,
                found,
            });
        }
        finish(&staged.file, &staged.path, &staged.home, staged.digest)
    }

    /// The digest of what has arrived of an upload.
    fn read_staged(&self, staged: &Staged) -> Result<Digest, BlobError> {
        let (path, seal) = (staged.path.clone(), staged.seal.clone());
        let file = File::open(&path).map_err(io_error("open", &path))?;
        let found = (Found { path, file, seal }).digest(staged.digest);
        if let Err(BlobError::Seal { .. }) = found {
            // What a crash has left of it cannot be mended by a resumption either.
            remove_tree(&staged.path)?;
        }
        found
    }

    /// Removes a complete file that nothing refers to any more; one that is gone already is fine.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn remove(&self, digest: Digest) -> Result<(), BlobError> {
        for keyspace in self.keyspaces() {
            keyspace.remove(digest)?;
        }
        remove_tree(&self.path(digest))
    }

    /// Removes every complete file but these: what a crash left between a record and its files.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn retain(&self, referenced: &BTreeSet<Digest>) -> Result<(), BlobError> {
        for path in list(&self.blobs)? {
            let digest = name(&path).and_then(|name| name.parse().ok());
            if let Some(digest) = digest
                && !referenced.contains(&digest)
            {
                self.remove(digest)?;
            }
        }
        for keyspace in self.keyspaces() {
            keyspace.retain(|digest| referenced.contains(&digest))?;
        }
        Ok(())
    }

    /// Removes what has arrived of uploads for a closed round.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn unstage(&self, job: &JobId, round: RoundNumber) -> Result<(), BlobError> {
        let closed = staging_name(job, round);
        for keyspace in self.keyspaces() {
            keyspace.retain_staged(|name| name != closed)?;
        }
        self.staging.remove(&closed)
    }

    /// Removes what has arrived of every upload but those of these open rounds.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn retain_staged<'a>(
        &self,
        open: impl Iterator<Item = (&'a JobId, RoundNumber)>,
    ) -> Result<(), BlobError> {
        let open: BTreeSet<_> = open.map(|(job, round)| staging_name(job, round)).collect();
        self.staging.retain(&open)?;
        for keyspace in self.keyspaces() {
            keyspace.retain_staged(|name| open.contains(name))?;
        }
        Ok(())
    }
}

/// Makes a staged file durable and gives it its name.
fn finish(file: &File, staged: &Path, home: &Path, digest: Digest) -> Result<(), BlobError> {
    let path = home.join(digest.to_string());
    file.sync_all().map_err(io_error("flush", staged))?;
    fs::rename(staged, &path).map_err(io_error("rename to", &path))?;
    let folder = File::open(home).map_err(io_error("open", home))?;
    folder.sync_all().map_err(io_error("flush", home))
}

/// The paths of what is in a folder.
fn list(folder: &Path) -> Result<Vec<PathBuf>, BlobError> {
    let entries = fs::read_dir(folder).map_err(io_error("list", folder))?;
    let paths: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.path())).collect();
    paths.map_err(io_error("list", folder))
}

/// The name of a file or folder, if it is text.
fn name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

/// Removes a file or a folder with all that is in it; one that is gone already is fine.
fn remove_tree(path: &Path) -> Result<(), BlobError> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(io_error("remove", path)),
    }
}

#[cfg(test)]
mod tests {
    use super::{found::READ_BYTES, *};

    fn store() -> (tempfile::TempDir, BlobStore) {
        let folder = tempfile::tempdir().expect("folder");
        let store = BlobStore::open(folder.path()).expect("opens");
        (folder, store)
    }

    #[test]
    fn content_comes_back_whole_and_in_pieces() {
        let (_folder, store) = store();
        let bytes: Vec<u8> = (0..READ_BYTES * 2 + 5).map(|i| i as u8).collect();
        let digest = store.put(&bytes).expect("stores");
        assert_eq!(store.read(digest).expect("reads"), bytes);
        let mut pieces = Vec::new();
        store
            .stream(digest, |offset, piece| {
                assert_eq!(offset, pieces.len());
                pieces.extend_from_slice(piece);
                Ok::<_, BlobError>(())
            })
            .expect("streams");
        assert_eq!(pieces, bytes);
    }

    #[test]
    fn a_staged_upload_resumes_and_wrong_content_never_gets_the_name() {
        let (_folder, store) = store();
        let job = JobId::new("job").expect("valid");
        let tenant = TenantId::new("tenant").expect("valid");
        let stage = |digest| store.stage(None, &job, RoundNumber(1), &tenant, digest);
        let digest = Digest::of(b"update");
        let mut staged = stage(digest).expect("stages");
        staged.file.write_all(b"upd").expect("writes");
        let error = stage(digest).map(|_| ()).expect_err("one writer at a time");
        assert!(matches!(error, BlobError::Busy { .. }), "{error}");
        drop(staged);
        let mut staged = stage(digest).expect("stages again");
        assert_eq!(staged.length, 3);
        io::Seek::seek(&mut staged.file, io::SeekFrom::Start(3)).expect("seeks");
        staged.file.write_all(b"ate").expect("writes");
        store.complete(&staged, None).expect("completes");
        assert_eq!(store.read(digest).expect("reads"), b"update");

        let other = Digest::of(b"announced");
        let mut staged = stage(other).expect("stages");
        staged.file.write_all(b"something else").expect("writes");
        assert!(matches!(store.complete(&staged, None), Err(BlobError::Digest { .. })));
        assert!(!store.contains(other));
        assert_eq!(stage(other).expect("starts anew").length, 0);
    }

    #[test]
    fn a_missing_and_a_damaged_file_are_named() {
        let (_folder, store) = store();
        let digest = store.put(b"model").expect("stores");
        store.verify(digest).expect("whole");
        fs::write(store.path(digest), b"mode1").expect("writes");
        let name = digest.to_string();
        let error = store.verify(digest).expect_err("damaged").to_string();
        assert!(error.contains(&name) && error.contains("damaged"), "{error}");
        store.remove(digest).expect("removes");
        let error = store.verify(digest).expect_err("missing").to_string();
        assert!(error.contains(&name) && error.contains("missing"), "{error}");
    }

    #[test]
    fn staged_bytes_go_with_their_round_and_at_the_start() {
        let (folder, store) = store();
        let (one, two) = (JobId::new("one").expect("valid"), JobId::new("two").expect("valid"));
        let tenant = TenantId::new("tenant").expect("valid");
        let stage = |job: &JobId, round| {
            store.stage(None, job, RoundNumber(round), &tenant, Digest::of(b"x")).expect("opens")
        };
        let arrive = |job: &JobId, round| {
            let mut staged = stage(job, round);
            staged.file.write_all(b"part").expect("writes");
        };
        let left = |job: &JobId, round| stage(job, round).length;
        for (job, round) in [(&one, 1), (&one, 2), (&two, 1)] {
            arrive(job, round);
        }
        store.unstage(&one, RoundNumber(1)).expect("removes");
        store.unstage(&one, RoundNumber(1)).expect("removed before");
        assert_eq!([left(&one, 1), left(&one, 2), left(&two, 1)], [0, 4, 4]);
        fs::write(folder.path().join("staging/0123.put"), b"half a file").expect("writes");
        store.retain_staged([(&two, RoundNumber(1))].into_iter()).expect("sweeps");
        assert_eq!(fs::read_dir(folder.path().join("staging")).expect("lists").count(), 1);
        assert_eq!(left(&two, 1), 4);
    }
}
