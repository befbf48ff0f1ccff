//! The HTTP API for operators: jobs, tenants, models, health and metrics.
//!
//! Every request but `/healthz` needs the administrator's token as a bearer token. Errors are
//! `{"error":{"code","message"}}`.

mod documents;
mod routes;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;
use tributary_protocol::{error_code::Refusal, id::Digest};

pub use self::documents::{
    ErrorDocument, JobDocument, JobSubmitted, ModelDocument, NewTenant, TenantAdded,
    TenantDocument, TenantState,
};
use crate::driver::CoreHandle;

/// The largest request body, in bytes.
const BODY_BYTES_MAX: usize = 1 << 20;

/// What the routes need.
#[derive(Clone)]
pub struct ApiState {
    /// The coordinator.
    pub core: CoreHandle,
    /// BLAKE3 of the administrator's token.
    pub token: Digest,
    /// Renders the metrics.
    pub metrics: PrometheusHandle,
}

/// The whole API.
pub fn router(state: ApiState) -> Router {
    Router::new()
        .route("/metrics", get(routes::metrics))
        .route("/v1/tenants", get(routes::tenants).post(routes::add_tenant))
        .route("/v1/jobs", get(routes::jobs).post(routes::submit_job))
        .route("/v1/jobs/{job}", get(routes::job))
        .route("/v1/jobs/{job}/rounds", get(routes::rounds))
        .route("/v1/models", get(routes::models))
        .route("/v1/models/{digest}", get(routes::model_file))
        .layer(middleware::from_fn_with_state(state.clone(), authorize))
        .route("/healthz", get(|| async { "ok" }))
        .fallback(|| async {
            ApiError::new(StatusCode::NOT_FOUND, "not-found", "there is no such path")
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(state)
}

/// An error response.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    body: ErrorDocument,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &str, message: impl ToString) -> Self {
        Self { status, body: ErrorDocument::new(code, message.to_string()) }
    }

    pub(crate) fn refused(status: StatusCode, refusal: Refusal) -> Self {
        Self::new(status, refusal.code.slug(), refusal.message)
    }

    /// The coordinator is stopping.
    pub(crate) fn stopping(error: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting-down", error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}

async fn authorize(State(state): State<ApiState>, request: Request, next: Next) -> Response {
    let value = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = value.and_then(|value| value.strip_prefix("Bearer "));
    // Comparing hashes leaks nothing about the token by its timing.
    if token.is_some_and(|token| Digest::of(token.as_bytes()) == state.token) {
        return next.run(request).await;
    }
    let message = "send the content of admin.token as `authorization: Bearer …`";
    ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", message).into_response()
}
