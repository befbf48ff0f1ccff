//! Unmasking: the survivors reveal what removes the masks of the sum, and of nothing else.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tributary_privacy::secagg::{ClientMessage, PeerKeys, Step as SecaggStep};
use tributary_protocol::{
    id::{Digest, RoundNumber, TenantId},
    time::Timestamp,
};

use super::{
    Aggregation, Input, Phase, RoundError, Step, closed, configuration::names,
    key_exchange::Timing, secagg::Progress,
};

/// Waits for the survivors' confirmations (against a coordinator that lies) and then for their
/// shares, or the step's deadline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmasking {
    pub(super) deadline: Timestamp,
    pub(super) aggregation: Box<Aggregation>,
    /// The masked updates of the survivors.
    reported: BTreeMap<TenantId, Digest>,
}

impl Unmasking {
    pub(super) const fn new(
        aggregation: Box<Aggregation>,
        reported: BTreeMap<TenantId, Digest>,
        deadline: Timestamp,
    ) -> Self {
        Self { deadline, aggregation, reported }
    }

    pub(super) const fn rearm(&mut self, step_timeout_ms: u64, now: Timestamp) {
        self.deadline = now.after_ms(step_timeout_ms);
    }

    pub(super) fn handle(
        &mut self,
        round: RoundNumber,
        input: Input,
        timing: Timing,
    ) -> Result<Step, RoundError> {
        match input {
            Input::Accepted { tenant, .. } => self.require(round, &tenant).map(|()| Step::Stay),
            Input::Declined(tenant, refusal) => {
                self.require(round, &tenant)?;
                self.aggregation.leave(&tenant, refusal.to_string());
                // Unlike an answer, it will not be repeated.
                Ok(match self.advance(false, timing) {
                    Step::Stay => Step::Changed,
                    step => step,
                })
            }
            Input::Reported(tenant, offered) => {
                self.check_report(round, &tenant, offered).map(|_| Step::Stay)
            }
            other => closed(round, "unmasking", &other).map(|()| Step::Stay),
        }
    }

    pub(super) fn secagg(
        &mut self,
        round: RoundNumber,
        tenant: &TenantId,
        message: ClientMessage,
        peers: &dyn PeerKeys,
        timing: Timing,
    ) -> Result<Step, RoundError> {
        self.require(round, tenant)?;
        self.aggregation.handle(tenant, message, peers).map_err(|source| RoundError::Secagg {
            tenant: tenant.clone(),
            round,
            source,
        })?;
        Ok(self.advance(false, timing))
    }

    pub(super) fn timeout(&mut self, timing: Timing) -> Step {
        self.advance(true, timing)
    }

    /// A round whose masks can be removed but whose commit did not become durable commits now.
    pub(super) fn settle(&self) -> Step {
        match self.aggregation.step() {
            SecaggStep::Done => Step::Next(self.committed()),
            _ => Step::Stay,
        }
    }

    pub(super) fn waiting_for(&self) -> String {
        let aggregation = &self.aggregation;
        format!(
            "{} the sum of {} updates: waiting for {}",
            aggregation.step_name(),
            self.reported.len(),
            names(&aggregation.awaited())
        )
    }

    /// The masked updates that are summed.
    #[must_use]
    pub const fn reported(&self) -> &BTreeMap<TenantId, Digest> {
        &self.reported
    }

    /// The stepped protocol.
    #[must_use]
    pub const fn aggregation(&self) -> &Aggregation {
        &self.aggregation
    }

    /// Whether an update is already counted; nothing further is.
    pub(super) fn check_report(
        &self,
        round: RoundNumber,
        tenant: &TenantId,
        offered: Digest,
    ) -> Result<bool, RoundError> {
        match self.reported.get(tenant) {
            Some(&stored) if stored == offered => Ok(true),
            Some(&stored) => {
                Err(RoundError::Conflict { tenant: tenant.clone(), round, stored, offered })
            }
            None => Err(RoundError::WrongPhase { round, phase: "unmasking" }),
        }
    }

    pub(super) fn committed(&self) -> Phase {
        Phase::Committed { contributors: self.reported.clone() }
    }

    fn advance(&mut self, deadline_passed: bool, timing: Timing) -> Step {
        match self.aggregation.advance(deadline_passed) {
            Progress::Waiting => Step::Stay,
            Progress::Abandoned(reason) => Step::Next(Phase::Abandoned { reason }),
            Progress::Opened if self.aggregation.step() == SecaggStep::Done => Step::Unmasked,
            Progress::Opened => {
                self.deadline = timing.now.after_ms(timing.step_timeout_ms);
                Step::Asked
            }
        }
    }

    fn require(&self, round: RoundNumber, tenant: &TenantId) -> Result<(), RoundError> {
        if self.reported.contains_key(tenant) && !self.aggregation.gone().contains_key(tenant) {
            return Ok(());
        }
        Err(RoundError::NotInCohort { tenant: tenant.clone(), round })
    }
}
