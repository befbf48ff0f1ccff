use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use candle_core::Tensor;

use super::layer::Spans;

/// What a layer's backward pass leaves behind: enough for the gradient of every example.
pub(super) enum Record {
    /// A linear layer: the gradient of example i is `gradient[i]ᵀ · activation[i]`.
    ///
    /// Shapes `[n, k]` and `[n, m]`, or `[n, time, k]` and `[n, time, m]`.
    Linear { spans: Spans, activation: Tensor, gradient: Tensor },
    /// A table: row `ids[i, t]` of the gradient of example i gains `gradient[i, t]`.
    Rows { table: Range<usize>, ids: Vec<u32>, gradient: Tensor },
    /// The gradients themselves, `[n, len]`.
    PerExample { span: Range<usize>, gradients: Tensor },
}

/// The records of one backward pass, in the order in which it met the layers.
#[derive(Clone, Default)]
pub struct Tape {
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

impl Record {
    /// The parts of the flat parameter vector that the record's gradient belongs to.
    pub(super) fn spans(&self) -> Vec<Range<usize>> {
        match self {
            Self::Linear { spans, .. } => {
                std::iter::once(&spans.weight).chain(&spans.bias).cloned().collect()
            }
            Self::Rows { table, .. } => vec![table.clone()],
            Self::PerExample { span, .. } => vec![span.clone()],
        }
    }
}
