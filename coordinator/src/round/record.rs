//! What of a round is durable.

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

use super::{Aggregation, Answer, Carried, Phase, RoundError, SecaggTerms, Setting, Step};

/// The durable form of a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundRecord {
    /// Number within the job.
    pub number: RoundNumber,
    /// The base model that the round starts from.
    pub base: Digest,
    /// How it is scheduled.
    pub plan: RoundPlan,
    /// What its sum must withstand; `None` where every update is private by itself.
    #[serde(default)]
    pub secagg: Option<SecaggTerms>,
    /// Seeds the choice of the cohort.
    pub cohort_seed: u64,
    /// Where it stands.
    pub phase: Phase,
    /// Of a committed asynchronous round, what the next one goes on with.
    #[serde(default)]
    pub carried: Carried,
}

impl RoundRecord {
    /// Lets the phase decide, beside the rest of the record.
    pub(super) fn step(
        &mut self,
        now: Timestamp,
        decide: impl FnOnce(&mut Phase, Setting<'_>) -> Result<Step, RoundError>,
    ) -> Result<Step, RoundError> {
        let Self { number, base, plan, secagg, phase, .. } = self;
        let secagg = secagg.as_ref();
        decide(phase, Setting { number: *number, base: *base, plan, secagg, now })
    }

    /// Takes in an answer that was noted after this record was made durable; false if it cannot have
    /// been.
    #[must_use]
    pub fn take(&mut self, answer: &Answer) -> bool {
        let input = answer.clone().into();
        // What is noted ends no phase, so no deadline follows from when it came.
        let step = self.step(Timestamp(0), |phase, setting| match phase {
            Phase::Configuration(configuration) => configuration.handle(setting, input),
            Phase::Reporting(reporting) => reporting.handle(setting, input),
            other => Err(RoundError::WrongPhase { round: setting.number, phase: other.name() }),
        });
        matches!(step, Ok(Step::Changed))
    }

    /// Takes out what is stored by itself, because it is large and seldom changes: the secure
    /// aggregation whose masked updates are arriving.
    pub fn detach(&mut self) -> Option<Arc<Aggregation>> {
        match &mut self.phase {
            Phase::Reporting(reporting) => reporting.detach(),
            _ => None,
        }
    }

    /// Puts back what [`Self::detach`] took out; false if the round needs it, and it is not this.
    #[must_use]
    pub fn attach(&mut self, aggregation: Option<Arc<Aggregation>>) -> bool {
        match &mut self.phase {
            Phase::Reporting(reporting) => reporting.attach(aggregation),
            _ => true,
        }
    }

    /// What is stored by itself.
    #[must_use]
    pub const fn detachable(&self) -> Option<&Arc<Aggregation>> {
        match &self.phase {
            Phase::Reporting(reporting) => reporting.detachable(),
            _ => None,
        }
    }

    /// The updates that it counts.
    #[must_use]
    pub fn updates(&self) -> BTreeMap<TenantId, Digest> {
        match &self.phase {
            Phase::Reporting(reporting) => reporting.reported().clone(),
            Phase::Unmasking(unmasking) => unmasking.reported().clone(),
            Phase::Buffering(buffering) => buffering.updates(),
            Phase::Committed { contributors } => contributors.clone(),
            Phase::Selection(_)
            | Phase::Configuration(_)
            | Phase::KeyExchange(_)
            | Phase::Abandoned { .. } => BTreeMap::new(),
        }
    }

    /// How many versions the base of each contributor's update lay behind; none is listed in a
    /// synchronous round.
    #[must_use]
    pub const fn staleness(&self) -> &BTreeMap<TenantId, u32> {
        &self.carried.staleness
    }

    /// The base that a tenant trains from: the round's, or that of its own ticket.
    #[must_use]
    pub fn base_of(&self, tenant: &TenantId) -> Digest {
        let Phase::Buffering(buffering) = &self.phase else { return self.base };
        buffering.ticket(tenant).map_or(self.base, |ticket| ticket.base)
    }

    /// The round under which a tenant reports: this one, or that of its own ticket.
    #[must_use]
    pub fn number_of(&self, tenant: &TenantId) -> RoundNumber {
        let Phase::Buffering(buffering) = &self.phase else { return self.number };
        buffering.round_of(tenant).unwrap_or(self.number)
    }

    /// The rounds whose uploads may still come in.
    #[must_use]
    pub fn open_rounds(&self) -> BTreeSet<RoundNumber> {
        let mut rounds = match &self.phase {
            Phase::Buffering(buffering) => buffering.rounds(),
            _ => self.carried.tickets.values().map(|ticket| ticket.round).collect(),
        };
        rounds.insert(self.number);
        rounds
    }
}
