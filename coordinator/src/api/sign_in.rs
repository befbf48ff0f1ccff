//! How people sign in on the dashboard: at the issuer, if one is configured with a client for it.
//!
//! The page begins there with a challenge (PKCE), and brings the code that it gets back here: so the
//! page needs to ask nobody but its own coordinator.

use axum::{
    Json,
    extract::{State, rejection::JsonRejection},
    http::StatusCode,
};
use serde::{Deserialize, Serialize};
use tracing::warn;
use tributary_protocol::transport::process;

use super::{ApiError, ApiState, authorize::STRANGERS};
use crate::access::oidc::{Exchange, OidcError};

/// How people can sign in beside access tokens.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SignInWays {
    /// At an issuer.
    pub oidc: Option<IssuerWay>,
}

/// What a page needs to begin at the issuer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IssuerWay {
    /// The issuer.
    pub issuer: String,
    /// Where to send people.
    pub authorization_endpoint: String,
    /// The dashboard's client.
    pub client_id: String,
    /// What to ask for.
    pub scope: String,
}

/// A bearer token of the issuer.
#[derive(Clone, Serialize, Deserialize)]
pub struct SignedIn {
    /// The ID token.
    pub token: String,
}

pub(super) async fn ways(State(state): State<ApiState>) -> Result<Json<SignInWays>, ApiError> {
    let client =
        state.oidc.as_ref().and_then(|oidc| Some((oidc, oidc.config().client_id.clone()?)));
    let Some((oidc, client_id)) = client else { return Ok(Json(SignInWays { oidc: None })) };
    limit(&state)?;
    let authorization_endpoint = oidc.authorization_endpoint().await.map_err(|e| refused(&e))?;
    let (issuer, scope) = (oidc.config().issuer.clone(), oidc.config().scope.clone());
    let way = IssuerWay { issuer, authorization_endpoint, client_id, scope };
    Ok(Json(SignInWays { oidc: Some(way) }))
}

pub(super) async fn exchange(
    State(state): State<ApiState>,
    body: Result<Json<Exchange>, JsonRejection>,
) -> Result<Json<SignedIn>, ApiError> {
    limit(&state)?;
    let Some(oidc) = state.oidc.as_ref().filter(|oidc| oidc.config().client_id.is_some()) else {
        let message = "no issuer with a client for the dashboard is configured";
        return Err(ApiError::new(StatusCode::NOT_FOUND, "oidc-not-configured", message));
    };
    let Json(exchange) = body.map_err(|error| ApiError::invalid_body(&error))?;
    let token = oidc.exchange(exchange, process::now()).await;
    let token = token.inspect_err(|error| warn!(%error, "nobody was signed in"));
    token.map(|token| Json(SignedIn { token })).map_err(|error| refused(&error))
}

/// Whoever has no token yet shares one limit with everybody who has none.
fn limit(state: &ApiState) -> Result<(), ApiError> {
    state.limits.admit(STRANGERS, process::now()).map_err(ApiError::too_many_requests)
}

fn refused(error: &OidcError) -> ApiError {
    let status = match error {
        OidcError::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::UNAUTHORIZED,
    };
    ApiError::new(status, error.code(), error)
}
