//! One run of an experiment, stepped round by round.

mod measure;
mod total;

use std::collections::{BTreeMap, VecDeque};

use ndarray::Array1;
use tributary_coordinator::{
    optimizer::{self, ServerOptimizer, descend},
    registry::initial_parameters,
};
use tributary_privacy::{lattice::ModularSum, secagg::SecaggPlan};
use tributary_protocol::{job::AggregationRule, tensor_file::all_finite};

use self::total::Total;
use super::{
    Alone, HarnessError, Ranks, Report, RoundCohort, Schedule,
    pool::share,
    population::{self, Population, Worker},
    release::{Path, Sender},
    secure::{SecureRound, Terms},
    seeds::{Purpose, Seeds},
    single::{self, Controls, RoundSingles},
    state::State,
};
use crate::experiment::{Experiment, PrivacySpec, Records};

/// Bytes of a parameter of the base model on the wire.
const PARAMETER_BYTES: u64 = 4;
/// Tells the noise of the votes on the clipping norm from the sum's, which is 0.
const VOTES: u32 = 1;

/// A run: the data, the base model and everything between two rounds.
pub struct Simulation<'a> {
    population: Population<'a>,
    schedule: Schedule,
    secagg: Option<SecaggPlan>,
    base: Vec<f32>,
    /// The bases before it, the newest first, for updates that began with them.
    history: VecDeque<Vec<f32>>,
    optimizer: Box<dyn ServerOptimizer>,
    /// Of SCAFFOLD.
    controls: Controls,
    round: u64,
    virtual_s: Option<f64>,
    participations: Vec<u32>,
    workers: Vec<Worker>,
    ranks: &'a dyn Ranks,
}

/// What happened in a round.
#[derive(Debug, Clone, Copy, PartialEq)]
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
    /// Virtual time at its end in seconds, if there is a clock.
    pub virtual_s: Option<f64>,
    /// The clipping norm in model units, where it adapts.
    pub clipping_norm: Option<f64>,
}

/// A weighted sum of updates, and the bytes of secure aggregation.
struct Aggregate {
    total: Total,
    bytes_down: u64,
    bytes_up: u64,
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
        let (schedule, splits, release) = population::plan(experiment, records, seeds)?;
        let base = initial_parameters(&experiment.model, seeds.number(Purpose::InitialModel, 0));
        let dimension = experiment.federated.dimension(&experiment.model);
        let worker = || Worker::new(ModularSum::new(release.lattice, dimension));
        Ok(Self {
            workers: (0..threads.max(1)).map(|_| worker()).collect(),
            optimizer: optimizer::build(&experiment.server_optimizer, dimension, Vec::new()),
            controls: Controls::new(experiment, base.len()),
            round: 0,
            virtual_s: experiment.clock.as_ref().map(|_| 0.0),
            participations: vec![0; tenants],
            population: Population::new(experiment, records, splits, release, seeds),
            secagg: super::secure::plan(experiment)?,
            schedule,
            base,
            history: VecDeque::new(),
            ranks: &Alone,
        })
    }

    /// Shares the work with other processes, which prepared the same run.
    #[must_use]
    pub const fn with_ranks(mut self, ranks: &'a dyn Ranks) -> Self {
        self.ranks = ranks;
        self
    }

    /// The last finished round.
    #[must_use]
    pub const fn round(&self) -> u64 {
        self.round
    }

    /// Virtual time so far in seconds, if there is a clock.
    #[must_use]
    pub const fn virtual_s(&self) -> Option<f64> {
        self.virtual_s
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
        let cohort = self.schedule.round(round);
        let (model, federated) =
            (&self.population.experiment.model, self.population.experiment.federated);
        let (parameters, dimension) = (self.base.len(), federated.dimension(model));
        let aggregate = match cohort.reporting.is_empty() {
            true => None,
            false => self.aggregate(round, &cohort)?,
        };
        let committed = aggregate.is_some();
        let packed = self.population.release.lattice.packed_len(dimension);
        let (mut bytes_down, mut bytes_up) = (0, 0);
        if let Some(aggregate) = aggregate {
            (bytes_down, bytes_up) = (aggregate.bytes_down, aggregate.bytes_up);
            let total = self.look_at_each(aggregate.total, cohort.reporting.len())?;
            self.move_base(round, total)?;
        }
        for report in &cohort.reporting {
            self.participations[report.tenant as usize] += 1;
        }
        let clipping_norm = self.population.release.adaptive_norm();
        self.adapt(round, committed)?;
        self.round = round;
        self.virtual_s = self.virtual_s.zip(cohort.seconds).map(|(now, seconds)| now + seconds);
        Ok(RoundOutcome {
            round,
            invited: cohort.invited.len(),
            reported: if committed { cohort.reporting.len() } else { 0 },
            bytes_down: cohort.invited.len() as u64 * parameters as u64 * PARAMETER_BYTES
                + bytes_down,
            bytes_up: (cohort.reporting.len() * packed) as u64 + bytes_up,
            virtual_s: self.virtual_s,
            clipping_norm,
        })
    }

    /// Moves a clipping norm that adapts; the next sums are on another lattice then.
    fn adapt(&mut self, round: u64, committed: bool) -> Result<(), HarnessError> {
        let Population { experiment, records, release, seeds, .. } = &mut self.population;
        let mut noise = seeds.noise(Purpose::ServerNoise, round, VOTES);
        let tenants = records.shares.len();
        if release.adapt(experiment, tenants, committed, self.ranks, &mut noise)? {
            self.begin_sums();
        }
        Ok(())
    }

    /// Gives every thread an empty sum on the lattice of the open round.
    fn begin_sums(&mut self) {
        let experiment = self.population.experiment;
        let dimension = experiment.federated.dimension(&experiment.model);
        for worker in &mut self.workers {
            worker.sum = ModularSum::new(self.population.release.lattice, dimension);
            worker.singles = None;
        }
    }

    /// The sum of a round's updates, each weighted by its age; `None` if it cannot be unmasked.
    fn aggregate(
        &mut self,
        round: u64,
        cohort: &RoundCohort,
    ) -> Result<Option<Aggregate>, HarnessError> {
        let lattice = self.population.release.lattice;
        let mut secure = match self.secagg {
            None => None,
            Some(plan) => {
                let (base, threads) = (&self.base, self.workers.len());
                let Population { experiment, seeds, .. } = self.population;
                let terms = Terms { experiment, plan, lattice, base, seeds, threads };
                Some(SecureRound::begin(&terms, round, cohort)?)
            }
        };
        // Only updates of the same age are summed on the lattice: their weights are no integers.
        let mut ages: BTreeMap<u32, Vec<Report>> = BTreeMap::new();
        for report in &cohort.reporting {
            ages.entry(report.staleness).or_default().push(*report);
        }
        let asynchronous = &self.population.experiment.asynchronous;
        let mut sums = Vec::new();
        for (age, reports) in ages {
            let mut sum = self.sum(round, age, &reports, secure.as_ref())?;
            if let Some(secure) = &mut secure
                && !secure.unmask(&mut sum)?
            {
                return Ok(None);
            }
            let mut noise = self.population.seeds.noise(Purpose::ServerNoise, round, 0);
            self.population.release.finish(&mut sum, &mut noise)?;
            sums.push((asynchronous.as_ref().map_or(1.0, |spec| spec.weight(age)), sum));
        }
        let (bytes_down, bytes_up) = secure.map_or((0, 0), |s| (s.bytes_down, s.bytes_up));
        Ok(Some(Aggregate { total: Total::Lattice(sums), bytes_down, bytes_up }))
    }

    /// What the rule makes of a round's updates, and SCAFFOLD of its sum.
    fn look_at_each(&mut self, total: Total, reported: usize) -> Result<Total, HarnessError> {
        let experiment = self.population.experiment;
        if !single::are_needed(experiment) {
            return Ok(total);
        }
        let sum = total.into_values(experiment.federated.dimension(&experiment.model));
        let lattice = self.population.release.lattice;
        let threads = self.workers.iter_mut().filter_map(|worker| worker.singles.as_mut());
        let mut singles = RoundSingles::collect(lattice, threads);
        let moved = std::mem::take(&mut singles.moved);
        self.controls.take(experiment, &sum, reported, moved);
        if experiment.aggregation == AggregationRule::Mean {
            return Ok(Total::Values(sum));
        }
        let report_goal = experiment.cohort.report_goal();
        singles.combine(&experiment.aggregation, sum.len(), report_goal).map(Total::Values)
    }

    /// Trains tenants on all threads and processes; returns the sum of what they release.
    fn sum(
        &mut self,
        round: u64,
        age: u32,
        reports: &[Report],
        secure: Option<&SecureRound>,
    ) -> Result<ModularSum, HarnessError> {
        let experiment = self.population.experiment;
        let dimension = experiment.federated.dimension(&experiment.model);
        let base = match age.checked_sub(1) {
            None => &self.base,
            Some(age) => &self.history[age as usize],
        };
        let lattice = self.population.release.lattice;
        let first = &mut self.workers[0].sum;
        if first.values().is_empty() {
            // The last one went on as a whole.
            *first = ModularSum::new(lattice, dimension);
        }
        let own = self.ranks.own(reports.len());
        let (population, controls) = (&self.population, &self.controls);
        if self.ranks.count() > 1 && single::are_needed(population.experiment) {
            return Err(HarnessError::OneProcess);
        }
        let done = share(&mut self.workers, own.len(), |worker, job| {
            let tenant = reports[own[job]].tenant;
            population.report(base, controls, worker, &Sender { tenant, round, secure })
        });
        // Whoever fails must not leave the others waiting.
        if self.ranks.any(done.is_err()) {
            done?;
            return Err(HarnessError::OtherRank);
        }
        let (first, others) = self.workers.split_first_mut().expect("at least one thread");
        for other in others {
            first.sum.absorb(&mut other.sum)?;
        }
        let mut sum = std::mem::replace(&mut first.sum, ModularSum::new(lattice, 0));
        if self.ranks.count() > 1 {
            let mut values = sum.values().to_vec();
            self.ranks.sum_modulo(&mut values, lattice.bits());
            sum.clear();
            sum.add_values(&values)?;
        }
        Ok(sum)
    }

    fn move_base(&mut self, round: u64, total: Total) -> Result<(), HarnessError> {
        let experiment = self.population.experiment;
        if let Some(asynchronous) = &experiment.asynchronous {
            self.history.push_front(self.base.clone());
            self.history.truncate(asynchronous.staleness_max as usize);
        }
        let report_goal = experiment.cohort.report_goal();
        let (model, federated) = (&experiment.model, experiment.federated);
        let mut descend = |parameters: &mut [f32]| {
            descend(&mut *self.optimizer, parameters, report_goal, |range, block| {
                total.read(range, block);
            });
        };
        match federated.span(model) {
            Some(span) => descend(&mut self.base[span]),
            None => {
                let mut trained = federated.start(model, &self.base);
                descend(&mut trained);
                federated.merge(model, &mut self.base, &trained);
            }
        }
        if let Some(sum) = total.into_empty() {
            self.workers[0].sum = sum;
        }
        match all_finite(&self.base) {
            true => Ok(()),
            false => Err(HarnessError::Diverged { round }),
        }
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
            virtual_s: self.virtual_s,
            clipping_norm: self.population.release.adaptive_norm(),
            participations: self.participations.clone(),
            controls: self.controls.clone(),
            parameters: self.base.clone(),
            history: self.history.iter().cloned().collect(),
            moments: self.optimizer.moments().iter().map(|moment| moment.to_vec()).collect(),
        }
    }

    /// Goes on from a state of the same experiment and seed.
    ///
    /// # Errors
    /// [`HarnessError`] if the noise for its clipping norm cannot be planned.
    pub(super) fn restore(&mut self, state: State) -> Result<(), HarnessError> {
        if let Some(norm) = state.clipping_norm {
            let Population { experiment, records, release, .. } = &mut self.population;
            release.restore_norm(norm, experiment, records.shares.len())?;
            self.begin_sums();
        }
        let moments = state.moments.into_iter().map(Array1::from_vec).collect();
        let experiment = self.population.experiment;
        let dimension = experiment.federated.dimension(&experiment.model);
        self.optimizer = optimizer::build(&experiment.server_optimizer, dimension, moments);
        self.round = state.round;
        self.controls = state.controls;
        self.virtual_s = state.virtual_s;
        self.participations = state.participations;
        self.base = state.parameters;
        self.history = state.history.into();
        Ok(())
    }
}
