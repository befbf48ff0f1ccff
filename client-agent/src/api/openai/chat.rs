//! `POST /v1/chat/completions`.

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
    request::{Drawing, OneOrMany, StreamOptions, answer_id, asked, parse, require_zero},
};
use tributary_protocol::transport::process;

use crate::text::ChatMessage;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    model: String,
    messages: Vec<Message>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    role: String,
    content: Content,
    #[serde(rename = "name")]
    _name: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Part {
    Text { text: String },
}

impl From<Message> for ChatMessage {
    fn from(message: Message) -> Self {
        let content = match message.content {
            Content::Text(text) => text,
            Content::Parts(parts) => parts.into_iter().map(|Part::Text { text }| text).collect(),
        };
        Self { role: message.role, content }
    }
}

struct Conversation {
    id: String,
    model: String,
    created: u64,
    include_usage: bool,
}

impl Conversation {
    fn document(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "choices": choices,
        })
    }

    fn chunk(&self, choices: Value) -> Value {
        self.document("chat.completion.chunk", choices)
    }
}

fn delta(index: usize, delta: Value, reason: Option<&str>) -> Value {
    json!([{"index": index, "delta": delta, "logprobs": null, "finish_reason": reason}])
}

impl Chunks for Conversation {
    fn opening(&self, index: usize) -> Option<Value> {
        Some(self.chunk(delta(index, json!({"role": "assistant", "content": ""}), None)))
    }

    fn text(&self, index: usize, text: &str) -> Value {
        self.chunk(delta(index, json!({"content": text}), None))
    }

    fn end(&self, index: usize, reason: &'static str) -> Value {
        self.chunk(delta(index, json!({}), Some(reason)))
    }

    fn usage(&self, usage: Value) -> Option<Value> {
        let mut document = self.chunk(json!([]));
        document["usage"] = usage;
        self.include_usage.then_some(document)
    }
}

pub(super) async fn chat_completions(
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
    let template = asked.language.chat_template.as_ref().ok_or_else(|| {
        let message = "the model has no chat template; use /v1/completions";
        OpenAiError::bad_request("no_chat_template", message)
    })?;
    if request.messages.is_empty() {
        return Err(OpenAiError::bad_request("no_messages", "`messages` is empty"));
    }
    let messages: Vec<ChatMessage> = request.messages.into_iter().map(Into::into).collect();
    // The template writes the special tokens itself.
    let prompt = asked.language.tokenizer.encode(&template.render(&messages)?, false)?;
    let drawing = Drawing {
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        repetition_penalty: request.repetition_penalty,
        seed: request.seed,
        stop: request.stop,
        n: request.n,
    };
    let tokens_max = request.max_completion_tokens.or(request.max_tokens);
    let answers = asked.generate(vec![prompt], tokens_max, drawing).await?;
    let conversation = Conversation {
        id: answer_id("chatcmpl")?,
        model: request.model,
        created: process::now().0 / 1000,
        include_usage: request.stream_options.unwrap_or_default().include_usage,
    };
    if request.stream {
        return Ok(answers.stream(conversation));
    }
    let (mut counts, mut choices) = (Counts::default(), Vec::new());
    for (index, whole) in answers.whole().await?.into_iter().enumerate() {
        counts.add(&whole.finished);
        choices.push(json!({
            "index": index, "logprobs": null,
            "message": {"role": "assistant", "content": whole.text, "refusal": null},
            "finish_reason": reason_name(whole.finished.reason),
        }));
    }
    let mut document = conversation.document("chat.completion", choices.into());
    document["usage"] = counts.document();
    Ok(Json(document).into_response())
}
