//! Choosing graph, threshold and the smallest surviving cohort of a round.

mod table;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The fewest members a cohort may have: with two, each learns the other's update from the sum.
pub const COHORT_MIN: u32 = 3;
/// Up to here every member is every other's neighbour.
const COMPLETE_MAX: u32 = 60;
/// Absorbs the rounding of `share * size`, so that 0.29 of 100 are 29.
const TOLERANCE: f64 = 1e-9;

/// Whom the protocol withstands, beside a share of corrupt agents that collude with the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Adversary {
    /// A coordinator that follows the protocol and wants to learn more than the sum.
    SemiHonest,
    /// A coordinator that lies: agents confirm the survivors to each other before unmasking.
    MaliciousCoordinator,
}

/// Who is whose neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GraphKind {
    /// Everybody is everybody's.
    Complete,
    /// The `k / 2` next on either side of a ring, in an order that nobody could choose.
    Harary,
}

/// Says why a cohort cannot aggregate securely.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The sum of so few members would reveal one to another.
    #[error("a cohort of {cohort_size} is too small for secure aggregation; at least {COHORT_MIN}")]
    CohortTooSmall {
        /// Members of the cohort.
        cohort_size: u32,
    },
    /// A tolerated share is not a number from 0 to below 1.
    #[error("`{field}` is {value}; it must be at least 0 and below 1")]
    Share {
        /// `dropout_max` or `corrupt_max`.
        field: &'static str,
        /// What was given.
        value: f64,
    },
    /// No threshold is both secure and reachable in the complete graph.
    #[error(
        "{cohort_size} members cannot tolerate {dropouts_max} dropouts and {corrupt_max} corrupt \
         agents: a threshold of at least {threshold_min} is secure, at most {threshold_max} reachable"
    )]
    NoThreshold {
        /// Members of the cohort.
        cohort_size: u32,
        /// Tolerated dropouts.
        dropouts_max: u32,
        /// Tolerated corrupt members.
        corrupt_max: u32,
        /// Shares that must be needed.
        threshold_min: u32,
        /// Shares that are sure to be there.
        threshold_max: u32,
    },
    /// The table has no sparse graph for the request.
    #[error(
        "no sparse graph is known for {cohort_size} members, dropouts {dropout_max} and corruption \
         {corrupt_max}; the table ends at 10000, 0.3 and 0.333"
    )]
    NoGraph {
        /// Members of the cohort.
        cohort_size: u32,
        /// Tolerated dropouts as a share.
        dropout_max: f64,
        /// Tolerated corruption as a share.
        corrupt_max: f64,
    },
    /// The asked-for number of survivors is not possible.
    #[error("{asked} survivors were asked for; the plan allows {lowest} to {highest}")]
    Survivors {
        /// What was asked.
        asked: u32,
        /// What the tolerated dropouts leave.
        lowest: u32,
        /// The cohort.
        highest: u32,
    },
}

/// The public parameters of a round of secure aggregation.
///
/// Agents compute it themselves from the cohort's size and the job's shares, with
/// [`choose`](Self::choose); a coordinator cannot hand them a weaker one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecaggPlan {
    cohort_size: u32,
    neighbours: u32,
    threshold: u32,
    survivors_min: u32,
    corrupt_max: u32,
    graph: GraphKind,
    adversary: Adversary,
}

impl SecaggPlan {
    /// Chooses graph and threshold: complete for up to 60 members, sparse above.
    ///
    /// - `cohort_size`: members that are invited
    /// - `dropout_max`: the share of them that may be lost in all steps together
    /// - `corrupt_max`: the share that may collude with the coordinator; a positive share of a
    ///   small cohort is at least one agent
    ///
    /// # Errors
    /// [`PlanError`] with the reason why there is none.
    ///
    /// Source: Bell et al. 2020, ePrint 2020/704.
    pub fn choose(
        cohort_size: u32,
        dropout_max: f64,
        corrupt_max: f64,
        adversary: Adversary,
    ) -> Result<Self, PlanError> {
        check_shares(cohort_size, dropout_max, corrupt_max)?;
        if cohort_size <= COMPLETE_MAX {
            return Self::complete(cohort_size, dropout_max, corrupt_max, adversary);
        }
        let cell = table::look_up(cohort_size, corrupt_max, dropout_max, adversary)
            .ok_or(PlanError::NoGraph { cohort_size, dropout_max, corrupt_max })?;
        if cell.neighbours + 1 >= cohort_size {
            return Self::complete(cohort_size, dropout_max, corrupt_max, adversary);
        }
        Ok(Self {
            cohort_size,
            neighbours: cell.neighbours,
            threshold: cell.threshold_min.midpoint(cell.threshold_max),
            survivors_min: cohort_size - members(dropout_max, cohort_size),
            corrupt_max: corrupt_members(corrupt_max, cohort_size),
            graph: GraphKind::Harary,
            adversary,
        })
    }

    /// The complete graph, whatever the size.
    ///
    /// With `c` corrupt members and `d` dropouts, `k = n - 1` others hold shares. A threshold `t`
    /// is secure if `t > c`, and against a lying coordinator if `2 t > k + c` (honest agents answer
    /// for one survivor set only, so two sets cannot both reach `t`); it is reachable if
    /// `t <= k - d`. The middle of what remains leaves a margin on both sides.
    ///
    /// # Errors
    /// [`PlanError`] with the reason why there is none.
    pub fn complete(
        cohort_size: u32,
        dropout_max: f64,
        corrupt_max: f64,
        adversary: Adversary,
    ) -> Result<Self, PlanError> {
        check_shares(cohort_size, dropout_max, corrupt_max)?;
        let neighbours = cohort_size - 1;
        let dropouts_max = members(dropout_max, cohort_size);
        let corrupt_max = corrupt_members(corrupt_max, cohort_size);
        let threshold_min = match adversary {
            // One share alone must never be enough, even if nobody is taken to be corrupt.
            Adversary::SemiHonest => (corrupt_max + 1).max(2),
            Adversary::MaliciousCoordinator => (neighbours + corrupt_max) / 2 + 1,
        };
        let threshold_max = neighbours.saturating_sub(dropouts_max);
        if threshold_min > threshold_max {
            return Err(PlanError::NoThreshold {
                cohort_size,
                dropouts_max,
                corrupt_max,
                threshold_min,
                threshold_max,
            });
        }
        Ok(Self {
            cohort_size,
            neighbours,
            threshold: threshold_min.midpoint(threshold_max),
            survivors_min: cohort_size - dropouts_max,
            corrupt_max,
            graph: GraphKind::Complete,
            adversary,
        })
    }

    /// Raises the number of survivors below which the round is abandoned.
    ///
    /// # Errors
    /// [`PlanError::Survivors`] below what the plan has, or above the cohort.
    pub const fn with_survivors_min(mut self, survivors_min: u32) -> Result<Self, PlanError> {
        if survivors_min < self.survivors_min || survivors_min > self.cohort_size {
            return Err(PlanError::Survivors {
                asked: survivors_min,
                lowest: self.survivors_min,
                highest: self.cohort_size,
            });
        }
        self.survivors_min = survivors_min;
        Ok(self)
    }

    /// Members that are invited.
    #[must_use]
    pub const fn cohort_size(&self) -> u32 {
        self.cohort_size
    }

    /// The degree `k` of the graph.
    #[must_use]
    pub const fn neighbours(&self) -> u32 {
        self.neighbours
    }

    /// The number `t` of shares that reconstruct a secret.
    #[must_use]
    pub const fn threshold(&self) -> u32 {
        self.threshold
    }

    /// The fewest updates that a sum may have; with fewer the round is abandoned.
    #[must_use]
    pub const fn survivors_min(&self) -> u32 {
        self.survivors_min
    }

    /// Members that may collude with the coordinator.
    #[must_use]
    pub const fn corrupt_max(&self) -> u32 {
        self.corrupt_max
    }

    /// The fewest honest updates in any sum: what distributed noise shares are sized for.
    #[must_use]
    pub const fn honest_survivors_min(&self) -> u32 {
        self.survivors_min - self.corrupt_max
    }

    /// Who is whose neighbour.
    #[must_use]
    pub const fn graph(&self) -> GraphKind {
        self.graph
    }

    /// Whom it withstands.
    #[must_use]
    pub const fn adversary(&self) -> Adversary {
        self.adversary
    }
}

/// The noise deviation that each member adds so that any sum the round may commit has
/// `sigma_total` from honest members alone.
///
/// Variances of independent shares add, so `sigma_total / sqrt(honest_survivors_min)`, rounded up.
/// More survivors than the minimum make the noise larger, never smaller.
///
/// - `sigma_total`: deviation of the sum's noise, any unit
/// - `honest_survivors_min`: see [`SecaggPlan::honest_survivors_min`]
/// - returns: deviation of one share, the same unit
///
/// Source: Kairouz, Liu, Steinke 2021, arXiv:2102.06387.
#[must_use]
pub fn sigma_share(sigma_total: f64, honest_survivors_min: u32) -> f64 {
    let share = sigma_total / f64::from(honest_survivors_min).sqrt();
    // Root and quotient are each rounded to nearest: two steps up cover both.
    if share > 0.0 { share.next_up().next_up() } else { share }
}

fn check_shares(cohort_size: u32, dropout_max: f64, corrupt_max: f64) -> Result<(), PlanError> {
    if cohort_size < COHORT_MIN {
        return Err(PlanError::CohortTooSmall { cohort_size });
    }
    for (field, value) in [("dropout_max", dropout_max), ("corrupt_max", corrupt_max)] {
        if !(0.0..1.0).contains(&value) {
            return Err(PlanError::Share { field, value });
        }
    }
    Ok(())
}

/// How many whole members a share of the cohort is.
fn members(share: f64, cohort_size: u32) -> u32 {
    share.mul_add(f64::from(cohort_size), TOLERANCE) as u32
}

fn corrupt_members(share: f64, cohort_size: u32) -> u32 {
    members(share, cohort_size).max(u32::from(share > 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Adversary; 2] = [Adversary::SemiHonest, Adversary::MaliciousCoordinator];

    #[test]
    fn small_cohorts_get_the_complete_graph() {
        let plan = SecaggPlan::choose(5, 0.2, 0.2, Adversary::MaliciousCoordinator);
        let plan = plan.expect("possible");
        assert_eq!(plan.graph(), GraphKind::Complete);
        assert_eq!((plan.neighbours(), plan.threshold()), (4, 3));
        assert_eq!((plan.survivors_min(), plan.honest_survivors_min()), (4, 3));
        for adversary in BOTH {
            let plan = SecaggPlan::choose(60, 0.1, 0.1, adversary).expect("possible");
            assert_eq!((plan.graph(), plan.neighbours()), (GraphKind::Complete, 59));
            let plan = SecaggPlan::choose(61, 0.1, 0.1, adversary).expect("possible");
            assert_eq!(plan.graph(), GraphKind::Harary);
        }
        // The degree of the table's next cell exceeds the cohort.
        let plan = SecaggPlan::choose(70, 0.3, 0.1, Adversary::MaliciousCoordinator);
        assert_eq!(plan.expect("possible").graph(), GraphKind::Complete);
    }

    #[test]
    fn the_reference_row_without_a_sparse_graph_is_complete() {
        let plan = SecaggPlan::choose(20, 0.3, 0.333, Adversary::MaliciousCoordinator);
        let plan = plan.expect("the complete graph does it");
        assert_eq!((plan.neighbours(), plan.threshold(), plan.corrupt_max()), (19, 13, 6));
    }

    #[test]
    fn thresholds_of_complete_graphs_are_secure_and_reachable() {
        for adversary in BOTH {
            for size in 3..=120u32 {
                for (dropout, corrupt) in [(0.0, 0.0), (0.1, 0.05), (0.2, 0.2), (0.3, 0.333)] {
                    let Ok(plan) = SecaggPlan::complete(size, dropout, corrupt, adversary) else {
                        continue;
                    };
                    let (t, k, c) = (plan.threshold(), plan.neighbours(), plan.corrupt_max());
                    assert!(t > c && t >= 2 && t <= k);
                    assert!(adversary == Adversary::SemiHonest || 2 * t > k + c);
                    assert!(plan.survivors_min() > t, "{plan:?}");
                    assert!(plan.honest_survivors_min() >= 2);
                }
            }
        }
    }

    #[test]
    fn impossible_requests_say_why() {
        let choose = |size, dropout, corrupt| {
            SecaggPlan::choose(size, dropout, corrupt, Adversary::MaliciousCoordinator)
        };
        for cohort_size in 0..COHORT_MIN {
            assert_eq!(
                choose(cohort_size, 0.0, 0.0),
                Err(PlanError::CohortTooSmall { cohort_size })
            );
        }
        assert!(matches!(choose(10, 0.4, 0.4), Err(PlanError::NoThreshold { .. })));
        assert!(matches!(choose(20_000, 0.1, 0.1), Err(PlanError::NoGraph { .. })));
        assert!(matches!(choose(1000, 0.1, 0.4), Err(PlanError::NoGraph { .. })));
        for bad in [f64::NAN, -0.1, 1.0, f64::INFINITY] {
            assert!(matches!(
                choose(10, bad, 0.1),
                Err(PlanError::Share { field: "dropout_max", .. })
            ));
            assert!(matches!(
                choose(10, 0.1, bad),
                Err(PlanError::Share { field: "corrupt_max", .. })
            ));
        }
        let plan = choose(10, 0.2, 0.1).expect("possible");
        assert_eq!(plan.survivors_min(), 8);
        assert_eq!(plan.with_survivors_min(9).expect("possible").survivors_min(), 9);
        assert!(matches!(plan.with_survivors_min(7), Err(PlanError::Survivors { .. })));
        assert!(matches!(plan.with_survivors_min(11), Err(PlanError::Survivors { .. })));
    }

    #[test]
    fn noise_shares_of_the_fewest_honest_survivors_suffice() {
        for honest in 1..2000u32 {
            let share = sigma_share(3.7, honest);
            assert!(share * share * f64::from(honest) >= 3.7 * 3.7 * (1.0 - 1e-15));
            assert!(share < 3.7 / f64::from(honest).sqrt() * (1.0 + 1e-12));
        }
        assert_eq!(sigma_share(0.0, 5), 0.0);
    }
}
