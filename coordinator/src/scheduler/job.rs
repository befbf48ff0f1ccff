//! One job: its document, its open round, and what its rounds lead to.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tributary_protocol::{
    codec::CodecError,
    error_code::Refusal,
    id::{Digest, JobId, RoundNumber, TenantId},
    job::{JobSpec, MetricSum},
    message::{Assignment, CoordinatorMessage, LatticeSpec, SecaggPayload},
    time::Timestamp,
};

use super::{
    Action, AnswerRecord, BaseMetrics, Commit, JobRecord, JobState, OfferAnswer, RoundSummary,
    SchedulerError, early_stop, record::abandoned,
};
use crate::{
    aggregation,
    registry::{ModelRegistry, ModelVersion},
    round::{Aggregation, Answer, Output, Phase, Request, Round, RoundRecord, grouped},
    store::Batch,
};

/// What an operator asks of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobControl {
    /// Finish the open round and begin no further one.
    Pause,
    /// Go on.
    Resume,
    /// End the job; an open round is given up.
    Stop,
    /// Jobs of higher priority get tenants first.
    Priority(i32),
}

/// A running or finished job.
#[derive(Debug)]
pub struct Job {
    record: JobRecord,
    pub(super) round: Round,
    /// A commit is with the driver; later outputs wait until the model is durable.
    committing: bool,
    /// The secure aggregation that is stored by itself.
    saved: Option<Arc<Aggregation>>,
    /// The version whose metrics the record has, and the store has not.
    evaluated: Option<u64>,
    /// Tenants that refuse the job until they reconnect, and why.
    pub(super) refusals: BTreeMap<TenantId, Refusal>,
}

impl Job {
    pub(super) fn open(
        spec: JobSpec,
        lattice: LatticeSpec,
        base: Digest,
        cohort_seed: u64,
        now: Timestamp,
    ) -> Self {
        let number = RoundNumber::default().next();
        let secagg = aggregation::terms(&spec, lattice);
        let round = Round::new(number, base, spec.round.clone(), secagg, cohort_seed, now);
        let record = JobRecord {
            spec,
            lattice,
            state: JobState::Running,
            rounds_committed: 0,
            cohort_seed,
            round: round.record().clone(),
            revealed: None,
            metrics: Vec::new(),
            failure: None,
            stopped_early: None,
            resumed_from: 0,
            submitted: now,
            priority: 0,
            answers: 0,
        };
        Self::with(record, round, None)
    }

    pub(super) fn restore(record: JobRecord, now: Timestamp) -> Self {
        let saved = record.round.detachable().cloned();
        let round = Round::restore(record.round.clone(), now);
        Self::with(record, round, saved)
    }

    const fn with(record: JobRecord, round: Round, saved: Option<Arc<Aggregation>>) -> Self {
        let refusals = BTreeMap::new();
        Self { record, round, committing: false, saved, evaluated: None, refusals }
    }

    /// The durable form.
    #[must_use]
    pub const fn record(&self) -> &JobRecord {
        &self.record
    }

    /// The open round, or the last one.
    #[must_use]
    pub const fn round(&self) -> &RoundRecord {
        self.round.record()
    }

    /// Tenants that refuse the job, and why.
    #[must_use]
    pub const fn refusals(&self) -> &BTreeMap<TenantId, Refusal> {
        &self.refusals
    }

    /// One line for people: what the job waits for.
    #[must_use]
    pub fn waiting_for(&self) -> String {
        let mut line = match self.record.state {
            JobState::Running => self.round.waiting_for(),
            JobState::Paused if self.is_idle() => return "to be resumed".to_owned(),
            JobState::Paused => format!("{}; then to be resumed", self.round.waiting_for()),
            JobState::Finished => {
                return match &self.record.stopped_early {
                    Some(reason) => format!("nothing; the job stopped early: {reason}"),
                    None => "nothing; the job is finished".to_owned(),
                };
            }
            JobState::Stopped => return "nothing; the job was stopped".to_owned(),
            JobState::Failed => {
                let failure = self.record.failure.as_deref().unwrap_or_default();
                return format!("nothing; the job failed: {failure}");
            }
        };
        let refusals = self.refusals.iter().map(|(tenant, refusal)| (tenant, refusal.to_string()));
        for (tenants, refusal) in grouped(refusals) {
            let verb = if tenants.contains(',') { "refuse" } else { "refuses" };
            line += &format!("; {tenants} {verb}: {refusal}");
        }
        line
    }

    /// Whether the open round has chosen its cohort.
    pub(super) const fn has_invited(&self) -> bool {
        !matches!(self.round().phase, Phase::Selection(_))
    }

    /// When the job stops to wait and goes on with what it has, if it waits for a time.
    #[must_use]
    pub fn waits_until(&self) -> Option<Timestamp> {
        match self.record.state {
            JobState::Running => self.round.poll_timeout(),
            JobState::Paused if !self.is_idle() => self.round.poll_timeout(),
            _ => None,
        }
    }

    /// Whether no round has invited anybody that still owes something.
    fn is_idle(&self) -> bool {
        match &self.round().phase {
            Phase::Selection(_) | Phase::Committed { .. } | Phase::Abandoned { .. } => true,
            Phase::Buffering(buffering) => buffering.training().next().is_none(),
            _ => false,
        }
    }

    /// Whether a round may choose its cohort now.
    pub(super) fn may_invite(&self) -> bool {
        self.record.state == JobState::Running
    }

    /// Acts on a deadline that has passed; a paused job has none before its round invites.
    pub(super) fn handle_timeout(&mut self, now: Timestamp) {
        if self.waits_until().is_some() {
            self.round.handle_timeout(now);
        }
    }

    /// Lets an operator pause, resume or stop the job.
    ///
    /// # Errors
    /// [`SchedulerError::JobFinished`] if it has ended.
    pub(super) fn control(
        &mut self,
        control: JobControl,
        now: Timestamp,
    ) -> Result<(), SchedulerError> {
        if !matches!(self.record.state, JobState::Running | JobState::Paused) {
            return Err(SchedulerError::JobFinished { job: self.record.spec.name.clone() });
        }
        match control {
            JobControl::Pause => self.record.state = JobState::Paused,
            JobControl::Resume => {
                if self.record.state == JobState::Paused && self.is_idle() {
                    // A wait for a cohort starts anew.
                    self.round = Round::restore(self.round.record().clone(), now);
                }
                self.record.state = JobState::Running;
            }
            JobControl::Stop => {
                self.record.state = JobState::Stopped;
                self.round.give_up("the job was stopped".to_owned(), now);
            }
            JobControl::Priority(priority) => self.record.priority = priority,
        }
        Ok(())
    }

    /// Length of a packed update, in bytes.
    #[must_use]
    pub fn update_bytes(&self) -> u64 {
        let bits = self.record.spec.wire_dimension() as u64 * u64::from(self.record.lattice.bits);
        bits.div_ceil(8)
    }

    /// Whether a tenant's round is the open one, or that of its own ticket.
    pub(super) fn require_round(
        &self,
        tenant: &TenantId,
        offered: RoundNumber,
    ) -> Result<(), SchedulerError> {
        let job = || self.record.spec.name.clone();
        if !matches!(self.record.state, JobState::Running | JobState::Paused) {
            return Err(SchedulerError::JobFinished { job: job() });
        }
        let open = self.round().number_of(tenant);
        if offered != open {
            return Err(SchedulerError::WrongRound { job: job(), offered, open });
        }
        Ok(())
    }

    pub(super) fn offered(
        &self,
        tenant: &TenantId,
        round: RoundNumber,
        update: Digest,
    ) -> Result<OfferAnswer, SchedulerError> {
        let open = self.round().number;
        if round != open || !matches!(self.round().phase, Phase::Committed { .. }) {
            self.require_round(tenant, round)?;
        }
        let counted = self.round.check_report(tenant, update)?;
        Ok(if counted { OfferAnswer::Stored } else { OfferAnswer::Receive })
    }

    /// Takes in a tenant's noisy metrics of the round's base; durable with the next record.
    pub(super) fn evaluated(&mut self, base: &ModelVersion, release: &[MetricSum]) {
        let Some(spec) = self.record.spec.evaluation.as_ref() else { return };
        if release.is_empty() {
            return;
        }
        let metrics = &mut self.record.metrics;
        // With asynchronous rounds, an older base may be evaluated after a newer one.
        let place = metrics.partition_point(|known| known.version < base.version);
        if metrics.get(place).is_none_or(|known| known.version != base.version) {
            metrics.insert(place, BaseMetrics::new(base.version, base.file.digest, spec));
        }
        metrics[place].add(release);
        self.evaluated = Some(base.version);
    }

    /// Moves the clipping norm by the cohort's vote, and the lattice with it.
    fn follow_vote(&mut self, vote: Option<f64>, contributors: usize) {
        let norm = aggregation::next_clipping_norm(&self.record.spec, vote, contributors);
        let mut spec = self.record.spec.clone();
        spec.privacy.clipping_norm = norm;
        // A norm that no lattice carries is not taken over.
        match aggregation::plan_lattice(&spec) {
            Ok(lattice) => (self.record.spec, self.record.lattice) = (spec, lattice),
            Err(error) => tracing::warn!(job = %spec.name, norm, %error, "the clipping norm stays"),
        }
    }

    /// Translates the round's outputs, up to a commit.
    pub(super) fn take_actions(&mut self, models: &ModelRegistry, now: Timestamp) -> Vec<Action> {
        let mut actions = Vec::new();
        while !self.committing
            && let Some(output) = self.round.poll_output()
        {
            match output {
                Output::Persist(round) => {
                    if let Phase::Abandoned { reason } = &round.phase {
                        let event = abandoned(&self.record.spec.name, round.number, reason);
                        actions.push(Action::Audit(event));
                    }
                    let mut batch = Batch::default();
                    let leftovers = self.put_round(*round, now, &mut batch);
                    actions.push(Action::Persist(batch));
                    actions.extend(leftovers);
                }
                Output::Note(answer) => {
                    let mut batch = Batch::default();
                    self.put_answer(answer, &mut batch);
                    actions.push(Action::Persist(batch));
                }
                Output::Configure(tenant, deadline) => {
                    let base = models
                        .with_file(&self.record.spec.name, self.round().base_of(&tenant))
                        .expect("every base that a round begins from is registered");
                    let assignment = self.assignment(&tenant, base, deadline, now);
                    let message = CoordinatorMessage::Configure(Box::new(assignment));
                    actions.push(Action::Send(tenant, message));
                }
                Output::Dismiss { tenant, round, abandoned } => {
                    let job = self.record.spec.name.clone();
                    let message = CoordinatorMessage::RoundClosed { job, round, abandoned };
                    actions.push(Action::Send(tenant, message));
                }
                Output::Ask(tenant, request) => {
                    let (job, round) = (self.record.spec.name.clone(), self.round().number);
                    match ask(job, round, request) {
                        Ok(message) => actions.push(Action::Send(tenant, message)),
                        // The tenant drops out at the step's deadline, with this as the reason.
                        Err(error) => {
                            tracing::error!(%tenant, %error, "a step cannot be asked for")
                        }
                    }
                }
                Output::Commit { contributors, unmask } => {
                    self.committing = true;
                    let (job, round) = (self.record.spec.name.clone(), self.round().number);
                    actions.push(Action::Commit(Commit { job, round, contributors, unmask }));
                }
                Output::Close { tenants, abandoned } => {
                    let (job, round) = (self.record.spec.name.clone(), self.round().number);
                    actions.extend(tenants.into_iter().map(|tenant| {
                        let (job, abandoned) = (job.clone(), abandoned.clone());
                        Action::Send(
                            tenant,
                            CoordinatorMessage::RoundClosed { job, round, abandoned },
                        )
                    }));
                }
            }
        }
        actions
    }

    /// Records that the open round became a model: what must be durable, and then told.
    pub(super) fn committed(
        &mut self,
        commit: &Commit,
        version: &ModelVersion,
        clip_vote: Option<f64>,
        models: &ModelRegistry,
        now: Timestamp,
    ) -> Vec<Action> {
        assert!(
            self.committing && self.round().number == commit.round,
            "commits are answered once"
        );
        self.committing = false;
        self.record.rounds_committed += 1;
        if let Some(aggregation) = &commit.unmask {
            let JobRecord { spec, lattice, revealed, .. } = &mut self.record;
            let survivors = commit.contributors.len() as u32;
            revealed.get_or_insert_default().add(spec, aggregation.plan(), *lattice, survivors);
        }
        if self.record.spec.privacy.adaptive().is_some() {
            self.follow_vote(clip_vote, commit.contributors.len());
        }
        if self.record.rounds_committed >= self.record.spec.round.rounds {
            self.record.state = JobState::Finished;
        }
        if let Some(reason) = self.early_stop() {
            (self.record.state, self.record.stopped_early) = (JobState::Finished, Some(reason));
        }
        let mut batch = Batch::default();
        version.put(&mut batch);
        let leftovers = self.put_round(self.round.record().clone(), now, &mut batch);
        let mut actions = vec![Action::Persist(batch)];
        actions.extend(leftovers);
        actions.extend(self.take_actions(models, now));
        if self.record.state == JobState::Finished {
            actions.extend(self.dismiss_all("the job is finished"));
        }
        actions
    }

    /// Why the job should end before its last round, if its metric says so.
    fn early_stop(&self) -> Option<String> {
        let JobRecord { spec, metrics, resumed_from, state, .. } = &self.record;
        let (rule, evaluation) = spec.early_stop.as_ref().zip(spec.evaluation.as_ref())?;
        let counted = metrics.iter().filter(|metrics| metrics.version >= *resumed_from);
        let running = matches!(state, JobState::Running | JobState::Paused);
        running.then(|| early_stop::reason(rule, evaluation, counted)).flatten()
    }

    /// Tells everybody who still trains for a round that comes after the last one.
    fn dismiss_all(&self, reason: &str) -> Vec<Action> {
        let dismissed = self.round().carried.tickets.iter().map(|(tenant, ticket)| {
            let (job, round) = (self.record.spec.name.clone(), ticket.round);
            let abandoned = Some(reason.to_owned());
            Action::Send(tenant.clone(), CoordinatorMessage::RoundClosed { job, round, abandoned })
        });
        dismissed.collect()
    }

    /// Turns training back to (or forward from) a version: an open round is given up, and the job
    /// runs, with the rounds that are left after that version.
    ///
    /// - `from`: the version that the next round begins from
    /// - `rounds`: that led to it
    pub(super) fn resume_from(&mut self, from: &ModelVersion, rounds: u64, now: Timestamp) {
        self.round.give_up(format!("training goes on from version {}", from.version), now);
        let record = &mut self.record;
        (record.state, record.rounds_committed) = (JobState::Running, rounds);
        (record.resumed_from, record.stopped_early, record.failure) = (from.version, None, None);
    }

    /// Ends the round because the masks of its sum cannot be removed.
    pub(super) fn abandoned(&mut self, reason: String) {
        self.committing = false;
        self.round.abandon_commit(reason);
    }

    /// Ends the job because its open commit cannot become a model.
    pub(super) fn failed(&mut self, reason: String) -> Batch {
        (self.record.state, self.record.failure) = (JobState::Failed, Some(reason));
        let mut batch = Batch::default();
        self.record.put(&mut batch);
        batch
    }

    /// Opens the round after a closed one; false if none is due.
    pub(super) fn open_next_round(&mut self, base: Digest, now: Timestamp) -> bool {
        let closed =
            matches!(self.round().phase, Phase::Committed { .. } | Phase::Abandoned { .. });
        // What was committed while the job is paused may leave tenants that still train.
        let owed =
            self.record.state == JobState::Paused && !self.round().carried.tickets.is_empty();
        if !closed || self.committing || !(self.record.state == JobState::Running || owed) {
            return false;
        }
        let number = self.round().number.next();
        let seed = self.record.cohort_seed.wrapping_add(number.0);
        let JobRecord { spec, lattice, .. } = &self.record;
        let secagg = aggregation::terms(spec, *lattice);
        let (plan, carried) = (spec.round.clone(), self.round().carried.clone());
        self.round = Round::carrying(number, base, plan, secagg, seed, carried, now);
        true
    }

    /// Records where the round stands; says what to do with the files of a closed one.
    fn put_round(&mut self, round: RoundRecord, now: Timestamp, batch: &mut Batch) -> Vec<Action> {
        let summary = |contributors, abandoned| RoundSummary {
            job: self.record.spec.name.clone(),
            round: round.number,
            contributors,
            abandoned,
            ended: now,
        };
        let summary = match &round.phase {
            Phase::Committed { contributors } => Some(summary(contributors.clone(), None)),
            Phase::Abandoned { reason } => Some(summary(BTreeMap::new(), Some(reason.clone()))),
            _ => None,
        };
        let mut leftovers = Vec::new();
        if let Some(summary) = summary {
            let mut updates = BTreeSet::new();
            updates.extend(self.record.round.updates().into_values());
            updates.extend(round.updates().into_values());
            leftovers.push(Action::Discard(updates));
            // Uploads with a ticket of this round may still come in.
            let behind = round.plan.asynchronous.map_or(0, |plan| plan.staleness_max);
            if let Some(number) = round.number.0.checked_sub(behind.into()) {
                leftovers.push(Action::Unstage(summary.job.clone(), RoundNumber(number)));
            }
            summary.put(batch);
        }
        self.record.round = round;
        self.record.put_changed(&mut self.saved, batch);
        self.evaluated = None;
        leftovers
    }

    /// Records an answer by itself: what the record has in memory, the store has in two parts.
    fn put_answer(&mut self, answer: Answer, batch: &mut Batch) {
        assert!(self.record.round.take(&answer), "the round has taken it");
        self.record.answers += 1;
        let evaluated = self.evaluated.take();
        let metrics = self.record.metrics.iter().find(|known| Some(known.version) == evaluated);
        let (job, round) = (self.record.spec.name.clone(), self.record.round.number);
        let (number, metrics) = (self.record.answers, metrics.cloned());
        AnswerRecord { job, round, number, answer, metrics }.put(batch);
    }

    fn assignment(
        &self,
        tenant: &TenantId,
        base: &ModelVersion,
        deadline: Timestamp,
        now: Timestamp,
    ) -> Assignment {
        Assignment {
            job: self.record.spec.clone(),
            round: self.round().number_of(tenant),
            base: base.announcement(&self.record.spec),
            lattice: self.record.lattice,
            report_within_ms: deadline.since(now).as_millis() as u64,
            control: base.control,
        }
    }
}

/// A step of secure aggregation as the tenant is asked for it.
fn ask(job: JobId, round: RoundNumber, request: Request) -> Result<CoordinatorMessage, CodecError> {
    Ok(match request {
        Request::Begin { member, cohort_size, cohort_root } => {
            CoordinatorMessage::SecaggBegin { job, round, member, cohort_size, cohort_root }
        }
        Request::Step(message) => {
            let payload = SecaggPayload::encode(&message)?;
            CoordinatorMessage::Secagg { job, round, payload }
        }
    })
}
