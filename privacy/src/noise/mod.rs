//! Randomness for privacy: the source and the discrete Gaussian sampler.

mod bernoulli;
mod discrete_gaussian;
mod exact;
mod fixed;
mod keystream;
mod source;
mod table;
mod vector;

use thiserror::Error;

#[cfg(any(test, feature = "research"))]
pub use self::source::SeededNoise;
pub(crate) use self::vector::{Descend, RoundAndAdd};
pub use self::{
    discrete_gaussian::DiscreteGaussian,
    exact::ExactDiscreteGaussian,
    source::{NoiseSource, SecureNoise},
};

/// The smallest standard deviation of [`DiscreteGaussian`], in grid units.
pub const SIGMA_MIN: f64 = 0.5;
/// The largest standard deviation of [`DiscreteGaussian`], in grid units.
pub const SIGMA_MAX: f64 = 1e9;

/// Says why noise cannot be drawn.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum NoiseError {
    /// The operating system gave no entropy.
    #[error("the operating system gave no entropy")]
    Entropy {
        /// What the system said.
        #[source]
        source: getrandom::Error,
    },
    /// The standard deviation is outside the sampler's range.
    #[error("noise deviation {sigma} grid units is outside {SIGMA_MIN} to {SIGMA_MAX}")]
    SigmaOutOfRange {
        /// The requested deviation, in grid units.
        sigma: f64,
    },
}
