//! Lets a request through if its token, its rate and its role allow it.

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tracing::{debug, info, warn};
use tributary_protocol::transport::process;

use super::{
    ApiError, ApiState,
    rules::{Access, Rule, rules},
};
use crate::{
    access::{AccessError, Principal, oidc::OidcError},
    audit::{Act, AuditEvent},
};

/// The bucket of everybody whose token does not admit; no token has an empty name.
pub(super) const STRANGERS: &str = "";

pub(super) async fn authorize(
    State(state): State<ApiState>,
    mut request: Request,
    next: Next,
) -> Response {
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let path = matched.as_ref().map(MatchedPath::as_str);
    // HEAD is answered by the handler of GET.
    let method = match request.method() {
        &Method::HEAD => Method::GET,
        other => other.clone(),
    };
    let of_path: Vec<Rule> = rules().into_iter().filter(|rule| Some(rule.path) == path).collect();
    let rule = of_path.iter().find(|rule| rule.method == method);
    if let Some(Rule { access: Access::Public, .. }) = rule {
        return next.run(request).await;
    }
    let principal = match admit(&state, request.headers(), request.uri().path()).await {
        Ok(principal) => principal,
        Err(error) => return error.into_response(),
    };
    match rule {
        Some(rule) if rule.access.admits(principal.role) => {}
        Some(rule) => {
            let path = request.uri().path().to_owned();
            return forbid(&state, &principal, rule, &path).await;
        }
        None if !of_path.is_empty() => {
            let message = format!("{} takes no {method}", request.uri().path());
            return ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", message)
                .into_response();
        }
        // A path without any rule is only ever answered by the fallback.
        None if path.is_none() => {}
        None => {
            return ApiError::new(StatusCode::FORBIDDEN, "forbidden", "no rule allows this")
                .into_response();
        }
    }
    tell(&principal, &method, rule, request.uri().path());
    request.extensions_mut().insert(principal);
    next.run(request).await
}

/// Says who asks for what. Looking is no news: a dashboard does it all the time.
fn tell(principal: &Principal, method: &Method, rule: Option<&Rule>, path: &str) {
    let named = |name: &str| {
        let mut parts = rule?.path.split('/').zip(path.split('/'));
        parts.find(|(part, _)| *part == name).map(|(_, value)| value)
    };
    let (tenant, job) = (named("{tenant}"), named("{job}"));
    let (who, role) = (&principal.name, principal.role);
    if *method == Method::GET {
        debug!(who, %role, %method, path, tenant, job, "request");
    } else {
        info!(who, %role, %method, path, tenant, job, "request");
    }
}

/// Who asks, if the token and its rate allow a request at all.
async fn admit(state: &ApiState, headers: &HeaderMap, path: &str) -> Result<Principal, ApiError> {
    let now = process::now();
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = value.and_then(|value| value.strip_prefix("Bearer "));
    // No access token has two dots; what an issuer signs has.
    let admitted = match (&state.oidc, token) {
        (Some(oidc), Some(token)) if token.matches('.').count() == 2 => {
            oidc.authenticate(token, now).await.map_err(AccessError::Oidc)
        }
        _ => state.keyring.authenticate(token, now),
    };
    let bucket = admitted.as_ref().map_or(STRANGERS, |principal| &principal.name);
    if let Err(wait_s) = state.limits.admit(bucket, now) {
        return Err(ApiError::too_many_requests(wait_s));
    }
    admitted.map_err(|error| {
        warn!(path, %error, "request without a working token");
        let status = match error {
            AccessError::Oidc(OidcError::Unavailable) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::UNAUTHORIZED,
        };
        ApiError::new(status, error.code(), &error)
    })
}

async fn forbid(state: &ApiState, principal: &Principal, rule: &Rule, path: &str) -> Response {
    let subject = format!("{} {path}", rule.method);
    let message = format!("the role {} may not use {subject}", principal.role);
    let event = AuditEvent::refused(principal.actor(), Act::Request, subject, &message);
    match state.core.call(move |core, _| core.record(event)).await {
        Ok(()) => ApiError::new(StatusCode::FORBIDDEN, "forbidden", message).into_response(),
        Err(error) => ApiError::stopping(error).into_response(),
    }
}
