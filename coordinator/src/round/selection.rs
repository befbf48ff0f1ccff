//! Selection: waiting until enough tenants could take part.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use tributary_protocol::{
    id::TenantId,
    job::{CohortSampling, RoundPlan},
    time::Timestamp,
};

use super::{Configuration, Input, Phase, RoundError, Setting, Step, closed};
use crate::cohort;

/// Waits for a full cohort, or everyone who could come; after the deadline, for the smallest cohort
/// that may commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    deadline: Timestamp,
    /// Whether the wait for a full cohort is over.
    deadline_passed: bool,
    /// Known only while running; tenants announce themselves again after a restart.
    #[serde(skip)]
    available: BTreeSet<TenantId>,
    #[serde(skip)]
    population: usize,
}

impl Selection {
    pub(super) const fn new(plan: &RoundPlan, now: Timestamp) -> Self {
        let deadline = now.after_ms(plan.selection_timeout_ms);
        Self { deadline, deadline_passed: false, available: BTreeSet::new(), population: 0 }
    }

    pub(super) fn rearm(&mut self, plan: &RoundPlan, now: Timestamp) {
        *self = Self::new(plan, now);
    }

    pub(super) const fn deadline(&self) -> Option<Timestamp> {
        if self.deadline_passed { None } else { Some(self.deadline) }
    }

    pub(super) fn handle(
        &mut self,
        setting: Setting<'_>,
        seed: u64,
        input: Input,
    ) -> Result<Step, RoundError> {
        match input {
            Input::Available { tenants, population } => {
                (self.available, self.population) = (tenants, population);
                Ok(self.settle(setting, seed))
            }
            other => closed(setting.number, "selection", &other).map(|()| Step::Stay),
        }
    }

    pub(super) fn timeout(&mut self, setting: Setting<'_>, seed: u64) -> Step {
        self.deadline_passed = true;
        self.settle(setting, seed)
    }

    pub(super) fn waiting_for(&self, plan: &RoundPlan) -> String {
        format!("waiting for {} tenants, {} available", self.needed(plan), self.available.len())
    }

    fn needed(&self, plan: &RoundPlan) -> usize {
        let (full, min) = (plan.cohort_size as usize, plan.cohort_size_min as usize);
        if self.deadline_passed { min } else { full.min(self.population).max(min) }
    }

    fn settle(&self, setting: Setting<'_>, seed: u64) -> Step {
        let Setting { plan, now, .. } = setting;
        if self.available.len() < self.needed(plan) {
            return Step::Stay;
        }
        let size = plan.cohort_size as usize;
        let cohort = match plan.sampling {
            CohortSampling::Fixed => cohort::choose(&self.available, size, seed),
            CohortSampling::Poisson => {
                cohort::choose_poisson(&self.available, size, self.population, seed)
            }
        };
        if cohort.len() < plan.cohort_size_min as usize {
            let reason = format!(
                "the Poisson draw gave {} of at least {} tenants; the next round draws anew",
                cohort.len(),
                plan.cohort_size_min
            );
            return Step::Next(Phase::Abandoned { reason });
        }
        Step::Next(Phase::Configuration(Configuration::new(cohort, plan, now)))
    }
}
