//! An agent's work on a round: a stand-in with known updates, or, where the noise of a run goes on from
//! round to round, the agent's own training on a few records.

use std::ops::ControlFlow;

use rand::{Rng, RngExt};
use tributary_agent::{
    data::Dataset,
    policy::Approved,
    secagg::{self, Exchange},
    session::{Input, RoundKey, TrainingEnd},
    update::{
        Release, RoundData, RunUpdate, Standing, UpdateError, correlated_update, release,
        release_run, standing,
    },
};
use tributary_privacy::{
    lattice::{Lattice, ModularSum},
    noise::SeededNoise,
};
use tributary_protocol::{
    error_code::Refusal, id::Digest, job::PrivacyUnit, message::Assignment, tensor_file,
};

use super::{
    agent::{Process, Training},
    play::{Work, World},
};

/// Records of each tenant where training is real.
const RECORDS: u32 = 6;

impl World {
    pub(super) fn begin_training(&mut self, tenant: u32) {
        let site = &mut self.agents[tenant as usize];
        let training = site.process.as_mut().and_then(|process| process.training.as_mut());
        // What has arrived may be the base of a round that was closed meanwhile.
        let is_here =
            |it: &&mut Training| site.models.contains_key(&it.assignment.base.file.digest);
        let training = training.filter(|it| it.fetching).filter(is_here);
        let Some(training) = training else { return };
        training.fetching = false;
        let key = training.key.clone();
        self.work(tenant, self.scenario.training_ms, Work::Train(key));
    }

    pub(super) fn cancel_training(&mut self, tenant: u32, key: &RoundKey) {
        let process = self.agents[tenant as usize].process.as_mut();
        let Some(training) = process.and_then(|process| process.training.as_mut()) else { return };
        if training.key == *key {
            training.cancelled = true;
            let key = key.clone();
            if std::mem::take(&mut training.fetching) {
                self.work(tenant, (0, 1), Work::Train(key));
            }
        }
    }

    pub(super) fn base_refused(&mut self, tenant: u32, refusal: Refusal) {
        let process = self.agents[tenant as usize].process.as_mut();
        let training = process.and_then(|process| process.training.take_if(|at| at.fetching));
        if let Some(Training { key, .. }) = training {
            let outcome = Err(TrainingEnd::NoBase(refusal));
            self.give(tenant, Input::Trained { key, outcome });
        }
    }

    /// Makes an update, masks it where that is asked for, and releases it.
    pub(super) fn release(
        &mut self,
        tenant: u32,
        training: &Training,
    ) -> Result<Release, TrainingEnd> {
        if training.cancelled {
            return Err(TrainingEnd::Cancelled);
        }
        let failed = |error: UpdateError| TrainingEnd::Failed(error.refusal());
        let Training { assignment, approved, exchange, .. } = training;
        let now = self.agent_clock(tenant);
        let site = &self.agents[tenant as usize];
        let process = site.process.as_ref().expect("it has trained");
        let Process { ledger, releases, .. } = process;
        // Another round may have been debited since this one was examined.
        let standing = standing(ledger, releases, assignment, approved, now.0).map_err(failed)?;
        if let Standing::Released(release) = standing {
            return Ok(release);
        }
        let mut approved = approved.clone();
        let (values, trained) = match exchange {
            None if approved.run.is_some() => self.train_in_run(tenant, assignment, &approved),
            None => self.stand_in(assignment),
            Some(exchange) => self.masked(assignment, exchange, &mut approved),
        }
        .map_err(failed)?;
        let site = &self.agents[tenant as usize];
        let digest = Digest::of(trained.packed());
        self.checks.made(digest, &site.tenant, &assignment.job.name, assignment.round, values);
        let Process { ledger, releases, .. } = site.process.as_ref().expect("it has trained");
        match trained {
            Trained::Packed(packed) => {
                release(ledger, releases, assignment, &approved, &packed, &|| false, now.0)
            }
            Trained::PartOfRun(update) => {
                release_run(ledger, releases, assignment, &approved, &update, &|| false, now.0)
            }
        }
        .map_err(failed)
    }

    /// Values within the bound of the update.
    fn grid(&mut self, assignment: &Assignment) -> Result<(Lattice, Vec<i64>), UpdateError> {
        let job = &assignment.job;
        let lattice = Lattice::new(assignment.lattice.step, assignment.lattice.bits)?;
        let dimension = job.model.num_parameters();
        let norm = match job.privacy.unit {
            PrivacyUnit::Record => job.training.update_norm_max,
            PrivacyUnit::Tenant => job.privacy.clipping_norm,
        };
        let bound = (0.9 * norm / lattice.step() / (dimension as f64).sqrt()) as i64;
        let grid = (0..dimension).map(|_| self.draw.random_range(-bound..=bound)).collect();
        Ok((lattice, grid))
    }

    fn stand_in(&mut self, assignment: &Assignment) -> Result<(Vec<u32>, Trained), UpdateError> {
        let (lattice, grid) = self.grid(assignment)?;
        let mask = u32::MAX >> (32 - u32::from(lattice.bits()));
        let values = grid.iter().map(|&value| value as u32 & mask).collect();
        Ok((values, Trained::Packed(lattice.pack(&grid))))
    }

    fn masked(
        &mut self,
        assignment: &Assignment,
        exchange: &Exchange,
        approved: &mut Approved,
    ) -> Result<(Vec<u32>, Trained), UpdateError> {
        let (job, (lattice, grid)) = (&assignment.job, self.grid(assignment)?);
        let terms = secagg::noise(job).expect("an exchange belongs to masked updates");
        let plan = exchange.plan();
        let mut seed = [0; 32];
        self.draw.fill_bytes(&mut seed);
        let mut update =
            terms.add_share(&plan, lattice, grid, &mut SeededNoise::from_seed(seed))?;
        let values = update.clone();
        exchange.mask(&mut update)?;
        approved.events = vec![secagg::event(job, &terms, &plan, lattice)];
        let packed: Vec<i64> = update.into_iter().map(i64::from).collect();
        Ok((values, Trained::Packed(lattice.pack(&packed))))
    }

    /// One round of a run, with the state that the last one left on the disk. Its noise is the
    /// operating system's: the numbers differ from play to play, what happens does not.
    fn train_in_run(
        &self,
        tenant: u32,
        assignment: &Assignment,
        approved: &Approved,
    ) -> Result<(Vec<u32>, Trained), UpdateError> {
        let site = &self.agents[tenant as usize];
        let process = site.process.as_ref().expect("it has trained");
        let Process { ledger, releases, .. } = process;
        let model = &assignment.job.model;
        let bytes = &site.models[&assignment.base.file.digest];
        let base = tensor_file::read(model, bytes).expect("the coordinator's models are whole");
        let data = records(model.num_inputs(), tenant);
        let train: Vec<u32> = (0..RECORDS).collect();
        let round = RoundData { base: &base, data: &data, train: &train, correction: &[] };
        let proceed = &mut |_, _| ControlFlow::Continue(());
        let update = correlated_update(ledger, releases, assignment, approved, round, proceed)?;
        let lattice = Lattice::new(assignment.lattice.step, assignment.lattice.bits)?;
        let mut unpacked = ModularSum::new(lattice, base.len());
        unpacked.add_packed(&update.packed)?;
        Ok((unpacked.values().to_vec(), Trained::PartOfRun(update)))
    }
}

/// What training led to.
enum Trained {
    Packed(Vec<u8>),
    PartOfRun(RunUpdate),
}

impl Trained {
    fn packed(&self) -> &[u8] {
        match self {
            Self::Packed(packed) => packed,
            Self::PartOfRun(update) => &update.packed,
        }
    }
}

/// A tenant's records, the same whenever it starts.
fn records(width: usize, tenant: u32) -> Dataset {
    let value = |index: usize| ((index + tenant as usize) as f32).sin();
    let features = (0..RECORDS as usize * width).map(value).collect();
    let labels = (0..RECORDS).map(|record| record % 2).collect();
    Dataset::from_floats(features, width, labels, 2)
}
