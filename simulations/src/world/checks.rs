//! The rules, and what must be remembered to check them.

use std::collections::BTreeMap;

use tributary_coordinator::{
    blobs::BlobStore,
    registry::{ModelRegistry, ModelVersion},
    scheduler::{Commit, Job, JobRecord, RoundSummary, Scheduler},
    store::{MemoryStore, StoreError, Table, load},
};
use tributary_privacy::{
    lattice::Lattice,
    ledger::{Ledger, MemoryChainStore, ReleaseKind},
    secagg::ClientMessage,
};
use tributary_protocol::{
    id::{Digest, JobId, RoundNumber, TenantId},
    job::{AggregationRule, JobSpec, ServerOptimizerSpec},
    message::{SecaggPayload, UploadOffer},
    tensor_file,
    time::Timestamp,
};

use super::Rule;

/// A broken rule, and what was seen.
pub(super) type Broken = (Rule, String);

/// An update as it was before masks.
#[derive(Debug, Clone)]
struct Made {
    tenant: TenantId,
    job: JobId,
    round: RoundNumber,
    /// Lattice values modulo `2^bits`.
    values: Vec<u32>,
}

/// Everything that was seen so far and matters for the rules.
#[derive(Debug, Default)]
pub(super) struct Checks {
    made: BTreeMap<Digest, Made>,
    left: BTreeMap<(TenantId, JobId, RoundNumber), Digest>,
    answers: BTreeMap<(TenantId, JobId, RoundNumber), Digest>,
    unmasked: BTreeMap<(JobId, RoundNumber), BTreeMap<TenantId, Digest>>,
    rounds: BTreeMap<JobId, RoundNumber>,
    versions: BTreeMap<(JobId, u64), ModelVersion>,
    summaries: BTreeMap<(JobId, RoundNumber), RoundSummary>,
    counted: BTreeMap<Digest, (JobId, RoundNumber)>,
    pub(super) num_unmasked: u64,
}

impl Checks {
    /// Remembers the update behind packed bytes.
    pub(super) fn made(
        &mut self,
        update: Digest,
        tenant: &TenantId,
        job: &JobId,
        round: RoundNumber,
        values: Vec<u32>,
    ) {
        let (tenant, job) = (tenant.clone(), job.clone());
        self.made.insert(update, Made { tenant, job, round, values });
    }

    /// An update is about to leave an agent.
    pub(super) fn leaves(
        &mut self,
        tenant: &TenantId,
        offer: &UploadOffer,
        disk: &MemoryChainStore,
    ) -> Result<(), Broken> {
        let UploadOffer { job, round, update, .. } = offer;
        // What is on the disk, as a restart would find it.
        let ledger = Ledger::open(MemoryChainStore::with_bytes(disk.bytes()), tenant.as_str())
            .map_err(|error| (Rule::Release, format!("{tenant}'s ledger: {error}")))?;
        let entry = ledger.release_of(job.as_str(), round.0, ReleaseKind::Update);
        let debited = entry.map(|entry| Digest::from_bytes(entry.release));
        if debited != Some(update.digest) {
            let text = format!(
                "{tenant} sends {} for round {round} of {job}; its ledger holds {debited:?}",
                update.digest.short()
            );
            return Err((Rule::Release, text));
        }
        runs_go_on(&ledger, job)?;
        let key = (tenant.clone(), job.clone(), *round);
        let before = *self.left.entry(key).or_insert(update.digest);
        if before != update.digest {
            let text = format!(
                "{tenant} sent {} and now {} for round {round} of {job}",
                before.short(),
                update.digest.short()
            );
            return Err((Rule::OneRelease, text));
        }
        Ok(())
    }

    /// A message of secure aggregation is about to leave an agent.
    pub(super) fn says(
        &mut self,
        tenant: &TenantId,
        job: &JobId,
        round: RoundNumber,
        payload: &SecaggPayload,
    ) -> Result<(), Broken> {
        let Ok(ClientMessage::Unmask(shares)) = payload.decode() else { return Ok(()) };
        let digest = Digest::of(format!("{shares:?}").as_bytes());
        let key = (tenant.clone(), job.clone(), round);
        let before = *self.answers.entry(key).or_insert(digest);
        if before == digest {
            return Ok(());
        }
        let text = format!("{tenant} unmasks round {round} of {job} a second time, differently");
        Err((Rule::Unmasking, text))
    }

    /// A round is about to become a model.
    pub(super) fn commits(&mut self, commit: &Commit, job: &Job) -> Result<(), Broken> {
        let Commit { job: name, round, contributors, unmask } = commit;
        for (tenant, update) in contributors {
            let Some(made) = self.made.get(update) else {
                let text = format!("{} of {tenant} was never made", update.short());
                return Err((Rule::CountedOnce, text));
            };
            let stale_max =
                job.record().spec.round.asynchronous.map_or(0, |plan| plan.staleness_max);
            let stale = round.0.checked_sub(made.round.0);
            let counts = stale.is_some_and(|stale| stale <= stale_max.into());
            if (&made.tenant, &made.job) != (tenant, name) || !counts {
                let text = format!(
                    "round {round} of {name} counts for {tenant} what {} made for round {} of {}",
                    made.tenant, made.round, made.job
                );
                return Err((Rule::CountedOnce, text));
            }
        }
        let min = job.record().spec.round.cohort_size_min;
        if contributors.len() < min as usize {
            let text = format!("round {round} of {name} commits {} updates", contributors.len());
            return Err((Rule::Unmasking, text));
        }
        let Some(aggregation) = unmask else { return Ok(()) };
        let plan = aggregation.plan();
        let answered = self
            .answers
            .keys()
            .filter(|(tenant, of, number)| {
                of == name && number == round && aggregation.members().contains(tenant)
            })
            .count();
        let too_few = (contributors.len() as u32) < plan.survivors_min()
            || plan.survivors_min() < min
            || (answered as u32) < plan.threshold();
        if too_few {
            let text = format!(
                "round {round} of {name} unmasks {} of {} updates with {answered} answers; the plan \
                 needs {} updates and {} answers",
                contributors.len(),
                aggregation.members().len(),
                plan.survivors_min(),
                plan.threshold()
            );
            return Err((Rule::Unmasking, text));
        }
        let key = (name.clone(), *round);
        let before = self.unmasked.entry(key).or_insert_with(|| {
            self.num_unmasked += 1;
            contributors.clone()
        });
        if before != contributors {
            let text = format!("round {round} of {name} unmasks two different sums");
            return Err((Rule::Unmasking, text));
        }
        Ok(())
    }

    /// A model was made of a round's updates.
    pub(super) fn model(
        &self,
        commit: &Commit,
        spec: &JobSpec,
        lattice: Lattice,
        base: Digest,
        model: Digest,
        blobs: &BlobStore,
    ) -> Result<(), Broken> {
        let read = |file| -> Result<Vec<f32>, Broken> {
            let bytes = blobs.read(file).map_err(|error| (Rule::Model, error.to_string()))?;
            tensor_file::read(&spec.model, &bytes).map_err(|error| (Rule::Model, error.to_string()))
        };
        let ServerOptimizerSpec::Sgd { server_learning_rate, .. } = spec.server_optimizer else {
            unreachable!("worlds train with plain SGD")
        };
        let (before, after) = (read(base)?, read(model)?);
        for coordinate in 0..before.len() {
            let moved = self.moved(commit, spec, lattice, coordinate);
            let expected = f64::from(before[coordinate]) + server_learning_rate * moved;
            let found = f64::from(after[coordinate]);
            if (found - expected).abs() > 1e-6 * expected.abs().max(1.0) {
                let text = format!(
                    "round {} of {}: parameter {coordinate} is {found}, the counted updates make it \
                     {expected}",
                    commit.round, commit.job
                );
                return Err((Rule::Model, text));
            }
        }
        Ok(())
    }

    /// What the counted updates make of a coordinate, by the job's rule.
    fn moved(&self, commit: &Commit, spec: &JobSpec, lattice: Lattice, coordinate: usize) -> f64 {
        let updates = commit.contributors.values().map(|update| &self.made[update]);
        let shift = 32 - u32::from(lattice.bits());
        // The upper bits are not the lattice's; the highest of the others is the sign.
        let signed = |value: u32| f64::from(((value << shift) as i32) >> shift) * lattice.step();
        let mut each: Vec<f64> =
            updates.clone().map(|made| signed(made.values[coordinate])).collect();
        each.sort_by(f64::total_cmp);
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        match spec.aggregation {
            AggregationRule::Mean => {
                let mut sums: BTreeMap<u64, u32> = BTreeMap::new();
                for made in updates {
                    let sum = sums.entry(commit.round.0 - made.round.0).or_default();
                    *sum = sum.wrapping_add(made.values[coordinate]);
                }
                let exponent = spec.round.asynchronous.map_or(0.0, |plan| plan.staleness_exponent);
                let weighted = sums
                    .into_iter()
                    .map(|(stale, sum)| (1.0 + stale as f64).powf(-exponent) * signed(sum));
                weighted.sum::<f64>() / f64::from(spec.round.report_goal)
            }
            AggregationRule::Median => mean(&each[(each.len() - 1) / 2..=each.len() / 2]),
            AggregationRule::TrimmedMean { trim } => {
                let cut = (trim * each.len() as f64).floor() as usize;
                mean(&each[cut..each.len() - cut])
            }
            AggregationRule::Krum { .. } | AggregationRule::MultiKrum { .. } => {
                unreachable!("worlds have no such jobs")
            }
        }
    }

    /// Something became durable at the coordinator: its rounds are where they were, or further.
    /// What it only knows may yet be lost.
    pub(super) fn rounds(&mut self, store: &MemoryStore) -> Result<(), Broken> {
        let jobs: Vec<JobRecord> =
            load(store, Table::Jobs).map_err(|error| (Rule::Forward, error.to_string()))?;
        for job in jobs {
            let (name, number) = (&job.spec.name, job.round.number);
            let seen = self.rounds.entry(name.clone()).or_insert(number);
            if number < *seen {
                let text = format!("{name} goes from round {seen} back to {number}");
                return Err((Rule::Forward, text));
            }
            *seen = number;
        }
        Ok(())
    }

    /// Reads the store as a restart would: history never changes, and it can be restored.
    pub(super) fn store(
        &mut self,
        store: &MemoryStore,
        scheduler: &Scheduler,
        now: Timestamp,
    ) -> Result<(), Broken> {
        let damaged = |error: StoreError| (Rule::Soundness, format!("the store: {error}"));
        for version in load::<ModelVersion>(store, Table::Models).map_err(damaged)? {
            self.version(version)?;
        }
        for summary in load::<RoundSummary>(store, Table::Rounds).map_err(damaged)? {
            self.summary(summary)?;
        }
        let jobs = JobRecord::load_all(store).map_err(damaged)?;
        for record in &jobs {
            let live = scheduler.job(&record.spec.name).map(Job::record).ok();
            if live.is_some_and(|live| live != record) {
                let text = format!("{} is not what the store holds of it", record.spec.name);
                return Err((Rule::Forward, text));
            }
        }
        let tenants = load(store, Table::Tenants).map_err(damaged)?;
        let models = ModelRegistry::load(store).map_err(damaged)?;
        let restored = Scheduler::restore(tenants, jobs, models, now);
        for job in restored.jobs() {
            let name = &job.record().spec.name;
            let live = scheduler.job(name).map(|live| live.record().rounds_committed);
            if live.is_ok_and(|live| live != job.record().rounds_committed) {
                return Err((Rule::Forward, format!("{name} restores with other rounds")));
            }
        }
        Ok(())
    }

    fn version(&mut self, version: ModelVersion) -> Result<(), Broken> {
        let key = (version.job.clone(), version.version);
        if let Some(known) = self.versions.get(&key) {
            let same = *known == version;
            let text = || format!("version {} of {} changed", key.1, key.0);
            return if same { Ok(()) } else { Err((Rule::Forward, text())) };
        }
        let before = version.version.checked_sub(1);
        let parent = before.and_then(|before| self.versions.get(&(key.0.clone(), before)));
        if let Some(parent) = parent
            && (version.parent != Some(parent.file.digest) || version.round <= parent.round)
        {
            let text = format!("version {} of {} does not follow the one before", key.1, key.0);
            return Err((Rule::Forward, text));
        }
        self.versions.insert(key, version);
        Ok(())
    }

    fn summary(&mut self, summary: RoundSummary) -> Result<(), Broken> {
        let key = (summary.job.clone(), summary.round);
        if let Some(known) = self.summaries.get(&key) {
            let same = *known == summary;
            let text = || format!("the history of round {} of {} changed", key.1, key.0);
            return if same { Ok(()) } else { Err((Rule::Forward, text())) };
        }
        for (tenant, update) in &summary.contributors {
            if let Some((job, round)) = self.counted.insert(*update, key.clone()) {
                let text = format!(
                    "{} of {tenant} is counted in round {round} of {job} and round {} of {}",
                    update.short(),
                    key.1,
                    key.0
                );
                return Err((Rule::CountedOnce, text));
            }
        }
        self.summaries.insert(key, summary);
        Ok(())
    }

    /// Rounds that became models, those that were given up, and the updates in the models.
    pub(super) fn tally(&self) -> (u64, u64, u64) {
        let (mut committed, mut abandoned, mut counted) = (0, 0, 0);
        for summary in self.summaries.values() {
            match summary.abandoned {
                Some(_) => abandoned += 1,
                None => committed += 1,
            }
            counted += summary.contributors.len() as u64;
        }
        (committed, abandoned, counted)
    }
}

/// No step of a run with correlated noise is released twice or left out, and each run begins anew.
fn runs_go_on(ledger: &Ledger<MemoryChainStore>, job: &JobId) -> Result<(), Broken> {
    let mut reached = (0, 0);
    let of_job = ledger.entries().iter().filter(|entry| entry.job == job.as_str());
    for steps in of_job.filter_map(|entry| entry.run.as_ref()) {
        let (run, step) = reached;
        let follows = steps.run == run && steps.first_step == step;
        let begins = steps.run > run && steps.first_step == 0;
        if !follows && !begins {
            let text = format!(
                "{job} debits steps {}..{} of run {} after step {step} of run {run}",
                steps.first_step, steps.end_step, steps.run
            );
            return Err((Rule::OneRelease, text));
        }
        reached = (steps.run, steps.end_step);
    }
    Ok(())
}
