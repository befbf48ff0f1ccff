//! The last phase: survivors are confirmed and, once, shares revealed.

use super::{ClientOutput, Own, Phase, advertise::check_neighbours, share::Held};
use crate::secagg::{
    ClientMessage, Identity, Member, MemberSet, PeerKeys, SecaggError, Step,
    bytes::{Blob, ByteArray},
    message::Confirmation,
    transcript::confirmation_bytes,
};

/// The survivors are known and checked.
#[cfg_attr(test, derive(Clone))]
pub(super) struct Confirming {
    pub(super) digest: ByteArray<32>,
    pub(super) survivors: MemberSet,
    /// By ascending place.
    pub(super) held: Vec<Held>,
}

impl Confirming {
    /// Signs the survivors.
    pub(super) fn confirm(&self, identity: &dyn Identity) -> Confirmation {
        let signature = Blob(identity.sign(&confirmation_bytes(&self.digest)));
        Confirmation { digest: self.digest, signature }
    }

    /// Checks that enough surviving neighbours signed the very same survivors.
    ///
    /// With more than half of the neighbours and all corrupt ones behind a set, no other set can
    /// get as many signatures, here or, since neighbourhoods overlap, anywhere on the ring.
    pub(super) fn check(
        &self,
        own: &Own,
        confirmations: &[(Member, Confirmation)],
        peers: &dyn PeerKeys,
    ) -> Result<(), SecaggError> {
        if !confirmations.windows(2).all(|pair| pair[0].0 < pair[1].0) {
            return Err(SecaggError::WrongNeighbours);
        }
        for (member, confirmation) in confirmations {
            let member = *member;
            let held = self.held.iter().find(|held| held.peer.member == member);
            let held = held.filter(|_| self.survivors.contains(member));
            let peer = &held.ok_or(SecaggError::WrongNeighbours)?.peer;
            let message = confirmation_bytes(&confirmation.digest);
            if !peers.verify(&peer.credential.0, &message, &confirmation.signature.0) {
                return Err(SecaggError::ForgedConfirmation { member });
            }
            if confirmation.digest != self.digest {
                return Err(SecaggError::SurvivorsDiffer { member });
            }
        }
        check_neighbours(own, Step::ConsistencyCheck, confirmations.len())
    }

    /// Reveals one share for each neighbour: of the self mask if it survived, else of the mask key.
    ///
    /// Consumes all shares; those not revealed are zeroised.
    pub(super) fn unmask(self) -> (Phase, ClientOutput) {
        let answered = self.told();
        let shares = self.held.iter().map(|held| {
            let shares = held.shares.as_ref()?;
            let survived = self.survivors.contains(held.peer.member);
            Some(ByteArray(if survived { shares.self_mask } else { shares.mask_key }))
        });
        let output = ClientOutput::Send(ClientMessage::Unmask(shares.collect()));
        (Phase::Finished { answered }, output)
    }

    /// Each neighbour, and whether it was called a survivor.
    pub(super) fn told(&self) -> Vec<(Member, bool)> {
        let members = self.held.iter().map(|held| held.peer.member);
        members.map(|member| (member, self.survivors.contains(member))).collect()
    }
}
