//! `POST /v1/embeddings`.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::HeaderMap,
};
use data_encoding::BASE64;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json};

use super::{
    super::ApiState,
    error::OpenAiError,
    request::{PromptInput, asked, parse},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    model: String,
    input: PromptInput,
    #[serde(default)]
    encoding_format: Encoding,
    #[serde(rename = "user")]
    _user: Option<IgnoredAny>,
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    #[default]
    Float,
    /// Little-endian f32.
    Base64,
}

impl Encoding {
    fn write(self, values: &[f32]) -> Value {
        match self {
            Self::Float => values.into(),
            Self::Base64 => {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                BASE64.encode(&bytes).into()
            }
        }
    }
}

pub(super) async fn embeddings(
    State(state): State<Arc<ApiState>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, OpenAiError> {
    let request: Request = parse(body)?;
    let asked = asked(&state, &headers, &request.model)?;
    let prompts = request.input.tokens(&asked.language.tokenizer)?;
    let answers = asked.embed(prompts).await?.whole().await?;
    let tokens: usize = answers.iter().map(|answer| answer.finished.prompt_tokens).sum();
    let encoding = request.encoding_format;
    let data: Vec<Value> = answers
        .iter()
        .enumerate()
        .map(|(index, answer)| {
            let embedding = encoding.write(&answer.embedding);
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    Ok(Json(json!({
        "object": "list", "data": data, "model": request.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    })))
}
