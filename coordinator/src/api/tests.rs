//! The whole API over a core in memory: every route for every role, rate limits, the audit trail.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Method, Request, StatusCode, header},
    response::Response,
};
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tower::ServiceExt;
use tributary_protocol::{id::Digest, transport::process};

use super::{ApiState, openapi, router, rules::rules};
use crate::{
    access::{RateLimit, RateLimits, Role, oidc::Oidc},
    blobs::BlobStore,
    driver::Core,
    store::MemoryStore,
    tenants::authority::{self, Authority},
};

const ADMIN: &str = "the-administrators-own-token";

mod console;

struct Bench {
    router: Router,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(requests_per_minute: u32) -> Self {
        Self::with_issuer(requests_per_minute, None)
    }

    fn with_issuer(requests_per_minute: u32, oidc: Option<Oidc>) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let pair = Authority::generate(process::now()).expect("makes");
        let authority = Authority::load(&pair).expect("loads");
        let server =
            authority.issue_server(&["localhost".to_owned()], process::now()).expect("issues");
        let identity = authority::server_identity(&server, &authority).expect("fits");
        let core = Core::restore(
            Box::new(MemoryStore::default()),
            BlobStore::open(folder.path()).expect("opens"),
            authority,
            identity,
            Digest::of(ADMIN.as_bytes()),
            folder.path(),
            process::now(),
        )
        .expect("starts empty");
        let keyring = core.keyring.clone();
        let (core, _task) = core.spawn();
        let limits = Arc::new(RateLimits::new(RateLimit { requests_per_minute }));
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let state = ApiState {
            core,
            keyring,
            oidc,
            limits,
            metrics,
            epsilons: Arc::default(),
            watchers: Arc::new(Semaphore::new(1)),
        };
        Self { router: router(state), folder }
    }

    async fn send(&self, token: Option<&str>, method: Method, path: &str, body: &str) -> Response {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_owned()))
            .expect("a request");
        self.router.clone().oneshot(request).await.expect("infallible")
    }

    async fn post(&self, token: &str, path: &str, body: &Value) -> (StatusCode, Value) {
        document(self.send(Some(token), Method::POST, path, &body.to_string()).await).await
    }

    async fn get(&self, token: &str, path: &str) -> (StatusCode, Value) {
        document(self.send(Some(token), Method::GET, path, "").await).await
    }

    /// Makes a token of a role; a tenant admin looks after `alpha`.
    async fn token(&self, name: &str, role: Role) -> String {
        if role == Role::Administrator {
            return ADMIN.to_owned();
        }
        let tenants: &[&str] = if role == Role::TenantAdmin { &["alpha"] } else { &[] };
        let wish = json!({ "name": name, "role": role, "tenants": tenants, "days": 1 });
        let (status, added) = self.post(ADMIN, "/v1/tokens", &wish).await;
        assert_eq!(status, StatusCode::OK, "{added}");
        added["token"].as_str().expect("text").to_owned()
    }
}

async fn document(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    let bytes = to_bytes(response.into_body(), 1 << 20).await.expect("a body");
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

const EVERY_ROLE: [Role; 5] =
    [Role::Viewer, Role::Operator, Role::TenantAdmin, Role::Auditor, Role::Administrator];

/// Who may do what, written out a second time: `v`iewer, `o`perator, `t`enant admin, `a`uditor; the
/// administrator may do everything.
const EXPECTED: &[(&str, &str, &str)] = &[
    ("GET", "/", "public"),
    ("GET", "/dashboard/{file}", "public"),
    ("GET", "/healthz", "public"),
    ("GET", "/openapi.json", "public"),
    ("GET", "/metrics", "voa"),
    ("GET", "/v1/sign-in", "public"),
    ("POST", "/v1/sign-in/oidc", "public"),
    ("GET", "/v1/events", "vota"),
    ("GET", "/v1/whoami", "vota"),
    ("GET", "/v1/tenants", "vota"),
    ("POST", "/v1/tenants", "o"),
    ("PUT", "/v1/tenants/{tenant}", "o"),
    ("POST", "/v1/tenants/{tenant}/suspend", "ot"),
    ("POST", "/v1/tenants/{tenant}/resume", "o"),
    ("POST", "/v1/tenants/{tenant}/revoke", "ot"),
    ("GET", "/v1/jobs", "vota"),
    ("POST", "/v1/jobs", "o"),
    ("GET", "/v1/jobs/{job}", "vota"),
    ("GET", "/v1/jobs/{job}/rounds", "vota"),
    ("GET", "/v1/jobs/{job}/spending", "vota"),
    ("POST", "/v1/jobs/{job}/pause", "o"),
    ("POST", "/v1/jobs/{job}/resume", "o"),
    ("POST", "/v1/jobs/{job}/stop", "o"),
    ("POST", "/v1/jobs/{job}/priority", "o"),
    ("POST", "/v1/jobs/{job}/promote", "o"),
    ("POST", "/v1/jobs/{job}/rollback", "o"),
    ("GET", "/v1/models", "vota"),
    ("GET", "/v1/models/{digest}", "o"),
    ("POST", "/v1/snapshot", ""),
    ("GET", "/v1/audit", "oa"),
    ("GET", "/v1/audit/verify", "oa"),
    ("GET", "/v1/tokens", "a"),
    ("POST", "/v1/tokens", ""),
    ("POST", "/v1/tokens/{name}/revoke", ""),
];

fn expected(access: &str, role: Role) -> bool {
    let letter = match role {
        Role::Viewer => 'v',
        Role::Operator => 'o',
        Role::TenantAdmin => 't',
        Role::Auditor => 'a',
        Role::Administrator => return true,
    };
    access == "public" || access.contains(letter)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_admits_exactly_its_roles() {
    let bench = Bench::new(100_000);
    let routes: BTreeSet<_> =
        rules().iter().map(|rule| (rule.method.to_string(), rule.path)).collect();
    let listed: BTreeSet<_> =
        EXPECTED.iter().map(|(method, path, _)| ((*method).to_owned(), *path)).collect();
    assert_eq!(routes, listed, "the table of this test lists every route");
    for role in EVERY_ROLE {
        let token = bench.token(role.name(), role).await;
        for (method, path, access) in EXPECTED {
            let method: Method = method.parse().expect("a method");
            let path = path
                .replace("{digest}", &"0".repeat(64))
                .replace("{file}", "app.js")
                .replace(['{', '}'], "");
            let response = bench.send(Some(&token), method.clone(), &path, "").await;
            // The body of a stream does not end.
            let (status, body) = match path.as_str() {
                "/v1/events" => (response.status(), Value::Null),
                _ => document(response).await,
            };
            assert_ne!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path} has no handler");
            assert_ne!(body["error"]["code"], "not-found", "{method} {path} has no handler");
            let admitted = status != StatusCode::FORBIDDEN;
            assert_eq!(
                admitted,
                expected(access, role),
                "{role}: {method} {path}: {status} {body}"
            );
        }
    }
    for (method, path, access) in EXPECTED {
        for token in [None, Some("guess"), Some("viewer.AAAA")] {
            let path = path.replace(['{', '}'], "");
            let response = bench.send(token, method.parse().expect("a method"), &path, "").await;
            let open = response.status() != StatusCode::UNAUTHORIZED;
            assert_eq!(open, *access == "public", "{token:?}: {method} {path}");
            assert_eq!(open, !response.headers().contains_key(header::WWW_AUTHENTICATE));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_and_methods_are_told_apart() {
    let bench = Bench::new(1000);
    let status = |method, path| {
        let bench = &bench;
        async move { document(bench.send(Some(ADMIN), method, path, "").await).await }
    };
    assert_eq!(status(Method::GET, "/v1/nothing").await.1["error"]["code"], "not-found");
    assert_eq!(status(Method::DELETE, "/v1/jobs").await.1["error"]["code"], "method-not-allowed");
    assert_eq!(status(Method::HEAD, "/v1/jobs").await.0, StatusCode::OK);
    let response = bench.send(None, Method::GET, "/v1/nothing", "").await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "strangers learn nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_admin_sees_its_own_tenants_only() {
    let bench = Bench::new(1000);
    for tenant in ["alpha", "beta"] {
        let wish = json!({ "tenant": tenant, "region": "eu" });
        assert_eq!(bench.post(ADMIN, "/v1/tenants", &wish).await.0, StatusCode::OK);
    }
    let token = bench.token("eve", Role::TenantAdmin).await;
    let (_, tenants) = bench.get(&token, "/v1/tenants").await;
    assert_eq!(tenants.as_array().expect("a list").len(), 1);
    assert_eq!(tenants[0]["tenant"], "alpha");
    let (_, everyone) = bench.get(ADMIN, "/v1/tenants").await;
    assert_eq!(everyone.as_array().expect("a list").len(), 2);
    let reason = json!({ "reason": "a lost laptop" });
    let (status, error) = bench.post(&token, "/v1/tenants/beta/suspend", &reason).await;
    assert_eq!(
        (status, &error["error"]["code"]),
        (StatusCode::NOT_FOUND, &json!("tenant-unknown"))
    );
    let (status, stopped) = bench.post(&token, "/v1/tenants/alpha/suspend", &reason).await;
    assert_eq!((status, &stopped["standing"]), (StatusCode::OK, &json!("suspended")));
    let (status, _) = bench.post(&token, "/v1/tenants/alpha/resume", &Value::Null).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "whoever stopped it may be somebody else");
    let (_, resumed) = bench.post(ADMIN, "/v1/tenants/alpha/resume", &Value::Null).await;
    assert_eq!(resumed["standing"], "active");
    let (_, revoked) = bench.post(&token, "/v1/tenants/alpha/revoke", &reason).await;
    assert_eq!(
        (&revoked["standing"], &revoked["reason"]),
        (&json!("revoked"), &json!("a lost laptop"))
    );
    let (status, error) = bench.post(ADMIN, "/v1/tenants/alpha/resume", &Value::Null).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::CONFLICT, &json!("tenant-revoked")));
    let empty = json!({ "reason": " " });
    let (status, _) = bench.post(&token, "/v1/tenants/alpha/revoke", &empty).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let (_, who) = bench.get(&token, "/v1/whoami").await;
    assert_eq!(who, json!({ "name": "eve", "role": "tenant-admin", "tenants": ["alpha"] }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_stops_at_once_and_its_name_can_be_used_again() {
    let bench = Bench::new(1000);
    let token = bench.token("ci", Role::Operator).await;
    let wish = json!({ "name": "ci", "role": "viewer", "days": 1 });
    assert_eq!(bench.post(ADMIN, "/v1/tokens", &wish).await.0, StatusCode::CONFLICT);
    assert_eq!(bench.get(&token, "/v1/jobs").await.0, StatusCode::OK);
    let (status, revoked) = bench.post(ADMIN, "/v1/tokens/ci/revoke", &Value::Null).await;
    assert_eq!((status, &revoked["active"]), (StatusCode::OK, &json!(false)));
    let (status, error) = bench.get(&token, "/v1/jobs").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(error["error"]["code"], "access-token-revoked");
    assert_eq!(bench.post(ADMIN, "/v1/tokens", &wish).await.0, StatusCode::OK);
    assert_eq!(bench.get(&token, "/v1/jobs").await.1["error"]["code"], "unauthorized");
    let bad = json!({ "name": "x", "role": "viewer", "tenants": ["alpha"], "days": 1 });
    assert_eq!(bench.post(ADMIN, "/v1/tokens", &bad).await.1["error"]["code"], "token-invalid");
    let (status, _) = bench.post(ADMIN, "/v1/tokens/nobody/revoke", &Value::Null).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_requests_are_told_when_to_come_back() {
    let bench = Bench::new(3);
    let token = bench.token("fast", Role::Viewer).await;
    for _ in 0..3 {
        assert_eq!(bench.get(&token, "/v1/jobs").await.0, StatusCode::OK);
    }
    let response = bench.send(Some(&token), Method::GET, "/v1/jobs", "").await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    let wait = response.headers()[header::RETRY_AFTER].to_str().expect("text");
    assert!((1..=20).contains(&wait.parse::<u64>().expect("seconds")), "{wait}");
    assert_eq!(bench.get(ADMIN, "/v1/jobs").await.0, StatusCode::OK, "others are not affected");
    for attempt in 0..4 {
        let status = bench.send(Some("guess"), Method::GET, "/v1/jobs", "").await.status();
        let expected =
            if attempt < 3 { StatusCode::UNAUTHORIZED } else { StatusCode::TOO_MANY_REQUESTS };
        assert_eq!(status, expected, "guesses share one bucket");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_act_is_in_the_audit_log_with_who_and_outcome() {
    let bench = Bench::new(1000);
    let viewer = bench.token("vera", Role::Viewer).await;
    let auditor = bench.token("otto", Role::Auditor).await;
    let wish = json!({ "tenant": "alpha", "region": "eu" });
    assert_eq!(bench.post(&viewer, "/v1/tenants", &wish).await.0, StatusCode::FORBIDDEN);
    bench.post(ADMIN, "/v1/tenants", &wish).await;
    bench.post(ADMIN, "/v1/tokens/vera/revoke", &Value::Null).await;
    bench.post(ADMIN, "/v1/tokens/nobody/revoke", &Value::Null).await;
    let (_, entries) = bench.get(&auditor, "/v1/audit").await;
    let told: Vec<_> = entries
        .as_array()
        .expect("a list")
        .iter()
        .map(|entry| {
            let text = |value: &Value| value.as_str().expect("text").to_owned();
            [
                &entry["actor"]["name"],
                &entry["actor"]["role"],
                &entry["act"],
                &entry["subject"],
                &entry["outcome"],
            ]
            .map(text)
        })
        .collect();
    let line = |parts: [&str; 5]| parts.map(str::to_owned);
    assert_eq!(
        told,
        [
            line(["coordinator", "coordinator", "coordinator-start", "", "done"]),
            line(["admin", "administrator", "token-add", "vera", "done"]),
            line(["admin", "administrator", "token-add", "otto", "done"]),
            line(["vera", "viewer", "request", "POST /v1/tenants", "refused"]),
            line(["admin", "administrator", "tenant-add", "alpha", "done"]),
            line(["admin", "administrator", "token-revoke", "vera", "done"]),
            line(["admin", "administrator", "token-revoke", "nobody", "refused"]),
        ]
    );
    let (_, last) = bench.get(&auditor, "/v1/audit?last=1").await;
    assert_eq!(last.as_array().expect("a list").len(), 1);
    let (status, head) = bench.get(&auditor, "/v1/audit/verify").await;
    assert_eq!((status, &head["sequence"]), (StatusCode::OK, &json!(7)));
    let path = bench.folder.path().join(crate::audit::FILE_NAME);
    let text = std::fs::read_to_string(&path).expect("reads");
    assert!(!text.contains(viewer.split_once('.').expect("two parts").1), "secrets stay out");
    std::fs::write(&path, text.replace("vera", "vero")).expect("writes");
    let (status, error) = bench.get(&auditor, "/v1/audit/verify").await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(error["error"]["code"], "audit-damaged");
    assert!(error["error"]["message"].as_str().expect("text").contains("line 2"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_paused_resumed_reordered_and_stopped() {
    let bench = Bench::new(1000);
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/jobs/census.toml");
    let job = std::fs::read_to_string(file).expect("a sample");
    bench.send(Some(ADMIN), Method::POST, "/v1/jobs", &job).await;
    let token = bench.token("ops", Role::Operator).await;
    let post = |what: &'static str, body: Value| {
        let (bench, token) = (&bench, &token);
        async move { bench.post(token, &format!("/v1/jobs/census/{what}"), &body).await }
    };
    assert_eq!(post("pause", Value::Null).await.1["state"], "paused");
    assert_eq!(post("resume", Value::Null).await.1["state"], "running");
    assert_eq!(post("priority", json!({ "priority": 7 })).await.1["priority"], 7);
    let (status, _) = post("priority", json!({ "priority": 1001 })).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let (_, served) = post("promote", json!({ "version": 0 })).await;
    assert_eq!((&served["version"], &served["served"]), (&json!(0), &json!(true)));
    assert_eq!(post("promote", json!({ "version": 3 })).await.0, StatusCode::NOT_FOUND);
    assert_eq!(post("rollback", Value::Null).await.0, StatusCode::CONFLICT);
    assert_eq!(post("promote", json!({ "version": null })).await.0, StatusCode::OK);
    assert_eq!(post("stop", Value::Null).await.1["state"], "stopped");
    assert_eq!(post("resume", Value::Null).await.0, StatusCode::CONFLICT);
    let (status, error) = bench.post(&token, "/v1/jobs/nothing/stop", &Value::Null).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::NOT_FOUND, &json!("job-unknown")));
}

#[test]
fn the_openapi_document_lists_exactly_the_routes_and_refers_to_nothing_else() {
    let document = openapi::document();
    let mut listed = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            listed.insert((method.to_uppercase(), path.clone()));
            let id = operation["operationId"].as_str().expect("an id").to_owned();
            assert!(ids.insert(id), "{path} repeats an operation id");
        }
    }
    let routes: BTreeSet<_> = EXPECTED
        .iter()
        .map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned()))
        .collect();
    assert_eq!(listed, routes);
    let schemas = document["components"]["schemas"].as_object().expect("schemas");
    let mut used = BTreeSet::new();
    references(&document, &mut used);
    let known: BTreeSet<_> = schemas.keys().cloned().collect();
    assert_eq!(used, known, "every schema is used, and every reference resolves");
}

fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if let ("$ref", Some(target)) = (key.as_str(), value.as_str()) {
                    let name = target.strip_prefix("#/components/schemas/").expect("a schema");
                    found.insert(name.to_owned());
                }
                references(value, found);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

/// The schemas are written by hand; what the handlers answer keeps them true.
#[tokio::test(flavor = "multi_thread")]
async fn answers_have_exactly_the_fields_of_their_schemas() {
    let bench = Bench::new(1000);
    let wish = json!({ "tenant": "alpha", "region": "eu" });
    let added = bench.post(ADMIN, "/v1/tenants", &wish).await.1;
    let token = json!({ "name": "t", "role": "viewer", "days": 1 });
    let token_added = bench.post(ADMIN, "/v1/tokens", &token).await.1;
    let tenant = bench.get(ADMIN, "/v1/tenants").await.1[0].clone();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/jobs/census.toml");
    let job = std::fs::read_to_string(file).expect("a sample");
    let submitted = document(bench.send(Some(ADMIN), Method::POST, "/v1/jobs", &job).await).await.1;
    let mut answers = vec![
        ("TenantAdded", added),
        ("TokenAdded", token_added),
        ("JobSubmitted", submitted),
        ("Error", bench.get("guess", "/v1/jobs").await.1),
        ("Whoami", bench.get(ADMIN, "/v1/whoami").await.1),
        ("Quotas", tenant["quotas"].clone()),
        ("Used", tenant["used"].clone()),
        ("Isolation", tenant["isolation"].clone()),
        ("Tenant", tenant),
        ("Token", bench.get(ADMIN, "/v1/tokens").await.1[0].clone()),
        ("Job", bench.get(ADMIN, "/v1/jobs").await.1[0].clone()),
        ("JobTerms", bench.get(ADMIN, "/v1/jobs").await.1[0]["terms"].clone()),
        ("Spending", bench.get(ADMIN, "/v1/jobs/census/spending").await.1),
        ("SignInWays", bench.get(ADMIN, "/v1/sign-in").await.1),
        ("Model", bench.get(ADMIN, "/v1/models").await.1[0].clone()),
        ("AuditEntry", bench.get(ADMIN, "/v1/audit").await.1[0].clone()),
        ("AuditHead", bench.get(ADMIN, "/v1/audit/verify").await.1),
        ("SnapshotTaken", bench.post(ADMIN, "/v1/snapshot", &Value::Null).await.1),
    ];
    answers.push(("TenantState", answers[10].1["tenants"][0].clone()));
    let document = openapi::document();
    for (name, answer) in answers {
        let schema = &document["components"]["schemas"][name]["properties"];
        let keys = |value: &Value| -> BTreeSet<String> {
            value.as_object().unwrap_or_else(|| panic!("{name}: {value}")).keys().cloned().collect()
        };
        assert_eq!(keys(&answer), keys(schema), "{name}");
    }
}
