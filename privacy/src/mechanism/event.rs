//! What the accountants count.

use serde::{Deserialize, Serialize};

/// Which datasets count as neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Neighbouring {
    /// One has a unit more than the other.
    AddOrRemoveOne,
    /// They differ in one unit.
    ReplaceOne,
}

/// One accounted release, or many equal ones.
///
/// A noise multiplier is always the noise standard deviation divided by the clipping norm: the L2
/// bound of one unit's contribution. That is the sensitivity under add-or-remove-one; replacing one
/// unit moves the sum by up to twice as much, which the accountants take care of. The neighbouring
/// relation is add-or-remove-one unless the name says otherwise, and events of both relations are
/// never composed together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum PrivacyEvent {
    /// The Gaussian mechanism on the whole data.
    Gaussian {
        /// Noise deviation over clipping norm.
        noise_multiplier: f64,
        /// How many such releases.
        count: u64,
    },
    /// The Gaussian mechanism on a Poisson sample: every unit joins independently.
    PoissonGaussian {
        /// Probability with which each unit joins.
        sampling_rate: f64,
        /// Noise deviation over clipping norm.
        noise_multiplier: f64,
        /// How many such releases, each with a fresh sample.
        steps: u64,
    },
    /// A vector of integers plus the discrete Gaussian noise of `clients` shares, each drawn by
    /// another client and added under secure aggregation; with one client, an agent's own noise.
    ///
    /// The clipping norm has `sqrt(clients) sigma_share / noise_multiplier` grid units. More shares
    /// than counted only hide more. The accountants add what separates such noise from the
    /// continuous Gaussian, and the sampler's statistical distance.
    LatticeGaussian {
        /// Probability with which each unit joins; 1 if nothing is sampled.
        sampling_rate: f64,
        /// Deviation of the sum of the shares over clipping norm.
        noise_multiplier: f64,
        /// Noise deviation parameter of one share, in grid units.
        sigma_share: f64,
        /// Shares in the sum: those of the smallest surviving set of honest clients.
        clients: u32,
        /// Coordinates of the vector.
        dimension: u64,
        /// How many such releases, each with a fresh sample.
        steps: u64,
    },
    /// A whole run of integer vectors with discrete Gaussian noise that is correlated over its steps
    /// by a [`BandedMatrix`](super::BandedMatrix); a unit takes part in a few of its steps.
    BandedMatrix {
        /// Noise deviation over clipping norm, before the matrix correlates the noise.
        noise_multiplier: f64,
        /// The same deviation in the units of the released integers.
        sigma: f64,
        /// Coordinates of each vector.
        dimension: u64,
        /// Bands of the matrix.
        bands: u32,
        /// Steps of the run.
        steps: u64,
        /// Steps between two participations of one unit, at least.
        separation: u32,
        /// Participations of one unit in the run, at most.
        participations: u32,
        /// How many such runs.
        runs: u64,
    },
    /// One integer plus discrete Gaussian noise.
    DiscreteGaussian {
        /// Noise deviation parameter, in units of that integer.
        sigma: f64,
        /// By how much one unit can change the integer.
        sensitivity: u32,
        /// How many such releases.
        count: u64,
    },
    /// One integer plus Skellam noise (the difference of two equal Poissons).
    Skellam {
        /// Variance of the noise.
        variance: f64,
        /// By how much one unit can change the integer.
        sensitivity: u32,
        /// How many such releases.
        count: u64,
    },
    /// [`Gaussian`](Self::Gaussian) under replace-one.
    GaussianReplaceOne {
        /// Noise deviation over clipping norm.
        noise_multiplier: f64,
        /// How many such releases.
        count: u64,
    },
    /// [`PoissonGaussian`](Self::PoissonGaussian) under replace-one.
    PoissonGaussianReplaceOne {
        /// Probability with which each unit joins.
        sampling_rate: f64,
        /// Noise deviation over clipping norm.
        noise_multiplier: f64,
        /// How many such releases, each with a fresh sample.
        steps: u64,
    },
    /// The Gaussian mechanism on a sample of fixed size, under replace-one.
    WithoutReplacementGaussian {
        /// Units in a sample.
        batch_size: u64,
        /// Units in the dataset.
        num_examples: u64,
        /// Noise deviation over clipping norm.
        noise_multiplier: f64,
        /// How many such releases, each with a fresh sample.
        steps: u64,
    },
}

impl PrivacyEvent {
    /// The relation under which the event is accounted.
    #[must_use]
    pub const fn neighbouring(&self) -> Neighbouring {
        match self {
            Self::Gaussian { .. }
            | Self::PoissonGaussian { .. }
            | Self::LatticeGaussian { .. }
            | Self::BandedMatrix { .. }
            | Self::DiscreteGaussian { .. }
            | Self::Skellam { .. } => Neighbouring::AddOrRemoveOne,
            Self::GaussianReplaceOne { .. }
            | Self::PoissonGaussianReplaceOne { .. }
            | Self::WithoutReplacementGaussian { .. } => Neighbouring::ReplaceOne,
        }
    }

    /// How many equal releases the event stands for.
    #[must_use]
    pub const fn count(&self) -> u64 {
        match *self {
            Self::Gaussian { count, .. }
            | Self::DiscreteGaussian { count, .. }
            | Self::Skellam { count, .. }
            | Self::GaussianReplaceOne { count, .. } => count,
            Self::PoissonGaussian { steps, .. }
            | Self::LatticeGaussian { steps, .. }
            | Self::PoissonGaussianReplaceOne { steps, .. }
            | Self::WithoutReplacementGaussian { steps, .. } => steps,
            Self::BandedMatrix { runs, .. } => runs,
        }
    }

    /// The same release that many times.
    #[must_use]
    pub fn with_count(&self, new_count: u64) -> Self {
        let mut event = self.clone();
        match &mut event {
            Self::Gaussian { count, .. }
            | Self::DiscreteGaussian { count, .. }
            | Self::Skellam { count, .. }
            | Self::GaussianReplaceOne { count, .. } => *count = new_count,
            Self::PoissonGaussian { steps, .. }
            | Self::LatticeGaussian { steps, .. }
            | Self::PoissonGaussianReplaceOne { steps, .. }
            | Self::WithoutReplacementGaussian { steps, .. } => *steps = new_count,
            Self::BandedMatrix { runs, .. } => *runs = new_count,
        }
        event
    }

    /// The deviation over the sensitivity of the event's own relation, if nothing is sampled and
    /// the noise is continuous.
    pub(crate) fn as_gaussian(&self) -> Option<f64> {
        match *self {
            Self::Gaussian { noise_multiplier, .. } => Some(noise_multiplier),
            Self::PoissonGaussian { sampling_rate, noise_multiplier, .. } => {
                (sampling_rate == 1.0).then_some(noise_multiplier)
            }
            Self::GaussianReplaceOne { noise_multiplier, .. } => Some(noise_multiplier / 2.0),
            Self::PoissonGaussianReplaceOne { sampling_rate, noise_multiplier, .. } => {
                (sampling_rate == 1.0).then_some(noise_multiplier / 2.0)
            }
            Self::WithoutReplacementGaussian {
                batch_size, num_examples, noise_multiplier, ..
            } => (batch_size == num_examples).then_some(noise_multiplier / 2.0),
            Self::LatticeGaussian { .. }
            | Self::BandedMatrix { .. }
            | Self::DiscreteGaussian { .. }
            | Self::Skellam { .. } => None,
        }
    }

    /// Whether the output cannot depend on any one unit.
    pub(crate) fn reveals_nothing(&self) -> bool {
        let never_sampled = match *self {
            Self::PoissonGaussian { sampling_rate, .. }
            | Self::LatticeGaussian { sampling_rate, .. }
            | Self::PoissonGaussianReplaceOne { sampling_rate, .. } => sampling_rate == 0.0,
            Self::WithoutReplacementGaussian { batch_size, .. } => batch_size == 0,
            Self::DiscreteGaussian { sensitivity, .. } | Self::Skellam { sensitivity, .. } => {
                sensitivity == 0
            }
            Self::Gaussian { .. } | Self::GaussianReplaceOne { .. } | Self::BandedMatrix { .. } => {
                false
            }
        };
        never_sampled || self.count() == 0
    }
}
