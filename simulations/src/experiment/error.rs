use std::path::PathBuf;

use thiserror::Error;
use tributary_agent::{adapter::AdapterError, data::DataError};
use tributary_privacy::{accountant::AccountantError, secagg::PlanError};
use tributary_protocol::{job::JobSpecError, model::ModelSpecError};

use crate::{
    data::{fashion_mnist::DatasetError, fetch::FetchError},
    population::PartitionError,
};

/// Says which part of an experiment cannot work.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExperimentError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The text is no experiment.
    #[error("{}{}", reason.to_string().trim_end(), suggestion(reason))]
    Parse {
        /// Where and why.
        reason: Box<toml::de::Error>,
    },
    /// A number lies outside its range (NaN included).
    #[error("`{field}` is {value}; it must be {range}")]
    OutOfRange {
        /// The key.
        field: &'static str,
        /// What was given.
        value: f64,
        /// What would work.
        range: &'static str,
    },
    /// Keys contradict each other.
    #[error("`{field}`: {problem}")]
    Conflict {
        /// The key.
        field: &'static str,
        /// Why not, and what would work.
        problem: &'static str,
    },
    /// Model and data do not fit together.
    #[error("`model` has {model} {what}, but the dataset has {data}")]
    Shape {
        /// `inputs` or `classes`.
        what: &'static str,
        /// The model's number.
        model: usize,
        /// The dataset's number.
        data: usize,
    },
    /// The cohort is larger than the population.
    #[error("`cohort.size` is {size}, but there are {tenants} tenants; ask for at most {tenants}")]
    Cohort {
        /// Invited tenants.
        size: u32,
        /// Tenants there are.
        tenants: usize,
    },
    /// Too few tenants to keep busy.
    #[error(
        "`asynchronous` keeps `cohort.size` {size} tenants busy while {report_goal} updates wait, \
         but there are {tenants} tenants; lower either, to at most {tenants} together"
    )]
    Busy {
        /// Tenants that train at any time.
        size: u32,
        /// Updates that a buffer takes.
        report_goal: u32,
        /// Tenants there are.
        tenants: usize,
    },
    /// No noise reaches the wanted ε.
    #[error(
        "`privacy`: epsilon {epsilon} cannot be met with {releases} releases of a tenant; raise \
         epsilon or delta, or run fewer rounds"
    )]
    Unreachable {
        /// What was asked for.
        epsilon: f64,
        /// How often a tenant takes part at most.
        releases: u64,
        /// Why.
        #[source]
        source: AccountantError,
    },
    /// The wanted ε needs more noise than the updates' integers can hold.
    #[error(
        "`privacy`: epsilon {epsilon} cannot be met with {releases} releases of a tenant: its noise \
         does not fit into the updates. Epsilon {least:.2e} can be met; ask for that or more, or run \
         fewer rounds"
    )]
    TooMuchNoise {
        /// What was asked for.
        epsilon: f64,
        /// How often a tenant takes part at most.
        releases: u64,
        /// About the smallest ε that can be met.
        least: f64,
    },
    /// The votes on the clipping norm alone cost more than the wanted ε.
    #[error(
        "`privacy.central.adaptive.count_noise_multiplier` is {given}; sum and votes together need \
         more than {needed:.3} for epsilon {epsilon}: raise it, five times {needed:.3} costs the sum \
         2 % more noise"
    )]
    Votes {
        /// What was asked for.
        epsilon: f64,
        /// The votes' noise.
        given: f64,
        /// The noise that both together must have.
        needed: f64,
    },
    /// The model cannot be built.
    #[error("`model` is not usable")]
    Model(#[from] ModelSpecError),
    /// The optimizer's numbers do not work.
    #[error(transparent)]
    Optimizer(#[from] JobSpecError),
    /// The adapters' numbers do not work.
    #[error("`adapters` cannot be used")]
    Adapters(#[source] Box<AdapterError>),
    /// No secure sum of such cohorts.
    #[error("`secagg` cannot protect cohorts of {cohort_size}")]
    Secagg {
        /// Tenants invited to a round.
        cohort_size: u32,
        /// Why, and what would work.
        #[source]
        source: PlanError,
    },
    /// A round would wait for more or fewer updates than a secure sum may have.
    #[error(
        "`cohort.report_goal` is {report_goal}, but a secure sum of {cohort_size} invited has at \
         least {survivors_min} updates; raise it, or `secagg.dropout_max`"
    )]
    SecaggGoal {
        /// Updates that are waited for.
        report_goal: u32,
        /// Tenants invited to a round.
        cohort_size: u32,
        /// Fewest updates of a sum.
        survivors_min: u32,
    },
    /// The data cannot be split.
    #[error("`partition` cannot be met")]
    Partition(#[from] PartitionError),
    /// A data file cannot be used.
    #[error("`dataset` cannot be loaded")]
    Data(#[from] DataError),
    /// A column for the partition cannot be read.
    #[error("`partition.column`: {}: {problem}", path.display())]
    Column {
        /// The table.
        path: PathBuf,
        /// What is wrong, and what would work.
        problem: String,
    },
    /// The public dataset is not here.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The public dataset is damaged.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
}

/// The nearest name to one that TOML's reader does not know, as the end of a sentence.
fn suggestion(error: &toml::de::Error) -> String {
    let message = error.message();
    let mut quoted = message.split('`').skip(1).step_by(2);
    let Some(unknown) = quoted.next() else { return String::new() };
    if !message.starts_with("unknown ") {
        return String::new();
    }
    let near = quoted.map(|name| (strsim::damerau_levenshtein(unknown, name), name)).min();
    match near {
        Some((distance, name)) if distance <= 1 + unknown.chars().count() / 3 => {
            format!("\n  did you mean `{name}`?")
        }
        _ => String::new(),
    }
}
