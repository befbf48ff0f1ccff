use axum::{
    Json,
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::ApiState;
use crate::engine::EngineError;

/// An answer that says what was wrong: `{"error":{"code","message"}}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// A stable name.
    pub code: &'static str,
    /// What was wrong and what would work.
    pub message: String,
}

impl ApiError {
    /// A mistake of the agent's own.
    pub(super) fn internal(error: &impl std::fmt::Display) -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self { status, code: "internal", message: error.to_string() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = json!({"error": {"code": self.code, "message": self.message}});
        let mut response = (self.status, Json(body)).into_response();
        if self.code == ApiState::STOPPING {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let (status, code) = match &error {
            EngineError::NoModel => (StatusCode::SERVICE_UNAVAILABLE, "no-model"),
            EngineError::Width { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "input-width"),
            EngineError::NonFinite { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "input-not-finite"),
            EngineError::Tokens { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "input-tokens"),
            EngineError::Text { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "input-text"),
            EngineError::NoClasses { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "no-classes"),
            EngineError::TooMany { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too-many-inputs"),
            EngineError::Model(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        };
        Self { status, code, message: error.to_string() }
    }
}
