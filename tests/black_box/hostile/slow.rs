//! Slow-loris: connections, messages and files that begin and hardly go on.

use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};
use tributary_protocol::{
    codec::{self, CodecError},
    isolation::Isolation,
    message::{AgentMessage, LedgerHead, TransferRequest, TransferResponse},
    transport::stream,
};
use tributary_tests::{
    peer::{Credentials, Peer, chunks, dial, offer},
    wire,
};

use super::{Site, elsewhere, enroll, update_bytes};
use crate::job;

/// Between two bytes.
const PAUSE: Duration = Duration::from_millis(50);

/// Handshakes that stop after the first packet.
const HALF_HANDSHAKES: usize = 200;

/// Tenants that mean harm.
const TENANTS: usize = 4;

/// Streams beside the control stream.
const STREAMS: usize = 2;

/// Sends the bytes of a frame one by one, and never the last one.
async fn trickle(mut stream: SendStream, frame: Vec<u8>) {
    for byte in &frame[..frame.len() - 1] {
        if stream.write_all(&[*byte]).await.is_err() {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
    std::future::pending::<()>().await;
}

/// A message on the wire.
///
/// - `body`: its encoding
fn frame(body: Result<Vec<u8>, CodecError>) -> Vec<u8> {
    let body = body.expect("encodes");
    [(body.len() as u32).to_le_bytes().to_vec(), body].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_handshakes_and_half_messages_stop_nobody() {
    let site = Site::new().await;
    let mut hostile = Vec::new();
    for number in 0..TENANTS {
        hostile.push(enroll(&site.coordinator, &format!("hostile-{number}"), "us").await);
    }
    let (address, packets) = (site.quic(), wire::first_packets(HALF_HANDSHAKES).await);
    site.withstand(async move |under_way| {
        let socket = tokio::net::UdpSocket::bind("127.0.0.2:0").await.expect("a socket");
        for packet in packets {
            socket.send_to(&packet, address).await.expect("sends");
        }
        let endpoint = elsewhere(3);
        let mut trickling = tokio::task::JoinSet::new();
        for (number, credentials) in hostile.iter().enumerate() {
            let connection = dial(&endpoint, address, credentials).await.expect("connects");
            let hello = AgentMessage::Hello {
                agent_version: "slow".repeat(20),
                ledger_head: LedgerHead::EMPTY,
                isolation: Isolation::default(),
            };
            let (mut control, messages) = connection.open_bi().await.expect("a stream");
            if number % 2 == 0 {
                trickling.spawn(trickle(control, frame(codec::encode(&hello))));
            } else {
                stream::write_message(&mut control, &hello).await.expect("sends");
                for _ in 0..STREAMS {
                    let (send, receive) = connection.open_bi().await.expect("a stream");
                    let request = TransferRequest::Download {
                        digest: tributary_protocol::id::Digest::of(b"nothing"),
                        offset: 0,
                    };
                    trickling.spawn(async move {
                        let _receive = receive;
                        trickle(send, frame(codec::encode(&request))).await;
                    });
                }
            }
            // Until the test ends; of the streams, some are never written to.
            trickling.spawn(hold(connection, messages));
        }
        under_way.send(()).expect("somebody waits");
        trickling.join_all().await;
    })
    .await;
}

async fn hold(connection: Connection, messages: RecvStream) {
    let silent = connection.open_bi().await;
    let _held = (connection, messages, silent);
    std::future::pending::<()>().await;
}

/// Takes as many places for transfers as it can, and hardly uses them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_that_hardly_go_on_leave_room_for_others() {
    let site = Site::new().await;
    let mut hostile = Vec::new();
    for number in 0..TENANTS {
        hostile.push(enroll(&site.coordinator, &format!("hostile-{number}"), "us").await);
    }
    let cohort = TENANTS as u32;
    let theirs = job("theirs", 1, cohort)
        .replace("hidden = [8]", "hidden = [60000]")
        .replace("dataset = ", "regions = [\"us\"]\ndataset = ");
    tokio::task::block_in_place(|| site.coordinator.submit(&theirs));
    let address = site.quic();
    site.withstand(async move |under_way| {
        let peers = hostile.into_iter().map(|credentials| occupy(address, credentials));
        let held = tokio::task::JoinSet::from_iter(peers).join_all().await;
        under_way.send(()).expect("somebody waits");
        let trickling = held.into_iter().flat_map(|(peer, streams)| {
            let peer = std::sync::Arc::new(peer);
            streams.into_iter().map(move |(mut send, receive, update)| {
                let peer = peer.clone();
                async move {
                    let _open = (peer, receive);
                    let (header, payload) = chunks(&update, 0).next().expect("a chunk");
                    send.write_all(&header.encode()).await.expect("sends");
                    for byte in payload {
                        if send.write_all(&[*byte]).await.is_err() {
                            break;
                        }
                        tokio::time::sleep(PAUSE).await;
                    }
                    std::future::pending::<()>().await;
                }
            })
        });
        tokio::task::JoinSet::from_iter(trickling).join_all().await;
    })
    .await;
    // One file for each of the hostile tenants is all that is left of their offers.
    let folder = site.coordinator.path("staging/theirs.1");
    assert_eq!(std::fs::read_dir(folder).expect("lists").count(), TENANTS);
}

type Upload = (SendStream, RecvStream, Vec<u8>);

/// Accepts, and begins several uploads.
async fn occupy(address: std::net::SocketAddr, credentials: Credentials) -> (Peer, Vec<Upload>) {
    let mut peer = Peer::connect(address, &credentials).await.expect("connects");
    let assignment = peer.assignment().await;
    peer.accept(&assignment.job.name, assignment.round).await;
    let mut uploads = Vec::new();
    for number in 0..STREAMS {
        let update = vec![number as u8; update_bytes(&assignment)];
        let offer = offer(&assignment.job.name, assignment.round, &update, 1);
        let (send, receive, answer) = peer.transfer(&TransferRequest::Upload(offer)).await;
        assert_eq!(answer, TransferResponse::SendFrom { offset: 0 });
        uploads.push((send, receive, update));
    }
    (peer, uploads)
}
