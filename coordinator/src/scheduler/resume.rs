//! Going on with a job from any version of its model.

use tributary_protocol::{id::JobId, time::Timestamp};

use super::{Action, JobState, Scheduler, SchedulerError};
use crate::store::Batch;

impl Scheduler {
    /// Goes on with a job from one of its versions: its model becomes the newest version, an open
    /// round is given up, and the next one begins from it. A job that stopped, failed or stopped
    /// early runs again.
    ///
    /// Round numbers go on, so agents treat every round as a new one, with a debit of its own. The
    /// server optimizer and the control variates start anew.
    ///
    /// # Errors
    /// [`SchedulerError::JobUnknown`], [`SchedulerError::VersionUnknown`], or
    /// [`SchedulerError::NoRoundsLeft`] if all rounds of the job led to that version.
    pub fn resume_from(
        &mut self,
        job: &JobId,
        version: u64,
        now: Timestamp,
    ) -> Result<(), SchedulerError> {
        let open = self.job(job)?;
        let rounds_max = open.record().spec.round.rounds;
        let unknown = || SchedulerError::VersionUnknown { job: job.clone(), version };
        let from = self.models.version(job, version).ok_or_else(unknown)?;
        let newest = self.models.latest(job).expect("every job has version 0");
        let rounds = self.models.rounds_until(job, version);
        if rounds >= rounds_max {
            let (job, rounds) = (job.clone(), rounds_max);
            return Err(SchedulerError::NoRoundsLeft { job, version, rounds });
        }
        let next = from.continued_after(newest, now);
        let superseded = newest.side_files();
        let open = self.jobs.get_mut(job).expect("it was just found");
        open.resume_from(&next, rounds, now);
        let announcement = next.announcement(&open.record().spec);
        let closing = open.take_actions(&self.models, now);
        // In one step: the version, and that the round which it takes the place of is given up.
        let mut batch = Batch::default();
        next.put(&mut batch);
        open.record().put(&mut batch);
        self.actions.push_back(Action::Persist(batch));
        self.actions.extend(closing);
        self.actions.push_back(Action::Discard(superseded));
        self.models.insert(next);
        if !self.models.is_pinned(job) {
            self.announce(&announcement);
        }
        self.settle_all(now);
        debug_assert_eq!(self.jobs[job].record().state, JobState::Running);
        Ok(())
    }
}
