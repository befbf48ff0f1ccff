use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode, Uri, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::{delete, get, post},
};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{
    ApiError,
    access::{caller, own_caller},
    feedback, openai,
    predict::predict,
};
use crate::{
    data::TextReaders,
    driver::status::{SharedStatus, StatusDocument},
    engine::{Engine, language::LanguageServer},
    feedback::{FeedbackStore, Quality},
    keys::{Access, KeyRole},
};

/// The largest request body, in bytes.
const BODY_BYTES_MAX: usize = 8 << 20;

/// What the interface shows.
pub struct ApiState {
    /// Answers predictions.
    pub engine: Arc<Engine>,
    /// Turns texts into what the model of their dataset reads.
    pub texts: TextReaders,
    /// Writes and embeds text, if the agent has a language model.
    pub language: Option<Arc<LanguageServer>>,
    /// Tells callers apart.
    pub access: Access,
    /// Keeps predictions and their outcomes, if the agent does.
    pub feedback: Option<Arc<FeedbackStore>>,
    /// Whether the agent stops: what is under way is finished, nothing new is begun.
    pub stopping: AtomicBool,
    /// What the agent does.
    pub status: Arc<SharedStatus>,
    /// Renders the metrics.
    pub metrics: PrometheusHandle,
}

impl ApiState {
    pub(super) const STOPPING: &str = "stopping";

    /// Refuses new work once the agent stops.
    pub(super) fn check_open(&self) -> Result<(), ApiError> {
        if !self.stopping.load(Ordering::Relaxed) {
            return Ok(());
        }
        let message = "the agent is stopping and takes no new requests".to_owned();
        Err(ApiError { status: StatusCode::SERVICE_UNAVAILABLE, code: Self::STOPPING, message })
    }
}

/// The routes.
pub fn router(state: Arc<ApiState>) -> Router {
    Router::new()
        .route("/v1/predict", post(predict))
        .route("/v1/feedback", get(feedback::quality).post(feedback::tell))
        .route("/v1/feedback/{id}", delete(feedback::delete))
        .route("/v1/models", get(models))
        .merge(openai::routes())
        .route("/v1/status", get(status))
        .route("/v1/openapi.json", get(openapi))
        .route("/healthz", get(health))
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

async fn status(
    State(state): State<Arc<ApiState>>,
    headers: HeaderMap,
) -> Result<Json<StatusDocument>, ApiError> {
    own_caller(&state, &headers, KeyRole::Viewer)?;
    Ok(Json(state.status.document()))
}

async fn openapi() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], include_str!("openapi.json"))
}

/// A load balancer sends nothing more to an agent that stops.
async fn health(State(state): State<Arc<ApiState>>) -> Result<&'static str, ApiError> {
    state.check_open().map(|()| "ok\n")
}

/// What is served, in the form of the common model lists: for the agent's own tenant the base, then
/// the adapted model.
///
/// Then come the language model and the adapters that the caller's key may use.
async fn models(
    State(state): State<Arc<ApiState>>,
    headers: HeaderMap,
) -> Result<Json<Value>, openai::OpenAiError> {
    let caller = caller(&state, &headers, KeyRole::Inference)?;
    let status = state.status.document();
    let mut data = Vec::new();
    if let Some(base) = status.base.filter(|_| caller.tenant.id == *state.access.own()) {
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
    data.extend(openai::of_caller(&state, &caller));
    Ok(Json(json!({"object": "list", "data": data})))
}

/// Everything for an operator; for a tenant's own key only the lines of that tenant.
async fn metrics(
    State(state): State<Arc<ApiState>>,
    headers: HeaderMap,
) -> Result<String, ApiError> {
    let caller = caller(&state, &headers, KeyRole::Viewer)?;
    let own = caller.tenant.id == *state.access.own();
    if let Some(store) = state.feedback.clone().filter(|_| own) {
        let quality = tokio::task::spawn_blocking(move || store.quality()).await;
        report(&quality.map_err(|error| ApiError::internal(&error))?);
    }
    state.metrics.run_upkeep();
    let all = state.metrics.render();
    if caller.require(KeyRole::Operator).is_ok() {
        return Ok(all);
    }
    let label = format!("tenant=\"{}\"", caller.tenant.id);
    let shown = |line: &&str| line.starts_with('#') || line.contains(&label);
    Ok(all.lines().filter(shown).flat_map(|line| [line, "\n"]).collect())
}

fn report(quality: &Quality) {
    metrics::gauge!("tributary_predictions_kept", "outcome" => "waiting")
        .set(quality.waiting as f64);
    metrics::gauge!("tributary_predictions_kept", "outcome" => "known")
        .set(quality.labelled as f64);
    if let Some(accuracy) = quality.accuracy {
        metrics::gauge!("tributary_feedback_accuracy").set(accuracy);
    }
    if let Some(drift) = &quality.drift {
        metrics::gauge!("tributary_prediction_shift").set(drift.class_shift);
    }
}

async fn unknown(uri: Uri) -> ApiError {
    let message = format!(
        "there is no {}; there are /v1/predict, /v1/feedback, /v1/completions, /v1/chat/completions, \
         /v1/embeddings, /v1/models, /v1/status, /healthz, /metrics",
        uri.path()
    );
    ApiError { status: StatusCode::NOT_FOUND, code: "not-found", message }
}

async fn wrong_method(uri: Uri) -> ApiError {
    let message = format!("{} does not take this method", uri.path());
    ApiError { status: StatusCode::METHOD_NOT_ALLOWED, code: "method-not-allowed", message }
}
