//! Watches the scheduler from outside: since when each round is in its phase, and that something
//! changed. Nothing here is durable, and nothing is decided by it.

use std::collections::BTreeMap;

use tokio::sync::watch;
use tributary_protocol::{
    id::{JobId, RoundNumber},
    time::Timestamp,
};

use super::telemetry;
use crate::scheduler::{JobState, Scheduler};

/// What was last seen of every job.
#[derive(Debug, Default)]
pub struct Progress {
    jobs: BTreeMap<JobId, Seen>,
    connected: usize,
    revision: watch::Sender<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    state: JobState,
    round: RoundNumber,
    opened: Timestamp,
    phase: &'static str,
    since: Timestamp,
}

impl Progress {
    /// Since when the open round of a job is in its phase.
    #[must_use]
    pub fn phase_since(&self, job: &JobId) -> Option<Timestamp> {
        self.jobs.get(job).map(|seen| seen.since)
    }

    /// A number that grows whenever something may have changed that people look at.
    #[must_use]
    pub fn revision(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Looks at the scheduler after a request or a deadline.
    ///
    /// - `changed`: whether it asked for anything
    pub(super) fn observe(&mut self, scheduler: &Scheduler, mut changed: bool, now: Timestamp) {
        for job in scheduler.jobs() {
            let (name, round) = (&job.record().spec.name, job.round());
            let (state, phase) = (job.record().state, round.phase.name());
            let before = self.jobs.get(name).copied();
            let seen = match before {
                Some(seen) if seen.round == round.number && seen.phase == phase => {
                    Seen { state, ..seen }
                }
                Some(seen) => {
                    telemetry::observe_phase(name, seen.phase, now.since(seen.since));
                    let opened = if seen.round == round.number {
                        seen.opened
                    } else {
                        telemetry::observe_round(name, now.since(seen.opened));
                        now
                    };
                    Seen { state, round: round.number, opened, phase, since: now }
                }
                None => Seen { state, round: round.number, opened: now, phase, since: now },
            };
            if before != Some(seen) {
                changed = true;
                self.jobs.insert(name.clone(), seen);
            }
        }
        let connected = scheduler.connected_count();
        changed |= std::mem::replace(&mut self.connected, connected) != connected;
        if changed {
            self.revision.send_modify(|revision| *revision += 1);
        }
    }
}
