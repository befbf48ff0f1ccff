//! QUIC endpoints with the limits and timeouts that both sides share.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use quinn::{
    ClientConfig, Endpoint, IdleTimeout, ServerConfig, TransportConfig, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};

use super::TransportError;
use crate::error_code::{ErrorCode, Refusal};

/// A peer that is silent for this long is gone.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// How often an idle connection proves that it lives.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Unacknowledged bytes a peer may have in flight on one stream.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;

/// Unread bytes that a connection may hold in memory.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// Streams that a peer may have open at once: control, an upload, a download, and one to spare.
const STREAMS_MAX: u32 = 4;

fn transport() -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::from(
            VarInt::from_u32(IDLE_TIMEOUT.as_millis() as u32),
        )))
        .keep_alive_interval(Some(KEEP_ALIVE_INTERVAL))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    Arc::new(transport)
}

/// Listens for agents.
///
/// # Errors
/// [`TransportError::Bind`] if the address is taken, [`TransportError::CipherSuite`] if TLS cannot carry QUIC.
pub fn listen(address: SocketAddr, tls: rustls::ServerConfig) -> Result<Endpoint, TransportError> {
    let crypto = QuicServerConfig::try_from(tls).map_err(TransportError::CipherSuite)?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport());
    Endpoint::server(config, address).map_err(|source| TransportError::Bind { address, source })
}

/// Prepares an endpoint that connects to a coordinator.
///
/// # Errors
/// [`TransportError::Bind`] or [`TransportError::CipherSuite`].
pub fn client(remote: SocketAddr, tls: rustls::ClientConfig) -> Result<Endpoint, TransportError> {
    let crypto = QuicClientConfig::try_from(tls).map_err(TransportError::CipherSuite)?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport());
    let address: SocketAddr =
        if remote.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let mut endpoint =
        Endpoint::client(address).map_err(|source| TransportError::Bind { address, source })?;
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}

/// Closes a connection with a refusal that the peer can show.
pub fn close(connection: &quinn::Connection, refusal: &Refusal) {
    connection.close(VarInt::from_u32(refusal.code.number().into()), refusal.message.as_bytes());
}

/// The refusal with which the peer closed the connection, if it gave one.
#[must_use]
pub fn refusal(error: &quinn::ConnectionError) -> Option<Refusal> {
    let quinn::ConnectionError::ApplicationClosed(close) = error else { return None };
    let number = u16::try_from(close.error_code.into_inner()).ok()?;
    Some(Refusal::new(ErrorCode::from_number(number), String::from_utf8_lossy(&close.reason)))
}
