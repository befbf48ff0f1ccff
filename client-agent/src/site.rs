//! The directory of one tenant's agent and the names of the files in it.

use std::path::{Path, PathBuf};

use tributary_protocol::id::{Digest, JobId};

/// One tenant's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    directory: PathBuf,
}

impl Site {
    /// Names the files under `directory`; touches none.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// The directory itself.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What the agent runs with, written by the tenant.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.directory.join("agent.toml")
    }

    /// What the tenant allows, written by the tenant.
    #[must_use]
    pub fn policy(&self) -> PathBuf {
        self.directory.join("policy.toml")
    }

    /// Key and certificates, written by `enroll`.
    #[must_use]
    pub fn identity(&self) -> PathBuf {
        self.directory.join("identity")
    }

    /// The privacy ledger.
    #[must_use]
    pub fn ledger(&self) -> PathBuf {
        self.directory.join("ledger.jsonl")
    }

    /// The coordinator's newest word on the ledger.
    #[must_use]
    pub fn receipt(&self) -> PathBuf {
        self.directory.join("receipt.json")
    }

    /// Why the last assignments were declined.
    #[must_use]
    pub fn refusals(&self) -> PathBuf {
        self.directory.join("refusals.json")
    }

    /// Packed updates that may leave, named by their digest.
    #[must_use]
    pub fn releases(&self) -> PathBuf {
        self.directory.join("releases")
    }

    /// What runs with correlated noise need from round to round; as secret as the records.
    #[must_use]
    pub fn runs(&self) -> PathBuf {
        self.directory.join("runs")
    }

    /// The tenant's own control variates (SCAFFOLD), by job.
    #[must_use]
    pub fn controls(&self) -> PathBuf {
        self.directory.join("controls")
    }

    /// Base models from the coordinator.
    #[must_use]
    pub fn models(&self) -> PathBuf {
        self.directory.join("models")
    }

    /// The file of one base model.
    #[must_use]
    pub fn model(&self, digest: Digest) -> PathBuf {
        self.models().join(format!("{digest}.safetensors"))
    }

    /// Private adapters; they never leave the site.
    #[must_use]
    pub fn adapters(&self) -> PathBuf {
        self.directory.join("adapters")
    }

    /// The adapters of one job.
    #[must_use]
    pub fn adapters_of(&self, job: &JobId) -> PathBuf {
        self.adapters().join(job.as_str())
    }

    /// The file of one adapter version.
    #[must_use]
    pub fn adapter(&self, job: &JobId, version: u64) -> PathBuf {
        self.adapters_of(job).join(format!("{version}.safetensors"))
    }

    /// The versions of one job's adapters, and which base and adapter of it are served.
    #[must_use]
    pub fn adapter_registry(&self, job: &JobId) -> PathBuf {
        self.adapters_of(job).join("registry.json")
    }

    /// A PEFT folder with the adapter that a job's decoder is served with.
    #[must_use]
    pub fn served_adapter(&self, job: &JobId) -> PathBuf {
        self.adapters_of(job).join("served")
    }

    /// Which job's base and adapter are served.
    #[must_use]
    pub fn served(&self) -> PathBuf {
        self.adapters().join("served.json")
    }

    /// Predictions and their outcomes; they never leave the site.
    #[must_use]
    pub fn feedback(&self) -> PathBuf {
        self.directory.join("feedback")
    }

    /// Digests of the keys to the HTTP interface and what each may do.
    #[must_use]
    pub fn keys(&self) -> PathBuf {
        self.directory.join("keys.json")
    }

    /// Where the running agent's HTTP interface is.
    #[must_use]
    pub fn endpoints(&self) -> PathBuf {
        self.directory.join("endpoints.json")
    }
}
