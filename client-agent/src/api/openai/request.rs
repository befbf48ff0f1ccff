//! What the endpoints have in common: who asks, what for, with which sampling.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::rejection::BytesRejection,
    http::{HeaderMap, StatusCode},
};
use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};
use tributary_protocol::transport::process;

use super::{
    super::{ApiState, access::caller},
    answers::Answers,
    error::OpenAiError,
};
use crate::{
    engine::{
        generation::{GenerationRequest, RequestId, Sampling, Work},
        language::LanguageModel,
    },
    keys::{Caller, KeyRole},
    model::decoder::DecoderAdapter,
    text::Tokenizer,
};

/// Answers of one request, at most.
const CHOICES_MAX: usize = 128;
/// Stop strings of one request, at most.
const STOPS_MAX: usize = 16;

/// Text or tokens, one or many.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum PromptInput {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    ManyTokens(Vec<Vec<u32>>),
}

/// One string or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// The part of a request that says how tokens are drawn, and keys that change nothing here.
#[derive(Debug, Default)]
pub(super) struct Drawing {
    pub(super) temperature: Option<f32>,
    pub(super) top_p: Option<f32>,
    pub(super) top_k: Option<u32>,
    pub(super) repetition_penalty: Option<f32>,
    pub(super) seed: Option<i64>,
    pub(super) stop: Option<OneOrMany>,
    pub(super) n: Option<usize>,
}

/// What to add to a stream.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StreamOptions {
    #[serde(default)]
    pub(super) include_usage: bool,
    #[serde(default, rename = "include_obfuscation")]
    _include_obfuscation: Option<IgnoredAny>,
}

/// A caller, its model and adapter.
pub(super) struct Asked {
    pub(super) language: Arc<LanguageModel>,
    pub(super) caller: Caller,
    pub(super) adapter: Option<Arc<DecoderAdapter>>,
}

impl PromptInput {
    /// The prompts as tokens.
    pub(super) fn tokens(self, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>, OpenAiError> {
        let encode = |text: &String| Ok(tokenizer.encode(text, true)?);
        match self {
            Self::Text(text) => Ok(vec![encode(&text)?]),
            Self::Texts(texts) => texts.iter().map(encode).collect(),
            Self::Tokens(tokens) => Ok(vec![tokens]),
            Self::ManyTokens(prompts) => Ok(prompts),
        }
    }
}

/// Reads a body.
pub(super) fn parse<T: DeserializeOwned>(
    body: Result<Bytes, BytesRejection>,
) -> Result<T, OpenAiError> {
    let body = body.map_err(|rejection| {
        let message = format!("{}; at most 8 MiB are read", rejection.body_text());
        OpenAiError::new(rejection.status(), "body_too_large", message)
    })?;
    serde_json::from_slice(&body)
        .map_err(|error| OpenAiError::bad_request("bad_json", error.to_string()))
}

/// Refuses values of keys that would change the answer and are not built.
pub(super) fn require_zero(pairs: &[(&str, Option<f32>)]) -> Result<(), OpenAiError> {
    match pairs.iter().find(|(_, value)| value.is_some_and(|value| value != 0.0)) {
        Some((name, _)) => {
            let message = format!("`{name}` is not supported; use `repetition_penalty`");
            Err(OpenAiError::bad_request("unsupported", message))
        }
        None => Ok(()),
    }
}

/// The caller and the adapter that its model name stands for.
pub(super) fn asked(
    state: &ApiState,
    headers: &HeaderMap,
    model: &str,
) -> Result<Asked, OpenAiError> {
    let caller = caller(state, headers, KeyRole::Inference)?;
    let server = state.language.as_ref().ok_or_else(|| {
        let message = "this agent serves no language model; set [language] or --language-model";
        OpenAiError::new(StatusCode::NOT_FOUND, "no_language_model", message)
    })?;
    let language = server.of(&caller.tenant.id).clone();
    let adapter = language.adapter(&caller.tenant, model).ok_or_else(|| unknown_model(model))?;
    Ok(Asked { language, caller, adapter })
}

pub(super) fn unknown_model(model: &str) -> OpenAiError {
    let message = format!("there is no model {model:?} for you; /v1/models lists yours");
    OpenAiError::new(StatusCode::NOT_FOUND, "model_not_found", message)
}

impl Asked {
    /// Hands in `n` requests for each prompt, all or none.
    pub(super) async fn generate(
        &self,
        prompts: Vec<Vec<u32>>,
        tokens_max: Option<usize>,
        drawing: Drawing,
    ) -> Result<Answers, OpenAiError> {
        let n = drawing.n.unwrap_or(1);
        if n == 0 || n.saturating_mul(prompts.len()) > CHOICES_MAX || prompts.is_empty() {
            let message = format!("between 1 and {CHOICES_MAX} answers are given at once");
            return Err(OpenAiError::bad_request("choices", message));
        }
        let stops = match drawing.stop {
            None => Vec::new(),
            Some(OneOrMany::One(stop)) => vec![stop],
            Some(OneOrMany::Many(stops)) if stops.len() <= STOPS_MAX => stops,
            Some(OneOrMany::Many(_)) => {
                let message = format!("at most {STOPS_MAX} stop strings are taken");
                return Err(OpenAiError::bad_request("stop", message));
            }
        };
        let defaults = &self.language.generation;
        let seed = match drawing.seed {
            Some(seed) => seed as u64,
            None => fresh_seed()?,
        };
        let mut tickets = Vec::new();
        for prompt in prompts {
            let left = self.language.context_max.saturating_sub(prompt.len());
            for index in 0..n {
                let sampling = Sampling {
                    temperature: drawing.temperature.or(defaults.temperature).unwrap_or(1.0),
                    top_k: drawing.top_k.or(defaults.top_k).unwrap_or(0),
                    top_p: drawing.top_p.or(defaults.top_p).unwrap_or(1.0),
                    repetition_penalty: drawing
                        .repetition_penalty
                        .or(defaults.repetition_penalty)
                        .unwrap_or(1.0),
                    seed: seed.wrapping_add(index as u64),
                };
                let work = Work::Generate {
                    tokens_max: tokens_max.unwrap_or(left),
                    sampling,
                    stops: stops.clone(),
                    end_tokens: defaults.end_tokens.clone(),
                };
                let request = self.request(prompt.clone(), work);
                tickets.push(self.language.generator.submit(request).await?);
            }
        }
        Ok(Answers::new(tickets))
    }

    /// Hands in the prompts to be embedded.
    pub(super) async fn embed(&self, prompts: Vec<Vec<u32>>) -> Result<Answers, OpenAiError> {
        if prompts.is_empty() || prompts.len() > CHOICES_MAX {
            let message = format!("between 1 and {CHOICES_MAX} inputs are embedded at once");
            return Err(OpenAiError::bad_request("inputs", message));
        }
        let mut tickets = Vec::new();
        for prompt in prompts {
            let request = self.request(prompt, Work::Embed);
            tickets.push(self.language.generator.submit(request).await?);
        }
        Ok(Answers::new(tickets))
    }

    fn request(&self, prompt: Vec<u32>, work: Work) -> GenerationRequest {
        GenerationRequest {
            id: RequestId(0),
            tenant: self.caller.tenant.id.clone(),
            adapter: self.adapter.clone(),
            prompt,
            work,
            deadline: Some(process::now().after_ms(self.language.answer_timeout_ms)),
        }
    }
}

fn fresh_seed() -> Result<u64, OpenAiError> {
    getrandom::u64().map_err(|error| {
        OpenAiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string())
    })
}

/// A name for an answer.
pub(super) fn answer_id(prefix: &str) -> Result<String, OpenAiError> {
    Ok(format!("{prefix}-{:016x}", fresh_seed()?))
}
