//! Chooses isolation levels: the cheapest that meet every tenant's floors.
//!
//! A higher level costs overhead in every period. A lower one puts more of the tenant's demand on what
//! is shared, and wherever the shared demand of a period exceeds what the shared part carries, the excess
//! costs as well. Tenants whose peaks come at different times may therefore share, and those whose
//! peaks meet are kept apart.
//!
//! For each resource the planner minimises
//!
//! ```text
//! periods · Σ overhead(level)  +  conflict · Σ over periods max(0, Σ share(level) · demand − capacity)
//! ```
//! by trying every combination where that is possible, else by descent over single changes and pairs
//! of them, from the floors and from the top.

mod document;
mod search;
#[cfg(test)]
mod tests;

use thiserror::Error;

pub use self::document::{
    Allotment, Demand, Floors, Plan, PlanDocument, ResourceCosts, TenantDemand, plan,
};

/// How many levels every resource has.
pub const LEVELS: usize = 3;

/// Says why there is no plan.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A number is out of range.
    #[error("`{field}` is {value}; it must be {range}")]
    OutOfRange {
        /// Where it stands.
        field: String,
        /// The number.
        value: f64,
        /// What it may be.
        range: &'static str,
    },
    /// Demands are given for different periods.
    #[error("tenant {tenant} has {found} periods of `{resource}`; the first tenant has {expected}")]
    Periods {
        /// Who.
        tenant: String,
        /// Of what.
        resource: &'static str,
        /// How many there are.
        found: usize,
        /// How many there should be.
        expected: usize,
    },
    /// Nothing to plan.
    #[error("the document lists no tenants, or no periods")]
    Empty,
    /// A tenant is listed twice.
    #[error("tenant {tenant} is listed twice")]
    Twice {
        /// Who.
        tenant: String,
    },
}
