//! How a world ended.

use std::fmt;

use serde::Serialize;
use thiserror::Error;

/// What must hold at every step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Nothing leaves an agent without a durable debit.
    Release,
    /// For one debit only one byte string leaves.
    OneRelease,
    /// No update is counted twice.
    CountedOnce,
    /// A model is its base moved by exactly the counted updates.
    Model,
    /// No sum of too few is unmasked, nor two sums of one cohort.
    Unmasking,
    /// Rounds and versions only go forward, and the store can be restored.
    Forward,
    /// Once the faults are over, every job ends.
    Liveness,
    /// Nothing panics, and no store fails that was not made to.
    Soundness,
}

impl fmt::Display for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Release => "nothing leaves without a durable debit",
            Self::OneRelease => "one debit lets one byte string leave",
            Self::CountedOnce => "no update is counted twice",
            Self::Model => "a model is its base moved by the counted updates",
            Self::Unmasking => "no sum of too few is unmasked",
            Self::Forward => "rounds only go forward",
            Self::Liveness => "every job ends once the faults are over",
            Self::Soundness => "nothing panics or fails by itself",
        })
    }
}

/// A rule that did not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Error)]
#[error("seed {seed}, {at_ms} ms: broken rule: {rule}: {detail}")]
pub struct Violation {
    /// Repeats it.
    pub seed: u64,
    /// When, in milliseconds after the start.
    pub at_ms: u64,
    /// Which rule.
    pub rule: Rule,
    /// What was seen.
    pub detail: String,
    /// The last events before it, oldest first.
    pub trace: Vec<String>,
}

/// A world in which every rule held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// What it followed from.
    pub seed: u64,
    /// Tenants, later ones included.
    pub tenants: u32,
    /// Jobs.
    pub jobs: usize,
    /// Jobs that ended with all their rounds.
    pub jobs_finished: usize,
    /// Rounds that became models.
    pub rounds_committed: u64,
    /// Of these, rounds whose sum was unmasked.
    pub rounds_unmasked: u64,
    /// Rounds that were given up.
    pub rounds_abandoned: u64,
    /// Updates in the models.
    pub updates_counted: u64,
    /// Debits in all ledgers.
    pub debits: u64,
    /// Faults.
    pub faults: usize,
    /// Events.
    pub events: u64,
    /// Virtual time, in milliseconds.
    pub virtual_ms: u64,
    /// Checksum over all events: equal seeds have equal ones.
    pub trace: u64,
}
