//! A language model as it is served: base, adapters, and who shares what.
//!
//! [`LanguageServer`] gives each tenant a [`LanguageModel`] by its isolation levels. Tenants at the
//! lowest levels of computation share one queue, cache and base. A dedicated worker has a thread,
//! compute threads, queue and cache of its own over the shared base; an independent copy also has
//! weights of its own; a dedicated process has its own address space.
//!
//! Adapters are replaced while requests run: a request keeps the version that it began with, the next
//! one takes the new version, and the cache knows them apart.

mod error;
mod follow;
mod options;
mod server;

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use tributary_protocol::id::Digest;

pub use self::{
    error::LanguageError,
    options::{LanguageOptions, ProcessOptions, TenantOptions},
    server::{LanguageProcess, LanguageServer, PROCESS_COMMAND},
};
use super::generation::Generator;
use crate::{
    keys::TenantContext,
    model::{
        checkpoint::GenerationDefaults,
        decoder::{DecoderAdapter, DecoderConfig},
    },
    text::{ChatTemplate, Tokenizer},
};

/// A running language model.
pub struct LanguageModel {
    /// The name of the base in requests.
    pub name: String,
    /// Names the base's content.
    pub base: Digest,
    /// Text to tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Messages to prompts, if the model has a way.
    pub chat_template: Option<Arc<ChatTemplate>>,
    /// Sampling where a request does not say.
    pub generation: GenerationDefaults,
    /// Answers requests.
    pub generator: Generator,
    /// How long an answer may take, in milliseconds.
    pub answer_timeout_ms: u64,
    /// Tokens of one request, prompt and answer.
    pub context_max: usize,
    config: DecoderConfig,
    /// The version of each that new requests take.
    adapters: BTreeMap<String, ArcSwap<DecoderAdapter>>,
}

impl LanguageModel {
    /// The adapter that a tenant's model name stands for: none for the base.
    ///
    /// Nothing if there is no such model for this tenant, whether or not another has it.
    #[must_use]
    pub fn adapter(
        &self,
        tenant: &TenantContext,
        model: &str,
    ) -> Option<Option<Arc<DecoderAdapter>>> {
        if model == self.name {
            return Some(None);
        }
        let adapter = self.adapters.get(model).filter(|_| tenant.may_use(model))?;
        Some(Some(adapter.load_full()))
    }

    /// Names of the adapters that a tenant may use.
    pub fn adapters_of(&self, tenant: &TenantContext) -> impl Iterator<Item = &String> {
        self.adapters.keys().filter(|name| tenant.may_use(name))
    }
}

#[cfg(test)]
mod tests;
