//! The last step: shares are collected, secrets reconstructed, masks removed.

use curve25519_dalek::Scalar;
use serde::{Deserialize, Serialize};

use super::{Server, is_repeated};
use crate::{
    lattice::ModularSum,
    secagg::{
        AbandonReason, Finding, Member, MemberSet, SecaggError, Step,
        bytes::ByteArray,
        keys::{self, SecretKind},
        mask::{self, Mask},
        shamir,
    },
};

/// How many valid shares of each needed secret are there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tally {
    /// By place in the cohort list; `None` where no secret is needed.
    shares: Vec<Option<u32>>,
    /// Secrets with fewer shares than the threshold.
    lacking: u32,
}

impl Tally {
    pub(super) const fn is_sufficient(&self) -> bool {
        self.lacking == 0
    }
}

impl Server {
    /// Notes which secrets are needed: all survivors' self masks, and the keys of those who dropped
    /// out after survivors had masked with them.
    pub(super) fn count_needed(&mut self) {
        let survivors = self.survivors.as_ref().expect("uploads are closed");
        let needed = |member: Member| {
            survivors.contains(member)
                || self.deals.contains_key(&member)
                    && self.neighbours(member).iter().any(|&peer| survivors.contains(peer))
        };
        let members = (0..self.cohort_size()).map(Member);
        let shares: Vec<Option<u32>> = members.map(|member| needed(member).then_some(0)).collect();
        let lacking = shares.iter().flatten().count() as u32;
        self.tally = Tally { shares, lacking };
    }

    pub(super) fn take_shares(
        &mut self,
        member: Member,
        shares: Vec<Option<ByteArray<32>>>,
    ) -> Result<(), SecaggError> {
        let step = Step::Unmask;
        if is_repeated(self.revealed.get(&member), &shares, member, step)? {
            return Ok(());
        }
        self.check_turn(member, step)?;
        let dealers: Vec<Member> = self.dealers(member).collect();
        let (count, expected) = (shares.len(), dealers.len());
        if count != expected {
            return Err(SecaggError::ShareCount { member, count, expected });
        }
        for (dealer, share) in dealers.into_iter().zip(&shares) {
            match share {
                None => self.findings.push(Finding::MalformedDeal { dealer, holder: member }),
                Some(share) if self.valid_share(dealer, member, share).is_some() => {
                    self.count_share(dealer);
                }
                Some(_) => self.findings.push(Finding::MalformedShare { dealer, holder: member }),
            }
        }
        self.revealed.insert(member, shares);
        Ok(())
    }

    fn count_share(&mut self, dealer: Member) {
        if let Some(shares) = &mut self.tally.shares[dealer.index()] {
            *shares += 1;
            if *shares == self.context.plan.threshold() {
                self.tally.lacking -= 1;
            }
        }
    }

    /// A share, if it is what the dealer committed to.
    fn valid_share(&self, dealer: Member, holder: Member, share: &ByteArray<32>) -> Option<Scalar> {
        let sealed = self.sealed(dealer, holder)?;
        let (kind, commitment) = if self.survived(dealer) {
            (SecretKind::SelfMask, &sealed.self_mask_share)
        } else {
            (SecretKind::MaskKey, &sealed.mask_key_share)
        };
        let digest = self.context_digest();
        (keys::share_commitment(&digest, kind, dealer, holder, &share.0) == *commitment)
            .then(|| Scalar::from_canonical_bytes(share.0).into_option())
            .flatten()
    }

    fn survived(&self, member: Member) -> bool {
        self.survivors.as_ref().is_some_and(|survivors| survivors.contains(member))
    }

    /// Reconstructs every secret and checks it against what was advertised.
    pub(super) fn close_shares(&mut self) -> Result<(Step, MemberSet), AbandonReason> {
        let shares_min = self.context.plan.threshold();
        let members = (0..self.cohort_size()).map(Member);
        let dealers: Vec<Vec<Member>> =
            members.map(|holder| self.dealers(holder).collect()).collect();
        let mut recovered = Vec::new();
        for (place, shares) in (0..).zip(&self.tally.shares) {
            let Some(shares) = *shares else { continue };
            let member = Member(place);
            if shares < shares_min {
                return Err(AbandonReason::TooFewShares { member, shares, shares_min });
            }
            let seed = shamir::reconstruct(&self.shares_of(member, &dealers));
            if !self.is_advertised(member, &seed) {
                return Err(AbandonReason::FalseSecret { member });
            }
            recovered.push((member, ByteArray(seed.to_bytes())));
        }
        self.recovered = recovered;
        Ok((Step::Done, MemberSet::empty(self.cohort_size())))
    }

    /// As many valid shares of a member's secret as are needed.
    ///
    /// - `dealers`: whose shares each member holds
    fn shares_of(&self, dealer: Member, dealers: &[Vec<Member>]) -> Vec<(Member, Scalar)> {
        let shares = self.neighbours(dealer).iter().filter_map(|&holder| {
            let revealed = self.revealed.get(&holder)?;
            let position = dealers[holder.index()].binary_search(&dealer).ok()?;
            let share = revealed.get(position)?.as_ref()?;
            Some((holder, self.valid_share(dealer, holder, share)?))
        });
        shares.take(self.context.plan.threshold() as usize).collect()
    }

    fn is_advertised(&self, member: Member, seed: &Scalar) -> bool {
        let digest = self.context_digest();
        self.adverts.get(&member).is_some_and(|advert| {
            if self.survived(member) {
                keys::self_mask_commitment(&digest, member, seed) == advert.self_mask_commitment
            } else {
                keys::recovered_mask_key(&digest, member, seed, advert).is_some()
            }
        })
    }

    /// Removes what is left of the masks from the sum of the survivors' updates.
    ///
    /// # Errors
    /// [`SecaggError::OutOfTurn`] before [`Step::Done`], [`SecaggError::WrongLength`] or
    /// [`SecaggError::Context`] if the sum is not on the context's lattice; it is then unchanged.
    pub fn unmask(&self, sum: &mut ModularSum) -> Result<(), SecaggError> {
        if self.step != Step::Done {
            return Err(SecaggError::OutOfTurn { step: self.step });
        }
        let (length, expected) = (sum.values().len() as u64, self.context.dimension);
        if length != expected {
            return Err(SecaggError::WrongLength { length, expected });
        }
        if sum.lattice().bits() != self.context.bits {
            return Err(SecaggError::Context);
        }
        mask::apply(&self.remaining_masks(), self.context.bits, sum.values_mut());
        Ok(())
    }

    /// The masks that add up to what has to be added to the sum to cancel the rest.
    fn remaining_masks(&self) -> Vec<Mask> {
        let digest = self.context_digest();
        let mut masks = Vec::new();
        for (member, seed) in &self.recovered {
            let seed = Scalar::from_bytes_mod_order(seed.0);
            if self.survived(*member) {
                let mut mask = keys::self_mask(&digest, *member, &seed);
                mask.sign = mask.sign.opposite();
                masks.push(mask);
                continue;
            }
            // What the dropout itself would have added cancels what its neighbours did.
            let advert = self.adverts.get(member).expect("dealers advertised");
            let key = keys::recovered_mask_key(&digest, *member, &seed, advert)
                .expect("checked when it was reconstructed");
            let own = (*member, advert.mask_key);
            masks.extend(self.neighbours(*member).iter().filter_map(|&peer| {
                let peer_key = self.adverts.get(&peer)?.mask_key;
                let mask = keys::pairwise_mask(&digest, &key, own, (peer, peer_key));
                mask.filter(|_| self.survived(peer))
            }));
        }
        masks
    }
}
