//! The first phase: keys are out, the order of the graph is drawn, the neighbours become known.

use std::collections::BTreeMap;

use super::{Own, share::Dealt};
use crate::secagg::{
    GraphKind, Identity, Member, MemberSet, PeerKeys, SecaggError, Step,
    bytes::{Blob, ByteArray},
    context::cohort_leaf,
    graph::Graph,
    merkle,
    message::{Advert, Neighbourhood, Opening, OrderOpening, Peer, Reveal, Roster},
    order,
};

/// Makes and signs the keys of the round.
pub(super) fn advert(own: &Own, identity: &dyn Identity) -> Advert {
    let (context, secrets) = (&own.context, &own.secrets);
    let mut advert = Advert {
        round: context.round,
        base_digest: context.base_digest,
        context: own.digest,
        mask_key: secrets.mask_key_public(),
        channel_key: secrets.channel_key_public(),
        self_mask_commitment: secrets.self_mask_commitment(),
        order_commitment: match context.plan.graph() {
            GraphKind::Complete => ByteArray([0; 16]),
            GraphKind::Harary => secrets.order_commitment(),
        },
        signature: Blob::default(),
    };
    advert.signature = Blob(identity.sign(&advert.signed_bytes(own.member)));
    advert
}

/// Keys are out.
#[derive(Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Advertised {
    asked: Option<Reveal>,
}

impl Advertised {
    pub(super) const fn was_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// Opens the next link of the commitment.
    ///
    /// What was asked is fixed before the opening is known, so each attempt is one draw.
    pub(super) fn reveal(self, own: &Own, reveal: Reveal) -> Result<(Self, Opening), SecaggError> {
        let step = Step::RevealOrder;
        if own.context.plan.graph() == GraphKind::Complete {
            return Err(SecaggError::OutOfTurn { step: Step::AdvertiseKeys });
        }
        check_roster(own, &reveal.roster)?;
        let attempt = reveal.attempt;
        let continues = match &self.asked {
            None => attempt == 1 && reveal.asked == reveal.roster.advertised,
            Some(before) => {
                attempt == before.attempt + 1
                    && reveal.roster == before.roster
                    && reveal.asked.is_subset(&before.asked)
                    && reveal.asked != before.asked
            }
        };
        if !continues || attempt > order::ATTEMPTS_MAX || !reveal.asked.contains(own.member) {
            return Err(SecaggError::ConflictingRequests { step });
        }
        check_count(own, step, &reveal.asked)?;
        let opening = Opening { attempt, value: own.secrets.order_opening(attempt) };
        Ok((Self { asked: Some(reveal) }, opening))
    }

    /// Meets the neighbours: checks that nobody chose them, and each one's keys.
    pub(super) fn meet(
        self,
        own: &Own,
        advert: &Advert,
        neighbourhood: Neighbourhood,
        peers: &dyn PeerKeys,
    ) -> Result<Dealt, SecaggError> {
        let roster = &neighbourhood.roster;
        check_roster(own, roster)?;
        let (present, graph) = match (self.asked, &neighbourhood.order) {
            (None, None) if own.context.plan.graph() == GraphKind::Complete => {
                (&roster.advertised, Graph::new(&own.context.plan, Vec::new()))
            }
            (Some(reveal), Some(opened)) => {
                check_order(own, &reveal, roster, opened)?;
                let ring = order::ring(&own.digest, roster, opened);
                (&opened.asked, Graph::new(&own.context.plan, ring))
            }
            _ => return Err(SecaggError::OrderNotCommitted),
        };
        let expected = graph.neighbours(own.member, present);
        if !expected.iter().eq(neighbourhood.peers.iter().map(|peer| &peer.member)) {
            return Err(SecaggError::WrongNeighbours);
        }
        check_neighbours(own, Step::ShareKeys, expected.len())?;
        check_listed(own, advert, &neighbourhood)?;
        let (roster, present) = (roster.clone(), present.clone());
        check_tenants(own, &neighbourhood.peers, peers)?;
        let peers = neighbourhood.peers.into_iter().map(|peer| {
            check_advert(own, &peer, peers)?;
            Ok((peer.member, peer))
        });
        let peers = peers.collect::<Result<BTreeMap<Member, Peer>, SecaggError>>()?;
        Ok(Dealt { roster, present, peers })
    }
}

/// Whether the cohort is still large enough and this agent in it.
fn check_roster(own: &Own, roster: &Roster) -> Result<(), SecaggError> {
    if roster.advertised.cohort_size() != own.context.plan.cohort_size()
        || !roster.advertised.contains(own.member)
    {
        return Err(SecaggError::NotInRoster);
    }
    check_count(own, Step::AdvertiseKeys, &roster.advertised)
}

pub(super) fn check_count(own: &Own, step: Step, members: &MemberSet) -> Result<(), SecaggError> {
    let (members, members_min) = (members.count(), own.context.plan.survivors_min());
    if members < members_min {
        return Err(SecaggError::CohortShrank { step, members, members_min });
    }
    Ok(())
}

pub(super) fn check_neighbours(own: &Own, step: Step, count: usize) -> Result<(), SecaggError> {
    let (neighbours, neighbours_min) = (count as u32, own.context.plan.threshold());
    if neighbours < neighbours_min {
        return Err(SecaggError::TooFewNeighbours { step, neighbours, neighbours_min });
    }
    Ok(())
}

/// Whether the order follows from what was fixed before this agent opened its commitment.
fn check_order(
    own: &Own,
    reveal: &Reveal,
    roster: &Roster,
    opened: &OrderOpening,
) -> Result<(), SecaggError> {
    let as_asked = *roster == reveal.roster
        && opened.attempt == reveal.attempt
        && opened.asked == reveal.asked;
    let own_opening = opened.asked.iter().position(|member| member == own.member);
    let own_opening = own_opening.and_then(|position| opened.openings.get(position));
    if as_asked
        && own_opening == Some(&own.secrets.order_opening(opened.attempt))
        && order::is_committed(&own.digest, roster, opened)
    {
        Ok(())
    } else {
        Err(SecaggError::OrderNotCommitted)
    }
}

/// Whether credentials and adverts, this agent's own included, are in the lists.
fn check_listed(
    own: &Own,
    advert: &Advert,
    neighbourhood: &Neighbourhood,
) -> Result<(), SecaggError> {
    let peers = neighbourhood.peers.iter();
    let mut credentials: Vec<_> =
        peers.clone().map(|peer| (peer.member.index(), cohort_leaf(&peer.credential))).collect();
    credentials.push((own.member.index(), cohort_leaf(&own.credential)));
    credentials.sort_unstable();
    let mut adverts: Vec<_> = peers.map(|peer| (peer.member.index(), peer.advert.leaf())).collect();
    adverts.push((own.member.index(), advert.leaf()));
    // In the complete graph nobody needs a proof: absent members have a leaf everybody knows.
    let roster = &neighbourhood.roster;
    let cohort_size = own.context.plan.cohort_size();
    adverts.sort_unstable();
    let root = |leaves: &[_], proof| merkle::root_of(cohort_size as usize, leaves, proof);
    if root(&credentials, &neighbourhood.cohort_proof) == Some(own.context.cohort_root)
        && root(&adverts, &neighbourhood.adverts_proof) == Some(roster.adverts_root)
    {
        Ok(())
    } else {
        Err(SecaggError::NotInRoster)
    }
}

/// Whether all are trusted and different tenants.
fn check_tenants(own: &Own, peers: &[Peer], keys: &dyn PeerKeys) -> Result<(), SecaggError> {
    let mut tenants = BTreeMap::new();
    let own_entry = (own.member, &own.credential);
    for (member, credential) in
        std::iter::once(own_entry).chain(peers.iter().map(|peer| (peer.member, &peer.credential)))
    {
        let name = keys.name(&credential.0).ok_or(SecaggError::UntrustedPeer { member })?;
        if let Some(first) = tenants.insert(name, member) {
            return Err(SecaggError::SameTenant { first, second: member });
        }
    }
    Ok(())
}

/// Whether a neighbour made these keys for this round.
fn check_advert(own: &Own, peer: &Peer, keys: &dyn PeerKeys) -> Result<(), SecaggError> {
    let (member, advert) = (peer.member, &peer.advert);
    let message = advert.signed_bytes(member);
    if !keys.verify(&peer.credential.0, &message, &advert.signature.0) {
        return Err(SecaggError::SubstitutedKeys { member });
    }
    advert.check_terms(member, &own.context, &own.digest)
}
