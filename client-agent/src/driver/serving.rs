//! Which base and adapter are served, in memory and across restarts.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tributary_protocol::{
    id::{DatasetName, Digest, JobId},
    message::BaseModel,
    model::ModelSpec,
    tensor_file::{self, TensorFileError},
};

use super::status::{AdapterStatus, BaseStatus};
use crate::{
    adapter::{Adapter, AdapterError},
    durable_file::{Access, FileError, create_directory, read_bytes, read_text, write_durably},
    engine::{Engine, EngineError, Serving},
    site::Site,
};

/// `adapters/current.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Current {
    /// The job that trains the base.
    pub job: JobId,
    /// The dataset of the job.
    pub dataset: DatasetName,
    /// What the model is.
    pub model: ModelSpec,
    /// The base's version within its job.
    pub base_version: u64,
    /// The base that is served.
    pub base: BaseStatus,
    /// The adapter on top, if one is served.
    pub adapter: Option<AdapterStatus>,
    /// The number that the next adapter gets.
    pub next_adapter: u64,
    /// Whether adaptation to this base went to its end.
    pub complete: bool,
}

/// Says why what was served cannot be served again.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServingError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// `current.json` is not readable.
    #[error("adapters/current.json is damaged; delete it to start from the next base")]
    Current(#[source] serde_json::Error),
    /// The file of the base is another one.
    #[error("the file of base {digest} does not have that digest; delete it to fetch it again")]
    Digest {
        /// The base.
        digest: Digest,
    },
    /// The base is no usable model.
    #[error("the base model is not usable")]
    Base(#[source] TensorFileError),
    /// The adapter cannot be used.
    #[error("the adapter is not usable")]
    Adapter(#[source] AdapterError),
    /// The engine does not take it.
    #[error("the model cannot be served")]
    Engine(#[from] EngineError),
}

/// Reads the parameters of a base and checks them against its digest and specification.
pub(super) fn load_base(
    site: &Site,
    spec: &ModelSpec,
    digest: Digest,
) -> Result<Vec<f32>, ServingError> {
    let bytes = read_bytes(&site.model(digest))?;
    if Digest::of(&bytes) != digest {
        return Err(ServingError::Digest { digest });
    }
    tensor_file::read(spec, &bytes).map_err(ServingError::Base)
}

/// What was served when the agent last ran.
#[derive(Debug, Default)]
pub struct Served {
    /// What `current.json` says.
    pub current: Option<Current>,
    /// The newest adapter, from which the next one starts.
    pub adapter: Option<Adapter>,
}

impl Served {
    /// Puts what was last served into `engine`, if there is anything.
    ///
    /// # Errors
    /// [`ServingError`] naming what is damaged.
    pub fn restore(site: &Site, engine: &Engine) -> Result<Self, ServingError> {
        if !site.current().exists() {
            return Ok(Self::default());
        }
        let current: Current =
            serde_json::from_str(&read_text(&site.current())?).map_err(ServingError::Current)?;
        let parameters = load_base(site, &current.model, current.base.digest)?;
        let adapter = match current.adapter {
            Some(AdapterStatus { version, .. }) => {
                let bytes = read_bytes(&site.adapter(version))?;
                let adapter = Adapter::from_safetensors(&current.model, &bytes)
                    .map_err(ServingError::Adapter)?;
                Some((version, adapter))
            }
            None => None,
        };
        let on_top = adapter.as_ref().map(|(version, adapter)| (*version, adapter));
        let serving = Serving::new(&current.model, current.base.digest, &parameters, on_top)?;
        engine.swap(serving.for_dataset(current.dataset.clone()));
        Ok(Self { current: Some(current), adapter: adapter.map(|(_, adapter)| adapter) })
    }

    /// The number of the next adapter.
    #[must_use]
    pub fn next_adapter(&self) -> u64 {
        self.current.as_ref().map_or(1, |current| current.next_adapter)
    }

    /// Makes a new base and adapter what is served: durably first, then in the engine.
    ///
    /// # Errors
    /// [`ServingError`]; what was served before is then still served.
    pub fn replace(
        &mut self,
        site: &Site,
        engine: &Engine,
        base: &BaseModel,
        parameters: &[f32],
        next: NextServed,
    ) -> Result<Current, ServingError> {
        let NextServed { base_accuracy, adapter, complete } = next;
        create_directory(&site.adapters())?;
        let version = self.next_adapter();
        let on_top = adapter.as_ref().map(|(adapter, _)| (version, adapter));
        let serving = Serving::new(&base.model, base.file.digest, parameters, on_top)?
            .for_dataset(base.dataset.clone());
        if let Some((adapter, _)) = &adapter {
            let bytes = adapter.to_safetensors(&base.model).map_err(ServingError::Adapter)?;
            write_durably(&site.adapter(version), &bytes, Access::Owner)?;
        }
        let status =
            |(_, accuracy): &(Adapter, Option<f64>)| AdapterStatus { version, accuracy: *accuracy };
        let current = Current {
            job: base.job.clone(),
            dataset: base.dataset.clone(),
            model: base.model.clone(),
            base_version: base.version,
            base: BaseStatus { digest: base.file.digest, accuracy: base_accuracy },
            adapter: adapter.as_ref().map(status),
            next_adapter: version + u64::from(adapter.is_some()),
            complete,
        };
        let text = serde_json::to_string_pretty(&current).map_err(ServingError::Current)?;
        write_durably(&site.current(), text.as_bytes(), Access::Shared)?;
        engine.swap(serving);
        let old = self.current.replace(current.clone());
        if let Some((adapter, _)) = adapter {
            self.adapter = Some(adapter);
        }
        remove_old(site, old.as_ref(), &current);
        Ok(current)
    }
}

/// What is to be served on a base.
#[derive(Debug)]
pub struct NextServed {
    /// Of the base alone, on held-out records.
    pub base_accuracy: Option<f64>,
    /// The adapter that earned its place, with its accuracy on held-out records.
    pub adapter: Option<(Adapter, Option<f64>)>,
    /// Whether adaptation went to its end.
    pub complete: bool,
}

fn remove_old(site: &Site, old: Option<&Current>, new: &Current) {
    let Some(old) = old else { return };
    let mut files = Vec::new();
    if old.base.digest != new.base.digest {
        files.push(site.model(old.base.digest));
    }
    let version = |current: &Current| current.adapter.map(|adapter| adapter.version);
    if let Some(old) = version(old).filter(|old| Some(*old) != version(new)) {
        files.push(site.adapter(old));
    }
    for file in files {
        if let Err(error) = std::fs::remove_file(&file) {
            tracing::debug!(%error, file = %file.display(), "old file not removed");
        }
    }
}
