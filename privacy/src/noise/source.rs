//! Where random bits come from.

use std::{convert::Infallible, fmt};

use rand::{CryptoRng, TryCryptoRng, TryRng};
use zeroize::Zeroizing;

use super::{NoiseError, keystream::Keystream};

mod sealed {
    pub trait Sealed {}
}

/// A cryptographic generator that a mechanism may draw noise from.
///
/// Sealed: only [`SecureNoise`] (and, with the cargo feature `research`, `SeededNoise`) implement
/// it, so a production binary cannot pass a predictable generator by mistake.
pub trait NoiseSource: CryptoRng + sealed::Sealed + Send {
    /// A further source, keyed with 256 bits of this one: its stream tells nothing about this one's,
    /// and may be used on another thread.
    #[must_use]
    fn fork(&mut self) -> Self
    where
        Self: Sized;
}

/// Noise bits from AES-256 in counter mode, keyed with 256 bits of the operating system's entropy.
///
/// The key is replaced from the stream itself every 64 KiB; key and buffered keystream are zeroised
/// on drop. There is no way to read, copy or restore the state.
pub struct SecureNoise(Keystream);

impl SecureNoise {
    /// Draws a fresh 256-bit key from the operating system.
    ///
    /// # Errors
    /// [`NoiseError::Entropy`] if the operating system has none to give.
    pub fn new() -> Result<Self, NoiseError> {
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(&mut key[..]).map_err(|source| NoiseError::Entropy { source })?;
        Ok(Self(Keystream::new(&key)))
    }
}

impl fmt::Debug for SecureNoise {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SecureNoise(..)")
    }
}

/// Reproducible noise for simulations and tests: no privacy at all.
#[cfg(any(test, feature = "research"))]
pub struct SeededNoise(Keystream);

#[cfg(any(test, feature = "research"))]
impl SeededNoise {
    /// Starts the stream that belongs to `seed`.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(Keystream::new(&Zeroizing::new(seed)))
    }
}

#[cfg(any(test, feature = "research"))]
impl fmt::Debug for SeededNoise {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SeededNoise(..)")
    }
}

macro_rules! noise_source {
    ($name:ident) => {
        impl TryRng for $name {
            type Error = Infallible;

            #[inline]
            fn try_next_u32(&mut self) -> Result<u32, Infallible> {
                Ok(u32::from_le_bytes(self.0.take()))
            }

            #[inline]
            fn try_next_u64(&mut self) -> Result<u64, Infallible> {
                Ok(u64::from_le_bytes(self.0.take()))
            }

            #[inline]
            fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
                self.0.fill(bytes);
                Ok(())
            }
        }

        impl TryCryptoRng for $name {}
        impl sealed::Sealed for $name {}
        impl NoiseSource for $name {
            fn fork(&mut self) -> Self {
                let mut key = Zeroizing::new([0; 32]);
                self.0.fill(&mut key[..]);
                Self(Keystream::new(&key))
            }
        }
    };
}

noise_source!(SecureNoise);
#[cfg(any(test, feature = "research"))]
noise_source!(SeededNoise);

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;

    #[test]
    fn fresh_sources_differ_and_seeded_ones_agree() {
        let draw = |source: &mut dyn Rng| [source.next_u64(), source.next_u64()];
        let mut one = SecureNoise::new().expect("entropy");
        let mut two = SecureNoise::new().expect("entropy");
        assert_ne!(draw(&mut one), draw(&mut two));
        let mut one = SeededNoise::from_seed([7; 32]);
        let mut two = SeededNoise::from_seed([7; 32]);
        assert_eq!(draw(&mut one), draw(&mut two));
    }

    #[test]
    fn forks_are_streams_of_their_own_that_a_seed_repeats() {
        let draw = |source: &mut SeededNoise| [source.next_u64(), source.next_u64()];
        let forks = || {
            let mut source = SeededNoise::from_seed([7; 32]);
            let (mut one, mut two) = (source.fork(), source.fork());
            [draw(&mut one), draw(&mut two), draw(&mut source)]
        };
        let drawn = forks();
        assert_eq!(drawn, forks());
        assert!(drawn[0] != drawn[1] && drawn[1] != drawn[2] && drawn[0] != drawn[2]);
        assert_ne!(drawn[0], draw(&mut SeededNoise::from_seed([7; 32])));
    }

    #[test]
    fn debug_shows_no_state() {
        let source = SecureNoise::new().expect("entropy");
        assert_eq!(format!("{source:?}"), "SecureNoise(..)");
    }
}
