//! Bytes that mean nothing: below QUIC, on every kind of stream, and in the middle of files.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use quinn::{Connection, Endpoint};
use tokio::net::UdpSocket;
use tributary_protocol::{
    codec::MESSAGE_BYTES_MAX,
    id::Digest,
    transport::{endpoint, tls},
};
use tributary_tests::peer::{Credentials, Peer, dial};

use super::{Site, elsewhere, enroll};

/// Datagrams before the round begins.
const DATAGRAMS: usize = 5_000;

/// Streams of garbage before the round begins.
const STREAMS: usize = 200;

fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    getrandom::fill(&mut bytes).expect("entropy");
    bytes
}

/// Of any length up to an Ethernet frame's; every second one looks like the begin of a connection.
fn datagram(number: usize) -> Vec<u8> {
    let [low, high, ..] = random(2)[..] else { unreachable!("two bytes") };
    let length = 1 + (usize::from(low) | usize::from(high) << 8) % 1400;
    let mut bytes = random(length);
    if number.is_multiple_of(2) {
        bytes[0] |= 0b1100_0000;
        if length >= 5 {
            bytes[1..5].copy_from_slice(&1_u32.to_be_bytes());
        }
    }
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_datagrams_stop_nobody() {
    let site = Site::new().await;
    let address = site.quic();
    site.withstand(async move |under_way| {
        let socket = UdpSocket::bind("127.0.0.2:0").await.expect("a socket");
        let mut under_way = Some(under_way);
        for number in 0.. {
            socket.send_to(&datagram(number), address).await.expect("sends");
            if number == DATAGRAMS {
                under_way.take().expect("once").send(()).expect("somebody waits");
            }
            // The honest agents run on the same machine.
            if number.is_multiple_of(64) {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_every_kind_of_stream_stops_nobody() {
    let site = Site::new().await;
    let hostile = enroll(&site.coordinator, "hostile", "us").await;
    let address = site.quic();
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    site.withstand(async move |under_way| {
        let endpoint = elsewhere(2);
        let mut under_way = Some(under_way);
        loop {
            enrolling(address, &hostile).await;
            controlling(&endpoint, address, &hostile).await;
            transferring(address, &hostile, &count).await;
            if count.load(Ordering::Relaxed) >= STREAMS
                && let Some(under_way) = under_way.take()
            {
                under_way.send(()).expect("somebody waits");
            }
        }
    })
    .await;
    assert!(sent.load(Ordering::Relaxed) >= STREAMS);
}

/// Garbage in place of a request for a certificate.
async fn enrolling(address: SocketAddr, credentials: &Credentials) {
    let tls = tls::enrollment(Digest::of(&credentials.authority)).expect("TLS");
    let endpoint = endpoint::client(address, tls).expect("a socket");
    let connection = endpoint.connect(address, "localhost").expect("connects").await;
    garbage(&connection.expect("anybody may try"), 500).await;
}

/// Garbage in place of a hello, behind a valid certificate.
async fn controlling(endpoint: &Endpoint, address: SocketAddr, credentials: &Credentials) {
    // Refused while too many of those before are still there.
    let Ok(connection) = dial(endpoint, address, credentials).await else { return };
    garbage(&connection, 500).await;
    connection.closed().await;
}

/// Garbage in place of requests, after a hello; lengths that lie among it.
async fn transferring(address: SocketAddr, credentials: &Credentials, count: &AtomicUsize) {
    let Ok(mut peer) = Peer::connect(address, credentials).await else { return };
    if peer.next().await.is_err() {
        return;
    }
    for number in 0..STREAMS / 4 {
        let length = [3, 40, MESSAGE_BYTES_MAX + 7][number % 3];
        garbage(&peer.connection, length).await;
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Opens a stream, writes until it is stopped, and waits for what comes back.
async fn garbage(connection: &Connection, length: usize) {
    let Ok((mut send, mut receive)) = connection.open_bi().await else { return };
    if send.write_all(&random(length)).await.is_ok() {
        let _ = send.finish();
    }
    let _ = receive.read_to_end(MESSAGE_BYTES_MAX).await;
}
