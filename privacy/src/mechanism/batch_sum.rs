//! The running sum of a batch's clipped gradients, whose rounding errors the slack covers.

use super::MechanismError;
use crate::clip::ClipError;

/// The largest total of examples times additions of one batch, as covered by the slack.
pub(super) const SUMMATION_WORK_MAX: u64 = 133_000;
/// Micro-batches that are summed in f32 before f64 takes over.
pub(super) const BLOCKS_MAX: u64 = 4;

/// The running sum of one batch's clipped gradients; not private, it must not leave the process.
#[derive(Clone)]
pub struct GradientSum {
    /// The current run of micro-batches.
    open: Vec<f32>,
    /// Whether `open` is a sum yet; before, it holds what its memory held.
    blank: bool,
    run: Run,
    /// Earlier runs.
    closed: Option<Vec<f64>>,
    examples: u64,
    /// Of the closed runs.
    work: u64,
}

/// What the memory of a [`GradientSum`] holds before a micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Nothing of this sum: whatever was there before.
    Anything,
    /// Terms of the sum, or zeros.
    Terms,
}

/// Micro-batches that share an f32 sum.
#[derive(Clone, Copy, Default)]
struct Run {
    examples: u64,
    blocks: u64,
    largest: u64,
}

impl Run {
    const fn with(self, examples: u64) -> Self {
        let largest = if examples > self.largest { examples } else { self.largest };
        let examples = self.examples.saturating_add(examples);
        Self { examples, blocks: self.blocks + 1, largest }
    }

    const fn work(self) -> u64 {
        self.examples.saturating_mul(self.largest.saturating_add(self.blocks))
    }
}

impl GradientSum {
    /// Starts in memory that is no longer needed.
    ///
    /// - `memory`: shape `[dimension]`
    pub(super) fn begin_in(memory: Vec<f32>) -> Self {
        let (run, closed) = (Run::default(), None);
        Self { open: memory, blank: true, run, closed, examples: 0, work: 0 }
    }

    /// Coordinates.
    pub(super) const fn dimension(&self) -> usize {
        self.open.len()
    }

    /// Adds the f32 sum of one micro-batch of clipped gradients.
    ///
    /// - `clipped_sum`: shape `[dimension]`, model units
    /// - `examples`: how many gradients it sums; an empty micro-batch may be left out
    ///
    /// # Errors
    /// [`ClipError::NonFinite`] on NaN or infinity, [`MechanismError::Dimension`] on another length,
    /// [`MechanismError::BatchTooLarge`] if the slack would not cover the summation error; the sum
    /// is then unchanged.
    pub fn add(&mut self, clipped_sum: &[f32], examples: usize) -> Result<(), MechanismError> {
        let (length, dimension) = (clipped_sum.len(), self.open.len());
        if length != dimension {
            return Err(MechanismError::Dimension { length, dimension });
        }
        if let Some(index) = clipped_sum.iter().position(|value| !value.is_finite()) {
            return Err(ClipError::NonFinite { index, value: clipped_sum[index] }.into());
        }
        self.add_in_place(examples, |sum| {
            for (total, &value) in sum.iter_mut().zip(clipped_sum) {
                *total += value;
            }
            Ok(())
        })
    }

    /// Lets the caller add one micro-batch of clipped gradients where the sum lies.
    ///
    /// - `examples`: how many gradients will be added
    /// - `add`: adds them; each coordinate's terms may be added to each other first, in any order
    ///
    /// # Errors
    /// As for [`place`](Self::place).
    pub fn add_in_place<E: From<MechanismError>>(
        &mut self,
        examples: usize,
        add: impl FnOnce(&mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.place(examples, |sum, held| {
            if held == Held::Anything {
                sum.fill(0.0);
            }
            add(sum)
        })
    }

    /// Lets the caller write one micro-batch of clipped gradients where the sum lies, without a pass
    /// to clear it first.
    ///
    /// - `examples`: how many gradients will be added
    /// - `write`: adds them to [`Held::Terms`], or overwrites every coordinate of
    ///   [`Held::Anything`]; each coordinate's terms may be added to each other first, in any order
    ///
    /// # Errors
    /// [`MechanismError::BatchTooLarge`] if the slack would not cover the summation error; the sum
    /// is then unchanged. Whatever `write` fails with; the sum is then of no use.
    pub fn place<E: From<MechanismError>>(
        &mut self,
        examples: usize,
        write: impl FnOnce(&mut [f32], Held) -> Result<(), E>,
    ) -> Result<(), E> {
        let examples = examples as u64;
        if self.run.blocks == BLOCKS_MAX {
            self.close();
        }
        let run = self.run.with(examples);
        self.check_work(run.work().saturating_add(self.return_work(examples)))?;
        write(&mut self.open, if self.blank { Held::Anything } else { Held::Terms })?;
        self.blank = false;
        self.run = run;
        self.examples += examples;
        Ok(())
    }

    /// How many gradients were added.
    #[must_use]
    pub const fn examples(&self) -> u64 {
        self.examples
    }

    /// Moves the current run into the f64 sum.
    fn close(&mut self) {
        self.work = self.work.saturating_add(self.run.work());
        self.run = Run::default();
        let closed = self.closed.get_or_insert_with(|| vec![0.0; self.open.len()]);
        for (total, value) in closed.iter_mut().zip(&mut self.open) {
            *total += f64::from(std::mem::take(value));
        }
    }

    /// One more rounding of every example's terms, if f64 was needed.
    fn return_work(&self, more: u64) -> u64 {
        if self.closed.is_some() { self.examples.saturating_add(more) } else { 0 }
    }

    fn check_work(&self, of_run: u64) -> Result<(), MechanismError> {
        let (work, work_max) = (self.work.saturating_add(of_run), SUMMATION_WORK_MAX);
        if work > work_max {
            return Err(MechanismError::BatchTooLarge { work, work_max });
        }
        Ok(())
    }

    /// The sum, model units.
    pub(super) fn finish(mut self) -> Result<Vec<f32>, MechanismError> {
        self.check_work(self.run.work().saturating_add(self.return_work(0)))?;
        if self.blank {
            self.open.fill(0.0);
        }
        if let Some(closed) = &self.closed {
            for (value, total) in self.open.iter_mut().zip(closed) {
                *value = (f64::from(*value) + total) as f32;
            }
        }
        Ok(self.open)
    }
}
