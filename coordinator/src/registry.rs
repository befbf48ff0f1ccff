//! Versions of the base models: one line of descent for each job.

use std::collections::{BTreeMap, BTreeSet};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use tributary_protocol::{
    id::{Digest, JobId, RoundNumber},
    job::JobSpec,
    message::{BaseModel, BlobRef},
    model::{Initialization, ModelSpec},
    time::Timestamp,
};

use crate::{
    aggregation::AggregationError,
    blobs::BlobStore,
    store::{self, Batch, Store, StoreError, Table},
};

/// A durable model version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelVersion {
    /// The job that made it.
    pub job: JobId,
    /// Version within the job; 0 is the initial model.
    pub version: u64,
    /// The round that committed it; 0 for the initial model.
    pub round: RoundNumber,
    /// The safetensors file.
    pub file: BlobRef,
    /// The version's predecessor.
    pub parent: Option<Digest>,
    /// What the server optimizer keeps for the next round.
    pub optimizer_state: Option<Digest>,
    /// The population's control variate at this version, where tenants keep some; its file is kept
    /// with the newest version only.
    #[serde(default)]
    pub control: Option<BlobRef>,
    /// When it was committed.
    pub created: Timestamp,
}

impl ModelVersion {
    /// Version 0 of another job that starts from this model. The server optimizer starts anew.
    #[must_use]
    pub fn starting_from(start: &Self, job: JobId, now: Timestamp) -> Self {
        Self {
            job,
            version: 0,
            round: RoundNumber::default(),
            file: start.file,
            parent: Some(start.file.digest),
            optimizer_state: None,
            control: None,
            created: now,
        }
    }

    /// The version after `newest` that goes on from this older one. The server optimizer and the
    /// control variates start anew.
    #[must_use]
    pub fn continued_after(&self, newest: &Self, now: Timestamp) -> Self {
        Self {
            version: newest.version + 1,
            round: newest.round,
            parent: Some(self.file.digest),
            optimizer_state: None,
            control: None,
            created: now,
            ..self.clone()
        }
    }

    /// Whether agents may ask for this file: the model, or its control variate.
    #[must_use]
    pub fn has_file(&self, file: Digest) -> bool {
        self.file.digest == file || self.control.is_some_and(|control| control.digest == file)
    }

    /// The files that are kept with the newest version only.
    #[must_use]
    pub fn side_files(&self) -> BTreeSet<Digest> {
        self.optimizer_state.into_iter().chain(self.control.map(|file| file.digest)).collect()
    }

    /// The form in which agents hear of it.
    #[must_use]
    pub fn announcement(&self, job: &JobSpec) -> BaseModel {
        BaseModel {
            job: self.job.clone(),
            dataset: job.dataset.clone(),
            model: job.model.clone(),
            version: self.version,
            file: self.file,
        }
    }

    /// Adds the record to a batch.
    pub fn put(&self, batch: &mut Batch) {
        batch.put(Table::Models, format!("{}/{:010}", self.job, self.version), self);
    }
}

/// Which version of a job's model agents serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promotion {
    /// The job.
    pub job: JobId,
    /// The version; `None` follows the newest.
    pub version: Option<u64>,
}

impl Promotion {
    /// Adds the record to a batch.
    pub fn put(&self, batch: &mut Batch) {
        batch.put(Table::Promotions, self.job.as_str(), self);
    }
}

/// All model versions, by job.
#[derive(Debug, Clone, Default)]
pub struct ModelRegistry {
    versions: BTreeMap<JobId, Vec<ModelVersion>>,
    /// Versions that agents serve instead of the newest.
    promoted: BTreeMap<JobId, u64>,
}

impl ModelRegistry {
    /// Reads every version, and which of them are promoted.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn load(store: &dyn Store) -> Result<Self, StoreError> {
        let mut registry = Self::new(store::load(store, Table::Models)?);
        for promotion in store::load(store, Table::Promotions)? {
            registry.promote(promotion);
        }
        Ok(registry)
    }

    /// Collects versions as the store returns them.
    #[must_use]
    pub fn new(versions: Vec<ModelVersion>) -> Self {
        let mut registry = Self::default();
        for version in versions {
            registry.insert(version);
        }
        registry
    }

    /// Adds a version.
    pub fn insert(&mut self, version: ModelVersion) {
        self.versions.entry(version.job.clone()).or_default().push(version);
    }

    /// Takes over which version agents serve.
    pub fn promote(&mut self, promotion: Promotion) {
        let Promotion { job, version } = promotion;
        match version {
            Some(version) => self.promoted.insert(job, version),
            None => self.promoted.remove(&job),
        };
    }

    /// The version of a job's model that agents serve: the promoted one, else the newest.
    #[must_use]
    pub fn served(&self, job: &JobId) -> Option<&ModelVersion> {
        match self.promoted.get(job) {
            Some(&version) => self.version(job, version),
            None => self.latest(job),
        }
    }

    /// Whether a version was promoted, so that newer ones are not announced.
    #[must_use]
    pub fn is_pinned(&self, job: &JobId) -> bool {
        self.promoted.contains_key(job)
    }

    /// One version of a job's model.
    #[must_use]
    pub fn version(&self, job: &JobId, version: u64) -> Option<&ModelVersion> {
        let versions = self.versions.get(job)?;
        let place = versions.binary_search_by_key(&version, |known| known.version).ok()?;
        versions.get(place)
    }

    /// The newest version of a job that has this file.
    #[must_use]
    pub fn with_file(&self, job: &JobId, file: Digest) -> Option<&ModelVersion> {
        self.versions.get(job)?.iter().rev().find(|known| known.file.digest == file)
    }

    /// How many rounds led to a version: those of its own line, without what was turned back.
    #[must_use]
    pub fn rounds_until(&self, job: &JobId, version: u64) -> u64 {
        let Some(versions) = self.versions.get(job) else { return 0 };
        let (mut rounds, mut version) = (0, version);
        while let Some(known) = versions.iter().find(|known| known.version == version) {
            let mut before = versions.iter().rev().filter(|older| older.version < version);
            let parent = before.find(|older| Some(older.file.digest) == known.parent);
            let Some(parent) = parent else { break };
            rounds += u64::from(known.file != parent.file);
            version = parent.version;
        }
        rounds
    }

    /// The newest version of a job.
    #[must_use]
    pub fn latest(&self, job: &JobId) -> Option<&ModelVersion> {
        self.versions.get(job).and_then(|versions| versions.last())
    }

    /// The version that this one was trained from: the newest one before it with its parent's file,
    /// or for version 0 of a job that started from a registered model, the oldest version with it.
    #[must_use]
    pub fn parent(&self, version: &ModelVersion) -> Option<&ModelVersion> {
        let file = version.parent?;
        if version.version == 0 {
            let others = self.iter().filter(|other| other.job != version.job);
            return others
                .filter(|other| other.file.digest == file)
                .min_by_key(|other| other.created);
        }
        let own = self.versions.get(&version.job)?.iter().rev();
        own.filter(|other| other.version < version.version).find(|other| other.file.digest == file)
    }

    /// The version that a committed round started from.
    #[must_use]
    pub fn base_of(&self, job: &JobId, round: RoundNumber) -> Option<u64> {
        let versions = self.versions.get(job)?;
        let made = versions.iter().find(|version| version.round == round && version.version > 0)?;
        Some(made.version - 1)
    }

    /// Every version, job by job, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &ModelVersion> {
        self.versions.values().flatten()
    }

    /// A registered model with this file.
    #[must_use]
    pub fn find(&self, file: Digest) -> Option<&ModelVersion> {
        self.iter().find(|version| version.file.digest == file)
    }

    /// A file that agents may ask for: a registered model, or the control variate of a job's newest.
    #[must_use]
    pub fn file(&self, digest: Digest) -> Option<BlobRef> {
        let newest = self.versions.values().filter_map(|versions| versions.last());
        let controls = newest.filter_map(|version| version.control);
        let files = self.iter().map(|version| version.file).chain(controls);
        { files }.find(|file| file.digest == digest)
    }
}

/// The flat parameters of a model's version 0.
#[must_use]
pub fn initial_parameters(model: &ModelSpec, seed: u64) -> Vec<f32> {
    let mut draw = StdRng::seed_from_u64(seed);
    let mut parameters = Vec::with_capacity(model.num_parameters());
    for tensor in model.tensors() {
        let elements = 0..tensor.num_elements();
        match tensor.initialization {
            Initialization::Zeros => parameters.extend(elements.map(|_| 0.0_f32)),
            Initialization::Ones => parameters.extend(elements.map(|_| 1.0_f32)),
            Initialization::Uniform { bound } => {
                parameters.extend(elements.map(|_| draw.random_range(-bound..=bound)));
            }
        }
    }
    parameters
}

/// Version 0 of a job's model from a stored file.
///
/// # Errors
/// [`AggregationError`] if there is no such file, or it does not hold the job's model.
pub fn model_from_file(
    job: &JobSpec,
    file: Digest,
    now: Timestamp,
    blobs: &BlobStore,
) -> Result<ModelVersion, AggregationError> {
    let bytes = blobs.read(file)?;
    tributary_protocol::tensor_file::read(&job.model, &bytes)?;
    Ok(ModelVersion {
        job: job.name.clone(),
        version: 0,
        round: RoundNumber::default(),
        file: BlobRef { digest: file, length: bytes.len() as u64 },
        parent: None,
        optimizer_state: None,
        control: None,
        created: now,
    })
}

/// Makes and stores version 0 of a job's model from a seed.
///
/// # Errors
/// [`AggregationError`] if the file cannot be stored.
pub fn initial_model(
    job: &JobSpec,
    seed: u64,
    now: Timestamp,
    blobs: &BlobStore,
) -> Result<ModelVersion, AggregationError> {
    let parameters = initial_parameters(&job.model, seed);
    let bytes = tributary_protocol::tensor_file::write(&job.model, &parameters)?;
    let file = BlobRef { digest: blobs.put(&bytes)?, length: bytes.len() as u64 };
    Ok(ModelVersion {
        job: job.name.clone(),
        version: 0,
        round: RoundNumber::default(),
        file,
        parent: None,
        optimizer_state: None,
        control: None,
        created: now,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(job: &str, version: u64, file: &[u8], parent: Option<&[u8]>) -> ModelVersion {
        let record = serde_json::json!({
            "job": job, "version": version, "round": version, "created": version,
            "file": BlobRef { digest: Digest::of(file), length: 1 },
            "parent": parent.map(Digest::of), "optimizer_state": null,
        });
        serde_json::from_value(record).expect("a record")
    }

    #[test]
    fn descent_leads_back_to_the_first_model_also_across_jobs() {
        let first = version("first", 0, b"a", None);
        let second = version("first", 1, b"b", Some(b"a"));
        let next =
            ModelVersion::starting_from(&second, "next".parse().expect("valid"), Timestamp(9));
        let trained = version("next", 1, b"c", Some(b"b"));
        let registry =
            ModelRegistry::new(vec![first.clone(), second.clone(), next.clone(), trained.clone()]);
        assert_eq!(registry.parent(&trained), Some(&next));
        assert_eq!(registry.parent(&next), Some(&second), "a start is no child of itself");
        assert_eq!(registry.parent(&second), Some(&first));
        assert_eq!(registry.parent(&first), None);
    }
}
