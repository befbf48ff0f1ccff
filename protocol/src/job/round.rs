//! The schedule of rounds.

use serde::{Deserialize, Serialize};

/// How rounds are scheduled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundPlan {
    /// Number of rounds to commit.
    pub rounds: u64,
    /// Tenants invited to a round, over-selection included.
    pub cohort_size: u32,
    /// Fewest updates with which a round may commit at its deadline.
    pub cohort_size_min: u32,
    /// Updates at which a round commits at once; also the fixed public denominator of the mean.
    pub report_goal: u32,
    /// How long to wait for a full cohort before going on with at least `cohort_size_min` tenants,
    /// in milliseconds.
    #[serde(default = "selection_timeout_default")]
    pub selection_timeout_ms: u64,
    /// How long invited tenants may take to accept or decline, in milliseconds.
    #[serde(default = "configuration_timeout_default")]
    pub configuration_timeout_ms: u64,
    /// How long tenants that accepted may take to report, in milliseconds.
    #[serde(default = "report_timeout_default")]
    pub report_timeout_ms: u64,
}

const fn selection_timeout_default() -> u64 {
    60_000
}

const fn configuration_timeout_default() -> u64 {
    30_000
}

const fn report_timeout_default() -> u64 {
    600_000
}
