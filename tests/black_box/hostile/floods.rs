//! More connections than anybody needs.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::net::UdpSocket;
use tributary_protocol::{
    error_code::ErrorCode,
    id::Digest,
    transport::{endpoint, tls},
};
use tributary_tests::{
    peer::{Credentials, Peer, dial},
    wire,
};

use super::{Site, elsewhere, enroll};

/// First packets of connections that never go on.
const FIRST_PACKETS: usize = 2_000;

/// Their senders.
const ADDRESSES: u8 = 20;

/// Connections without a certificate.
const ANONYMOUS: usize = 300;

/// Connections of one tenant that say nothing.
const SILENT: usize = 40;

/// Connections that a tenant may have (`CONNECTIONS_PER_TENANT_MAX` of the coordinator).
const PER_TENANT_MAX: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_packets_of_thousands_of_connections_stop_nobody() {
    let site = Site::new().await;
    let (address, packets) = (site.quic(), wire::first_packets(FIRST_PACKETS).await);
    site.withstand(async move |under_way| {
        let mut sockets = Vec::new();
        for last in 2..2 + ADDRESSES {
            let any = SocketAddr::from(([127, 0, 0, last], 0));
            sockets.push(UdpSocket::bind(any).await.expect("a loopback address"));
        }
        let mut under_way = Some(under_way);
        loop {
            for (number, packet) in packets.iter().enumerate() {
                let socket = &sockets[number % sockets.len()];
                socket.send_to(packet, address).await.expect("sends");
                if number.is_multiple_of(32) {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
            }
            if let Some(under_way) = under_way.take() {
                under_way.send(()).expect("somebody waits");
            }
        }
    })
    .await;
    // Somebody new can enrol as well.
    enroll(&site.coordinator, "newcomer", "eu").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_without_a_certificate_stop_nobody() {
    let site = Site::new().await;
    let (address, authority) = (site.quic(), Digest::of(&site.honest[0].authority));
    let refused = Arc::new(AtomicUsize::new(0));
    let count = refused.clone();
    site.withstand(async move |under_way| {
        // Of agents, but without what makes one.
        let mut tls = tls::enrollment(authority).expect("TLS");
        tls.alpn_protocols = vec![tributary_protocol::version::ALPN_AGENT.to_vec()];
        let config = endpoint::client_config(tls).expect("a configuration");
        let (endpoint, mut under_way) = (elsewhere(2), Some(under_way));
        loop {
            let connecting = endpoint.connect_with(config.clone(), address, "localhost");
            if let Ok(connection) = connecting.expect("connects").await {
                let reason = endpoint::refusal(&connection.closed().await).expect("a refusal");
                assert_eq!(reason.code, ErrorCode::CertificateRequired);
                if count.fetch_add(1, Ordering::Relaxed) == ANONYMOUS {
                    under_way.take().expect("once").send(()).expect("somebody waits");
                }
            }
        }
    })
    .await;
    assert!(refused.load(Ordering::Relaxed) > ANONYMOUS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_has_a_few_connections_however_many_it_opens() {
    let site = Site::new().await;
    let hostile = enroll(&site.coordinator, "hostile", "us").await;
    let address = site.quic();
    let endpoint = elsewhere(2);
    let mut open = Vec::new();
    let mut turned_away = 0;
    for _ in 0..SILENT {
        let connection = dial(&endpoint, address, &hostile).await.expect("a valid certificate");
        open.push(connection);
    }
    // Those that stay are closed only when no hello comes, seconds later.
    for connection in &open {
        let closed = connection.closed();
        let soon = std::time::Duration::from_millis(200);
        if let Ok(reason) = tokio::time::timeout(soon, closed).await {
            // A close that overtakes the end of the handshake cannot say why (RFC 9000, section 10.2.3).
            let code = endpoint::refusal(&reason).map(|refusal| refusal.code);
            assert!(matches!(code, None | Some(ErrorCode::Superseded)), "{reason}");
            turned_away += 1;
        }
    }
    assert_eq!(turned_away, SILENT - PER_TENANT_MAX);
    site.withstand(async move |under_way| {
        let _open = open;
        under_way.send(()).expect("somebody waits");
        loop {
            reconnect(address, &hostile).await;
        }
    })
    .await;
}

/// One connection more, which is turned away or takes the place of the one before.
async fn reconnect(address: SocketAddr, credentials: &Credentials) {
    if let Ok(mut peer) = Peer::connect(address, credentials).await {
        let _ = peer.next().await;
    }
}
