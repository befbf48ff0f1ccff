//! Makes a coordinator's folder from a copy.

use std::{fs, path::Path};

use serde::Serialize;
use tributary_protocol::{id::Digest, time::Timestamp};

use super::{
    BLOBS, BackupError, JobMark, KEPT, Manifest, RECORDS, copy_file, damaged, on, private_folder,
    sync_folder,
};
use crate::{
    audit::{self, Act, Actor, AuditEvent, AuditLog, AuditReader},
    blobs::BlobStore,
    config::{ConfigError, Folder},
    scheduler::JobRecord,
    store::{Batch, SledStore, Store, Table},
};

/// What was restored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Restored {
    /// When the copy was taken.
    pub made: Timestamp,
    /// Where each job stood then.
    pub jobs: Vec<JobMark>,
    /// Rounds that were committed after the copy, as `job/number`; `None` if no newer log was given.
    pub lost_rounds: Option<Vec<String>>,
}

/// Restores a copy into a folder that holds no coordinator.
///
/// Everything is verified before anything is written. Open rounds are given up, and every running
/// job goes on `skip_rounds` later, past the rounds that may have been run after the copy.
///
/// - `newer`: the folder of the coordinator that is replaced, if its audit log can still be read: it
///   names the rounds that are lost
///
/// # Errors
/// [`BackupError`] naming the file that does not fit.
pub fn restore(
    from: &Path,
    folder: &Folder,
    skip_rounds: u64,
    newer: Option<&Path>,
    now: Timestamp,
) -> Result<Restored, BackupError> {
    if folder.join("coordinator.toml").exists() || folder.join("store").exists() {
        return Err(ConfigError::AlreadyInitialized { path: folder.path().to_owned() }.into());
    }
    let manifest = Manifest::read(from)?;
    let records = records(from, &manifest)?;
    verify_files(from, &manifest)?;
    let lost_rounds = newer.map(|newer| lost_rounds(newer, &manifest)).transpose()?;

    private_folder(&folder.join(BLOBS))?;
    for file in manifest.files.keys() {
        let name = format!("{BLOBS}/{file}");
        copy_file(&from.join(&name), &folder.join(&name))?;
    }
    sync_folder(&folder.join(BLOBS))?;
    copy_file(&from.join(audit::FILE_NAME), &folder.join(audit::FILE_NAME))?;
    let mut log = AuditLog::open(folder.path(), manifest.authority, Some(manifest.audit))?;
    let detail = format!("from a backup taken at {}", manifest.made);
    let actor = Actor::coordinator();
    log.append(AuditEvent::done(actor, Act::CoordinatorRestore, "", &detail), now)?;

    let mut batch = Batch::default();
    for (table, key, value) in records {
        if table != Table::Jobs {
            batch.put_bytes(table, key, value);
            continue;
        }
        let path = from.join(RECORDS);
        let mut job: JobRecord =
            serde_json::from_slice(&value).map_err(|error| damaged(&path, error))?;
        match job.leap(skip_rounds, &detail, now, &mut batch) {
            Some(event) => log.append(event, now)?,
            None => job.put(&mut batch),
        }
    }
    batch.put(Table::Audit, "head", &log.head());
    SledStore::open(&folder.join("store"))?.apply(&batch)?;
    // Last, because the configuration makes the folder a coordinator's.
    for name in KEPT.iter().rev() {
        copy_file(&from.join(name), &folder.join(name))?;
    }
    sync_folder(folder.path())?;
    Ok(Restored { made: manifest.made, jobs: manifest.jobs, lost_rounds })
}

type Record = (Table, String, Vec<u8>);

fn records(from: &Path, manifest: &Manifest) -> Result<Vec<Record>, BackupError> {
    let path = from.join(RECORDS);
    let text = fs::read(&path).map_err(on("read", &path))?;
    if Digest::of(&text) != manifest.records_digest {
        return Err(damaged(&path, "it is not what the manifest says"));
    }
    let record = |line: &[u8]| {
        let mut parts = line.splitn(3, |&byte| byte == b'\t');
        let (table, key, value) = (parts.next()?, parts.next()?, parts.next()?);
        let table = Table::ALL.into_iter().find(|known| known.name().as_bytes() == table)?;
        Some((table, String::from_utf8(key.to_vec()).ok()?, value.to_vec()))
    };
    let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let unknown = || damaged(&path, "a record is from another version of the program");
    lines.map(|line| record(line).ok_or_else(unknown)).collect()
}

fn verify_files(from: &Path, manifest: &Manifest) -> Result<(), BackupError> {
    let blobs = BlobStore::open(from)?;
    for &file in manifest.files.keys() {
        blobs.verify(file)?;
    }
    let path = from.join(audit::FILE_NAME);
    let log = fs::read(&path).map_err(on("read", &path))?;
    if Digest::of(&log) != manifest.audit_digest {
        return Err(damaged(&path, "it is not what the manifest says"));
    }
    AuditReader::new(from, manifest.authority, Some(manifest.audit)).verify()?;
    Ok(())
}

/// The rounds that became models after the copy, by the log of the coordinator that is replaced.
fn lost_rounds(newer: &Path, manifest: &Manifest) -> Result<Vec<String>, BackupError> {
    let reader = AuditReader::new(newer, manifest.authority, Some(manifest.audit));
    let entries = reader.tail(usize::MAX)?.into_iter();
    let later = entries.filter(|entry| entry.sequence > manifest.audit.sequence);
    let mut rounds: Vec<_> =
        later.filter(|entry| entry.act == Act::RoundCommit).map(|entry| entry.subject).collect();
    // A crash may have written an entry twice.
    rounds.dedup();
    Ok(rounds)
}
