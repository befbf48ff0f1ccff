//! The third phase: the update is masked, once.

use super::{
    Own,
    advertise::{check_count, check_neighbours},
    share::Held,
    unmask::Confirming,
};
use crate::secagg::{
    Member, MemberSet, SecaggError, Step,
    bytes::ByteArray,
    mask::{self, Mask},
    message::Roster,
    transcript::survivors_digest,
};

/// The masks are known.
#[cfg_attr(test, derive(Clone))]
pub(super) struct Masking {
    pub(super) roster: Roster,
    pub(super) present: MemberSet,
    /// Neighbours that advertised but dealt no shares: not masked with.
    pub(super) silent: Vec<Member>,
    /// By ascending place.
    pub(super) held: Vec<Held>,
    pub(super) masks: Vec<Mask>,
    /// Hash of the vector that was masked.
    pub(super) input: Option<ByteArray<32>>,
}

impl Masking {
    pub(super) fn mask(&mut self, own: &Own, update: &mut [u32]) -> Result<(), SecaggError> {
        let context = &own.context;
        let length = update.len() as u64;
        if length != context.dimension {
            return Err(SecaggError::WrongLength { length, expected: context.dimension });
        }
        check_range(context.bits, context.coordinate_max, update)?;
        let input = fingerprint(update);
        if self.input.is_some_and(|before| before != input) {
            return Err(SecaggError::TwoInputs { member: own.member });
        }
        self.input = Some(input);
        mask::apply(&self.masks, context.bits, update);
        Ok(())
    }

    /// Takes the set of survivors and checks everything about it that one agent can.
    pub(super) fn survive(
        self,
        own: &Own,
        survivors: MemberSet,
    ) -> Result<Confirming, SecaggError> {
        if self.input.is_none() {
            return Err(SecaggError::OutOfTurn { step: Step::MaskedInput });
        }
        if survivors.cohort_size() != own.context.plan.cohort_size() {
            return Err(SecaggError::NotInRoster);
        }
        if !survivors.contains(own.member) {
            return Err(SecaggError::NotASurvivor);
        }
        check_count(own, Step::MaskedInput, &survivors)?;
        let unknown = |member: &Member| {
            !self.present.contains(*member) || self.silent.binary_search(member).is_ok()
        };
        if let Some(member) = survivors.iter().find(unknown) {
            return Err(SecaggError::UnknownSurvivor { member });
        }
        let neighbours = self.held.iter().filter(|held| survivors.contains(held.peer.member));
        check_neighbours(own, Step::MaskedInput, neighbours.count())?;
        let digest = survivors_digest(&own.digest, &self.roster, &survivors);
        Ok(Confirming { digest, survivors, held: self.held })
    }
}

/// Whether every coordinate, centred, is at most `coordinate_max` in magnitude.
fn check_range(bits: u8, coordinate_max: u32, update: &[u32]) -> Result<(), SecaggError> {
    let unused = 32 - u32::from(bits);
    let centred = |value: u32| (value << unused).cast_signed() >> unused;
    let fits = |&value: &u32| {
        value >> (u32::from(bits) - 1) <= 1 && centred(value).unsigned_abs() <= coordinate_max
    };
    match update.iter().position(|value| !fits(value)) {
        None => Ok(()),
        Some(index) => {
            let value = centred(update[index]);
            Err(SecaggError::OutOfRange { index, value, coordinate_max })
        }
    }
}

fn fingerprint(update: &[u32]) -> ByteArray<32> {
    let mut hasher = blake3::Hasher::new();
    let mut bytes = zeroize::Zeroizing::new([0; 4096]);
    for block in update.chunks(1024) {
        for (bytes, value) in bytes.chunks_exact_mut(4).zip(block) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
        hasher.update(&bytes[..4 * block.len()]);
    }
    ByteArray(*hasher.finalize().as_bytes())
}
