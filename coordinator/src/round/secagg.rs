//! Secure aggregation within a round: who is which member, and the stepped protocol.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tributary_privacy::{
    distributed::{DistributedError, DistributedNoise},
    lattice::Lattice,
    secagg::{
        AbandonReason, Blob, ByteArray, ClientMessage, Member, MemberSet, PeerKeys, RoundContext,
        SecaggError, SecaggPlan, Server, ServerMessage, Step, cohort_root,
    },
};
use tributary_protocol::{
    id::{Digest, JobId, RoundNumber, TenantId},
    message::LatticeSpec,
};

/// What the sums of a job must withstand, as every round of it has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecaggTerms {
    /// The job.
    pub job: JobId,
    /// Shares, thresholds and bounds.
    pub noise: DistributedNoise,
    /// The lattice of the updates.
    pub lattice: LatticeSpec,
    /// Digest of the job's document and lattice, bound into every key.
    pub terms: Digest,
    /// How long the cohort may take for a step, in milliseconds.
    pub step_timeout_ms: u64,
}

impl SecaggTerms {
    /// Digest of what all members of a cohort must have been told alike.
    ///
    /// # Panics
    /// Never for a job that was received or stored: it has an encoding.
    #[must_use]
    pub fn terms_digest(job: &tributary_protocol::job::JobSpec, lattice: LatticeSpec) -> Digest {
        let terms = tributary_protocol::codec::encode(&(job, lattice));
        Digest::of(&terms.expect("a job that came in a message fits into one"))
    }
}

/// One cohort's secure aggregation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aggregation {
    /// The cohort list.
    members: Vec<TenantId>,
    server: Server,
    /// Members that said that they will not answer any more, and why.
    gone: BTreeMap<TenantId, String>,
}

/// Where a step of secure aggregation left the round.
pub(super) enum Progress {
    /// Answers are awaited.
    Waiting,
    /// The step was closed and a new one is open.
    Opened,
    /// Too few are left.
    Abandoned(String),
}

impl Aggregation {
    /// Begins with the tenants that accepted the assignment.
    ///
    /// # Errors
    /// Why no cohort of these can aggregate securely, for people.
    pub(super) fn begin(
        terms: &SecaggTerms,
        round: RoundNumber,
        base: Digest,
        cohort: &BTreeMap<TenantId, Blob>,
    ) -> Result<Self, String> {
        let credentials: Vec<Blob> = cohort.values().cloned().collect();
        let describe = |error: &dyn std::error::Error| {
            let causes = std::iter::successors(Some(error), |error| error.source());
            causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
        };
        let size = credentials.len() as u32;
        let plan = terms.noise.plan(size).map_err(|error: DistributedError| describe(&error))?;
        let context = context(terms, round, base, plan, cohort_root(&credentials))
            .map_err(|error| describe(&error))?;
        let server = Server::new(context, credentials).map_err(|error| describe(&error))?;
        Ok(Self { members: cohort.keys().cloned().collect(), server, gone: BTreeMap::new() })
    }

    /// The stepped protocol.
    #[must_use]
    pub const fn server(&self) -> &Server {
        &self.server
    }

    /// Graph, threshold and fewest survivors.
    #[must_use]
    pub const fn plan(&self) -> &SecaggPlan {
        &self.server.context().plan
    }

    /// The cohort list.
    #[must_use]
    pub fn members(&self) -> &[TenantId] {
        &self.members
    }

    pub(super) fn member(&self, tenant: &TenantId) -> Option<Member> {
        // The list is in the order of the names.
        self.members.binary_search(tenant).ok().map(|place| Member(place as u32))
    }

    fn tenants(&self, set: &MemberSet) -> BTreeSet<TenantId> {
        set.iter().map(|member| self.members[member.index()].clone()).collect()
    }

    /// Members whose answer may still come in this step.
    #[must_use]
    pub fn awaited(&self) -> BTreeSet<TenantId> {
        let mut awaited = self.tenants(&self.server.awaited());
        awaited.retain(|tenant| !self.gone.contains_key(tenant));
        awaited
    }

    /// Why members left.
    pub(super) const fn gone(&self) -> &BTreeMap<TenantId, String> {
        &self.gone
    }

    /// What a member is to be told now, at first and after a reconnection.
    pub(super) fn request(&self, tenant: &TenantId) -> Option<Request> {
        let member = self.member(tenant).filter(|_| !self.gone.contains_key(tenant))?;
        if self.server.step() == Step::AdvertiseKeys {
            let context = self.server.context();
            return Some(Request::Begin {
                member: member.0,
                cohort_size: context.plan.cohort_size(),
                cohort_root: Digest::from_bytes(context.cohort_root.0),
            });
        }
        self.server.message_for(member).map(|message| Request::Step(Box::new(message)))
    }

    /// Takes a member's answer.
    pub(super) fn handle(
        &mut self,
        tenant: &TenantId,
        message: ClientMessage,
        peers: &dyn PeerKeys,
    ) -> Result<(), SecaggError> {
        // Whoever is in no list is refused by the caller.
        let Some(member) = self.member(tenant) else { return Ok(()) };
        self.server.handle(member, message, peers)
    }

    pub(super) fn uploaded(
        &mut self,
        tenant: &TenantId,
        update: Digest,
    ) -> Result<(), SecaggError> {
        let Some(member) = self.member(tenant) else { return Ok(()) };
        let context = self.server.context();
        let length = (context.dimension * u64::from(context.bits)).div_ceil(8);
        self.server.uploaded(member, length, ByteArray(*update.as_bytes()))
    }

    /// A member will not answer any more in this round.
    pub(super) fn leave(&mut self, tenant: &TenantId, reason: String) {
        self.gone.insert(tenant.clone(), reason);
    }

    /// Closes the step if nobody's answer can still come or is needed, or in any case.
    pub(super) fn advance(&mut self, deadline_passed: bool) -> Progress {
        if !(deadline_passed || self.server.is_complete() || self.awaited().is_empty()) {
            return Progress::Waiting;
        }
        match self.server.close_step() {
            Ok(_) => Progress::Opened,
            Err(reason) => Progress::Abandoned(self.why(&reason)),
        }
    }

    /// The reason with everybody's own.
    fn why(&self, reason: &AbandonReason) -> String {
        let mut text = format!("secure aggregation: {reason}");
        for (tenant, why) in &self.gone {
            text += &format!("; {tenant}: {why}");
        }
        text
    }

    /// What is open, for people.
    pub(super) fn step_name(&self) -> &'static str {
        match self.server.step() {
            Step::AdvertiseKeys => "advertising keys",
            Step::RevealOrder => "fixing the order of the graph",
            Step::ShareKeys => "sharing keys",
            Step::MaskedInput => "masked updates",
            Step::ConsistencyCheck => "confirming the survivors",
            Step::Unmask => "unmasking",
            Step::Done => "removing the masks",
        }
    }

    pub(super) fn step(&self) -> Step {
        self.server.step()
    }
}

/// What a member of a cohort is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// The cohort is fixed: make keys.
    Begin {
        /// The tenant's place in the cohort list.
        member: u32,
        /// Length of the list.
        cohort_size: u32,
        /// Root over the list.
        cohort_root: Digest,
    },
    /// A later step.
    Step(Box<ServerMessage>),
}

fn context(
    terms: &SecaggTerms,
    round: RoundNumber,
    base: Digest,
    plan: SecaggPlan,
    cohort_root: ByteArray<32>,
) -> Result<RoundContext, tributary_privacy::lattice::LatticeError> {
    let lattice = Lattice::new(terms.lattice.step, terms.lattice.bits)?;
    Ok(RoundContext {
        job: terms.job.to_string(),
        round: round.0,
        base_digest: ByteArray(*base.as_bytes()),
        terms_digest: ByteArray(*terms.terms.as_bytes()),
        cohort_root,
        plan,
        bits: lattice.bits(),
        dimension: terms.noise.dimension,
        coordinate_max: terms.noise.coordinate_max(&plan, lattice),
    })
}
