//! Accepts QUIC connections and sorts them by what they may do.

use std::time::Duration;

use quinn::{Connection, Endpoint, Incoming, crypto::rustls::HandshakeData};
use rustls::pki_types::CertificateDer;
use tracing::debug;
use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    transport::endpoint::close,
    version::ALPN_ENROLLMENT,
};

use super::{
    CoreHandle, enrollment,
    gate::{Entry, Gate},
    room::Room,
    session,
};

/// A handshake may take this long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves connections until the endpoint is closed.
pub async fn listen(endpoint: Endpoint, core: CoreHandle) {
    let (gate, room) = (Gate::default(), Room::new());
    while let Some(incoming) = endpoint.accept().await {
        let address = incoming.remote_address().ip();
        // A peer that brought its address along cannot be asked for it again.
        let validated = incoming.remote_address_validated() || !incoming.may_retry();
        let pass = match gate.enter(address, validated) {
            Entry::Begin(pass) => pass,
            Entry::Validate => {
                let _ = incoming.retry();
                continue;
            }
            Entry::Refuse => {
                incoming.refuse();
                continue;
            }
        };
        let (core, gate, room) = (core.clone(), gate.clone(), room.clone());
        tokio::spawn(async move {
            let remote = incoming.remote_address();
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(incoming)).await {
                Ok(Ok((connection, Peer::Agent(certificate)))) => {
                    drop(pass);
                    session::run(connection, certificate, core, &gate, room).await;
                }
                Ok(Ok((connection, Peer::Enrolling))) => enrollment::run(connection, core).await,
                Ok(Ok((connection, Peer::Anonymous))) => {
                    let message =
                        "this connection needs a client certificate; enrol the agent first";
                    close(&connection, &Refusal::new(ErrorCode::CertificateRequired, message));
                }
                // Anybody can cause as many of these as they like.
                Ok(Err(error)) => debug!(%remote, %error, "handshake failed"),
                Err(_) => debug!(%remote, "handshake timed out"),
            }
        });
    }
}

enum Peer {
    Agent(CertificateDer<'static>),
    Enrolling,
    Anonymous,
}

async fn handshake(incoming: Incoming) -> Result<(Connection, Peer), quinn::ConnectionError> {
    let connection = incoming.await?;
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    let protocol = data.and_then(|data| data.protocol);
    if protocol.as_deref() == Some(ALPN_ENROLLMENT) {
        return Ok((connection, Peer::Enrolling));
    }
    let certificates = connection
        .peer_identity()
        .and_then(|peer| peer.downcast::<Vec<CertificateDer<'static>>>().ok());
    let peer = match certificates.and_then(|chain| chain.into_iter().next()) {
        Some(certificate) => Peer::Agent(certificate),
        None => Peer::Anonymous,
    };
    Ok((connection, peer))
}
