//! HTTPS: a listener that hands out connections whose TLS handshake is done.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::serve::Listener;
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tracing::debug;

/// Handshakes under way at once; further connections wait in the system's queue.
const HANDSHAKES_MAX: usize = 64;

/// A handshake may take this long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait after the system refused a connection (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Says why the listener cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsListenerError {
    /// The socket has no address.
    #[error("the API's socket cannot be used")]
    Socket(#[from] io::Error),
}

/// Accepts TLS connections; a slow handshake delays nobody else.
#[derive(Debug)]
pub struct TlsListener {
    address: SocketAddr,
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
}

impl TlsListener {
    /// Starts to accept.
    ///
    /// - `config`: what the next connection sees; those that are open keep what they saw
    ///
    /// # Errors
    /// [`TlsListenerError`].
    pub fn new(
        listener: TcpListener,
        config: watch::Receiver<Arc<rustls::ServerConfig>>,
    ) -> Result<Self, TlsListenerError> {
        let address = listener.local_addr()?;
        let (connections, ready) = mpsc::channel(HANDSHAKES_MAX);
        tokio::spawn(accept(listener, config, connections));
        Ok(Self { address, ready })
    }
}

async fn accept(
    listener: TcpListener,
    config: watch::Receiver<Arc<rustls::ServerConfig>>,
    connections: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    while !connections.is_closed() {
        let permit = handshakes.clone().acquire_owned().await.expect("never closed");
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let acceptor = TlsAcceptor::from(config.borrow().clone());
        let connections = connections.clone();
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => drop(connections.send((stream, remote)).await),
                Ok(Err(error)) => debug!(%remote, %error, "TLS handshake failed"),
                Err(_) => debug!(%remote, "TLS handshake timed out"),
            }
            drop(permit);
        });
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            // The accepting task ends only with this receiver.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(self.address)
    }
}
