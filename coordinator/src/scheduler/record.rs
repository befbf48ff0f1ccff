//! What of jobs and their rounds is durable.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use tributary_protocol::{
    id::{Digest, JobId, RoundNumber, TenantId},
    job::JobSpec,
    message::LatticeSpec,
    time::Timestamp,
};

use super::{BaseMetrics, Revealed};
use crate::{
    audit::{Act, Actor, AuditEvent},
    round::{Aggregation, Answer, Phase, RoundRecord},
    store::{self, Batch, Store, StoreError, Table},
};

/// Whether a job still trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Rounds are run.
    Running,
    /// An open round is finished, no further one begins until the job is resumed.
    Paused,
    /// Ended by an operator.
    Stopped,
    /// All rounds are committed.
    Finished,
    /// No further model can be made; [`JobRecord::failure`] says why.
    Failed,
}

/// The durable form of a job and its open (or last) round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRecord {
    /// The document; where the clipping norm adapts, with the norm of the open round.
    pub spec: JobSpec,
    /// The lattice of the open round's updates.
    pub lattice: LatticeSpec,
    /// Whether it still trains.
    pub state: JobState,
    /// Rounds that became models.
    pub rounds_committed: u64,
    /// Seeds the cohort of each round.
    pub cohort_seed: u64,
    /// The open round, or the last one.
    pub round: RoundRecord,
    /// What its sums revealed, with distributed noise.
    #[serde(default)]
    pub revealed: Option<Revealed>,
    /// What its cohorts said about its bases, oldest first.
    #[serde(default)]
    pub metrics: Vec<BaseMetrics>,
    /// Why the job failed, if it did.
    pub failure: Option<String>,
    /// Why the job finished before its last round, if it did.
    #[serde(default)]
    pub stopped_early: Option<String>,
    /// The version from which on metrics count for an early stop: where training last turned back.
    #[serde(default)]
    pub resumed_from: u64,
    /// When it was submitted.
    pub submitted: Timestamp,
    /// A tenant that owes a report to one job is not invited by jobs of lower priority.
    #[serde(default)]
    pub priority: i32,
    /// How many answers of cohort members, of all its rounds, it has in it: later ones are stored by
    /// themselves.
    #[serde(default)]
    pub answers: u64,
}

impl JobRecord {
    /// Reads every job, with the secure aggregations and answers that are stored by themselves.
    ///
    /// # Errors
    /// [`StoreError`] if a record is damaged, or what an open round needs is missing.
    pub fn load_all(store: &dyn Store) -> Result<Vec<Self>, StoreError> {
        let mut jobs: Vec<Self> = store::load(store, Table::Jobs)?;
        let aggregations: Vec<AggregationRecord> = store::load(store, Table::Aggregations)?;
        let mut answers = BTreeMap::<_, Vec<AnswerRecord>>::new();
        for answer in store::load::<AnswerRecord>(store, Table::Answers)? {
            answers.entry(answer.job.clone()).or_default().push(answer);
        }
        for job in &mut jobs {
            let answers = answers.remove(&job.spec.name).unwrap_or_default();
            let missing = if !job.attach(&aggregations) {
                Some(Table::Aggregations)
            } else if !job.take_answers(answers) {
                Some(Table::Answers)
            } else {
                None
            };
            if let Some(table) = missing {
                let (table, key) = (table.name(), job.spec.name.to_string());
                return Err(StoreError::Missing { table, key });
            }
        }
        Ok(jobs)
    }

    /// Takes in the answers that came after the record was stored; false if one is missing.
    fn take_answers(&mut self, mut stored: Vec<AnswerRecord>) -> bool {
        // A tenant's answer stays until its next one: those of earlier rounds, and those that the
        // record has in it.
        stored.retain(|it| it.round == self.round.number && it.number > self.answers);
        stored.sort_by_key(|it| it.number);
        for AnswerRecord { number, answer, metrics, .. } in stored {
            if number != self.answers + 1 || !self.round.take(&answer) {
                return false;
            }
            self.answers = number;
            if let Some(metrics) = metrics {
                let place = self.metrics.partition_point(|known| known.version < metrics.version);
                let known = self.metrics.get(place).is_some_and(|it| it.version == metrics.version);
                self.metrics.splice(place..place + usize::from(known), [metrics]);
            }
        }
        true
    }

    /// Adds the record to a batch.
    pub fn put(&self, batch: &mut Batch) {
        self.put_changed(&mut None, batch);
    }

    /// Adds the record to a batch, but for the secure aggregation that is stored by itself, unless it
    /// changed.
    ///
    /// - `saved`: the one that is stored
    pub(super) fn put_changed(&self, saved: &mut Option<Arc<Aggregation>>, batch: &mut Batch) {
        let (mut slim, name) = (self.clone(), self.spec.name.as_str());
        let current = slim.round.detach();
        batch.put(Table::Jobs, name, &slim);
        let is_saved = match (&current, &*saved) {
            (Some(current), Some(saved)) => Arc::ptr_eq(current, saved),
            (None, None) => true,
            _ => false,
        };
        if !is_saved {
            let (job, round) = (slim.spec.name.clone(), slim.round.number);
            let aggregation = current.as_deref().cloned();
            batch.put(Table::Aggregations, name, &AggregationRecord { job, round, aggregation });
        }
        *saved = current;
    }

    /// Puts back the secure aggregation that is stored by itself; false if the open round needs one,
    /// and it is not there.
    fn attach(&mut self, stored: &[AggregationRecord]) -> bool {
        let own = |record: &&AggregationRecord| {
            record.job == self.spec.name && record.round == self.round.number
        };
        let aggregation = stored.iter().find(own).and_then(|record| record.aggregation.clone());
        self.round.attach(aggregation.map(Arc::new))
    }

    /// The updates that the open round has counted, and still needs.
    #[must_use]
    pub fn awaiting_sum(&self) -> BTreeMap<TenantId, Digest> {
        match self.round.phase {
            Phase::Reporting(_) | Phase::Unmasking(_) | Phase::Buffering(_) => self.round.updates(),
            _ => BTreeMap::new(),
        }
    }

    /// Gives the open round up before the coordinator starts: what it counted is lost.
    ///
    /// - returns: what to record; the round's record and summary are in `batch`
    pub fn abandon_lost(
        &mut self,
        reason: String,
        now: Timestamp,
        batch: &mut Batch,
    ) -> AuditEvent {
        let (job, round) = (self.spec.name.clone(), self.round.number);
        let event = abandoned(&job, round, &reason);
        let summary = RoundSummary {
            job,
            round,
            contributors: BTreeMap::new(),
            abandoned: Some(reason.clone()),
            ended: now,
        };
        self.round.phase = Phase::Abandoned { reason };
        summary.put(batch);
        self.put(batch);
        event
    }

    /// Moves a job that still trains past rounds that were run after the copy from which it is
    /// restored: agents have spent budget on their numbers.
    ///
    /// - returns: what to record, if it still trains
    pub(crate) fn leap(
        &mut self,
        rounds: u64,
        restored: &str,
        now: Timestamp,
        batch: &mut Batch,
    ) -> Option<AuditEvent> {
        if !matches!(self.state, JobState::Running | JobState::Paused) {
            return None;
        }
        let before = self.round.number;
        self.round.number = RoundNumber(before.0.saturating_add(rounds));
        let reason = format!(
            "the coordinator was restored {restored}: rounds from {before} up to this one may have \
             been run after it, and are lost"
        );
        Some(self.abandon_lost(reason, now, batch))
    }
}

pub(super) fn abandoned(job: &JobId, round: RoundNumber, reason: &str) -> AuditEvent {
    let subject = format!("{job}/{round}");
    AuditEvent::done(Actor::coordinator(), Act::RoundAbandon, subject, reason)
}

/// The secure aggregation of a round whose masked updates are arriving.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AggregationRecord {
    job: JobId,
    round: RoundNumber,
    /// `None` once the round needs it no more.
    aggregation: Option<Aggregation>,
}

/// A cohort member's answer, and what came with it. Each tenant's newest of every job is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerRecord {
    pub(super) job: JobId,
    pub(super) round: RoundNumber,
    /// Counts the answers to the job.
    pub(super) number: u64,
    pub(super) answer: Answer,
    /// The noisy metrics of a base, with the tenant's own in them, if it sent some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) metrics: Option<BaseMetrics>,
}

impl AnswerRecord {
    /// Adds the record to a batch.
    pub(super) fn put(&self, batch: &mut Batch) {
        batch.put(Table::Answers, format!("{}/{}", self.job, self.answer.tenant()), self);
    }
}

/// How a round ended, for the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundSummary {
    /// The job.
    pub job: JobId,
    /// The round.
    pub round: RoundNumber,
    /// The updates that it summed, by tenant; empty if it was abandoned. With secure aggregation
    /// these are masked, and their tenants the survivors.
    pub contributors: BTreeMap<TenantId, Digest>,
    /// Why it was abandoned, if it was.
    pub abandoned: Option<String>,
    /// When it ended.
    pub ended: Timestamp,
}

impl RoundSummary {
    /// Adds the record to a batch.
    pub(super) fn put(&self, batch: &mut Batch) {
        batch.put(Table::Rounds, format!("{}/{:010}", self.job, self.round.0), self);
    }
}
