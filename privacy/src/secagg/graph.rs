//! Who is whose neighbour.

use super::{GraphKind, Member, MemberSet, SecaggPlan};

/// The graph of one round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Graph {
    /// Everybody is everybody's neighbour.
    Complete {
        /// Members of the cohort.
        cohort_size: u32,
    },
    /// The `k / 2` next on either side of a ring.
    Harary {
        /// The ring.
        ring: Vec<Member>,
        /// Where each member is on it.
        positions: Vec<u32>,
        /// `k / 2`.
        reach: usize,
    },
}

impl Graph {
    /// - `ring`: all members of the cohort in the joint order; unused for the complete graph
    pub(super) fn new(plan: &SecaggPlan, ring: Vec<Member>) -> Self {
        if plan.graph() == GraphKind::Complete {
            return Self::Complete { cohort_size: plan.cohort_size() };
        }
        let mut positions = vec![0; ring.len()];
        for (position, member) in (0u32..).zip(&ring) {
            positions[member.index()] = position;
        }
        Self::Harary { ring, positions, reach: plan.neighbours() as usize / 2 }
    }

    /// The neighbours of a member among those `present`, by ascending place.
    pub(super) fn neighbours(&self, member: Member, present: &MemberSet) -> Vec<Member> {
        match self {
            Self::Complete { cohort_size } => (0..*cohort_size)
                .map(Member)
                .filter(|&other| other != member && present.contains(other))
                .collect(),
            Self::Harary { ring, positions, reach } => {
                let position = positions[member.index()] as usize;
                let next = |distance| ring[(position + distance) % ring.len()];
                let before = |distance| ring[(position + ring.len() - distance) % ring.len()];
                let mut neighbours: Vec<Member> = (1..=*reach)
                    .flat_map(|distance| [next(distance), before(distance)])
                    .filter(|&other| present.contains(other))
                    .collect();
                neighbours.sort_unstable();
                neighbours
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secagg::Adversary;

    #[test]
    fn harary_neighbours_are_mutual_and_k() {
        let plan = SecaggPlan::choose(200, 0.1, 0.1, Adversary::SemiHonest).expect("possible");
        let ring = (0..200).map(|position| Member(position * 77 % 200)).collect();
        let graph = Graph::new(&plan, ring);
        let everybody = MemberSet::full(200);
        for member in everybody.iter() {
            let neighbours = graph.neighbours(member, &everybody);
            assert_eq!(neighbours.len(), plan.neighbours() as usize);
            assert!(neighbours.windows(2).all(|pair| pair[0] < pair[1]));
            assert!(!neighbours.contains(&member));
            for other in neighbours {
                assert!(graph.neighbours(other, &everybody).contains(&member));
            }
        }
    }

    #[test]
    fn absent_members_are_nobodys_neighbours() {
        let plan = SecaggPlan::choose(5, 0.2, 0.2, Adversary::SemiHonest).expect("possible");
        let graph = Graph::new(&plan, Vec::new());
        let mut present = MemberSet::empty(5);
        [0, 2, 4].into_iter().for_each(|member| present.insert(Member(member)));
        assert_eq!(graph.neighbours(Member(2), &present), [Member(0), Member(4)]);
    }
}
