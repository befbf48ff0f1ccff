//! Reporting: tenants train; each durable update is counted once.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tributary_protocol::{
    id::{Digest, RoundNumber, TenantId},
    job::RoundPlan,
    time::Timestamp,
};

use super::{
    Input, Phase, RoundError, Step, closed,
    configuration::{names, reasons},
};

/// Waits for the report goal, the last possible report, or the deadline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reporting {
    pub(super) deadline: Timestamp,
    expected: BTreeSet<TenantId>,
    reported: BTreeMap<TenantId, Digest>,
    /// Who declined, and why.
    declined: BTreeMap<TenantId, String>,
}

impl Reporting {
    pub(super) const fn new(
        expected: BTreeSet<TenantId>,
        declined: BTreeMap<TenantId, String>,
        deadline: Timestamp,
    ) -> Self {
        Self { deadline, expected, reported: BTreeMap::new(), declined }
    }

    pub(super) const fn rearm(&mut self, plan: &RoundPlan, now: Timestamp) {
        self.deadline = now.after_ms(plan.report_timeout_ms);
    }

    /// Everyone who was asked, late and declining tenants included.
    pub(super) fn invited(&self) -> impl Iterator<Item = &TenantId> {
        self.expected.iter().chain(self.reported.keys()).chain(self.declined.keys())
    }

    pub(super) fn assignment_deadline(&self, tenant: &TenantId) -> Option<Timestamp> {
        self.expected.contains(tenant).then_some(self.deadline)
    }

    pub(super) fn handle(
        &mut self,
        round: RoundNumber,
        plan: &RoundPlan,
        input: Input,
    ) -> Result<Step, RoundError> {
        match input {
            Input::Accepted(tenant) => self.require(round, &tenant).map(|()| Step::Stay),
            Input::Declined(tenant, refusal) => {
                self.require(round, &tenant)?;
                if self.reported.contains_key(&tenant) {
                    return Ok(Step::Stay);
                }
                self.expected.remove(&tenant);
                self.declined.insert(tenant, refusal.to_string());
                Ok(self.settle_or(plan, Step::Changed))
            }
            Input::Reported(tenant, offered) => {
                if self.check_report(round, &tenant, offered)? {
                    return Ok(Step::Stay);
                }
                self.expected.remove(&tenant);
                self.reported.insert(tenant, offered);
                Ok(self.settle_or(plan, Step::Changed))
            }
            other => closed(round, "reporting", &other).map(|()| Step::Stay),
        }
    }

    /// Moves on if nothing more can or need be reported.
    pub(super) fn settle(&mut self, plan: &RoundPlan) -> Step {
        self.settle_or(plan, Step::Stay)
    }

    pub(super) fn timeout(&mut self, plan: &RoundPlan) -> Step {
        for tenant in std::mem::take(&mut self.expected) {
            self.declined.insert(tenant, "no report in time".to_owned());
        }
        self.settle(plan)
    }

    pub(super) fn waiting_for(&self, plan: &RoundPlan) -> String {
        format!(
            "{} of {} updates; waiting for {}",
            self.reported.len(),
            plan.report_goal,
            names(&self.expected)
        )
    }

    /// Whether an update is already counted (`true`) or would be now (`false`).
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
            None => self.require(round, tenant).map(|()| false),
        }
    }

    /// Who still owes a report.
    #[must_use]
    pub const fn expected(&self) -> &BTreeSet<TenantId> {
        &self.expected
    }

    /// The updates counted so far.
    #[must_use]
    pub const fn reported(&self) -> &BTreeMap<TenantId, Digest> {
        &self.reported
    }

    fn settle_or(&mut self, plan: &RoundPlan, otherwise: Step) -> Step {
        let (reported, open) = (self.reported.len(), self.expected.len());
        if reported >= plan.report_goal as usize
            || (open == 0 && reported >= plan.cohort_size_min as usize)
        {
            return Step::Next(Phase::Committed { contributors: self.reported.clone() });
        }
        if reported + open < plan.cohort_size_min as usize {
            let reason = format!(
                "{} of at least {} updates can arrive; {}",
                reported + open,
                plan.cohort_size_min,
                reasons(&self.declined)
            );
            return Step::Next(Phase::Abandoned { reason });
        }
        otherwise
    }

    fn require(&self, round: RoundNumber, tenant: &TenantId) -> Result<(), RoundError> {
        if self.expected.contains(tenant) || self.reported.contains_key(tenant) {
            return Ok(());
        }
        Err(RoundError::NotInCohort { tenant: tenant.clone(), round })
    }
}
