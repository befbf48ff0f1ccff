//! Takes a consistent copy.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use tributary_privacy::chain::ChainHead;
use tributary_protocol::{id::Digest, time::Timestamp};

use super::{
    BLOBS, BackupError, JobMark, KEPT, MANIFEST, Manifest, RECORDS, SNAPSHOT, copy_file,
    manifest::Contents, on, private_folder, sync_folder,
};
use crate::{
    audit,
    blobs::BlobStore,
    config::Folder,
    scheduler::JobRecord,
    store::{self, Store, Table},
};

/// Copies records and audit log into the folder's `snapshot/`, and links the files. Nothing may
/// change meanwhile: the core calls this between two requests.
///
/// - `audit`: where the log ends
/// - `authority`: fingerprint of the coordinator's authority
///
/// # Errors
/// [`BackupError`].
pub fn snapshot(
    folder: &Path,
    store: &dyn Store,
    blobs: &BlobStore,
    audit: ChainHead,
    authority: Digest,
    now: Timestamp,
) -> Result<Manifest, BackupError> {
    discard(folder)?;
    let to = folder.join(SNAPSHOT);
    private_folder(&to.join(BLOBS))?;
    let (mut text, mut records) = (Vec::new(), 0);
    for table in Table::ALL {
        for (key, value) in store.scan(table)? {
            // Neither ids nor one-line JSON hold tabs or line feeds.
            text.extend([table.name().as_bytes(), b"\t", key.as_bytes(), b"\t"].concat());
            text.extend(value);
            text.push(b'\n');
            records += 1;
        }
    }
    let path = to.join(RECORDS);
    fs::write(&path, &text).map_err(on("write", &path))?;
    let log = fs::read(folder.join(audit::FILE_NAME));
    let log = log.map_err(on("read", &folder.join(audit::FILE_NAME)))?;
    let path = to.join(audit::FILE_NAME);
    fs::write(&path, &log).map_err(on("write", &path))?;
    let files = blobs.link_all(&to.join(BLOBS))?;
    let mark = |job: JobRecord| JobMark {
        job: job.spec.name,
        round: job.round.number,
        rounds_committed: job.rounds_committed,
    };
    let jobs = store::load::<JobRecord>(store, Table::Jobs)?.into_iter().map(mark).collect();
    let manifest = Manifest::new(Contents {
        made: now,
        authority,
        audit,
        audit_digest: Digest::of(&log),
        records,
        records_digest: Digest::of(&text),
        files: files.into_iter().collect::<BTreeMap<_, _>>(),
        jobs,
    });
    manifest.write(&to)?;
    Ok(manifest)
}

/// Removes the snapshot of a folder, if there is one.
///
/// # Errors
/// [`BackupError::Io`].
pub fn discard(folder: &Path) -> Result<(), BackupError> {
    let path = folder.join(SNAPSHOT);
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(on("remove", &path)),
    }
}

/// Copies the snapshot of a coordinator's folder, with its keys, to a new folder, durably.
///
/// # Errors
/// [`BackupError::NotEmpty`] if the target holds something, else what failed.
pub fn copy(folder: &Folder, to: &Path) -> Result<Manifest, BackupError> {
    let from = folder.join(SNAPSHOT);
    let manifest = Manifest::read(&from)?;
    expect_empty(to)?;
    private_folder(&to.join(BLOBS))?;
    for name in KEPT {
        copy_file(&folder.join(name), &to.join(name))?;
    }
    for name in [RECORDS, audit::FILE_NAME] {
        copy_file(&from.join(name), &to.join(name))?;
    }
    for file in manifest.files.keys() {
        let name: PathBuf = [BLOBS, &file.to_string()].iter().collect();
        copy_file(&from.join(&name), &to.join(&name))?;
    }
    sync_folder(&to.join(BLOBS))?;
    copy_file(&from.join(MANIFEST), &to.join(MANIFEST))?;
    sync_folder(to)?;
    Ok(manifest)
}

fn expect_empty(path: &Path) -> Result<(), BackupError> {
    match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        listed => match listed.map_err(on("list", path))?.next() {
            None => Ok(()),
            Some(_) => Err(BackupError::NotEmpty { path: path.to_owned() }),
        },
    }
}
