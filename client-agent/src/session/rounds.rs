//! The rounds' part of a session: from an assignment to its stored update.

use std::collections::BTreeMap;

use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    message::{AgentMessage, Assignment},
    time::Timestamp,
};

use super::{Failure, Output, RoundKey, Session, TrainingEnd, UploadEnd};
use crate::{
    policy::Approved,
    refusals::Declined,
    update::{Release, Standing},
};

/// Every round that the agent has to do with.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    rounds: BTreeMap<RoundKey, Round>,
    arrivals: u64,
}

#[derive(Debug)]
enum Round {
    /// The ledger is asked.
    Examining { work: Work },
    /// Accepted; the cohort of its secure aggregation exchanges keys first.
    Joining { work: Work },
    /// Accepted; others train first.
    Queued { work: Work },
    /// The driver trains it.
    Training { cancelled: bool },
    /// Debited; waits for a connection.
    Released { release: Release },
    /// The driver uploads it.
    Uploading { release: Release },
    /// The coordinator has it; the round is still open.
    Reported,
}

#[derive(Debug, Clone)]
struct Work {
    assignment: Box<Assignment>,
    approved: Approved,
    deadline: Timestamp,
    arrival: u64,
}

impl Rounds {
    pub(super) fn training(&self) -> Option<RoundKey> {
        let mut training =
            self.rounds.iter().filter(|(_, round)| matches!(round, Round::Training { .. }));
        training.next().map(|(key, _)| key.clone())
    }

    pub(super) fn uploading(&self) -> Option<RoundKey> {
        let mut uploading = self
            .rounds
            .iter()
            .filter(|(_, round)| matches!(round, Round::Uploading { .. } | Round::Released { .. }));
        uploading.next().map(|(key, _)| key.clone())
    }

    pub(super) fn examining(&self) -> Option<RoundKey> {
        let mut examining = self
            .rounds
            .iter()
            .filter(|(_, round)| matches!(round, Round::Examining { .. } | Round::Queued { .. }));
        examining.next().map(|(key, _)| key.clone())
    }

    /// A round that waits for the keys of its cohort.
    pub(super) fn waiting_for_keys(&self) -> Option<RoundKey> {
        let mut joining =
            self.rounds.iter().filter(|(_, round)| matches!(round, Round::Joining { .. }));
        joining.next().map(|(key, _)| key.clone())
    }

    /// The assignment of a round that waits for the keys of its cohort.
    pub(super) fn joining(&self, key: &RoundKey) -> Option<&Assignment> {
        match self.rounds.get(key) {
            Some(Round::Joining { work }) => Some(&work.assignment),
            _ => None,
        }
    }

    /// The keys are exchanged: the round may train, and its time to report begins.
    pub(super) fn queue(&mut self, key: &RoundKey, now: Timestamp) {
        let Some(round) = self.rounds.get_mut(key) else { return };
        // Asked again after a reconnection, the round may be further already.
        if let Round::Joining { work } = round {
            let deadline = now.after_ms(work.assignment.job.round.report_timeout_ms);
            *round = Round::Queued { work: Work { deadline, ..work.clone() } };
        }
    }

    /// Whether the round's update is debited.
    pub(super) fn is_released(&self, key: &RoundKey) -> bool {
        let round = self.rounds.get(key);
        round.is_some_and(|round| {
            matches!(round, Round::Released { .. } | Round::Uploading { .. } | Round::Reported)
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rounds.is_empty()
    }

    pub(super) fn contains(&self, key: &RoundKey) -> bool {
        self.rounds.contains_key(key)
    }

    pub(super) fn remove(&mut self, key: &RoundKey) {
        self.rounds.remove(key);
    }

    /// Forgets a round of which nothing was released.
    pub(super) fn forget_unreleased(&mut self, key: &RoundKey) {
        if !self.is_released(key) {
            self.rounds.remove(key);
        }
    }

    /// A round whose update the coordinator has and that is still open.
    pub(super) fn reported(&self) -> Option<RoundKey> {
        let mut reported = self.rounds.iter().filter(|(_, round)| matches!(round, Round::Reported));
        reported.next().map(|(key, _)| key.clone())
    }

    /// Older rounds of the same job.
    fn before(&self, key: &RoundKey) -> Vec<RoundKey> {
        let older = |other: &&RoundKey| other.job == key.job && other.round < key.round;
        self.rounds.keys().filter(older).cloned().collect()
    }

    /// Whether a round waits for the worker.
    pub(super) fn has_work(&self) -> bool {
        self.examining().is_some()
    }

    /// Whether no round needs the worker now or soon: one that was reported and is still open is
    /// about to bring a new base and the next round.
    pub(super) fn leaves_time(&self) -> bool {
        self.rounds.is_empty()
    }

    /// Takes the next accepted round, unless one trains already.
    pub(super) fn start_next(&mut self) -> Option<(RoundKey, Box<Assignment>, Approved)> {
        if self.training().is_some() {
            return None;
        }
        let queued = self.rounds.iter().filter_map(|(key, round)| match round {
            Round::Queued { work } => Some((work.arrival, key.clone())),
            _ => None,
        });
        let (_, key) = queued.min()?;
        let round = self.rounds.insert(key.clone(), Round::Training { cancelled: false });
        match round {
            Some(Round::Queued { work }) => Some((key, work.assignment, work.approved)),
            _ => None,
        }
    }

    /// Removes the accepted rounds whose time to report has passed before training began.
    pub(super) fn drop_expired(&mut self, now: Timestamp) -> Vec<RoundKey> {
        let expired = self.rounds.extract_if(.., |_, round| match round {
            Round::Queued { work } => now > work.deadline,
            _ => false,
        });
        expired.map(|(key, _)| key).collect()
    }

    /// The releases to upload now that there is a connection.
    pub(super) fn take_uploads(&mut self) -> Vec<Release> {
        let mut uploads = Vec::new();
        for round in self.rounds.values_mut() {
            if let Round::Released { release } = round {
                let release = release.clone();
                uploads.push(release.clone());
                *round = Round::Uploading { release };
            }
        }
        uploads
    }

    /// Without a connection, the coordinator's word on open rounds and untrained assignments is
    /// old; it invites again after the next welcome. Rounds with keys stay: these cannot be made
    /// anew.
    pub(super) fn disconnected(&mut self, has_keys: impl Fn(&RoundKey) -> bool) {
        self.rounds.retain(|key, round| {
            if let Round::Uploading { release } = round {
                *round = Round::Released { release: release.clone() };
            }
            has_keys(key) || matches!(round, Round::Training { .. } | Round::Released { .. })
        });
    }
}

impl Session {
    pub(super) fn configure(&mut self, now: Timestamp, assignment: Box<Assignment>) {
        if !self.link.is_established() {
            return;
        }
        let key = RoundKey::of(&assignment);
        if let Some(refusal) = &self.halted {
            return self.decline(&key, refusal.clone());
        }
        // A job has one open round: an invitation closes the ones before it.
        for older in self.rounds.before(&key) {
            self.close(&older);
        }
        match self.rounds.rounds.get(&key) {
            None => {}
            Some(Round::Examining { .. }) => return,
            Some(Round::Training { cancelled: true }) => {
                let text = "this round was closed here before";
                return self.decline(&key, Refusal::new(ErrorCode::TimedOut, text));
            }
            Some(_) => return self.accept(&key),
        }
        if let Some(refusal) = self.failures.refusal(&key.job, now) {
            return self.decline(&key, refusal);
        }
        match self.policy.check(&assignment, &self.configured) {
            Err(refusal) => self.decline(&key, refusal.declined()),
            Ok(approved) => {
                let deadline = now.after_ms(assignment.report_within_ms);
                let arrival = self.rounds.arrivals;
                self.rounds.arrivals += 1;
                self.outputs.push_back(Output::Examine(assignment.clone(), approved.clone()));
                let work = Work { assignment, approved, deadline, arrival };
                self.rounds.rounds.insert(key, Round::Examining { work });
            }
        }
    }

    pub(super) fn examined(&mut self, key: &RoundKey, outcome: Result<Standing, Declined>) {
        let Some(Round::Examining { work }) = self.rounds.rounds.get(key) else { return };
        let work = work.clone();
        match outcome {
            Err(declined) => {
                self.rounds.rounds.remove(key);
                self.decline(key, declined);
            }
            Ok(standing) => {
                let round = match standing {
                    Standing::Fresh if work.assignment.job.secagg.is_some() => {
                        Round::Joining { work }
                    }
                    Standing::Fresh => Round::Queued { work },
                    Standing::Released(release) => Round::Released { release },
                };
                self.rounds.rounds.insert(key.clone(), round);
                self.refused = None;
                self.accept(key);
            }
        }
    }

    pub(super) fn trained(
        &mut self,
        now: Timestamp,
        key: &RoundKey,
        outcome: Result<Release, TrainingEnd>,
    ) {
        let Some(&Round::Training { cancelled }) = self.rounds.rounds.get(key) else { return };
        self.rounds.rounds.remove(key);
        match outcome {
            _ if cancelled => {}
            Err(TrainingEnd::Cancelled) => {}
            Ok(release) => {
                self.failures.succeeded(&key.job);
                self.rounds.rounds.insert(key.clone(), Round::Released { release });
            }
            Err(TrainingEnd::NoBase(refusal)) => self.decline(key, refusal),
            Err(TrainingEnd::Failed(refusal)) => {
                self.failures.failed(&key.job, refusal.clone(), now);
                self.decline(key, refusal);
            }
        }
    }

    pub(super) fn uploaded(&mut self, now: Timestamp, key: &RoundKey, outcome: UploadEnd) {
        let Some(Round::Uploading { release }) = self.rounds.rounds.get(key) else { return };
        match outcome {
            UploadEnd::Stored => {
                self.rounds.rounds.insert(key.clone(), Round::Reported);
            }
            UploadEnd::Refused(refusal) if !refusal.code.is_transient() => {
                tracing::warn!(job = %key.job, round = %key.round, %refusal, "update not wanted");
                self.rounds.rounds.remove(key);
            }
            UploadEnd::Refused(_) | UploadEnd::Interrupted => {
                // Goes up again after the next welcome: the coordinator invites or forgets then.
                let release = release.clone();
                self.rounds.rounds.insert(key.clone(), Round::Released { release });
                self.outputs.push_back(Output::Disconnect);
                let reason = "the upload was interrupted".to_owned();
                self.lost(now, Failure { reason, lasting: false, jitter: 1.0 });
            }
        }
    }

    /// The round is over: its work is no longer wanted.
    pub(super) fn close(&mut self, key: &RoundKey) {
        match self.rounds.rounds.get_mut(key) {
            Some(Round::Training { cancelled: true }) | None => {}
            Some(Round::Training { cancelled }) => {
                *cancelled = true;
                self.outputs.push_back(Output::CancelTraining(key.clone()));
            }
            Some(_) => {
                self.rounds.rounds.remove(key);
            }
        }
    }

    pub(super) fn decline_late(&mut self, key: RoundKey) {
        let text = "the time to report passed before training could begin";
        self.decline(&key, Refusal::new(ErrorCode::TimedOut, text));
    }

    fn accept(&mut self, key: &RoundKey) {
        let RoundKey { job, round } = key.clone();
        self.send(AgentMessage::Accept { job, round });
    }

    pub(super) fn decline(&mut self, key: &RoundKey, declined: impl Into<Declined>) {
        let declined = declined.into();
        let refusal = declined.refusal.clone();
        self.outputs.push_back(Output::RecordDecline(key.clone(), declined));
        tracing::warn!(job = %key.job, round = %key.round, %refusal, "declined");
        self.refused = Some(refusal.clone());
        let RoundKey { job, round } = key.clone();
        self.send(AgentMessage::Decline { job, round, refusal });
    }
}
