//! Reporting: tenants train; each durable update is counted once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tributary_protocol::{
    id::{Digest, RoundNumber, TenantId},
    job::RoundPlan,
    time::Timestamp,
};

use super::{
    Aggregation, Input, Phase, RoundError, Setting, Step, Unmasking, closed,
    configuration::{names, reasons},
    secagg::Progress,
};

/// Waits for the report goal, the last possible report, or the deadline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reporting {
    pub(super) deadline: Timestamp,
    expected: BTreeSet<TenantId>,
    reported: BTreeMap<TenantId, Digest>,
    /// Who declined, and why.
    declined: BTreeMap<TenantId, String>,
    /// Whether they are masked.
    #[serde(default)]
    masked: bool,
    /// The secure aggregation that they are masked for, as it was when the uploads began: what
    /// arrives is in `reported` alone until the step is closed, so that a report need not store all
    /// of it again.
    #[serde(default, with = "shared")]
    aggregation: Option<Arc<Aggregation>>,
}

/// Through a pointer, as if it was not there.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Aggregation;

    pub(super) fn serialize<S: Serializer>(
        aggregation: &Option<Arc<Aggregation>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        aggregation.as_deref().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Arc<Aggregation>>, D::Error> {
        Ok(Option::deserialize(deserializer)?.map(Arc::new))
    }
}

impl Reporting {
    pub(super) const fn new(
        expected: BTreeSet<TenantId>,
        declined: BTreeMap<TenantId, String>,
        deadline: Timestamp,
    ) -> Self {
        let reported = BTreeMap::new();
        Self { deadline, expected, reported, declined, masked: false, aggregation: None }
    }

    /// Of the masked updates of a cohort that has exchanged its keys.
    pub(super) fn masked(aggregation: Box<Aggregation>, deadline: Timestamp) -> Self {
        let (expected, declined) = (aggregation.awaited(), aggregation.gone().clone());
        let (reported, aggregation) = (BTreeMap::new(), Some(Arc::from(aggregation)));
        Self { deadline, expected, reported, declined, masked: true, aggregation }
    }

    /// Takes the part out that is stored by itself.
    pub(super) fn detach(&mut self) -> Option<Arc<Aggregation>> {
        self.aggregation.take()
    }

    /// Puts back what [`Self::detach`] took out; false if something else is needed.
    pub(super) fn attach(&mut self, aggregation: Option<Arc<Aggregation>>) -> bool {
        if self.masked && self.aggregation.is_none() {
            self.aggregation = aggregation;
        }
        self.masked == self.aggregation.is_some()
    }

    /// The part that is stored by itself.
    pub(super) const fn detachable(&self) -> Option<&Arc<Aggregation>> {
        self.aggregation.as_ref()
    }

    /// The stepped protocol of secure aggregation, if the updates are masked.
    #[must_use]
    pub fn aggregation(&self) -> Option<&Aggregation> {
        self.aggregation.as_deref()
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
        setting: Setting<'_>,
        input: Input,
    ) -> Result<Step, RoundError> {
        let round = setting.number;
        match input {
            Input::Accepted { tenant, .. } => self.require(round, &tenant).map(|()| Step::Stay),
            Input::Declined(tenant, refusal) => {
                self.require(round, &tenant)?;
                if let Some(aggregation) = &mut self.aggregation {
                    // Also of one that has reported: it will not help to unmask.
                    Arc::make_mut(aggregation).leave(&tenant, refusal.to_string());
                }
                if self.reported.contains_key(&tenant) {
                    return Ok(if self.aggregation.is_some() { Step::Changed } else { Step::Stay });
                }
                self.expected.remove(&tenant);
                self.declined.insert(tenant, refusal.to_string());
                Ok(self.settle_or(setting, Step::Changed))
            }
            Input::Reported(tenant, offered) => {
                if self.check_report(round, &tenant, offered)? {
                    return Ok(Step::Stay);
                }
                self.expected.remove(&tenant);
                self.reported.insert(tenant, offered);
                Ok(self.settle_or(setting, Step::Changed))
            }
            other => closed(round, "reporting", &other).map(|()| Step::Stay),
        }
    }

    /// Moves on if nothing more can or need be reported.
    pub(super) fn settle(&mut self, setting: Setting<'_>) -> Step {
        self.settle_or(setting, Step::Stay)
    }

    pub(super) fn timeout(&mut self, setting: Setting<'_>) -> Step {
        for tenant in std::mem::take(&mut self.expected) {
            self.declined.insert(tenant, "no report in time".to_owned());
        }
        self.settle(setting)
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

    fn settle_or(&mut self, setting: Setting<'_>, otherwise: Step) -> Step {
        let (reported, open) = (self.reported.len(), self.expected.len());
        let (goal, fewest) = self.needed(setting.plan);
        if reported >= goal || (open == 0 && reported >= fewest) {
            return self.complete(setting);
        }
        if reported + open < fewest {
            let reason = format!(
                "{} of at least {fewest} updates can arrive; {}",
                reported + open,
                reasons(&self.declined)
            );
            return Step::Next(Phase::Abandoned { reason });
        }
        otherwise
    }

    /// Updates at which the round goes on at once, and the fewest at its deadline.
    fn needed(&self, plan: &RoundPlan) -> (usize, usize) {
        let survivors = self.aggregation.as_ref().map_or(0, |it| it.plan().survivors_min());
        (plan.report_goal.max(survivors) as usize, plan.cohort_size_min.max(survivors) as usize)
    }

    fn complete(&mut self, setting: Setting<'_>) -> Step {
        let contributors = self.reported.clone();
        let Some(aggregation) = self.aggregation.take() else {
            return Step::Next(Phase::Committed { contributors });
        };
        let mut aggregation = Box::new(Arc::unwrap_or_clone(aggregation));
        for (tenant, &update) in &self.reported {
            if let Err(error) = aggregation.uploaded(tenant, update) {
                let reason = format!("secure aggregation cannot take {tenant}'s update: {error}");
                return Step::Next(Phase::Abandoned { reason });
            }
        }
        match aggregation.advance(true) {
            Progress::Abandoned(reason) => Step::Next(Phase::Abandoned { reason }),
            Progress::Waiting | Progress::Opened => {
                let deadline = setting.now.after_ms(setting.step_timeout_ms());
                Step::Next(Phase::Unmasking(Unmasking::new(aggregation, contributors, deadline)))
            }
        }
    }

    fn require(&self, round: RoundNumber, tenant: &TenantId) -> Result<(), RoundError> {
        if self.expected.contains(tenant) || self.reported.contains_key(tenant) {
            return Ok(());
        }
        Err(RoundError::NotInCohort { tenant: tenant.clone(), round })
    }
}
