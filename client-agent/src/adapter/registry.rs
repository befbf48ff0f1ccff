//! The versions of a job's adapters, and which base and adapter were served when.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tributary_protocol::{
    id::{DatasetName, Digest, JobId},
    model::ModelSpec,
};

use crate::train::Evaluation;

/// What was served before and can be rolled back to, at most.
const HISTORY_MAX: usize = 16;
/// Versions that are kept beside those that are or were just served.
const VERSIONS_KEPT: usize = 8;

/// One job's adapters: `adapters/JOB/registry.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registry {
    /// The job that trains the base.
    pub job: JobId,
    /// The dataset of the job.
    pub dataset: DatasetName,
    /// What the model is.
    pub model: ModelSpec,
    /// The number that the next adapter gets.
    pub next_version: u64,
    /// The adapters whose files are here, oldest first.
    pub versions: Vec<AdapterVersion>,
    /// What was served, oldest first; the last is served now.
    pub history: Vec<Served>,
    /// The newest base that was heard of, and what became of it.
    pub newest: Option<NewestBase>,
}

/// One adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterVersion {
    /// Counted by this agent, over all bases of the job.
    pub version: u64,
    /// The base that it belongs to.
    pub base: Digest,
    /// The base's version within its job.
    pub base_version: u64,
    /// Where it came from.
    pub origin: Origin,
    /// Milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// With its base, on the tenant's own held-out records when it was made.
    pub held_out: Option<Evaluation>,
}

/// Where an adapter came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Trained here.
    Trained,
    /// Read from a PEFT folder.
    Imported,
}

/// A base and the adapter on top, as they were or are served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Served {
    /// The base.
    pub base: Digest,
    /// The base's version within its job.
    pub base_version: u64,
    /// Of the base alone, on the tenant's own held-out records.
    pub base_held_out: Option<Evaluation>,
    /// The adapter's version; nothing if the base is served alone.
    pub adapter: Option<u64>,
    /// Of both together, on the tenant's own held-out records.
    pub held_out: Option<Evaluation>,
    /// Since when, in milliseconds since the Unix epoch.
    pub since_ms: u64,
}

/// What became of the newest base.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewestBase {
    /// The base.
    pub base: Digest,
    /// Its version within its job.
    pub base_version: u64,
    /// Of the base alone, on the tenant's own held-out records.
    pub held_out: Option<Evaluation>,
    /// Whether adapting to it went to its end.
    pub complete: bool,
    /// Whether it is served; else an older pair did better here.
    pub served: bool,
}

/// Says why an adapter cannot be activated.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// No adapter has that number.
    #[error("job {job} has no adapter {version} here; it has {known:?} (`adapter list`)")]
    UnknownVersion {
        /// The job.
        job: JobId,
        /// What was asked for.
        version: u64,
        /// The versions there are.
        known: Vec<u64>,
    },
    /// Nothing was served before.
    #[error("nothing was served before for job {job}, so there is nothing to roll back to")]
    NothingBefore {
        /// The job.
        job: JobId,
    },
}

impl Registry {
    /// A job without adapters.
    #[must_use]
    pub const fn new(job: JobId, dataset: DatasetName, model: ModelSpec) -> Self {
        Self {
            job,
            dataset,
            model,
            next_version: 1,
            versions: Vec::new(),
            history: Vec::new(),
            newest: None,
        }
    }

    /// What is served now.
    #[must_use]
    pub fn current(&self) -> Option<&Served> {
        self.history.last()
    }

    /// One adapter.
    ///
    /// # Errors
    /// [`RegistryError::UnknownVersion`].
    pub fn version(&self, version: u64) -> Result<&AdapterVersion, RegistryError> {
        let found = self.versions.iter().find(|known| known.version == version);
        found.ok_or_else(|| RegistryError::UnknownVersion {
            job: self.job.clone(),
            version,
            known: self.versions.iter().map(|known| known.version).collect(),
        })
    }

    /// Adds an adapter, whose file is there, under the next number.
    pub fn add(&mut self, adapter: AdapterVersion) -> u64 {
        let version = self.next_version;
        self.next_version += 1;
        self.versions.push(AdapterVersion { version, ..adapter });
        version
    }

    /// Serves a base and perhaps an adapter from now on.
    pub fn serve(&mut self, served: Served) {
        self.history.push(served);
        let surplus = self.history.len().saturating_sub(HISTORY_MAX);
        self.history.drain(..surplus);
    }

    /// Serves an adapter on its own base.
    ///
    /// # Errors
    /// [`RegistryError::UnknownVersion`].
    pub fn activate(&mut self, version: u64, now_ms: u64) -> Result<(), RegistryError> {
        let adapter = self.version(version)?;
        let measured = self.history.iter().rev().find(|served| served.base == adapter.base);
        let served = Served {
            base: adapter.base,
            base_version: adapter.base_version,
            base_held_out: measured.and_then(|served| served.base_held_out),
            adapter: Some(version),
            held_out: adapter.held_out,
            since_ms: now_ms,
        };
        self.serve(served);
        Ok(())
    }

    /// Serves again what was served before; repeated, what was served before that.
    ///
    /// # Errors
    /// [`RegistryError::NothingBefore`].
    pub fn roll_back(&mut self, now_ms: u64) -> Result<(), RegistryError> {
        if self.history.len() < 2 {
            return Err(RegistryError::NothingBefore { job: self.job.clone() });
        }
        self.history.pop();
        if let Some(served) = self.history.last_mut() {
            served.since_ms = now_ms;
        }
        Ok(())
    }

    /// Forgets adapters and moments of the past that are not worth their files: what is served, what
    /// a rollback leads to, and the newest versions stay.
    ///
    /// - returns: the versions whose files can go
    pub fn prune(&mut self) -> Vec<u64> {
        let oldest_kept = self.versions.len().saturating_sub(VERSIONS_KEPT);
        let newest: Vec<u64> =
            self.versions[oldest_kept..].iter().map(|known| known.version).collect();
        let recent: Vec<u64> =
            self.history.iter().rev().take(2).filter_map(|served| served.adapter).collect();
        let kept = |version: &u64| newest.contains(version) || recent.contains(version);
        let (stay, go) = std::mem::take(&mut self.versions)
            .into_iter()
            .partition::<Vec<_>, _>(|known| kept(&known.version));
        self.versions = stay;
        self.history.retain(|served| served.adapter.is_none_or(|version| kept(&version)));
        let bases = self.bases();
        self.history.retain(|served| bases.contains(&served.base));
        go.into_iter().map(|known| known.version).collect()
    }

    /// The bases whose files are needed: of what is served, of a rollback, and of every adapter.
    #[must_use]
    pub fn bases(&self) -> Vec<Digest> {
        let recent = self.history.iter().rev().take(2).map(|served| served.base);
        let newest = self.newest.iter().map(|newest| newest.base);
        recent.chain(newest).chain(self.versions.iter().map(|known| known.base)).collect()
    }
}

#[cfg(test)]
mod tests {
    use tributary_protocol::model::MlpSpec;

    use super::*;

    fn registry() -> Registry {
        let model = ModelSpec::Mlp(MlpSpec { inputs: 2, hidden: vec![], classes: 2 });
        Registry::new("job".parse().expect("valid"), "data".parse().expect("valid"), model)
    }

    fn adapter(base: u8) -> AdapterVersion {
        AdapterVersion {
            version: 0,
            base: Digest::of(&[base]),
            base_version: base.into(),
            origin: Origin::Trained,
            created_ms: 5,
            held_out: None,
        }
    }

    fn served(base: u8, adapter: Option<u64>) -> Served {
        Served {
            base: Digest::of(&[base]),
            base_version: base.into(),
            base_held_out: None,
            adapter,
            held_out: None,
            since_ms: 1,
        }
    }

    #[test]
    fn rollback_goes_back_step_by_step_and_activation_takes_the_base_along() {
        let mut registry = registry();
        registry.serve(served(1, None));
        assert_eq!(registry.add(adapter(1)), 1);
        registry.activate(1, 7).expect("known");
        registry.serve(served(2, None));
        assert_eq!(registry.add(adapter(2)), 2);
        registry.activate(2, 8).expect("known");
        let now = |registry: &Registry| {
            let current = registry.current().expect("served");
            (current.base_version, current.adapter)
        };
        assert_eq!(now(&registry), (2, Some(2)));
        registry.activate(1, 9).expect("known");
        assert_eq!(now(&registry), (1, Some(1)));
        for expected in [(2, Some(2)), (2, None), (1, Some(1)), (1, None)] {
            registry.roll_back(10).expect("something before");
            assert_eq!(now(&registry), expected);
        }
        let error = registry.roll_back(11).expect_err("the first");
        assert!(matches!(error, RegistryError::NothingBefore { .. }), "{error}");
        let error = registry.activate(9, 12).expect_err("unknown").to_string();
        assert!(error.contains("[1, 2]"), "{error}");
    }

    #[test]
    fn pruning_keeps_what_is_served_and_what_a_rollback_leads_to() {
        let mut registry = registry();
        for base in 1..=20 {
            let version = registry.add(adapter(base));
            registry.activate(version, 1).expect("known");
        }
        registry.activate(1, 2).expect("known");
        let gone = registry.prune();
        assert_eq!(gone, (2..=12).collect::<Vec<u64>>());
        assert_eq!(registry.current().and_then(|served| served.adapter), Some(1));
        registry.roll_back(3).expect("the twentieth");
        assert_eq!(registry.current().and_then(|served| served.adapter), Some(20));
        assert!(registry.bases().contains(&Digest::of(&[1])));
        assert!(!registry.bases().contains(&Digest::of(&[5])));
        assert_eq!(registry.next_version, 21);
    }
}
