use std::sync::Arc;

use tokio::sync::watch;

/// Tells work on any thread to stop; clones share the flag.
#[derive(Debug, Clone)]
pub(super) struct Cancellation(Arc<watch::Sender<bool>>);

impl Cancellation {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    pub(super) fn cancel(&self) {
        self.0.send_replace(true);
    }

    pub(super) fn is_cancelled(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until [`Self::cancel`] is called.
    pub(super) async fn cancelled(&self) {
        // Fails only when the sender is gone, and `self` holds it.
        let _ = self.0.subscribe().wait_for(|cancelled| *cancelled).await;
    }
}
