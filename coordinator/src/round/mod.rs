//! One training round as a value that is stepped by hand.
//!
//! ```text
//! Selection ─▶ Configuration ─▶ [KeyExchange] ─▶ Reporting ─▶ [Unmasking] ─▶ Committed
//!                    │               │               │             │
//!                    └───────────────┴─▶ Abandoned ◀─┴─────────────┘
//! ```
//! An asynchronous round has only `Buffering ─▶ Committed`. What is open at a commit goes on in the
//! next round: its tenants train from older bases, and their updates count less.
//!
//! The phases in brackets belong to secure aggregation; the updates are masked there. Its answers
//! are made durable when a step is closed, before anybody is asked for the next one: after a restart
//! everybody is asked again, and answers the same.
//!
//! Inputs and the current time go in through [`Round::handle`] and [`Round::handle_timeout`]; what the driver must
//! do comes out of [`Round::poll_output`], in order. The driver completes every
//! [`Output::Persist`] and [`Output::Note`] before any later output, so nobody is told what a crash
//! could forget. [`Round::restore`] continues from the last persisted record and the answers that were
//! noted after it ([`RoundRecord::take`]).

mod answer;
mod buffering;
#[cfg(test)]
mod buffering_tests;
mod configuration;
mod error;
mod event;
mod key_exchange;
mod phase;
mod record;
mod reporting;
mod secagg;
#[cfg(test)]
mod secagg_tests;
mod selection;
#[cfg(test)]
mod tests;
mod unmasking;

use std::collections::{BTreeSet, VecDeque};

use tributary_privacy::secagg::{ClientMessage, PeerKeys};
use tributary_protocol::{
    id::{Digest, RoundNumber, TenantId},
    job::RoundPlan,
    time::Timestamp,
};

pub(crate) use self::configuration::grouped;
use self::key_exchange::Timing;
pub use self::{
    answer::Answer,
    buffering::{Buffering, Carried, Ticket},
    configuration::Configuration,
    error::RoundError,
    event::{Input, Output},
    key_exchange::KeyExchange,
    phase::Phase,
    record::RoundRecord,
    reporting::Reporting,
    secagg::{Aggregation, Request, SecaggTerms},
    selection::Selection,
    unmasking::Unmasking,
};

/// A round of one job.
#[derive(Debug)]
pub struct Round {
    record: RoundRecord,
    outputs: VecDeque<Output>,
    /// Who was given a ticket since this was last asked.
    given: BTreeSet<TenantId>,
}

/// What the phases need to know of their round.
#[derive(Debug, Clone, Copy)]
struct Setting<'a> {
    number: RoundNumber,
    base: Digest,
    plan: &'a RoundPlan,
    secagg: Option<&'a SecaggTerms>,
    now: Timestamp,
}

impl Setting<'_> {
    fn step_timeout_ms(&self) -> u64 {
        self.secagg.map_or(0, |terms| terms.step_timeout_ms)
    }

    fn timing(&self) -> Timing {
        Timing {
            now: self.now,
            step_timeout_ms: self.step_timeout_ms(),
            report_timeout_ms: self.plan.report_timeout_ms,
        }
    }
}

/// What a phase decided; the round applies it.
enum Step {
    Stay,
    Changed,
    /// A step of secure aggregation was closed; its members are asked for the next one.
    Asked,
    /// The masks of the sum can be removed.
    Unmasked,
    Next(Phase),
}

impl Round {
    /// Opens a round in Selection; an asynchronous one in Buffering.
    #[must_use]
    pub fn new(
        number: RoundNumber,
        base: Digest,
        plan: RoundPlan,
        secagg: Option<SecaggTerms>,
        cohort_seed: u64,
        now: Timestamp,
    ) -> Self {
        Self::carrying(number, base, plan, secagg, cohort_seed, Carried::default(), now)
    }

    /// Opens a round that goes on with what an asynchronous one left.
    #[must_use]
    pub fn carrying(
        number: RoundNumber,
        base: Digest,
        plan: RoundPlan,
        secagg: Option<SecaggTerms>,
        cohort_seed: u64,
        carried: Carried,
        now: Timestamp,
    ) -> Self {
        let phase = match plan.asynchronous {
            None => Phase::Selection(Selection::new(&plan, now)),
            Some(_) => {
                let mut buffering = Buffering::new(&plan, now);
                buffering.carry(number, &plan, carried);
                Phase::Buffering(buffering)
            }
        };
        let carried = Carried::default();
        let record = RoundRecord { number, base, plan, secagg, cohort_seed, phase, carried };
        let mut round = Self { record, outputs: VecDeque::new(), given: BTreeSet::new() };
        let told = round.told();
        round.persist();
        round.outputs.extend(told);
        round
    }

    /// Continues a persisted round. Its current wait starts anew: the time that the coordinator was
    /// down must not count against the tenants.
    #[must_use]
    pub fn restore(record: RoundRecord, now: Timestamp) -> Self {
        let mut round = Self { record, outputs: VecDeque::new(), given: BTreeSet::new() };
        // A round that had every report but whose commit did not become durable commits now.
        let step = round.record.step(now, |phase, setting| {
            Ok(match phase {
                Phase::Selection(selection) => {
                    selection.rearm(setting.plan, now);
                    Step::Stay
                }
                Phase::Configuration(configuration) => {
                    configuration.rearm(setting.plan, now);
                    Step::Stay
                }
                Phase::KeyExchange(exchange) => {
                    exchange.rearm(setting.step_timeout_ms(), now);
                    Step::Stay
                }
                Phase::Reporting(reporting) => {
                    reporting.rearm(setting.plan, now);
                    reporting.settle(setting)
                }
                Phase::Buffering(buffering) => {
                    buffering.rearm(setting.plan, now);
                    buffering.settle(setting.plan)
                }
                Phase::Unmasking(unmasking) => {
                    unmasking.rearm(setting.step_timeout_ms(), now);
                    unmasking.settle()
                }
                Phase::Committed { .. } | Phase::Abandoned { .. } => Step::Stay,
            })
        });
        round.apply(step.expect("restoring refuses nothing"), now);
        round
    }

    /// Takes one input.
    ///
    /// # Errors
    /// [`RoundError`] if the input does not fit; the round is unchanged.
    pub fn handle(&mut self, now: Timestamp, input: Input) -> Result<(), RoundError> {
        if let Input::Connected(tenant) = &input {
            if let Some(deadline) = self.record.phase.assignment_deadline(tenant) {
                self.outputs.push_back(Output::Configure(tenant.clone(), deadline));
            }
            return Ok(());
        }
        let seed = self.record.cohort_seed;
        let accepting = match &input {
            Input::Accepted { tenant, .. } => Some(tenant.clone()),
            _ => None,
        };
        let answer = match &self.record.phase {
            Phase::Configuration(_) | Phase::Reporting(_) => Answer::of(&input),
            _ => None,
        };
        let step = self.record.step(now, |phase, setting| match phase {
            Phase::Selection(selection) => selection.handle(setting, seed, input),
            Phase::Configuration(configuration) => configuration.handle(setting, input),
            Phase::KeyExchange(exchange) => {
                exchange.handle(setting.number, input, setting.timing())
            }
            Phase::Reporting(reporting) => reporting.handle(setting, input),
            Phase::Buffering(buffering) => buffering.handle(setting, seed, input),
            Phase::Unmasking(unmasking) => {
                unmasking.handle(setting.number, input, setting.timing())
            }
            // A contributor whose acknowledgement was lost reports the same bytes again.
            Phase::Committed { contributors } => match &input {
                Input::Reported(tenant, update) if contributors.get(tenant) == Some(update) => {
                    Ok(Step::Stay)
                }
                _ => closed(setting.number, "committed", &input).map(|()| Step::Stay),
            },
            Phase::Abandoned { .. } => {
                closed(setting.number, "abandoned", &input).map(|()| Step::Stay)
            }
        })?;
        // An agent that accepts again has reconnected, and may not have heard what it is asked for.
        if let (Step::Stay, Some(tenant)) = (&step, accepting)
            && let Some(request) =
                self.record.phase.aggregation().and_then(|it| it.request(&tenant))
        {
            self.outputs.push_back(Output::Ask(tenant, request));
        }
        match (&step, answer) {
            (Step::Changed, Some(answer)) => self.outputs.push_back(Output::Note(answer)),
            _ => self.apply(step, now),
        }
        Ok(())
    }

    /// Takes a cohort member's answer in a step of secure aggregation.
    ///
    /// - `peers`: recognises the signatures of the cohort
    ///
    /// # Errors
    /// [`RoundError`] if the answer does not fit; the round is unchanged.
    pub fn secagg(
        &mut self,
        now: Timestamp,
        tenant: &TenantId,
        message: ClientMessage,
        peers: &dyn PeerKeys,
    ) -> Result<(), RoundError> {
        let step = self.record.step(now, |phase, setting| match phase {
            Phase::KeyExchange(exchange) => {
                exchange.secagg(setting.number, tenant, message, peers, setting.timing())
            }
            Phase::Unmasking(unmasking) => {
                unmasking.secagg(setting.number, tenant, message, peers, setting.timing())
            }
            other => Err(RoundError::WrongPhase { round: setting.number, phase: other.name() }),
        })?;
        self.apply(step, now);
        Ok(())
    }

    /// The masks of the committed sum cannot be removed, or the sum cannot come from honest updates:
    /// the round gives nothing.
    ///
    /// # Panics
    /// If the round is not about to commit, which is a bug of the driver.
    pub fn abandon_commit(&mut self, reason: String) {
        assert!(matches!(self.record.phase, Phase::Committed { .. }), "only a commit can fail");
        self.record.phase = Phase::Abandoned { reason: reason.clone() };
        let told = self.outputs.drain(..).filter_map(|output| match output {
            Output::Close { tenants, .. } => Some(tenants),
            _ => None,
        });
        let tenants = told.flatten().collect();
        self.persist();
        self.outputs.push_back(Output::Close { tenants, abandoned: Some(reason) });
    }

    /// Acts on a deadline that has passed; does nothing before it.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        if self.poll_timeout().is_none_or(|deadline| now < deadline) {
            return;
        }
        let seed = self.record.cohort_seed;
        let step = self.record.step(now, |phase, setting| {
            Ok(match phase {
                Phase::Selection(selection) => selection.timeout(setting, seed),
                Phase::Configuration(configuration) => configuration.timeout(setting),
                Phase::KeyExchange(exchange) => exchange.timeout(setting.timing()),
                Phase::Reporting(reporting) => reporting.timeout(setting),
                Phase::Buffering(buffering) => buffering.timeout(setting),
                Phase::Unmasking(unmasking) => unmasking.timeout(setting.timing()),
                Phase::Committed { .. } | Phase::Abandoned { .. } => Step::Stay,
            })
        });
        self.apply(step.expect("a deadline refuses nothing"), now);
    }

    /// An operator gives the round up, unless it has ended.
    pub fn give_up(&mut self, reason: String, now: Timestamp) {
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
            Phase::Configuration(configuration) if self.record.secagg.is_none() => {
                configuration.require(number, tenant).map(|()| false)
            }
            Phase::Reporting(reporting) => reporting.check_report(number, tenant, update),
            Phase::Buffering(buffering) => buffering.check_report(number, tenant, update),
            Phase::Unmasking(unmasking) => unmasking.check_report(number, tenant, update),
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
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        match &self.record.phase {
            Phase::Buffering(buffering) => buffering.poll_timeout(),
            Phase::Selection(selection) => selection.deadline(),
            Phase::Configuration(configuration) => Some(configuration.deadline),
            Phase::KeyExchange(exchange) => Some(exchange.deadline),
            Phase::Reporting(reporting) => Some(reporting.deadline),
            Phase::Unmasking(unmasking) => Some(unmasking.deadline),
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
            Phase::KeyExchange(exchange) => exchange.waiting_for(),
            Phase::Reporting(reporting) => reporting.waiting_for(&self.record.plan),
            Phase::Buffering(buffering) => buffering.waiting_for(&self.record.plan),
            Phase::Unmasking(unmasking) => unmasking.waiting_for(),
            Phase::Committed { contributors } => {
                format!("committed with {} updates", contributors.len())
            }
            Phase::Abandoned { reason } => format!("abandoned: {reason}"),
        }
    }

    fn apply(&mut self, step: Step, now: Timestamp) {
        let invited = self.record.phase.invited();
        let (mut unmask, mut dismissed) = (None, Vec::new());
        match step {
            Step::Stay => return,
            Step::Changed => {
                let told = self.told();
                self.persist();
                self.outputs.extend(told);
                return;
            }
            Step::Asked => {
                self.persist();
                return self.ask();
            }
            Step::Unmasked => {
                // Durable before the sum is unmasked: a restart then goes on to the commit.
                self.persist();
                return self.apply_settled(now);
            }
            Step::Next(phase) => {
                if let Phase::Unmasking(unmasking) = &self.record.phase {
                    unmask = Some(Box::new(unmasking.aggregation().clone()));
                }
                if let Phase::Buffering(buffering) = &mut self.record.phase {
                    match &phase {
                        Phase::Abandoned { reason } => dismissed = buffering.abandoned(reason),
                        _ => {
                            (self.record.carried, dismissed) =
                                buffering.committed(self.record.number);
                        }
                    }
                }
                self.record.phase = phase;
            }
        }
        match &self.record.phase {
            Phase::Selection(_) | Phase::Buffering(_) => self.persist(),
            Phase::Reporting(_) | Phase::KeyExchange(_) | Phase::Unmasking(_) => {
                self.persist();
                self.ask();
            }
            Phase::Configuration(configuration) => {
                let due = now.after_ms(self.record.plan.report_timeout_ms);
                let invite = |tenant: &TenantId| Output::Configure(tenant.clone(), due);
                let invitations: Vec<_> = configuration.cohort().map(invite).collect();
                self.persist();
                self.outputs.extend(invitations);
            }
            Phase::Committed { contributors } => {
                // The driver persists this record together with the model, in one atomic step.
                let commit = Output::Commit { contributors: contributors.clone(), unmask };
                self.outputs.push_back(commit);
                if !invited.is_empty() {
                    self.outputs.push_back(Output::Close { tenants: invited, abandoned: None });
                }
            }
            Phase::Abandoned { reason } => {
                let abandoned = Some(reason.clone());
                self.persist();
                if !invited.is_empty() {
                    self.outputs.push_back(Output::Close { tenants: invited, abandoned });
                }
            }
        }
        self.outputs.extend(dismissed.into_iter().map(dismiss));
    }

    /// Takes whom to tell that they are invited to an asynchronous round, or that their ticket ended.
    /// What is made durable afterwards is the record without them.
    fn told(&mut self) -> Vec<Output> {
        let Phase::Buffering(buffering) = &mut self.record.phase else { return Vec::new() };
        let ended = std::mem::take(&mut buffering.dismissed).into_iter().map(dismiss);
        let mut told: Vec<Output> = ended.collect();
        for tenant in std::mem::take(&mut buffering.invited) {
            if let Some(ticket) = buffering.ticket(&tenant) {
                told.push(Output::Configure(tenant.clone(), ticket.due));
                self.given.insert(tenant);
            }
        }
        told
    }

    /// Who was given a ticket in an asynchronous round since this was last asked.
    pub(crate) fn take_tickets(&mut self) -> BTreeSet<TenantId> {
        std::mem::take(&mut self.given)
    }

    fn apply_settled(&mut self, now: Timestamp) {
        if let Phase::Unmasking(unmasking) = &self.record.phase {
            let step = unmasking.settle();
            self.apply(step, now);
        }
    }

    /// Asks everybody who is still in for the open step of secure aggregation.
    fn ask(&mut self) {
        let Some(aggregation) = self.record.phase.aggregation() else { return };
        let asked = aggregation.members().iter().filter_map(|tenant| {
            aggregation.request(tenant).map(|request| Output::Ask(tenant.clone(), request))
        });
        let asked: Vec<_> = asked.collect();
        self.outputs.extend(asked);
    }

    fn persist(&mut self) {
        self.outputs.push_back(Output::Persist(Box::new(self.record.clone())));
    }
}

/// Tells a tenant that its ticket has ended.
fn dismiss((tenant, round, abandoned): buffering::Dismissal) -> Output {
    Output::Dismiss { tenant, round, abandoned }
}

/// Answers inputs to a round that takes none.
fn closed(round: RoundNumber, phase: &'static str, input: &Input) -> Result<(), RoundError> {
    match input {
        Input::Available { .. } | Input::Connected(_) => Ok(()),
        Input::Accepted { .. } | Input::Declined(..) | Input::Reported(..) => {
            Err(RoundError::WrongPhase { round, phase })
        }
    }
}
