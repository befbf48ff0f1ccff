//! Which transfers go at full speed: memory is bounded however many agents transfer at once.
//!
//! A connection may hold little that was not read, or not acknowledged, so a thousand of them are
//! cheap. A few at a time get wide windows, for a short turn each: on a fast line that is a whole
//! update. Whoever is slower goes on with narrow windows, which is all that a slow line can fill, so
//! nobody keeps others waiting by being slow.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use quinn::Connection;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tributary_protocol::{
    tensor_stream::CHUNK_BYTES,
    transport::{endpoint, stream::PIECE_BYTES},
};

use super::shelf::Shelf;

/// Transfers with wide windows.
const WIDE_MAX: usize = 8;

/// How long a transfer keeps its place.
const TURN: Duration = Duration::from_secs(5);

/// A transfer waits for a place while others finish; without one that finishes for this long it goes
/// without.
const WAIT: Duration = Duration::from_secs(2);

/// The places of one coordinator.
#[derive(Debug, Clone)]
pub(super) struct Room {
    places: Arc<Semaphore>,
    /// Transfers that finished in their turn.
    finished: Arc<AtomicU64>,
    /// What many transfers need.
    pub(super) shelf: Shelf,
}

impl Room {
    pub(super) fn new() -> Self {
        let places = Arc::new(Semaphore::new(WIDE_MAX));
        Self { places, finished: Arc::default(), shelf: Shelf::default() }
    }

    /// Runs a transfer, with wide windows for its first part if there is a place in time.
    pub(super) async fn run<T, F: Future<Output = T>>(
        &self,
        connection: &Connection,
        transfer: impl FnOnce(Turn) -> F,
    ) -> T {
        let turn = Turn::default();
        let Some(place) = self.place().await else { return transfer(turn).await };
        let wide = Wide::new(connection, place, turn.clone());
        let mut transfer = pin!(transfer(turn));
        match timeout(TURN, &mut transfer).await {
            Ok(done) => {
                self.finished.fetch_add(1, Ordering::Relaxed);
                done
            }
            Err(_) => {
                drop(wide);
                transfer.await
            }
        }
    }

    /// Waits for a place, in order of arrival; `None` if those that have one do not finish.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        let mut place = pin!(self.places.clone().acquire_owned());
        loop {
            let before = self.finished.load(Ordering::Relaxed);
            match timeout(WAIT, &mut place).await {
                Ok(place) => return place.ok(),
                Err(_) if self.finished.load(Ordering::Relaxed) == before => return None,
                Err(_) => {}
            }
        }
    }
}

/// Tells a transfer whether it has a place.
#[derive(Debug, Clone, Default)]
pub(super) struct Turn(Arc<AtomicBool>);

impl Turn {
    /// Bytes that the transfer may gather before it hands them on.
    pub(super) fn piece_max(&self) -> usize {
        if self.0.load(Ordering::Relaxed) { CHUNK_BYTES } else { PIECE_BYTES }
    }
}

/// Wide windows until it is dropped.
struct Wide<'a> {
    connection: &'a Connection,
    turn: Turn,
    _place: OwnedSemaphorePermit,
}

impl<'a> Wide<'a> {
    fn new(connection: &'a Connection, place: OwnedSemaphorePermit, turn: Turn) -> Self {
        endpoint::widen(connection);
        turn.0.store(true, Ordering::Relaxed);
        Self { connection, turn, _place: place }
    }
}

impl Drop for Wide<'_> {
    fn drop(&mut self) {
        self.turn.0.store(false, Ordering::Relaxed);
        endpoint::narrow(self.connection);
    }
}
