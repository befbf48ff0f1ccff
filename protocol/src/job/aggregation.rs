//! How the updates of a round become one.

use serde::{Deserialize, Serialize};

use super::{JobSpecError, first_violation};

/// The rule that turns a round's updates into one.
///
/// All but the mean compare the updates with each other, so they need updates that the coordinator
/// sees one by one: trust `local`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum AggregationRule {
    /// The sum over the fixed, public denominator `round.report_goal`.
    #[default]
    Mean,
    /// The median of each coordinate.
    ///
    /// Source: Yin et al. 2018, arXiv:1803.01498.
    Median,
    /// The mean of each coordinate without its largest and smallest values.
    ///
    /// Source: Yin et al. 2018, arXiv:1803.01498.
    TrimmedMean {
        /// The share of the updates that is left out at each end, above 0 and below 0.5.
        trim: f64,
    },
    /// The one update that is closest to its nearest others.
    ///
    /// Source: Blanchard et al. 2017, arXiv:1703.02757.
    Krum {
        /// Tenants of a cohort that may attack; a round needs at least twice as many and three more.
        byzantine_max: u32,
    },
    /// The mean of the updates that are closest to their nearest others.
    ///
    /// Source: Blanchard et al. 2017, arXiv:1703.02757.
    MultiKrum {
        /// Tenants of a cohort that may attack; a round needs at least twice as many and three more.
        byzantine_max: u32,
        /// Updates whose mean is taken: at most `round.cohort_size_min` less `byzantine_max`.
        selected: u32,
    },
}

impl AggregationRule {
    /// Whether each coordinate is treated by itself, so that a rotation would mix what is compared.
    #[must_use]
    pub const fn is_coordinate_wise(&self) -> bool {
        matches!(self, Self::Median | Self::TrimmedMean { .. })
    }

    /// Checks the rule's numbers.
    ///
    /// - `fewest`: updates with which a round may commit
    ///
    /// # Errors
    /// [`JobSpecError::OutOfRange`] naming the key.
    pub fn validate(&self, fewest: u32) -> Result<(), JobSpecError> {
        let enough = |key, tolerated: u32| {
            let holds = u64::from(fewest) >= 2 * u64::from(tolerated) + 3;
            (
                key,
                tolerated.into(),
                holds,
                "so small that twice as many and 3 more are at most `round.cohort_size_min`",
            )
        };
        match *self {
            Self::Mean => Ok(()),
            Self::Median => first_violation([(
                "round.cohort_size_min",
                fewest.into(),
                fewest >= 3,
                "at least 3 with aggregation \"median\": of two, neither is the odd one out",
            )]),
            Self::TrimmedMean { trim } => first_violation([
                (
                    "aggregation.trimmed-mean.trim",
                    trim,
                    trim > 0.0 && trim < 0.5,
                    "above 0 and below 0.5",
                ),
                (
                    "aggregation.trimmed-mean.trim",
                    trim,
                    trim * f64::from(fewest) >= 1.0,
                    "so large that at least one of `round.cohort_size_min` updates is left out",
                ),
            ]),
            Self::Krum { byzantine_max } => {
                first_violation([enough("aggregation.krum.byzantine_max", byzantine_max)])
            }
            Self::MultiKrum { byzantine_max, selected } => first_violation([
                enough("aggregation.multi-krum.byzantine_max", byzantine_max),
                (
                    "aggregation.multi-krum.selected",
                    selected.into(),
                    (1..=fewest.saturating_sub(byzantine_max)).contains(&selected),
                    "from 1 to `round.cohort_size_min` less `byzantine_max`",
                ),
            ]),
        }
    }
}
