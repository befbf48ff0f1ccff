//! Datagrams below QUIC.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{net::UdpSocket, task::JoinHandle};
use tributary_protocol::{
    id::Digest,
    transport::{endpoint, tls},
};

/// The largest datagram that a peer sends.
const DATAGRAM_BYTES_MAX: usize = 1 << 16;

/// The least length of a datagram with the first packet of a connection (RFC 9000, section 14.1).
const FIRST_BYTES_MIN: usize = 1200;

/// The first datagrams of connections that never go on, each of another connection.
///
/// # Panics
/// If loopback sockets cannot be used.
pub async fn first_packets(count: usize) -> Vec<Vec<u8>> {
    let sink = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let address = sink.local_addr().expect("bound");
    let tls = tls::enrollment(Digest::of(b"nobody")).expect("TLS");
    let endpoint = endpoint::client(address, tls).expect("a socket");
    let (mut packets, mut buffer) = (BTreeMap::new(), vec![0; DATAGRAM_BYTES_MAX]);
    while packets.len() < count {
        let connecting = endpoint.connect(address, "localhost").expect("connects");
        let known = packets.len();
        while packets.len() == known {
            let (length, _) = sink.recv_from(&mut buffer).await.expect("receives");
            let datagram = &buffer[..length];
            if length >= FIRST_BYTES_MIN {
                // What comes later of the same connection is that it is given up.
                let id = connection_id(datagram).to_vec();
                packets.entry(id).or_insert_with(|| datagram.to_vec());
            }
        }
        drop(connecting);
    }
    packets.into_values().collect()
}

/// The destination's connection id in a packet with a long header.
fn connection_id(datagram: &[u8]) -> &[u8] {
    let length = usize::from(datagram[5]);
    &datagram[6..6 + length]
}

/// A line between one peer and a coordinator that records what the peer sends.
#[derive(Debug)]
pub struct Line {
    address: SocketAddr,
    outside: Arc<UdpSocket>,
    recorded: Arc<Mutex<Vec<Vec<u8>>>>,
    carrying: JoinHandle<()>,
}

impl Line {
    /// Carries datagrams from here to `coordinator` and back.
    ///
    /// # Panics
    /// If loopback sockets cannot be used.
    pub async fn to(coordinator: SocketAddr) -> Self {
        let inside = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let outside = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a socket"));
        outside.connect(coordinator).await.expect("an address");
        let address = inside.local_addr().expect("bound");
        let recorded = Arc::new(Mutex::new(Vec::new()));
        let carrying = tokio::spawn(carry(inside, outside.clone(), recorded.clone()));
        Self { address, outside, recorded, carrying }
    }

    /// Where the peer connects.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends everything again that the peer sent so far, from the same address and from another;
    /// returns how many datagrams that were.
    ///
    /// # Panics
    /// If loopback sockets cannot be used.
    pub async fn replay(&self) -> usize {
        let recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let elsewhere = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        elsewhere.connect(self.outside.peer_addr().expect("connected")).await.expect("an address");
        for datagram in &recorded {
            // A full buffer drops some, as a network would.
            let _ = self.outside.send(datagram).await;
            let _ = elsewhere.send(datagram).await;
        }
        recorded.len()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.carrying.abort();
    }
}

async fn carry(inside: UdpSocket, outside: Arc<UdpSocket>, recorded: Arc<Mutex<Vec<Vec<u8>>>>) {
    let (mut there, mut back) = (vec![0; DATAGRAM_BYTES_MAX], vec![0; DATAGRAM_BYTES_MAX]);
    let mut peer = None;
    loop {
        tokio::select! {
            Ok((length, from)) = inside.recv_from(&mut there) => {
                peer = Some(from);
                let datagram = there[..length].to_vec();
                let _ = outside.send(&datagram).await;
                recorded.lock().unwrap_or_else(PoisonError::into_inner).push(datagram);
            }
            Ok(length) = outside.recv(&mut back) => {
                if let Some(peer) = peer {
                    let _ = inside.send_to(&back[..length], peer).await;
                }
            }
        }
    }
}
