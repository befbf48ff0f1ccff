//! The interface that clients of OpenAI's API speak, over the agent's own language model.

mod answers;
mod chat;
mod completions;
mod embeddings;
mod error;
mod models;
mod request;

use axum::{
    Router,
    routing::{get, post},
};

pub(super) use self::{error::OpenAiError, models::of_caller};
use super::ApiState;
use std::sync::Arc;

/// The routes.
pub(super) fn routes() -> Router<Arc<ApiState>> {
    Router::new()
        .route("/v1/completions", post(completions::completions))
        .route("/v1/chat/completions", post(chat::chat_completions))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/models/{id}", get(models::model))
}

#[cfg(test)]
mod tests;
