//! What a round of secure aggregation is about, hashed into every key and signature.

use serde::{Deserialize, Serialize};

use super::{
    SecaggPlan,
    bytes::{Blob, ByteArray},
    merkle,
};
use crate::lattice::{BITS_MAX, BITS_MIN};

/// The public terms of one round, as an agent has checked them against its own policy.
///
/// Its digest is in every signature, key and mask. Agents that were told different terms (another
/// base model, cohort, plan, lattice, job) find it out from each other's adverts, and their masks
/// would not cancel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundContext {
    /// The job's name.
    pub job: String,
    /// The round's number within the job.
    pub round: u64,
    /// Digest of the base model that everybody starts from.
    pub base_digest: ByteArray<32>,
    /// Digest of whatever else must be common to all, such as the job's document.
    pub terms_digest: ByteArray<32>,
    /// Root over the cohort list, see [`cohort_root`].
    pub cohort_root: ByteArray<32>,
    /// Graph and thresholds.
    pub plan: SecaggPlan,
    /// Width of the lattice's modulus.
    pub bits: u8,
    /// Coordinates of the update.
    pub dimension: u64,
    /// The largest magnitude of a coordinate of one update, noise included, in grid units.
    pub coordinate_max: u32,
}

impl RoundContext {
    /// The digest of all fields.
    #[must_use]
    pub fn digest(&self) -> ByteArray<32> {
        let mut hasher = blake3::Hasher::new_derive_key("tributary secagg 1 round context");
        hasher.update(&(self.job.len() as u64).to_le_bytes());
        hasher.update(self.job.as_bytes());
        hasher.update(&self.round.to_le_bytes());
        for digest in [&self.base_digest, &self.terms_digest, &self.cohort_root] {
            hasher.update(&digest.0);
        }
        let plan = &self.plan;
        let plan = [
            plan.cohort_size(),
            plan.neighbours(),
            plan.threshold(),
            plan.survivors_min(),
            plan.corrupt_max(),
            plan.graph() as u32,
            plan.adversary() as u32,
        ];
        for number in plan {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(&[self.bits]);
        hasher.update(&self.dimension.to_le_bytes());
        hasher.update(&self.coordinate_max.to_le_bytes());
        ByteArray(*hasher.finalize().as_bytes())
    }

    /// Whether the numbers fit together: a supported modulus, and a range that it can hold.
    #[must_use]
    pub const fn is_well_formed(&self) -> bool {
        self.bits >= BITS_MIN
            && self.bits <= BITS_MAX
            && self.coordinate_max >= 1
            && (self.coordinate_max as u64) < 1 << (self.bits - 1)
            && self.dimension <= u32::MAX as u64
    }
}

/// The root over the credentials of a cohort, in the order of the cohort list.
///
/// - `credentials`: what each member's signatures are verified with; opaque here
#[must_use]
pub fn cohort_root(credentials: &[Blob]) -> ByteArray<32> {
    merkle::Tree::new(cohort_leaves(credentials)).root()
}

/// The leaves of the cohort list.
pub(super) fn cohort_leaves(credentials: &[Blob]) -> Vec<ByteArray<32>> {
    credentials.iter().map(cohort_leaf).collect()
}

/// The leaf of one member; its place is in the tree's structure.
pub(super) fn cohort_leaf(credential: &Blob) -> ByteArray<32> {
    ByteArray(blake3::derive_key("tributary secagg 1 cohort member", &credential.0))
}
