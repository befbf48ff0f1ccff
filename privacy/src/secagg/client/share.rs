//! The second phase: the agent's secrets are shared among its neighbours.

use std::collections::BTreeMap;

use super::{Own, advertise::check_neighbours, mask::Masking};
use crate::secagg::{
    Finding, Member, MemberSet, SecaggError, Step,
    keys::Shares,
    mask::Mask,
    message::{Peer, Roster, SealedShares},
};

/// The neighbours are known and, after [`deal`](Self::deal), hold shares.
#[cfg_attr(test, derive(Clone))]
pub(super) struct Dealt {
    pub(super) roster: Roster,
    /// Who still takes part: advertised and opened.
    pub(super) present: MemberSet,
    pub(super) peers: BTreeMap<Member, Peer>,
}

/// What this agent holds of one neighbour.
#[cfg_attr(test, derive(Clone))]
pub(super) struct Held {
    pub(super) peer: Peer,
    pub(super) shares: Option<Shares>,
}

impl Dealt {
    /// Shares both secrets among the neighbours.
    pub(super) fn deal(self, own: &Own) -> Result<(Self, Vec<SealedShares>), SecaggError> {
        let (mask_key, self_mask) = own.secrets.polynomials(own.context.plan.threshold());
        let sealed = self.peers.values().map(|peer| {
            let (holder, key) = (peer.member, &peer.advert.channel_key);
            let shares =
                own.secrets.seal(holder, key, &mask_key.share(holder), &self_mask.share(holder));
            shares.ok_or(SecaggError::BadKey { member: holder })
        });
        let sealed = sealed.collect::<Result<_, _>>()?;
        Ok((self, sealed))
    }

    /// Takes the neighbours' shares; neighbours without any have dropped out.
    pub(super) fn hold(
        mut self,
        own: &Own,
        shares: Vec<(Member, SealedShares)>,
        findings: &mut Vec<Finding>,
    ) -> Result<Masking, SecaggError> {
        if !shares.windows(2).all(|pair| pair[0].0 < pair[1].0) {
            return Err(SecaggError::WrongNeighbours);
        }
        check_neighbours(own, Step::ShareKeys, shares.len())?;
        let mut masks: Vec<Mask> = vec![own.secrets.self_mask()];
        let mut held = Vec::with_capacity(shares.len());
        for (dealer, sealed) in shares {
            let peer = self.peers.remove(&dealer).ok_or(SecaggError::WrongNeighbours)?;
            let shares = own.secrets.open(dealer, &peer.advert.channel_key, &sealed);
            if shares.is_none() {
                // The dealer's own loss: the round goes on if others hold enough of its shares.
                findings.push(Finding::MalformedDeal { dealer, holder: own.member });
            }
            let mask = own.secrets.pairwise_mask(dealer, &peer.advert.mask_key);
            masks.push(mask.ok_or(SecaggError::BadKey { member: dealer })?);
            held.push(Held { peer, shares });
        }
        let silent = self.peers.into_keys().collect();
        let (roster, present) = (self.roster, self.present);
        Ok(Masking { roster, present, silent, held, masks, input: None })
    }
}
