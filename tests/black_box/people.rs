//! People: access tokens, TLS and the audit log, over real processes.

use std::fs;

use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    message::{AgentMessage, Assignment, TransferResponse},
};
use tributary_tests::{
    coordinator::Coordinator,
    peer::{Peer, offer},
};

use crate::{credentials, job};

#[test]
fn the_api_speaks_tls_with_a_certificate_of_the_authority() {
    let mut coordinator = Coordinator::start();
    coordinator.reconfigure("[api]\ntls = \"authority\"");
    let endpoints = fs::read_to_string(coordinator.path("endpoints.json")).expect("reads");
    assert!(endpoints.contains("https://"), "{endpoints}");
    assert_eq!(coordinator.ask(&["job", "list"]), serde_json::json!([]));
    let added = coordinator.ask(&["token", "add", "vera", "--role", "viewer"]);
    let token = coordinator.path("vera.token");
    fs::write(&token, added["token"].as_str().expect("text")).expect("writes");
    let token = token.to_str().expect("text").to_owned();
    assert_eq!(coordinator.ask(&["tenant", "list", "--token-file", &token]), serde_json::json!([]));
    let refused =
        coordinator.command(&["tenant", "add", "alpha", "--region", "eu", "--token-file", &token]);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && message.contains("viewer may not"), "{message}");
    let other = Coordinator::start();
    let authority = other.path("authority.pem").to_str().expect("text").to_owned();
    let foreign = coordinator.command(&["job", "list", "--authority", &authority]);
    assert!(!foreign.status.success(), "a certificate of another authority is not trusted");
}

#[test]
fn plain_http_beyond_loopback_is_refused() {
    let coordinator = Coordinator::start();
    let refused = coordinator.command(&["serve", "--api-listen", "0.0.0.0:0"]);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && message.contains("without TLS"), "{message}");
}

#[tokio::test]
async fn the_audit_log_survives_a_kill_and_shows_every_tampering() {
    let mut coordinator = Coordinator::start();
    let alpha = credentials(&coordinator, "alpha").await;
    let beta = credentials(&coordinator, "beta").await;
    coordinator.submit(&job("points", 1, 2).replace("cohort_size_min = 2", "cohort_size_min = 1"));
    let mut willing = Peer::connect(coordinator.quic(), &alpha).await.expect("connects");
    let mut strict = Peer::connect(coordinator.quic(), &beta).await.expect("connects");
    let Assignment { job, round, lattice, .. } = strict.assignment().await;
    let refusal = Refusal::new(ErrorCode::PolicyForbids, "noise_multiplier 1 is below 3");
    strict.say(&AgentMessage::Decline { job: job.name.clone(), round, refusal }).await;
    willing.assignment().await;
    willing.accept(&job.name, round).await;
    let update = vec![0; (job.model.num_parameters() * usize::from(lattice.bits)).div_ceil(8)];
    let stored = willing.upload(&offer(&job.name, round, &update, 1), &update).await;
    assert!(!matches!(stored, TransferResponse::Refused(_)), "{stored:?}");
    coordinator.finish("points", 60);
    coordinator.kill();
    coordinator.serve();
    let entries = coordinator.ask(&["audit", "show"]);
    let acts: Vec<String> = entries
        .as_array()
        .expect("a list")
        .iter()
        .map(|entry| {
            format!("{} {} {}", entry["act"], entry["subject"], entry["outcome"]).replace('"', "")
        })
        .collect();
    for expected in [
        "coordinator-start  done",
        "tenant-add alpha done",
        "tenant-enroll beta done",
        "job-submit points done",
        "round-decline points/1 refused",
        "round-commit points/1 done",
    ] {
        assert!(acts.iter().any(|act| act == expected), "{expected} is not in {acts:?}");
    }
    let head = coordinator.ask(&["audit", "verify"]);
    let noted = format!("{}:{}", head["sequence"], head["hash"].as_str().expect("text"));
    assert!(coordinator.command(&["audit", "verify", "--head", &noted]).status.success());
    coordinator.kill();
    let path = coordinator.path("audit.jsonl");
    let whole = fs::read_to_string(&path).expect("reads");
    let refuses = |text: &str, expected: &str| {
        fs::write(&path, text).expect("writes");
        let verified = coordinator.command(&["audit", "verify", "--head", &noted]);
        let message = String::from_utf8_lossy(&verified.stderr).into_owned();
        assert!(!verified.status.success() && message.contains(expected), "{message}");
        let served = coordinator.command(&["serve"]);
        assert!(!served.status.success(), "a coordinator does not go on with a damaged log");
    };
    refuses(&whole.replacen("beta", "gama", 1), "is damaged");
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    refuses(&lines[..lines.len() - 1].concat(), "were cut off");
    fs::write(&path, &whole).expect("writes");
    coordinator.serve();
}
