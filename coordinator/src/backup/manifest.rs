//! What a copy must hold.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde::{Deserialize, Serialize};
use tributary_privacy::chain::ChainHead;
use tributary_protocol::{
    id::{Digest, JobId, RoundNumber},
    time::Timestamp,
};

use super::{BackupError, MANIFEST, damaged, on};

/// The layout that this program writes and reads.
const FORMAT: u32 = 1;

/// The last file of a copy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: u32,
    /// When the copy was taken.
    pub made: Timestamp,
    /// The program that took it.
    pub version: String,
    /// Fingerprint of the coordinator's authority.
    pub authority: Digest,
    /// Where the audit log ended.
    pub audit: ChainHead,
    /// Digest of the log.
    pub audit_digest: Digest,
    /// How many records it holds.
    pub records: u64,
    /// Digest of the records.
    pub records_digest: Digest,
    /// Files that records refer to, with their lengths in bytes.
    pub files: BTreeMap<Digest, u64>,
    /// Where each job stood.
    pub jobs: Vec<JobMark>,
}

/// Where a job stood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobMark {
    /// The job.
    pub job: JobId,
    /// Its open, or last, round.
    pub round: RoundNumber,
    /// Rounds that had become models.
    pub rounds_committed: u64,
}

/// What is known when a snapshot is taken.
pub(super) struct Contents {
    pub(super) made: Timestamp,
    pub(super) authority: Digest,
    pub(super) audit: ChainHead,
    pub(super) audit_digest: Digest,
    pub(super) records: u64,
    pub(super) records_digest: Digest,
    pub(super) files: BTreeMap<Digest, u64>,
    pub(super) jobs: Vec<JobMark>,
}

impl Manifest {
    pub(super) fn new(contents: Contents) -> Self {
        let Contents { made, authority, audit, audit_digest, records, .. } = contents;
        let Contents { records_digest, files, jobs, .. } = contents;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let format = FORMAT;
        Self {
            format,
            made,
            version,
            authority,
            audit,
            audit_digest,
            records,
            records_digest,
            files,
            jobs,
        }
    }

    /// Reads the manifest of a copy.
    ///
    /// # Errors
    /// [`BackupError`] if there is none, or of another layout.
    pub fn read(folder: &Path) -> Result<Self, BackupError> {
        let path = folder.join(MANIFEST);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(BackupError::NotABackup { path: folder.to_owned() });
            }
            read => read.map_err(on("read", &path))?,
        };
        let manifest: Self = serde_json::from_str(&text).map_err(|error| damaged(&path, error))?;
        if manifest.format != FORMAT {
            let reason =
                format!("its layout is {}, and this program knows {FORMAT}", manifest.format);
            return Err(damaged(&path, reason));
        }
        Ok(manifest)
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), BackupError> {
        let path = folder.join(MANIFEST);
        let text = serde_json::to_string_pretty(self).expect("plain data with text keys");
        fs::write(&path, text).map_err(on("write", &path))
    }
}
