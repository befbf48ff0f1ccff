//! Splits one labelled dataset over the tenants of a simulated population.
//!
//! Every split is a pure function of dataset, request and seed.

mod dirichlet;
mod even;
mod files;
mod natural;

use std::path::PathBuf;

use chacha20::ChaCha8Rng;
use rand::Rng;
use rand_distr::{Distribution, Gamma};
use thiserror::Error;

pub use self::{
    dirichlet::DirichletPartition,
    even::{iid, quantity_skew, shards},
    files::read_owners,
    natural::by_value,
};

/// The smallest concentration: each tenant holds a single class until classes run out.
pub const ALPHA_MIN: f64 = 1e-6;
/// The largest concentration: every tenant's mix is uniform.
pub const ALPHA_MAX: f64 = 1e6;

/// Says why a dataset cannot be split as asked.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum PartitionError {
    /// There is nobody to give the examples to.
    #[error("a population of 0 tenants cannot hold data; ask for at least 1")]
    NoTenants,
    /// Some tenants would stay empty.
    #[error("{tenants} tenants cannot share {examples} examples; ask for at most {examples}")]
    TooFewExamples {
        /// Tenants asked for.
        tenants: usize,
        /// Examples there are.
        examples: usize,
    },
    /// The concentration is NaN or out of range.
    #[error(
        "the Dirichlet concentration alpha is {alpha}; it must be in [{ALPHA_MIN}, {ALPHA_MAX}], e.g. 0.3"
    )]
    Alpha {
        /// What was given.
        alpha: f64,
    },
    /// A label names no class.
    #[error("example {index} has label {label}, but there are only {classes} classes, 0 to {last}", last = classes.saturating_sub(1))]
    Label {
        /// Position of the example, from 0.
        index: usize,
        /// Its label.
        label: u8,
        /// Number of classes.
        classes: usize,
    },
    /// Indices are 32 bits wide.
    #[error("{examples} examples are too many; at most {} can be split", u32::MAX)]
    TooManyExamples {
        /// Examples there are.
        examples: usize,
    },
    /// More shards are asked for than there are examples.
    #[error("{shards} shards cannot be cut from {examples} examples; ask for fewer a tenant")]
    Shards {
        /// Shards of all tenants.
        shards: usize,
        /// Examples there are.
        examples: usize,
    },
    /// There are more or fewer groups than tenants asked for.
    #[error("the data has {groups} groups, so the population is {groups} tenants, not {tenants}")]
    Groups {
        /// Groups there are.
        groups: usize,
        /// Tenants asked for.
        tenants: usize,
    },
    /// An index file cannot be read or does not say who owns what.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would work.
        problem: String,
    },
}

fn check_size(tenants: usize, examples: usize) -> Result<(), PartitionError> {
    if tenants == 0 {
        return Err(PartitionError::NoTenants);
    }
    if tenants > examples {
        return Err(PartitionError::TooFewExamples { tenants, examples });
    }
    if u32::try_from(examples).is_err() {
        return Err(PartitionError::TooManyExamples { examples });
    }
    Ok(())
}

fn check_alpha(alpha: f64) -> Result<(), PartitionError> {
    if (ALPHA_MIN..=ALPHA_MAX).contains(&alpha) {
        Ok(())
    } else {
        Err(PartitionError::Alpha { alpha })
    }
}

/// Draws weights, up to a common factor, from Dirichlet(α, …, α).
///
/// Works with logarithms, because a Gamma(α) draw underflows to 0 for small α: Gamma(α) is
/// distributed as Gamma(α + 1)·U^(1/α).
fn dirichlet_weights(alpha: f64, count: usize, random: &mut ChaCha8Rng) -> Vec<f64> {
    let gamma = Gamma::new(alpha + 1.0, 1.0).expect("alpha is finite and positive");
    let logarithms: Vec<f64> = (0..count)
        .map(|_| gamma.sample(random).ln() + (1.0 - unit_interval(random)).ln() / alpha)
        .collect();
    let largest = logarithms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    logarithms.iter().map(|logarithm| (logarithm - largest).exp()).collect()
}

/// The numbers below `count` in random order.
///
/// Sorts by random keys instead of calling a shuffle, whose order may change with its library.
fn shuffled(count: usize, random: &mut ChaCha8Rng) -> Vec<u32> {
    let mut keyed: Vec<(u64, u32)> =
        (0..count as u32).map(|index| (random.next_u64(), index)).collect();
    keyed.sort_unstable();
    keyed.into_iter().map(|(_, index)| index).collect()
}

/// A uniform number in [0, 1) with 53 random bits.
fn unit_interval(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}
