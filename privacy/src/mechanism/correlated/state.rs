//! A run between two rounds, as bytes for a secret file.

use std::collections::VecDeque;

use zeroize::Zeroizing;

use super::{super::MechanismError, CorrelatedGradientSum};

/// Separates the hashes of this format from all others.
const CONTEXT: &str = "tributary 2026 correlated noise run, version 1";
/// Bytes of a hash.
const HASH: usize = 32;
/// Bytes before the vectors: the plan's hash, the step, the number of vectors of each kind.
const HEAD: usize = HASH + 8 + 8;

impl CorrelatedGradientSum {
    /// Everything that [`resume`](Self::resume) needs to go on with the same run.
    ///
    /// Contains raw gradient sums: as secret as the records, it must never leave the site. Make it
    /// durable before the step's result is released.
    #[must_use]
    pub fn to_secret_bytes(&self) -> Zeroizing<Vec<u8>> {
        let kept = self.raw.len();
        let vector = 8 * self.sums.dimension();
        let mut bytes = Zeroizing::new(Vec::with_capacity(HEAD + 2 * kept * vector + HASH));
        bytes.extend_from_slice(&self.plan_hash());
        bytes.extend_from_slice(&self.step.to_le_bytes());
        bytes.extend_from_slice(&(kept as u64).to_le_bytes());
        for units in self.raw.iter().flat_map(|vector| vector.iter()) {
            bytes.extend_from_slice(&units.to_le_bytes());
        }
        for value in self.solved.iter().flatten() {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        let hash = blake3::hash(&bytes);
        bytes.extend_from_slice(hash.as_bytes());
        bytes
    }

    /// Goes on with the run that [`to_secret_bytes`](Self::to_secret_bytes) saved.
    ///
    /// - `self`: the same plan, at its start
    ///
    /// # Errors
    /// [`MechanismError::RunState`] if the bytes are damaged or belong to another plan.
    pub fn resume(mut self, bytes: &[u8]) -> Result<Self, MechanismError> {
        let damaged = |reason| MechanismError::RunState { reason };
        let (body, hash) = bytes
            .split_last_chunk::<HASH>()
            .filter(|(body, _)| body.len() >= HEAD)
            .ok_or(damaged("it is too short"))?;
        if blake3::hash(body).as_bytes() != hash {
            return Err(damaged("its bytes do not match their hash"));
        }
        let (plan, rest) = body.split_at(HASH);
        if plan != self.plan_hash() {
            return Err(damaged("it belongs to another plan"));
        }
        let (words, _) = rest.as_chunks::<8>();
        let (step, kept) = (u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1]));
        let kept_max = (self.matrix.coefficients().len() - 1) as u64;
        let dimension = self.sums.dimension();
        let length = (kept as usize).checked_mul(dimension).and_then(|half| half.checked_mul(16));
        if step > self.schedule.steps()
            || kept != step.min(kept_max)
            || length.and_then(|vectors| vectors.checked_add(HEAD)) != Some(body.len())
        {
            return Err(damaged("its parts contradict each other"));
        }
        let (raw, solved) = words[2..].split_at(kept as usize * dimension);
        let raw = raw.chunks_exact(dimension).map(|vector| {
            Zeroizing::new(vector.iter().map(|&word| i64::from_le_bytes(word)).collect())
        });
        let solved = solved
            .chunks_exact(dimension)
            .map(|vector| vector.iter().map(|&word| f64::from_le_bytes(word)).collect());
        self.raw = raw.collect();
        self.solved = solved.collect::<VecDeque<Vec<f64>>>();
        self.step = step;
        Ok(self)
    }

    /// The hash of all that makes two plans interchangeable.
    fn plan_hash(&self) -> [u8; HASH] {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        for number in [self.sums.clipping_norm().value(), self.sums.noise_multiplier()] {
            hasher.update(&number.to_le_bytes());
        }
        let schedule = &self.schedule;
        for number in [
            self.sums.dimension() as u64,
            self.matrix.coefficients().len() as u64,
            schedule.steps(),
            u64::from(schedule.separation()),
            u64::from(schedule.participations()),
        ] {
            hasher.update(&number.to_le_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}
