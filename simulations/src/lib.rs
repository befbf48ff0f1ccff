//! The research simulator: populations, data, privacy accounting and the demo.
//!
//! Nothing here is trusted with anybody's data: the simulator plays all sides on public datasets.
//!
//! - [`population`]: splits a dataset over tenants, non-IID
//! - [`data`]: finds, verifies and writes datasets
//! - [`accounting`]: ε of a sequence of releases, and the noise for a wanted ε
//! - [`audit`]: an empirical lower bound of ε for the trainer that agents run
//! - [`experiment`], [`harness`]: experiment files, and rounds of thousands of tenants in one process
//! - [`sweep`]: one experiment with many settings
//! - [`report`]: pages of curves, tables and pictures in one HTML file
//! - [`attacks`]: what attackers can do, and what each defence leaves of it
//! - [`world`]: whole deployments in virtual time, with everything that can go wrong
//! - [`demo`]: the whole system on this machine, as separate processes
//! - [`cli`]: the commands of `tributary-sim`
//! - [`command`], [`deadline`]: other programs and waiting, always bounded
//!
//! ```
//! use tributary_sim::population::DirichletPartition;
//!
//! let labels = [0, 1, 2, 0, 1, 2];
//! let split = DirichletPartition { tenants: 2, alpha: 0.3, seed: 7 };
//! let shares = split.assign(&labels, 3)?;
//! assert_eq!(shares.iter().map(Vec::len).sum::<usize>(), labels.len());
//! # Ok::<(), tributary_sim::population::PartitionError>(())
//! ```

pub mod accounting;
pub mod attacks;
pub mod audit;
pub mod cli;
pub mod command;
pub mod data;
pub mod deadline;
pub mod demo;
pub mod experiment;
pub mod harness;
mod identity;
pub mod population;
pub mod report;
pub mod sweep;
pub mod world;
