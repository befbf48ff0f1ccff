//! The coordinator in one round, as a value that is stepped by hand and can be persisted.

mod advertise;
mod cache;
mod confirm;
mod mask;
mod reveal;
mod share;
mod unmask;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use self::{cache::Cache, reveal::Order, unmask::Tally};
use super::{
    AbandonReason, ClientMessage, Finding, Member, MemberSet, PeerKeys, RoundContext, SecaggError,
    ServerMessage, Step,
    bytes::{Blob, ByteArray},
    cohort_root,
    message::{Advert, Confirmation, SealedShares},
};

/// The coordinator in one round of secure aggregation.
///
/// Serialise it and make that durable after [`close_step`](Self::close_step), before anybody is told
/// the outcome; what was restored goes on as if nothing had happened. An answer that a crash forgot
/// is asked for again by [`message_for`](Self::message_for) and comes back identical. It holds no
/// secrets until agents unmask, and then only those that the sum needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    context: RoundContext,
    credentials: Vec<Blob>,
    step: Step,
    /// Who may answer in this step.
    eligible: MemberSet,
    adverts: BTreeMap<Member, Advert>,
    order: Order,
    deals: BTreeMap<Member, Vec<SealedShares>>,
    uploads: BTreeMap<Member, ByteArray<32>>,
    survivors: Option<MemberSet>,
    confirmations: BTreeMap<Member, Confirmation>,
    revealed: BTreeMap<Member, Vec<Option<ByteArray<32>>>>,
    tally: Tally,
    /// Reconstructed secrets: of the self mask for survivors, of the mask key for dropouts.
    recovered: Vec<(Member, ByteArray<32>)>,
    findings: Vec<Finding>,
    abandoned: Option<AbandonReason>,
    #[serde(skip)]
    cache: Cache,
}

impl Server {
    /// Starts a round.
    ///
    /// - `context`: the terms; its cohort root must be that of `credentials`
    /// - `credentials`: of the cohort, in the order of the cohort list
    ///
    /// # Errors
    /// [`SecaggError::Context`].
    pub fn new(context: RoundContext, credentials: Vec<Blob>) -> Result<Self, SecaggError> {
        let cohort_size = context.plan.cohort_size();
        if !context.is_well_formed()
            || credentials.len() != cohort_size as usize
            || cohort_root(&credentials) != context.cohort_root
        {
            return Err(SecaggError::Context);
        }
        Ok(Self {
            credentials,
            step: Step::AdvertiseKeys,
            eligible: MemberSet::full(cohort_size),
            adverts: BTreeMap::new(),
            order: Order::new(cohort_size),
            deals: BTreeMap::new(),
            uploads: BTreeMap::new(),
            survivors: None,
            confirmations: BTreeMap::new(),
            revealed: BTreeMap::new(),
            tally: Tally::default(),
            recovered: Vec::new(),
            findings: Vec::new(),
            abandoned: None,
            cache: Cache::default(),
            context,
        })
    }

    /// The terms of the round.
    #[must_use]
    pub const fn context(&self) -> &RoundContext {
        &self.context
    }

    /// Which answers are awaited.
    #[must_use]
    pub const fn step(&self) -> Step {
        self.step
    }

    /// Members that may still answer in this step and have not: whom the round waits for.
    #[must_use]
    pub fn awaited(&self) -> MemberSet {
        let awaited = self.eligible.iter().filter(|&member| !self.has_answered(member));
        MemberSet::of(self.cohort_size(), awaited)
    }

    /// Members that answered in this step.
    #[must_use]
    pub fn answered(&self) -> MemberSet {
        let answered = self.eligible.iter().filter(|&member| self.has_answered(member));
        MemberSet::of(self.cohort_size(), answered)
    }

    /// Whether closing the step now loses nobody, or (unmasking) nothing more is needed.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let answers = match self.step {
            Step::AdvertiseKeys => self.adverts.len(),
            Step::RevealOrder => self.order.openings.len(),
            Step::ShareKeys => self.deals.len(),
            Step::MaskedInput => self.uploads.len(),
            Step::ConsistencyCheck => self.confirmations.len(),
            Step::Unmask => return self.tally.is_sufficient(),
            Step::Done => return true,
        };
        answers == self.eligible.count() as usize
    }

    /// Takes a message of a member; the same message again changes nothing.
    ///
    /// # Errors
    /// [`SecaggError`] names what is wrong; the state is then unchanged.
    pub fn handle(
        &mut self,
        member: Member,
        message: ClientMessage,
        peers: &dyn PeerKeys,
    ) -> Result<(), SecaggError> {
        self.check_member(member)?;
        match message {
            ClientMessage::Advertise(advert) => self.take_advert(member, *advert, peers),
            ClientMessage::Opening(opening) => self.take_opening(member, &opening),
            ClientMessage::ShareKeys(sealed) => self.take_deal(member, sealed),
            ClientMessage::Confirm(confirmation) => {
                self.take_confirmation(member, confirmation, peers)
            }
            ClientMessage::Unmask(shares) => self.take_shares(member, shares),
        }
    }

    /// Notes that a member's masked update is complete and verified. The caller adds exactly the
    /// updates of [`survivors`](Self::survivors) to the sum.
    ///
    /// - `packed_length`: bytes of the packed vector
    /// - `digest`: of the packed vector
    ///
    /// # Errors
    /// [`SecaggError::WrongLength`], [`SecaggError::TwoInputs`], [`SecaggError::OutOfTurn`],
    /// [`SecaggError::NotInCohort`]; the state is then unchanged.
    pub fn uploaded(
        &mut self,
        member: Member,
        packed_length: u64,
        digest: ByteArray<32>,
    ) -> Result<(), SecaggError> {
        self.check_member(member)?;
        self.take_upload(member, packed_length, digest)
    }

    /// Ends the step with those who answered; everybody else has dropped out.
    ///
    /// # Errors
    /// [`AbandonReason`] if too few are left; the round is then over and says so again.
    pub fn close_step(&mut self) -> Result<Step, AbandonReason> {
        if let Some(reason) = &self.abandoned {
            return Err(reason.clone());
        }
        let closed = match self.step {
            Step::AdvertiseKeys => self.close_adverts(),
            Step::RevealOrder => self.close_openings(),
            Step::ShareKeys => self.close_deals(),
            Step::MaskedInput => self.close_uploads(),
            Step::ConsistencyCheck => self.close_confirmations(),
            Step::Unmask => self.close_shares(),
            Step::Done => Ok((Step::Done, MemberSet::empty(self.cohort_size()))),
        };
        match closed {
            Ok((step, eligible)) => {
                (self.step, self.eligible) = (step, eligible);
                Ok(step)
            }
            Err(reason) => {
                self.eligible = MemberSet::empty(self.cohort_size());
                self.abandoned = Some(reason.clone());
                Err(reason)
            }
        }
    }

    /// What `member` is to be told in this step, at first and after every reconnect; `None` if it
    /// has dropped out or nothing is to be told.
    #[must_use]
    pub fn message_for(&self, member: Member) -> Option<ServerMessage> {
        if !self.eligible.contains(member) {
            return None;
        }
        match self.step {
            Step::AdvertiseKeys | Step::Done => None,
            Step::RevealOrder => Some(self.reveal()),
            Step::ShareKeys => Some(self.neighbourhood(member)),
            Step::MaskedInput => Some(self.shares_for(member)),
            Step::ConsistencyCheck => self.survivors.clone().map(ServerMessage::Survivors),
            Step::Unmask => self.unmask_request(member),
        }
    }

    /// Whose updates are in the sum; `None` before the step of masked updates was closed.
    #[must_use]
    pub const fn survivors(&self) -> Option<&MemberSet> {
        self.survivors.as_ref()
    }

    /// Why the round ended without a sum, if it did.
    #[must_use]
    pub const fn abandoned(&self) -> Option<&AbandonReason> {
        self.abandoned.as_ref()
    }

    /// What was wrong with members so far, without harm to the round.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    const fn cohort_size(&self) -> u32 {
        self.context.plan.cohort_size()
    }

    const fn check_member(&self, member: Member) -> Result<(), SecaggError> {
        if member.0 < self.cohort_size() {
            Ok(())
        } else {
            Err(SecaggError::NotInCohort { member })
        }
    }

    /// Refuses an answer outside its step or of somebody who has dropped out.
    fn check_turn(&self, member: Member, step: Step) -> Result<(), SecaggError> {
        if self.step == step && self.eligible.contains(member) {
            Ok(())
        } else {
            Err(SecaggError::OutOfTurn { step: self.step })
        }
    }

    /// Ends a step only with enough members.
    const fn check_count(&self, members: usize) -> Result<(), AbandonReason> {
        let (members, members_min) = (members as u32, self.context.plan.survivors_min());
        if members < members_min {
            return Err(AbandonReason::TooFewMembers { step: self.step, members, members_min });
        }
        Ok(())
    }

    /// The members of `set` with at least the threshold of neighbours in it.
    ///
    /// The others could not be helped, and would refuse to go on.
    fn connected(&self, set: &MemberSet) -> MemberSet {
        let threshold = self.context.plan.threshold() as usize;
        let enough = |&member: &Member| {
            let neighbours = self.neighbours(member).iter();
            neighbours.filter(|&&other| set.contains(other)).count() >= threshold
        };
        MemberSet::of(self.cohort_size(), set.iter().filter(enough))
    }

    fn has_answered(&self, member: Member) -> bool {
        match self.step {
            Step::AdvertiseKeys => self.adverts.contains_key(&member),
            Step::RevealOrder => self.order.openings.contains_key(&member),
            Step::ShareKeys => self.deals.contains_key(&member),
            Step::MaskedInput => self.uploads.contains_key(&member),
            Step::ConsistencyCheck => self.confirmations.contains_key(&member),
            Step::Unmask => self.revealed.contains_key(&member),
            Step::Done => false,
        }
    }
}

/// What an answer is to one that was given before.
///
/// Returns whether it is the same; a different one is refused.
fn is_repeated<T: PartialEq>(
    before: Option<&T>,
    answer: &T,
    member: Member,
    step: Step,
) -> Result<bool, SecaggError> {
    match before {
        None => Ok(false),
        Some(before) if before == answer => Ok(true),
        Some(_) => Err(SecaggError::ConflictingAnswers { member, step }),
    }
}
