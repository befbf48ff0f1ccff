use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode, Uri},
    routing::{get, post},
};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{ApiError, openai, predict::predict};
use crate::{
    driver::status::{SharedStatus, StatusDocument},
    engine::{Engine, language::LanguageModel},
};

/// The largest request body, in bytes.
const BODY_BYTES_MAX: usize = 8 << 20;

/// What the interface shows.
pub struct ApiState {
    /// Answers predictions.
    pub engine: Arc<Engine>,
    /// Writes and embeds text, if the agent has a language model.
    pub language: Option<Arc<LanguageModel>>,
    /// What the agent does.
    pub status: Arc<SharedStatus>,
    /// Renders the metrics.
    pub metrics: PrometheusHandle,
}

/// The routes.
pub fn router(state: Arc<ApiState>) -> Router {
    Router::new()
        .route("/v1/predict", post(predict))
        .route("/v1/models", get(models))
        .merge(openai::routes())
        .route("/v1/status", get(status))
        .route("/healthz", get(async || "ok\n"))
        .route("/metrics", get(metrics))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(state)
}

/// Answers requests until `stop` resolves.
///
/// # Errors
/// Whatever keeps the listener from accepting.
pub async fn serve(
    listener: TcpListener,
    state: Arc<ApiState>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router(state)).with_graceful_shutdown(stop).await
}

async fn status(State(state): State<Arc<ApiState>>) -> Json<StatusDocument> {
    Json(state.status.document())
}

/// What is served, in the form of the common model lists: the base, then the adapted model.
///
/// Then come the language model and the adapters that the caller's key may use.
async fn models(State(state): State<Arc<ApiState>>, headers: HeaderMap) -> Json<Value> {
    let status = state.status.document();
    let mut data = Vec::new();
    if let Some(base) = status.base {
        data.push(json!({
            "id": base.digest, "object": "model", "kind": "base", "accuracy": base.accuracy,
            "serving": status.adapter.is_none(),
        }));
        if let Some(adapter) = status.adapter {
            data.push(json!({
                "id": format!("{}+{}", base.digest, adapter.version), "object": "model",
                "kind": "adapter", "base": base.digest, "version": adapter.version,
                "accuracy": adapter.accuracy, "serving": true,
            }));
        }
    }
    data.extend(openai::of_caller(&state, &headers));
    Json(json!({"object": "list", "data": data}))
}

async fn metrics(State(state): State<Arc<ApiState>>) -> String {
    state.metrics.run_upkeep();
    state.metrics.render()
}

async fn unknown(uri: Uri) -> ApiError {
    let message = format!(
        "there is no {}; there are /v1/predict, /v1/completions, /v1/chat/completions, \
         /v1/embeddings, /v1/models, /v1/status, /healthz, /metrics",
        uri.path()
    );
    ApiError { status: StatusCode::NOT_FOUND, code: "not-found", message }
}

async fn wrong_method(uri: Uri) -> ApiError {
    let message = format!("{} does not take this method", uri.path());
    ApiError { status: StatusCode::METHOD_NOT_ALLOWED, code: "method-not-allowed", message }
}
