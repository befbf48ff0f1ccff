//! Runs experiments in one process, with the agent's trainer, the privacy crate's mechanisms and
//! the coordinator's aggregation.
//!
//! Tenants train side by side on a few threads. Every thread adds its tenants' updates to an integer
//! lattice sum of its own, and the sums are merged: exactly, so neither the number of threads nor
//! the order in which tenants finish changes a bit of the model. Memory is a few models a thread,
//! however large the population and the cohort are. All randomness follows from the seed.

mod adaptive;
mod clock;
mod cohort;
mod error;
#[cfg(feature = "mpi")]
mod mpi_ranks;
mod personal;
mod pool;
mod population;
mod ranks;
mod release;
pub(crate) mod results;
mod run;
mod secure;
mod seeds;
pub(crate) mod series;
mod simulation;
mod single;
#[cfg(test)]
mod single_tests;
mod state;

#[cfg(feature = "mpi")]
pub use self::mpi_ranks::MpiRanks;
pub use self::{
    cohort::{Report, RoundCohort, Schedule},
    error::HarnessError,
    ranks::{Alone, Ranks},
    results::{RoundRow, RunSummary, TenantRow, Timing},
    run::{Progress, RunOptions, cpu_seconds, run},
    series::{RecordsCache, Series, SeriesProgress, run_series},
    simulation::{RoundOutcome, Simulation},
};

#[cfg(test)]
mod tests;
