//! Hot rotation: a certificate is replaced over the live connection.

use rcgen::CertificateParams;
use time::{Duration, OffsetDateTime};
use tributary_agent::{identity::Identity, site::Site};
use tributary_protocol::message::{
    AgentMessage, CoordinatorMessage, EnrollmentResponse, LedgerHead,
};

use crate::{LIMIT, Stage, coordinator::Coordinator};

/// Valid for half an hour more, which is less than a third of its time.
fn nearly_over(params: &mut CertificateParams) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::hours(2);
    params.not_after = now + Duration::minutes(30);
}

fn fresh(params: &mut CertificateParams) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::hours(1);
    params.not_after = now + Duration::days(90);
}

fn on_disk(stage: &Stage) -> Vec<u8> {
    let identity = Identity::load(&Site::new(stage.directory.path())).unwrap();
    identity.tls.chain[0].to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_renewed_over_the_live_connection_and_shown_by_the_next() {
    let conversation = async {
        let stage = Stage::enrolled_with(nearly_over).await;
        let before = on_disk(&stage);
        let running = stage.run();
        let mut session = stage.coordinator.welcome(LedgerHead::EMPTY).await;
        assert_eq!(session.shown(), before);
        let asked = session.hear().await;
        let AgentMessage::Renew { signing_request } = asked else { panic!("{asked:?}") };
        let certificates = stage.coordinator.certify(signing_request, fresh);
        let leaf = certificates[0].clone();
        session
            .tell(CoordinatorMessage::Renewal(EnrollmentResponse::Issued { certificates }))
            .await;
        let session = stage.coordinator.welcome(LedgerHead::EMPTY).await;
        assert_eq!(session.shown(), leaf);
        assert_eq!(on_disk(&stage), leaf);
        running.stop().await;
    };
    tokio::time::timeout(LIMIT, conversation).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_authority_is_not_taken_over() {
    let conversation = async {
        let (stage, stranger) = (Stage::enrolled_with(nearly_over).await, Coordinator::start());
        let before = on_disk(&stage);
        let running = stage.run();
        let mut session = stage.coordinator.welcome(LedgerHead::EMPTY).await;
        let asked = session.hear().await;
        let AgentMessage::Renew { signing_request } = asked else { panic!("{asked:?}") };
        let certificates = stranger.certify(signing_request, fresh);
        session
            .tell(CoordinatorMessage::Renewal(EnrollmentResponse::Issued { certificates }))
            .await;
        // A later question on the same connection is answered, so the agent stayed as it was.
        session.tell(crate::configure(1)).await;
        assert!(matches!(session.hear().await, AgentMessage::Accept { .. }));
        assert_eq!(on_disk(&stage), before);
        running.stop().await;
    };
    tokio::time::timeout(LIMIT, conversation).await.unwrap();
}
