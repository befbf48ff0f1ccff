//! `POST /v1/completions`.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json};

use super::{
    super::ApiState,
    answers::{Chunks, Counts, reason_name},
    error::OpenAiError,
    request::{
        Drawing, OneOrMany, PromptInput, StreamOptions, answer_id, asked, parse, require_zero,
    },
};
use tributary_protocol::transport::process;

/// Tokens of an answer where a request does not say, as OpenAI's interface has it.
const TOKENS_DEFAULT: usize = 16;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    model: String,
    prompt: PromptInput,
    max_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    seed: Option<i64>,
    stop: Option<OneOrMany>,
    n: Option<usize>,
    #[serde(default)]
    stream: bool,
    stream_options: Option<StreamOptions>,
    #[serde(rename = "user")]
    _user: Option<IgnoredAny>,
}

struct Completion {
    id: String,
    model: String,
    created: u64,
    include_usage: bool,
}

impl Completion {
    fn document(&self, choices: Value) -> Value {
        json!({
            "id": self.id, "object": "text_completion", "created": self.created,
            "model": self.model, "choices": choices,
        })
    }
}

fn choice(index: usize, text: &str, reason: Option<&str>) -> Value {
    json!({"index": index, "text": text, "logprobs": null, "finish_reason": reason})
}

impl Chunks for Completion {
    fn opening(&self, _index: usize) -> Option<Value> {
        None
    }

    fn text(&self, index: usize, text: &str) -> Value {
        self.document(json!([choice(index, text, None)]))
    }

    fn end(&self, index: usize, reason: &'static str) -> Value {
        self.document(json!([choice(index, "", Some(reason))]))
    }

    fn usage(&self, usage: Value) -> Option<Value> {
        let mut document = self.document(json!([]));
        document["usage"] = usage;
        self.include_usage.then_some(document)
    }
}

pub(super) async fn completions(
    State(state): State<Arc<ApiState>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, OpenAiError> {
    let request: Request = parse(body)?;
    let asked = asked(&state, &headers, &request.model)?;
    require_zero(&[
        ("presence_penalty", request.presence_penalty),
        ("frequency_penalty", request.frequency_penalty),
    ])?;
    let prompts = request.prompt.tokens(&asked.language.tokenizer)?;
    let drawing = Drawing {
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        repetition_penalty: request.repetition_penalty,
        seed: request.seed,
        stop: request.stop,
        n: request.n,
    };
    let tokens_max = request.max_tokens.unwrap_or(TOKENS_DEFAULT);
    let answers = asked.generate(prompts, Some(tokens_max), drawing).await?;
    let completion = Completion {
        id: answer_id("cmpl")?,
        model: request.model,
        created: process::now().0 / 1000,
        include_usage: request.stream_options.unwrap_or_default().include_usage,
    };
    if request.stream {
        return Ok(answers.stream(completion));
    }
    let mut counts = Counts::default();
    let mut choices = Vec::new();
    for (index, whole) in answers.whole().await?.into_iter().enumerate() {
        counts.add(&whole.finished);
        choices.push(choice(index, &whole.text, Some(reason_name(whole.finished.reason))));
    }
    let mut document = completion.document(choices.into());
    document["usage"] = counts.document();
    Ok(Json(document).into_response())
}
