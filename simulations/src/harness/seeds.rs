//! Independent random streams from one seed.

use rand::{Rng, SeedableRng, rngs::Xoshiro256PlusPlus};
use tributary_privacy::noise::SeededNoise;
use tributary_protocol::id::Digest;

/// What a stream is for; streams of different purposes are independent.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    InitialModel,
    Cohort,
    Dropout,
    Training,
    ServerNoise,
    Adversary,
    Slowness,
    Identity,
    Masks,
    LostStep,
    Split,
    Adapter,
}

/// The seed of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seeds(pub(super) u64);

impl Seeds {
    /// The key of a stream.
    pub(super) fn key(self, purpose: Purpose, round: u64, tenant: u32) -> [u8; 32] {
        let mut input = Vec::with_capacity(64);
        input.extend_from_slice(b"tributary 2026 simulation");
        input.push(purpose as u8);
        input.extend_from_slice(&self.0.to_le_bytes());
        input.extend_from_slice(&round.to_le_bytes());
        input.extend_from_slice(&tenant.to_le_bytes());
        *Digest::of(&input).as_bytes()
    }

    /// A fast stream, for everything but noise.
    pub(super) fn fast(self, purpose: Purpose, round: u64, tenant: u32) -> Xoshiro256PlusPlus {
        Xoshiro256PlusPlus::from_seed(self.key(purpose, round, tenant))
    }

    /// A stream that mechanisms accept.
    pub(super) fn noise(self, purpose: Purpose, round: u64, tenant: u32) -> SeededNoise {
        SeededNoise::from_seed(self.key(purpose, round, tenant))
    }

    /// One number.
    pub(super) fn number(self, purpose: Purpose, round: u64) -> u64 {
        self.number_of(purpose, round, 0)
    }

    /// One number of a tenant.
    pub(super) fn number_of(self, purpose: Purpose, round: u64, tenant: u32) -> u64 {
        self.fast(purpose, round, tenant).next_u64()
    }

    /// Marks `count` members of a population at random.
    pub(super) fn choose(self, purpose: Purpose, population: usize, count: usize) -> Vec<bool> {
        let mut order: Vec<u32> = (0..population as u32).collect();
        order.sort_by_cached_key(|&member| self.number_of(purpose, 0, member));
        let mut chosen = vec![false; population];
        order[..count].iter().for_each(|&member| chosen[member as usize] = true);
        chosen
    }
}
