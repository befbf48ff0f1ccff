//! `POST /v1/predict`.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::{HeaderMap, StatusCode},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tributary_protocol::{id::Digest, transport::process};

use super::{
    ApiError, ApiState,
    access::own_caller,
    predict_input::{PredictInput, rows},
};
use crate::{
    engine::{Answer, EngineError},
    feedback::{FeedbackStore, PredictionId, Record},
    keys::KeyRole,
};

/// What to predict.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    inputs: Vec<PredictInput>,
}

/// The predictions.
#[derive(Debug, Serialize)]
pub(super) struct Response {
    predictions: Vec<Prediction>,
    model: ModelVersion,
}

#[derive(Debug, Serialize)]
struct Prediction {
    /// Names it in `/v1/feedback`; null where predictions are not kept.
    id: Option<PredictionId>,
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
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Response>, ApiError> {
    own_caller(&state, &headers, KeyRole::Inference)?;
    state.check_open()?;
    let form = "{\"inputs\": [[number, ...], ...]} or {\"inputs\": [\"text\", ...]}";
    let Request { inputs } = parse(body, form)?;
    let serving = state.engine.serving().ok_or(EngineError::NoModel)?;
    let work = move || -> Result<_, ApiError> {
        let inputs = rows(inputs, &serving, &state.texts)?;
        let answer = serving.answer(&inputs)?;
        let ids = state.feedback.as_deref().and_then(|store| remember(store, inputs, &answer));
        Ok((answer, ids))
    };
    let outcome = tokio::task::spawn_blocking(work).await;
    let (answer, ids) = outcome.map_err(|error| ApiError::internal(&error))??;
    metrics::counter!("tributary_predictions").increment(answer.predictions.len() as u64);
    let mut ids = ids.into_iter().flatten();
    let predictions = answer
        .predictions
        .into_iter()
        .map(|one| Prediction {
            id: ids.next(),
            class: one.class,
            probabilities: one.probabilities,
        })
        .collect();
    let model = ModelVersion { base: answer.base, adapter: answer.adapter };
    Ok(Json(Response { predictions, model }))
}

/// Keeps predictions for their outcomes; a disk that fails costs the ids, not the answer.
fn remember(
    store: &FeedbackStore,
    inputs: Vec<Vec<f32>>,
    answer: &Answer,
) -> Option<Vec<PredictionId>> {
    let now = process::now();
    let record = |(features, prediction): (Vec<f32>, &crate::engine::Prediction)| {
        let random = getrandom::u64()
            .inspect_err(|error| tracing::error!(%error, "no random numbers for prediction ids"));
        Some(Record {
            id: PredictionId::new(now, random.ok()?),
            dataset: answer.dataset.clone(),
            base: answer.base,
            adapter: answer.adapter,
            classes: prediction.probabilities.len() as u32,
            features,
            class: prediction.class,
            probability: prediction.probabilities[prediction.class as usize],
            label: None,
        })
    };
    let records: Option<Vec<Record>> =
        inputs.into_iter().zip(&answer.predictions).map(record).collect();
    let records = records?;
    if let Err(error) = store.remember(&records, now) {
        tracing::error!(%error, "predictions are answered without ids");
        return None;
    }
    Some(records.iter().map(|record| record.id).collect())
}

/// Reads a body of JSON.
///
/// - `form`: what would work
pub(super) fn parse<T: DeserializeOwned>(
    body: Result<Bytes, BytesRejection>,
    form: &str,
) -> Result<T, ApiError> {
    let body = body.map_err(|rejection| ApiError {
        status: rejection.status(),
        code: "body-too-large",
        message: format!("{}; at most 8 MiB are read", rejection.body_text()),
    })?;
    serde_json::from_slice(&body).map_err(|error| ApiError {
        status: StatusCode::BAD_REQUEST,
        code: "bad-json",
        message: format!("{error}; send {form}"),
    })
}
