//! Runs experiments in one process, with the agent's trainer, the privacy crate's mechanisms and
//! the coordinator's aggregation.
//!
//! Tenants train side by side on a few threads. Every thread adds its tenants' updates to an integer
//! lattice sum of its own, and the sums are merged: exactly, so neither the number of threads nor
//! the order in which tenants finish changes a bit of the model. Memory is a few models a thread,
//! however large the population and the cohort are. All randomness follows from the seed.

mod cohort;
mod error;
mod pool;
mod release;
mod results;
mod run;
mod seeds;
mod simulation;
mod state;

pub use self::{
    cohort::{RoundCohort, Schedule},
    error::HarnessError,
    results::{RoundRow, RunSummary, TenantRow, Timing},
    run::{Progress, RunOptions, cpu_seconds, run},
    simulation::{RoundOutcome, Simulation},
};

#[cfg(test)]
mod tests;
