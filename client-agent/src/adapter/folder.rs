//! The adapters of all jobs on disk, changed by one process at a time.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tributary_protocol::{
    id::{DatasetName, Digest, JobId},
    model::ModelSpec,
    tensor_file::{self, TensorFileError},
};

use super::{Adapter, AdapterError, AdapterPlan, Registry, RegistryError};
use crate::{
    durable_file::{Access, FileError, create_directory, read_bytes, read_text, write_durably},
    site::Site,
};

/// The adapters of a site: reading takes no lock, as every file appears at once; changes do.
#[derive(Debug, Clone)]
pub struct AdapterFolder {
    site: Site,
}

/// The right to change the adapters; held until dropped.
#[derive(Debug)]
pub struct ChangeLock {
    /// Released by the system when it is closed, however the process ends.
    _file: File,
}

/// Says why adapters cannot be read or changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AdapterFolderError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A registry is not readable.
    #[error("{} is damaged; remove the folder to start from the next base", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// No base has arrived for the job, or for any.
    #[error("{}", match job {
        Some(job) => format!("no base of job {job} has arrived here yet; jobs with one: {known:?}"),
        None => "no base has arrived here yet; `tributary-agent run` brings one".to_owned(),
    })]
    NoJob {
        /// The job, if one was named.
        job: Option<JobId>,
        /// The jobs there are.
        known: Vec<String>,
    },
    /// The file of a base is another one.
    #[error("the file of base {digest} does not have that digest; delete it to fetch it again")]
    Digest {
        /// The base.
        digest: Digest,
    },
    /// The base is no usable model.
    #[error("the base model is not usable")]
    Base(#[source] TensorFileError),
    /// An adapter cannot be used.
    #[error("adapter {version} is not usable")]
    Adapter {
        /// Which.
        version: u64,
        /// Why.
        #[source]
        source: AdapterError,
    },
    /// The adapter cannot be activated.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// `adapters/served.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServedJob {
    job: JobId,
}

impl AdapterFolder {
    /// The adapters of a site; touches nothing.
    #[must_use]
    pub fn new(site: &Site) -> Self {
        Self { site: site.clone() }
    }

    /// Waits for the right to change anything.
    ///
    /// # Errors
    /// [`AdapterFolderError::File`].
    pub fn lock(&self) -> Result<ChangeLock, AdapterFolderError> {
        create_directory(&self.site.adapters())?;
        let path = self.site.adapters().join(".lock");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(FileError::on("open", &path))?;
        file.lock().map_err(FileError::on("lock", &path))?;
        Ok(ChangeLock { _file: file })
    }

    /// The job whose base and adapter are served; nothing before the first base.
    ///
    /// # Errors
    /// [`AdapterFolderError`] naming the file.
    pub fn served_job(&self) -> Result<Option<JobId>, AdapterFolderError> {
        let path = self.site.served();
        if !path.exists() {
            return Ok(None);
        }
        let served: ServedJob = serde_json::from_str(&read_text(&path)?)
            .map_err(|source| AdapterFolderError::Damaged { path, source })?;
        Ok(Some(served.job))
    }

    /// One job's adapters; of the served job if none is named.
    ///
    /// # Errors
    /// [`AdapterFolderError::NoJob`] if there is none.
    pub fn registry(&self, job: Option<&JobId>) -> Result<Registry, AdapterFolderError> {
        let served = self.served_job()?;
        let found = match job.or(served.as_ref()) {
            Some(job) => self.find(job)?,
            None => None,
        };
        found.ok_or_else(|| AdapterFolderError::NoJob { job: job.cloned(), known: self.jobs() })
    }

    /// One job's adapters, if there are any.
    ///
    /// # Errors
    /// [`AdapterFolderError`] naming the file.
    pub fn find(&self, job: &JobId) -> Result<Option<Registry>, AdapterFolderError> {
        let path = self.site.adapter_registry(job);
        if !path.exists() {
            return Ok(None);
        }
        serde_json::from_str(&read_text(&path)?)
            .map(Some)
            .map_err(|source| AdapterFolderError::Damaged { path, source })
    }

    /// The adapters of a job that trains this model; a new registry if there was none, or one of
    /// another model.
    ///
    /// # Errors
    /// [`AdapterFolderError`] naming the file.
    pub fn of_job(
        &self,
        job: &JobId,
        dataset: &DatasetName,
        model: &ModelSpec,
    ) -> Result<Registry, AdapterFolderError> {
        let new = || Registry::new(job.clone(), dataset.clone(), model.clone());
        Ok(match self.find(job)? {
            Some(registry) if registry.model == *model && registry.dataset == *dataset => registry,
            // The numbers go on, so that no file is ever another's.
            Some(other) => Registry { next_version: other.next_version, ..new() },
            None => new(),
        })
    }

    /// Writes an adapter's file under the number that the registry will give it.
    ///
    /// # Errors
    /// [`AdapterFolderError`].
    pub fn write_adapter(
        &self,
        registry: &Registry,
        adapter: &Adapter,
    ) -> Result<(), AdapterFolderError> {
        let version = registry.next_version;
        let path = self.site.adapter(&registry.job, version);
        create_directory(path.parent().expect("a file in a folder"))?;
        let bytes = adapter
            .to_safetensors(&registry.model)
            .map_err(|source| AdapterFolderError::Adapter { version, source })?;
        Ok(write_durably(&path, &bytes, Access::Owner)?)
    }

    /// Reads an adapter.
    ///
    /// # Errors
    /// [`AdapterFolderError`] naming it.
    pub fn read_adapter(
        &self,
        registry: &Registry,
        version: u64,
    ) -> Result<Adapter, AdapterFolderError> {
        let bytes = read_bytes(&self.site.adapter(&registry.job, version))?;
        Adapter::from_safetensors(&registry.model, &bytes)
            .map_err(|source| AdapterFolderError::Adapter { version, source })
    }

    /// Makes a registry what is true from now on, durably, and removes files that nothing needs. What a
    /// decoder is served with is written as a PEFT folder too.
    ///
    /// - `serve`: whether its base and adapter are what the site serves
    ///
    /// # Errors
    /// [`AdapterFolderError`]; what was served before is then still served.
    pub fn commit(
        &self,
        mut registry: Registry,
        serve: bool,
        _lock: &ChangeLock,
    ) -> Result<Registry, AdapterFolderError> {
        let gone = registry.prune();
        let path = self.site.adapter_registry(&registry.job);
        create_directory(path.parent().expect("a file in a folder"))?;
        let text = serde_json::to_string_pretty(&registry)
            .map_err(|source| AdapterFolderError::Damaged { path: path.clone(), source })?;
        write_durably(&path, text.as_bytes(), Access::Owner)?;
        if serve && self.served_job()?.as_ref() != Some(&registry.job) {
            let path = self.site.served();
            let text = serde_json::to_string(&ServedJob { job: registry.job.clone() })
                .map_err(|source| AdapterFolderError::Damaged { path: path.clone(), source })?;
            write_durably(&path, text.as_bytes(), Access::Shared)?;
        }
        for version in gone {
            remove(&self.site.adapter(&registry.job, version));
        }
        if serve {
            self.export_served(&registry)?;
        }
        Ok(registry)
    }

    /// Writes what a decoder is served with as a PEFT folder, for language models that follow it: an
    /// adapter that changes nothing where the base is served alone.
    fn export_served(&self, registry: &Registry) -> Result<(), AdapterFolderError> {
        let (ModelSpec::Decoder(_), Some(current)) = (&registry.model, registry.current()) else {
            return Ok(());
        };
        let (version, adapter) = match current.adapter {
            Some(version) => (version, self.read_adapter(registry, version)?),
            None => {
                let plan = AdapterPlan { rank: 1, ..AdapterPlan::default() };
                (0, Adapter::new(&registry.model, current.base, &plan, 0))
            }
        };
        adapter
            .export(&self.site.served_adapter(&registry.job), &registry.model)
            .map_err(|source| AdapterFolderError::Adapter { version, source })
    }

    /// Removes the files of some bases, unless a registry needs them.
    pub fn remove_bases(&self, candidates: &[Digest], _lock: &ChangeLock) {
        let mut needed = BTreeSet::new();
        for job in self.jobs() {
            let found = JobId::new(job).ok().and_then(|job| self.find(&job).ok().flatten());
            // Of a registry that cannot be read, nobody knows what it needs.
            let Some(registry) = found else { return };
            needed.extend(registry.bases());
        }
        for base in candidates.iter().filter(|base| !needed.contains(base)) {
            remove(&self.site.model(*base));
        }
    }

    /// Reads the parameters of a base and checks them against its digest and specification.
    ///
    /// # Errors
    /// [`AdapterFolderError`] naming the base.
    pub fn read_base(
        &self,
        spec: &ModelSpec,
        digest: Digest,
    ) -> Result<Vec<f32>, AdapterFolderError> {
        let bytes = read_bytes(&self.site.model(digest))?;
        if Digest::of(&bytes) != digest {
            return Err(AdapterFolderError::Digest { digest });
        }
        tensor_file::read(spec, &bytes).map_err(AdapterFolderError::Base)
    }

    /// The bytes that change with what is served: the served job and its registry.
    #[must_use]
    pub fn fingerprint(&self) -> Option<Digest> {
        let job = self.served_job().ok().flatten()?;
        let registry = fs::read(self.site.adapter_registry(&job)).ok()?;
        Some(Digest::of(&[job.as_str().as_bytes(), &[0], &registry].concat()))
    }

    fn jobs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.site.adapters()).into_iter().flatten().flatten();
        let mut jobs: Vec<String> = entries
            .filter(|entry| entry.path().join("registry.json").exists())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        jobs.sort_unstable();
        jobs
    }
}

fn remove(path: &std::path::Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::debug!(%error, file = %path.display(), "old file not removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        adapter::{AdapterVersion, Origin, Served},
        model::decoder::{DecoderAdapter, DecoderConfig, Projection, Site as LayerSite},
    };

    #[test]
    fn what_a_decoder_is_served_with_lies_ready_for_language_models() {
        let text = "[decoder]\nvocab_size = 20\nhidden_size = 8\nintermediate_size = 12\n\
                    num_layers = 1\nnum_heads = 2\ncontext_max = 16\ntied = true";
        let model: ModelSpec = toml::from_str(text).expect("valid");
        let ModelSpec::Decoder(decoder) = &model else { panic!("a decoder") };
        let config = DecoderConfig::of_spec(decoder);
        let directory = tempfile::tempdir().expect("a temporary directory");
        let site = Site::new(directory.path());
        let (folder, base) = (AdapterFolder::new(&site), Digest::of(b"base"));
        let job: JobId = "chat".parse().expect("valid");
        let mut registry = Registry::new(job.clone(), "texts".parse().expect("valid"), model);
        let lock = folder.lock().expect("free");
        for seed in 1..=2 {
            let adapter = Adapter::new(&registry.model, base, &AdapterPlan::default(), seed);
            folder.write_adapter(&registry, &adapter).expect("writes");
            let version = registry.add(AdapterVersion {
                version: 0,
                base,
                base_version: 1,
                origin: Origin::Trained,
                created_ms: 1,
                held_out: None,
            });
            registry.activate(version, 2).expect("known");
            registry = folder.commit(registry, true, &lock).expect("writes");
        }
        let served = || DecoderAdapter::open(&site.served_adapter(&job), &config, base);
        let second = served().expect("usable");
        registry.roll_back(3).expect("the first");
        registry = folder.commit(registry, true, &lock).expect("writes");
        let first = served().expect("usable");
        assert_ne!(first.digest(), second.digest());
        // The base alone: an adapter that changes nothing.
        let alone = Served { adapter: None, ..registry.current().expect("served").clone() };
        registry.serve(alone);
        folder.commit(registry, true, &lock).expect("writes");
        let none = served().expect("usable");
        let query = LayerSite { layer: 0, projection: Projection::Query };
        let factors = none.factors(query).expect("a layer of it");
        assert!(factors.b.iter().all(|&value| value == 0.0));
        let other = DecoderAdapter::open(&site.served_adapter(&job), &config, Digest::of(b"new"));
        assert!(other.unwrap_err().to_string().contains("trained on base"));
    }
}
