//! The step in which survivors sign whom they were told survived.

use super::{Server, is_repeated};
use crate::secagg::{
    AbandonReason, Adversary, Member, MemberSet, PeerKeys, SecaggError, ServerMessage, Step,
    message::Confirmation,
    transcript::{confirmation_bytes, survivors_digest},
};

impl Server {
    pub(super) fn take_confirmation(
        &mut self,
        member: Member,
        confirmation: Confirmation,
        peers: &dyn PeerKeys,
    ) -> Result<(), SecaggError> {
        let step = Step::ConsistencyCheck;
        if is_repeated(self.confirmations.get(&member), &confirmation, member, step)? {
            return Ok(());
        }
        self.check_turn(member, step)?;
        let survivors = self.survivors.as_ref().expect("uploads are closed");
        let roster = &self.lists().roster;
        let digest = survivors_digest(&self.context_digest(), roster, survivors);
        let credential = &self.credentials[member.index()].0;
        let message = confirmation_bytes(&confirmation.digest);
        if !peers.verify(credential, &message, &confirmation.signature.0) {
            return Err(SecaggError::ForgedConfirmation { member });
        }
        if confirmation.digest != digest {
            return Err(SecaggError::SurvivorsDiffer { member });
        }
        self.confirmations.insert(member, confirmation);
        Ok(())
    }

    /// Goes on with those who can show the threshold of neighbours' signatures.
    pub(super) fn close_confirmations(&mut self) -> Result<(Step, MemberSet), AbandonReason> {
        let confirmed = MemberSet::of(self.cohort_size(), self.confirmations.keys().copied());
        let eligible = self.connected(&confirmed);
        let (members, members_min) = (eligible.count(), self.context.plan.threshold());
        if members < members_min {
            return Err(AbandonReason::TooFewMembers { step: self.step, members, members_min });
        }
        self.count_needed();
        Ok((Step::Unmask, eligible))
    }

    pub(super) fn unmask_request(&self, member: Member) -> Option<ServerMessage> {
        if self.context.plan.adversary() == Adversary::SemiHonest {
            return self.survivors.clone().map(ServerMessage::Survivors);
        }
        let neighbours = self.neighbours(member).iter();
        let confirmations = neighbours
            .filter_map(|peer| self.confirmations.get(peer).map(|signed| (*peer, signed.clone())));
        Some(ServerMessage::Confirmations(confirmations.collect()))
    }
}
