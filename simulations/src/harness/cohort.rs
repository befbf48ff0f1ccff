//! Who takes part in which round.

use std::collections::BTreeSet;

use rand::{Rng, RngExt};
use tributary_coordinator::cohort;
use tributary_protocol::id::TenantId;

use super::seeds::{Purpose, Seeds};
use crate::experiment::{CohortSampling, CohortSpec};

/// The cohorts of all rounds: a function of population, file and seed, never of data.
#[derive(Debug, Clone)]
pub struct Schedule {
    spec: CohortSpec,
    ids: BTreeSet<TenantId>,
    seeds: Seeds,
}

/// Who takes part in one round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoundCohort {
    /// Tenants that get the model.
    pub invited: Vec<u32>,
    /// Tenants whose updates are summed; empty if the round is abandoned.
    pub reporting: Vec<u32>,
}

impl Schedule {
    /// - `tenants`: size of the population
    /// - `seed`: of the run
    #[must_use]
    pub fn new(spec: &CohortSpec, tenants: usize, seed: u64) -> Self {
        // Zero-padded, so that the ids sort as the numbers.
        let id = |tenant| TenantId::new(format!("{tenant:010}")).expect("made of digits");
        Self { spec: spec.clone(), ids: (0..tenants).map(id).collect(), seeds: Seeds(seed) }
    }

    /// The cohort of a round, from 1.
    #[must_use]
    pub fn round(&self, round: u64) -> RoundCohort {
        let size = self.spec.size as usize;
        let invited: Vec<u32> = match self.spec.sampling {
            CohortSampling::Fixed => {
                let seed = self.seeds.number(Purpose::Cohort, round);
                let chosen = cohort::choose(&self.ids, size, seed);
                chosen.iter().map(|id| id.as_str().parse().expect("made of digits")).collect()
            }
            CohortSampling::Poisson => {
                let rate = size as f64 / self.ids.len() as f64;
                let mut random = self.seeds.fast(Purpose::Cohort, round, 0);
                (0..self.ids.len() as u32).filter(|_| random.random_bool(rate)).collect()
            }
        };
        // Who reports first is random; later reports than the goal are not waited for.
        let mut random = self.seeds.fast(Purpose::Dropout, round, 0);
        let mut survivors: Vec<(u64, u32)> = Vec::with_capacity(invited.len());
        for &tenant in &invited {
            let arrival = random.next_u64();
            if !random.random_bool(self.spec.dropout_rate) {
                survivors.push((arrival, tenant));
            }
        }
        survivors.sort_unstable();
        if survivors.len() < self.spec.size_min as usize {
            survivors.clear();
        }
        if self.spec.sampling == CohortSampling::Fixed {
            survivors.truncate(self.spec.report_goal() as usize);
        }
        let mut reporting: Vec<u32> = survivors.into_iter().map(|(_, tenant)| tenant).collect();
        reporting.sort_unstable();
        RoundCohort { invited, reporting }
    }

    /// How often the tenant that takes part most often does so in the first `rounds` rounds.
    #[must_use]
    pub fn participations_max(&self, rounds: u64) -> u64 {
        let mut counts = vec![0_u64; self.ids.len()];
        for round in 1..=rounds {
            for tenant in self.round(round).reporting {
                counts[tenant as usize] += 1;
            }
        }
        counts.into_iter().max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(size: u32) -> CohortSpec {
        CohortSpec {
            size,
            report_goal: None,
            size_min: 1,
            dropout_rate: 0.0,
            sampling: CohortSampling::Fixed,
        }
    }

    #[test]
    fn fixed_cohorts_have_their_size_and_repeat() {
        let schedule = Schedule::new(&spec(10), 50, 3);
        let cohort = schedule.round(7);
        assert_eq!((cohort.invited.len(), &cohort.invited), (10, &cohort.reporting));
        assert_eq!(cohort, Schedule::new(&spec(10), 50, 3).round(7));
        assert_ne!(cohort, schedule.round(8));
        assert_ne!(cohort, Schedule::new(&spec(10), 50, 4).round(7));
    }

    #[test]
    fn dropouts_goals_and_minima_shape_the_reports() {
        let lossy = CohortSpec { dropout_rate: 0.5, report_goal: Some(30), ..spec(100) };
        let schedule = Schedule::new(&lossy, 100, 1);
        assert!((1..=5).all(|round| schedule.round(round).reporting.len() == 30));
        let strict = CohortSpec { size_min: 90, report_goal: Some(95), ..lossy };
        assert!(Schedule::new(&strict, 100, 1).round(1).reporting.is_empty());
    }

    #[test]
    fn poisson_cohorts_have_the_size_on_average() {
        let poisson = CohortSpec { sampling: CohortSampling::Poisson, ..spec(20) };
        let schedule = Schedule::new(&poisson, 100, 1);
        let sizes: Vec<usize> =
            (1..=200).map(|round| schedule.round(round).invited.len()).collect();
        let mean = sizes.iter().sum::<usize>() as f64 / 200.0;
        assert!((18.5..21.5).contains(&mean) && sizes.iter().any(|&size| size != 20), "{mean}");
        let most = schedule.participations_max(200);
        assert!((45..80).contains(&most), "{most}");
    }
}
