//! All tenants of a run, and what each does in a round.

use std::ops::ControlFlow;

use tributary_agent::{
    data::{Dataset, Split},
    train::{LocalTask, TrainError, Trainer},
};
use tributary_privacy::lattice::ModularSum;

use super::{
    HarnessError, Schedule, personal,
    release::{Path, Release, Sender},
    seeds::{Purpose, Seeds},
    single::{self, Controls, Singles},
};
use crate::experiment::{Attack, Experiment, Records};

/// All tenants, and what they do with an update.
pub(super) struct Population<'a> {
    pub(super) experiment: &'a Experiment,
    pub(super) records: &'a Records,
    /// The training records as attackers that flip labels see them.
    flipped: Option<Dataset>,
    attackers: Vec<bool>,
    /// The parts of each tenant's records, where adapters need them apart.
    pub(super) splits: Option<Vec<Split>>,
    pub(super) seeds: Seeds,
    pub(super) release: Release,
}

/// What one thread keeps between tenants.
pub(super) struct Worker {
    pub(super) sum: ModularSum,
    /// Made by the first tenant that trains.
    trainer: Option<Trainer>,
    /// The update of tenants that do not train.
    zero: Vec<f32>,
    /// Made where updates are needed one by one.
    pub(super) singles: Option<Singles>,
}

impl Worker {
    pub(super) const fn new(sum: ModularSum) -> Self {
        Self { sum, trainer: None, zero: Vec::new(), singles: None }
    }
}

impl<'a> Population<'a> {
    pub(super) fn new(
        experiment: &'a Experiment,
        records: &'a Records,
        splits: Option<Vec<Split>>,
        release: Release,
        seeds: Seeds,
    ) -> Self {
        let flips = experiment.adversary.as_ref().is_some_and(|a| a.attack == Attack::LabelFlip);
        Self {
            flipped: flips.then(|| flip_labels(&records.train)),
            attackers: attackers(experiment, records.shares.len(), seeds),
            experiment,
            records,
            splits,
            seeds,
            release,
        }
    }

    /// The records on which a tenant trains.
    pub(super) fn train(&self, tenant: u32) -> &[u32] {
        match &self.splits {
            Some(splits) => &splits[tenant as usize].train,
            None => &self.records.shares[tenant as usize],
        }
    }

    pub(super) fn attacks(&self, tenant: u32) -> bool {
        self.attackers.get(tenant as usize).copied().unwrap_or(false)
    }

    /// Trains one tenant and adds what it releases to the worker's sum.
    ///
    /// - `controls`: of SCAFFOLD
    pub(super) fn report(
        &self,
        base: &[f32],
        controls: &Controls,
        worker: &mut Worker,
        sender: &Sender<'_>,
    ) -> Result<(), HarnessError> {
        let Sender { tenant, round, .. } = *sender;
        let trained = |source: TrainError| HarnessError::Train { tenant, round, source };
        let mut noise = self.seeds.noise(Purpose::Training, round, tenant);
        let train = self.train(tenant);
        let Some(plan) = self.experiment.training.plan(train.len()) else {
            let experiment = self.experiment;
            worker.zero.resize(experiment.federated.dimension(&experiment.model), 0.0);
            return self.release.add(&mut worker.sum, &mut worker.zero, &mut noise, sender);
        };
        let attacks = self.attacks(tenant);
        let data = match &self.flipped {
            Some(flipped) if attacks => flipped,
            _ => &self.records.train,
        };
        let spec = &self.experiment.model;
        let task = LocalTask { spec, base, data, train, plan: &plan };
        // All work on this thread: the others have tenants of their own.
        let mut trainer = match worker.trainer.take() {
            Some(trainer) => trainer,
            None => Trainer::of(spec, self.experiment.federated, 1).map_err(trained)?,
        };
        trainer.correct_by(controls.correction(tenant));
        let ignored = &mut |_, _| ControlFlow::Continue(());
        let mut update = match &self.release.path {
            Path::Record { mechanism, .. } => {
                trainer.dp_sgd(&task, mechanism, &mut noise, ignored).map_err(trained)?
            }
            Path::Plain { .. } | Path::Noised { .. } | Path::Central { .. } => {
                let mut source = self.seeds.fast(Purpose::Training, round, tenant);
                trainer.local_sgd(&task, &mut source, ignored).map_err(trained)?
            }
        };
        worker.trainer = Some(trainer);
        if attacks && let Some(Attack::SignFlip { scale }) = self.attack() {
            update.iter_mut().for_each(|value| *value *= -scale);
        }
        if !single::are_needed(self.experiment) {
            return self.release.add(&mut worker.sum, &mut update, &mut noise, sender);
        }
        let new = || Singles::new(worker.sum.lattice(), worker.sum.values().len());
        let singles = worker.singles.get_or_insert_with(new);
        self.release.add(singles.one(), &mut update, &mut noise, sender)?;
        singles.keep(self.experiment, controls, tenant, &mut worker.sum)
    }

    fn attack(&self) -> Option<Attack> {
        self.experiment.adversary.as_ref().map(|adversary| adversary.attack)
    }
}

/// The schedule of a run, the parts of everybody's records, and how updates are released.
pub(super) fn plan(
    experiment: &Experiment,
    records: &Records,
    seeds: Seeds,
) -> Result<(Schedule, Option<Vec<Split>>, Release), HarnessError> {
    let splits =
        experiment.adapters.as_ref().map(|spec| personal::splits(spec, &records.shares, seeds));
    let sizes: Vec<usize> = match &splits {
        Some(splits) => splits.iter().map(|split| split.train.len()).collect(),
        None => records.shares.iter().map(Vec::len).collect(),
    };
    let secagg = super::secure::plan(experiment)?;
    let schedule = Schedule::new(experiment, &sizes, seeds.0)
        .with_size_min(secagg.map_or(0, |plan| plan.survivors_min()));
    let release = Release::plan(experiment, &schedule, sizes.len(), secagg)?;
    Ok((schedule, splits, release))
}

fn flip_labels(data: &Dataset) -> Dataset {
    let last = data.num_classes() - 1;
    data.relabelled(data.labels().iter().map(|&label| last - label).collect())
}

/// Which tenants attack: a random share of the population.
fn attackers(experiment: &Experiment, tenants: usize, seeds: Seeds) -> Vec<bool> {
    let Some(adversary) = &experiment.adversary else { return Vec::new() };
    let count = (adversary.share * tenants as f64).round() as usize;
    seeds.choose(Purpose::Adversary, tenants, count)
}
