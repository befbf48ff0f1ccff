//! The first step: fresh, signed keys of every member.

use super::{Server, is_repeated};
use crate::secagg::{
    AbandonReason, GraphKind, Member, MemberSet, PeerKeys, SecaggError, Step, keys, message::Advert,
};

impl Server {
    pub(super) fn take_advert(
        &mut self,
        member: Member,
        advert: Advert,
        peers: &dyn PeerKeys,
    ) -> Result<(), SecaggError> {
        let step = Step::AdvertiseKeys;
        if is_repeated(self.adverts.get(&member), &advert, member, step)? {
            return Ok(());
        }
        self.check_turn(member, step)?;
        let credential = &self.credentials[member.index()].0;
        if peers.name(credential).is_none() {
            return Err(SecaggError::UntrustedPeer { member });
        }
        if !peers.verify(credential, &advert.signed_bytes(member), &advert.signature.0) {
            return Err(SecaggError::SubstitutedKeys { member });
        }
        advert.check_terms(member, &self.context, &self.context_digest())?;
        if keys::is_low_order(&advert.mask_key) || keys::is_low_order(&advert.channel_key) {
            return Err(SecaggError::BadKey { member });
        }
        self.adverts.insert(member, advert);
        Ok(())
    }

    pub(super) fn close_adverts(&mut self) -> Result<(Step, MemberSet), AbandonReason> {
        self.check_count(self.adverts.len())?;
        let advertised = MemberSet::of(self.cohort_size(), self.adverts.keys().copied());
        Ok(match self.context.plan.graph() {
            GraphKind::Complete => (Step::ShareKeys, advertised),
            GraphKind::Harary => {
                self.order.asked = advertised.clone();
                (Step::RevealOrder, advertised)
            }
        })
    }
}
