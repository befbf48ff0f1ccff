//! Accepts QUIC connections and sorts them by what they may do.

use std::{sync::Arc, time::Duration};

use quinn::{Connection, Endpoint, Incoming, crypto::rustls::HandshakeData};
use rustls::pki_types::CertificateDer;
use tokio::sync::Semaphore;
use tracing::{debug, warn};
use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    transport::endpoint::close,
    version::ALPN_ENROLLMENT,
};

use super::{CoreHandle, enrollment, session};

/// Handshakes and enrolments under way at once; further ones wait or are dropped.
const HANDSHAKES_MAX: usize = 256;

/// A handshake may take this long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves connections until the endpoint is closed.
pub async fn listen(endpoint: Endpoint, core: CoreHandle) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    while let Some(incoming) = endpoint.accept().await {
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let core = core.clone();
        tokio::spawn(async move {
            let remote = incoming.remote_address();
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(incoming)).await {
                Ok(Ok((connection, Peer::Agent(certificate)))) => {
                    drop(permit);
                    session::run(connection, certificate, core).await;
                }
                Ok(Ok((connection, Peer::Enrolling))) => enrollment::run(connection, core).await,
                Ok(Ok((connection, Peer::Anonymous))) => {
                    let message =
                        "this connection needs a client certificate; enrol the agent first";
                    close(&connection, &Refusal::new(ErrorCode::CertificateRequired, message));
                }
                Ok(Err(error)) => warn!(%remote, %error, "handshake failed"),
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
