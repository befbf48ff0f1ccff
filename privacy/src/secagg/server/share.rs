//! The step in which members share their secrets among their neighbours.

use super::{Server, is_repeated};
use crate::secagg::{
    AbandonReason, Member, MemberSet, SecaggError, ServerMessage, Step,
    message::{Neighbourhood, Peer, SealedShares},
};

impl Server {
    pub(super) fn neighbourhood(&self, member: Member) -> ServerMessage {
        let lists = self.lists();
        let neighbours = self.neighbours(member);
        let mut places: Vec<usize> = neighbours.iter().map(|peer| peer.index()).collect();
        places.push(member.index());
        places.sort_unstable();
        let peer = |&member: &Member| {
            let advert = self.adverts.get(&member).expect("present members advertised").clone();
            Peer { member, credential: self.credentials[member.index()].clone(), advert }
        };
        ServerMessage::Neighbourhood(Neighbourhood {
            roster: lists.roster.clone(),
            order: self.order_opening(),
            peers: neighbours.iter().map(peer).collect(),
            cohort_proof: lists.cohort.prove(&places),
            adverts_proof: lists.adverts.prove(&places),
        })
    }

    pub(super) fn take_deal(
        &mut self,
        member: Member,
        sealed: Vec<SealedShares>,
    ) -> Result<(), SecaggError> {
        let step = Step::ShareKeys;
        if is_repeated(self.deals.get(&member), &sealed, member, step)? {
            return Ok(());
        }
        self.check_turn(member, step)?;
        let (count, expected) = (sealed.len(), self.neighbours(member).len());
        if count != expected {
            return Err(SecaggError::ShareCount { member, count, expected });
        }
        self.deals.insert(member, sealed);
        Ok(())
    }

    pub(super) fn close_deals(&mut self) -> Result<(Step, MemberSet), AbandonReason> {
        self.check_count(self.deals.len())?;
        let dealt = MemberSet::of(self.cohort_size(), self.deals.keys().copied());
        Ok((Step::MaskedInput, self.connected(&dealt)))
    }

    /// The members whose shares `holder` has, by ascending place.
    pub(super) fn dealers(&self, holder: Member) -> impl Iterator<Item = Member> + '_ {
        let neighbours = self.neighbours(holder).iter().copied();
        neighbours.filter(|dealer| self.deals.contains_key(dealer))
    }

    /// What a dealer sent for a holder.
    pub(super) fn sealed(&self, dealer: Member, holder: Member) -> Option<&SealedShares> {
        let position = self.neighbours(dealer).binary_search(&holder).ok()?;
        self.deals.get(&dealer)?.get(position)
    }
}
