//! Rounds in which the updates are looked at one by one: robust rules, and SCAFFOLD.

use std::collections::BTreeMap;

use tributary_agent::train::{correction, move_control};
use tributary_coordinator::aggregation::{self, PackedUpdates};
use tributary_privacy::lattice::{Lattice, LatticeError, ModularSum};
use tributary_protocol::job::{AggregationRule, LocalAlgorithm, TrainingPlan};

use super::HarnessError;
use crate::experiment::{Experiment, TrainingSpec};

/// The control variates of a run with SCAFFOLD.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Controls {
    /// The population's; empty without SCAFFOLD.
    pub(super) population: Vec<f32>,
    /// Of every tenant that has taken part.
    pub(super) own: BTreeMap<u32, Vec<f32>>,
}

/// What one thread keeps of the tenants that it trained in a round.
#[derive(Debug)]
pub(super) struct Singles {
    one: ModularSum,
    /// The packed updates, for a rule that compares them.
    updates: Vec<(u32, Vec<u8>)>,
    /// The tenants' next control variates.
    moved: Vec<(u32, Vec<f32>)>,
}

impl Controls {
    /// - `dimension`: of the model
    pub(super) fn new(experiment: &Experiment, dimension: usize) -> Self {
        let population = vec![0.0; if plan(experiment).is_some() { dimension } else { 0 }];
        Self { population, own: BTreeMap::new() }
    }

    /// By which a tenant's steps are corrected; empty without SCAFFOLD.
    pub(super) fn correction(&self, tenant: u32) -> Vec<f32> {
        match self.own.get(&tenant) {
            Some(own) => correction(&self.population, own),
            None => self.population.clone(),
        }
    }

    /// Takes in what a round moved.
    ///
    /// - `sum`: of the client updates, as the coordinator has it
    pub(super) fn take(
        &mut self,
        experiment: &Experiment,
        sum: &[f64],
        contributors: usize,
        moved: Vec<(u32, Vec<f32>)>,
    ) {
        if let Some(plan) = plan(experiment) {
            aggregation::move_control(&mut self.population, sum, contributors, plan);
            self.own.extend(moved);
        }
    }
}

/// The plan of a run with SCAFFOLD.
const fn plan(experiment: &Experiment) -> Option<&TrainingPlan> {
    match &experiment.training {
        TrainingSpec::Steps(plan) if matches!(plan.algorithm, LocalAlgorithm::Scaffold { .. }) => {
            Some(plan)
        }
        _ => None,
    }
}

/// Whether the updates of a run are needed one by one.
pub(super) fn are_needed(experiment: &Experiment) -> bool {
    experiment.aggregation != AggregationRule::Mean || plan(experiment).is_some()
}

impl Singles {
    pub(super) fn new(lattice: Lattice, dimension: usize) -> Self {
        let one = ModularSum::new(lattice, dimension);
        Self { one, updates: Vec::new(), moved: Vec::new() }
    }

    /// Where one tenant's update goes before [`keep`](Self::keep).
    pub(super) fn one(&mut self) -> &mut ModularSum {
        self.one.clear();
        &mut self.one
    }

    /// Keeps what is needed of the update that was just released, and adds it to `sum`.
    pub(super) fn keep(
        &mut self,
        experiment: &Experiment,
        controls: &Controls,
        tenant: u32,
        sum: &mut ModularSum,
    ) -> Result<(), HarnessError> {
        let lattice = self.one.lattice();
        if experiment.aggregation != AggregationRule::Mean {
            let values: Vec<i64> = self.one.values().iter().map(|&value| value.into()).collect();
            self.updates.push((tenant, lattice.pack(&values)));
        }
        if let Some(plan) = plan(experiment) {
            let released = lattice.dequantize_sum(self.one.values());
            let released: Vec<f32> = released.into_iter().map(|value| value as f32).collect();
            let zero = || vec![0.0; released.len()];
            let mut own = controls.own.get(&tenant).cloned().unwrap_or_else(zero);
            move_control(&mut own, &controls.population, &released, plan);
            self.moved.push((tenant, own));
        }
        Ok(sum.merge(&self.one)?)
    }
}

/// What all threads kept of a round, in the order of the tenants.
pub(super) struct RoundSingles {
    lattice: Lattice,
    updates: Vec<(u32, Vec<u8>)>,
    /// The tenants' next control variates.
    pub(super) moved: Vec<(u32, Vec<f32>)>,
}

impl RoundSingles {
    pub(super) fn collect<'a>(
        lattice: Lattice,
        threads: impl Iterator<Item = &'a mut Singles>,
    ) -> Self {
        let (mut updates, mut moved) = (Vec::new(), Vec::new());
        for thread in threads {
            updates.append(&mut thread.updates);
            moved.append(&mut thread.moved);
        }
        updates.sort_by_key(|(tenant, _)| *tenant);
        Self { lattice, updates, moved }
    }

    /// The sum that stands for the update which the rule makes of all.
    pub(super) fn combine(
        &self,
        rule: &AggregationRule,
        dimension: usize,
        report_goal: u32,
    ) -> Result<Vec<f64>, HarnessError> {
        let mut combined = aggregation::combine(rule, self, self.lattice, dimension)?;
        combined.iter_mut().for_each(|value| *value *= f64::from(report_goal));
        Ok(combined)
    }
}

impl PackedUpdates for RoundSingles {
    type Error = LatticeError;

    fn count(&self) -> usize {
        self.updates.len()
    }

    fn read(&self, update: usize, offset: usize, bytes: &mut [u8]) -> Result<(), LatticeError> {
        let (_, packed) = &self.updates[update];
        bytes.copy_from_slice(&packed[offset..offset + bytes.len()]);
        Ok(())
    }
}
