//! Hash trees over a list: many leaves are proven together.
//!
//! A node without a sibling moves up unchanged; the list's length is hashed into the root, so the
//! shape is fixed. A proof of all leaves is empty.

use super::bytes::ByteArray;

/// All levels of a tree, leaves first.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    levels: Vec<Vec<ByteArray<32>>>,
}

impl Tree {
    /// - `leaves`: hashes, in the order of the list
    pub(super) fn new(leaves: Vec<ByteArray<32>>) -> Self {
        let mut levels = vec![leaves];
        while let Some(below) = levels.last().filter(|level| level.len() > 1) {
            let above = below.chunks(2).map(|pair| match pair {
                [left, right] => node(left, right),
                alone => alone[0],
            });
            let above = above.collect();
            levels.push(above);
        }
        Self { levels }
    }

    /// The digest of the list.
    pub(super) fn root(&self) -> ByteArray<32> {
        let top = self.levels.last().and_then(|level| level.first());
        root(self.levels[0].len(), top)
    }

    /// What [`root_of`] needs beside the leaves at `places`.
    ///
    /// - `places`: ascending, within the list
    pub(super) fn prove(&self, places: &[usize]) -> Vec<ByteArray<32>> {
        let mut proof = Vec::new();
        let mut known = places.to_vec();
        for level in &self.levels {
            let mut above = Vec::with_capacity(known.len());
            let mut rest = known.iter().copied().peekable();
            while let Some(place) = rest.next() {
                let sibling = place ^ 1;
                // Only a right sibling can follow in ascending order.
                if rest.peek() == Some(&sibling) {
                    rest.next();
                } else if let Some(&hash) = level.get(sibling) {
                    proof.push(hash);
                }
                above.push(place / 2);
            }
            known = above;
        }
        proof
    }
}

/// The root that leaves and proof lead to; `None` if they do not fit together.
///
/// - `length`: of the whole list
/// - `leaves`: places and hashes, strictly ascending
pub(super) fn root_of(
    length: usize,
    leaves: &[(usize, ByteArray<32>)],
    proof: &[ByteArray<32>],
) -> Option<ByteArray<32>> {
    let ascending = leaves.windows(2).all(|pair| pair[0].0 < pair[1].0);
    if !ascending || leaves.last()?.0 >= length {
        return None;
    }
    let mut proof = proof.iter();
    let mut known = leaves.to_vec();
    let mut width = length;
    while width > 1 {
        let mut above = Vec::with_capacity(known.len());
        let mut rest = known.iter().peekable();
        while let Some(&(place, hash)) = rest.next() {
            let sibling = place ^ 1;
            let joined = if let Some((_, right)) = rest.next_if(|next| next.0 == sibling) {
                node(&hash, right)
            } else if sibling >= width {
                hash
            } else if sibling < place {
                node(proof.next()?, &hash)
            } else {
                node(&hash, proof.next()?)
            };
            above.push((place / 2, joined));
        }
        known = above;
        width = width.div_ceil(2);
    }
    proof.next().is_none().then(|| root(length, known.first().map(|(_, hash)| hash)))
}

fn node(left: &ByteArray<32>, right: &ByteArray<32>) -> ByteArray<32> {
    let mut hasher = blake3::Hasher::new_derive_key("tributary secagg 1 tree node");
    hasher.update(&left.0).update(&right.0);
    ByteArray(*hasher.finalize().as_bytes())
}

fn root(length: usize, top: Option<&ByteArray<32>>) -> ByteArray<32> {
    let mut hasher = blake3::Hasher::new_derive_key("tributary secagg 1 tree root");
    hasher.update(&(length as u64).to_le_bytes());
    hasher.update(top.map_or(&[], |hash| &hash.0));
    ByteArray(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn leaves(length: usize) -> Vec<ByteArray<32>> {
        (0..length).map(|place| ByteArray(*blake3::hash(&place.to_le_bytes()).as_bytes())).collect()
    }

    #[test]
    fn lists_of_different_length_differ() {
        let roots: std::collections::BTreeSet<_> =
            (0..70).map(|length| Tree::new(leaves(length)).root()).collect();
        assert_eq!(roots.len(), 70);
    }

    proptest! {
        #[test]
        fn any_leaves_are_proven_and_no_others(
            length in 1usize..100,
            chosen in prop::collection::vec(any::<prop::sample::Index>(), 1..20),
            wrong in any::<prop::sample::Index>(),
        ) {
            let all = leaves(length);
            let tree = Tree::new(all.clone());
            let places: std::collections::BTreeSet<_> =
                chosen.iter().map(|index| index.index(length)).collect();
            let places: Vec<usize> = places.into_iter().collect();
            let proof = tree.prove(&places);
            let mut shown: Vec<_> = places.iter().map(|&place| (place, all[place])).collect();
            prop_assert_eq!(root_of(length, &shown, &proof), Some(tree.root()));
            prop_assert_ne!(root_of(length + 1, &shown, &proof), Some(tree.root()));
            let mut longer = proof.clone();
            longer.push(all[0]);
            prop_assert_eq!(root_of(length, &shown, &longer), None);
            let victim = wrong.index(shown.len());
            shown[victim].1.0[3] ^= 1;
            prop_assert_ne!(root_of(length, &shown, &proof), Some(tree.root()));
        }

        #[test]
        fn all_leaves_need_no_proof(length in 1usize..100) {
            let places: Vec<usize> = (0..length).collect();
            prop_assert!(Tree::new(leaves(length)).prove(&places).is_empty());
        }
    }
}
