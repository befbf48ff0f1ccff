//! What the dashboard stands on: its files, changes as they happen, pages of the audit log, tokens of
//! an issuer.

use std::path::Path;

use axum::body::HttpBody;

use super::*;
use crate::access::oidc::{
    Oidc,
    tests::{
        claims, config,
        local_issuer::{LocalIssuer, SigningKey},
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn the_page_and_its_files_come_with_a_policy_that_forbids_everything_else() {
    let bench = Bench::new(1);
    for _ in 0..3 {
        for (path, kind) in [("/", "text/html"), ("/dashboard/app.js", "text/javascript")] {
            let response = bench.send(None, Method::GET, path, "").await;
            assert_eq!(response.status(), StatusCode::OK, "files are not rate limited");
            let header = |name: &str| response.headers()[name].to_str().expect("text").to_owned();
            assert!(header("content-type").starts_with(kind), "{path}");
            let policy = header("content-security-policy");
            for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"] {
                assert!(policy.contains(part), "{policy}");
            }
            assert!(!policy.contains("unsafe"), "{policy}");
            assert_eq!(header("referrer-policy"), "no-referrer");
            assert_eq!(header("x-content-type-options"), "nosniff");
        }
    }
    for path in ["/dashboard/nothing.js", "/dashboard/..%2Fmod.rs", "/dashboard/"] {
        let status = bench.send(None, Method::GET, path, "").await.status();
        assert!(status == StatusCode::NOT_FOUND || status == StatusCode::UNAUTHORIZED, "{path}");
    }
}

/// The next event of a stream.
async fn event(response: &mut Response) -> String {
    let frame =
        std::future::poll_fn(|context| std::pin::Pin::new(response.body_mut()).poll_frame(context));
    let frame = frame.await.expect("an event").expect("readable");
    String::from_utf8(frame.into_data().expect("data").to_vec()).expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_watches_hears_of_changes_and_too_many_are_sent_away() {
    let bench = Bench::new(1000);
    let token = bench.token("vera", Role::Viewer).await;
    let mut watched = bench.send(Some(&token), Method::GET, "/v1/events", "").await;
    assert_eq!(watched.headers()[header::CONTENT_TYPE], "text/event-stream");
    let first = event(&mut watched).await;
    assert!(first.starts_with("event: changed\ndata: {\"revision\":"), "{first}");
    // The bench has room for one.
    let second = bench.send(Some(&token), Method::GET, "/v1/events", "").await;
    assert_eq!(second.status(), StatusCode::SERVICE_UNAVAILABLE);
    // Looking changes nothing, and so does being refused a document.
    bench.get(&token, "/v1/jobs").await;
    let wish = json!({ "tenant": "alpha", "region": "eu" });
    assert_eq!(bench.post(ADMIN, "/v1/tenants", &wish).await.0, StatusCode::OK);
    let next = event(&mut watched).await;
    assert_ne!(first, next);
    drop(watched);
    let again = tokio::time::timeout(std::time::Duration::from_secs(10), async {
        loop {
            let again = bench.send(Some(&token), Method::GET, "/v1/events", "").await;
            if again.status() == StatusCode::OK {
                return;
            }
            tokio::task::yield_now().await;
        }
    });
    again.await.expect("who went made room");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_log_comes_in_pages() {
    let bench = Bench::new(1000);
    for name in ["a", "b", "c", "d", "e"] {
        let _ = bench.token(name, Role::Viewer).await;
    }
    let page = |query: &'static str| {
        let bench = &bench;
        async move {
            let (status, entries) = bench.get(ADMIN, &format!("/v1/audit?{query}")).await;
            assert_eq!(status, StatusCode::OK, "{entries}");
            let entries = entries.as_array().expect("a list").iter();
            entries.map(|entry| entry["sequence"].as_u64().expect("a number")).collect::<Vec<_>>()
        }
    };
    assert_eq!(page("last=2").await, [5, 6]);
    assert_eq!(page("last=2&before=5").await, [3, 4]);
    assert_eq!(page("last=10&before=3").await, [1, 2]);
    assert_eq!(page("last=10&before=1").await, Vec::<u64>::new());
    assert_eq!(page("last=0").await, Vec::<u64>::new());
    for query in ["before=x", "before=-1", "first=2"] {
        let path = format!("/v1/audit?{query}");
        let response = bench.send(Some(ADMIN), Method::GET, &path, "").await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_the_issuer_acts_in_its_role_and_is_named_in_the_audit_log() {
    let key = SigningKey::ec();
    let issuer = LocalIssuer::start(vec![key.jwk("ec")]).await;
    let oidc = Oidc::new(config(&issuer.name), Path::new(".")).expect("valid");
    let bench = Bench::with_issuer(1000, Some(oidc));
    let now_s = process::now().0 / 1000;
    let operator = key.token("ec", &claims(&issuer.name, now_s));
    let wish = json!({ "tenant": "alpha", "region": "eu" });
    assert_eq!(bench.post(&operator, "/v1/tenants", &wish).await.0, StatusCode::OK);
    let (_, who) = bench.get(&operator, "/v1/whoami").await;
    assert_eq!(who, json!({ "name": "oidc:alice", "role": "operator", "tenants": null }));
    let (status, _) = bench.get(&operator, "/v1/tokens").await;
    assert_eq!(status, StatusCode::FORBIDDEN, "an operator does not see tokens");
    let entries = bench.get(ADMIN, "/v1/audit").await.1;
    let acts: Vec<_> = entries.as_array().expect("a list").iter().collect();
    let by_alice = acts.iter().filter(|entry| entry["actor"]["name"] == "oidc:alice");
    let by_alice: Vec<_> = by_alice.map(|entry| (&entry["act"], &entry["outcome"])).collect();
    assert_eq!(
        by_alice,
        [(&json!("tenant-add"), &json!("done")), (&json!("request"), &json!("refused"))]
    );
    let old = key.token("ec", &claims(&issuer.name, now_s - 3600));
    let response = bench.send(Some(&old), Method::GET, "/v1/jobs", "").await;
    assert!(response.headers().contains_key(header::WWW_AUTHENTICATE));
    let (status, error) = document(response).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(error["error"]["code"], "oidc-token-expired");
    let (_, ways) = bench.get("", "/v1/sign-in").await;
    assert_eq!(ways["oidc"]["client_id"], "dashboard");
    assert_eq!(ways["oidc"]["authorization_endpoint"], format!("{}/authorize", issuer.name));
    let code = json!({ "code": "x", "code_verifier": "y", "nonce": "z", "redirect_uri": "u" });
    let (status, error) = bench.post("", "/v1/sign-in/oidc", &code).await;
    assert_eq!(
        (status, &error["error"]["code"]),
        (StatusCode::UNAUTHORIZED, &json!("oidc-token-invalid"))
    );
    assert_eq!(error["error"]["message"], "the issuer refused: no such code");
    issuer.now().away = true;
    let (status, _) = bench.get("", "/v1/sign-in").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(bench.get(&operator, "/v1/jobs").await.0, StatusCode::OK, "its keys are kept");
    assert_eq!(
        bench.get(ADMIN, "/v1/jobs").await.0,
        StatusCode::OK,
        "access tokens need no issuer"
    );
}
