//! `POST /v1/predict`.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::StatusCode,
};
use serde::{Deserialize, Serialize};
use tributary_protocol::id::Digest;

use super::{ApiError, ApiState};

/// What to predict.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    inputs: Vec<Vec<f32>>,
}

/// The predictions.
#[derive(Debug, Serialize)]
pub(super) struct Response {
    predictions: Vec<Prediction>,
    model: ModelVersion,
}

#[derive(Debug, Serialize)]
struct Prediction {
    class: u32,
    probabilities: Vec<f32>,
}

#[derive(Debug, Serialize)]
struct ModelVersion {
    base: Digest,
    adapter: Option<u64>,
}

pub(super) async fn predict(
    State(state): State<Arc<ApiState>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Response>, ApiError> {
    let body = body.map_err(|rejection| ApiError {
        status: rejection.status(),
        code: "body-too-large",
        message: format!("{}; at most 8 MiB are read", rejection.body_text()),
    })?;
    let request: Request = serde_json::from_slice(&body).map_err(|error| ApiError {
        status: StatusCode::BAD_REQUEST,
        code: "bad-json",
        message: format!("{error}; send {{\"inputs\": [[number, ...], ...]}}"),
    })?;
    let engine = state.engine.clone();
    let answer = tokio::task::spawn_blocking(move || engine.predict(&request.inputs))
        .await
        .map_err(|error| ApiError {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            code: "internal",
            message: error.to_string(),
        })??;
    metrics::counter!("tributary_predictions").increment(answer.predictions.len() as u64);
    let predictions = answer
        .predictions
        .into_iter()
        .map(|one| Prediction { class: one.class, probabilities: one.probabilities })
        .collect();
    let model = ModelVersion { base: answer.base, adapter: answer.adapter };
    Ok(Json(Response { predictions, model }))
}
