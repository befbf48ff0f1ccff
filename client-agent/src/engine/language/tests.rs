use std::{
    path::Path,
    task::{Context, Poll, Waker},
};

use tributary_protocol::id::TenantId;

use super::*;
use crate::{
    config::serve_folder,
    engine::generation::{Event, GenerationRequest, RequestId, Sampling, Ticket, Work},
    model::{decoder::tests::fixture, peft::FILES},
};

fn own() -> TenantContext {
    TenantContext::own(TenantId::new("ash").unwrap())
}

/// Makes a folder hold one of the fixture's adapters.
fn put(folder: &Path, adapter: &str) {
    for file in FILES {
        std::fs::copy(fixture("smollm").join(adapter).join(file), folder.join(file)).unwrap();
    }
}

/// A server whose adapter "own" lies in a folder; requests are answered one after the other.
fn server(folder: &Path) -> LanguageServer {
    let mut options = serve_folder(&fixture("smollm"));
    options.adapters = [("own".to_owned(), folder.to_owned())].into();
    options.limits.batch_requests_max = 1;
    LanguageServer::start(options).unwrap()
}

async fn submit(server: &LanguageServer, tokens_max: usize) -> Ticket {
    let model = server.shared();
    let request = GenerationRequest {
        id: RequestId(0),
        tenant: own().id,
        adapter: model.adapter(&own(), "own").unwrap(),
        // More than a block, so that there is a prefix to find in the cache.
        prompt: (3..40).collect(),
        work: Work::Generate {
            tokens_max,
            sampling: Sampling::greedy(),
            stops: Vec::new(),
            end_tokens: Vec::new(),
        },
        deadline: None,
    };
    model.generator.submit(request).await.unwrap()
}

async fn rest(mut ticket: Ticket) -> Vec<u32> {
    loop {
        if let Event::Finished(finished) = ticket.event().await {
            assert_eq!(finished.reason, crate::engine::generation::FinishReason::Length);
            return finished.answer;
        }
    }
}

async fn answer(server: &LanguageServer) -> Vec<u32> {
    rest(submit(server, 40).await).await
}

/// What a server that never knew another version answers.
async fn answer_with(adapter: &str) -> Vec<u32> {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), adapter);
    answer(&server(folder.path())).await
}

/// A change counts once it was seen twice.
fn look(server: &LanguageServer) {
    (0..2).for_each(|_| server.look_for_adapters());
}

#[tokio::test]
async fn requests_keep_the_version_that_they_began_with() {
    const LONG: usize = 300;
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "all");
    let server = server(folder.path());
    let (old, new) = (answer_with("all").await, answer_with("attention").await);
    assert_ne!(old, new);
    assert_eq!(answer(&server).await, old);
    let long = rest(submit(&server, LONG).await).await;
    let mut under_way = Vec::new();
    for _ in 0..40 {
        under_way.push(submit(&server, LONG).await);
    }
    let first = under_way[0].event().await;
    assert!(matches!(first, Event::Text(_)), "{first:?}");
    put(folder.path(), "attention");
    server.look_for_adapters();
    let unsettled = server.shared().adapter(&own(), "own").unwrap().unwrap().digest();
    server.look_for_adapters();
    assert_ne!(server.shared().adapter(&own(), "own").unwrap().unwrap().digest(), unsettled);
    let mut last = under_way.pop().unwrap();
    let waiting = last.poll_event(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(waiting, Poll::Pending), "it was still waiting: {waiting:?}");
    // Behind all of them, and answered wholly by the new version.
    let next = submit(&server, 40).await;
    for ticket in under_way.into_iter().chain([last]) {
        assert_eq!(rest(ticket).await, long);
    }
    assert_eq!(rest(next).await, new);
    // Both versions' prefixes are in the cache by now, and are not mistaken for each other.
    assert_eq!(answer(&server).await, new);
    put(folder.path(), "all");
    look(&server);
    assert_eq!(answer(&server).await, old);
}

#[tokio::test]
async fn a_version_that_cannot_be_used_leaves_the_one_before_it() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "all");
    let server = server(folder.path());
    let (old, new) = (answer_with("all").await, answer_with("attention").await);
    let weights = folder.path().join(FILES[1]);
    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    look(&server);
    assert_eq!(answer(&server).await, old);
    std::fs::remove_file(&weights).unwrap();
    look(&server);
    assert_eq!(answer(&server).await, old);
    put(folder.path(), "attention");
    look(&server);
    assert_eq!(answer(&server).await, new);
}
