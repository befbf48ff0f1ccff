//! Configuration: the cohort has its assignments and answers whether it will train.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tributary_privacy::secagg::Blob;
use tributary_protocol::{
    id::{RoundNumber, TenantId},
    job::RoundPlan,
    time::Timestamp,
};

use super::{Aggregation, Input, KeyExchange, Phase, Reporting, RoundError, Setting, Step, closed};

/// Waits for every cohort member's answer, or the deadline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    pub(super) deadline: Timestamp,
    report_deadline: Timestamp,
    silent: BTreeSet<TenantId>,
    accepted: BTreeSet<TenantId>,
    /// What the accepting tenants' signatures are verified with; only for secure aggregation.
    #[serde(default)]
    credentials: BTreeMap<TenantId, Blob>,
    /// Who declined, and why.
    declined: BTreeMap<TenantId, String>,
}

impl Configuration {
    pub(super) const fn new(cohort: BTreeSet<TenantId>, plan: &RoundPlan, now: Timestamp) -> Self {
        Self {
            deadline: now.after_ms(plan.configuration_timeout_ms),
            report_deadline: now.after_ms(plan.report_timeout_ms),
            silent: cohort,
            accepted: BTreeSet::new(),
            credentials: BTreeMap::new(),
            declined: BTreeMap::new(),
        }
    }

    pub(super) const fn rearm(&mut self, plan: &RoundPlan, now: Timestamp) {
        self.deadline = now.after_ms(plan.configuration_timeout_ms);
        self.report_deadline = now.after_ms(plan.report_timeout_ms);
    }

    /// The invited tenants that have not declined.
    pub(super) fn cohort(&self) -> impl Iterator<Item = &TenantId> {
        self.silent.iter().chain(&self.accepted)
    }

    /// Everyone who was asked, declining tenants included.
    pub(super) fn invited(&self) -> impl Iterator<Item = &TenantId> {
        self.cohort().chain(self.declined.keys())
    }

    pub(super) fn assignment_deadline(&self, tenant: &TenantId) -> Option<Timestamp> {
        self.cohort().any(|member| member == tenant).then_some(self.report_deadline)
    }

    pub(super) fn handle(
        &mut self,
        setting: Setting<'_>,
        input: Input,
    ) -> Result<Step, RoundError> {
        let round = setting.number;
        let step = match input {
            Input::Accepted { tenant, credential } => {
                self.require(round, &tenant)?;
                if !self.silent.remove(&tenant) {
                    return Ok(Step::Stay);
                }
                self.credentials.extend(credential.map(|credential| (tenant.clone(), credential)));
                self.accepted.insert(tenant);
                self.settle(setting)
            }
            Input::Declined(tenant, refusal) => {
                self.require(round, &tenant)?;
                self.silent.remove(&tenant);
                self.accepted.remove(&tenant);
                self.credentials.remove(&tenant);
                self.declined.insert(tenant, refusal.to_string());
                self.settle(setting)
            }
            // Masks need the keys of the whole cohort, which is not fixed yet.
            Input::Reported(..) if setting.secagg.is_some() => {
                return Err(RoundError::WrongPhase { round, phase: "configuration" });
            }
            // An agent that restarted with a release in hand may report before the others answer.
            Input::Reported(tenant, update) => {
                self.require(round, &tenant)?;
                self.silent.remove(&tenant);
                self.accepted.insert(tenant.clone());
                let mut reporting = self.reporting(setting.now);
                return reporting.handle(setting, Input::Reported(tenant, update)).map(|step| {
                    match step {
                        Step::Stay | Step::Changed => Step::Next(Phase::Reporting(reporting)),
                        next => next,
                    }
                });
            }
            other => closed(round, "configuration", &other).map(|()| Step::Stay)?,
        };
        Ok(step)
    }

    pub(super) fn timeout(&mut self, setting: Setting<'_>) -> Step {
        for tenant in std::mem::take(&mut self.silent) {
            self.declined.insert(tenant, "no answer in time".to_owned());
        }
        self.settle(setting)
    }

    pub(super) fn waiting_for(&self) -> String {
        format!("waiting for the answer of {}", names(&self.silent))
    }

    /// Who has accepted so far.
    #[must_use]
    pub const fn accepted(&self) -> &BTreeSet<TenantId> {
        &self.accepted
    }

    /// Who has not answered yet.
    #[must_use]
    pub const fn silent(&self) -> &BTreeSet<TenantId> {
        &self.silent
    }

    pub(super) fn require(&self, round: RoundNumber, tenant: &TenantId) -> Result<(), RoundError> {
        if self.silent.contains(tenant) || self.accepted.contains(tenant) {
            return Ok(());
        }
        Err(RoundError::NotInCohort { tenant: tenant.clone(), round })
    }

    fn reporting(&self, now: Timestamp) -> Reporting {
        // Silent members stay: they may be busy reconnecting with a finished report.
        let expected = self.cohort().cloned().collect();
        Reporting::new(expected, self.declined.clone(), self.report_deadline.max(now))
    }

    fn settle(&self, setting: Setting<'_>) -> Step {
        let possible = self.silent.len() + self.accepted.len();
        if possible < setting.plan.cohort_size_min as usize {
            let reason = format!(
                "{possible} of at least {} tenants would report; {}",
                setting.plan.cohort_size_min,
                reasons(&self.declined)
            );
            return Step::Next(Phase::Abandoned { reason });
        }
        if !self.silent.is_empty() {
            return Step::Changed;
        }
        let Some(terms) = setting.secagg else {
            return Step::Next(Phase::Reporting(self.reporting(setting.now)));
        };
        match Aggregation::begin(terms, setting.number, setting.base, &self.credentials) {
            Ok(aggregation) => {
                let exchange = KeyExchange::new(aggregation, terms.step_timeout_ms, setting.now);
                Step::Next(Phase::KeyExchange(exchange))
            }
            Err(reason) => Step::Next(Phase::Abandoned { reason }),
        }
    }
}

/// Names that one line shows; of more, the number.
const NAMES_MAX: usize = 5;

/// The tenants' names; of many, the first ones and how many more there are.
pub(super) fn names<'a>(tenants: impl IntoIterator<Item = &'a TenantId>) -> String {
    let mut tenants = tenants.into_iter();
    let first: Vec<_> = tenants.by_ref().take(NAMES_MAX).map(TenantId::as_str).collect();
    match tenants.count() {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// Reasons, each once with the names of its tenants.
pub(crate) fn grouped<'a>(
    reasons: impl IntoIterator<Item = (&'a TenantId, String)>,
) -> Vec<(String, String)> {
    let mut tenants = BTreeMap::<String, Vec<&TenantId>>::new();
    for (tenant, reason) in reasons {
        tenants.entry(reason).or_default().push(tenant);
    }
    tenants.into_iter().map(|(reason, tenants)| (names(tenants), reason)).collect()
}

pub(super) fn reasons(declined: &BTreeMap<TenantId, String>) -> String {
    grouped(declined.iter().map(|(tenant, reason)| (tenant, reason.clone())))
        .into_iter()
        .map(|(tenants, reason)| format!("{tenants}: {reason}"))
        .collect::<Vec<_>>()
        .join("; ")
}
