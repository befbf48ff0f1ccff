//! The HTTP API for people and monitoring: jobs, tenants, models, tokens, audit, health, metrics.
//!
//! Every request but the dashboard's files, `/healthz` and `/openapi.json` needs an access token as a bearer token; the
//! table in `rules` says which role may use which route. Every token has a rate limit. Errors
//! are `{"error":{"code","message"}}`. What a request changes, and what it was refused, is in the
//! audit log before it is answered.

mod authorize;
mod backup;
mod documents;
mod events;
mod jobs;
mod latency;
mod openapi;
mod part;
mod people;
mod routes;
mod rules;
mod server;
mod sign_in;
mod spending;
mod tenants;
mod terms;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, rejection::JsonRejection},
    http::{HeaderValue, StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::Semaphore;
use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    id::IdError,
    time::Timestamp,
};

pub use self::{
    documents::{
        AuditHead, ErrorDocument, JobDocument, JobSubmitted, MetricsDocument, ModelDocument,
        NewPriority, NewPromotion, NewTenant, NewToken, SnapshotTaken, StopTenant, TenantAdded,
        TenantDocument, TenantTerms, TokenAdded, TokenDocument, UsedDocument, VersionName, Whoami,
    },
    part::TenantState,
    server::{TlsListener, TlsListenerError},
    sign_in::{IssuerWay, SignInWays, SignedIn},
    spending::{SpendingDocument, TenantSpending},
    terms::JobTerms,
};
use crate::{
    access::{Keyring, Principal, RateLimits, oidc::Oidc},
    audit::{Act, AuditEvent},
    dashboard,
    driver::{Core, CoreHandle},
    spending::EpsilonCache,
};

/// The largest request body, in bytes.
const BODY_BYTES_MAX: usize = 1 << 20;

/// What the routes need.
#[derive(Clone)]
pub struct ApiState {
    /// The coordinator.
    pub core: CoreHandle,
    /// Who holds which token.
    pub keyring: Keyring,
    /// The issuer whose tokens are accepted too.
    pub oidc: Option<Oidc>,
    /// How fast they may ask.
    pub limits: Arc<RateLimits>,
    /// Renders the metrics.
    pub metrics: PrometheusHandle,
    /// Remembers what releases cost.
    pub epsilons: Arc<EpsilonCache>,
    /// How many watch for changes.
    pub watchers: Arc<Semaphore>,
}

/// Streams of `/v1/events` at once.
pub const WATCHERS_MAX: usize = 256;

/// The whole API.
pub fn router(state: ApiState) -> Router {
    Router::new()
        .route("/", get(dashboard::page))
        .route("/dashboard/{file}", get(dashboard::file))
        .route("/healthz", get(|| async { "ok" }))
        .route("/openapi.json", get(openapi::serve))
        .route("/metrics", get(routes::metrics))
        .route("/v1/sign-in", get(sign_in::ways))
        .route("/v1/sign-in/oidc", post(sign_in::exchange))
        .route("/v1/events", get(events::events))
        .route("/v1/whoami", get(people::whoami))
        .route("/v1/tenants", get(tenants::list).post(tenants::add))
        .route("/v1/tenants/{tenant}", put(tenants::set))
        .route("/v1/tenants/{tenant}/suspend", post(tenants::suspend))
        .route("/v1/tenants/{tenant}/resume", post(tenants::resume))
        .route("/v1/tenants/{tenant}/revoke", post(tenants::revoke))
        .route("/v1/jobs", get(routes::jobs).post(routes::submit_job))
        .route("/v1/jobs/{job}", get(routes::job))
        .route("/v1/jobs/{job}/rounds", get(routes::rounds))
        .route("/v1/jobs/{job}/spending", get(spending::spending))
        .route("/v1/jobs/{job}/pause", post(jobs::pause))
        .route("/v1/jobs/{job}/resume", post(jobs::resume))
        .route("/v1/jobs/{job}/stop", post(jobs::stop))
        .route("/v1/jobs/{job}/priority", post(jobs::priority))
        .route("/v1/jobs/{job}/promote", post(jobs::promote))
        .route("/v1/jobs/{job}/rollback", post(jobs::rollback))
        .route("/v1/models", get(routes::models))
        .route("/v1/models/{digest}", get(routes::model_file))
        .route("/v1/snapshot", post(backup::snapshot))
        .route("/v1/audit", get(people::audit))
        .route("/v1/audit/verify", get(people::verify_audit))
        .route("/v1/tokens", get(people::tokens).post(people::add_token))
        .route("/v1/tokens/{name}/revoke", post(people::revoke_token))
        .fallback(|| async {
            ApiError::new(StatusCode::NOT_FOUND, "not-found", "there is no such path")
        })
        .layer(middleware::from_fn_with_state(state.clone(), authorize::authorize))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::map_response(protect))
        .layer(middleware::from_fn(latency::measure))
        .with_state(state)
}

/// Answers hold tokens and names: nothing keeps a copy, and no browser guesses what they are.
async fn protect(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

impl ApiState {
    /// Runs something that changes the coordinator, and records it with its outcome.
    ///
    /// - `request`: returns the answer and what the audit log says about it
    async fn act<R: Send + 'static>(
        &self,
        who: &Principal,
        act: Act,
        subject: String,
        request: impl FnOnce(&mut Core, Timestamp) -> Result<(R, String), ApiError> + Send + 'static,
    ) -> Result<R, ApiError> {
        let actor = who.actor();
        let done = self.core.call(move |core, now| {
            let result = request(core, now);
            core.record(match &result {
                Ok((_, detail)) => AuditEvent::done(actor, act, subject, detail),
                Err(error) => AuditEvent::refused(actor, act, subject, &error.body),
            });
            result.map(|(answer, _)| answer)
        });
        done.await.map_err(ApiError::stopping)?
    }
}

/// An error response.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    retry_after_s: Option<u64>,
    body: ErrorDocument,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &str, message: impl ToString) -> Self {
        let body = ErrorDocument::new(code, message.to_string());
        Self { status, retry_after_s: None, body }
    }

    /// The token's rate limit is used up for so many seconds.
    fn too_many_requests(wait_s: u64) -> Self {
        let message = format!("too many requests; try again in {wait_s} s");
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", message);
        Self { retry_after_s: Some(wait_s), ..error }
    }

    pub(crate) fn refused(status: StatusCode, refusal: Refusal) -> Self {
        Self::new(status, refusal.code.slug(), refusal.message)
    }

    /// The coordinator is stopping.
    pub(crate) fn stopping(error: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting-down", error)
    }

    /// Our bug, or this machine's fault.
    pub(crate) fn internal(error: &dyn std::error::Error) -> Self {
        let refusal = Refusal::from_error(ErrorCode::Internal, error);
        Self::refused(StatusCode::INTERNAL_SERVER_ERROR, refusal)
    }

    /// A path holds something that is no name or digest.
    fn invalid_id(error: &IdError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid-id", error)
    }

    /// A request body is not the expected document.
    fn invalid_body(error: &JsonRejection) -> Self {
        Self::new(error.status(), "invalid-request", error.body_text())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body)).into_response();
        if let Some(wait_s) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait_s));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}
