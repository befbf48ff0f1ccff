//! The step of the sparse graph: openings fix its order.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Server, is_repeated};
use crate::secagg::{
    AbandonReason, Member, MemberSet, SecaggError, ServerMessage, Step,
    bytes::ByteArray,
    message::{Opening, Reveal},
    order::{self, ATTEMPTS_MAX},
};

/// The current attempt at the order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Order {
    pub(super) attempt: u32,
    pub(super) asked: MemberSet,
    pub(super) openings: BTreeMap<Member, ByteArray<16>>,
}

impl Order {
    pub(super) fn new(cohort_size: u32) -> Self {
        Self { attempt: 1, asked: MemberSet::empty(cohort_size), openings: BTreeMap::new() }
    }
}

impl Server {
    pub(super) fn reveal(&self) -> ServerMessage {
        ServerMessage::Reveal(Reveal {
            roster: self.lists().roster.clone(),
            attempt: self.order.attempt,
            asked: self.order.asked.clone(),
        })
    }

    pub(super) fn take_opening(
        &mut self,
        member: Member,
        opening: &Opening,
    ) -> Result<(), SecaggError> {
        let step = Step::RevealOrder;
        let &Opening { attempt, value } = opening;
        let current = attempt == self.order.attempt;
        if current && is_repeated(self.order.openings.get(&member), &value, member, step)? {
            return Ok(());
        }
        self.check_turn(member, step)?;
        if !current {
            return Err(SecaggError::OutOfTurn { step });
        }
        let committed = order::committed(&self.context_digest(), member, value, attempt);
        if self.adverts.get(&member).is_none_or(|advert| advert.order_commitment != committed) {
            return Err(SecaggError::OpeningMismatch { member });
        }
        self.order.openings.insert(member, value);
        Ok(())
    }

    /// Goes on if everybody opened, else draws again without those who did not.
    pub(super) fn close_openings(&mut self) -> Result<(Step, MemberSet), AbandonReason> {
        let order = &self.order;
        self.check_count(order.openings.len())?;
        let opened = MemberSet::of(self.cohort_size(), order.openings.keys().copied());
        if opened == order.asked {
            return Ok((Step::ShareKeys, opened));
        }
        if order.attempt == ATTEMPTS_MAX {
            return Err(AbandonReason::OrderAttempts { attempts: ATTEMPTS_MAX });
        }
        let attempt = order.attempt + 1;
        self.order = Order { attempt, asked: opened.clone(), openings: BTreeMap::new() };
        Ok((Step::RevealOrder, opened))
    }
}
