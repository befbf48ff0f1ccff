//! The tenant's own control variate (SCAFFOLD), made of its releases and kept at its site.
//!
//! A variate is stored before the release that it is made of is debited, under the digest of that
//! release; it counts only if the ledger holds that debit. So no crash makes one of bytes that were
//! never paid for.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tributary_privacy::{
    lattice::{Lattice, ModularSum, Rotation},
    ledger::ChainStore,
};
use tributary_protocol::{
    id::{Digest, JobId, RoundNumber},
    message::Assignment,
    model::ModelSpec,
    tensor_file,
};

use super::{SharedLedger, UpdateError};
use crate::durable_file::{Access, FileError, create_directory, read_bytes, write_durably};

/// The directory of control variates: one folder a job.
#[derive(Debug, Clone)]
pub struct ControlFiles {
    directory: PathBuf,
}

/// A stored variate, by its file name.
struct Stored {
    round: RoundNumber,
    release: Digest,
    path: PathBuf,
}

impl ControlFiles {
    /// Names the directory; touches nothing.
    #[must_use]
    pub const fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The variate of the newest round whose release was debited; removes all others.
    ///
    /// - returns: `None` if there is none yet, or its file is damaged: SCAFFOLD then begins anew,
    ///   which costs accuracy and no privacy
    ///
    /// # Errors
    /// [`FileError`] if the folder cannot be read.
    pub fn newest<S: ChainStore + Clone>(
        &self,
        job: &JobId,
        model: &ModelSpec,
        ledger: &SharedLedger<S>,
    ) -> Result<Option<Vec<f32>>, FileError> {
        let stored = self.stored(job)?;
        let is_debited = |it: &&Stored| {
            let ledger = ledger.lock();
            let entry = ledger.release(job.as_str(), it.round.0);
            entry.is_some_and(|entry| entry.release == *it.release.as_bytes())
        };
        let newest = stored.iter().filter(is_debited).max_by_key(|it| it.round);
        for other in &stored {
            if newest.is_none_or(|newest| newest.path != other.path) {
                fs::remove_file(&other.path).map_err(FileError::on("remove", &other.path))?;
            }
        }
        let Some(newest) = newest else { return Ok(None) };
        match tensor_file::read(model, &read_bytes(&newest.path)?) {
            Ok(values) => Ok(Some(values)),
            Err(error) => {
                tracing::warn!(%job, %error, "the control variate is damaged and begins anew");
                Ok(None)
            }
        }
    }

    /// Stores the variate that follows from a release, durably, before that is debited.
    ///
    /// # Errors
    /// [`UpdateError`] if the values are not finite or the disk fails.
    pub fn put(
        &self,
        assignment: &Assignment,
        release: Digest,
        values: &[f32],
    ) -> Result<(), UpdateError> {
        let bytes = tensor_file::write(&assignment.job.model, values)
            .map_err(|error| UpdateError::Control(Box::new(error)))?;
        let folder = self.folder(&assignment.job.name);
        create_directory(&folder)?;
        let path = folder.join(format!("{}-{release}.safetensors", assignment.round));
        // It follows from what was released, but only the tenant needs it.
        Ok(write_durably(&path, &bytes, Access::Owner)?)
    }

    fn folder(&self, job: &JobId) -> PathBuf {
        self.directory.join(job.as_str())
    }

    fn stored(&self, job: &JobId) -> Result<Vec<Stored>, FileError> {
        let folder = self.folder(job);
        if !folder.exists() {
            return Ok(Vec::new());
        }
        let failed = || FileError::on("list", &folder);
        let mut stored = Vec::new();
        for entry in fs::read_dir(&folder).map_err(failed())? {
            stored.extend(parse(&entry.map_err(failed())?.path()));
        }
        Ok(stored)
    }
}

fn parse(path: &Path) -> Option<Stored> {
    let (round, release) = path.file_stem()?.to_str()?.split_once('-')?;
    let (round, release) = (RoundNumber(round.parse().ok()?), release.parse().ok()?);
    Some(Stored { round, release, path: path.to_owned() })
}

/// The client update that packed bytes show to whoever gets them, in model units.
///
/// # Errors
/// [`UpdateError::Lattice`] if they are no update of this assignment.
pub fn released_update(assignment: &Assignment, packed: &[u8]) -> Result<Vec<f32>, UpdateError> {
    let job = &assignment.job;
    let lattice = Lattice::new(assignment.lattice.step, assignment.lattice.bits)?;
    let mut sum = ModularSum::new(lattice, job.wire_dimension());
    sum.add_packed(packed)?;
    let mut values = lattice.dequantize_sum(sum.values());
    let dimension = job.federated_dimension();
    values.truncate(dimension);
    if let Some(seed) = job.rotation_seed(assignment.round) {
        Rotation::new(seed, dimension).invert(&mut values);
    }
    Ok(values.into_iter().map(|value| value as f32).collect())
}
