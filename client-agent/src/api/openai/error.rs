use axum::{
    Json,
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::super::access;
use crate::{
    engine::generation::{FinishReason, Refusal, SubmitError},
    keys::Denied,
    text::TextError,
};

/// An answer that says what was wrong, in the form that OpenAI's clients read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::api) struct OpenAiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    retry_after_ms: Option<u64>,
}

impl OpenAiError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), retry_after_ms: None }
    }

    pub(super) fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// Why a request that was taken has no whole answer.
    pub(super) fn of_reason(reason: FinishReason) -> Option<Self> {
        match reason {
            FinishReason::Stop | FinishReason::Length => None,
            FinishReason::Deadline => Some(Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                "deadline",
                "the answer was not done before the deadline; ask for fewer tokens",
            )),
            FinishReason::Cancelled | FinishReason::Failed => Some(Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "the model failed on this request; the agent's log says why",
            )),
        }
    }

    pub(super) fn document(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            400..500 => "invalid_request_error",
            _ => "server_error",
        };
        json!({"error": {
            "message": self.message, "type": kind, "param": null, "code": self.code,
        }})
    }
}

impl IntoResponse for OpenAiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.document())).into_response();
        if let Some(milliseconds) = self.retry_after_ms {
            let seconds = HeaderValue::from(milliseconds.div_ceil(1000).max(1));
            response.headers_mut().insert(RETRY_AFTER, seconds);
        }
        response
    }
}

impl From<SubmitError> for OpenAiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        let (status, code, retry_after_ms) = match error {
            SubmitError::Stopped | SubmitError::Refused(Refusal::Draining) => {
                (StatusCode::SERVICE_UNAVAILABLE, "stopping", Some(1000))
            }
            SubmitError::Refused(refusal) => match refusal {
                Refusal::QueueFull { retry_after_ms, .. } => {
                    (StatusCode::TOO_MANY_REQUESTS, "queue_full", Some(retry_after_ms))
                }
                Refusal::Quota { retry_after_ms, .. } => {
                    (StatusCode::TOO_MANY_REQUESTS, "quota", Some(retry_after_ms))
                }
                Refusal::AboveQuota { .. } => (StatusCode::BAD_REQUEST, "above_quota", None),
                Refusal::TooLong { .. } => {
                    (StatusCode::BAD_REQUEST, "context_length_exceeded", None)
                }
                Refusal::EmptyPrompt => (StatusCode::BAD_REQUEST, "empty_prompt", None),
                Refusal::Token { .. } => (StatusCode::BAD_REQUEST, "unknown_token", None),
                Refusal::Late => (StatusCode::GATEWAY_TIMEOUT, "deadline", None),
                _ => (StatusCode::BAD_REQUEST, "invalid_value", None),
            },
        };
        Self { status, code, message, retry_after_ms }
    }
}

impl From<Denied> for OpenAiError {
    fn from(denied: Denied) -> Self {
        let status = access::status(&denied);
        let code = if status == StatusCode::FORBIDDEN { "forbidden" } else { "invalid_api_key" };
        Self::new(status, code, denied.to_string())
    }
}

impl From<TextError> for OpenAiError {
    fn from(error: TextError) -> Self {
        Self::bad_request("unusable_text", error.to_string())
    }
}
