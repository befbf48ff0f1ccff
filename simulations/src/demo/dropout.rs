//! Kills one agent in the middle of a round of secure aggregation, and starts it again after it.

use serde::Serialize;

use super::documents::{JobState, JobStatus};

/// The first round in which the agent may be killed: the one before shows that all is well.
const FIRST_ROUND: u64 = 2;

/// The agent that is killed, and how far that got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dropout {
    state: State,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Nobody is killed in this demo.
    Unwanted,
    /// A round must get as far as to have the agent's keys.
    Pending,
    /// Its process is gone.
    Gone(Killed),
    /// It runs again.
    Back(Killed),
}

/// What to do with the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    Nothing,
    Kill,
    Start,
}

/// When the agent was killed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Killed {
    /// The tenant.
    pub tenant: String,
    /// The round in which its process was killed.
    pub round: u64,
    /// The phase that the round was in.
    pub phase: String,
}

impl Dropout {
    /// - `wanted`: whether an agent is killed at all
    pub(super) const fn new(wanted: bool) -> Self {
        Self { state: if wanted { State::Pending } else { State::Unwanted } }
    }

    /// Whether the agent's process is gone now.
    pub(super) const fn is_gone(&self) -> bool {
        matches!(self.state, State::Gone(_))
    }

    /// Whether the agent still has to be killed.
    pub(super) const fn is_pending(&self) -> bool {
        matches!(self.state, State::Pending)
    }

    /// When it was killed.
    pub(super) const fn killed(&self) -> Option<&Killed> {
        match &self.state {
            State::Gone(killed) | State::Back(killed) => Some(killed),
            State::Unwanted | State::Pending => None,
        }
    }

    /// What is to be done about `tenant` where the job stands like this.
    ///
    /// Once a round waits for masked updates, every member has advertised keys and shared its
    /// secrets: from then on its death has to be repaired by the others.
    pub(super) fn next(&mut self, tenant: &str, job: &JobStatus) -> Act {
        let (Some(round), Some(phase)) = (job.round, job.phase.as_deref()) else {
            return Act::Nothing;
        };
        match &self.state {
            State::Pending if round >= FIRST_ROUND.min(job.rounds) => {
                let masked = phase == "reporting" || phase == "unmasking";
                // The last chance is taken wherever the round is.
                if !masked && (round < job.rounds || phase != "key_exchange") {
                    return Act::Nothing;
                }
                let (tenant, phase) = (tenant.to_owned(), phase.to_owned());
                self.state = State::Gone(Killed { tenant, round, phase });
                Act::Kill
            }
            State::Gone(killed) if round > killed.round || job.state != JobState::Running => {
                self.state = State::Back(killed.clone());
                Act::Start
            }
            _ => Act::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(round: u64, phase: &str, state: &str) -> JobStatus {
        serde_json::from_str(&format!(
            r#"{{"state":"{state}","rounds_committed":1,"rounds":5,"round":{round},"phase":"{phase}"}}"#
        ))
        .unwrap()
    }

    #[test]
    fn the_agent_dies_with_its_keys_advertised_and_comes_back_in_the_next_round() {
        let mut dropout = Dropout::new(true);
        assert_eq!(dropout.next("elm", &job(1, "reporting", "running")), Act::Nothing);
        assert_eq!(dropout.next("elm", &job(2, "key_exchange", "running")), Act::Nothing);
        assert!(dropout.is_pending());
        assert_eq!(dropout.next("elm", &job(2, "reporting", "running")), Act::Kill);
        assert!(dropout.is_gone() && !dropout.is_pending());
        assert_eq!(dropout.next("elm", &job(2, "unmasking", "running")), Act::Nothing);
        assert_eq!(dropout.next("elm", &job(3, "selection", "running")), Act::Start);
        assert!(!dropout.is_gone());
        let killed = dropout.killed().unwrap();
        assert_eq!((killed.round, killed.phase.as_str()), (2, "reporting"));
        assert_eq!(dropout.next("elm", &job(4, "reporting", "running")), Act::Nothing);
    }

    #[test]
    fn the_last_round_is_the_last_chance_and_an_ended_job_brings_the_agent_back() {
        let mut dropout = Dropout::new(true);
        assert_eq!(dropout.next("elm", &job(5, "key_exchange", "running")), Act::Kill);
        assert_eq!(dropout.next("elm", &job(5, "committed", "finished")), Act::Start);
        assert_eq!(Dropout::new(false).next("elm", &job(3, "reporting", "running")), Act::Nothing);
    }
}
