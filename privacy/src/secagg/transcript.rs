//! What is signed and hashed about messages.

use super::{
    Member, MemberSet, RoundContext, SecaggError,
    bytes::ByteArray,
    message::{Advert, Roster},
};

impl Advert {
    fn digest(&self, purpose: &str) -> blake3::Hasher {
        let mut hasher = blake3::Hasher::new_derive_key(purpose);
        hasher.update(&self.round.to_le_bytes());
        for digest in [
            &self.base_digest,
            &self.context,
            &self.mask_key,
            &self.channel_key,
            &self.self_mask_commitment,
        ] {
            hasher.update(&digest.0);
        }
        hasher.update(&self.order_commitment.0);
        hasher
    }

    /// What its member signs.
    pub(super) fn signed_bytes(&self, member: Member) -> Vec<u8> {
        let mut hasher = self.digest("tributary secagg 1 advert");
        hasher.update(&member.0.to_le_bytes());
        let digest = hasher.finalize();
        [b"tributary secagg 1 advert ".as_slice(), digest.as_bytes()].concat()
    }

    /// The leaf in the tree of adverts.
    pub(super) fn leaf(&self) -> ByteArray<32> {
        let mut hasher = self.digest("tributary secagg 1 advert leaf");
        hasher.update(&self.signature.0);
        ByteArray(*hasher.finalize().as_bytes())
    }

    /// The leaf of a member that did not advertise.
    pub(super) fn absent_leaf() -> ByteArray<32> {
        ByteArray(blake3::derive_key("tributary secagg 1 no advert", &[]))
    }

    /// Whether it was made for these terms; names the first difference.
    pub(super) fn check_terms(
        &self,
        member: Member,
        context: &RoundContext,
        digest: &ByteArray<32>,
    ) -> Result<(), SecaggError> {
        if self.round != context.round {
            Err(SecaggError::ReplayedKeys { member, round: self.round })
        } else if self.base_digest != context.base_digest {
            Err(SecaggError::BaseModelDiffers { member })
        } else if self.context != *digest {
            Err(SecaggError::TermsDiffer { member })
        } else {
            Ok(())
        }
    }
}

/// The digest of a round, its adverts and its survivors.
pub(super) fn survivors_digest(
    context: &ByteArray<32>,
    roster: &Roster,
    survivors: &MemberSet,
) -> ByteArray<32> {
    let mut hasher = blake3::Hasher::new_derive_key("tributary secagg 1 survivors");
    hasher.update(&context.0).update(&roster.adverts_root.0).update(survivors.as_bytes());
    ByteArray(*hasher.finalize().as_bytes())
}

/// What a member signs to confirm the survivors.
pub(super) fn confirmation_bytes(digest: &ByteArray<32>) -> Vec<u8> {
    [b"tributary secagg 1 survivors ".as_slice(), &digest.0].concat()
}
