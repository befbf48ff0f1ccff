//! Uploads in progress.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tributary_protocol::id::{Digest, JobId, RoundNumber, TenantId};

use super::{BlobError, Seal, error::io_error, list, name, remove_tree};

/// An upload in progress.
#[derive(Debug)]
pub struct Staged {
    pub(super) digest: Digest,
    pub(super) path: PathBuf,
    /// The folder in which it gets its name.
    pub(super) home: PathBuf,
    /// Open for writing.
    pub file: File,
    /// Bytes that have arrived, before they were sealed.
    pub length: u64,
    /// What seals them, if anything does.
    pub seal: Option<Arc<Seal>>,
}

/// The uploads in progress of tenants that share a store.
///
/// A file for each, in a folder for each round. Which tenant has which is known in memory: making a
/// folder for each tenant costs as much as writing half a megabyte.
#[derive(Debug)]
pub(super) struct Staging {
    folder: PathBuf,
    /// By round and tenant.
    uploads: Mutex<BTreeMap<String, BTreeMap<TenantId, Digest>>>,
}

impl Staging {
    /// Opens, and creates if needed, `folder`, and learns which uploads an earlier process left.
    pub(super) fn open(folder: PathBuf) -> Result<Self, BlobError> {
        fs::create_dir_all(&folder).map_err(io_error("create", &folder))?;
        let mut uploads: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for round in list(&folder)?.into_iter().filter(|path| path.is_dir()) {
            let Some(of) = name(&round) else { continue };
            for upload in list(&round)? {
                let upload = name(&upload).and_then(|name| name.split_once('.'));
                let upload = upload.map(|(tenant, digest)| (tenant.parse(), digest.parse()));
                if let Some((Ok(tenant), Ok(digest))) = upload {
                    uploads.entry(of.to_owned()).or_default().insert(tenant, digest);
                }
            }
        }
        Ok(Self { folder, uploads: Mutex::new(uploads) })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Opens the file of an upload; what arrived of the tenant's others in this round is removed.
    pub(super) fn stage(
        &self,
        job: &JobId,
        round: RoundNumber,
        tenant: &TenantId,
        digest: Digest,
    ) -> Result<(PathBuf, File), BlobError> {
        let round = staging_name(job, round);
        let folder = self.folder.join(&round);
        let path = |digest| folder.join(format!("{tenant}.{digest}"));
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        if !uploads.contains_key(&round) {
            fs::create_dir_all(&folder).map_err(io_error("create", &folder))?;
        }
        let before = uploads.entry(round).or_default().insert(tenant.clone(), digest);
        if let Some(other) = before.filter(|before| *before != digest) {
            remove_tree(&path(other))?;
        }
        let path = path(digest);
        Ok((path.clone(), open_staged(&path)?))
    }

    /// Removes the uploads of a closed round.
    pub(super) fn remove(&self, round: &str) -> Result<(), BlobError> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner).remove(round);
        remove_tree(&self.folder.join(round))
    }

    /// Removes everything but the uploads of these rounds.
    pub(super) fn retain(&self, open: &BTreeSet<String>) -> Result<(), BlobError> {
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        uploads.retain(|round, _| open.contains(round));
        for path in list(&self.folder)? {
            if !name(&path).is_some_and(|round| open.contains(round)) {
                remove_tree(&path)?;
            }
        }
        Ok(())
    }
}

/// How the uploads of a round are called together.
pub(super) fn staging_name(job: &JobId, round: RoundNumber) -> String {
    format!("{job}.{round}")
}

/// Opens a staging file for one writer: two at once would write into each other's bytes, and the
/// later one into a file that is complete.
pub(super) fn open_staged(path: &Path) -> Result<File, BlobError> {
    loop {
        let opened = File::options().create(true).truncate(false).read(true).write(true).open(path);
        let file = opened.map_err(io_error("open", path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(BlobError::Busy { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(io_error("lock", path)(source)),
        }
        // The writer before may just have given it its final name.
        let ours = file.metadata().map_err(io_error("read", path))?;
        match fs::metadata(path) {
            Ok(found) if (found.dev(), found.ino()) == (ours.dev(), ours.ino()) => return Ok(file),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("read", path)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_tenant_has_one_incomplete_upload_in_a_round() {
        let folder = tempfile::tempdir().expect("folder");
        let open = || Staging::open(folder.path().join("staging")).expect("opens");
        let (job, round) = (JobId::new("job").expect("valid"), RoundNumber(1));
        let mut staging = open();
        for number in 0..20_u8 {
            for tenant in ["one", "two"] {
                let tenant = TenantId::new(tenant).expect("valid");
                let (_, mut file) =
                    staging.stage(&job, round, &tenant, Digest::of(&[number])).expect("stages");
                assert_eq!(file.metadata().expect("is there").len(), 0);
                file.write_all(b"part").expect("writes");
            }
            // Also what an earlier process left.
            if number % 3 == 0 {
                staging = open();
            }
        }
        let left = list(&folder.path().join("staging/job.1")).expect("lists");
        assert_eq!(left.len(), 2, "{left:?}");
    }
}
