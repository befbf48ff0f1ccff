//! Which role may use which route: the one table that the router, the OpenAPI document and the tests
//! share. What is not in it is refused.

use axum::http::Method;

use crate::access::Role::{self, Auditor, Operator, TenantAdmin, Viewer};

/// One method of one path.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    /// HTTP method.
    pub(super) method: Method,
    /// The path as axum and OpenAPI write it.
    pub(super) path: &'static str,
    /// Who may use it.
    pub(super) access: Access,
    /// What it does, for the OpenAPI document.
    pub(super) summary: &'static str,
    /// The request body, for the OpenAPI document.
    pub(super) body: Body,
    /// What a success answers, for the OpenAPI document.
    pub(super) answer: Answer,
}

/// Who may use a route.
#[derive(Debug, Clone, Copy)]
pub(super) enum Access {
    /// Everybody, without a token.
    Public,
    /// These roles, and the administrator.
    Roles(&'static [Role]),
}

impl Access {
    pub(super) fn admits(self, role: Role) -> bool {
        match self {
            Self::Public => true,
            Self::Roles(roles) => role == Role::Administrator || roles.contains(&role),
        }
    }
}

/// A request body.
#[derive(Debug, Clone, Copy)]
pub(super) enum Body {
    None,
    /// A schema of the OpenAPI document.
    Json(&'static str),
    /// A job file.
    Toml,
}

/// The body of a success.
#[derive(Debug, Clone, Copy)]
pub(super) enum Answer {
    /// A schema of the OpenAPI document.
    Json(&'static str),
    /// A list of such.
    List(&'static str),
    /// Plain text.
    Text,
    /// The dashboard's page and what belongs to it.
    Page,
    /// Server-sent events.
    Events,
    /// A file.
    Bytes,
}

const ALL: &[Role] = &[Viewer, Operator, TenantAdmin, Auditor];
const READERS: &[Role] = &[Viewer, Operator, Auditor];
const OPERATORS: &[Role] = &[Operator];
const TENANT_CARE: &[Role] = &[Operator, TenantAdmin];
const AUDITORS: &[Role] = &[Operator, Auditor];
const TOKEN_READERS: &[Role] = &[Auditor];
const ADMINISTRATOR: &[Role] = &[];

/// Every route.
pub(super) fn rules() -> Vec<Rule> {
    use Access::{Public, Roles};
    use Answer::{Bytes, Events, List, Page, Text};
    let rule = |method, path, access, summary, body, answer| Rule {
        method,
        path,
        access,
        summary,
        body,
        answer,
    };
    let get = |path, access, summary, answer| {
        rule(Method::GET, path, access, summary, Body::None, answer)
    };
    let post = |path, access, summary, body, schema| {
        rule(Method::POST, path, Roles(access), summary, body, Answer::Json(schema))
    };
    vec![
        get("/", Public, "The dashboard.", Page),
        get("/dashboard/{file}", Public, "A file of the dashboard.", Page),
        get("/healthz", Public, "Whether the coordinator answers.", Text),
        get("/openapi.json", Public, "This document.", Answer::Json("Document")),
        get("/metrics", Roles(READERS), "Metrics for Prometheus.", Text),
        get("/v1/sign-in", Public, "How people can sign in.", Answer::Json("SignInWays")),
        rule(
            Method::POST,
            "/v1/sign-in/oidc",
            Public,
            "Trades a code of the issuer for its ID token.",
            Body::Json("Exchange"),
            Answer::Json("SignedIn"),
        ),
        get(
            "/v1/events",
            Roles(ALL),
            "Says when something changed, as server-sent events.",
            Events,
        ),
        get("/v1/whoami", Roles(ALL), "Who the token belongs to.", Answer::Json("Whoami")),
        get("/v1/tenants", Roles(ALL), "Tenants that the token may see.", List("Tenant")),
        post(
            "/v1/tenants",
            OPERATORS,
            "Admits a tenant, or invites a known one anew.",
            Body::Json("NewTenant"),
            "TenantAdded",
        ),
        rule(
            Method::PUT,
            "/v1/tenants/{tenant}",
            Roles(OPERATORS),
            "Replaces what a tenant may do and use.",
            Body::Json("TenantTerms"),
            Answer::Json("Tenant"),
        ),
        post(
            "/v1/tenants/{tenant}/suspend",
            TENANT_CARE,
            "Stops a tenant until it is resumed; cuts its connection.",
            Body::Json("StopTenant"),
            "Tenant",
        ),
        post(
            "/v1/tenants/{tenant}/resume",
            OPERATORS,
            "Lets a suspended tenant act again.",
            Body::None,
            "Tenant",
        ),
        post(
            "/v1/tenants/{tenant}/revoke",
            TENANT_CARE,
            "Ends a tenant's certificate and invitation; cuts its connection.",
            Body::Json("StopTenant"),
            "Tenant",
        ),
        get("/v1/jobs", Roles(ALL), "Jobs and what they wait for.", List("Job")),
        post("/v1/jobs", OPERATORS, "Submits a job file.", Body::Toml, "JobSubmitted"),
        get("/v1/jobs/{job}", Roles(ALL), "One job.", Answer::Json("Job")),
        get("/v1/jobs/{job}/rounds", Roles(ALL), "How its rounds ended.", List("RoundSummary")),
        get(
            "/v1/jobs/{job}/spending",
            Roles(ALL),
            "What its counted releases cost each tenant.",
            Answer::Json("Spending"),
        ),
        post(
            "/v1/jobs/{job}/pause",
            OPERATORS,
            "Finishes the open round and begins no further one.",
            Body::None,
            "Job",
        ),
        post("/v1/jobs/{job}/resume", OPERATORS, "Goes on.", Body::None, "Job"),
        post(
            "/v1/jobs/{job}/stop",
            OPERATORS,
            "Ends the job; an open round is given up.",
            Body::None,
            "Job",
        ),
        post(
            "/v1/jobs/{job}/priority",
            OPERATORS,
            "Changes who gets tenants first.",
            Body::Json("NewPriority"),
            "Job",
        ),
        post(
            "/v1/jobs/{job}/promote",
            OPERATORS,
            "Has agents serve a version of the job's model, or the newest again.",
            Body::Json("NewPromotion"),
            "Model",
        ),
        post(
            "/v1/jobs/{job}/rollback",
            OPERATORS,
            "Has agents serve the version before.",
            Body::None,
            "Model",
        ),
        get("/v1/models", Roles(ALL), "Model versions.", List("Model")),
        get("/v1/models/{digest}", Roles(OPERATORS), "A model as a safetensors file.", Bytes),
        post(
            "/v1/snapshot",
            ADMINISTRATOR,
            "Takes a snapshot in the coordinator's folder, for `backup`.",
            Body::None,
            "SnapshotTaken",
        ),
        get("/v1/audit", Roles(AUDITORS), "The newest audit entries.", List("AuditEntry")),
        get(
            "/v1/audit/verify",
            Roles(AUDITORS),
            "Verifies the whole audit log.",
            Answer::Json("AuditHead"),
        ),
        get("/v1/tokens", Roles(TOKEN_READERS), "Access tokens, without secrets.", List("Token")),
        post(
            "/v1/tokens",
            ADMINISTRATOR,
            "Makes an access token.",
            Body::Json("NewToken"),
            "TokenAdded",
        ),
        post(
            "/v1/tokens/{name}/revoke",
            ADMINISTRATOR,
            "Revokes an access token.",
            Body::None,
            "Token",
        ),
    ]
}
