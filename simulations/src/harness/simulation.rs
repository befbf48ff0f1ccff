//! One run of an experiment, stepped round by round.

use std::ops::ControlFlow;

use ndarray::{Array1, ArrayViewMut1};
use tributary_agent::{
    data::Dataset,
    train::{Evaluation, LocalTask, TrainError, Trainer, evaluate},
};
use tributary_coordinator::{
    optimizer::{self, ServerOptimizer},
    registry::initial_parameters,
};
use tributary_privacy::{clip::clip_l2, lattice::ModularSum};

use super::{
    HarnessError, RoundCohort, Schedule, TenantRow,
    pool::share,
    release::{Path, Release},
    seeds::{Purpose, Seeds},
    state::State,
};
use crate::experiment::{Attack, Experiment, PrivacySpec, Records};

/// Test records that one thread measures at a time.
const EVALUATION_BATCH: usize = 500;
/// Bytes of a parameter of the base model on the wire.
const PARAMETER_BYTES: u64 = 4;

/// A run: the data, the base model and everything between two rounds.
pub struct Simulation<'a> {
    population: Population<'a>,
    schedule: Schedule,
    base: Vec<f32>,
    optimizer: Box<dyn ServerOptimizer>,
    round: u64,
    participations: Vec<u32>,
    workers: Vec<Worker>,
}

/// All tenants, and what they do with an update.
struct Population<'a> {
    experiment: &'a Experiment,
    records: &'a Records,
    /// The training records as attackers that flip labels see them.
    flipped: Option<Dataset>,
    attackers: Vec<bool>,
    seeds: Seeds,
    release: Release,
}

/// What one thread keeps between tenants.
struct Worker {
    sum: ModularSum,
    /// Made by the first tenant that trains.
    trainer: Option<Trainer>,
    /// The update of tenants that do not train.
    zero: Vec<f32>,
}

/// What happened in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundOutcome {
    /// Its number, from 1.
    pub round: u64,
    /// Tenants that got the model.
    pub invited: usize,
    /// Tenants whose updates are in the sum; none if the round was abandoned.
    pub reported: usize,
    /// Bytes from the coordinator to tenants.
    pub bytes_down: u64,
    /// Bytes from tenants to the coordinator.
    pub bytes_up: u64,
}

impl<'a> Simulation<'a> {
    /// Prepares a run at round 0.
    ///
    /// - `seed`: decides everything random
    /// - `threads`: tenants that train at the same time; the result does not depend on it
    ///
    /// # Errors
    /// [`HarnessError`] if noise and norms cannot be planned.
    pub fn new(
        experiment: &'a Experiment,
        records: &'a Records,
        seed: u64,
        threads: usize,
    ) -> Result<Self, HarnessError> {
        let (seeds, tenants) = (Seeds(seed), records.shares.len());
        let schedule = Schedule::new(&experiment.cohort, tenants, seed);
        let release = Release::plan(experiment, &schedule, tenants)?;
        let base = initial_parameters(&experiment.model, seeds.number(Purpose::InitialModel, 0));
        let worker = || Worker {
            sum: ModularSum::new(release.lattice, base.len()),
            trainer: None,
            zero: Vec::new(),
        };
        let flips = experiment.adversary.as_ref().is_some_and(|a| a.attack == Attack::LabelFlip);
        Ok(Self {
            workers: (0..threads.max(1)).map(|_| worker()).collect(),
            optimizer: optimizer::build(&experiment.server_optimizer, Vec::new()),
            round: 0,
            participations: vec![0; tenants],
            population: Population {
                flipped: flips.then(|| flip_labels(&records.train)),
                attackers: attackers(experiment, tenants, seeds),
                experiment,
                records,
                seeds,
                release,
            },
            schedule,
            base,
        })
    }

    /// The last finished round.
    #[must_use]
    pub const fn round(&self) -> u64 {
        self.round
    }

    /// The flat parameters of the base model.
    #[must_use]
    pub fn base(&self) -> &[f32] {
        &self.base
    }

    /// Noise deviation of the protected sum over clipping norm.
    #[must_use]
    pub const fn noise_multiplier(&self) -> Option<f64> {
        self.population.release.noise_multiplier
    }

    /// Runs the next round.
    ///
    /// # Errors
    /// [`HarnessError`] naming tenant and round; the run cannot go on then.
    pub fn step(&mut self) -> Result<RoundOutcome, HarnessError> {
        let round = self.round + 1;
        let RoundCohort { invited, reporting } = self.schedule.round(round);
        let (lattice, dimension) = (self.population.release.lattice, self.base.len());
        if !reporting.is_empty() {
            let (population, base) = (&self.population, &self.base);
            share(&mut self.workers, reporting.len(), |worker, job| {
                population.report(base, worker, reporting[job], round)
            })?;
            let (first, others) = self.workers.split_first_mut().expect("at least one thread");
            for other in others {
                first.sum.merge(&other.sum)?;
                other.sum.clear();
            }
            let mut noise = population.seeds.noise(Purpose::ServerNoise, round, 0);
            population.release.finish(&mut first.sum, &mut noise)?;
            let sum = lattice.dequantize_sum(first.sum.values());
            first.sum.clear();
            let report_goal = population.experiment.cohort.report_goal();
            let gradient = optimizer::pseudo_gradient(sum, report_goal);
            let base = ArrayViewMut1::from(self.base.as_mut_slice());
            self.optimizer.step(base, gradient.view());
            if self.base.iter().any(|parameter| !parameter.is_finite()) {
                return Err(HarnessError::Diverged { round });
            }
        }
        for &tenant in &reporting {
            self.participations[tenant as usize] += 1;
        }
        self.round = round;
        Ok(RoundOutcome {
            round,
            invited: invited.len(),
            reported: reporting.len(),
            bytes_down: invited.len() as u64 * dimension as u64 * PARAMETER_BYTES,
            bytes_up: (reporting.len() * lattice.packed_len(dimension)) as u64,
        })
    }

    /// Measures the base model on the test records, all threads together.
    ///
    /// # Errors
    /// [`HarnessError::Evaluate`].
    pub fn evaluate(&self) -> Result<Evaluation, HarnessError> {
        let test: Vec<u32> = (0..self.population.records.test.len() as u32).collect();
        let batches: Vec<&[u32]> = test.chunks(EVALUATION_BATCH).collect();
        let parts = self.measure(&self.population.records.test, &batches)?;
        let (mut correct, mut loss, mut count) = (0.0, 0.0, 0);
        // In a fixed order, so that the float sum does not depend on the threads.
        for part in parts {
            correct += (part.accuracy * part.num_examples as f64).round();
            loss += part.loss * part.num_examples as f64;
            count += part.num_examples;
        }
        let total = count as f64;
        Ok(Evaluation { accuracy: correct / total, loss: loss / total, num_examples: count })
    }

    /// The tenants' part in the run, and if asked for, the base model on their own records.
    ///
    /// # Errors
    /// [`HarnessError::Evaluate`] or [`HarnessError::Accountant`].
    pub fn tenants(&self) -> Result<Vec<TenantRow>, HarnessError> {
        let shares: Vec<&[u32]> =
            self.population.records.shares.iter().map(Vec::as_slice).collect();
        let own = match self.population.experiment.evaluation.per_tenant {
            true => self
                .measure(&self.population.records.train, &shares)?
                .into_iter()
                .map(Some)
                .collect(),
            false => vec![None; shares.len()],
        };
        // Most tenants share one of a few counts.
        let mut costs = std::collections::BTreeMap::new();
        for &count in &self.participations {
            if let std::collections::btree_map::Entry::Vacant(entry) = costs.entry(count) {
                entry.insert(self.population.release.epsilon(self.round, count.into())?);
            }
        }
        let rows = self.population.records.names.iter().zip(&shares).zip(own).enumerate();
        Ok(rows
            .map(|(tenant, ((name, share), own))| TenantRow {
                tenant: name.clone(),
                num_examples: share.len(),
                participations: self.participations[tenant],
                epsilon: costs[&self.participations[tenant]],
                attacker: self.population.attackers.get(tenant).copied().unwrap_or(false),
                accuracy: own.map(|own| own.accuracy),
                loss: own.map(|own| own.loss),
            })
            .collect())
    }

    fn measure(&self, data: &Dataset, parts: &[&[u32]]) -> Result<Vec<Evaluation>, HarnessError> {
        let (spec, base) = (&self.population.experiment.model, self.base());
        let mut found: Vec<Vec<(usize, Evaluation)>> = vec![Vec::new(); self.workers.len()];
        share(&mut found, parts.len(), |found, job| {
            let evaluation = evaluate(spec, base, None, data, parts[job])?;
            found.push((job, evaluation));
            Ok(())
        })
        .map_err(HarnessError::Evaluate)?;
        let mut all = found.concat();
        all.sort_by_key(|(job, _)| *job);
        Ok(all.into_iter().map(|(_, evaluation)| evaluation).collect())
    }

    /// The ε of the tenant that took part most often so far, if there is noise.
    ///
    /// # Errors
    /// [`HarnessError::Accountant`].
    pub fn epsilon(&self) -> Result<Option<f64>, HarnessError> {
        let most = self.participations.iter().copied().max().unwrap_or(0);
        self.population.release.epsilon(self.round, most.into())
    }

    /// Whose presence the noise hides.
    #[must_use]
    pub const fn unit(&self) -> Option<&'static str> {
        match (&self.population.experiment.privacy, &self.population.release.path) {
            (PrivacySpec::None { .. }, _) => None,
            (_, Path::Record { .. }) => Some("record"),
            _ => Some("tenant"),
        }
    }

    /// Everything that a later process needs to go on.
    pub(super) fn state(&self) -> State {
        State {
            round: self.round,
            participations: self.participations.clone(),
            parameters: self.base.clone(),
            moments: self.optimizer.moments().iter().map(|moment| moment.to_vec()).collect(),
        }
    }

    /// Goes on from a state of the same experiment and seed.
    pub(super) fn restore(&mut self, state: State) {
        let moments = state.moments.into_iter().map(Array1::from_vec).collect();
        self.optimizer = optimizer::build(&self.population.experiment.server_optimizer, moments);
        self.round = state.round;
        self.participations = state.participations;
        self.base = state.parameters;
    }
}

impl Population<'_> {
    /// Trains one tenant and adds what it releases to the worker's sum.
    fn report(
        &self,
        base: &[f32],
        worker: &mut Worker,
        tenant: u32,
        round: u64,
    ) -> Result<(), HarnessError> {
        let trained = |source: TrainError| HarnessError::Train { tenant, round, source };
        let clipped = |source| HarnessError::Clip { tenant, round, source };
        let train = &self.records.shares[tenant as usize];
        let Some(plan) = self.experiment.training.plan(train.len()) else {
            return self.report_nothing(base.len(), worker, tenant, round);
        };
        let attacks = self.attackers.get(tenant as usize).copied().unwrap_or(false);
        let data = match &self.flipped {
            Some(flipped) if attacks => flipped,
            _ => &self.records.train,
        };
        let spec = &self.experiment.model;
        let task = LocalTask { spec, base, data, train, plan: &plan };
        let mut noise = self.seeds.noise(Purpose::Training, round, tenant);
        // All work on this thread: the others have tenants of their own.
        let mut trainer = match worker.trainer.take() {
            Some(trainer) => trainer,
            None => Trainer::new(spec, 1).map_err(trained)?,
        };
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
        match &self.release.path {
            Path::Plain { norm_max } | Path::Record { norm_max, .. } => {
                clip_l2(&mut update, *norm_max).map_err(clipped)?;
                worker.sum.add_update(&update, *norm_max)?;
            }
            Path::Central { clipping_norm, .. } => {
                clip_l2(&mut update, *clipping_norm).map_err(clipped)?;
                worker.sum.add_update(&update, *clipping_norm)?;
            }
            Path::Noised { mechanism } => {
                worker.sum.add_packed(&mechanism.release(&mut update, &mut noise)?)?;
            }
        }
        Ok(())
    }

    /// The release of a tenant that does not train: everything but training.
    fn report_nothing(
        &self,
        dimension: usize,
        worker: &mut Worker,
        tenant: u32,
        round: u64,
    ) -> Result<(), HarnessError> {
        worker.zero.resize(dimension, 0.0);
        match &self.release.path {
            Path::Plain { norm_max }
            | Path::Record { norm_max, .. }
            | Path::Central { clipping_norm: norm_max, .. } => {
                Ok(worker.sum.add_update(&worker.zero, *norm_max)?)
            }
            Path::Noised { mechanism } => {
                let mut noise = self.seeds.noise(Purpose::Training, round, tenant);
                Ok(worker.sum.add_packed(&mechanism.release(&mut worker.zero, &mut noise)?)?)
            }
        }
    }

    fn attack(&self) -> Option<Attack> {
        self.experiment.adversary.as_ref().map(|adversary| adversary.attack)
    }
}

fn flip_labels(data: &Dataset) -> Dataset {
    let last = data.num_classes() - 1;
    data.relabelled(data.labels().iter().map(|&label| last - label).collect())
}

/// Which tenants attack: a random share of the population.
fn attackers(experiment: &Experiment, tenants: usize, seeds: Seeds) -> Vec<bool> {
    let Some(adversary) = &experiment.adversary else { return Vec::new() };
    let count = (adversary.share * tenants as f64).round() as usize;
    let key = |tenant: u32| rand::Rng::next_u64(&mut seeds.fast(Purpose::Adversary, 0, tenant));
    let mut order: Vec<u32> = (0..tenants as u32).collect();
    order.sort_by_key(|&tenant| key(tenant));
    let mut attacks = vec![false; tenants];
    order[..count].iter().for_each(|&tenant| attacks[tenant as usize] = true);
    attacks
}
