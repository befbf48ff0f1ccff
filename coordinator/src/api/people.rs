//! The handlers about people: who asks, access tokens, the audit log.

use axum::{
    Extension, Json,
    extract::{Path, Query, State, rejection::JsonRejection},
    http::StatusCode,
};
use serde::Deserialize;
use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    id::TokenName,
    transport::process,
};

use super::{ApiError, ApiState, AuditHead, NewToken, TokenAdded, TokenDocument, Whoami};
use crate::{
    access::{AccessToken, Principal, TokenRecord},
    audit::{Act, AuditEntry, AuditError, AuditReader},
};

/// Audit entries in an answer, at most.
const ENTRIES_MAX: usize = 10_000;

pub(super) async fn whoami(Extension(who): Extension<Principal>) -> Json<Whoami> {
    Json(Whoami { name: who.name, role: who.role, tenants: who.tenants })
}

pub(super) async fn tokens(State(state): State<ApiState>) -> Json<Vec<TokenDocument>> {
    let now = process::now();
    let tokens = state.keyring.tokens();
    Json(tokens.iter().map(|record| TokenDocument::new(record, now)).collect())
}

pub(super) async fn add_token(
    State(state): State<ApiState>,
    Extension(who): Extension<Principal>,
    body: Result<Json<NewToken>, JsonRejection>,
) -> Result<Json<TokenAdded>, ApiError> {
    let Json(wish) = body.map_err(|error| ApiError::invalid_body(&error))?;
    let mut secret = [0; 32];
    getrandom::fill(&mut secret)
        .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error))?;
    let (token, keyring) = (AccessToken::new(wish.name.clone(), secret), state.keyring.clone());
    let added = state.act(&who, Act::TokenAdd, wish.name.to_string(), move |core, now| {
        let NewToken { name, role, tenants, days } = wish;
        if keyring.token(&name).is_some_and(|known| known.is_active(now)) {
            let message = format!("a token named {name} works already; revoke it first");
            return Err(ApiError::new(StatusCode::CONFLICT, "token-exists", message));
        }
        let names: Vec<_> = tenants.iter().map(ToString::to_string).collect();
        let record = TokenRecord::new(&token, role, tenants, days, now).map_err(|error| {
            ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "token-invalid", error)
        })?;
        let expires = record.expires;
        core.put_token(record);
        let detail = format!("role {role}, {days} days, tenants [{}]", names.join(", "));
        Ok((TokenAdded { name, role, token: token.reveal(), expires }, detail))
    });
    added.await.map(Json)
}

pub(super) async fn revoke_token(
    State(state): State<ApiState>,
    Extension(who): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<Json<TokenDocument>, ApiError> {
    let name = TokenName::new(name).map_err(|error| ApiError::invalid_id(&error))?;
    let keyring = state.keyring.clone();
    let revoked = state.act(&who, Act::TokenRevoke, name.to_string(), move |core, now| {
        let Some(mut record) = keyring.token(&name) else {
            let message = format!("there is no token {name}; `token list` shows what there is");
            return Err(ApiError::new(StatusCode::NOT_FOUND, "token-unknown", message));
        };
        record.revoked.get_or_insert(now);
        core.put_token(record.clone());
        Ok((TokenDocument::new(&record, now), String::new()))
    });
    revoked.await.map(Json)
}

/// How much of the audit log is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuditQuery {
    #[serde(default = "last_default")]
    last: usize,
    before: Option<u64>,
}

const fn last_default() -> usize {
    100
}

pub(super) async fn audit(
    State(state): State<ApiState>,
    Query(query): Query<AuditQuery>,
) -> Result<Json<Vec<AuditEntry>>, ApiError> {
    let last = query.last.min(ENTRIES_MAX);
    let before = query.before;
    read(&state, move |log| log.page(last, before)).await.map(Json)
}

pub(super) async fn verify_audit(
    State(state): State<ApiState>,
) -> Result<Json<AuditHead>, ApiError> {
    read(&state, AuditReader::verify).await.map(|head| Json(AuditHead::new(head)))
}

/// Reads the log beside the core, which goes on meanwhile.
async fn read<R: Send + 'static>(
    state: &ApiState,
    read: impl FnOnce(&AuditReader) -> Result<R, AuditError> + Send + 'static,
) -> Result<R, ApiError> {
    let log = state.core.call(|core, _| core.audit().reader());
    let log = log.await.map_err(ApiError::stopping)?;
    let result = tokio::task::spawn_blocking(move || read(&log)).await;
    result.expect("reading the log does not panic").map_err(|error| {
        let refusal = Refusal::from_error(ErrorCode::Internal, &error);
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "audit-damaged", refusal.message)
    })
}
