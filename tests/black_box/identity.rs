//! Tokens and certificates: only the right ones open a session.

use rcgen::{CertificateParams, DnType, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tributary_protocol::{
    enrollment::EnrollmentToken, error_code::ErrorCode, transport::tls::Identity,
};
use tributary_tests::{
    coordinator::Coordinator,
    peer::{self, Credentials, Peer},
};

use crate::{credentials, refused};

#[tokio::test]
async fn a_token_admits_once_and_only_with_its_secret() {
    let coordinator = Coordinator::start();
    let token: EnrollmentToken = coordinator.add_tenant("alpha").parse().expect("a token");
    let wrong = EnrollmentToken { secret: [9; 32], ..token.clone() };
    let refusal = peer::enroll(coordinator.quic(), &wrong).await.expect_err("a guessed secret");
    assert_eq!(refusal.code, ErrorCode::TokenUnknown);
    peer::enroll(coordinator.quic(), &token).await.expect("admitted");
    let refusal = peer::enroll(coordinator.quic(), &token).await.expect_err("used");
    assert_eq!(refusal.code, ErrorCode::TokenUsed);
    assert!(refusal.message.contains("tenant add"), "{refusal}");
}

#[tokio::test]
async fn a_replaced_certificate_is_refused_by_code() {
    let coordinator = Coordinator::start();
    let old = credentials(&coordinator, "alpha").await;
    let _new = credentials(&coordinator, "alpha").await;
    let mut peer = Peer::connect(coordinator.quic(), &old).await.expect("TLS accepts it");
    let refusal = refused(peer.next().await.expect_err("closed"));
    assert_eq!(refusal, ErrorCode::CertificateNotRegistered);
}

#[tokio::test]
async fn foreign_and_expired_certificates_do_not_pass_tls() {
    let coordinator = Coordinator::start();
    let honest = credentials(&coordinator, "alpha").await;
    let own = Issuer::new(CertificateParams::default(), KeyPair::generate().expect("a key"));
    let now = time::OffsetDateTime::now_utc();
    let foreign = issue(&own, now + time::Duration::days(1));
    let authority_key = std::fs::read_to_string(coordinator.path("authority.key")).expect("a key");
    let authority_key = KeyPair::from_pem(&authority_key).expect("a key");
    let authority = std::fs::read(coordinator.path("authority.pem")).expect("a certificate");
    let authority = CertificateDer::from_pem_slice(&authority).expect("a certificate");
    let real = Issuer::from_ca_cert_der(&authority, authority_key).expect("the authority");
    let expired = issue(&real, now - time::Duration::days(1));
    for (expected, identity) in [("UnknownIssuer", foreign), ("certificate expired", expired)] {
        let credentials = Credentials { identity, authority: honest.authority.clone() };
        let error = match Peer::connect(coordinator.quic(), &credentials).await {
            Err(error) => error,
            Ok(mut peer) => peer.next().await.expect_err("TLS refuses it"),
        };
        let reason = format!("{error:?}");
        assert!(reason.contains(expected), "{reason}");
    }
    Peer::connect(coordinator.quic(), &honest).await.expect("the honest one still connects");
}

fn issue(issuer: &Issuer<'_, KeyPair>, not_after: time::OffsetDateTime) -> Identity {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "alpha");
    params.not_before = not_after - time::Duration::days(30);
    params.not_after = not_after;
    let certificate = params.signed_by(&key, issuer).expect("signs").der().clone();
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS#8");
    Identity { chain: vec![certificate], key }
}
