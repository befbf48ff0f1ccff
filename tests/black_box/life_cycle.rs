//! Suspension and revocation over real connections.

use tributary_protocol::{
    error_code::ErrorCode,
    isolation::Isolation,
    message::{AgentMessage, CoordinatorMessage, LedgerHead},
    transport::{endpoint, stream, tls},
};
use tributary_tests::{coordinator::Coordinator, peer::Peer};

use crate::{credentials, job, refused};

#[tokio::test]
async fn suspending_and_revoking_cut_a_live_connection_and_refuse_its_return() {
    let coordinator = Coordinator::start();
    let credentials = credentials(&coordinator, "alpha").await;
    let connect = || Peer::connect(coordinator.quic(), &credentials);
    let mut peer = connect().await.expect("admitted");
    assert!(matches!(peer.next().await, Ok(CoordinatorMessage::Welcome { .. })));
    let suspended =
        coordinator.ask(&["tenant", "suspend", "alpha", "--reason", "contract under review"]);
    assert_eq!(suspended["standing"], "suspended");
    assert_eq!(refused(peer.next().await.expect_err("cut")), ErrorCode::TenantSuspended);
    let mut peer = connect().await.expect("TLS accepts it");
    assert_eq!(refused(peer.next().await.expect_err("refused")), ErrorCode::TenantSuspended);
    let _ = coordinator.ask(&["tenant", "resume", "alpha"]);
    let mut peer = connect().await.expect("admitted again");
    assert!(matches!(peer.next().await, Ok(CoordinatorMessage::Welcome { .. })));
    let _ = coordinator.ask(&["tenant", "revoke", "alpha", "--reason", "lost laptop"]);
    assert_eq!(refused(peer.next().await.expect_err("cut")), ErrorCode::TenantRevoked);
    let mut peer = connect().await.expect("TLS accepts it");
    assert_eq!(refused(peer.next().await.expect_err("refused")), ErrorCode::TenantRevoked);
}

#[tokio::test]
async fn a_request_quota_refuses_connections_and_survives_only_until_it_is_raised() {
    let coordinator = Coordinator::start();
    let credentials = credentials(&coordinator, "alpha").await;
    let set = coordinator.ask(&["tenant", "set", "alpha", "--requests-per-day", "0"]);
    assert_eq!(set["quotas"]["requests_per_day"], 0);
    let mut peer = Peer::connect(coordinator.quic(), &credentials).await.expect("TLS accepts it");
    assert_eq!(refused(peer.next().await.expect_err("refused")), ErrorCode::QuotaExceeded);
    let set = coordinator.ask(&["tenant", "set", "alpha", "--requests-per-day", "none"]);
    assert!(set["quotas"]["requests_per_day"].is_null());
    let mut peer = Peer::connect(coordinator.quic(), &credentials).await.expect("admitted");
    assert!(matches!(peer.next().await, Ok(CoordinatorMessage::Welcome { .. })));
}

// On two threads: the command line blocks one, and the connection must go on meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_suspended_between_handshake_and_hello_gets_no_session() {
    let coordinator = Coordinator::start();
    let credentials = credentials(&coordinator, "alpha").await;
    let tls = tls::agent(credentials.identity.clone(), &credentials.authority).expect("TLS");
    let endpoint = endpoint::client(coordinator.quic(), tls).expect("a socket");
    let connecting = endpoint.connect(coordinator.quic(), "localhost").expect("connects");
    let connection = connecting.await.expect("TLS accepts it");
    let (mut control, mut messages) = connection.open_bi().await.expect("a stream");
    let _ = coordinator.ask(&["tenant", "suspend", "alpha", "--reason", "just now"]);
    let (agent_version, ledger_head) = ("test".to_owned(), LedgerHead::EMPTY);
    let isolation = Isolation::default();
    let hello = AgentMessage::Hello { agent_version, ledger_head, isolation };
    stream::write_message(&mut control, &hello).await.expect("sends");
    let answer = stream::expect_message::<CoordinatorMessage>(&mut messages).await;
    assert_eq!(refused(answer.expect_err("refused")), ErrorCode::TenantSuspended);
}

#[test]
fn a_job_is_steered_from_the_command_line_and_another_starts_from_its_model() {
    let mut coordinator = Coordinator::start();
    coordinator.submit(&job("points", 2, 2));
    assert_eq!(coordinator.ask(&["job", "pause", "points"])["state"], "paused");
    coordinator.kill();
    coordinator.serve();
    let shown = coordinator.ask(&["job", "show", "points"]);
    assert_eq!(
        (&shown["state"], &shown["waiting_for"]),
        (&"paused".into(), &"to be resumed".into())
    );
    let resumed = coordinator.ask(&["job", "resume", "points"]);
    assert!(resumed["waits_until"].is_u64(), "{resumed}");
    assert_eq!(coordinator.ask(&["job", "priority", "points", "-5"])["priority"], -5);
    assert_eq!(coordinator.ask(&["model", "promote", "points", "0"])["served"], true);
    let back = coordinator.command(&["model", "rollback", "points"]);
    let message = String::from_utf8_lossy(&back.stderr).into_owned();
    assert!(!back.status.success() && message.contains("nothing before it"), "{message}");
    let models = coordinator.ask(&["model", "list"]);
    let digest = models[0]["digest"].as_str().expect("text").to_owned();
    let file = coordinator.path("next.toml");
    std::fs::write(&file, job("next", 1, 2)).expect("writes");
    let file = file.to_str().expect("text").to_owned();
    let _ = coordinator.ask(&["job", "submit", &file, "--start-from", &digest]);
    let models = coordinator.get("/v1/models");
    let started = models.as_array().expect("a list").iter().find(|model| model["job"] == "next");
    let started = started.expect("version 0");
    assert_eq!(
        (&started["digest"], &started["parent"]),
        (&digest.as_str().into(), &digest.as_str().into())
    );
    assert_eq!(coordinator.ask(&["job", "stop", "points"])["state"], "stopped");
}
