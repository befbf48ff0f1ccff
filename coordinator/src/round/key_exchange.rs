//! Key exchange: the cohort makes fresh keys and shares its secrets, step by step.

use serde::{Deserialize, Serialize};
use tributary_privacy::secagg::{ClientMessage, PeerKeys, Step as SecaggStep};
use tributary_protocol::{
    id::{RoundNumber, TenantId},
    time::Timestamp,
};

use super::{
    Aggregation, Input, Phase, Reporting, RoundError, Step, closed, configuration::names,
    secagg::Progress,
};

/// Waits, in each step, for the answers of all that are left, or the step's deadline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyExchange {
    pub(super) deadline: Timestamp,
    pub(super) aggregation: Box<Aggregation>,
}

impl KeyExchange {
    pub(super) fn new(aggregation: Aggregation, step_timeout_ms: u64, now: Timestamp) -> Self {
        let deadline = now.after_ms(step_timeout_ms);
        Self { deadline, aggregation: Box::new(aggregation) }
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
            Input::Reported(..) => Err(RoundError::WrongPhase { round, phase: "key_exchange" }),
            other => closed(round, "key_exchange", &other).map(|()| Step::Stay),
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

    pub(super) fn waiting_for(&self) -> String {
        let aggregation = &self.aggregation;
        format!("{}: waiting for {}", aggregation.step_name(), names(&aggregation.awaited()))
    }

    /// The stepped protocol.
    #[must_use]
    pub const fn aggregation(&self) -> &Aggregation {
        &self.aggregation
    }

    /// An answer alone is not made durable: nobody was told of it, and after a restart everybody is
    /// asked again and answers the same.
    pub(super) fn advance(&mut self, deadline_passed: bool, timing: Timing) -> Step {
        match self.aggregation.advance(deadline_passed) {
            Progress::Waiting => Step::Stay,
            Progress::Abandoned(reason) => Step::Next(Phase::Abandoned { reason }),
            Progress::Opened if self.aggregation.step() == SecaggStep::MaskedInput => {
                let deadline = timing.now.after_ms(timing.report_timeout_ms);
                Step::Next(Phase::Reporting(Reporting::masked(self.aggregation.clone(), deadline)))
            }
            Progress::Opened => {
                self.deadline = timing.now.after_ms(timing.step_timeout_ms);
                Step::Asked
            }
        }
    }

    fn require(&self, round: RoundNumber, tenant: &TenantId) -> Result<(), RoundError> {
        match self.aggregation.member(tenant) {
            Some(_) if !self.aggregation.gone().contains_key(tenant) => Ok(()),
            _ => Err(RoundError::NotInCohort { tenant: tenant.clone(), round }),
        }
    }
}

/// When the next steps are due.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    pub(super) now: Timestamp,
    pub(super) step_timeout_ms: u64,
    pub(super) report_timeout_ms: u64,
}
