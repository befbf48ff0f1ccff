//! One training round as a value that is stepped by hand.
//!
//! ```text
//! Selection ──▶ Configuration ──▶ Reporting ──▶ Committed
//!                     │               │
//!                     └──────▶ Abandoned ◀┘
//! ```
//!
//! Inputs and the current time go in through [`Round::handle`] and [`Round::handle_timeout`]; what the driver must
//! do comes out of [`Round::poll_output`], in order. The driver completes every
//! [`Output::Persist`] before any later output, so nobody is told what a crash could forget.
//! [`Round::restore`] continues from the last persisted record.

mod configuration;
mod reporting;
mod selection;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    id::{Digest, RoundNumber, TenantId},
    job::RoundPlan,
    time::Timestamp,
};

pub use self::{configuration::Configuration, reporting::Reporting, selection::Selection};

/// A round of one job.
#[derive(Debug)]
pub struct Round {
    record: RoundRecord,
    outputs: VecDeque<Output>,
}

/// The durable form of a round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundRecord {
    /// Number within the job.
    pub number: RoundNumber,
    /// The base model that the round starts from.
    pub base: Digest,
    /// How it is scheduled.
    pub plan: RoundPlan,
    /// Seeds the choice of the cohort.
    pub cohort_seed: u64,
    /// Where it stands.
    pub phase: Phase,
}

impl RoundRecord {
    /// The updates that it counts.
    #[must_use]
    pub fn updates(&self) -> BTreeMap<TenantId, Digest> {
        match &self.phase {
            Phase::Reporting(reporting) => reporting.reported().clone(),
            Phase::Committed { contributors } => contributors.clone(),
            Phase::Selection(_) | Phase::Configuration(_) | Phase::Abandoned { .. } => {
                BTreeMap::new()
            }
        }
    }
}

/// Where a round stands. Each phase owns only its own data; a transition consumes the old phase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waiting for enough tenants.
    Selection(Selection),
    /// Invitations are out.
    Configuration(Configuration),
    /// Tenants train and upload.
    Reporting(Reporting),
    /// The aggregate of these updates is to become the next model. Final.
    Committed {
        /// The update of each contributor.
        contributors: BTreeMap<TenantId, Digest>,
    },
    /// Given up; no update of it is ever used. Final.
    Abandoned {
        /// Why, for people.
        reason: String,
    },
}

impl Phase {
    /// The phase's name in JSON, logs and metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Selection(_) => "selection",
            Self::Configuration(_) => "configuration",
            Self::Reporting(_) => "reporting",
            Self::Committed { .. } => "committed",
            Self::Abandoned { .. } => "abandoned",
        }
    }
}

/// What happened outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Who could take part.
    Available {
        /// Connected, eligible and not declining the job.
        tenants: BTreeSet<TenantId>,
        /// How many tenants could be available if all were connected.
        population: usize,
    },
    /// A tenant (re)connected and should hear again what it is to do.
    Connected(TenantId),
    /// A cohort member starts training.
    Accepted(TenantId),
    /// A cohort member will not report.
    Declined(TenantId, Refusal),
    /// A cohort member's update is durable at the coordinator.
    Reported(TenantId, Digest),
}

/// What the driver must do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Make this record durable before going on.
    Persist(RoundRecord),
    /// Send the tenant its assignment; the report is due at the given time.
    Configure(TenantId, Timestamp),
    /// Aggregate these updates and make the new model durable together with this round's record.
    Commit(BTreeMap<TenantId, Digest>),
    /// Tell these tenants that the round is closed and why it was abandoned, if it was.
    Close {
        /// Everyone who was invited.
        tenants: BTreeSet<TenantId>,
        /// The reason, unless it committed.
        abandoned: Option<String>,
    },
}

/// Says why an input was refused; the round is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RoundError {
    /// The tenant was not invited, or was dropped because it did not answer or declined.
    #[error("tenant {tenant} is not in the cohort of round {round}")]
    NotInCohort {
        /// Who.
        tenant: TenantId,
        /// The round.
        round: RoundNumber,
    },
    /// The tenant already reported something else.
    #[error(
        "tenant {tenant} already reported update {stored} in round {round}; {offered} is another one"
    )]
    Conflict {
        /// Who.
        tenant: TenantId,
        /// The round.
        round: RoundNumber,
        /// What is counted.
        stored: Digest,
        /// What was offered now.
        offered: Digest,
    },
    /// The round takes no such input any more, or not yet.
    #[error("round {round} is in phase {phase}")]
    WrongPhase {
        /// The round.
        round: RoundNumber,
        /// Its phase.
        phase: &'static str,
    },
}

impl RoundError {
    /// The code for the peer.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::NotInCohort { .. } => ErrorCode::NotInCohort,
            Self::Conflict { .. } => ErrorCode::UpdateConflict,
            Self::WrongPhase { .. } => ErrorCode::WrongRound,
        }
    }
}

/// What a phase decided; the round applies it.
enum Step {
    Stay,
    Changed,
    Next(Phase),
}

impl Round {
    /// Opens a round in Selection.
    #[must_use]
    pub fn new(
        number: RoundNumber,
        base: Digest,
        plan: RoundPlan,
        cohort_seed: u64,
        now: Timestamp,
    ) -> Self {
        let phase = Phase::Selection(Selection::new(&plan, now));
        let record = RoundRecord { number, base, plan, cohort_seed, phase };
        Self { outputs: VecDeque::from([Output::Persist(record.clone())]), record }
    }

    /// Continues a persisted round. Its current wait starts anew: the time that the coordinator was
    /// down must not count against the tenants.
    #[must_use]
    pub fn restore(mut record: RoundRecord, now: Timestamp) -> Self {
        let plan = record.plan.clone();
        match &mut record.phase {
            Phase::Selection(selection) => selection.rearm(&plan, now),
            Phase::Configuration(configuration) => configuration.rearm(&plan, now),
            Phase::Reporting(reporting) => reporting.rearm(&plan, now),
            Phase::Committed { .. } | Phase::Abandoned { .. } => {}
        }
        let mut round = Self { record, outputs: VecDeque::new() };
        // A round that had every report but whose commit did not become durable commits now.
        let step = match &mut round.record.phase {
            Phase::Reporting(reporting) => reporting.settle(&plan),
            _ => Step::Stay,
        };
        round.apply(step, now);
        round
    }

    /// Takes one input.
    ///
    /// # Errors
    /// [`RoundError`] if the input does not fit; the round is unchanged.
    pub fn handle(&mut self, now: Timestamp, input: Input) -> Result<(), RoundError> {
        let RoundRecord { number, plan, cohort_seed, phase, .. } = &mut self.record;
        if let Input::Connected(tenant) = &input {
            if let Some(deadline) = phase.assignment_deadline(tenant) {
                self.outputs.push_back(Output::Configure(tenant.clone(), deadline));
            }
            return Ok(());
        }
        let step = match phase {
            Phase::Selection(selection) => {
                selection.handle(*number, plan, *cohort_seed, now, input)?
            }
            Phase::Configuration(configuration) => {
                configuration.handle(*number, plan, now, input)?
            }
            Phase::Reporting(reporting) => reporting.handle(*number, plan, input)?,
            // A contributor whose acknowledgement was lost reports the same bytes again.
            Phase::Committed { contributors } => match &input {
                Input::Reported(tenant, update) if contributors.get(tenant) == Some(update) => {
                    Step::Stay
                }
                _ => return closed(*number, "committed", &input),
            },
            Phase::Abandoned { .. } => return closed(*number, "abandoned", &input),
        };
        self.apply(step, now);
        Ok(())
    }

    /// Acts on a deadline that has passed; does nothing before it.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        if self.poll_timeout().is_none_or(|deadline| now < deadline) {
            return;
        }
        let RoundRecord { plan, cohort_seed, phase, .. } = &mut self.record;
        let step = match phase {
            Phase::Selection(selection) => selection.timeout(plan, *cohort_seed, now),
            Phase::Configuration(configuration) => configuration.timeout(plan, now),
            Phase::Reporting(reporting) => reporting.timeout(plan),
            Phase::Committed { .. } | Phase::Abandoned { .. } => Step::Stay,
        };
        self.apply(step, now);
    }

    /// Gives the round up, unless it has ended.
    pub fn abandon(&mut self, reason: String, now: Timestamp) {
        match self.record.phase {
            Phase::Committed { .. } | Phase::Abandoned { .. } => {}
            _ => self.apply(Step::Next(Phase::Abandoned { reason }), now),
        }
    }

    /// Whether a tenant's update is already counted (`true`) or would be now (`false`).
    ///
    /// # Errors
    /// [`RoundError`] if it would be refused.
    pub fn check_report(&self, tenant: &TenantId, update: Digest) -> Result<bool, RoundError> {
        let number = self.record.number;
        match &self.record.phase {
            Phase::Configuration(configuration) => {
                configuration.require(number, tenant).map(|()| false)
            }
            Phase::Reporting(reporting) => reporting.check_report(number, tenant, update),
            Phase::Committed { contributors } if contributors.get(tenant) == Some(&update) => {
                Ok(true)
            }
            other => Err(RoundError::WrongPhase { round: number, phase: other.name() }),
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    #[must_use]
    pub const fn poll_timeout(&self) -> Option<Timestamp> {
        match &self.record.phase {
            Phase::Selection(selection) => selection.deadline(),
            Phase::Configuration(configuration) => Some(configuration.deadline),
            Phase::Reporting(reporting) => Some(reporting.deadline),
            Phase::Committed { .. } | Phase::Abandoned { .. } => None,
        }
    }

    /// The durable form.
    #[must_use]
    pub const fn record(&self) -> &RoundRecord {
        &self.record
    }

    /// One line for people: what the round waits for.
    #[must_use]
    pub fn waiting_for(&self) -> String {
        match &self.record.phase {
            Phase::Selection(selection) => selection.waiting_for(&self.record.plan),
            Phase::Configuration(configuration) => configuration.waiting_for(),
            Phase::Reporting(reporting) => reporting.waiting_for(&self.record.plan),
            Phase::Committed { contributors } => {
                format!("committed with {} updates", contributors.len())
            }
            Phase::Abandoned { reason } => format!("abandoned: {reason}"),
        }
    }

    fn apply(&mut self, step: Step, now: Timestamp) {
        let invited = self.record.phase.invited();
        match step {
            Step::Stay => return,
            Step::Changed => return self.persist(),
            Step::Next(phase) => self.record.phase = phase,
        }
        match &self.record.phase {
            Phase::Selection(_) | Phase::Reporting(_) => self.persist(),
            Phase::Configuration(configuration) => {
                let due = now.after_ms(self.record.plan.report_timeout_ms);
                let invite = |tenant: &TenantId| Output::Configure(tenant.clone(), due);
                let invitations: Vec<_> = configuration.cohort().map(invite).collect();
                self.persist();
                self.outputs.extend(invitations);
            }
            Phase::Committed { contributors } => {
                // The driver persists this record together with the model, in one atomic step.
                let commit = Output::Commit(contributors.clone());
                self.outputs.extend([commit, Output::Close { tenants: invited, abandoned: None }]);
            }
            Phase::Abandoned { reason } => {
                let abandoned = Some(reason.clone());
                self.persist();
                self.outputs.push_back(Output::Close { tenants: invited, abandoned });
            }
        }
    }

    fn persist(&mut self) {
        self.outputs.push_back(Output::Persist(self.record.clone()));
    }
}

impl Phase {
    /// When the tenant's report is due, if it still owes one.
    pub(crate) fn assignment_deadline(&self, tenant: &TenantId) -> Option<Timestamp> {
        match self {
            Self::Configuration(configuration) => configuration.assignment_deadline(tenant),
            Self::Reporting(reporting) => reporting.assignment_deadline(tenant),
            Self::Selection(_) | Self::Committed { .. } | Self::Abandoned { .. } => None,
        }
    }

    /// Everyone who was asked; once committed, the contributors.
    pub(crate) fn invited(&self) -> BTreeSet<TenantId> {
        match self {
            Self::Configuration(configuration) => configuration.invited().cloned().collect(),
            Self::Reporting(reporting) => reporting.invited().cloned().collect(),
            Self::Committed { contributors } => contributors.keys().cloned().collect(),
            Self::Selection(_) | Self::Abandoned { .. } => BTreeSet::new(),
        }
    }
}

/// Answers inputs to a round that takes none.
fn closed(round: RoundNumber, phase: &'static str, input: &Input) -> Result<(), RoundError> {
    match input {
        Input::Available { .. } | Input::Connected(_) => Ok(()),
        Input::Accepted(_) | Input::Declined(..) | Input::Reported(..) => {
            Err(RoundError::WrongPhase { round, phase })
        }
    }
}
