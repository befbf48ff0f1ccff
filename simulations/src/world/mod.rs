//! A whole deployment in virtual time: the production machines, and everything that can go wrong.
//!
//! The coordinator's [`Scheduler`](tributary_coordinator::scheduler::Scheduler) with its rounds, its
//! store and its files, and every agent's [`Session`](tributary_agent::session::Session) with its
//! policy, ledger, receipts, releases and secure aggregation are those of the programs. What this
//! module puts in place of sockets, disks, clocks and threads is a queue of events: it delivers
//! messages late, drops connections, tears the last write of a ledger, and forgets whatever was not
//! durable when a process dies. Training is a stand-in with known updates, so that every committed
//! model can be compared with the sum of exactly the counted ones.
//!
//! After every step it is checked that
//!
//! - nothing leaves an agent without a debit in the ledger as it is *on the disk*, and never two
//!   different byte strings for one debit ([`Rule::Release`], [`Rule::OneRelease`]);
//! - no update is counted twice, and every model is its base moved by the mean of exactly the counted
//!   updates ([`Rule::CountedOnce`], [`Rule::Model`]);
//! - no sum is unmasked of fewer tenants than the plan and the policies allow, nor two different sums
//!   of one cohort, and no agent answers twice differently ([`Rule::Unmasking`]);
//! - rounds and versions only go forward, and what the store holds can be restored
//!   ([`Rule::Forward`]);
//! - once the faults are over, every job ends ([`Rule::Liveness`]).
//!
//! Everything follows from the seed: a failure is repeated by its number, and [`shrink`] finds the
//! faults that it needs.
//!
//! ```
//! use tributary_sim::world::{Scenario, play};
//!
//! let summary = play(&Scenario::from_seed(1))?;
//! assert_eq!(summary.jobs_finished, summary.jobs);
//! # Ok::<(), tributary_sim::world::Violation>(())
//! ```

mod agent;
mod certificates;
mod checks;
mod coordinator;
mod fault;
mod network;
mod operator;
mod outcome;
mod play;
mod queue;
mod scenario;
mod shrink;
#[cfg(test)]
mod tests;
mod training;

pub use self::{
    fault::{Fault, FaultKind},
    outcome::{Rule, Summary, Violation},
    play::play,
    scenario::{JobKind, JobPlan, Scenario},
    shrink::shrink,
};
