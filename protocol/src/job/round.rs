//! The schedule of rounds.

use serde::{Deserialize, Serialize};

use super::{JobSpecError, first_violation};

/// How rounds are scheduled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundPlan {
    /// Number of rounds to commit.
    pub rounds: u64,
    /// Tenants invited to a round, over-selection included: exactly so many with fixed sampling, so
    /// many on average with Poisson sampling. In asynchronous mode, how many train at a time.
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
    /// How the invited are drawn from those who could come.
    #[serde(default)]
    pub sampling: CohortSampling,
    /// Lets tenants train from older bases while others are ahead; absent, rounds are synchronous.
    #[serde(default)]
    pub asynchronous: Option<AsynchronousPlan>,
}

/// How a round's tenants are drawn.
///
/// No privacy amplification is claimed from either: the coordinator sees the sample.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CohortSampling {
    /// Exactly `cohort_size`, without replacement.
    #[default]
    Fixed,
    /// Every tenant joins independently, with probability `cohort_size` over the population. A
    /// draw of fewer than `cohort_size_min` abandons the round, and the next one draws anew.
    Poisson,
}

/// Buffered asynchronous rounds: each tenant trains at its own pace from the base that was the
/// newest when it was invited, and a round commits when `report_goal` updates are in its buffer.
///
/// Source: Nguyen et al. 2022, arXiv:2106.06639 (FedBuff).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AsynchronousPlan {
    /// How many versions the base of an update may lie behind, at most 16. The coordinator keeps one
    /// sum for each number of versions, so that all sums stay exact.
    pub staleness_max: u32,
    /// An update from `s` versions behind counts with the public weight `(1 + s)^-exponent`.
    #[serde(default = "staleness_exponent_default")]
    pub staleness_exponent: f64,
}

impl AsynchronousPlan {
    /// The weight of an update whose base lies so many versions behind, in (0, 1].
    #[must_use]
    pub fn weight(&self, staleness: u32) -> f64 {
        (1.0 + f64::from(staleness)).powf(-self.staleness_exponent)
    }

    pub(super) fn validate(&self) -> Result<(), JobSpecError> {
        let (staleness, exponent) = (self.staleness_max, self.staleness_exponent);
        first_violation([
            (
                "round.asynchronous.staleness_max",
                staleness.into(),
                staleness <= 16,
                "at most 16: each class of staleness is one more sum in memory",
            ),
            (
                "round.asynchronous.staleness_exponent",
                exponent,
                (0.0..=8.0).contains(&exponent),
                "from 0 (all count the same) to 8",
            ),
        ])
    }
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

const fn staleness_exponent_default() -> f64 {
    0.5
}
