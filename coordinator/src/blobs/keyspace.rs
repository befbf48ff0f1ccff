//! Where the updates of one tenant lie by themselves, sealed under a key of its own.
//!
//! ```text
//! keyspaces/<tenant>/                a tenant at data isolation `own-keyspace`
//! databases/<tenant>/                a tenant at `own-database`: the folder may be a volume of its own
//!   key                              32 random bytes, mode 0600
//!   updates/<digest>                 complete, sealed
//!   staging/<job>.<round>/<digest>   an upload in progress, sealed record by record
//! ```
//! The key is made with the first upload and shredded with the last file that it seals, when the round
//! closes: it is in no backup, and nothing that was sealed before can be opened after it.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use tributary_protocol::{
    id::{Digest, JobId, RoundNumber},
    isolation::DataIsolation,
};

use super::{
    BlobError, Staged,
    error::io_error,
    list, remove_tree,
    seal::{self, Seal},
    staging::{open_staged, staging_name},
};

const KEY: &str = "key";

/// Where the keyspaces of a level are, in the coordinator's folder; none for a shared store.
pub(super) const fn folder_name(level: DataIsolation) -> Option<&'static str> {
    match level {
        DataIsolation::SharedStore => None,
        DataIsolation::OwnKeyspace => Some("keyspaces"),
        DataIsolation::OwnDatabase => Some("databases"),
    }
}

/// The folder and key of one tenant.
#[derive(Debug)]
pub struct Keyspace {
    folder: PathBuf,
    /// Held while files appear or the key goes, so that no file outlives its key.
    seal: Mutex<Option<Arc<Seal>>>,
}

impl Keyspace {
    /// Opens, and creates if needed, a tenant's folder.
    pub(super) fn open(folder: PathBuf) -> Result<Self, BlobError> {
        let keyspace = Self { folder, seal: Mutex::new(None) };
        for path in [&keyspace.folder, &keyspace.updates(), &keyspace.staging()] {
            let mut builder = fs::DirBuilder::new();
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            builder.recursive(true).create(path).map_err(io_error("create", path))?;
        }
        Ok(keyspace)
    }

    pub(super) fn updates(&self) -> PathBuf {
        self.folder.join("updates")
    }

    fn staging(&self) -> PathBuf {
        self.folder.join("staging")
    }

    /// Where a complete file is.
    pub(super) fn path(&self, digest: Digest) -> PathBuf {
        self.updates().join(digest.to_string())
    }

    /// Whether the complete file is here.
    #[must_use]
    pub fn contains(&self, digest: Digest) -> bool {
        self.path(digest).exists()
    }

    /// What opens the files that are here.
    pub(super) fn seal(&self) -> Result<Arc<Seal>, BlobError> {
        let mut known = self.seal.lock().expect("no panic while it is held");
        if let Some(seal) = &*known {
            return Ok(seal.clone());
        }
        let path = self.folder.join(KEY);
        let sealed = |source| BlobError::Seal { path: path.clone(), source };
        let key = fs::read(&path).map_err(sealed)?;
        let key = <[u8; 32]>::try_from(key)
            .map_err(|_| sealed(io::Error::new(io::ErrorKind::InvalidData, "it is not a key")))?;
        Ok(known.insert(Arc::new(Seal::new(&key))).clone())
    }

    /// Opens the staging file of a round's upload.
    pub(super) fn stage(
        &self,
        job: &JobId,
        round: RoundNumber,
        digest: Digest,
    ) -> Result<Staged, BlobError> {
        let (path, file, sealed_length) = {
            let _held = self.seal.lock().expect("no panic while it is held");
            let folder = self.staging().join(staging_name(job, round));
            fs::create_dir_all(&folder).map_err(io_error("create", &folder))?;
            // From here on the key stays.
            let path = folder.join(digest.to_string());
            remove_others(&path)?;
            let file = open_staged(&path)?;
            let length = file.metadata().map_err(io_error("read", &path))?.len();
            if !self.folder.join(KEY).exists() {
                self.make_key()?;
            }
            (path, file, length)
        };
        let (length, seal) = (seal::opened_length(sealed_length), Some(self.seal()?));
        Ok(Staged { digest, path, home: self.updates(), file, length, seal })
    }

    fn make_key(&self) -> Result<(), BlobError> {
        let (new, path) = (self.folder.join("key.new"), self.folder.join(KEY));
        let make = || {
            let mut key = [0; 32];
            getrandom::fill(&mut key).map_err(|error| io::Error::other(error.to_string()))?;
            let mut options = File::options();
            options.create(true).truncate(true).write(true);
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            let mut file = options.open(&new)?;
            file.write_all(&key)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        make().map_err(io_error("write", &path))
    }

    /// Removes a complete file; one that is gone already is fine.
    pub(super) fn remove(&self, digest: Digest) -> Result<(), BlobError> {
        remove_tree(&self.path(digest))?;
        self.retire()
    }

    /// Removes every complete file but these.
    pub(super) fn retain(&self, keep: impl Fn(Digest) -> bool) -> Result<(), BlobError> {
        let folder = self.updates();
        for path in list(&folder)? {
            let digest = path.file_name().and_then(|name| name.to_str()?.parse::<Digest>().ok());
            if !digest.is_some_and(&keep) {
                remove_tree(&path)?;
            }
        }
        self.retire()
    }

    /// Removes what has arrived of uploads, but those of rounds that are kept.
    ///
    /// - `keep`: by the name of a round's folder
    pub(super) fn retain_staged(&self, keep: impl Fn(&str) -> bool) -> Result<(), BlobError> {
        for path in list(&self.staging())? {
            if !path.file_name().and_then(|name| name.to_str()).is_some_and(&keep) {
                remove_tree(&path)?;
            }
        }
        self.retire()
    }

    /// Shreds the key if it seals nothing any more: overwritten, then removed.
    fn retire(&self) -> Result<(), BlobError> {
        let mut known = self.seal.lock().expect("no panic while it is held");
        let path = self.folder.join(KEY);
        // Staging first: a file moves from there to the updates, never back.
        if !path.exists()
            || !list(&self.staging())?.is_empty()
            || !list(&self.updates())?.is_empty()
        {
            return Ok(());
        }
        let shred = || {
            let mut file = File::options().write(true).open(&path)?;
            file.write_all(&[0; 32])?;
            file.sync_all()?;
            fs::remove_file(&path)?;
            File::open(&self.folder)?.sync_all()
        };
        shred().map_err(io_error("shred", &path))?;
        *known = None;
        Ok(())
    }
}

/// Removes what arrived of the tenant's other uploads in the round: each has one at a time.
fn remove_others(staged: &Path) -> Result<(), BlobError> {
    for other in list(staged.parent().expect("staged files are in a folder"))? {
        if other != staged {
            remove_tree(&other)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom};

    use tributary_protocol::{id::TenantId, tensor_stream::CHUNK_BYTES};

    use super::{super::BlobStore, *};

    struct Bench {
        folder: tempfile::TempDir,
        store: BlobStore,
        keyspace: Arc<Keyspace>,
    }

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let store = BlobStore::open(folder.path()).expect("opens");
            let tenant = TenantId::new("ash").expect("valid");
            let keyspace = store.keyspace(&tenant, DataIsolation::OwnKeyspace).expect("opens");
            Self { folder, store, keyspace: keyspace.expect("not shared") }
        }

        fn stage(&self, digest: Digest) -> Staged {
            let job = JobId::new("job").expect("valid");
            let (keyspace, tenant) = (Some(&*self.keyspace), TenantId::new("ash").expect("valid"));
            self.store.stage(keyspace, &job, RoundNumber(1), &tenant, digest).expect("stages")
        }

        fn key(&self) -> Option<Vec<u8>> {
            fs::read(self.folder.path().join("keyspaces/ash/key")).ok()
        }
    }

    /// Writes what comes after the bytes that have arrived.
    fn write(staged: &mut Staged, bytes: &[u8]) {
        let seal = staged.seal.clone().expect("sealed");
        let whole = staged.length as usize / CHUNK_BYTES;
        let start = Seal::sealed_length((whole * CHUNK_BYTES) as u64);
        staged.file.seek(SeekFrom::Start(start)).expect("seeks");
        for (chunk, index) in bytes.chunks(CHUNK_BYTES).zip(0..).skip(whole) {
            let record = seal.seal(staged.digest, index, chunk).expect("seals");
            staged.file.write_all(&record).expect("writes");
        }
    }

    fn update() -> (Vec<u8>, Digest) {
        let bytes: Vec<u8> = (0..CHUNK_BYTES * 2 + 5).map(|at| ((at * 7) >> 4) as u8).collect();
        let digest = Digest::of(&bytes);
        (bytes, digest)
    }

    #[test]
    fn a_sealed_upload_resumes_at_a_record_and_reads_like_any_file() {
        let bench = Bench::new();
        let (bytes, digest) = update();
        let mut staged = bench.stage(digest);
        write(&mut staged, &bytes[..CHUNK_BYTES * 2]);
        // A crash cut the second record.
        staged.file.set_len(Seal::sealed_length(CHUNK_BYTES as u64) + 99).expect("cuts");
        drop(staged);
        let mut staged = bench.stage(digest);
        assert!((CHUNK_BYTES..CHUNK_BYTES * 2).contains(&(staged.length as usize)));
        write(&mut staged, &bytes);
        bench.store.complete(&staged, None).expect("completes");
        assert!(bench.keyspace.contains(digest) && bench.store.contains(digest));
        assert!(!bench.store.path(digest).exists(), "nothing lies in the clear");
        // Also for a process that starts anew.
        for store in [bench.store.clone(), BlobStore::open(bench.folder.path()).expect("opens")] {
            assert_eq!(store.read(digest).expect("opens"), bytes);
            store.verify(digest).expect("whole");
            let mut some = [0; 9];
            store.read_at(digest, CHUNK_BYTES as u64 - 4, &mut some).expect("reads");
            assert_eq!(some, bytes[CHUNK_BYTES - 4..CHUNK_BYTES + 5]);
        }
    }

    #[test]
    fn the_key_goes_with_the_last_file_and_the_next_one_is_another() {
        let bench = Bench::new();
        let (bytes, digest) = update();
        assert_eq!(bench.key(), None, "there is nothing to seal yet");
        let mut staged = bench.stage(digest);
        let first = bench.key().expect("a key");
        write(&mut staged, &bytes);
        bench.store.complete(&staged, None).expect("completes");
        bench.store.unstage(&JobId::new("job").expect("valid"), RoundNumber(1)).expect("removes");
        assert_eq!(bench.key().as_ref(), Some(&first), "it still seals an update");
        bench.store.remove(digest).expect("removes");
        assert_eq!(bench.key(), None);
        assert!(matches!(bench.store.verify(digest), Err(BlobError::Missing { .. })));
        bench.stage(digest);
        assert_ne!(bench.key().expect("a key"), first);
    }

    #[test]
    fn what_cannot_be_opened_never_gets_the_name_and_starts_anew() {
        let bench = Bench::new();
        let (bytes, digest) = update();
        let mut staged = bench.stage(digest);
        write(&mut staged, &bytes);
        staged.file.seek(SeekFrom::Start(3)).expect("seeks");
        staged.file.write_all(&[0; 16]).expect("writes");
        assert!(matches!(bench.store.complete(&staged, None), Err(BlobError::Seal { .. })));
        assert!(!bench.keyspace.contains(digest));
        assert_eq!(bench.stage(digest).length, 0);
    }

    #[test]
    fn what_no_record_refers_to_goes_at_the_start_with_its_key() {
        let bench = Bench::new();
        let (bytes, digest) = update();
        let mut staged = bench.stage(digest);
        write(&mut staged, &bytes);
        bench.store.complete(&staged, None).expect("completes");
        let store = BlobStore::open(bench.folder.path()).expect("opens");
        store.retain(&[digest].into()).expect("keeps");
        store.retain_staged(std::iter::empty()).expect("keeps");
        assert!(bench.key().is_some());
        store.retain(&std::collections::BTreeSet::new()).expect("removes");
        assert!(bench.key().is_none() && !store.contains(digest));
    }
}
