//! The step of the masked updates.

use super::Server;
use crate::secagg::{
    AbandonReason, Adversary, Member, MemberSet, SecaggError, ServerMessage, Step, bytes::ByteArray,
};

impl Server {
    pub(super) fn shares_for(&self, holder: Member) -> ServerMessage {
        let shares = self.dealers(holder).filter_map(|dealer| {
            self.sealed(dealer, holder).map(|sealed| (dealer, sealed.clone()))
        });
        ServerMessage::Shares(shares.collect())
    }

    pub(super) fn take_upload(
        &mut self,
        member: Member,
        packed_length: u64,
        digest: ByteArray<32>,
    ) -> Result<(), SecaggError> {
        match self.uploads.get(&member) {
            Some(before) if *before == digest => return Ok(()),
            Some(_) => return Err(SecaggError::TwoInputs { member }),
            None => self.check_turn(member, Step::MaskedInput)?,
        }
        let expected = (self.context.dimension * u64::from(self.context.bits)).div_ceil(8);
        if packed_length != expected {
            return Err(SecaggError::WrongLength { length: packed_length, expected });
        }
        self.uploads.insert(member, digest);
        Ok(())
    }

    pub(super) fn close_uploads(&mut self) -> Result<(Step, MemberSet), AbandonReason> {
        self.check_count(self.uploads.len())?;
        let survivors = MemberSet::of(self.cohort_size(), self.uploads.keys().copied());
        let eligible = self.connected(&survivors);
        self.survivors = Some(survivors);
        Ok(match self.context.plan.adversary() {
            Adversary::SemiHonest => {
                self.count_needed();
                (Step::Unmask, eligible)
            }
            Adversary::MaliciousCoordinator => (Step::ConsistencyCheck, eligible),
        })
    }
}
