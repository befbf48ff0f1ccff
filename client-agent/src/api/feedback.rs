//! `/v1/feedback`: outcomes of predictions.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::{Path, State, rejection::BytesRejection},
    http::{HeaderMap, StatusCode},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tributary_protocol::transport::process;

use super::{ApiError, ApiState, access::own_caller, predict::parse};
use crate::{
    feedback::{FeedbackError, FeedbackStore, Labelling, PredictionId, PredictionIdError},
    keys::KeyRole,
};

/// What a prediction should have been.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    id: String,
    label: u32,
}

/// Takes the outcome of a prediction.
pub(super) async fn tell(
    State(state): State<Arc<ApiState>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, ApiError> {
    own_caller(&state, &headers, KeyRole::Feedback)?;
    state.check_open()?;
    let request: Request = parse(body, "{\"id\": \"p...\", \"label\": class}")?;
    let id: PredictionId = request.id.parse()?;
    let label = request.label;
    let outcome = work(&state, move |store| store.label(id, label, process::now())).await?;
    let status = match outcome {
        Labelling::New => "new",
        Labelling::Repeated => "repeated",
    };
    metrics::counter!("tributary_feedback", "status" => status).increment(1);
    Ok(Json(json!({"id": id, "label": label, "status": status})))
}

/// Shows how good predictions were.
pub(super) async fn quality(
    State(state): State<Arc<ApiState>>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    own_caller(&state, &headers, KeyRole::Feedback)?;
    let quality = work(&state, |store| Ok(store.quality())).await?;
    Ok(Json(json!({"quality": quality})))
}

/// Removes a prediction and its outcome.
pub(super) async fn delete(
    State(state): State<Arc<ApiState>>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    own_caller(&state, &headers, KeyRole::Feedback)?;
    let id: PredictionId = id.parse()?;
    work(&state, move |store| store.delete(id, process::now())).await?;
    Ok(Json(json!({"id": id, "deleted": true})))
}

/// Runs disk work away from the threads that answer others.
async fn work<T: Send + 'static>(
    state: &ApiState,
    work: impl FnOnce(&FeedbackStore) -> Result<T, FeedbackError> + Send + 'static,
) -> Result<T, ApiError> {
    let store = state.feedback.clone().ok_or_else(|| ApiError {
        status: StatusCode::SERVICE_UNAVAILABLE,
        code: "no-feedback",
        message: "this agent keeps no predictions: [feedback] says so, or its log says why"
            .to_owned(),
    })?;
    let outcome = tokio::task::spawn_blocking(move || work(&store)).await;
    Ok(outcome.map_err(|error| ApiError::internal(&error))??)
}

impl From<PredictionIdError> for ApiError {
    fn from(error: PredictionIdError) -> Self {
        let (status, code) = (StatusCode::BAD_REQUEST, "bad-prediction-id");
        Self { status, code, message: error.to_string() }
    }
}

impl From<FeedbackError> for ApiError {
    fn from(error: FeedbackError) -> Self {
        let (status, code) = match &error {
            FeedbackError::Unknown { .. } => (StatusCode::NOT_FOUND, "unknown-prediction"),
            FeedbackError::Expired { .. } => (StatusCode::GONE, "expired-prediction"),
            FeedbackError::Label { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "unknown-label"),
            FeedbackError::Labelled { .. } => (StatusCode::CONFLICT, "labelled-already"),
            FeedbackError::Damaged { .. }
            | FeedbackError::Broken { .. }
            | FeedbackError::InUse(_)
            | FeedbackError::File(_) => {
                tracing::error!(%error, "feedback cannot be kept");
                // Paths and disks are the operator's business.
                let message = "the feedback cannot be kept now; the agent's log says why";
                return Self {
                    status: StatusCode::INTERNAL_SERVER_ERROR,
                    code: "storage",
                    message: message.to_owned(),
                };
            }
        };
        Self { status, code, message: error.to_string() }
    }
}
