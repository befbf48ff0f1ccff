//! Suspension and revocation over real connections.

use tributary_protocol::{error_code::ErrorCode, message::CoordinatorMessage};
use tributary_tests::{coordinator::Coordinator, peer::Peer};

use crate::{credentials, refused};

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
