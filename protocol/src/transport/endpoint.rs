//! QUIC endpoints with the limits and timeouts that both sides share.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use quinn::{
    ClientConfig, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, Runtime, ServerConfig,
    TokioRuntime, TransportConfig, VarInt,
    crypto::{
        CryptoError, HmacKey,
        rustls::{QuicClientConfig, QuicServerConfig},
    },
};
use quinn_proto::HashedConnectionIdGenerator;
use socket2::SockRef;

use super::{TransportError, sparing::Sparing};
use crate::error_code::{ErrorCode, Refusal};

/// A peer that is silent for this long is gone, unless a coordinator's configuration says otherwise.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The shortest idle timeout: an agent must be heard of a few times in it.
pub const IDLE_TIMEOUT_MIN: Duration = Duration::from_secs(5);

/// How often an agent's idle connection proves that it lives; the answer shows that the
/// coordinator does.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_millis(1500);

/// Resets for connections that an earlier process had are this far apart at least.
const RESET_INTERVAL: Duration = Duration::from_millis(1);

/// Unread bytes that an agent's connection may hold in memory, and as many that it sent and that are
/// not acknowledged.
const AGENT_WINDOW_BYTES: u32 = 8 << 20;

/// The same for a connection of the coordinator, which has many: enough for messages, and for a file
/// at the pace of a slow line.
const NARROW_WINDOW_BYTES: u32 = 64 << 10;

/// The same while the connection has a place among the few that transfer at full speed.
const WIDE_WINDOW_BYTES: u32 = 512 << 10;

/// The largest UDP payload that is tried, in bytes: what a jumbo frame holds beside its headers. What a
/// path carries is found out by probes that nothing depends on, from [`quinn`]'s 1200 bytes upwards.
const PAYLOAD_BYTES_MAX: u16 = 8952;

/// What a connection of the coordinator hands to the kernel at once, in bytes: a buffer for as much stays
/// with each that ever sent a file. This is one of the largest packets, or eight of the smallest; a bound
/// between those would let the buffer grow to twice the first of them.
const SEND_BYTES: usize = 9600;

/// What the kernel should keep for a socket while the process does something else; it may grant less.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Connections that have sent a first packet and are not accepted or turned away yet; beyond that they
/// are refused without any state.
const INCOMING_MAX: usize = 1024;

/// What may arrive on a connection before it is accepted, and on all of them together, in bytes.
const INCOMING_BYTES: (u64, u64) = (16 << 10, 8 << 20);

/// Bytes of TLS messages that a connection may have sent out of order.
const CRYPTO_BUFFER_BYTES: usize = 16 << 10;

/// Streams that a peer may have open at once: control, an upload, a download, and one to spare.
const STREAMS_MAX: u32 = 4;

/// How an endpoint that listens treats its connections.
#[derive(Debug, Clone, Copy)]
pub struct Listening {
    /// After how long a silence an agent is gone; at least [`IDLE_TIMEOUT_MIN`].
    pub idle_timeout: Duration,
    /// A secret that is the same after a restart: agents of an earlier process then hear at once that
    /// their connections are gone, instead of waiting for an answer that never comes.
    pub reset_secret: Option<[u8; 32]>,
}

impl Default for Listening {
    fn default() -> Self {
        Self { idle_timeout: IDLE_TIMEOUT, reset_secret: None }
    }
}

/// - `window`: for what is received and for what is sent, in bytes
fn transport(
    idle_timeout: Duration,
    keep_alive: Option<Duration>,
    window: u32,
) -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    let idle_ms = u32::try_from(idle_timeout.as_millis()).unwrap_or(u32::MAX);
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(PAYLOAD_BYTES_MAX);
    transport
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle_ms))))
        .keep_alive_interval(keep_alive)
        // That of the connection is the smaller one, always.
        .stream_receive_window(VarInt::from_u32(AGENT_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(window))
        .send_window(window.into())
        .crypto_buffer_size(CRYPTO_BUFFER_BYTES)
        .mtu_discovery_config(Some(discovery))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    Arc::new(transport)
}

fn endpoint_config() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(PAYLOAD_BYTES_MAX).expect("more than the least of 1200");
    config
}

fn socket(address: SocketAddr) -> Result<std::net::UdpSocket, TransportError> {
    let socket = std::net::UdpSocket::bind(address)
        .map_err(|source| TransportError::Bind { address, source })?;
    let buffers = SockRef::from(&socket);
    // Best effort: what is dropped for want of room is sent again.
    let _ = buffers.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = buffers.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    Ok(socket)
}

/// Lets a coordinator's connection transfer at full speed.
pub fn widen(connection: &quinn::Connection) {
    set_window(connection, WIDE_WINDOW_BYTES);
}

/// Takes [`widen`] back: what the peer was allowed to send before may still come.
pub fn narrow(connection: &quinn::Connection) {
    set_window(connection, NARROW_WINDOW_BYTES);
}

fn set_window(connection: &quinn::Connection, bytes: u32) {
    connection.set_receive_window(VarInt::from_u32(bytes));
    connection.set_send_window(bytes.into());
}

/// Listens for agents.
///
/// # Errors
/// [`TransportError::Bind`] if the address is taken, [`TransportError::CipherSuite`] if TLS cannot carry QUIC.
pub fn listen(
    address: SocketAddr,
    tls: rustls::ServerConfig,
    listening: &Listening,
) -> Result<Endpoint, TransportError> {
    let config = server_config(tls, listening.idle_timeout)?;
    let mut endpoint = endpoint_config();
    if let Some(secret) = &listening.reset_secret {
        let key = ResetKey(blake3::derive_key(RESET_CONTEXT, secret));
        let ids = u64::from_le_bytes(*key.sign(b"connection ids").first_chunk().expect("32 bytes"));
        endpoint
            .reset_key(Arc::new(key))
            .cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)))
            .min_reset_interval(RESET_INTERVAL);
    }
    let runtime = Arc::new(TokioRuntime);
    let bind = |source| TransportError::Bind { address, source };
    let socket = runtime.wrap_udp_socket(socket(address)?).map_err(bind)?;
    let socket = Arc::new(Sparing::new(socket, SEND_BYTES));
    Endpoint::new_with_abstract_socket(endpoint, Some(config), socket, runtime).map_err(bind)
}

/// What an endpoint that listens shows to connections from now on; open ones stay as they are.
///
/// # Errors
/// [`TransportError::CipherSuite`] if TLS cannot carry QUIC.
pub fn server_config(
    tls: rustls::ServerConfig,
    idle_timeout: Duration,
) -> Result<ServerConfig, TransportError> {
    let crypto = QuicServerConfig::try_from(tls).map_err(TransportError::CipherSuite)?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    // Agents keep their connections alive, so one side's packets are enough.
    config
        .transport_config(transport(idle_timeout, None, NARROW_WINDOW_BYTES))
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES.0)
        .incoming_buffer_size_total(INCOMING_BYTES.1);
    Ok(config)
}

/// Separates the keys of resets from all others.
const RESET_CONTEXT: &str = "tributary 2026 QUIC stateless reset, version 1";

/// Makes the tokens of resets.
struct ResetKey([u8; 32]);

impl ResetKey {
    fn sign(&self, data: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.0, data).as_bytes()
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(&self.sign(data));
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let expected = blake3::keyed_hash(&self.0, data);
        let given = <[u8; 32]>::try_from(signature).map_err(|_| CryptoError)?;
        // Comparison of `Hash` takes constant time.
        if expected == blake3::Hash::from(given) { Ok(()) } else { Err(CryptoError) }
    }
}

/// Prepares an endpoint that connects to a coordinator.
///
/// # Errors
/// [`TransportError::Bind`] or [`TransportError::CipherSuite`].
pub fn client(remote: SocketAddr, tls: rustls::ClientConfig) -> Result<Endpoint, TransportError> {
    let config = client_config(tls)?;
    let address: SocketAddr =
        if remote.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let runtime = Arc::new(TokioRuntime);
    let bind = |source| TransportError::Bind { address, source };
    let socket = runtime.wrap_udp_socket(socket(address)?).map_err(bind)?;
    let socket = Arc::new(Sparing::new(socket, usize::MAX));
    let mut endpoint = Endpoint::new_with_abstract_socket(endpoint_config(), None, socket, runtime)
        .map_err(bind)?;
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}

/// What one connection of an endpoint that connects shows and trusts, where they differ.
///
/// # Errors
/// [`TransportError::CipherSuite`] if TLS cannot carry QUIC.
pub fn client_config(tls: rustls::ClientConfig) -> Result<ClientConfig, TransportError> {
    let crypto = QuicClientConfig::try_from(tls).map_err(TransportError::CipherSuite)?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    let window = AGENT_WINDOW_BYTES;
    config.transport_config(transport(IDLE_TIMEOUT, Some(KEEP_ALIVE_INTERVAL), window));
    Ok(config)
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
