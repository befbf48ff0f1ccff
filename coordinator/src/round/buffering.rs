//! Buffering: tenants train from the base that was the newest when each was invited; the buffer
//! commits when it is full.
//!
//! A tenant has one ticket at a time, and at most one update in a buffer, so the sum of a buffer is
//! bounded as that of a cohort. A ticket outlives the round that it was given in, up to the job's
//! largest staleness; what comes later is not used.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tributary_protocol::{
    id::{Digest, RoundNumber, TenantId},
    job::RoundPlan,
    time::Timestamp,
};

use super::{Input, Phase, RoundError, Setting, Step, configuration::names};
use crate::cohort;

/// Permission to train from one base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ticket {
    /// The round that it was given in, under which the tenant reports.
    pub round: RoundNumber,
    /// The base to train from.
    pub base: Digest,
    /// When the report is due.
    pub due: Timestamp,
}

/// What goes from one asynchronous round to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Carried {
    /// Who still trains.
    pub tickets: BTreeMap<TenantId, Ticket>,
    /// How many versions the base of each contributor's update lay behind.
    pub staleness: BTreeMap<TenantId, u32>,
}

/// An update in the buffer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Buffered {
    /// The round of its ticket.
    round: RoundNumber,
    update: Digest,
}

/// The end of a ticket: its tenant, its round, and why it is not wanted, if so.
pub(super) type Dismissal = (TenantId, RoundNumber, Option<String>);

/// Fills a buffer with the updates of whoever is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffering {
    /// From then on, fewer updates are enough.
    deadline: Timestamp,
    deadline_passed: bool,
    /// Tickets given in this round, so that no two draws are the same.
    draws: u64,
    tickets: BTreeMap<TenantId, Ticket>,
    buffer: BTreeMap<TenantId, Buffered>,
    /// Who is not invited again in this round, and why.
    declined: BTreeMap<TenantId, String>,
    /// Tickets that were just given, to be told.
    #[serde(skip)]
    pub(super) invited: BTreeSet<TenantId>,
    /// Tickets that have just ended, to be told.
    #[serde(skip)]
    pub(super) dismissed: Vec<Dismissal>,
}

impl Buffering {
    pub(super) const fn new(plan: &RoundPlan, now: Timestamp) -> Self {
        Self {
            deadline: now.after_ms(plan.report_timeout_ms),
            deadline_passed: false,
            draws: 0,
            tickets: BTreeMap::new(),
            buffer: BTreeMap::new(),
            declined: BTreeMap::new(),
            invited: BTreeSet::new(),
            dismissed: Vec::new(),
        }
    }

    /// Goes on with the tickets of the round before, but for those that are now too old.
    pub(super) fn carry(&mut self, number: RoundNumber, plan: &RoundPlan, carried: Carried) {
        let staleness_max = plan.asynchronous.map_or(0, |plan| plan.staleness_max);
        for (tenant, ticket) in carried.tickets {
            if staleness(number, ticket.round) <= staleness_max {
                self.tickets.insert(tenant, ticket);
            } else {
                let reason = format!(
                    "the base is more than {staleness_max} versions old; the tenant is invited anew"
                );
                self.dismissed.push((tenant, ticket.round, Some(reason)));
            }
        }
    }

    pub(super) fn rearm(&mut self, plan: &RoundPlan, now: Timestamp) {
        self.deadline = now.after_ms(plan.report_timeout_ms);
        for ticket in self.tickets.values_mut() {
            ticket.due = self.deadline;
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Timestamp> {
        self.tickets.values().map(|ticket| ticket.due).chain([self.deadline]).min()
    }

    /// The ticket of a tenant that still trains.
    #[must_use]
    pub fn ticket(&self, tenant: &TenantId) -> Option<&Ticket> {
        self.tickets.get(tenant)
    }

    /// Who still trains.
    pub fn training(&self) -> impl Iterator<Item = &TenantId> {
        self.tickets.keys()
    }

    /// Whose updates are in the buffer.
    pub fn reported(&self) -> impl Iterator<Item = &TenantId> {
        self.buffer.keys()
    }

    /// The rounds of open tickets.
    pub(crate) fn rounds(&self) -> BTreeSet<RoundNumber> {
        self.tickets.values().map(|ticket| ticket.round).collect()
    }

    pub(super) fn updates(&self) -> BTreeMap<TenantId, Digest> {
        self.buffer.iter().map(|(tenant, it)| (tenant.clone(), it.update)).collect()
    }

    pub(super) fn handle(
        &mut self,
        setting: Setting<'_>,
        seed: u64,
        input: Input,
    ) -> Result<Step, RoundError> {
        let round = setting.number;
        match input {
            Input::Available { tenants, .. } => Ok(self.invite(setting, seed, &tenants)),
            Input::Connected(_) => Ok(Step::Stay),
            Input::Accepted { tenant, .. } => self.require(round, &tenant).map(|_| Step::Stay),
            Input::Declined(tenant, refusal) => {
                self.require(round, &tenant)?;
                self.tickets.remove(&tenant);
                self.declined.insert(tenant, refusal.to_string());
                Ok(Step::Changed)
            }
            Input::Reported(tenant, update) => {
                let Some(ticket) = self.tickets.get(&tenant) else {
                    return self.repeated(round, &tenant, update).map(|()| Step::Stay);
                };
                let buffered = Buffered { round: ticket.round, update };
                self.tickets.remove(&tenant);
                self.buffer.insert(tenant, buffered);
                Ok(self.settle_or(setting.plan, Step::Changed))
            }
        }
    }

    pub(super) fn timeout(&mut self, setting: Setting<'_>) -> Step {
        let late = self.tickets.extract_if(.., |_, ticket| ticket.due <= setting.now);
        let late: Vec<_> = late.collect();
        for (tenant, ticket) in late {
            let reason = "no report in time".to_owned();
            self.dismissed.push((tenant.clone(), ticket.round, Some(reason.clone())));
            self.declined.insert(tenant, reason);
        }
        if self.deadline <= setting.now {
            self.deadline_passed = true;
            self.deadline = setting.now.after_ms(setting.plan.report_timeout_ms);
            // Whoever could not this time may be able now; else a small population would never
            // fill the buffer.
            self.declined.clear();
        }
        self.settle_or(setting.plan, Step::Changed)
    }

    /// Commits if the buffer is full, or full enough once the deadline has passed.
    pub(super) fn settle(&mut self, plan: &RoundPlan) -> Step {
        self.settle_or(plan, Step::Stay)
    }

    pub(super) fn waiting_for(&self, plan: &RoundPlan) -> String {
        let enough = if self.deadline_passed { plan.cohort_size_min } else { plan.report_goal };
        let training = match self.tickets.len() {
            0 => "a tenant that could train".to_owned(),
            _ => names(self.tickets.keys()),
        };
        format!("{} of {enough} updates in the buffer; waiting for {training}", self.buffer.len())
    }

    /// Whether an update is already counted (`true`) or would be now (`false`).
    pub(super) fn check_report(
        &self,
        round: RoundNumber,
        tenant: &TenantId,
        update: Digest,
    ) -> Result<bool, RoundError> {
        match self.tickets.contains_key(tenant) {
            true => Ok(false),
            false => self.repeated(round, tenant, update).map(|()| true),
        }
    }

    /// The round under which a tenant reports, or has reported.
    pub(super) fn round_of(&self, tenant: &TenantId) -> Option<RoundNumber> {
        let buffered = || self.buffer.get(tenant).map(|buffered| buffered.round);
        self.tickets.get(tenant).map(|ticket| ticket.round).or_else(buffered)
    }

    /// What a committed buffer leaves to the next round, and whom to tell that it is counted.
    pub(super) fn committed(&mut self, number: RoundNumber) -> (Carried, Vec<Dismissal>) {
        let behind =
            |(tenant, it): (&TenantId, &Buffered)| (tenant.clone(), staleness(number, it.round));
        let staleness = self.buffer.iter().map(behind).collect();
        let counted = self.buffer.iter().map(|(tenant, it)| (tenant.clone(), it.round, None));
        let mut told = std::mem::take(&mut self.dismissed);
        told.extend(counted);
        (Carried { tickets: std::mem::take(&mut self.tickets), staleness }, told)
    }

    /// Ends every ticket and drops the buffer.
    pub(super) fn abandoned(&mut self, reason: &str) -> Vec<Dismissal> {
        let tickets = self.tickets.iter().map(|(tenant, ticket)| (tenant, ticket.round));
        let buffered = self.buffer.iter().map(|(tenant, buffered)| (tenant, buffered.round));
        let ended = tickets.chain(buffered);
        ended.map(|(tenant, round)| (tenant.clone(), round, Some(reason.to_owned()))).collect()
    }

    fn invite(&mut self, setting: Setting<'_>, seed: u64, available: &BTreeSet<TenantId>) -> Step {
        let room = (setting.plan.cohort_size as usize).saturating_sub(self.tickets.len());
        if room == 0 {
            return Step::Stay;
        }
        let free = |tenant: &&TenantId| {
            !self.tickets.contains_key(*tenant)
                && !self.buffer.contains_key(*tenant)
                && !self.declined.contains_key(*tenant)
        };
        let free: BTreeSet<TenantId> = available.iter().filter(free).cloned().collect();
        if free.is_empty() {
            return Step::Stay;
        }
        let chosen = cohort::choose(&free, room, seed.wrapping_add(self.draws << 32));
        self.draws += 1;
        let due = setting.now.after_ms(setting.plan.report_timeout_ms);
        for tenant in &chosen {
            let ticket = Ticket { round: setting.number, base: setting.base, due };
            self.tickets.insert(tenant.clone(), ticket);
        }
        self.invited.extend(chosen);
        Step::Changed
    }

    fn settle_or(&mut self, plan: &RoundPlan, otherwise: Step) -> Step {
        let enough = if self.deadline_passed { plan.cohort_size_min } else { plan.report_goal };
        if self.buffer.len() < enough as usize {
            return otherwise;
        }
        Step::Next(Phase::Committed { contributors: self.updates() })
    }

    fn repeated(
        &self,
        round: RoundNumber,
        tenant: &TenantId,
        offered: Digest,
    ) -> Result<(), RoundError> {
        match self.buffer.get(tenant).map(|buffered| buffered.update) {
            Some(stored) if stored == offered => Ok(()),
            Some(stored) => {
                Err(RoundError::Conflict { tenant: tenant.clone(), round, stored, offered })
            }
            None => Err(RoundError::NotInCohort { tenant: tenant.clone(), round }),
        }
    }

    fn require(&self, round: RoundNumber, tenant: &TenantId) -> Result<(), RoundError> {
        match self.tickets.contains_key(tenant) || self.buffer.contains_key(tenant) {
            true => Ok(()),
            false => Err(RoundError::NotInCohort { tenant: tenant.clone(), round }),
        }
    }
}

/// How many versions a ticket's base lies behind.
fn staleness(now: RoundNumber, ticket: RoundNumber) -> u32 {
    now.0.saturating_sub(ticket.0).try_into().unwrap_or(u32::MAX)
}
