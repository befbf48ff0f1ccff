//! Distributed noise under secure aggregation: how large shares, lattice and sums are.
//!
//! Every member of a cohort adds a share of the noise, sized for the fewest honest members that any
//! committed sum contains, so that dropouts and colluding members never weaken the sum's noise.
//! Both sides compute these numbers from the job alone: a coordinator cannot hand an agent weaker
//! ones.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    lattice::{Lattice, LatticeError, LatticeRequest},
    mechanism::PrivacyEvent,
    noise::{DiscreteGaussian, NoiseError, NoiseSource},
    secagg::{Adversary, COHORT_MIN, PlanError, SecaggPlan, SumBound, sigma_share},
};

/// The accepted probability that an honest update exceeds the range that agents check before
/// masking, or an honest sum the plausibility bound.
const FALSE_ALARM_MAX: f64 = 1.0 / (1_u64 << 40) as f64;

/// What a job asks of a sum.
///
/// - Neighbouring relation: add or remove the unit that `norm_max` bounds.
/// - The sum's noise has deviation `noise_sigma` at least, from honest members alone.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistributedNoise {
    /// Number of coordinates.
    pub dimension: u64,
    /// L2 bound of one member's update before noise, model units.
    pub norm_max: f64,
    /// Deviation of the noise of every coordinate of the sum, at least; model units.
    pub noise_sigma: f64,
    /// Fewest updates that a committed sum may have.
    pub survivors_min: u32,
    /// Most members of a cohort.
    pub cohort_size_max: u32,
    /// Share of a cohort that may drop out.
    pub dropout_max: f64,
    /// Share of a cohort that may collude with the coordinator.
    pub corrupt_max: f64,
    /// What the coordinator may do.
    pub adversary: Adversary,
}

/// Says why a job has no secure sum.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum DistributedError {
    /// No plan withstands what the job names.
    #[error("no cohort of {cohort_size} withstands what the job names")]
    Plan {
        /// Members of the cohort.
        cohort_size: u32,
        /// Why.
        #[source]
        source: PlanError,
    },
    /// The modulus is too narrow.
    #[error("the sum of a cohort of {cohort_size} does not fit the lattice")]
    Lattice {
        /// Members of the cohort.
        cohort_size: u32,
        /// Why.
        #[source]
        source: LatticeError,
    },
}

impl DistributedNoise {
    /// Graph, threshold and fewest survivors of a cohort.
    ///
    /// - `cohort_size`: members that accepted the assignment
    ///
    /// # Errors
    /// [`DistributedError::Plan`].
    pub fn plan(&self, cohort_size: u32) -> Result<SecaggPlan, DistributedError> {
        let plan =
            SecaggPlan::choose(cohort_size, self.dropout_max, self.corrupt_max, self.adversary);
        plan.and_then(|plan| plan.with_survivors_min(plan.survivors_min().max(self.survivors_min)))
            .map_err(|source| DistributedError::Plan { cohort_size, source })
    }

    /// The deviation of one member's share of the noise, in model units.
    #[must_use]
    pub fn share_sigma(&self, plan: &SecaggPlan) -> f64 {
        sigma_share(self.noise_sigma, plan.honest_survivors_min())
    }

    /// The finest lattice on which the sum of no possible cohort wraps, but with the stated
    /// probability.
    ///
    /// # Errors
    /// [`DistributedError`] if the full cohort has no plan, or naming the cohort that does not fit.
    pub fn lattice(
        &self,
        bits: u8,
        wrap_probability_max: f64,
    ) -> Result<Lattice, DistributedError> {
        let smallest = self.survivors_min.max(COHORT_MIN);
        let mut coarsest: Option<Lattice> = None;
        for cohort_size in smallest..=self.cohort_size_max.max(smallest) {
            let plan = match self.plan(cohort_size) {
                Ok(plan) => plan,
                // A smaller cohort that withstands too little never gets as far as a sum.
                Err(_) if cohort_size < self.cohort_size_max => continue,
                Err(error) => return Err(error),
            };
            let request = LatticeRequest {
                dimension: self.dimension as usize,
                norm_max: self.norm_max,
                noise_sigma: self.share_sigma(&plan),
                contributors_max: cohort_size,
                bits,
                wrap_probability_max,
            };
            let lattice = Lattice::plan(&request)
                .map_err(|source| DistributedError::Lattice { cohort_size, source })?;
            if coarsest.is_none_or(|coarsest| coarsest.step() < lattice.step()) {
                coarsest = Some(lattice);
            }
        }
        Ok(coarsest.expect("the full cohort has a plan"))
    }

    /// The largest magnitude of a coordinate of one member's noisy update, in grid units: what
    /// agents check before they mask.
    ///
    /// The share is sub-Gaussian, so an honest update exceeds it with probability 2^-40 at most.
    #[must_use]
    pub fn coordinate_max(&self, plan: &SecaggPlan, lattice: Lattice) -> u32 {
        let deviations = (2.0 * (2.0 * self.dimension as f64 / FALSE_ALARM_MAX).ln()).sqrt();
        let reach = (self.norm_max + self.share_sigma(plan) * deviations) / lattice.step();
        let representable = (1_u32 << (lattice.bits() - 1)) - 1;
        (reach.ceil() as u32).clamp(1, representable)
    }

    /// The largest sum that honest members make.
    #[must_use]
    pub fn sum_bound(&self, plan: &SecaggPlan, lattice: Lattice) -> SumBound {
        SumBound {
            norm_max: self.norm_max / lattice.step(),
            noise_sigma: self.share_sigma(plan) / lattice.step(),
            false_alarm_max: FALSE_ALARM_MAX,
        }
    }

    /// Adds one member's share of the noise, and reduces modulo `2^bits`.
    ///
    /// - `update`: shape `[dimension]`, grid units, within `norm_max` in L2
    /// - returns: shape `[dimension]`, each below `2^bits`; ready to be masked
    /// - Randomness: `noise`
    ///
    /// # Errors
    /// [`NoiseError`] if the share has no sampler on this lattice.
    pub fn add_share(
        &self,
        plan: &SecaggPlan,
        lattice: Lattice,
        mut update: Vec<i64>,
        noise: &mut impl NoiseSource,
    ) -> Result<Vec<u32>, NoiseError> {
        // The factor absorbs the rounding of the f64 division: up, never down.
        let sigma = self.share_sigma(plan) / lattice.step() * (1.0 + 4.0 * f64::EPSILON);
        DiscreteGaussian::new(sigma)?.add_to(noise, &mut update);
        let mask = u32::MAX >> (32 - u32::from(lattice.bits()));
        Ok(update.into_iter().map(|value| value as u32 & mask).collect())
    }

    /// What one sum reveals, by the noise of its honest members alone.
    ///
    /// - `sampling_rate`: probability with which each record joins; 1 if nothing is sampled
    /// - `noise_multiplier`: the job's: deviation of the sum's noise over the clipping norm
    /// - `survivors`: updates in the sum; `None` for the fewest that the plan allows, which is what
    ///   an agent must account for before it knows
    #[must_use]
    pub fn event(
        &self,
        plan: &SecaggPlan,
        lattice: Lattice,
        sampling_rate: f64,
        noise_multiplier: f64,
        survivors: Option<u32>,
    ) -> PrivacyEvent {
        let survivors = survivors.unwrap_or_else(|| plan.survivors_min());
        PrivacyEvent::LatticeGaussian {
            sampling_rate,
            noise_multiplier: noise_multiplier * self.noise_surplus(plan, survivors),
            sigma_share: self.share_sigma(plan) / lattice.step(),
            clients: honest(plan, survivors),
            dimension: self.dimension,
            steps: 1,
        }
    }

    /// How many times the promised deviation a sum's honest noise has, when this many updates are
    /// in it: at least 1, more where fewer dropped out than the plan tolerates.
    #[must_use]
    pub fn noise_surplus(&self, plan: &SecaggPlan, survivors: u32) -> f64 {
        (f64::from(honest(plan, survivors)) / f64::from(plan.honest_survivors_min())).sqrt()
    }
}

/// Honest members among these survivors, at least.
fn honest(plan: &SecaggPlan, survivors: u32) -> u32 {
    survivors.saturating_sub(plan.corrupt_max()).max(plan.honest_survivors_min())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise() -> DistributedNoise {
        DistributedNoise {
            dimension: 1000,
            norm_max: 1.0,
            noise_sigma: 2.0,
            survivors_min: 4,
            cohort_size_max: 10,
            dropout_max: 0.3,
            corrupt_max: 0.1,
            adversary: Adversary::SemiHonest,
        }
    }

    #[test]
    fn shares_of_the_fewest_honest_survivors_reach_the_promised_deviation() {
        let noise = noise();
        let plan = noise.plan(10).expect("possible");
        assert_eq!((plan.survivors_min(), plan.honest_survivors_min()), (7, 6));
        let share = noise.share_sigma(&plan);
        assert!((share * share * 6.0 - 4.0).abs() < 1e-9);
        assert_eq!(noise.noise_surplus(&plan, 7), 1.0);
        assert!((noise.noise_surplus(&plan, 10).powi(2) - 1.5).abs() < 1e-12);
        let small = noise.plan(4).expect("possible");
        assert_eq!(small.survivors_min(), 4, "the job's own minimum counts");
    }

    #[test]
    fn the_lattice_holds_the_largest_cohort_and_the_noisiest() {
        let noise = noise();
        let lattice = noise.lattice(24, 1e-9).expect("fits");
        for cohort_size in 4..=10 {
            let plan = noise.plan(cohort_size).expect("possible");
            let deviation = noise.share_sigma(&plan) * f64::from(cohort_size).sqrt();
            let reach =
                f64::from(cohort_size) + deviation * (2.0 * (2.0 * 1000.0 / 1e-9f64).ln()).sqrt();
            assert!(reach / lattice.step() <= f64::from((1 << 23) - 1));
            assert!(noise.coordinate_max(&plan, lattice) < 1 << 23);
        }
    }

    #[test]
    fn impossible_jobs_name_the_cohort() {
        let greedy = DistributedNoise { dropout_max: 0.5, corrupt_max: 0.4, ..noise() };
        assert!(matches!(greedy.lattice(24, 1e-9), Err(DistributedError::Plan { .. })));
        let narrow = DistributedNoise { norm_max: 1e-9, ..noise() };
        let error = narrow.lattice(8, 1e-9);
        assert!(error.is_ok() || matches!(error, Err(DistributedError::Lattice { .. })));
    }
}
