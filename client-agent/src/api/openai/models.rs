//! The language part of `GET /v1/models`, and `GET /v1/models/{id}`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::HeaderMap,
};
use serde_json::{Value, json};

use super::{
    super::ApiState,
    error::OpenAiError,
    request::{caller, unknown_model},
};

/// The base and the adapters that the caller may use; nobody without a key learns their names.
pub(in crate::api) fn of_caller(state: &ApiState, headers: &HeaderMap) -> Vec<Value> {
    let Ok((language, caller)) = caller(state, headers) else { return Vec::new() };
    let document = |id: &str, kind: &str| {
        json!({
            "id": id, "object": "model", "created": 0, "owned_by": caller.tenant.as_str(),
            "kind": kind, "base": language.base, "context_max": language.context_max,
        })
    };
    let adapters = caller.adapters.iter().map(|name| document(name, "adapter"));
    std::iter::once(document(&language.name, "base")).chain(adapters).collect()
}

pub(super) async fn model(
    State(state): State<Arc<ApiState>>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Json<Value>, OpenAiError> {
    caller(&state, &headers)?;
    let models = of_caller(&state, &headers);
    models.into_iter().find(|model| model["id"] == id).map(Json).ok_or_else(|| unknown_model(&id))
}
