//! What the user asked the demo for.

use std::path::PathBuf;

/// The choices of `tributary-sim demo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemoOptions {
    /// Number of agents, each a process of its own.
    pub tenants: usize,
    /// Rounds to commit; `None` keeps the experiment file's number.
    pub rounds: Option<u64>,
    /// Seed of the split of the data. Noise and batches never come from a seed.
    pub seed: u64,
    /// Work folder to make and keep; `None` for a temporary one.
    pub folder: Option<PathBuf>,
    /// Keep all processes up at the end.
    pub serve: bool,
    /// A fifth of the data and few rounds, to see that everything works.
    pub quick: bool,
    /// Secure aggregation with distributed noise; one agent is killed during a round.
    pub secagg: bool,
}
