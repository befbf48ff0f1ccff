//! Says when something changed, so that whoever looks need not ask again and again.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    extract::State,
    http::StatusCode,
    response::{
        IntoResponse, Sse,
        sse::{Event, KeepAlive},
    },
};
use futures_core::Stream;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

use super::{ApiError, ApiState};

/// Changes that come faster are told together.
const PAUSE: Duration = Duration::from_millis(300);

/// After this time the stream ends and the caller asks anew, with a token that must still work.
const LIFETIME: Duration = Duration::from_secs(600);

/// `{"revision": N}` at once and after every change. It names nothing: what changed, the other
/// routes tell, each by its own rule.
pub(super) async fn events(State(state): State<ApiState>) -> Result<impl IntoResponse, ApiError> {
    let permit = state.watchers.clone().try_acquire_owned().map_err(|_| {
        let message = "too many are watching; ask for the documents instead";
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "too-many-watchers", message)
    })?;
    let revision = state.core.call(|core, _| core.progress().revision()).await;
    let revision = revision.map_err(ApiError::stopping)?;
    let (send, changes) = mpsc::channel(1);
    tokio::spawn(tell(revision, send, permit));
    Ok(Sse::new(Changes(changes)).keep_alive(KeepAlive::default()))
}

async fn tell(
    mut revision: watch::Receiver<u64>,
    changes: mpsc::Sender<u64>,
    _permit: OwnedSemaphorePermit,
) {
    let until_old = tokio::time::sleep(LIFETIME);
    let telling = async {
        loop {
            let now = *revision.borrow_and_update();
            if changes.send(now).await.is_err() {
                return;
            }
            tokio::time::sleep(PAUSE).await;
            // The core is gone: so is this stream.
            if revision.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = telling => {}
        () = until_old => {}
        // Nobody reads any more.
        () = changes.closed() => {}
    }
}

struct Changes(mpsc::Receiver<u64>);

impl Stream for Changes {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|revision| {
            let data = json!({ "revision": revision? }).to_string();
            Some(Ok(Event::default().event("changed").data(data)))
        })
    }
}
