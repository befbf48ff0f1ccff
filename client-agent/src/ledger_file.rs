//! The privacy ledger on a disk, held by one process at a time.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use thiserror::Error;
use tributary_privacy::ledger::ChainStore;

use crate::durable_file::{FileError, sync_directory};

/// Says why the ledger's file cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LedgerFileError {
    /// Another process has it open.
    #[error(
        "{} is in use{holder}; one agent at a time may run on a directory: stop the other one",
        path.display()
    )]
    InUse {
        /// The lock file.
        path: PathBuf,
        /// ` by process N`, if the other one left its number.
        holder: String,
    },
    /// The disk failed.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A [`ChainStore`] on a file, with fsync after every change; clones share the file.
///
/// A lock file beside it keeps a second process out for as long as any clone lives.
#[derive(Debug, Clone)]
pub struct FileLedgerStore(Arc<Mutex<Locked>>);

#[derive(Debug)]
struct Locked {
    path: PathBuf,
    file: File,
    /// Holds the lock; released by the system when the process ends, however it ends.
    _lock: File,
}

impl FileLedgerStore {
    /// Opens the ledger at `path`, makes an empty one if there is none, and locks it.
    ///
    /// # Errors
    /// [`LedgerFileError::InUse`] if another process (or another open store) holds it,
    /// [`LedgerFileError::File`] if the disk fails.
    pub fn open(path: &Path) -> Result<Self, LedgerFileError> {
        let lock = lock(&path.with_extension("lock"))?;
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true);
        let file = options.open(path).map_err(FileError::on("open", path))?;
        file.sync_all().map_err(FileError::on("flush", path))?;
        sync_directory(path)?;
        Ok(Self(Arc::new(Mutex::new(Locked { path: path.to_owned(), file, _lock: lock }))))
    }

    fn locked(&self) -> MutexGuard<'_, Locked> {
        // Each call leaves the file in a state that the ledger can judge, so a panic elsewhere
        // does not make it unusable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds `path` against every other process until the file is dropped.
pub(crate) fn lock(path: &Path) -> Result<File, LedgerFileError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let mut file = options.open(path).map_err(FileError::on("open", path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // Only for the message: an unreadable number leaves it out.
            let _ = file.read_to_string(&mut text);
            let process = text.trim().parse::<u32>();
            let holder = process.map_or_else(|_| String::new(), |id| format!(" by process {id}"));
            return Err(LedgerFileError::InUse { path: path.to_owned(), holder });
        }
        Err(TryLockError::Error(source)) => {
            return Err(FileError::on("lock", path)(source).into());
        }
    }
    let number = std::process::id().to_string();
    file.set_len(0)
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .and_then(|_| file.write_all(number.as_bytes()))
        .map_err(FileError::on("write", path))?;
    Ok(file)
}

impl ChainStore for FileLedgerStore {
    type Error = FileError;

    fn read(&mut self) -> Result<Vec<u8>, FileError> {
        let mut locked = self.locked();
        let mut bytes = Vec::new();
        let path = locked.path.clone();
        locked
            .file
            .seek(SeekFrom::Start(0))
            .and_then(|_| locked.file.read_to_end(&mut bytes))
            .map_err(FileError::on("read", &path))?;
        Ok(bytes)
    }

    fn append_durably(&mut self, record: &[u8]) -> Result<(), FileError> {
        let mut locked = self.locked();
        let path = locked.path.clone();
        locked
            .file
            .write_all(record)
            .and_then(|()| locked.file.sync_all())
            .map_err(FileError::on("append to", &path))
    }

    fn truncate_durably(&mut self, length: u64) -> Result<(), FileError> {
        let locked = self.locked();
        locked
            .file
            .set_len(length)
            .and_then(|()| locked.file.sync_all())
            .map_err(FileError::on("cut", &locked.path))
    }
}

#[cfg(test)]
mod tests {
    use tributary_privacy::{
        ledger::{Budget, DebitRequest, Ledger, LedgerError, ReleaseKind},
        mechanism::PrivacyEvent,
    };

    use super::*;

    const BUDGET: Budget = Budget { epsilon_max: 100.0, delta: 1e-5, window_days: None };

    fn debit(round: u64) -> DebitRequest {
        DebitRequest {
            dataset: "adult".to_owned(),
            job: "census".to_owned(),
            round,
            kind: ReleaseKind::Update,
            unit: "record".to_owned(),
            events: vec![PrivacyEvent::Gaussian { noise_multiplier: 2.0, count: 1 }],
            run: None,
            release: [round as u8; 32],
        }
    }

    fn open(path: &Path) -> Ledger<FileLedgerStore> {
        Ledger::open(FileLedgerStore::open(path).unwrap(), "ash").unwrap()
    }

    #[test]
    fn debits_survive_reopening() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger.jsonl");
        let head = {
            let mut ledger = open(&path);
            ledger.debit(debit(1), &BUDGET, 1).unwrap();
            ledger.debit(debit(2), &BUDGET, 2).unwrap();
            ledger.head()
        };
        assert_eq!(open(&path).head(), head);
    }

    #[test]
    fn a_second_agent_is_kept_out_and_told_who_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger.jsonl");
        let first = FileLedgerStore::open(&path).unwrap();
        let error = FileLedgerStore::open(&path).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        FileLedgerStore::open(&path).unwrap();
    }

    #[test]
    fn a_torn_tail_is_cut_at_every_byte_and_damage_is_not_forgiven() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger.jsonl");
        {
            let mut ledger = open(&path);
            ledger.debit(debit(1), &BUDGET, 1).unwrap();
            ledger.debit(debit(2), &BUDGET, 2).unwrap();
        }
        let whole = std::fs::read(&path).unwrap();
        let first = whole.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        for length in first..=whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let mut ledger = open(&path);
            // Without its line feed alone a record is complete, and counts.
            let kept = if length + 1 >= whole.len() { 2 } else { 1 };
            assert_eq!(ledger.entries().len(), kept, "{length} of {}", whole.len());
            ledger.debit(debit(3), &BUDGET, 3).unwrap();
            drop(ledger);
            assert_eq!(open(&path).entries().len(), kept + 1);
        }
        let mut damaged = whole;
        damaged[10] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        let error = Ledger::open(FileLedgerStore::open(&path).unwrap(), "ash").unwrap_err();
        assert!(matches!(error, LedgerError::Damaged { line: 1, .. }), "{error}");
    }
}
