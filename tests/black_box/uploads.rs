//! Hostile and damaged uploads are refused by code, and nothing of them is counted.

use std::time::Duration;

use tokio::time::timeout;
use tributary_protocol::{
    error_code::ErrorCode,
    id::RoundNumber,
    message::{Assignment, TransferRequest, TransferResponse},
    tensor_stream::{CHUNK_BYTES, ChunkHeader},
    transport::stream,
};
use tributary_tests::{
    coordinator::Coordinator,
    peer::{Peer, chunks, offer},
};

use crate::{credentials, job};

fn code(answer: TransferResponse) -> ErrorCode {
    match answer {
        TransferResponse::Refused(refusal) => refusal.code,
        other => panic!("not refused: {other:?}"),
    }
}

fn update_bytes(assignment: &Assignment) -> usize {
    (assignment.job.model.num_parameters() * usize::from(assignment.lattice.bits)).div_ceil(8)
}

async fn open_round(coordinator: &Coordinator, hidden: u32) -> (Peer, Assignment) {
    let credentials = credentials(coordinator, "alpha").await;
    coordinator
        .submit(&job("points", 1, 1).replace("hidden = [8]", &format!("hidden = [{hidden}]")));
    let mut peer = Peer::connect(coordinator.quic(), &credentials).await.expect("connects");
    let assignment = peer.assignment().await;
    peer.accept(&assignment.job.name, assignment.round).await;
    (peer, assignment)
}

#[tokio::test]
async fn wrong_round_length_job_and_second_update_are_refused() {
    let coordinator = Coordinator::start();
    let (peer, assignment) = open_round(&coordinator, 8).await;
    let name = &assignment.job.name;
    let update = vec![0; update_bytes(&assignment)];
    let wrong_round = offer(name, RoundNumber(9), &update, 1);
    assert_eq!(code(peer.upload(&wrong_round, &update).await), ErrorCode::WrongRound);
    let short = offer(name, assignment.round, &update[1..], 1);
    assert_eq!(code(peer.upload(&short, &update[1..]).await), ErrorCode::UpdateLength);
    let elsewhere = offer(&"other".parse().expect("valid"), assignment.round, &update, 1);
    assert_eq!(code(peer.upload(&elsewhere, &update).await), ErrorCode::JobUnknown);
    let good = offer(name, assignment.round, &update, 1);
    assert_eq!(peer.upload(&good, &update).await, TransferResponse::Stored);
    assert_eq!(peer.upload(&good, &update).await, TransferResponse::Stored, "the same bytes again");
    coordinator.finish("points", 10);
    let other = vec![1; update.len()];
    let second = offer(name, assignment.round, &other, 2);
    assert_eq!(code(peer.upload(&second, &other).await), ErrorCode::WrongRound);
}

#[tokio::test]
async fn a_damaged_upload_is_named_and_resumes_where_it_was_good() {
    let coordinator = Coordinator::start();
    // 30,000 hidden units make an update of a few chunks.
    let (peer, assignment) = open_round(&coordinator, 60_000).await;
    let update: Vec<u8> = (0..update_bytes(&assignment)).map(|i| (i % 251) as u8).collect();
    assert!(update.len() > 2 * CHUNK_BYTES);
    let good = offer(&assignment.job.name, assignment.round, &update, 1);
    let (mut send, mut receive, answer) =
        peer.transfer(&TransferRequest::Upload(good.clone())).await;
    assert_eq!(answer, TransferResponse::SendFrom { offset: 0 });
    let mut pieces = chunks(&update, 0);
    let (header, payload) = pieces.next().expect("a chunk");
    send.write_all(&header.encode()).await.expect("sends");
    send.write_all(payload).await.expect("sends");
    let (header, payload) = pieces.next().expect("a chunk");
    let mut damaged = payload.to_vec();
    damaged[17] ^= 4;
    send.write_all(&header.encode()).await.expect("sends");
    send.write_all(&damaged).await.expect("sends");
    let answer = stream::expect_message(&mut receive).await.expect("an answer");
    assert_eq!(code(answer), ErrorCode::ChecksumMismatch);

    let (send, receive, answer) = peer.transfer(&TransferRequest::Upload(good.clone())).await;
    assert_eq!(answer, TransferResponse::SendFrom { offset: CHUNK_BYTES as u64 });
    // A second stream would write into the first one's bytes.
    assert_eq!(code(peer.upload(&good, &update).await), ErrorCode::Internal);
    drop((send, receive));
    let stored = timeout(Duration::from_secs(10), async {
        loop {
            match peer.upload(&good, &update).await {
                // The coordinator has not noticed yet that the stream has ended.
                TransferResponse::Refused(refusal) if refusal.code == ErrorCode::Internal => {}
                answer => return answer,
            }
        }
    });
    assert_eq!(stored.await.expect("the stream ends"), TransferResponse::Stored);
    coordinator.finish("points", 10);
}

#[tokio::test]
async fn chunks_that_lie_about_the_file_never_become_an_update() {
    let coordinator = Coordinator::start();
    let (peer, assignment) = open_round(&coordinator, 8).await;
    let update = vec![3; update_bytes(&assignment)];
    let good = offer(&assignment.job.name, assignment.round, &update, 1);
    // Valid chunks of other content: the digest of the whole does not fit.
    let other = vec![4; update.len()];
    assert_eq!(code(peer.upload(&good, &other).await), ErrorCode::ChecksumMismatch);
    let (mut send, mut receive, _) = peer.transfer(&TransferRequest::Upload(good.clone())).await;
    let misplaced = ChunkHeader::new(CHUNK_BYTES as u64, &update);
    send.write_all(&misplaced.encode()).await.expect("sends");
    let answer = stream::expect_message(&mut receive).await.expect("an answer");
    assert_eq!(code(answer), ErrorCode::ChunkOutOfOrder);
    assert_eq!(peer.upload(&good, &update).await, TransferResponse::Stored);
}

#[tokio::test]
async fn the_name_of_a_model_is_no_update_and_the_model_stays() {
    let coordinator = Coordinator::start();
    let (peer, assignment) = open_round(&coordinator, 8).await;
    let base = assignment.base.file.digest;
    let update = vec![3; update_bytes(&assignment)];
    let good = offer(&assignment.job.name, assignment.round, &update, 1);
    let mut named = good.clone();
    named.update.digest = base;
    assert_eq!(code(peer.upload(&named, &update).await), ErrorCode::ChecksumMismatch);
    assert!(coordinator.path("blobs").join(base.to_string()).is_file());
    assert_eq!(peer.upload(&good, &update).await, TransferResponse::Stored);
    coordinator.finish("points", 10);
}

#[tokio::test]
async fn oversized_and_garbage_frames_end_the_stream_not_the_coordinator() {
    let coordinator = Coordinator::start();
    let (peer, _) = open_round(&coordinator, 8).await;
    for (bytes, expected) in [
        (u32::MAX.to_le_bytes().to_vec(), ErrorCode::MessageTooLarge),
        ([5_u32.to_le_bytes().to_vec(), vec![255; 5]].concat(), ErrorCode::MalformedMessage),
    ] {
        let (mut send, mut receive) = peer.connection.open_bi().await.expect("a stream");
        send.write_all(&bytes).await.expect("sends");
        let answer = stream::expect_message(&mut receive).await.expect("an answer");
        assert_eq!(code(answer), expected);
    }
    assert_eq!(coordinator.get("/v1/jobs/points")["state"], "running");
}
