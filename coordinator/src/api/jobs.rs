//! The handlers that steer a job: pause, resume, stop, priority, which model agents serve.

use axum::{
    Extension, Json,
    extract::{Path, Query, State, rejection::JsonRejection},
    http::StatusCode,
};
use serde::Deserialize;
use tributary_protocol::id::JobId;

use super::{ApiError, ApiState, JobDocument, ModelDocument, NewPriority, NewPromotion};
use crate::{
    access::Principal,
    audit::Act,
    registry::Promotion,
    scheduler::{JobControl, Scheduler, SchedulerError},
};

/// Priorities are between this and its negative.
const PRIORITY_MAX: i32 = 1000;

pub(super) async fn pause(
    State(state): State<ApiState>,
    Extension(who): Extension<Principal>,
    Path(job): Path<String>,
) -> Result<Json<JobDocument>, ApiError> {
    control(&state, who, &job, Act::JobPause, JobControl::Pause).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ResumeQuery {
    from_version: Option<u64>,
}

/// Goes on with a paused job; with `?from_version=N` with any job, from that version of its model.
pub(super) async fn resume(
    State(state): State<ApiState>,
    Extension(who): Extension<Principal>,
    Path(job): Path<String>,
    Query(query): Query<ResumeQuery>,
) -> Result<Json<JobDocument>, ApiError> {
    let Some(version) = query.from_version else {
        return control(&state, who, &job, Act::JobResume, JobControl::Resume).await;
    };
    let job = JobId::new(job).map_err(|error| ApiError::invalid_id(&error))?;
    let sees = who.clone();
    let resumed = state.act(&who, Act::JobResume, job.to_string(), move |core, now| {
        core.scheduler.resume_from(&job, version, now).map_err(|error| refused(&error))?;
        let changed = core.scheduler.job(&job).expect("it was just resumed");
        let document = JobDocument::new(changed, core, &sees, now);
        let detail = format!("round {}, from version {version}", document.round);
        Ok((document, detail))
    });
    resumed.await.map(Json)
}

pub(super) async fn stop(
    State(state): State<ApiState>,
    Extension(who): Extension<Principal>,
    Path(job): Path<String>,
) -> Result<Json<JobDocument>, ApiError> {
    control(&state, who, &job, Act::JobStop, JobControl::Stop).await
}

pub(super) async fn priority(
    State(state): State<ApiState>,
    Extension(who): Extension<Principal>,
    Path(job): Path<String>,
    body: Result<Json<NewPriority>, JsonRejection>,
) -> Result<Json<JobDocument>, ApiError> {
    let Json(NewPriority { priority }) = body.map_err(|error| ApiError::invalid_body(&error))?;
    if !(-PRIORITY_MAX..=PRIORITY_MAX).contains(&priority) {
        let message =
            format!("`priority` is {priority}; it must be -{PRIORITY_MAX} to {PRIORITY_MAX}");
        return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-request", message));
    }
    control(&state, who, &job, Act::JobPriority, JobControl::Priority(priority)).await
}

/// Has agents serve a version.
pub(super) async fn promote(
    State(state): State<ApiState>,
    Extension(who): Extension<Principal>,
    Path(job): Path<String>,
    body: Result<Json<NewPromotion>, JsonRejection>,
) -> Result<Json<ModelDocument>, ApiError> {
    let Json(NewPromotion { version }) = body.map_err(|error| ApiError::invalid_body(&error))?;
    serve(&state, &who, &job, Act::ModelPromote, move |_, _| Ok(version)).await
}

/// Has agents serve the version before.
pub(super) async fn rollback(
    State(state): State<ApiState>,
    Extension(who): Extension<Principal>,
    Path(job): Path<String>,
) -> Result<Json<ModelDocument>, ApiError> {
    let before = |scheduler: &Scheduler, job: &JobId| scheduler.version_before(job).map(Some);
    serve(&state, &who, &job, Act::ModelRollback, before).await
}

async fn serve(
    state: &ApiState,
    who: &Principal,
    job: &str,
    act: Act,
    choose: impl FnOnce(&Scheduler, &JobId) -> Result<Option<u64>, SchedulerError> + Send + 'static,
) -> Result<Json<ModelDocument>, ApiError> {
    let job = JobId::new(job).map_err(|error| ApiError::invalid_id(&error))?;
    let served = state.act(who, act, job.to_string(), move |core, _| {
        let chosen = choose(&core.scheduler, &job).and_then(|version| {
            core.scheduler.promote(Promotion { job: job.clone(), version })?;
            Ok(version)
        });
        let version = chosen.map_err(|error| refused(&error))?;
        let served = core.scheduler.models().served(&job).expect("it was just promoted");
        let follows = if version.is_none() { ", and newer ones" } else { "" };
        let detail = format!("version {}{follows}", served.version);
        Ok((ModelDocument::new(served, &core.scheduler), detail))
    });
    served.await.map(Json)
}

fn refused(error: &SchedulerError) -> ApiError {
    let status = match error {
        SchedulerError::JobUnknown { .. } | SchedulerError::VersionUnknown { .. } => {
            StatusCode::NOT_FOUND
        }
        _ => StatusCode::CONFLICT,
    };
    ApiError::refused(status, error.refusal())
}

async fn control(
    state: &ApiState,
    who: Principal,
    job: &str,
    act: Act,
    control: JobControl,
) -> Result<Json<JobDocument>, ApiError> {
    let job = JobId::new(job).map_err(|error| ApiError::invalid_id(&error))?;
    let sees = who.clone();
    let controlled = state.act(&who, act, job.to_string(), move |core, now| {
        core.scheduler.control(&job, control, now).map_err(|error| refused(&error))?;
        let changed = core.scheduler.job(&job).expect("it was just controlled");
        let document = JobDocument::new(changed, core, &sees, now);
        let detail = match control {
            JobControl::Priority(priority) => format!("priority {priority}"),
            _ => format!("round {}", document.round),
        };
        Ok((document, detail))
    });
    controlled.await.map(Json)
}
