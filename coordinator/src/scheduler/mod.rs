//! The whole coordinator as a value that is stepped by hand: tenants, jobs, their rounds and models.
//!
//! What happens outside goes in through methods that take the current time; what the driver must
//! do comes out of [`Scheduler::poll_action`], in order. Sockets, disk, clock and entropy live in
//! [`crate::driver`], so tests and simulations run exactly this code.

#[cfg(test)]
mod control_tests;
mod job;
mod life_cycle;
#[cfg(test)]
mod life_cycle_tests;
mod revealed;
mod tenancy;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use thiserror::Error;
use tributary_privacy::secagg::{Blob, ClientMessage, PeerKeys};
use tributary_protocol::{
    codec::CodecError,
    error_code::{ErrorCode, Refusal},
    id::{Digest, JobId, RoundNumber, TenantId},
    job::{JobSpec, JobSpecError},
    message::{BaseModel, CoordinatorMessage, LatticeSpec, LedgerHead, SecaggPayload, UploadOffer},
    time::Timestamp,
};

pub use self::{
    job::{Job, JobControl, JobRecord, JobState, RoundSummary},
    revealed::Revealed,
};
use crate::{
    aggregation::NextModel,
    audit::{Act, Actor, AuditEvent},
    registry::{ModelRegistry, ModelVersion, Promotion},
    round::{Aggregation, Input, RoundError},
    store::Batch,
    tenants::{EnrollmentError, QuotaUsedUp, TenantRecord, next_day},
};

/// What the driver must do, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Make these records durable before going on.
    Persist(Batch),
    /// Record this in the audit log before going on.
    Audit(AuditEvent),
    /// Send a tenant a control message, if it is connected.
    Send(TenantId, CoordinatorMessage),
    /// Sign this ledger head of a connected tenant and welcome it with that.
    Welcome(TenantId, LedgerHead),
    /// Sign this newer ledger head of a tenant, which is durable, and send it the receipt.
    Receipt(TenantId, LedgerHead),
    /// Remove these files: what was persisted before no longer refers to them.
    Discard(BTreeSet<Digest>),
    /// Remove what has arrived of uploads for this round, which is closed.
    Unstage(JobId, RoundNumber),
    /// Aggregate these updates and answer with [`Scheduler::committed`].
    Commit(Commit),
}

/// A round that has all its updates.
#[derive(Debug, Clone, PartialEq)]
pub struct Commit {
    /// The job.
    pub job: JobId,
    /// The round.
    pub round: RoundNumber,
    /// Whose updates are summed.
    pub contributors: BTreeMap<TenantId, Digest>,
    /// Removes the masks of the sum, if the updates are masked.
    pub unmask: Option<Box<Aggregation>>,
}

/// What to do with an offered update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfferAnswer {
    /// It is already counted.
    Stored,
    /// Receive it.
    Receive,
}

/// Says why a request was refused; nothing changed.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum SchedulerError {
    /// The job is not usable.
    #[error("the job cannot be accepted")]
    Job(#[source] JobSpecError),
    /// A job of this name exists.
    #[error("a job named {job} exists; choose another name")]
    JobExists {
        /// The name.
        job: JobId,
    },
    /// No job of this name.
    #[error("there is no job {job}; `job list` shows what there is")]
    JobUnknown {
        /// The name.
        job: JobId,
    },
    /// The job takes no updates any more.
    #[error("job {job} has ended")]
    JobFinished {
        /// The name.
        job: JobId,
    },
    /// The update is for a round that is not open.
    #[error("round {offered} of job {job} is not open; the open round is {open}")]
    WrongRound {
        /// The job.
        job: JobId,
        /// The round of the update.
        offered: RoundNumber,
        /// The round that is open.
        open: RoundNumber,
    },
    /// The update has the wrong size.
    #[error("the update has {offered} bytes; an update of job {job} has {expected}")]
    UpdateLength {
        /// The job.
        job: JobId,
        /// Announced length, in bytes.
        offered: u64,
        /// The only possible length, in bytes.
        expected: u64,
    },
    /// A message of secure aggregation does not decode.
    #[error("the message of secure aggregation is malformed")]
    SecaggMalformed {
        /// What the decoder met.
        #[source]
        source: Arc<CodecError>,
    },
    /// The round refused the input.
    #[error(transparent)]
    Round(#[from] RoundError),
    /// The token does not admit.
    #[error(transparent)]
    Enrollment(#[from] EnrollmentError),
    /// The tenant is suspended.
    #[error("tenant {tenant} is suspended: {reason}")]
    TenantSuspended {
        /// Who.
        tenant: TenantId,
        /// Why.
        reason: String,
    },
    /// The tenant is revoked.
    #[error("tenant {tenant} is revoked: {reason}")]
    TenantRevoked {
        /// Who.
        tenant: TenantId,
        /// Why.
        reason: String,
    },
    /// No job that the tenant may take part in has this model.
    #[error("there is no model file {file} here")]
    ModelUnknown {
        /// Which.
        file: Digest,
    },
    /// The job has no such version.
    #[error("job {job} has no model version {version}; `model list` shows what there is")]
    VersionUnknown {
        /// The job.
        job: JobId,
        /// The version.
        version: u64,
    },
    /// Agents serve the first version already.
    #[error("agents serve version 0 of job {job}; there is nothing before it")]
    NothingBefore {
        /// The job.
        job: JobId,
    },
    /// No tenant of this name.
    #[error("there is no tenant {tenant}; `tenant list` shows who there is")]
    TenantUnknown {
        /// The name.
        tenant: TenantId,
    },
    /// The tenant has used what it may use today.
    #[error("tenant {tenant}: {quota}")]
    QuotaExceeded {
        /// Who.
        tenant: TenantId,
        /// Which quota.
        quota: QuotaUsedUp,
    },
    /// The tenant is not known, or shows a certificate that is not its current one.
    #[error(
        "the certificate of tenant {tenant} is not the registered one; enrol again with a new token"
    )]
    CertificateNotRegistered {
        /// Who.
        tenant: TenantId,
    },
}

impl SchedulerError {
    /// The code for the peer.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Job(_) | Self::JobExists { .. } => ErrorCode::JobInvalid,
            Self::JobUnknown { .. } => ErrorCode::JobUnknown,
            Self::JobFinished { .. } | Self::WrongRound { .. } => ErrorCode::WrongRound,
            Self::UpdateLength { .. } => ErrorCode::UpdateLength,
            Self::SecaggMalformed { .. } => ErrorCode::SecaggMessageInvalid,
            Self::Round(error) => error.code(),
            Self::Enrollment(error) => error.code(),
            Self::CertificateNotRegistered { .. } | Self::TenantUnknown { .. } => {
                ErrorCode::CertificateNotRegistered
            }
            Self::ModelUnknown { .. }
            | Self::VersionUnknown { .. }
            | Self::NothingBefore { .. } => ErrorCode::BlobUnknown,
            Self::TenantSuspended { .. } => ErrorCode::TenantSuspended,
            Self::TenantRevoked { .. } => ErrorCode::TenantRevoked,
            Self::QuotaExceeded { .. } => ErrorCode::QuotaExceeded,
        }
    }

    /// The refusal for the peer.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        Refusal::from_error(self.code(), self)
    }
}

/// Tenants, jobs and models.
#[derive(Debug, Default)]
pub struct Scheduler {
    tenants: BTreeMap<TenantId, TenantRecord>,
    jobs: BTreeMap<JobId, Job>,
    models: ModelRegistry,
    connected: BTreeSet<TenantId>,
    /// The last round of each job whose invitations count against quotas.
    counted: BTreeMap<JobId, RoundNumber>,
    /// When quotas have room again, if somebody waits for that.
    next_day: Option<Timestamp>,
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

    /// When [`Self::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.jobs.values().filter_map(Job::waits_until).chain(self.next_day).min()
    }

    /// Acts on every deadline that has passed.
    pub fn handle_timeout(&mut self, now: Timestamp) {
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

    /// A cohort member starts training, or goes on after a reconnection.
    ///
    /// - `credential`: the certificate that its connection showed, DER
    ///
    /// # Errors
    /// [`SchedulerError`] if the round is over or the tenant is not in it.
    pub fn accepted(
        &mut self,
        tenant: &TenantId,
        job: &JobId,
        round: RoundNumber,
        credential: &[u8],
        now: Timestamp,
    ) -> Result<(), SchedulerError> {
        let masked = self.job(job)?.record().spec.secagg.is_some();
        let credential = masked.then(|| Blob(credential.to_owned()));
        self.step(job, round, Input::Accepted { tenant: tenant.clone(), credential }, now)
    }

    /// A cohort member answers in a step of secure aggregation. What does not fit ends its part in
    /// the round, and it is told why.
    ///
    /// - `peers`: recognises the signatures of the cohort
    ///
    /// # Errors
    /// [`SchedulerError`] if the answer is refused.
    pub fn secagg(
        &mut self,
        tenant: &TenantId,
        job: &JobId,
        round: RoundNumber,
        payload: &SecaggPayload,
        peers: &dyn PeerKeys,
        now: Timestamp,
    ) -> Result<(), SchedulerError> {
        self.require_active(tenant)?;
        let open = self
            .jobs
            .get_mut(job)
            .ok_or_else(|| SchedulerError::JobUnknown { job: job.clone() })?;
        open.require_round(round)?;
        let outcome = payload
            .decode::<ClientMessage>()
            .map_err(|source| SchedulerError::SecaggMalformed { source: source.into() })
            .and_then(|message| Ok(open.round.secagg(now, tenant, message, peers)?));
        if let Err(error) = &outcome
            && error.code() == ErrorCode::SecaggMessageInvalid
        {
            let declined = Input::Declined(tenant.clone(), error.refusal());
            // Whoever is not in the cohort has nothing to leave.
            if open.round.handle(now, declined).is_ok() {
                let (actor, subject) = (Actor::tenant(tenant), format!("{job}/{round}"));
                let refusal = error.refusal();
                let event = AuditEvent::refused(actor, Act::RoundDecline, subject, refusal);
                self.actions.push_back(Action::Audit(event));
                let abandoned = Some(error.refusal().to_string());
                let (job, tenant) = (job.clone(), tenant.clone());
                self.send(tenant, CoordinatorMessage::RoundClosed { job, round, abandoned });
            }
        }
        self.settle_all(now);
        outcome
    }

    /// A cohort member will not report. Unless the reason is transient, it is not invited to this
    /// job again before it reconnects.
    ///
    /// # Errors
    /// [`SchedulerError`] if the round is over or the tenant is not in it.
    pub fn declined(
        &mut self,
        tenant: &TenantId,
        job: &JobId,
        round: RoundNumber,
        refusal: Refusal,
        now: Timestamp,
    ) -> Result<(), SchedulerError> {
        if !refusal.code.is_transient()
            && let Some(job) = self.jobs.get_mut(job)
        {
            job.refusals.insert(tenant.clone(), refusal.clone());
        }
        let (actor, subject) = (Actor::tenant(tenant), format!("{job}/{round}"));
        let event = AuditEvent::refused(actor, Act::RoundDecline, subject, &refusal);
        let before = self.actions.len();
        self.step(job, round, Input::Declined(tenant.clone(), refusal), now)?;
        self.actions.insert(before, Action::Audit(event));
        Ok(())
    }

    /// Whether an update that a tenant offers is wanted.
    ///
    /// # Errors
    /// [`SchedulerError`] naming what does not fit.
    pub fn offered(
        &self,
        tenant: &TenantId,
        offer: &UploadOffer,
    ) -> Result<OfferAnswer, SchedulerError> {
        self.require_active(tenant)?;
        let job = self.job(&offer.job)?;
        let (length, expected) = (offer.update.length, job.update_bytes());
        if length != expected {
            return Err(SchedulerError::UpdateLength {
                job: offer.job.clone(),
                offered: length,
                expected,
            });
        }
        job.offered(tenant, offer.round, offer.update.digest)
    }

    /// An offered update is durable here and well-formed.
    ///
    /// # Errors
    /// [`SchedulerError`] if the round closed in the meantime.
    pub fn reported(
        &mut self,
        tenant: &TenantId,
        offer: &UploadOffer,
        now: Timestamp,
    ) -> Result<(), SchedulerError> {
        self.acknowledge(tenant, offer.ledger_head);
        if self.offered(tenant, offer)? == OfferAnswer::Stored {
            return Ok(());
        }
        self.count_bytes(tenant, offer.update.length, now);
        self.step(
            &offer.job,
            offer.round,
            Input::Reported(tenant.clone(), offer.update.digest),
            now,
        )
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
            created: now,
        };
        let detail =
            format!("{} updates, model {}", commit.contributors.len(), version.file.digest);
        let subject = format!("{}/{}", commit.job, commit.round);
        let event = AuditEvent::done(Actor::coordinator(), Act::RoundCommit, subject, detail);
        self.actions.push_back(Action::Audit(event));
        let job = self.jobs.get_mut(&commit.job).expect("the commit came from this job");
        let actions = job.committed(commit, &version, now);
        let announcement = version.announcement(&job.record().spec);
        let superseded =
            parent.optimizer_state.filter(|state| version.optimizer_state != Some(*state));
        self.models.insert(version);
        self.actions.extend(actions);
        self.actions.push_back(Action::Discard(superseded.into_iter().collect()));
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

    /// Every file that a record refers to.
    #[must_use]
    pub fn referenced_files(&self) -> BTreeSet<Digest> {
        let models = self.models.iter().map(|version| version.file.digest);
        let states = self.jobs.keys().filter_map(|job| self.models.latest(job)?.optimizer_state);
        let updates = self.jobs.values().flat_map(|job| job.round().updates().into_values());
        models.chain(states).chain(updates).collect()
    }

    fn step(
        &mut self,
        job: &JobId,
        round: RoundNumber,
        input: Input,
        now: Timestamp,
    ) -> Result<(), SchedulerError> {
        let job = self
            .jobs
            .get_mut(job)
            .ok_or_else(|| SchedulerError::JobUnknown { job: job.clone() })?;
        job.require_round(round)?;
        job.round.handle(now, input)?;
        self.settle_all(now);
        Ok(())
    }

    /// Takes every round's outputs, opens the next rounds, and tells selections who is there.
    fn settle_all(&mut self, now: Timestamp) {
        let waits = |record: &TenantRecord| !self.has_room(record, now);
        self.next_day = self.tenants.values().any(waits).then(|| next_day(now));
        let mut ids: Vec<_> = self.jobs.keys().cloned().collect();
        // Stable: jobs of one priority keep the order of their names.
        ids.sort_by_key(|id| std::cmp::Reverse(self.jobs[id].record().priority));
        for id in ids {
            loop {
                let tenants: BTreeSet<_> = self.eligible(&id, now).collect();
                let population = self.population(&id, now);
                let base = self.models.latest(&id).expect("every job has version 0");
                let job = self.jobs.get_mut(&id).expect("listed above");
                let available = Input::Available { tenants, population };
                job.round.handle(now, available).expect("availability fits every phase");
                self.actions.extend(job.take_actions(base, now));
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
