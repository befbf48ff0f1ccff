//! `[language]`: a language model to serve.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use tributary_protocol::id::TenantId;

use crate::engine::{
    generation::{Limits, TenantShare},
    language::{LanguageOptions, TenantAccess},
};

/// How long an answer may take where the configuration does not say.
const ANSWER_TIMEOUT_MS: u64 = 300_000;

/// `[language]` as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LanguageSection {
    model: PathBuf,
    name: Option<String>,
    #[serde(default)]
    adapters: BTreeMap<String, PathBuf>,
    cache_mib: Option<NonZeroU32>,
    batch_requests_max: Option<NonZeroU32>,
    queue_max: Option<NonZeroU32>,
    context_max: Option<NonZeroU32>,
    answer_timeout_ms: Option<NonZeroU32>,
    #[serde(default)]
    tenants: BTreeMap<TenantId, TenantSection>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TenantSection {
    key_file: PathBuf,
    #[serde(default)]
    adapters: BTreeSet<String>,
    #[serde(default = "one")]
    weight: NonZeroU32,
    tokens_per_minute: Option<NonZeroU32>,
}

const fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

impl LanguageSection {
    /// With paths resolved.
    pub(super) fn options(self, site: &Path) -> LanguageOptions {
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
        options.name = self.name.unwrap_or(options.name);
        options.adapters =
            self.adapters.into_iter().map(|(name, folder)| (name, site.join(folder))).collect();
        options.tenants = self
            .tenants
            .into_iter()
            .map(|(tenant, section)| TenantAccess {
                tenant,
                key_file: site.join(section.key_file),
                adapters: section.adapters,
                share: TenantShare {
                    weight: section.weight,
                    tokens_per_minute: section.tokens_per_minute,
                },
            })
            .collect();
        options
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
        limits: Limits::default(),
        tenants: Vec::new(),
        tenant: TenantId::new("local").expect("a valid name"),
        answer_timeout_ms: ANSWER_TIMEOUT_MS,
    }
}
