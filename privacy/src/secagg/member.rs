//! Members of a cohort and sets of them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::bytes::Blob;

/// A place in the cohort list, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Member(pub u32);

impl fmt::Display for Member {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl Member {
    /// The place as an index of slices over the cohort.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A subset of a cohort: one bit a member, least significant bit first.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "MemberSetFields")]
pub struct MemberSet {
    size: u32,
    bits: Blob,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MemberSetFields {
    size: u32,
    bits: Blob,
}

impl TryFrom<MemberSetFields> for MemberSet {
    type Error = &'static str;
    fn try_from(fields: MemberSetFields) -> Result<Self, Self::Error> {
        if fields.bits.0.len() != fields.size.div_ceil(8) as usize {
            return Err("a member set has one bit a member");
        }
        let used = fields.size % 8;
        if used > 0 && fields.bits.0.last().is_some_and(|last| last >> used != 0) {
            return Err("the unused bits of a member set are zero");
        }
        Ok(Self { size: fields.size, bits: fields.bits })
    }
}

impl MemberSet {
    /// The empty set.
    ///
    /// - `size`: members of the whole cohort
    #[must_use]
    pub fn empty(size: u32) -> Self {
        Self { size, bits: Blob(vec![0; size.div_ceil(8) as usize]) }
    }

    /// The whole cohort.
    #[must_use]
    pub fn full(size: u32) -> Self {
        Self::of(size, (0..size).map(Member))
    }

    /// The set of these members.
    ///
    /// # Panics
    /// If one is not in the cohort: a mistake of the caller.
    #[must_use]
    pub fn of(size: u32, members: impl IntoIterator<Item = Member>) -> Self {
        members.into_iter().fold(Self::empty(size), |mut set, member| {
            set.insert(member);
            set
        })
    }

    /// Members of the whole cohort that this is a subset of.
    #[must_use]
    pub const fn cohort_size(&self) -> u32 {
        self.size
    }

    /// How many members are in the set.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.bits.0.iter().map(|byte| byte.count_ones()).sum()
    }

    /// Whether `member` is in the set; nobody outside the cohort is.
    #[must_use]
    pub fn contains(&self, member: Member) -> bool {
        member.0 < self.size && self.bits.0[member.index() / 8] >> (member.0 % 8) & 1 == 1
    }

    /// Adds a member.
    ///
    /// # Panics
    /// If `member` is not in the cohort: a mistake of the caller.
    pub fn insert(&mut self, member: Member) {
        assert!(member.0 < self.size, "a member of the cohort");
        self.bits.0[member.index() / 8] |= 1 << (member.0 % 8);
    }

    /// Whether every member of this set is in `other`.
    #[must_use]
    pub fn is_subset(&self, other: &Self) -> bool {
        self.size == other.size
            && self.bits.0.iter().zip(&other.bits.0).all(|(ours, theirs)| ours & !theirs == 0)
    }

    /// The members in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Member> + '_ {
        (0..self.size).map(Member).filter(|&member| self.contains(member))
    }

    /// The bits, as they are hashed and sent.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bits.0
    }
}

impl fmt::Debug for MemberSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} of {} members ", self.count(), self.size)?;
        formatter.debug_set().entries(self.iter().map(|member| member.0)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_count_contain_and_iterate() {
        let mut set = MemberSet::empty(11);
        for member in [0, 7, 8, 10, 7] {
            set.insert(Member(member));
        }
        assert_eq!(set.count(), 4);
        assert_eq!(set.iter().map(|member| member.0).collect::<Vec<_>>(), [0, 7, 8, 10]);
        assert!(!set.contains(Member(1)) && !set.contains(Member(11)));
        assert!(set.is_subset(&MemberSet::full(11)) && !MemberSet::full(11).is_subset(&set));
        assert_eq!(MemberSet::full(11).count(), 11);
        assert_eq!(set.as_bytes(), [0b1000_0001, 0b101]);
    }

    #[test]
    fn malformed_sets_are_refused() {
        let set = MemberSet::full(11);
        let text = serde_json::to_string(&set).expect("serialises");
        assert_eq!(serde_json::from_str::<MemberSet>(&text).expect("the same"), set);
        for (size, bits) in [(11, "/w=="), (11, "////"), (8, "/wc="), (11, "/w8=")] {
            let text = format!(r#"{{"size":{size},"bits":"{bits}"}}"#);
            assert!(serde_json::from_str::<MemberSet>(&text).is_err(), "{text}");
        }
    }
}
