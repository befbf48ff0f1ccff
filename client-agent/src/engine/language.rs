//! A language model as it is served: base, adapters, who may use them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    sync::Arc,
};

use thiserror::Error;
use tributary_protocol::id::{Digest, TenantId};

use super::generation::{Generator, Limits, Scheduler, TenantShare};
use crate::{
    durable_file::{FileError, read_text},
    model::{
        checkpoint::{Checkpoint, CheckpointError, GenerationDefaults},
        decoder::DecoderAdapter,
        peft::PeftError,
    },
    text::{ChatTemplate, Tokenizer},
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
    /// Bounds of the engine.
    pub limits: Limits,
    /// Who may ask; without tenants anyone may, as `tenant`.
    pub tenants: Vec<TenantAccess>,
    /// Whom requests without a key belong to.
    pub tenant: TenantId,
    /// How long an answer may take, in milliseconds.
    pub answer_timeout_ms: u64,
}

/// A tenant that asks with a key.
#[derive(Debug, Clone, PartialEq)]
pub struct TenantAccess {
    /// The tenant.
    pub tenant: TenantId,
    /// File with the key.
    pub key_file: PathBuf,
    /// Adapters that it may use.
    pub adapters: BTreeSet<String>,
    /// What it may have of the engine.
    pub share: TenantShare,
}

/// Says why a language model cannot be served.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LanguageError {
    /// The model's folder cannot be used.
    #[error("the language model cannot be loaded")]
    Checkpoint(#[from] CheckpointError),
    /// An adapter cannot be used.
    #[error("adapter {name:?} cannot be loaded")]
    Adapter {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: PeftError,
    },
    /// An adapter has the name of the base.
    #[error("an adapter is named {name:?} like the base")]
    Name {
        /// The name.
        name: String,
    },
    /// A tenant is to use an adapter that is not there.
    #[error("tenant {tenant} may use adapter {name:?}, which is not configured")]
    UnknownAdapter {
        /// The tenant.
        tenant: TenantId,
        /// The adapter.
        name: String,
    },
    /// A key file cannot be read.
    #[error("the API key of tenant {tenant} cannot be read")]
    KeyFile {
        /// The tenant.
        tenant: TenantId,
        /// Why.
        #[source]
        source: FileError,
    },
    /// A key is too short to be a secret, or two tenants have the same one.
    #[error("the API key of tenant {tenant} must be its own and have at least 16 characters")]
    Key {
        /// The tenant.
        tenant: TenantId,
    },
    /// The cache holds less than one block.
    #[error("a cache of {bytes} bytes has no room for a single block")]
    Cache {
        /// The limit.
        bytes: usize,
    },
    /// There is no thread for the engine.
    #[error("the engine's thread cannot start")]
    Thread(#[from] std::io::Error),
}

/// A running language model.
pub struct LanguageModel {
    /// The name of the base in requests.
    pub name: String,
    /// Names the base's content.
    pub base: Digest,
    /// Text to tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Messages to prompts, if the model has a way.
    pub chat_template: Option<ChatTemplate>,
    /// Sampling where a request does not say.
    pub generation: GenerationDefaults,
    /// Answers requests.
    pub generator: Generator,
    /// How long an answer may take, in milliseconds.
    pub answer_timeout_ms: u64,
    /// Tokens of one request, prompt and answer.
    pub context_max: usize,
    adapters: BTreeMap<String, Arc<DecoderAdapter>>,
    callers: Callers,
}

/// Whose request it is and what it may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The tenant.
    pub tenant: TenantId,
    /// Adapters by name.
    pub adapters: BTreeSet<String>,
}

enum Callers {
    Anyone(Caller),
    /// By the digest of the key: looking one up takes the same time whatever it shares with others.
    ByKey(HashMap<Digest, Caller>),
}

impl LanguageModel {
    /// Loads everything and starts the engine.
    ///
    /// # Errors
    /// [`LanguageError`] naming what cannot be used.
    pub fn start(options: LanguageOptions) -> Result<Self, LanguageError> {
        let Checkpoint { digest, decoder, tokenizer, chat_template, generation } =
            Checkpoint::open(&options.model)?;
        let mut adapters = BTreeMap::new();
        for (name, folder) in options.adapters {
            if name == options.name {
                return Err(LanguageError::Name { name });
            }
            match DecoderAdapter::open(&folder, decoder.config(), digest) {
                Ok(adapter) => adapters.insert(name, Arc::new(adapter)),
                Err(source) => return Err(LanguageError::Adapter { name, source }),
            };
        }
        let shares =
            options.tenants.iter().map(|access| (access.tenant.clone(), access.share)).collect();
        let callers = callers(options.tenants, options.tenant, adapters.keys().cloned().collect())?;
        let tokenizer = Arc::new(tokenizer);
        let (decoder, limits) = (Arc::new(decoder), options.limits);
        let scheduler = Scheduler::new(decoder, tokenizer.clone(), digest, limits, shares);
        let context_max = scheduler.context_max();
        if context_max == 0 {
            return Err(LanguageError::Cache { bytes: limits.cache_bytes });
        }
        Ok(Self {
            name: options.name,
            base: digest,
            tokenizer,
            chat_template,
            generation,
            generator: Generator::start(scheduler)?,
            answer_timeout_ms: options.answer_timeout_ms,
            context_max,
            adapters,
            callers,
        })
    }

    /// Who asks with a key, or without one.
    #[must_use]
    pub fn caller(&self, key: Option<&str>) -> Option<&Caller> {
        match &self.callers {
            Callers::Anyone(caller) => Some(caller),
            Callers::ByKey(callers) => callers.get(&Digest::of(key?.as_bytes())),
        }
    }

    /// The adapter that a caller's model name stands for: none for the base.
    ///
    /// Nothing if there is no such model for this caller, whether or not another has it.
    #[must_use]
    pub fn adapter(&self, caller: &Caller, model: &str) -> Option<Option<Arc<DecoderAdapter>>> {
        if model == self.name {
            return Some(None);
        }
        let allowed = caller.adapters.contains(model);
        allowed.then(|| self.adapters.get(model).cloned()).flatten().map(Some)
    }
}

fn callers(
    tenants: Vec<TenantAccess>,
    anyone: TenantId,
    all: BTreeSet<String>,
) -> Result<Callers, LanguageError> {
    const KEY_LENGTH_MIN: usize = 16;
    if tenants.is_empty() {
        return Ok(Callers::Anyone(Caller { tenant: anyone, adapters: all }));
    }
    let mut callers = HashMap::new();
    for TenantAccess { tenant, key_file, adapters, .. } in tenants {
        if let Some(name) = adapters.difference(&all).next() {
            let name = name.clone();
            return Err(LanguageError::UnknownAdapter { tenant, name });
        }
        let key = read_text(&key_file)
            .map_err(|source| LanguageError::KeyFile { tenant: tenant.clone(), source })?;
        let key = key.trim();
        let digest = Digest::of(key.as_bytes());
        if key.len() < KEY_LENGTH_MIN || callers.contains_key(&digest) {
            return Err(LanguageError::Key { tenant });
        }
        callers.insert(digest, Caller { tenant, adapters });
    }
    Ok(Callers::ByKey(callers))
}
