//! The whole coordinator as a value that is stepped by hand: tenants, jobs, their rounds and models.
//!
//! What happens outside goes in through methods that take the current time; what the driver must
//! do comes out of [`Scheduler::poll_action`], in order. Sockets, disk, clock and entropy live in
//! [`crate::driver`], so tests and simulations run exactly this code.

mod action;
mod answers;
#[cfg(test)]
mod answers_tests;
#[cfg(test)]
mod asynchronous_tests;
#[cfg(test)]
mod control_tests;
mod early_stop;
mod error;
mod job;
mod life_cycle;
#[cfg(test)]
mod life_cycle_tests;
mod metrics;
mod pacing;
mod record;
mod resume;
#[cfg(test)]
mod resume_tests;
mod revealed;
mod tenancy;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tributary_protocol::{
    id::{Digest, JobId, RoundNumber, TenantId},
    isolation::Isolation,
    job::JobSpec,
    message::{BaseModel, CoordinatorMessage, LatticeSpec, LedgerHead},
    time::Timestamp,
};

pub use self::{
    action::{Action, Commit, OfferAnswer},
    error::SchedulerError,
    job::{Job, JobControl},
    metrics::{BaseMetrics, MetricEstimate},
    record::{AggregationRecord, AnswerRecord, JobRecord, JobState, RoundSummary},
    revealed::Revealed,
};
use crate::{
    aggregation::NextModel,
    audit::{Act, Actor, AuditEvent},
    pace::Pace,
    registry::{ModelRegistry, ModelVersion, Promotion},
    round::Input,
    store::Batch,
    tenants::{TenantRecord, next_day},
};

/// Tenants, jobs and models.
#[derive(Debug, Default)]
pub struct Scheduler {
    tenants: BTreeMap<TenantId, TenantRecord>,
    jobs: BTreeMap<JobId, Job>,
    models: ModelRegistry,
    connected: BTreeSet<TenantId>,
    /// How far agents said that they keep their tenants apart.
    levels: BTreeMap<TenantId, Isolation>,
    /// The connected tenants in the order in which they came.
    arrivals: Vec<TenantId>,
    /// Connected tenants that have reported since they came.
    served: BTreeSet<TenantId>,
    /// How connections are spread over time; `None` lets everybody stay.
    pace: Option<Pace>,
    /// The last round of each job whose invitations count against quotas.
    counted: BTreeMap<JobId, RoundNumber>,
    /// When quotas have room again, if somebody waits for that.
    next_day: Option<Timestamp>,
    /// Whether something changed that rounds have not been told of.
    unsettled: bool,
    actions: VecDeque<Action>,
}

impl Scheduler {
    /// Continues from what the store holds.
    #[must_use]
    pub fn restore(
        tenants: Vec<TenantRecord>,
        jobs: Vec<JobRecord>,
        models: ModelRegistry,
        now: Timestamp,
    ) -> Self {
        let mut scheduler = Self {
            tenants: tenants
                .into_iter()
                .map(|record| (record.context.id.clone(), record))
                .collect(),
            jobs: jobs
                .into_iter()
                .map(|record| (record.spec.name.clone(), Job::restore(record, now)))
                .collect(),
            models,
            ..Self::default()
        };
        let open = scheduler.jobs.iter().filter(|(_, job)| job.has_invited());
        scheduler.counted = open.map(|(id, job)| (id.clone(), job.round().number)).collect();
        scheduler.settle_all(now);
        scheduler
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// What may become durable together with what was to be made durable just before: only messages lie
    /// between, and those wait.
    pub fn poll_persist(&mut self) -> Option<Batch> {
        let tells = |action: &Action| {
            matches!(action, Action::Send(..) | Action::Welcome(..) | Action::Receipt(..))
        };
        let place = self.actions.iter().position(|action| !tells(action))?;
        match self.actions.remove(place)? {
            Action::Persist(batch) => Some(batch),
            other => {
                self.actions.insert(place, other);
                None
            }
        }
    }

    /// Whether all there is to do is to make records durable and to say so: more may happen before it
    /// is done, for the same flush of the disk.
    #[must_use]
    pub fn may_wait(&self) -> bool {
        self.actions.iter().all(|action| match action {
            Action::Persist(_) | Action::Send(..) | Action::Welcome(..) | Action::Receipt(..) => {
                true
            }
            Action::Audit(_) | Action::Discard(_) | Action::Unstage(..) | Action::Commit(_) => {
                false
            }
        })
    }

    /// When [`Self::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.jobs.values().filter_map(Job::waits_until).chain(self.next_day).min()
    }

    /// Acts on every deadline that has passed, and on changes that have not been acted on.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        let due = self.poll_timeout().is_some_and(|deadline| deadline <= now);
        if !due && !self.unsettled {
            return;
        }
        for job in self.jobs.values_mut() {
            job.handle_timeout(now);
        }
        self.settle_all(now);
    }

    /// Accepts a job whose initial model is stored.
    ///
    /// # Errors
    /// [`SchedulerError`] if the job is invalid or the name is taken.
    pub fn submit(
        &mut self,
        spec: JobSpec,
        lattice: LatticeSpec,
        initial: ModelVersion,
        cohort_seed: u64,
        now: Timestamp,
    ) -> Result<(), SchedulerError> {
        self.check_submission(&spec)?;
        let id = spec.name.clone();
        let job = Job::open(spec, lattice, initial.file.digest, cohort_seed, now);
        let mut batch = Batch::default();
        initial.put(&mut batch);
        job.record().put(&mut batch);
        self.actions.push_back(Action::Persist(batch));
        self.models.insert(initial);
        self.jobs.insert(id, job);
        self.settle_all(now);
        Ok(())
    }

    /// Lets an operator pause, resume, stop or reorder a job.
    ///
    /// # Errors
    /// [`SchedulerError`] if there is no such job, or it has ended.
    pub fn control(
        &mut self,
        job: &JobId,
        control: JobControl,
        now: Timestamp,
    ) -> Result<(), SchedulerError> {
        let unknown = || SchedulerError::JobUnknown { job: job.clone() };
        self.jobs.get_mut(job).ok_or_else(unknown)?.control(control, now)?;
        self.settle_all(now);
        // Last: what the round makes durable has the new state in it already, so no crash leaves an
        // open round of a stopped job.
        let mut batch = Batch::default();
        self.jobs[job].record().put(&mut batch);
        self.actions.push_back(Action::Persist(batch));
        Ok(())
    }

    /// Has agents serve a version of a job's model, or the newest again. Training goes on from the
    /// newest in any case.
    ///
    /// # Errors
    /// [`SchedulerError::JobUnknown`] or [`SchedulerError::VersionUnknown`].
    pub fn promote(&mut self, promotion: Promotion) -> Result<(), SchedulerError> {
        let job = promotion.job.clone();
        let spec = self.job(&job)?.record().spec.clone();
        if let Some(version) = promotion.version
            && self.models.version(&job, version).is_none()
        {
            return Err(SchedulerError::VersionUnknown { job, version });
        }
        let mut batch = Batch::default();
        promotion.put(&mut batch);
        self.actions.push_back(Action::Persist(batch));
        self.models.promote(promotion);
        let served = self.models.served(&job).expect("it was just looked up");
        self.announce(&served.announcement(&spec));
        Ok(())
    }

    /// The version before the one that agents serve.
    ///
    /// # Errors
    /// [`SchedulerError::JobUnknown`], or [`SchedulerError::NothingBefore`] at version 0.
    pub fn version_before(&self, job: &JobId) -> Result<u64, SchedulerError> {
        self.job(job)?;
        let served = self.models.served(job).expect("every job has version 0");
        let nothing = || SchedulerError::NothingBefore { job: job.clone() };
        served.version.checked_sub(1).ok_or_else(nothing)
    }

    /// Tells everybody who serves a job about a model.
    fn announce(&mut self, announcement: &BaseModel) {
        let listeners: Vec<_> = self.listeners(&announcement.job).collect();
        for tenant in listeners {
            self.send(tenant, CoordinatorMessage::NewBase(announcement.clone()));
        }
    }

    /// Whether [`Self::submit`] would accept the job.
    ///
    /// # Errors
    /// [`SchedulerError::Job`] or [`SchedulerError::JobExists`].
    pub fn check_submission(&self, spec: &JobSpec) -> Result<(), SchedulerError> {
        spec.validate().map_err(SchedulerError::Job)?;
        if self.jobs.contains_key(&spec.name) {
            return Err(SchedulerError::JobExists { job: spec.name.clone() });
        }
        Ok(())
    }

    /// The model that [`Action::Commit`] asked for is stored.
    ///
    /// # Panics
    /// If no such commit is open, which is a bug of the driver.
    pub fn committed(&mut self, commit: &Commit, model: NextModel, now: Timestamp) {
        let parent = self.models.latest(&commit.job).expect("every job has version 0").clone();
        let version = ModelVersion {
            job: commit.job.clone(),
            version: parent.version + 1,
            round: commit.round,
            file: model.file,
            parent: Some(parent.file.digest),
            optimizer_state: model.optimizer_state,
            control: model.control,
            created: now,
        };
        let detail =
            format!("{} updates, model {}", commit.contributors.len(), version.file.digest);
        let subject = format!("{}/{}", commit.job, commit.round);
        let event = AuditEvent::done(Actor::coordinator(), Act::RoundCommit, subject, detail);
        self.actions.push_back(Action::Audit(event));
        let job = self.jobs.get_mut(&commit.job).expect("the commit came from this job");
        let announcement = version.announcement(&job.record().spec);
        let kept = version.side_files();
        let superseded = parent.side_files().difference(&kept).copied().collect();
        self.models.insert(version.clone());
        let actions = job.committed(commit, &version, model.clip_vote, &self.models, now);
        if let Some(reason) = &job.record().stopped_early {
            let event = AuditEvent::done(
                Actor::coordinator(),
                Act::JobStop,
                &commit.job,
                format!("early: {reason}"),
            );
            self.actions.push_back(Action::Audit(event));
        }
        self.actions.extend(actions);
        self.actions.push_back(Action::Discard(superseded));
        if !self.models.is_pinned(&commit.job) {
            self.announce(&announcement);
        }
        self.settle_all(now);
    }

    /// The masks of the sum that [`Action::Commit`] asked for cannot be removed, or honest updates
    /// cannot have made it: the round is abandoned, and the next one opens.
    ///
    /// # Panics
    /// If no such commit is open, which is a bug of the driver.
    pub fn commit_abandoned(&mut self, commit: &Commit, reason: String, now: Timestamp) {
        let job = self.jobs.get_mut(&commit.job).expect("the commit came from this job");
        job.abandoned(reason);
        self.settle_all(now);
    }

    /// The model that [`Action::Commit`] asked for cannot be made (training diverged): the job ends.
    ///
    /// # Panics
    /// If no such commit is open, which is a bug of the driver.
    pub fn commit_failed(&mut self, commit: &Commit, reason: String) {
        let event = AuditEvent::done(Actor::coordinator(), Act::JobFail, &commit.job, &reason);
        self.actions.push_back(Action::Audit(event));
        let job = self.jobs.get_mut(&commit.job).expect("the commit came from this job");
        self.actions.push_back(Action::Persist(job.failed(reason)));
    }

    /// Known jobs.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    /// One job.
    ///
    /// # Errors
    /// [`SchedulerError::JobUnknown`].
    pub fn job(&self, job: &JobId) -> Result<&Job, SchedulerError> {
        self.jobs.get(job).ok_or_else(|| SchedulerError::JobUnknown { job: job.clone() })
    }

    /// All models.
    #[must_use]
    pub const fn models(&self) -> &ModelRegistry {
        &self.models
    }

    /// Every file that durable records need; of a round that committed, no update is needed.
    #[must_use]
    pub fn referenced_files(&self) -> BTreeSet<Digest> {
        let models = self.models.iter().map(|version| version.file.digest);
        let newest = self.jobs.keys().filter_map(|job| self.models.latest(job));
        let states = newest.flat_map(ModelVersion::side_files);
        let updates = self.jobs.values().flat_map(|job| job.record().awaiting_sum().into_values());
        models.chain(states).chain(updates).collect()
    }

    /// Takes every round's outputs, opens the next rounds, and tells selections who is there.
    fn settle_all(&mut self, now: Timestamp) {
        self.unsettled = false;
        let waits =
            |record: &TenantRecord| record.context.quotas.are_set() && !self.has_room(record, now);
        self.next_day = self.tenants.values().any(waits).then(|| next_day(now));
        let mut ids: Vec<_> = self.jobs.keys().cloned().collect();
        // Stable: jobs of one priority keep the order of their names.
        ids.sort_by_key(|id| std::cmp::Reverse(self.jobs[id].record().priority));
        for id in ids {
            loop {
                // Looking at every tenant at every step of a large cohort would be most of the work.
                if self.jobs[&id].round().phase.invites() {
                    let tenants: BTreeSet<_> = self.eligible(&id, now).collect();
                    let population = self.population(&id, now);
                    let job = self.jobs.get_mut(&id).expect("listed above");
                    let available = Input::Available { tenants, population };
                    job.round.handle(now, available).expect("availability fits every phase");
                }
                let job = self.jobs.get_mut(&id).expect("listed above");
                let given = job.round.take_tickets();
                self.actions.extend(job.take_actions(&self.models, now));
                self.count_round(&given, now);
                let job = self.jobs.get_mut(&id).expect("listed above");
                if job.has_invited() && self.counted.get(&id) != Some(&job.round().number) {
                    self.counted.insert(id.clone(), job.round().number);
                    let invited = job.round().phase.invited();
                    self.count_round(&invited, now);
                }
                let job = self.jobs.get_mut(&id).expect("listed above");
                let base = self.models.latest(&id).expect("every job has version 0");
                if !job.open_next_round(base.file.digest, now) {
                    break;
                }
            }
        }
        self.steer(now);
    }

    fn send(&mut self, tenant: TenantId, message: CoordinatorMessage) {
        self.actions.push_back(Action::Send(tenant, message));
    }

    fn acknowledge(&mut self, tenant: &TenantId, head: LedgerHead) {
        if let Some(record) = self.tenants.get_mut(tenant)
            && record.acknowledge(head)
        {
            let mut batch = Batch::default();
            record.put(&mut batch);
            self.actions.push_back(Action::Persist(batch));
            self.actions.push_back(Action::Receipt(tenant.clone(), head));
        }
    }
}
