//! What follows from the persisted state and is costly to compute again for every member.

use std::sync::OnceLock;

use super::Server;
use crate::secagg::{
    GraphKind, Member, MemberSet,
    bytes::ByteArray,
    context::cohort_leaves,
    graph::Graph,
    merkle::Tree,
    message::{Advert, OrderOpening, Roster},
    order,
};

/// Filled on demand; equal by definition, since it follows from the rest.
#[derive(Debug, Clone, Default)]
pub(super) struct Cache {
    context_digest: OnceLock<ByteArray<32>>,
    lists: OnceLock<Lists>,
    neighbours: OnceLock<Vec<Vec<Member>>>,
}

impl PartialEq for Cache {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Cache {}

/// The trees over credentials and adverts.
#[derive(Debug, Clone)]
pub(super) struct Lists {
    pub(super) cohort: Tree,
    pub(super) adverts: Tree,
    pub(super) roster: Roster,
}

impl Server {
    /// The lists; only once all adverts are in.
    pub(super) fn lists(&self) -> &Lists {
        self.cache.lists.get_or_init(|| {
            let cohort_size = self.cohort_size();
            let leaf =
                |member| self.adverts.get(&member).map_or_else(Advert::absent_leaf, Advert::leaf);
            let adverts = Tree::new((0..cohort_size).map(Member).map(leaf).collect());
            let advertised = MemberSet::of(cohort_size, self.adverts.keys().copied());
            let order_digest = match self.context.plan.graph() {
                GraphKind::Complete => ByteArray([0; 32]),
                GraphKind::Harary => {
                    let commitments = self.adverts.values().map(|advert| &advert.order_commitment);
                    order::digest(&advertised, commitments)
                }
            };
            let roster = Roster { advertised, adverts_root: adverts.root(), order_digest };
            Lists { cohort: Tree::new(cohort_leaves(&self.credentials)), adverts, roster }
        })
    }

    /// Who takes part once keys, and for the sparse graph openings, are in.
    pub(super) fn present(&self) -> &MemberSet {
        match self.context.plan.graph() {
            GraphKind::Complete => &self.lists().roster.advertised,
            GraphKind::Harary => &self.order.asked,
        }
    }

    /// The openings of the last attempt; `None` for the complete graph.
    pub(super) fn order_opening(&self) -> Option<OrderOpening> {
        if self.context.plan.graph() == GraphKind::Complete {
            return None;
        }
        let order = &self.order;
        let others = self.adverts.iter().filter(|(member, _)| !order.asked.contains(**member));
        Some(OrderOpening {
            attempt: order.attempt,
            asked: order.asked.clone(),
            openings: order.openings.values().copied().collect(),
            commitments: others.map(|(_, advert)| advert.order_commitment).collect(),
        })
    }

    /// A member's neighbours among those present; only once the order is drawn.
    pub(super) fn neighbours(&self, member: Member) -> &[Member] {
        let all = self.cache.neighbours.get_or_init(|| {
            let ring = self.order_opening().map_or_else(Vec::new, |opened| {
                order::ring(&self.context_digest(), &self.lists().roster, &opened)
            });
            let graph = Graph::new(&self.context.plan, ring);
            let members = (0..self.cohort_size()).map(Member);
            members.map(|member| graph.neighbours(member, self.present())).collect()
        });
        &all[member.index()]
    }

    pub(super) fn context_digest(&self) -> ByteArray<32> {
        *self.cache.context_digest.get_or_init(|| self.context.digest())
    }
}
