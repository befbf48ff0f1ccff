//! `[language]`: a language model to serve.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use thiserror::Error;
use tributary_protocol::{
    id::{Region, TenantId},
    isolation::{ComputeIsolation, DataIsolation, Isolation, ModelIsolation},
};

use crate::{
    compute::{DeviceChoice, Precision},
    engine::{
        generation::{Limits, TenantShare},
        language::{LanguageOptions, TenantOptions},
    },
    keys::TenantContext,
};

/// How long an answer may take where the configuration does not say.
const ANSWER_TIMEOUT_MS: u64 = 300_000;

/// `[language]` as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LanguageSection {
    /// The model's folder, as on the Hugging Face hub.
    model: PathBuf,
    /// The model's name in requests. Default the folder's.
    name: Option<String>,
    /// Where answers are computed; a tenant that names a region needs the same.
    region: Option<Region>,
    /// Adapters (PEFT folders) by their name in requests.
    #[serde(default)]
    adapters: BTreeMap<String, PathBuf>,
    /// What computes: `"auto"`, `"cpu"`, `"cuda"` or `"cuda:N"`. Default `"auto"`. That is the first CUDA device, or
    /// the processor where there is none.
    #[serde(default)]
    device: DeviceChoice,
    /// How weights and past tokens are stored; the processor has `"f32"` alone. Default `"bf16"` on a CUDA device.
    precision: Option<Precision>,
    /// Memory for keys and values of past tokens, in MiB. Default 512.
    cache_mib: Option<NonZeroU32>,
    /// Requests in one batch. Default 32.
    batch_requests_max: Option<NonZeroU32>,
    /// Requests of one tenant that may wait. Default 64.
    queue_max: Option<NonZeroU32>,
    /// Tokens of one request, prompt and answer. Default what model and cache hold.
    context_max: Option<NonZeroU32>,
    /// How long an answer may take, in milliseconds. Default 300000.
    answer_timeout_ms: Option<NonZeroU32>,
    /// Who may have what of it; a tenant with a key and no table has the base alone.
    #[serde(default)]
    tenants: BTreeMap<TenantId, TenantSection>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TenantSection {
    /// A file with one key of the tenant, beside those of `tributary-agent key add`.
    key_file: Option<PathBuf>,
    /// The only region where it may be answered; absent, any.
    region: Option<Region>,
    /// The adapters that it may use.
    #[serde(default)]
    adapters: BTreeSet<String>,
    /// Its share of batches beside others'. Default 1.
    #[serde(default = "one")]
    weight: NonZeroU32,
    /// The most tokens of prompts and answers in a minute; absent, any number.
    tokens_per_minute: Option<NonZeroU32>,
    /// How far it is kept apart from others.
    #[serde(default)]
    isolation: IsolationSection,
    /// Weights of its own, at the model level `independent-copy`. Default those of `language.model`.
    model: Option<PathBuf>,
    /// What computes for it, where it has a worker of its own, as in `language.device`. Default that of the whole.
    device: Option<DeviceChoice>,
    /// Memory of its own for past tokens, in MiB, where it has a worker of its own. Default that of the
    /// whole.
    cache_mib: Option<NonZeroU32>,
    /// Compute threads of its own worker. Default 1.
    threads: Option<NonZeroU32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct IsolationSection {
    /// Only the lowest: an agent keeps no data of guests.
    data: DataIsolation,
    /// Which weights answer it. Default `"adapter"` with adapters, else `"base-only"`.
    model: Option<ModelIsolation>,
    /// What computes for it.
    compute: ComputeIsolation,
}

/// Says which key of a tenant does not fit the others.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`language.tenants.{tenant}.{key}`: {reason}")]
pub struct TenantSectionError {
    /// The tenant.
    pub tenant: TenantId,
    /// The key.
    pub key: &'static str,
    /// What would work.
    pub reason: &'static str,
}

const fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

impl TenantSection {
    /// With paths resolved.
    fn options(
        self,
        tenant: TenantId,
        region: Option<&Region>,
        site: &Path,
    ) -> Result<TenantOptions, TenantSectionError> {
        let IsolationSection { data, model, compute } = self.isolation;
        let model = model.unwrap_or(if self.adapters.is_empty() {
            ModelIsolation::BaseOnly
        } else {
            ModelIsolation::Adapter
        });
        let copied = model == ModelIsolation::IndependentCopy;
        let apart = copied || compute > ComputeIsolation::SharedQueue;
        let elsewhere = self.region.as_ref().is_some_and(|wanted| Some(wanted) != region);
        let checks = [
            (elsewhere, "region", "must be that of `language.region`: it is answered there"),
            (
                model == ModelIsolation::BaseOnly && !self.adapters.is_empty(),
                "adapters",
                "the model level `base-only` has none; use `adapter`",
            ),
            (
                data > DataIsolation::SharedStore,
                "isolation.data",
                "an agent keeps no data of guests; give the tenant an agent of its own",
            ),
            (self.model.is_some() && !copied, "model", "needs the level `independent-copy`"),
            (self.device.is_some() && !apart, "device", "needs a worker of its own"),
            (self.cache_mib.is_some() && !apart, "cache_mib", "needs a worker of its own"),
            (
                self.threads.is_some() && compute == ComputeIsolation::SharedQueue,
                "threads",
                "needs the compute level `dedicated-worker` or `dedicated-device`",
            ),
        ];
        if let Some((_, key, reason)) = checks.into_iter().find(|&(wrong, ..)| wrong) {
            return Err(TenantSectionError { tenant, key, reason });
        }
        let context = TenantContext {
            id: tenant,
            region: self.region,
            isolation: Isolation { data, model, compute },
            share: TenantShare { weight: self.weight, tokens_per_minute: self.tokens_per_minute },
            adapters: Some(self.adapters),
        };
        Ok(TenantOptions {
            context,
            key_file: self.key_file.map(|file| site.join(file)),
            model: self.model.map(|folder| site.join(folder)),
            device: self.device,
            cache_bytes: self.cache_mib.map(|mebibytes| (mebibytes.get() as usize) << 20),
            threads: self.threads.map_or(1, |threads| threads.get() as usize),
        })
    }
}

impl LanguageSection {
    /// With paths resolved.
    pub(super) fn options(self, site: &Path) -> Result<LanguageOptions, TenantSectionError> {
        let mut options = serve_folder(&site.join(&self.model));
        let limits = &mut options.limits;
        let set = |limit: &mut usize, value: Option<NonZeroU32>| {
            if let Some(value) = value {
                *limit = value.get() as usize;
            }
        };
        set(&mut limits.batch_requests_max, self.batch_requests_max);
        set(&mut limits.queue_max, self.queue_max);
        set(&mut limits.context_max, self.context_max);
        if let Some(mebibytes) = self.cache_mib {
            limits.cache_bytes = (mebibytes.get() as usize) << 20;
        }
        if let Some(timeout) = self.answer_timeout_ms {
            options.answer_timeout_ms = u64::from(timeout.get());
        }
        options.device = self.device;
        options.precision = self.precision;
        options.name = self.name.unwrap_or(options.name);
        options.adapters =
            self.adapters.into_iter().map(|(name, folder)| (name, site.join(folder))).collect();
        for (tenant, section) in self.tenants {
            options.tenants.push(section.options(tenant, self.region.as_ref(), site)?);
        }
        Ok(options)
    }
}

/// Serves a folder to anyone, under the folder's name.
#[must_use]
pub fn serve_folder(model: &Path) -> LanguageOptions {
    let name = model.file_name().map_or_else(|| "base".into(), |name| name.to_string_lossy());
    LanguageOptions {
        name: name.into_owned(),
        model: model.to_owned(),
        adapters: BTreeMap::new(),
        device: DeviceChoice::default(),
        precision: None,
        limits: Limits::default(),
        tenants: Vec::new(),
        answer_timeout_ms: ANSWER_TIMEOUT_MS,
        program: std::env::current_exe().unwrap_or_else(|_| "tributary-agent".into()),
    }
}
