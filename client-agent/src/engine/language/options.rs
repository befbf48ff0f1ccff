use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};
use tributary_protocol::id::TenantId;

use crate::{
    compute::{DeviceChoice, Precision},
    engine::generation::Limits,
    keys::{KeyFile, Tenancy, TenantContext},
};

/// What to serve.
#[derive(Debug, Clone, PartialEq)]
pub struct LanguageOptions {
    /// The model's folder.
    pub model: PathBuf,
    /// The name of the base in requests.
    pub name: String,
    /// PEFT folders by the name of the adapter in requests.
    pub adapters: BTreeMap<String, PathBuf>,
    /// What computes.
    pub device: DeviceChoice,
    /// How numbers are stored; without it, as suits the device.
    pub precision: Option<Precision>,
    /// Bounds of the engine.
    pub limits: Limits,
    /// Tenants with a share, levels or adapters of their own.
    pub tenants: Vec<TenantOptions>,
    /// How long an answer may take, in milliseconds.
    pub answer_timeout_ms: u64,
    /// The program that dedicated processes run: this one.
    pub program: PathBuf,
}

/// How a tenant is served.
#[derive(Debug, Clone, PartialEq)]
pub struct TenantOptions {
    /// Who it is and what it may have.
    pub context: TenantContext,
    /// File with its key; without it, its keys are those of `keys.json`.
    pub key_file: Option<PathBuf>,
    /// The folder of its independent copy, where that is not the shared one.
    pub model: Option<PathBuf>,
    /// What computes for its own worker or process, where that is not what computes for all.
    pub device: Option<DeviceChoice>,
    /// Memory of its own cache, where it has one.
    pub cache_bytes: Option<usize>,
    /// Compute threads of its own worker or process.
    pub threads: usize,
}

impl LanguageOptions {
    /// Who may ask.
    #[must_use]
    pub fn tenancy(&self, own: TenantId, keys: KeyFile) -> Tenancy {
        let file =
            |tenant: &TenantOptions| Some((tenant.context.id.clone(), tenant.key_file.clone()?));
        Tenancy {
            own,
            contexts: self.tenants.iter().map(|tenant| tenant.context.clone()).collect(),
            key_files: self.tenants.iter().filter_map(file).collect(),
            keys,
        }
    }
}

/// What a process of one tenant serves, as it is told on its standard input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessOptions {
    /// Whose process it is.
    pub tenant: TenantContext,
    /// The model's folder.
    pub model: PathBuf,
    /// Its adapters' folders.
    pub adapters: Vec<PathBuf>,
    /// What computes.
    pub device: DeviceChoice,
    /// How numbers are stored.
    pub precision: Option<Precision>,
    /// Bounds of the engine.
    pub limits: Limits,
    /// Compute threads.
    pub threads: usize,
}
