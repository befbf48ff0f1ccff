//! The handlers about tenants: who there is, admission, and their life cycle.

use axum::{
    Extension, Json,
    extract::{Path, State, rejection::JsonRejection},
    http::StatusCode,
};
use tributary_protocol::{error_code::Refusal, id::TenantId, time::Timestamp};

use super::{ApiError, ApiState, NewTenant, StopTenant, TenantAdded, TenantDocument, TenantTerms};
use crate::{
    access::Principal,
    audit::Act,
    driver::Core,
    scheduler::{Scheduler, SchedulerError},
    tenants::{TenantContext, invite},
};

/// The longest reason, in bytes: it crosses the wire in a close frame.
const REASON_BYTES_MAX: usize = 256;

pub(super) async fn list(
    State(state): State<ApiState>,
    Extension(who): Extension<Principal>,
) -> Result<Json<Vec<TenantDocument>>, ApiError> {
    let list = state.core.call(move |core, now| {
        let seen = core.scheduler.tenants().filter(|record| who.may_see(&record.context.id));
        seen.map(|record| {
            TenantDocument::new(record, core.scheduler.is_connected(&record.context.id), now)
        })
        .collect()
    });
    list.await.map(Json).map_err(ApiError::stopping)
}

pub(super) async fn add(
    State(state): State<ApiState>,
    Extension(who): Extension<Principal>,
    body: Result<Json<NewTenant>, JsonRejection>,
) -> Result<Json<TenantAdded>, ApiError> {
    let Json(NewTenant { tenant, region }) =
        body.map_err(|error| ApiError::invalid_body(&error))?;
    let mut secret = [0; 32];
    getrandom::fill(&mut secret)
        .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error))?;
    let added = state.act(&who, Act::TenantAdd, tenant.to_string(), move |core, now| {
        let detail = format!("region {region}");
        let known = core.scheduler.tenant(&tenant);
        let context = match known {
            Some(known) => TenantContext { region, ..known.context.clone() },
            None => TenantContext::new(tenant, region),
        };
        let fingerprint = core.authority.fingerprint();
        let (record, token) = invite(context, known, secret, fingerprint, now);
        let expires = record.invitation.expires;
        core.scheduler.put_tenant(record);
        let tenant = token.tenant.clone();
        Ok((TenantAdded { tenant, token: token.to_string(), expires }, detail))
    });
    added.await.map(Json)
}

pub(super) async fn set(
    State(state): State<ApiState>,
    Extension(who): Extension<Principal>,
    Path(tenant): Path<String>,
    body: Result<Json<TenantTerms>, JsonRejection>,
) -> Result<Json<TenantDocument>, ApiError> {
    let Json(terms) = body.map_err(|error| ApiError::invalid_body(&error))?;
    let detail = serde_json::to_string(&terms).expect("plain data");
    change(&state, &who, Act::TenantSet, &tenant, detail, move |core, tenant, now| {
        let known = core.scheduler.tenant(tenant);
        let known =
            known.ok_or_else(|| SchedulerError::TenantUnknown { tenant: tenant.clone() })?;
        let TenantTerms { roles, quotas, isolation } = terms;
        let context = TenantContext { roles, quotas, isolation, ..known.context.clone() };
        core.scheduler.set_context(context, now)
    })
    .await
}

pub(super) async fn suspend(
    State(state): State<ApiState>,
    Extension(who): Extension<Principal>,
    Path(tenant): Path<String>,
    body: Result<Json<StopTenant>, JsonRejection>,
) -> Result<Json<TenantDocument>, ApiError> {
    stop(state, who, Act::TenantSuspend, tenant, body, Scheduler::suspend).await
}

pub(super) async fn revoke(
    State(state): State<ApiState>,
    Extension(who): Extension<Principal>,
    Path(tenant): Path<String>,
    body: Result<Json<StopTenant>, JsonRejection>,
) -> Result<Json<TenantDocument>, ApiError> {
    stop(state, who, Act::TenantRevoke, tenant, body, Scheduler::revoke).await
}

pub(super) async fn resume(
    State(state): State<ApiState>,
    Extension(who): Extension<Principal>,
    Path(tenant): Path<String>,
) -> Result<Json<TenantDocument>, ApiError> {
    change(&state, &who, Act::TenantResume, &tenant, String::new(), |core, tenant, now| {
        core.scheduler.resume(tenant, now)
    })
    .await
}

/// How a tenant is stopped: returns the refusal with which its connection is closed.
type Stop = fn(&mut Scheduler, &TenantId, String, Timestamp) -> Result<Refusal, SchedulerError>;

async fn stop(
    state: ApiState,
    who: Principal,
    act: Act,
    tenant: String,
    body: Result<Json<StopTenant>, JsonRejection>,
    stop: Stop,
) -> Result<Json<TenantDocument>, ApiError> {
    let Json(StopTenant { reason }) = body.map_err(|error| ApiError::invalid_body(&error))?;
    if reason.trim().is_empty() || reason.len() > REASON_BYTES_MAX {
        let message = format!("`reason` needs 1 to {REASON_BYTES_MAX} bytes; the tenant hears it");
        return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-request", message));
    }
    change(&state, &who, act, &tenant, reason.clone(), move |core, tenant, now| {
        let refusal = stop(&mut core.scheduler, tenant, reason, now)?;
        core.drop_session(tenant, &refusal, now);
        Ok(())
    })
    .await
}

/// Changes a tenant that the principal may see, and records that.
async fn change(
    state: &ApiState,
    who: &Principal,
    act: Act,
    tenant: &str,
    detail: String,
    change: impl FnOnce(&mut Core, &TenantId, Timestamp) -> Result<(), SchedulerError> + Send + 'static,
) -> Result<Json<TenantDocument>, ApiError> {
    let tenant = TenantId::new(tenant).map_err(|error| ApiError::invalid_id(&error))?;
    let visible = who.may_see(&tenant);
    let changed = state.act(who, act, tenant.to_string(), move |core, now| {
        // Whoever may not see a tenant does not learn that it exists.
        let changed = if visible {
            change(core, &tenant, now)
        } else {
            Err(SchedulerError::TenantUnknown { tenant: tenant.clone() })
        };
        changed.map_err(|error| refused(&error))?;
        let record = core.scheduler.tenant(&tenant).expect("it was just changed");
        let connected = core.scheduler.is_connected(&tenant);
        Ok((TenantDocument::new(record, connected, now), detail))
    });
    changed.await.map(Json)
}

fn refused(error: &SchedulerError) -> ApiError {
    match error {
        SchedulerError::TenantUnknown { .. } => {
            ApiError::new(StatusCode::NOT_FOUND, "tenant-unknown", error)
        }
        _ => ApiError::refused(StatusCode::CONFLICT, error.refusal()),
    }
}
