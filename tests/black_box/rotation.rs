//! Hot rotation of certificates, at both ends.

use std::fs;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tributary_protocol::{
    error_code::ErrorCode,
    message::{AgentMessage, CoordinatorMessage, EnrollmentResponse},
    transport::tls::Identity,
};
use tributary_tests::{
    coordinator::Coordinator,
    peer::{Credentials, Peer},
    wait::until,
};

use crate::{credentials, refused};

async fn welcomed(coordinator: &Coordinator, credentials: &Credentials) -> Peer {
    let mut peer = Peer::connect(coordinator.quic(), credentials).await.expect("connects");
    assert!(matches!(peer.next().await, Ok(CoordinatorMessage::Welcome(_))));
    peer
}

async fn renewal(peer: &mut Peer, signing_request: Vec<u8>) -> EnrollmentResponse {
    peer.say(&AgentMessage::Renew { signing_request }).await;
    match peer.next().await.expect("an answer") {
        CoordinatorMessage::Renewal(answer) => answer,
        other => panic!("{other:?}"),
    }
}

fn request(key: &KeyPair) -> Vec<u8> {
    let params = CertificateParams::new(vec![]).expect("parameters");
    params.serialize_request(key).expect("a request").der().to_vec()
}

#[tokio::test]
async fn an_agent_renews_on_its_live_connection_and_the_old_certificate_ends_with_the_new_one() {
    let mut coordinator = Coordinator::start();
    let old = credentials(&coordinator, "alpha").await;
    let mut peer = welcomed(&coordinator, &old).await;
    let garbage = renewal(&mut peer, b"garbage".to_vec()).await;
    let EnrollmentResponse::Refused(refusal) = garbage else { panic!("{garbage:?}") };
    assert_eq!(refusal.code, ErrorCode::SigningRequestInvalid);
    let key = KeyPair::generate().expect("a key");
    let answer = renewal(&mut peer, request(&key)).await;
    let EnrollmentResponse::Issued { certificates } = answer else { panic!("{answer:?}") };
    let chain: Vec<CertificateDer<'static>> =
        certificates[..1].iter().cloned().map(CertificateDer::from).collect();
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS#8");
    let identity = Identity { chain, key };
    let new = Credentials { identity, authority: old.authority.clone() };

    // If the answer had been lost, the old one would still work, also after a restart.
    coordinator.kill();
    coordinator.serve();
    drop(welcomed(&coordinator, &old).await);
    let mut live = welcomed(&coordinator, &new).await;
    let mut late = Peer::connect(coordinator.quic(), &old).await.expect("TLS accepts it");
    let refusal = refused(late.next().await.expect_err("replaced"));
    assert_eq!(refusal, ErrorCode::CertificateNotRegistered);
    let _ = coordinator.ask(&["tenant", "revoke", "alpha", "--reason", "lost"]);
    assert_eq!(refused(live.next().await.expect_err("cut")), ErrorCode::TenantRevoked);
}

fn shown(peer: &Peer) -> Vec<u8> {
    let chain = peer.connection.peer_identity().expect("a certificate");
    let chain = chain.downcast::<Vec<CertificateDer<'static>>>().expect("a chain");
    chain[0].to_vec()
}

#[tokio::test]
async fn the_coordinator_renews_its_own_certificate_without_dropping_a_connection() {
    let mut coordinator = Coordinator::start();
    let alpha = credentials(&coordinator, "alpha").await;
    let beta = credentials(&coordinator, "beta").await;
    coordinator.kill();
    // A certificate of the same key with less than a third of its time left: in force at the next
    // SIGHUP, which renews it.
    let read = |name: &str| fs::read_to_string(coordinator.path(name)).expect("reads");
    let authority = CertificateDer::from_pem_slice(read("authority.pem").as_bytes());
    let authority_key = KeyPair::from_pem(&read("authority.key")).expect("a key");
    let issuer = Issuer::from_ca_cert_der(&authority.expect("a certificate"), authority_key);
    let server_key = KeyPair::from_pem(&read("server.key")).expect("a key");
    let hosts = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut params = CertificateParams::new(hosts).expect("parameters");
    params.distinguished_name.push(DnType::CommonName, "Tributary coordinator");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::days(300);
    params.not_after = now + time::Duration::days(10);
    let ageing = params.signed_by(&server_key, &issuer.expect("an issuer")).expect("signs");
    let first = read("server.pem");
    coordinator.serve();
    let mut before = welcomed(&coordinator, &alpha).await;
    fs::write(coordinator.path("server.pem"), ageing.pem()).expect("writes");
    let process = coordinator.process().to_string();
    let sent = std::process::Command::new("kill").args(["-HUP", &process]).status();
    assert!(sent.expect("kill runs").success());
    let renewed = until("a renewed certificate", 10, || {
        let now = fs::read_to_string(coordinator.path("server.pem")).ok()?;
        (now != ageing.pem() && now != first).then_some(now)
    });
    let renewed = CertificateDer::from_pem_slice(renewed.as_bytes()).expect("a certificate");
    until("new connections that see it", 10, || {
        coordinator.log_text().contains("new connections see").then_some(())
    });
    let after = welcomed(&coordinator, &beta).await;
    assert_eq!(shown(&after), renewed.to_vec());
    assert_ne!(shown(&before), renewed.to_vec());
    // The first connection lives on: it is answered.
    let answer = renewal(&mut before, b"garbage".to_vec()).await;
    assert!(matches!(answer, EnrollmentResponse::Refused(_)));
}
