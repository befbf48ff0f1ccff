//! Hot rotation of certificates, at both ends.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
};

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

/// A connection to the HTTP API that stays open between requests.
struct ApiConnection(rustls::StreamOwned<rustls::ClientConnection, TcpStream>);

impl ApiConnection {
    fn open(coordinator: &Coordinator, authority: &str) -> Self {
        let authority = CertificateDer::from_pem_slice(authority.as_bytes()).expect("PEM");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority).expect("an authority");
        let config = rustls::ClientConfig::builder().with_root_certificates(roots);
        let config = Arc::new(config.with_no_client_auth());
        let name = "localhost".try_into().expect("a name");
        let tls = rustls::ClientConnection::new(config, name).expect("a connection");
        let address = coordinator.api().strip_prefix("https://").expect("TLS").to_owned();
        let mut open =
            Self(rustls::StreamOwned::new(tls, TcpStream::connect(address).expect("up")));
        open.ask();
        open
    }

    /// Asks something that needs no token, and reads the whole answer.
    fn ask(&mut self) {
        let request = b"GET /v1/sign-in HTTP/1.1\r\nhost: localhost\r\n\r\n";
        self.0.write_all(request).expect("the connection lives");
        let mut answer = Vec::new();
        let text = loop {
            let mut byte = [0];
            self.0.read_exact(&mut byte).expect("an answer");
            answer.extend(byte);
            if answer.ends_with(b"\r\n\r\n") {
                break String::from_utf8(answer).expect("text").to_lowercase();
            }
        };
        assert!(text.starts_with("http/1.1 200"), "{text}");
        let length = text.split("content-length: ").nth(1).expect("a length");
        let length = length.split("\r\n").next().expect("a line").parse().expect("a number");
        self.0.read_exact(&mut vec![0; length]).expect("the body");
    }

    /// The certificate that it was shown.
    fn shown(&self) -> Vec<u8> {
        self.0.conn.peer_certificates().expect("a chain")[0].to_vec()
    }
}

/// A certificate for localhost that signs itself.
fn self_signed() -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(["localhost".to_owned()]).expect("parameters");
    (params.self_signed(&key).expect("signs").pem(), key.serialize_pem())
}

fn hang_up(coordinator: &Coordinator) {
    let process = coordinator.process().to_string();
    let sent = std::process::Command::new("kill").args(["-HUP", &process]).status();
    assert!(sent.expect("kill runs").success());
}

/// How often the log says so.
fn said(coordinator: &Coordinator, words: &str) -> usize {
    coordinator.log_text().matches(words).count()
}

#[test]
fn the_api_shows_a_new_certificate_after_sighup_and_open_connections_live_on() {
    const NEWEST: &str = "new connections to the HTTP API see";
    let mut coordinator = Coordinator::start();
    let read = |coordinator: &Coordinator, name: &str| {
        fs::read_to_string(coordinator.path(name)).expect("reads")
    };
    // Of the coordinator's own authority.
    coordinator.reconfigure("[api]\ntls = \"authority\"");
    let authority = read(&coordinator, "authority.pem");
    let mut before = ApiConnection::open(&coordinator, &authority);
    hang_up(&coordinator);
    until("another certificate", 10, || (said(&coordinator, NEWEST) == 1).then_some(()));
    let after = ApiConnection::open(&coordinator, &authority);
    assert_ne!(after.shown(), before.shown());
    before.ask();

    // From elsewhere.
    let (first, key) = self_signed();
    fs::write(coordinator.path("api.pem"), &first).expect("writes");
    fs::write(coordinator.path("api.key"), key).expect("writes");
    let files = "[api.tls.files]\ncertificate = \"api.pem\"\nkey = \"api.key\"";
    coordinator.reconfigure(files);
    let mut before = ApiConnection::open(&coordinator, &first);
    let (second, key) = self_signed();
    fs::write(coordinator.path("api.pem"), &second).expect("writes");
    hang_up(&coordinator);
    until("a complaint", 10, || {
        // The key is still the first one's.
        (said(&coordinator, "the HTTP API's certificate stays") == 1).then_some(())
    });
    assert_eq!(ApiConnection::open(&coordinator, &first).shown(), before.shown());
    fs::write(coordinator.path("api.key"), key).expect("writes");
    hang_up(&coordinator);
    until("the second certificate", 10, || (said(&coordinator, NEWEST) == 2).then_some(()));
    let after = ApiConnection::open(&coordinator, &second);
    let expected = CertificateDer::from_pem_slice(second.as_bytes()).expect("PEM");
    assert_eq!(after.shown(), expected.to_vec());
    before.ask();
}
