//! The language part of `GET /v1/models`, and `GET /v1/models/{id}`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::HeaderMap,
};
use serde_json::{Value, json};

use super::{
    super::{ApiState, access::caller},
    error::OpenAiError,
    request::unknown_model,
};
use crate::keys::{Caller, KeyRole};

/// The base and the adapters that the caller may use.
pub(in crate::api) fn of_caller(state: &ApiState, caller: &Caller) -> Vec<Value> {
    let Some(server) = &state.language else { return Vec::new() };
    let language = server.of(&caller.tenant.id);
    let document = |id: &str, kind: &str| {
        json!({
            "id": id, "object": "model", "created": 0, "owned_by": caller.tenant.id.as_str(),
            "kind": kind, "base": language.base, "context_max": language.context_max,
        })
    };
    let adapters = language.adapters_of(&caller.tenant).map(|name| document(name, "adapter"));
    std::iter::once(document(&language.name, "base")).chain(adapters).collect()
}

pub(super) async fn model(
    State(state): State<Arc<ApiState>>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Json<Value>, OpenAiError> {
    let caller = caller(&state, &headers, KeyRole::Inference)?;
    let models = of_caller(&state, &caller);
    models.into_iter().find(|model| model["id"] == id).map(Json).ok_or_else(|| unknown_model(&id))
}
