//! Carrying out what the scheduler asks for.

use tracing::{error, info, info_span, warn};
use tributary_protocol::{
    error_code::ErrorCode, error_code::Refusal, message::CoordinatorMessage, time::Timestamp,
};

use super::{Core, CoreError};
use crate::{
    aggregation::AggregationError,
    driver::telemetry,
    scheduler::{Action, Commit},
    store::{Batch, StoreError, Table},
};

impl Core {
    /// Whether another request may run before what was asked for so far is carried out.
    pub(super) fn may_wait(&self) -> bool {
        self.events.is_empty() && self.unsaved.is_empty() && self.scheduler.may_wait()
    }

    /// Carries out every action, in order: a send never overtakes the persist before it.
    pub(super) fn settle(&mut self, now: Timestamp) -> Result<(), CoreError> {
        while self.settle_next(now)? {}
        Ok(())
    }

    /// Carries out one action; false if there was none left. Between two of them the process may
    /// die, and [`Self::restore`] goes on.
    pub(super) fn settle_next(&mut self, now: Timestamp) -> Result<bool, CoreError> {
        if let Some(event) = self.events.pop_front() {
            self.unseen = true;
            self.audit.append(event, now)?;
            return Ok(true);
        }
        let unsaved = std::mem::take(&mut self.unsaved);
        if !unsaved.is_empty() {
            self.unseen = true;
            self.persist(&unsaved)?;
            return Ok(true);
        }
        if let Some(action) = self.scheduler.poll_action() {
            self.unseen = true;
            self.carry_out(action, now)?;
            return Ok(true);
        }
        let behind = self.noted != Some(self.audit.head());
        if behind {
            // May lag behind a crash, never run ahead: the log is durable first.
            let mut batch = Batch::default();
            batch.put(Table::Audit, "head", &self.audit.head());
            self.store.apply(&batch)?;
            self.noted = Some(self.audit.head());
        } else {
            let changed = std::mem::take(&mut self.unseen);
            self.progress.observe(&self.scheduler, changed, now);
        }
        Ok(behind)
    }

    fn carry_out(&mut self, action: Action, now: Timestamp) -> Result<(), CoreError> {
        match action {
            Action::Persist(mut batch) => {
                while let Some(later) = self.scheduler.poll_persist() {
                    batch.append(later);
                }
                self.persist(&batch)?;
            }
            Action::Audit(event) => {
                telemetry::count_event(&event);
                self.audit.append(event, now)?;
            }
            Action::Send(tenant, message) => self.send(&tenant, message),
            Action::Discard(files) => {
                for file in files {
                    self.blobs.remove(file)?;
                }
            }
            Action::Welcome(tenant, head) => {
                self.send_receipt(tenant, head, now, CoordinatorMessage::Welcome);
            }
            Action::Receipt(tenant, head) => {
                self.send_receipt(tenant, head, now, CoordinatorMessage::Receipt);
            }
            Action::Unstage(job, round) => self.blobs.unstage(&job, round)?,
            Action::Commit(commit) => self.commit(&commit, now)?,
        }
        Ok(())
    }

    pub(super) fn persist(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let started = tokio::time::Instant::now();
        self.store.apply(batch)?;
        telemetry::observe_persist(started.elapsed());
        Ok(())
    }

    fn commit(&mut self, commit: &Commit, now: Timestamp) -> Result<(), CoreError> {
        let _span = info_span!("commit", job = %commit.job, round = %commit.round).entered();
        let started = tokio::time::Instant::now();
        let aggregated = self.sums.commit(&self.scheduler, commit, &self.blobs);
        telemetry::observe_aggregation(&commit.job, started.elapsed());
        match aggregated {
            Ok(model) => {
                info!(updates = commit.contributors.len(), model = %model.file.digest.short(), "round committed");
                telemetry::count_commit(&commit.job);
                let job = self.scheduler.job(&commit.job).expect("the commit came from this job");
                let base = self.scheduler.models().latest(&commit.job);
                let base_version = base.expect("every job has version 0").version;
                let contributors = commit.contributors.keys();
                self.spending.count(&job.record().spec, base_version, contributors);
                self.scheduler.committed(commit, model, now);
                Ok(())
            }
            Err(AggregationError::Blob(error)) => Err(error.into()),
            Err(error @ (AggregationError::Masked(_) | AggregationError::Implausible(_))) => {
                warn!(%error, "round abandoned");
                let refusal = Refusal::from_error(ErrorCode::Internal, &error);
                self.scheduler.commit_abandoned(commit, refusal.message, now);
                Ok(())
            }
            Err(error) => {
                let refusal = Refusal::from_error(ErrorCode::Internal, &error);
                error!(reason = %refusal.message, "the job failed");
                self.scheduler.commit_failed(commit, refusal.message);
                Ok(())
            }
        }
    }
}
