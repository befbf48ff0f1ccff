//! What was said before, said again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::task::block_in_place;
use tributary_protocol::{
    error_code::ErrorCode,
    id::RoundNumber,
    isolation::Isolation,
    message::{AgentMessage, CoordinatorMessage, LedgerHead, SecaggPayload, TransferResponse},
    transport::endpoint,
};
use tributary_tests::{
    peer::{Peer, offer},
    wire::Line,
};

use super::{Site, enroll, update_bytes};
use crate::job;

/// How often each message comes again.
const TIMES: usize = 30;

/// Everything that a peer sent in a whole round, datagram by datagram, while others have theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_datagrams_change_nothing() {
    let site = Site::new().await;
    let recorded = enroll(&site.coordinator, "recorded", "us").await;
    let theirs = job("theirs", 1, 1).replace("dataset = ", "regions = [\"us\"]\ndataset = ");
    block_in_place(|| site.coordinator.submit(&theirs));
    let line = Line::to(site.quic()).await;
    super::honest(line.address(), recorded.clone()).await;
    block_in_place(|| site.coordinator.finish("theirs", 5));
    // A connection that stays open has something to lose.
    let mut peer = Peer::connect(line.address(), &recorded).await.expect("connects");
    assert!(matches!(peer.next().await, Ok(CoordinatorMessage::Welcome(_))));
    let models = || block_in_place(|| site.coordinator.get("/v1/models"));
    let before = models();
    let replayed = Arc::new(AtomicUsize::new(0));
    let count = replayed.clone();
    site.withstand(async move |under_way| {
        let mut under_way = Some(under_way);
        loop {
            count.fetch_add(line.replay().await, Ordering::Relaxed);
            if let Some(under_way) = under_way.take() {
                under_way.send(()).expect("somebody waits");
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert!(replayed.load(Ordering::Relaxed) > 20);
    let (before, after) = (of_theirs(&before), of_theirs(&models()));
    assert_eq!(after, before);
    assert_eq!(before.len(), 2, "{before:?}");
    assert_eq!(peer.connection.close_reason(), None, "its own connection goes on");
}

/// The digests of the job's models.
fn of_theirs(models: &serde_json::Value) -> Vec<String> {
    let models = models.as_array().expect("a list").iter();
    let theirs = models.filter(|model| model["job"] == "theirs");
    theirs.map(|model| model["digest"].to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_before_count_once() {
    let site = Site::new().await;
    let hostile = enroll(&site.coordinator, "hostile", "us").await;
    let theirs = job("theirs", 2, 1).replace("dataset = ", "regions = [\"us\"]\ndataset = ");
    block_in_place(|| site.coordinator.submit(&theirs));
    let mut peer = Peer::connect(site.quic(), &hostile).await.expect("connects");
    let first = peer.assignment().await;
    let name = first.job.name.clone();
    let update = vec![0; update_bytes(&first)];
    let old = offer(&name, first.round, &update, 1);
    for _ in 0..TIMES {
        peer.accept(&name, first.round).await;
    }
    assert_eq!(peer.upload(&old, &update).await, TransferResponse::Stored);
    let second = peer.assignment().await;
    assert_eq!(second.round, RoundNumber(2));
    site.withstand(async move |under_way| {
        for _ in 0..TIMES {
            let TransferResponse::Refused(refusal) = peer.upload(&old, &update).await else {
                panic!("an update of a round that is over was taken");
            };
            assert_eq!(refusal.code, ErrorCode::WrongRound);
            peer.accept(&name, first.round).await;
            let payload = SecaggPayload::encode(&"what was masked").expect("encodes");
            let message = AgentMessage::Secagg { job: name.clone(), round: first.round, payload };
            peer.say(&message).await;
        }
        under_way.send(()).expect("somebody waits");
        // The connection is still good; a second hello ends it.
        peer.accept(&name, second.round).await;
        let hello = AgentMessage::Hello {
            agent_version: "again".to_owned(),
            ledger_head: LedgerHead::EMPTY,
            isolation: Isolation::default(),
        };
        peer.say(&hello).await;
        let reason = endpoint::refusal(&peer.connection.closed().await).expect("a refusal");
        assert_eq!(reason.code, ErrorCode::UnexpectedMessage);
        std::future::pending::<()>().await;
    })
    .await;
    let job = block_in_place(|| site.coordinator.get("/v1/jobs/theirs"));
    assert_eq!(job["rounds_committed"], 1, "{job}");
}
