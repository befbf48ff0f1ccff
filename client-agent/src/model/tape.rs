use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Tensor;

use super::linear::LinearSpans;

/// What a layer's backward pass leaves behind: enough for the gradient of every example.
pub(crate) enum Record {
    /// A linear layer: the gradient of example i is `gradient[i]ᵀ · activation[i]`.
    Linear { spans: LinearSpans, activation: Tensor, gradient: Tensor },
}

/// The records of one backward pass, in the order in which it met the layers.
#[derive(Clone, Default)]
pub(crate) struct Tape {
    records: Arc<Mutex<Vec<Record>>>,
}

impl Tape {
    pub(super) fn push(&self, record: Record) {
        self.lock().push(record);
    }

    pub(super) fn take(&self) -> Vec<Record> {
        std::mem::take(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Record>> {
        // A panic elsewhere leaves whole records only: a push is the one thing done under the lock.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
