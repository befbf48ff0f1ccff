//! The research simulator: populations, data, privacy accounting and the demo.
//!
//! Nothing here is trusted with anybody's data: the simulator plays all sides on public datasets.
//!
//! - [`population`]: splits a dataset over tenants, non-IID
//! - [`data`]: finds, verifies and writes datasets
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

pub mod command;
pub mod data;
pub mod deadline;
pub mod population;
