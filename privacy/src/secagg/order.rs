//! The joint random order of the sparse graph, by commit and reveal.
//!
//! Every member commits to a hash chain before anybody's is known, and then opens it. The ring's
//! order is a hash of all openings, so one honest opening makes it unpredictable. A member that
//! withholds its opening, having seen the others, loses its place and everybody opens the next
//! link: refusing buys one new draw for one corrupt member, not a choice among many. With
//! [`ATTEMPTS_MAX`] draws the table's statistical error grows by that factor at most.

use super::{Member, MemberSet, Roster, bytes::ByteArray, message::OrderOpening};

/// How often members may drop out while the order is drawn before the round is abandoned.
pub(super) const ATTEMPTS_MAX: u32 = 8;

/// What a member reveals in an attempt, counted from 1.
pub(super) fn opening(
    context: &ByteArray<32>,
    member: Member,
    root: &ByteArray<16>,
    attempt: u32,
) -> ByteArray<16> {
    links(context, member, *root, ATTEMPTS_MAX - attempt)
}

/// What a member commits to.
pub(super) fn commitment(
    context: &ByteArray<32>,
    member: Member,
    root: &ByteArray<16>,
) -> ByteArray<16> {
    links(context, member, *root, ATTEMPTS_MAX)
}

/// The commitment that an opening belongs to.
pub(super) fn committed(
    context: &ByteArray<32>,
    member: Member,
    opening: ByteArray<16>,
    attempt: u32,
) -> ByteArray<16> {
    links(context, member, opening, attempt)
}

fn links(
    context: &ByteArray<32>,
    member: Member,
    start: ByteArray<16>,
    count: u32,
) -> ByteArray<16> {
    let mut input = [0; 52];
    input[..32].copy_from_slice(&context.0);
    input[32..36].copy_from_slice(&member.0.to_le_bytes());
    (0..count).fold(start, |link, _| {
        input[36..].copy_from_slice(&link.0);
        let hash = blake3::derive_key("tributary secagg 1 order link", &input);
        let mut cut = [0; 16];
        cut.copy_from_slice(&hash[..16]);
        ByteArray(cut)
    })
}

/// The digest of all commitments.
///
/// - `commitments`: of those who advertised, by ascending place
pub(super) fn digest<'a>(
    advertised: &MemberSet,
    commitments: impl Iterator<Item = &'a ByteArray<16>>,
) -> ByteArray<32> {
    let mut hasher = blake3::Hasher::new_derive_key("tributary secagg 1 order commitments");
    hasher.update(advertised.as_bytes());
    commitments.for_each(|commitment| {
        hasher.update(&commitment.0);
    });
    ByteArray(*hasher.finalize().as_bytes())
}

/// Whether openings and remaining commitments are those of the roster's digest.
pub(super) fn is_committed(context: &ByteArray<32>, roster: &Roster, order: &OrderOpening) -> bool {
    let fits = (1..=ATTEMPTS_MAX).contains(&order.attempt)
        && order.asked.is_subset(&roster.advertised)
        && order.openings.len() == order.asked.count() as usize
        && order.openings.len() + order.commitments.len() == roster.advertised.count() as usize;
    if !fits {
        return false;
    }
    let (mut openings, mut others) = (order.openings.iter(), order.commitments.iter());
    let commitments: Vec<ByteArray<16>> = roster
        .advertised
        .iter()
        .filter_map(|member| {
            if order.asked.contains(member) {
                openings.next().map(|value| committed(context, member, *value, order.attempt))
            } else {
                others.next().copied()
            }
        })
        .collect();
    digest(&roster.advertised, commitments.iter()) == roster.order_digest
}

/// The ring that follows from the openings: all members of the cohort, present or not.
pub(super) fn ring(context: &ByteArray<32>, roster: &Roster, order: &OrderOpening) -> Vec<Member> {
    let mut hasher = blake3::Hasher::new_derive_key("tributary secagg 1 order seed");
    hasher.update(&context.0).update(&roster.adverts_root.0).update(&roster.order_digest.0);
    hasher.update(&order.attempt.to_le_bytes()).update(order.asked.as_bytes());
    for opening in &order.openings {
        hasher.update(&opening.0);
    }
    let seed = *hasher.finalize().as_bytes();
    let mut ring: Vec<([u8; 32], Member)> = (0..roster.advertised.cohort_size())
        .map(|place| (*blake3::keyed_hash(&seed, &place.to_le_bytes()).as_bytes(), Member(place)))
        .collect();
    ring.sort_unstable();
    ring.into_iter().map(|(_, member)| member).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attempt_opens_the_same_commitment_with_another_value() {
        let (context, member, root) = (ByteArray([1; 32]), Member(3), ByteArray([2; 16]));
        let expected = commitment(&context, member, &root);
        let openings: Vec<_> =
            (1..=ATTEMPTS_MAX).map(|attempt| opening(&context, member, &root, attempt)).collect();
        for (attempt, &value) in (1..).zip(&openings) {
            assert_eq!(committed(&context, member, value, attempt), expected);
            assert_ne!(committed(&context, Member(4), value, attempt), expected);
            assert_eq!(openings.iter().filter(|&&other| other == value).count(), 1);
        }
        assert_eq!(openings.last(), Some(&root));
    }
}
