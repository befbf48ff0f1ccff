//! The handlers: each is one question to the core.

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, Query, State},
    http::{StatusCode, header},
    response::IntoResponse,
};
use serde::Deserialize;
use tributary_protocol::{
    id::{Digest, JobId},
    job::JobSpec,
};

use super::{ApiError, ApiState, JobDocument, JobSubmitted, ModelDocument};
use crate::{
    access::Principal,
    aggregation,
    audit::Act,
    driver::telemetry,
    registry::{self, ModelVersion},
    scheduler::{RoundSummary, Scheduler, SchedulerError},
};

pub(super) async fn metrics(State(state): State<ApiState>) -> Result<String, ApiError> {
    let due = state.core.call(telemetry::measure);
    let due = due.await.map_err(ApiError::stopping)?;
    let render = move || {
        due.measure(&state.epsilons);
        state.metrics.render()
    };
    Ok(tokio::task::spawn_blocking(render).await.expect("rendering does not panic"))
}

pub(super) async fn jobs(
    State(state): State<ApiState>,
    Extension(who): Extension<Principal>,
) -> Result<Json<Vec<JobDocument>>, ApiError> {
    let list = state.core.call(move |core, now| {
        core.scheduler.jobs().map(|job| JobDocument::new(job, core, &who, now)).collect()
    });
    list.await.map(Json).map_err(ApiError::stopping)
}

pub(super) async fn job(
    State(state): State<ApiState>,
    Extension(who): Extension<Principal>,
    Path(job): Path<String>,
) -> Result<Json<JobDocument>, ApiError> {
    let job = JobId::new(job).map_err(|error| ApiError::invalid_id(&error))?;
    let document = state.core.call(move |core, now| {
        core.scheduler.job(&job).map(|job| JobDocument::new(job, core, &who, now))
    });
    document.await.map_err(ApiError::stopping)?.map(Json).map_err(|error| not_found(&error))
}

pub(super) async fn rounds(
    State(state): State<ApiState>,
    Extension(who): Extension<Principal>,
    Path(job): Path<String>,
) -> Result<Json<Vec<RoundSummary>>, ApiError> {
    let job = JobId::new(job).map_err(|error| ApiError::invalid_id(&error))?;
    let rounds = state.core.call(move |core, _| {
        core.scheduler.job(&job).map_err(|error| not_found(&error))?;
        core.rounds(&job).map_err(|error| ApiError::internal(&error))
    });
    let mut rounds = rounds.await.map_err(ApiError::stopping)??;
    for round in &mut rounds {
        round.contributors.retain(|tenant, _| who.may_see(tenant));
        // The reason names the tenants that declined.
        if who.tenants.is_some() {
            round.abandoned = round.abandoned.take().map(|_| "abandoned".to_owned());
        }
    }
    Ok(Json(rounds))
}

/// What a submission may say beside the job file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SubmitQuery {
    start_from: Option<Digest>,
    start_file: Option<Digest>,
}

/// Takes the TOML text of a job, so that errors name the line of the file that the operator wrote.
///
/// With `?start_from=DIGEST` it begins with a registered model instead of a new one, with
/// `?start_file=DIGEST` with a file that lies among the coordinator's, such as a pretrained model.
pub(super) async fn submit_job(
    State(state): State<ApiState>,
    Extension(who): Extension<Principal>,
    Query(query): Query<SubmitQuery>,
    body: String,
) -> Result<Json<JobSubmitted>, ApiError> {
    let spec: JobSpec = toml::from_str(&body)
        .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, "job-invalid", error))?;
    let mut seeds = [0; 16];
    getrandom::fill(&mut seeds)
        .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error))?;
    let seed =
        |at: usize| seeds[at..at + 8].iter().fold(0, |seed, &byte| seed << 8 | u64::from(byte));
    let (model_seed, cohort_seed) = (seed(0), seed(8));
    let submitted = state.act(&who, Act::JobSubmit, spec.name.to_string(), move |core, now| {
        let refuse = |error: &dyn std::error::Error| {
            let refusal = tributary_protocol::error_code::Refusal::from_error(
                tributary_protocol::error_code::ErrorCode::JobInvalid,
                error,
            );
            ApiError::refused(StatusCode::UNPROCESSABLE_ENTITY, refusal)
        };
        core.scheduler.check_submission(&spec).map_err(|error| match error {
            SchedulerError::JobExists { .. } => {
                ApiError::refused(StatusCode::CONFLICT, error.refusal())
            }
            error => refuse(&error),
        })?;
        let lattice = aggregation::plan_lattice(&spec).map_err(|error| refuse(&error))?;
        let initial = match (query.start_from, query.start_file) {
            (Some(file), _) => {
                let start = starting_model(&core.scheduler, &spec, file)?;
                ModelVersion::starting_from(start, spec.name.clone(), now)
            }
            (None, Some(file)) => registry::model_from_file(&spec, file, now, &core.blobs)
                .map_err(|error| refuse(&error))?,
            (None, None) => registry::initial_model(&spec, model_seed, now, &core.blobs)
                .map_err(|error| refuse(&error))?,
        };
        let job = spec.name.clone();
        let detail = format!("dataset {}, {} rounds", spec.dataset, spec.round.rounds);
        core.scheduler
            .submit(spec, lattice, initial, cohort_seed, now)
            .map_err(|error| refuse(&error))?;
        Ok((JobSubmitted { job }, detail))
    });
    submitted.await.map(Json)
}

pub(super) async fn models(
    State(state): State<ApiState>,
) -> Result<Json<Vec<ModelDocument>>, ApiError> {
    let list = state.core.call(|core, _| {
        let scheduler = &core.scheduler;
        scheduler.models().iter().map(|version| ModelDocument::new(version, scheduler)).collect()
    });
    list.await.map(Json).map_err(ApiError::stopping)
}

pub(super) async fn model_file(
    State(state): State<ApiState>,
    Extension(who): Extension<Principal>,
    Path(digest): Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    let digest: Digest = digest.parse().map_err(|error| ApiError::invalid_id(&error))?;
    let found = state.act(&who, Act::ModelExport, digest.to_string(), move |core, _| {
        let Some(model) = core.scheduler.models().find(digest) else {
            let message = format!("there is no model file {digest} here");
            return Err(ApiError::new(StatusCode::NOT_FOUND, "blob-unknown", message));
        };
        Ok((core.blobs.clone(), format!("version {} of job {}", model.version, model.job)))
    });
    let blobs = found.await?;
    let bytes = tokio::task::spawn_blocking(move || blobs.read(digest)).await;
    let bytes = bytes
        .expect("reading a file does not panic")
        .map_err(|error| ApiError::internal(&error))?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], Bytes::from(bytes)))
}

/// A registered model that fits a job.
fn starting_model<'a>(
    scheduler: &'a Scheduler,
    spec: &JobSpec,
    file: Digest,
) -> Result<&'a ModelVersion, ApiError> {
    let found = scheduler.models().find(file).ok_or_else(|| {
        let message = format!("there is no model file {file} here; `model list` shows digests");
        ApiError::new(StatusCode::NOT_FOUND, "blob-unknown", message)
    })?;
    let origin = scheduler.job(&found.job).map_err(|error| not_found(&error))?;
    if origin.record().spec.model == spec.model {
        return Ok(found);
    }
    let message = format!("the model of job {} has another shape than this job's", found.job);
    Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "job-invalid", message))
}

pub(super) fn not_found(error: &SchedulerError) -> ApiError {
    ApiError::refused(StatusCode::NOT_FOUND, error.refusal())
}
