//! Whose request it is.

use axum::http::{HeaderMap, StatusCode, header::AUTHORIZATION};
use tributary_protocol::transport::process;

use super::{ApiError, ApiState};
use crate::keys::{Caller, Denied, KeyRole};

/// The caller that the request's key names, if the key is for this.
pub(super) fn caller(
    state: &ApiState,
    headers: &HeaderMap,
    role: KeyRole,
) -> Result<Caller, Denied> {
    let key = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let key = key.and_then(|value| value.strip_prefix("Bearer ")).map(str::trim);
    let caller = state.access.caller(key, process::now());
    let known = caller.as_ref().ok().map(|caller| caller.tenant.id.to_string());
    caller.and_then(|caller| caller.require(role).map(|()| caller)).inspect_err(|denied| {
        reject(known.unwrap_or_default(), reason(denied));
    })
}

/// The same for what belongs to the agent's own tenant: its classifier and its feedback.
pub(super) fn own_caller(
    state: &ApiState,
    headers: &HeaderMap,
    role: KeyRole,
) -> Result<Caller, Denied> {
    let caller = caller(state, headers, role)?;
    if caller.tenant.id != *state.access.own() {
        reject(caller.tenant.id.to_string(), reason(&Denied::Tenant));
        return Err(Denied::Tenant);
    }
    Ok(caller)
}

/// Counts a request that is not answered; `tenant` is empty where it is not known.
fn reject(tenant: String, reason: &'static str) {
    let labels = [("tenant", tenant), ("reason", reason.to_owned())];
    metrics::counter!("tributary_rejections", &labels).increment(1);
}

const fn reason(denied: &Denied) -> &'static str {
    match denied {
        Denied::Role { .. } | Denied::Tenant => "forbidden",
        Denied::Missing | Denied::Unknown | Denied::Expired => "key",
    }
}

/// 401 where another key is needed, 403 where the caller is known and may not.
pub(super) const fn status(denied: &Denied) -> StatusCode {
    match denied {
        Denied::Role { .. } | Denied::Tenant => StatusCode::FORBIDDEN,
        Denied::Missing | Denied::Unknown | Denied::Expired => StatusCode::UNAUTHORIZED,
    }
}

impl From<Denied> for ApiError {
    fn from(denied: Denied) -> Self {
        let status = status(&denied);
        let code = if status == StatusCode::FORBIDDEN { "forbidden" } else { "invalid-api-key" };
        Self { status, code, message: denied.to_string() }
    }
}
